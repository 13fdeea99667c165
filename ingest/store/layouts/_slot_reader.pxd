"""Reading what is stored, in any layout, for other Cython modules."""

from libc.stdint cimport int64_t, uint8_t, uint64_t


# What lies under `count` ≥ 1 tickets from `first` on, all in consecutive slots of one pack.
ctypedef struct extent:
    int64_t first
    int count
    int status        # ingest.status
    int looks         # what it took to find out, in looks at the disk
    int slot          # the rest is the layout's own; valid until the next call
    void *pack


cdef class SlotReader:
    cdef readonly int data_fd
    cdef uint8_t *keys                 # put keys, 32 bytes each
    cdef int key_count
    cdef readonly uint64_t moment

    # What was looked at before this is looked at again: call it after requests were received and before they are answered,
    # so that what was acked before a request was sent is in its answer.
    cdef void now(self) noexcept nogil
    # The state of `first` and of those after it that are alike, at most `count` ≥ 1 of them.
    cdef void look(self, int64_t first, int count, extent *found) noexcept nogil
    # Reads the first `count` frames of what `look` found to be SAVED. 0 or an errno; what is gone meanwhile reads as zeros.
    cdef int read(self, const extent *found, int count, uint8_t *frames) noexcept nogil
    # Something is wrong with what `look` found: the next look is at the disk, whatever the moment.
    cdef void doubt(self, const extent *found) noexcept nogil
    # `size` bytes of the frames from `first` on, from `offset` in them on: to go on with what was announced. 0 or an errno.
    cdef int read_bytes(self, int64_t first, uint64_t offset, size_t size, uint8_t *to) noexcept nogil

    cdef bint _authentic(self, const uint8_t *frame, int64_t index) noexcept nogil
    cdef int _check_range(self, int64_t first, int64_t count) except -1
