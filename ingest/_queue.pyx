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
