# distutils: depends = ingest/csrc/queue.h
"""The committer's answers to the workers: its end of the rings of outcomes. `_submitted` is the other end."""

from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memset

from ingest.engine._queue cimport RING_LIVE, full_fence, queue_outcome, queue_ring, ring_load, ring_publish, word_load

import os


cdef class Outcomes:

    def __cinit__(self, Queue queue):
        self.queue = queue
        self.touched = <uint8_t *>PyMem_Malloc(queue.workers)
        self.owed = <int64_t *>PyMem_Malloc(queue.workers * sizeof(int64_t))
        if self.touched == NULL or self.owed == NULL:
            raise MemoryError
        memset(self.touched, 0, queue.workers)
        memset(self.owed, 0, queue.workers * sizeof(int64_t))

    def __dealloc__(self):
        PyMem_Free(self.touched)
        PyMem_Free(self.owed)

    cdef int put(self, const item *it, int status) except -1:
        cdef queue_ring *ring = self.queue.ring(it.worker)
        cdef uint64_t tail
        cdef queue_outcome *outcome
        if word_load(&ring.retire) != RING_LIVE:
            return 0
        tail = ring_load(&ring.outcome_tail)
        outcome = &self.queue.outcomes(it.worker)[tail & (self.queue.ring_size - 1)]
        outcome.cookie = it.cookie
        outcome.place = it.place
        outcome.count = it.count
        outcome.status = status
        ring_publish(&ring.outcome_tail, tail + 1)
        self.touched[it.worker] = 1
        return 0

    cdef int wake(self) except -1:
        cdef int worker
        full_fence()
        for worker in range(self.queue.workers):
            if self.touched[worker]:
                self.touched[worker] = 0
                if word_load(&self.queue.ring(worker).worker_sleeping):
                    os.eventfd_write(self.queue.worker_doorbells[worker], 1)
        return 0
