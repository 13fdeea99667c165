"""What a server says of itself in DATA/.ingest/lock, as JSON: for scripts, for the next server, for its gateway."""

from __future__ import annotations

import ipaddress
import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ingest.mac import SubKeys
from ingest.runtime import listeners
from ingest.runtime.listeners import Address
from ingest.runtime.lock_file import is_held
from ingest.store.data_dir import META, DataDir

if TYPE_CHECKING:
    from ingest.engine.node import Node

log = logging.getLogger(__name__)


def addresses(node: Node) -> dict[str, str]:
    """Where the node really listens: also where its configuration says port 0."""
    return {
        name: listeners.format_address(listeners.bound_address(sock))
        for name, sock in (
            ("put", node.put_sockets[0]),
            ("get", node.get_sockets[0]),
            ("admin", node.admin_sockets[0]),
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


def running(data_dir: Path) -> dict[str, Any] | None:
    """What the server says that runs on ``data_dir``, as `announced`; None when none does.

    It looks for a moment whether it could have the lock. A server that starts in that moment waits for it.
    """
    try:
        inside = DataDir(data_dir)
        return announced(data_dir) if is_held(inside.lock, inside.meta) else None
    except OSError:
        return None


def announced(data_dir: Path) -> dict[str, Any]:
    """`pid`, `keys`, and the addresses `put`, `get` and `admin` as text: of the server that runs there, or ran there last.
    Nothing while no server has said so."""
    try:
        found = json.loads(DataDir(data_dir).lock.read_bytes())
    except (OSError, ValueError, RecursionError):  # not there yet, or about to be written
        return {}
    return found if isinstance(found, dict) else {}


def reachable(text: str) -> Address:
    """Where to connect to for an address that is listened on: a wildcard is reached at loopback. ValueError."""
    host, port = listeners.parse_address(text)
    address = ipaddress.ip_address(host.partition("%")[0])
    if address.is_unspecified:
        host = "127.0.0.1" if address.version == 4 else "::1"
    return host, port
