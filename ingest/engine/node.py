"""What all processes of one server share: made by the parent before it forks, inherited by every child."""

from __future__ import annotations

import mmap
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ingest import limits

if TYPE_CHECKING:
    from ingest.engine._queue import Queue
    from ingest.engine.server_config import ServerConfig
    from ingest.mac import KeyRing
    from ingest.runtime.heartbeat import Heart
    from ingest.store.store import Store
    from ingest.tls import Certificates


def _settings_memory() -> mmap.mmap:
    return mmap.mmap(-1, limits.SETTINGS_SIZE_MAX)


@dataclass
class Node:
    """One server. Sockets are bound before the fork; the frame sockets listen once the store has recovered.

    ``put_sockets`` and ``get_sockets`` are the workers' in turn (SO_REUSEPORT, non-blocking), once for each address of the
    host: see `sockets_of`. The parent keeps them open,
    so that connections that wait in the backlog of a worker that died are accepted by its replacement.
    ``passing[i]`` is a pair of SOCK_SEQPACKET ends: any worker sends an accepted connection to worker i
    through [1], worker i receives it from [0]. ``addresses``: put, get and admin, as they are bound.

    What a reload changes (`reload`) is here as a process that starts now has to see it: ``keys`` are the workers',
    ``known_keys`` those with which committer and admin port verify what is stored, None when they are the same.
    ``read_config`` reads the configuration again. ``control`` is a child's end of its line to the parent,
    ``settings_memory`` what a message there speaks of. ``hearts``: of the processes, by their names.
    """

    config: ServerConfig
    store: Store
    keys: KeyRing
    queue: Queue
    admin_sockets: list[socket.socket]  # one for each address of its host
    put_sockets: list[socket.socket] = field(default_factory=list)
    get_sockets: list[socket.socket] = field(default_factory=list)
    passing: list[tuple[socket.socket, socket.socket]] = field(default_factory=list)
    addresses: dict[str, str] = field(default_factory=dict)
    certificates: Certificates | None = None
    known_keys: KeyRing | None = None
    key_names: tuple[str, ...] = ()  # identifiers of the keys that are counted, by their counters' numbers
    read_config: Callable[[], ServerConfig] | None = None
    control: socket.socket | None = None
    hearts: Mapping[str, Heart] = field(default_factory=dict)
    settings_memory: mmap.mmap = field(default_factory=_settings_memory)

    def sockets_of(self, worker: int) -> tuple[list[socket.socket], list[socket.socket]]:
        """Those of the put port and of the get port."""
        workers = self.queue.workers
        return self.put_sockets[worker::workers], self.get_sockets[worker::workers]

    @property
    def verifying_keys(self) -> KeyRing:
        return self.known_keys or self.keys
