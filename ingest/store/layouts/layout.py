"""How chunks lie on disk: the two layouts of `docs/format.md`, each with the class that writes it and the one that reads it.

What a layout does for the committer is in `_slot_table`, what it does for readers in `_slot_reader`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeAlias

from ingest.mac import SubKeys
from ingest.runtime.file_system import file_system
from ingest.store.layouts._pack_reader import PackReader
from ingest.store.layouts._pack_table import PackTable
from ingest.store.layouts._slot_reader import SlotReader
from ingest.store.layouts._tree_reader import TreeReader
from ingest.store.layouts._tree_table import TreeTable

# A `SlotTable` that recovery can write into, too.
Table: TypeAlias = PackTable | TreeTable

_TABLES: dict[str, type[PackTable] | type[TreeTable]] = {"pack": PackTable, "tree": TreeTable}
_READERS: dict[str, type[SlotReader]] = {"pack": PackReader, "tree": TreeReader}

LAYOUTS = tuple(_TABLES)


class _Laid(Protocol):
    """A `Store`, which imports this module."""

    @property
    def layout(self) -> str: ...
    @property
    def data_fd(self) -> int: ...
    @property
    def store_id(self) -> bytes: ...


def make_table(store: _Laid, open_max: int) -> Table:
    """What the one process that writes `store` has of its slots, of at most ``open_max`` packs at a time."""
    table = _TABLES[store.layout](store.data_fd, store.store_id, open_max)
    if file_system(store.data_fd).syncs_files:
        table.sync_each_file()
    return table


def make_reader(store: _Laid, keys: Iterable[SubKeys] = ()) -> SlotReader:
    """Reads `store`, for one thread. ``keys``: all that ever signed here, which `read_chunk` needs."""
    return _READERS[store.layout](store.data_fd, keys, store.store_id)
