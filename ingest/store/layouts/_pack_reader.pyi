from collections.abc import Iterable

from ingest.store.layouts._slot_reader import PutKey, SlotReader

def open_max() -> int: ...

class PackReader(SlotReader):
    def __init__(
        self,
        data_fd: int,
        keys: Iterable[PutKey] = (),
        store_id: bytes | None = None,
        *,
        packs_max: int | None = None,
    ) -> None: ...
