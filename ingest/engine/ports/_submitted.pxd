"""What one worker has submitted to the committer, for `_put_server`; `csrc/arena.h` has the places."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from ingest.engine._queue cimport Queue, queue_outcome, queue_ring, queue_run


cdef extern from "csrc/arena.h" nogil:
    ctypedef struct arena:
        uint32_t places
        uint32_t block_places
        uint32_t fill
        uint32_t outstanding
        uint32_t free_count
        uint64_t *owner
        uint8_t *kind
        uint32_t *received
    int arena_init(arena *a, uint32_t places, uint32_t block_places)
    void arena_close(arena *a)
    void arena_rewind(arena *a)
    int arena_next_block(arena *a)
    uint32_t arena_room(const arena *a)
    int arena_has_room(const arena *a)
    void arena_take(arena *a, uint32_t place, uint32_t count, uint64_t owner, uint8_t kind,
                    uint32_t received)
    int arena_owned(const arena *a, uint32_t place, uint32_t count, uint64_t owner)
    void arena_release(arena *a, uint32_t place, uint32_t count)


cdef class Submitted:
    cdef Queue queue
    cdef queue_ring *ring
    cdef queue_run *runs
    cdef queue_outcome *outcomes
    cdef const uint8_t *frames     # of the arena
    cdef arena *arena              # the server's
    cdef uint64_t ring_mask, run_tail, outcome_head
    cdef uint64_t outcome_end      # the committer's, as it was seen last
    cdef uint64_t epoch, new_epoch
    cdef int committer_fd
    cdef uint32_t stray_outcomes   # ever dropped, until the server sets it back

    # The ring of worker `slot`; `arena` must outlive it.
    @staticmethod
    cdef Submitted over(Queue queue, int slot, arena *arena)

    # `n` consecutive tickets in consecutive places, verified, `received` at this microsecond: they become outstanding.
    cdef void push(self, int64_t first, uint32_t place, uint32_t n, uint64_t cookie, uint32_t kind,
                   uint32_t received) noexcept nogil
    # Shows the committer what was pushed since the last time, and wakes it if it sleeps.
    cdef void show(self) noexcept nogil
    # The next outcome, if there is one. Its places stay outstanding until the caller releases them.
    cdef bint next_outcome(self, queue_outcome *outcome) noexcept nogil
    cdef bint has_outcomes(self) noexcept nogil
    # Whether the committer is another one than that which knows what was submitted: csrc/queue.h, epoch. Its
    # predecessor's outcomes are then to be taken, and after that all is to be submitted again.
    cdef bint committer_is_new(self) noexcept nogil
    cdef void submit_again(self) noexcept nogil
    # Around a wait for events: a worker that sleeps is woken by an outcome. Look for outcomes after `sleep`.
    cdef void sleep(self) noexcept nogil
    cdef void wake(self) noexcept nogil

    cdef bint _look_again(self) noexcept nogil
    cdef void _write_run(self, int64_t first, uint64_t cookie, uint32_t place, uint32_t n, uint32_t kind) noexcept nogil
    cdef void _write_outstanding(self) noexcept nogil
