from collections.abc import Iterable
from typing import Self

from ingest.store.layouts._slot_reader import SlotReader, _PutKey

def open_max() -> int: ...

class PackReader(SlotReader):
    def __new__(
        cls,
        data_fd: int,
        keys: Iterable[_PutKey] = (),
        store_id: bytes | None = None,
        *,
        packs_max: int | None = None,
    ) -> Self: ...
