"""Reading packs for other Cython modules: `csrc/pack_cache.h` has the table of those that are open."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t


cdef extern from "csrc/pack_cache.h" nogil:
    enum: PACK_SECTOR
    enum: PACK_DIGEST
    enum: HEADER_UNKNOWN
    enum: HEADER_GOOD
    enum: HEADER_BAD
    enum: SLOT_FREE
    enum: SLOT_PRESENT
    enum: SLOT_DELETED
    ctypedef struct open_pack:
        int64_t id
        int fd
        int verdict
        uint64_t fresh_at
        uint8_t *header
    ctypedef struct pack_cache:
        int count
        int max
    int pread_all(int fd, uint8_t *data, size_t size, int64_t offset)
    int64_t slot_offset(int slot)
    int pack_reaches(int fd, int64_t end)


# What lies under `count` ≥ 1 tickets from the one that was asked for on, all in consecutive slots of one pack.
ctypedef struct extent:
    int status        # ingest.status
    int count
    int slot          # of the first one
    open_pack *pack   # NULL unless SAVED; valid until the next call


cdef class PackReader:
    cdef pack_cache cache
    cdef readonly int data_fd
    cdef uint8_t store_id[16]
    cdef bint any_store
    cdef uint8_t *keys                 # put keys, 32 bytes each
    cdef int key_count
    cdef readonly uint64_t moment

    # Headers read before this are read again: call it after requests were received and before they are answered, so
    # that what was acked before a request was sent is in its answer.
    cdef void now(self) noexcept nogil
    # The state of `first` and of those after it that are alike, at most `count` ≥ 1 of them.
    cdef void look(self, int64_t first, int count, extent *found) noexcept nogil
    # Reads `count` slots into `frames`. 0 or an errno; what lies past the end of the file reads as zeros.
    cdef int read(self, const extent *found, int count, uint8_t *frames) noexcept nogil
    # The open pack with this id or NULL, whatever its header says: to go on with what was announced.
    cdef open_pack *find(self, int64_t pack) noexcept nogil
    # Reads the header again, unless that was done at this moment: 0 or an errno.
    cdef int refresh(self, open_pack *pack) noexcept nogil

    cdef int _get(self, int64_t id, open_pack **pack) noexcept nogil
    cdef int _read_header(self, open_pack *pack, uint8_t *header) noexcept nogil
    cdef bint _authentic(self, const uint8_t *frame, int64_t index) noexcept nogil
    cdef int _check_range(self, int64_t first, int64_t count) except -1
