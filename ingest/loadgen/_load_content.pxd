"""What the load generator sends, for its engine."""

from libc.stdint cimport int64_t, uint8_t, uint64_t


cdef extern from "csrc/load.h" nogil:
    enum: LOAD_WORDS


cdef class Content:
    cdef uint64_t seed
    cdef uint64_t table[LOAD_WORDS]

    # `n` unsigned frames with consecutive tickets from `first` on.
    cdef void write(self, int64_t first, int n, uint8_t *frames) noexcept nogil
    cdef bint _equal(self, const uint8_t *frame, int64_t index) noexcept nogil
