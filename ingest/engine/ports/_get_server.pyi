from collections.abc import Iterable, Sequence
from typing import Protocol

from ingest.engine._queue import Queue
from ingest.engine.ports._guarded_connections import GuardedConnections
from ingest.engine.ports._rare_events import IDLE as IDLE
from ingest.engine.ports._rare_events import SPEAKS_HTTP as SPEAKS_HTTP
from ingest.engine.ports._rare_events import SPEAKS_TLS as SPEAKS_TLS
from ingest.mac import SubKeys
from ingest.store.layouts._slot_reader import SlotReader

BAD_REQUEST: str
UNREAD_REPLIES: str
PARTIAL_REQUEST: str

class _RequestKeys(Protocol):
    @property
    def get(self) -> bytes: ...
    @property
    def inventory(self) -> bytes: ...

class GetServer(GuardedConnections):
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
