from collections.abc import Iterable, Sequence
from typing import Protocol

from ingest._queue import Queue
from ingest.mac import SubKeys
from ingest.store._slot_reader import SlotReader
from ingest.tls import TlsContext

BAD_REQUEST: str
UNREAD_REPLIES: str
PARTIAL_REQUEST: str
IDLE: str
SPEAKS_HTTP: str
SPEAKS_TLS: str

class _RequestKeys(Protocol):
    @property
    def get(self) -> bytes: ...
    @property
    def inventory(self) -> bytes: ...

class GetServer:
    connections: int
    slot: int
    def __init__(
        self,
        queue: Queue,
        slot: int,
        reader: SlotReader,
        keys: Iterable[_RequestKeys],
        *,
        connections_max: int = ...,
        pipelined_max: int = ...,
        collect_size: int = ...,
        turn_bytes_max: int = ...,
        turn_looks_max: int = ...,
        turn_requests_max: int = ...,
    ) -> None: ...
    def set_keys(
        self, keys: Iterable[_RequestKeys], known: Iterable[SubKeys] = ..., names: Sequence[str] = ...
    ) -> None: ...
    def set_tls(self, context: TlsContext | None) -> None: ...
    def fileno(self) -> int: ...
    @property
    def drained(self) -> bool: ...
    def adopt(self, fd: int, peer: str) -> bool: ...
    def turn(self) -> list[tuple[str, str, int]] | None: ...
    def tick(self, now: float) -> list[tuple[str, str, int]] | None: ...
    def begin_drain(self) -> list[tuple[str, str, int]] | None: ...
    def close(self) -> None: ...
