"""Layout pack as recovery writes it."""

from libc.stdint cimport int64_t

from ingest.store.layouts._open_packs cimport OpenPacks
from ingest.store.layouts._slot_table cimport pack_state


cdef class PackTable(OpenPacks):
    cdef int _unwritten                      # at least as many as the open packs that `write_headers` owes a header
    cdef public object lost                  # takes what is for packs whose headers are lost, or None

    # The pack, opened; whatever keeps it from that is raised.
    cdef pack_state *_must(self, int64_t pack) except NULL
    cdef pack_state *_to_replay(self, int64_t pack) except? NULL
    cdef int _owe(self, pack_state *p) except -1
    cdef int _check_slots(self, int64_t pack, int slot, int count) except -1
    cdef int _open_file(self, int64_t pack, int flags) except -1
