"""Reading packs: `csrc/pack_cache.h` has the table of those that are open."""

from libc.stdint cimport int64_t, uint8_t, uint64_t

from ingest.store.layouts._slot_reader cimport SlotReader


cdef extern from "csrc/pack_cache.h" nogil:
    ctypedef struct open_pack:
        int64_t id
        int fd
        int verdict
        uint64_t fresh_at
        uint8_t *header
    ctypedef struct pack_cache:
        int count
        int max


cdef class PackReader(SlotReader):
    cdef pack_cache cache
    cdef uint8_t store_id[16]
    cdef bint any_store

    cdef int _get(self, int64_t id, open_pack **pack) noexcept nogil
    # Reads the header again, unless that was done at this moment.
    cdef int _refresh(self, open_pack *pack) noexcept nogil
    cdef int _read_header(self, open_pack *pack, uint8_t *header) noexcept nogil
