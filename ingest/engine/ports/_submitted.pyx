# distutils: depends = ingest/csrc/arena.h ingest/csrc/frame.h ingest/csrc/queue.h ingest/csrc/counters.h
"""What one worker has submitted to the committer and has not been answered: its end of the two rings.

`_pending` is the other end of the runs, `_outcomes` of the answers. A place that was submitted is outstanding until its outcome was taken; a committer that
starts anew gets all outstanding places once more.
"""

from ingest.engine.ports._connections cimport eventfd_write
from ingest.engine._queue cimport RUN_PUT, full_fence, ring_load, ring_publish, ring_store, word_load, word_store


cdef extern from "csrc/frame.h" nogil:
    enum: FRAME_SIZE
    int64_t ticket_index(const uint8_t *ticket)
    int frames_run(const uint8_t *frames, int n, int64_t first)


cdef class Submitted:

    @staticmethod
    cdef Submitted over(Queue queue, int slot, arena *arena):
        cdef Submitted self = Submitted.__new__(Submitted)
        self.queue = queue
        self.ring = queue.ring(slot)
        self.runs = queue.runs(slot)
        self.outcomes = queue.outcomes(slot)
        self.frames = queue.arena(slot)
        self.arena = arena
        self.ring_mask = queue.ring_size - 1
        self.run_tail = ring_load(&self.ring.run_tail)
        self.outcome_head = self.outcome_end = ring_load(&self.ring.outcome_head)
        self.committer_fd = queue.committer_doorbell
        return self

    cdef void push(self, int64_t first, uint32_t place, uint32_t n, uint64_t cookie, uint32_t kind,
                   uint32_t received) noexcept nogil:
        arena_take(self.arena, place, n, cookie, kind, received)
        self._write_run(first, cookie, place, n, kind)

    cdef void _write_run(self, int64_t first, uint64_t cookie, uint32_t place, uint32_t n, uint32_t kind) noexcept nogil:
        cdef queue_run *run = self.runs + (self.run_tail & self.ring_mask)
        run.first = first
        run.cookie = cookie
        run.place = place
        run.count = n
        run.kind = kind
        run.reserved = 0
        self.run_tail += 1

    cdef void show(self) noexcept nogil:
        if self.run_tail == ring_load(&self.ring.run_tail):
            return
        ring_publish(&self.ring.run_tail, self.run_tail)
        full_fence()
        if word_load(&self.queue.header.committer_sleeping):
            eventfd_write(self.committer_fd, 1)

    cdef bint has_outcomes(self) noexcept nogil:
        return ring_load(&self.ring.outcome_tail) != self.outcome_head

    cdef bint next_outcome(self, queue_outcome *outcome) noexcept nogil:
        while self.outcome_head != self.outcome_end or self._look_again():
            outcome[0] = self.outcomes[self.outcome_head & self.ring_mask]
            self.outcome_head += 1
            ring_store(&self.ring.outcome_head, self.outcome_head)
            # The entry was written by another process: one that names other places than those handed out is dropped.
            if (arena_owned(self.arena, outcome.place, outcome.count, outcome.cookie)
                    and 1 <= outcome.status <= 9):
                return True
            self.stray_outcomes += 1
        return False

    cdef bint _look_again(self) noexcept nogil:
        """The committer's index is on a line of its own: it is read once for all outcomes that it shows."""
        self.outcome_end = ring_load(&self.ring.outcome_tail)
        return self.outcome_head != self.outcome_end

    cdef void sleep(self) noexcept nogil:
        word_store(&self.ring.worker_sleeping, 1)
        full_fence()

    cdef void wake(self) noexcept nogil:
        word_store(&self.ring.worker_sleeping, 0)

    cdef bint committer_is_new(self) noexcept nogil:
        cdef uint64_t epoch = ring_load(&self.queue.header.epoch)
        if epoch == self.epoch or epoch & 1:
            return False
        self.new_epoch = epoch
        return True

    cdef void submit_again(self) noexcept nogil:
        # Until worker_epoch is stored the new committer does not look at this ring: all four indices are ours.
        self.run_tail = self.outcome_head = self.outcome_end = 0
        ring_store(&self.ring.run_head, 0)
        ring_store(&self.ring.run_tail, 0)
        ring_store(&self.ring.outcome_head, 0)
        ring_store(&self.ring.outcome_tail, 0)
        self._write_outstanding()
        ring_publish(&self.ring.run_tail, self.run_tail)
        self.epoch = self.new_epoch
        ring_store(&self.ring.worker_epoch, self.epoch)
        full_fence()
        eventfd_write(self.committer_fd, 1)

    cdef void _write_outstanding(self) noexcept nogil:
        """Builds the runs of all outstanding places again."""
        cdef uint32_t place = 0
        cdef uint32_t end, n, block_end
        cdef uint64_t owner
        cdef uint8_t kind
        cdef int64_t first
        while place < self.arena.places:
            owner = self.arena.owner[place]
            if owner == 0:
                place += 1
                continue
            kind = self.arena.kind[place]
            first = ticket_index(self.frames + <size_t>place * FRAME_SIZE)
            n = 1
            if kind == RUN_PUT:
                block_end = (place / self.arena.block_places + 1) * self.arena.block_places
                end = place + 1
                while end < block_end and self.arena.owner[end] == owner and self.arena.kind[end] == kind:
                    end += 1
                n = frames_run(self.frames + <size_t>place * FRAME_SIZE, end - place, first)
            self._write_run(first, owner, place, n, kind)
            place += n
