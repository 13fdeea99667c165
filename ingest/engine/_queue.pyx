"""The memory that the processes of one server share: rings, arenas, counters, state words.

One anonymous shared mapping, made by the parent before it forks; it is gone with the last process.
Layout: header page · rings · counters (a row for each process) · arenas.
"""

import mmap
import os

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset

ROW_PARENT = 0
ROW_COMMITTER = 1
ROW_ADMIN = 2
ROW_WORKER = 3  # and one more for each further worker

cdef size_t PAGE = 4096
cdef int FRAME_BYTES = 1474


cdef size_t _pages(size_t size):
    return (size + PAGE - 1) // PAGE * PAGE


cdef class Queue:
    """Made once by the parent. ``workers`` ≥ 1 rings with arenas of ``places`` frames (1474 bytes each)."""

    def __init__(self, int workers, int places):
        if workers < 1 or places < 1:
            raise ValueError("a queue needs at least one worker and one place")
        self.workers = workers
        self.places = places
        self.ring_size = 1
        while self.ring_size < <uint32_t>places:
            self.ring_size *= 2
        self.ring_stride = _pages(
            PAGE + self.ring_size * (sizeof(queue_run) + sizeof(queue_outcome)))
        self.rings_offset = PAGE
        self.counters_offset = self.rings_offset + workers * self.ring_stride
        self.arenas_offset = self.counters_offset + _pages((ROW_WORKER + workers) * COUNTERS_MAX * 8)
        self.arena_stride = _pages(<size_t>places * FRAME_BYTES)
        self._map = mmap.mmap(-1, self.arenas_offset + workers * self.arena_stride,
                              mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
        cdef uint8_t[::1] view = self._map
        self.base = &view[0]
        self.header = <queue_header *>self.base
        self.committer_doorbell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.worker_doorbells = tuple(
            os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(workers))
        ring_store(&self.header.epoch, 1)

    cdef queue_ring *ring(self, int worker) noexcept nogil:
        return <queue_ring *>(self.base + self.rings_offset + worker * self.ring_stride)

    cdef queue_run *runs(self, int worker) noexcept nogil:
        return <queue_run *>(self.base + self.rings_offset + worker * self.ring_stride + PAGE)

    cdef queue_outcome *outcomes(self, int worker) noexcept nogil:
        return <queue_outcome *>(<uint8_t *>self.runs(worker) + self.ring_size * sizeof(queue_run))

    cdef uint8_t *arena(self, int worker) noexcept nogil:
        return self.base + self.arenas_offset + worker * self.arena_stride

    cdef uint64_t *counters(self, int row) noexcept nogil:
        return <uint64_t *>(self.base + self.counters_offset) + row * COUNTERS_MAX

    @property
    def rows(self):
        """How many rows of counters there are: parent, committer, admin, workers."""
        return ROW_WORKER + self.workers

    def counter_row(self, int row):
        """The counters of one process, as a writable memoryview of ``COUNTERS_MAX`` unsigned 64-bit numbers."""
        if not 0 <= row < ROW_WORKER + self.workers:
            raise IndexError(row)
        start = self.counters_offset + row * COUNTERS_MAX * 8
        return memoryview(self._map)[start:start + COUNTERS_MAX * 8].cast("Q")

    @property
    def epoch(self):
        """Even while a committer serves, odd while none does."""
        return ring_load(&self.header.epoch)

    def committer_ready(self):
        """The committer serves from now on (epoch becomes even). Wakes the workers, who submit again."""
        epoch = ring_load(&self.header.epoch)
        assert epoch % 2 == 1, "a committer became ready twice"
        ring_store(&self.header.epoch, epoch + 1)
        self.wake_workers()

    def committer_gone(self):
        """There is no committer (epoch becomes odd): called by the parent when it died."""
        epoch = ring_load(&self.header.epoch)
        if epoch % 2 == 0:
            ring_store(&self.header.epoch, epoch + 1)

    def wake_workers(self):
        for doorbell in self.worker_doorbells:
            os.eventfd_write(doorbell, 1)

    def wake_committer(self):
        os.eventfd_write(self.committer_doorbell, 1)

    def retire(self, int worker):
        """Asks the committer to let go of a dead worker's arena."""
        word_store(&self.ring(worker).retire, RING_RETIRE)
        self.wake_committer()

    def is_retiring(self, int worker):
        """Whether the committer is asked to let go of this arena and has not done so."""
        return word_load(&self.ring(worker).retire) == RING_RETIRE

    def release(self, int worker):
        """Lets go of a dead worker's arena: called by the committer, which reads it no more."""
        assert self.is_retiring(worker), "this worker lives"
        word_store(&self.ring(worker).retire, RING_RETIRED)

    def is_retired(self, int worker):
        return word_load(&self.ring(worker).retire) == RING_RETIRED

    def reset_ring(self, int worker):
        """Empties a retired worker's rings for its replacement: called by the parent before it forks that one."""
        cdef queue_ring *ring = self.ring(worker)
        assert word_load(&ring.retire) == RING_RETIRED, "the committer may still read this arena"
        memset(ring, 0, sizeof(queue_ring))

    def pending(self, int worker):
        """Runs that the committer has not taken yet."""
        cdef queue_ring *ring = self.ring(worker)
        return ring_load(&ring.run_tail) - ring_load(&ring.run_head)

    # --- the committer's half of a ring, one entry at a time: for a committer in Python, fsck and tests.
    # The committer of a server moves the same entries by the cdef functions above.

    def set_committer_sleeping(self, bint sleeping):
        """Whether workers must ring the committer's doorbell. After setting it, look at the rings once more."""
        word_store(&self.header.committer_sleeping, 1 if sleeping else 0)
        full_fence()

    def worker_epoch(self, int worker):
        """The epoch whose committer may take runs of this worker's ring; 0 before the worker served any."""
        return ring_load(&self._checked(worker).worker_epoch)

    def take_runs(self, int worker):
        """Takes all runs that wait: a list of (first ticket's index, cookie, place, count, kind). Empty while the
        worker has not submitted to the present epoch."""
        cdef queue_ring *ring = self._checked(worker)
        cdef uint64_t head, tail
        cdef queue_run *run
        taken = []
        if ring_load(&ring.worker_epoch) != ring_load(&self.header.epoch):
            return taken
        head = ring_load(&ring.run_head)  # the worker may have moved it, before it stored its epoch
        tail = ring_load(&ring.run_tail)
        while head != tail:
            run = self.runs(worker) + (head & (self.ring_size - 1))
            taken.append((run.first, run.cookie, run.place, run.count, run.kind))
            head += 1
        ring_publish(&ring.run_head, head)
        return taken

    def frames(self, int worker, uint32_t place, uint32_t count):
        """``count`` · 1474 bytes of a worker's arena, as a writable memoryview. Valid until their outcome is given."""
        self._checked(worker)
        if <uint64_t>place + count > <uint64_t>self.places:
            raise IndexError(f"places {place} to {place + count} of {self.places}")
        cdef size_t start = self.arenas_offset + worker * self.arena_stride + <size_t>place * FRAME_BYTES
        return memoryview(self._map)[start:start + <size_t>count * FRAME_BYTES]

    def answer(self, int worker, uint64_t cookie, uint32_t place, uint32_t count, uint32_t status):
        """Gives the outcome of ``count`` frames of one run, and wakes the worker if it sleeps. The places are the
        worker's again."""
        cdef queue_ring *ring = self._checked(worker)
        cdef uint64_t tail = ring_load(&ring.outcome_tail)
        cdef queue_outcome *outcome = self.outcomes(worker) + (tail & (self.ring_size - 1))
        outcome.cookie, outcome.place, outcome.count = cookie, place, count
        outcome.status, outcome.reserved = status, 0
        ring_publish(&ring.outcome_tail, tail + 1)
        full_fence()
        if word_load(&ring.worker_sleeping):
            os.eventfd_write(self.worker_doorbells[worker], 1)

    # --- the worker's half, one entry at a time: what a worker does, for workers in Python and tests.

    def empty_rings(self, int worker):
        """Drops what is left of the last committer in both rings: the first half of serving a new one. Between this and
        `attend` nobody takes; there a worker submits again what it has no outcome for."""
        cdef queue_ring *ring = self._checked(worker)
        ring_publish(&ring.outcome_head, ring_load(&ring.outcome_tail))
        ring_publish(&ring.run_head, ring_load(&ring.run_tail))

    def attend(self, int worker):
        """Serves the committer of the present epoch from now on. Returns the epoch; while it is odd nobody takes."""
        cdef queue_ring *ring = self._checked(worker)
        ring_store(&ring.worker_epoch, ring_load(&self.header.epoch))
        self.wake_committer()
        return ring_load(&ring.worker_epoch)

    def submit(self, int worker, int64_t first, uint32_t place, uint32_t count, uint32_t kind, uint64_t cookie):
        """Hands one run over, whose frames lie in the arena (`frames`), and wakes the committer if it sleeps."""
        cdef queue_ring *ring = self._checked(worker)
        cdef uint64_t tail = ring_load(&ring.run_tail)
        cdef queue_run *run = self.runs(worker) + (tail & (self.ring_size - 1))
        if tail - ring_load(&ring.run_head) == self.ring_size:
            raise IndexError("the ring is full: a place was submitted twice")
        run.first, run.cookie, run.place, run.count = first, cookie, place, count
        run.kind, run.reserved = kind, 0
        ring_publish(&ring.run_tail, tail + 1)
        full_fence()
        if word_load(&self.header.committer_sleeping):
            self.wake_committer()

    def take_outcomes(self, int worker):
        """Takes all outcomes that are there: a list of (cookie, place, count, status)."""
        cdef queue_ring *ring = self._checked(worker)
        cdef uint64_t head = ring_load(&ring.outcome_head), tail = ring_load(&ring.outcome_tail)
        cdef queue_outcome *outcome
        taken = []
        while head != tail:
            outcome = self.outcomes(worker) + (head & (self.ring_size - 1))
            taken.append((outcome.cookie, outcome.place, outcome.count, outcome.status))
            head += 1
        ring_publish(&ring.outcome_head, head)
        return taken

    def set_worker_sleeping(self, int worker, bint sleeping):
        """Whether the committer must ring this worker's doorbell. After setting it, look at the outcomes once more."""
        word_store(&self._checked(worker).worker_sleeping, 1 if sleeping else 0)
        full_fence()

    cdef queue_ring *_checked(self, int worker) except NULL:
        if not 0 <= worker < self.workers:
            raise IndexError(worker)
        return self.ring(worker)

    # --- connections of a worker, which its siblings see

    def count_connection(self, int worker, bint put, int change):
        """One more connection (+1: whoever gives it to that worker) or one fewer (-1: that worker, when it closed)."""
        cdef queue_ring *ring = self._checked(worker)
        word_add_above_zero(&ring.put_connections if put else &ring.get_connections, change)

    def is_live(self, int worker):
        """Whether connections may be passed to this worker: its arena isn't being taken back."""
        return word_load(&self._checked(worker).retire) == RING_LIVE

    def connections(self, int worker):
        """(put, get) connections of a worker."""
        cdef queue_ring *ring = self.ring(worker)
        return word_load(&ring.put_connections), word_load(&ring.get_connections)

    @property
    def flags(self):
        return word_load(&self.header.flags)

    def set_flag(self, int flag):
        word_or(&self.header.flags, flag)

    def clear_flag(self, int flag):
        word_clear(&self.header.flags, flag)

    @property
    def dirty_packs(self):
        return word_load(&self.header.dirty_packs)

    @property
    def log_used(self):
        return ring_load(&self.header.log_used)

    def close(self):
        """Closes the doorbells; the memory goes when nobody maps it any more."""
        os.close(self.committer_doorbell)
        for doorbell in self.worker_doorbells:
            os.close(doorbell)


DRAINING = NODE_DRAINING
NO_SPACE = NODE_NO_SPACE
FAILING = NODE_FAILING
STARTING = NODE_STARTING
NO_LOG = NODE_NO_LOG
LOST = NODE_LOST
