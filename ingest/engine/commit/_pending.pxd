"""Runs that were taken from the workers' rings and are not decided yet."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from ingest.engine._queue cimport Queue


cdef struct item:       # frames of one run that share their fate
    int64_t first       # ticket index
    int64_t pack
    int32_t slot
    uint32_t count      # 0: gone from pending
    uint32_t place
    int32_t worker
    uint32_t kind
    uint64_t cookie
    uint64_t held_for   # the last bulk job when it was first held; 0: it was not
    bint declined       # the bulk path does not take it
    bint known_before   # a committer before may have had it, and put it into the log


cdef class Pending:
    cdef Queue queue
    cdef uint64_t epoch            # of the committer that takes
    cdef uint8_t *taken_from       # workers: whether their rings were looked into in this epoch
    cdef item *items               # in the order of their arrival
    cdef int count
    cdef int frames
    cdef int capacity
    cdef item **sorted             # room for as many pointers, for whoever puts items in another order

    # Takes all runs of a worker's ring.
    cdef int take(self, int worker) except -1
    # Drops what came from a worker.
    cdef void forget(self, int worker) noexcept nogil
    # Takes an item out; `compact` closes the gaps.
    cdef void drop(self, item *it) noexcept nogil
    cdef void compact(self) noexcept nogil
    # Sorts the first `n` of `sorted` by kind, pack, slot and arrival.
    cdef void sort(self, int n) noexcept nogil
