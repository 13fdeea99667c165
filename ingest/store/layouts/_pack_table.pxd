"""Layout pack as recovery writes it."""

from libc.stdint cimport int64_t

from ingest.store.layouts._open_packs cimport OpenPacks
from ingest.store.layouts._slot_table cimport pack_state


cdef class PackTable(OpenPacks):
    cdef set _replayed                       # packs whose headers `write_headers` is to write

    # The pack, opened; whatever keeps it from that is raised.
    cdef pack_state *_must(self, int64_t pack) except NULL
