"""Layout tree as the committer writes it."""

from libc.stdint cimport int64_t

from ingest.store.layouts._slot_table cimport SlotTable, pack_state, unsynced_files


cdef class TreeTable(SlotTable):
    # Where each file is synced by itself, they stay open until then:
    cdef unsynced_files _written             # since the last flush began
    cdef unsynced_files _syncing             # of the flush under way

    cdef unsynced_files *_unsynced(self) noexcept nogil
    cdef void _close_written(self) noexcept
    cdef pack_state *_must(self, int64_t pack, int slot, int count) except NULL
