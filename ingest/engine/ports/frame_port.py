"""One of the two frame ports of a worker: where it listens, and the server of its connections."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ingest.runtime.tls_context import TlsContext
from ingest.tls import Certificates

if TYPE_CHECKING:
    from ingest.mac import KeyRing, SubKeys

Event = tuple[str, str, int]  # what, peer, number


class FrameServer(Protocol):
    """What a worker knows of the server of one port."""

    @property
    def connections(self) -> int: ...
    @property
    def drained(self) -> bool: ...
    def fileno(self) -> int: ...
    def turn(self) -> list[Event] | None: ...
    def tick(self, now: float) -> list[Event] | None: ...
    def adopt(self, fd: int, peer: str) -> bool: ...
    def make_room(self) -> list[Event] | None: ...
    def close_idle(self, count: int) -> list[Event] | None: ...
    def set_keys(
        self, keys: Iterable[SubKeys], known: Iterable[SubKeys] = ..., names: Sequence[str] = ...
    ) -> None: ...
    def set_tls(self, context: TlsContext | None) -> None: ...
    def begin_drain(self) -> list[Event] | None: ...
    def close(self) -> None: ...


@dataclass(eq=False)
class Port:
    """One of the two frame ports of this worker."""

    kind: bytes  # of its messages: b"P" or b"G"
    listeners: list[socket.socket]  # for each address of its host
    server: FrameServer
    out_of_descriptors: bool = False
    drift: int = 0  # connections that were served and not counted, at the last look

    @property
    def is_put(self) -> bool:
        return self.kind == b"P"

    @property
    def name(self) -> str:
        return "put" if self.is_put else "get"


def peer_name(address: Any) -> str:
    """``host:port`` of a socket address, with brackets around an IPv6 host."""
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def configure(
    server: FrameServer, keys: KeyRing, key_names: tuple[str, ...], certificates: Certificates | None
) -> None:
    """Has a server accept these keys, and speak TLS on new connections when there are certificates."""
    server.set_keys(keys.accepted, keys.all, key_names)
    server.set_tls(None if certificates is None else TlsContext(certificates, is_server=True))
