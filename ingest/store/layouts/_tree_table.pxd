"""Layout tree as the committer writes it."""

from libc.stdint cimport int64_t

from ingest.store.layouts._slot_table cimport SlotTable, pack_state


cdef class TreeTable(SlotTable):
    cdef pack_state *_must(self, int64_t pack, int slot, int count) except NULL
