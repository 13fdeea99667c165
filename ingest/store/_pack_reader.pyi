from collections.abc import Iterable
from typing import Protocol

from ingest.status import Status

class _PutKey(Protocol):
    @property
    def put(self) -> bytes: ...

def open_max() -> int: ...

class PackReader:
    data_fd: int
    moment: int
    def __init__(
        self,
        data_fd: int,
        keys: Iterable[_PutKey] = (),
        store_id: bytes | None = None,
        *,
        packs_max: int | None = None,
    ) -> None: ...
    def __len__(self) -> int: ...
    def close(self) -> None: ...
    def read_range(self, first: int, count: int) -> list[tuple[int, Status, int, bytes]]: ...
    def read_chunk(self, index: int) -> tuple[Status, bytes]: ...
