"""What a server says of itself in DATA/.ingest/lock, as JSON: for scripts, for the next server, for its gateway."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ingest import listeners
from ingest.mac import SubKeys
from ingest.store.store import META

if TYPE_CHECKING:
    from ingest.node import Node

log = logging.getLogger(__name__)


def addresses(node: Node) -> dict[str, str]:
    """Where the node really listens: also where its configuration says port 0."""
    return {
        name: listeners.format_address(listeners.bound_address(sock))
        for name, sock in (
            ("put", node.put_sockets[0]),
            ("get", node.get_sockets[0]),
            ("admin", node.admin_socket),
        )
    }


def announce(node: Node, accepted: Iterable[SubKeys]) -> None:
    """``accepted``: the keys that every worker takes from the network, from now on until this is called again."""
    found = {"pid": os.getpid(), **node.addresses, "keys": [keys.id for keys in accepted]}
    content = json.dumps(found).encode() + b"\n"
    # Over the last one, filled up with blanks, as JSON allows: a full disk still takes what needs no new block.
    lock_fd = node.store.lock_fd
    try:
        content = content.ljust(os.fstat(lock_fd).st_size)
        os.pwrite(lock_fd, content, 0)
        os.ftruncate(lock_fd, len(content.rstrip()) + 1)
    except OSError as error:
        log.error("DATA/%s/lock does not say what this server is: %s", META, error.strerror)
