"""What all processes of one server share: made by the parent before it forks, inherited by every child."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ingest._queue import Queue
    from ingest.config import ServerConfig
    from ingest.mac import KeyRing
    from ingest.store.store import Store


@dataclass
class Node:
    """One server. Sockets are bound before the fork; the frame sockets listen once the store has recovered.

    ``put_sockets[i]`` and ``get_sockets[i]`` are worker i's (SO_REUSEPORT, non-blocking); the parent keeps them open,
    so that connections that wait in the backlog of a worker that died are accepted by its replacement.
    ``passing[i]`` is a pair of SOCK_SEQPACKET ends: any worker sends an accepted connection to worker i
    through [1], worker i receives it from [0].
    """

    config: ServerConfig
    store: Store
    keys: KeyRing
    queue: Queue
    admin_socket: socket.socket
    put_sockets: list[socket.socket] = field(default_factory=list)
    get_sockets: list[socket.socket] = field(default_factory=list)
    passing: list[tuple[socket.socket, socket.socket]] = field(default_factory=list)
