from collections.abc import Iterable, Sequence
from typing import Protocol

from ingest._queue import Queue
from ingest.mac import SubKeys
from ingest.tls import TlsContext

BAD_FRAMES: str
UNREAD_ACKS: str
PARTIAL_FRAME: str
IDLE: str
SPEAKS_HTTP: str
SPEAKS_TLS: str
STRAY_OUTCOME: str

class _FrameKeys(Protocol):
    @property
    def put(self) -> bytes: ...
    @property
    def delete(self) -> bytes: ...

class PutServer:
    connections: int
    slot: int
    def __init__(
        self,
        queue: Queue,
        slot: int,
        keys: Iterable[_FrameKeys],
        *,
        bad_frame_limit: int = ...,
        connections_max: int = ...,
        block_places: int = ...,
        unread_acks_max: int = ...,
        unread_acks_total_max: int = ...,
    ) -> None: ...
    def set_keys(
        self, keys: Iterable[_FrameKeys], known: Iterable[SubKeys] = ..., names: Sequence[str] = ...
    ) -> None: ...
    def set_tls(self, context: TlsContext | None) -> None: ...
    def fileno(self) -> int: ...
    @property
    def outstanding(self) -> int: ...
    @property
    def drained(self) -> bool: ...
    def adopt(self, fd: int, peer: str) -> bool: ...
    def turn(self) -> list[tuple[str, str, int]] | None: ...
    def tick(self, now: float) -> list[tuple[str, str, int]] | None: ...
    def begin_drain(self) -> list[tuple[str, str, int]] | None: ...
    def close(self) -> None: ...
