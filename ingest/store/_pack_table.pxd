"""The packs that the committer writes: `csrc/pack_file.h` has the structures."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t


cdef extern from "csrc/pack_table.h" nogil:
    enum: PACK_HEADER_SIZE
    enum: PACK_SECTOR
    enum: PACK_PRESENT
    enum: PACK_DELETED
    enum: SLOT_FREE
    enum: SLOT_PRESENT
    enum: SLOT_DELETED
    enum: SLOT_CLAIMED
    ctypedef struct pack_state:
        int64_t id
        int fd
        int slots
        int claimed_count
        int touched
        uint8_t *header
        uint8_t *claimed
    ctypedef struct pack_table:
        uint32_t mask
        int count
        int max
    int slots_alike(const pack_state *p, int slot, int count, int *state)
    void bits_fill(uint8_t *bits, int start, int count, int value)
    int bit_get(const uint8_t *bits, int i)
    int64_t slot_offset(int slot)
    int pwrite_all(int fd, const uint8_t *data, size_t size, int64_t offset)
    int pread_all(int fd, uint8_t *data, size_t size, int64_t offset)
    int pack_zero_slots(pack_state *p, int slot, int count)
    void pack_path(int64_t id, char *path)
    int64_t file_size(int fd)
    int64_t file_allocated(int fd)
    int open_beneath(int root, const char *path, int flags, unsigned mode)
    uint64_t get_be(const uint8_t *p, int n)


cdef class PackTable:
    cdef pack_table table
    cdef readonly int data_fd
    cdef readonly bytes store_id
    cdef readonly int dirty_count            # packs written to since the last flush began
    cdef readonly int flushing_count         # packs that the flush under way is to make durable
    cdef readonly uint64_t created
    cdef readonly int64_t claimed            # slots, of all packs
    cdef public bint may_create              # else a pack that is not there is ENOSPC
    cdef set _dirty
    cdef set _replayed                       # packs whose headers `write_headers` is to write

    cdef int _open(self, pack_state *p) noexcept
    cdef int _create(self, pack_state *p) noexcept nogil
    cdef void _seal(self, pack_state *p) noexcept nogil
    cdef pack_state *_must(self, int64_t pack) except NULL
    # The pack, opened and if need be created; NULL with *error an errno. EBADMSG: its header fails its check;
    # EMEDIUMTYPE: it is whole and that of something else; EAGAIN: no descriptor is free before claims are released.
    cdef pack_state *get(self, int64_t pack, int *error) noexcept
    # The same, but EAGAIN while the log covers too many packs already and this one would be one more.
    cdef pack_state *get_to_write(self, int64_t pack, int *error) noexcept
    cdef int claim(self, pack_state *p, int slot, int count) noexcept nogil
    cdef int release(self, pack_state *p, int slot, int count) noexcept nogil
    cdef void set_present(self, pack_state *p, int slot, int count) noexcept nogil
    cdef void set_deleted(self, pack_state *p, int slot, int count) noexcept nogil
    # Writes the header if it changed: an errno or 0.
    cdef int write_header(self, pack_state *p) noexcept nogil
    cdef int mark_dirty(self, pack_state *p) except -1
