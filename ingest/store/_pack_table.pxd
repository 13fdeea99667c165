"""Layout pack as the committer writes it."""

from libc.stdint cimport int64_t

from ingest.store._slot_table cimport SlotTable, pack_state


cdef class PackTable(SlotTable):
    cdef readonly bytes store_id
    cdef int64_t _dirty_last                 # the pack that was marked dirty last; -1: none since the flush
    cdef set _replayed                       # packs whose headers `write_headers` is to write

    cdef int _create(self, pack_state *p) noexcept nogil
    cdef void _seal(self, pack_state *p) noexcept nogil
    cdef pack_state *_must(self, int64_t pack) except NULL
    # Writes the header if it changed: an errno or 0.
    cdef int _write_header(self, pack_state *p) noexcept nogil
