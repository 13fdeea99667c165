from collections.abc import Iterable, Sequence
from typing import Protocol

from ingest.engine._queue import Queue
from ingest.engine.ports._guarded_connections import GuardedConnections
from ingest.engine.ports._rare_events import IDLE as IDLE
from ingest.engine.ports._rare_events import SPEAKS_HTTP as SPEAKS_HTTP
from ingest.engine.ports._rare_events import SPEAKS_TLS as SPEAKS_TLS
from ingest.mac import SubKeys

BAD_FRAMES: str
UNREAD_ACKS: str
PARTIAL_FRAME: str
STRAY_OUTCOME: str

class _FrameKeys(Protocol):
    @property
    def put(self) -> bytes: ...
    @property
    def delete(self) -> bytes: ...

class PutServer(GuardedConnections):
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
    @property
    def outstanding(self) -> int: ...
