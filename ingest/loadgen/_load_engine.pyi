from collections.abc import Sequence

from typing_extensions import Buffer

from ingest.loadgen._load_connections import LoadConnections
from ingest.loadgen._load_content import Content

class Engine(LoadConnections):
    def __init__(
        self,
        content: Content,
        put_key: Buffer,
        sockets: Sequence[int],
        firsts: Sequence[int],
        counts: Sequence[int],
        window: int,
        *,
        interval_ns: float = 0,
        offset: int = 0,
        connections_total: int = 0,
        sessions: Sequence[int] = ...,
    ) -> None: ...
    def start(self, at_ns: int, end_ns: int = 0) -> None: ...
    def run(self, slice_ns: int) -> bool: ...
    def stop(self) -> None: ...
    def times(self) -> tuple[float, float]: ...
