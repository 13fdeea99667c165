# distutils: depends = ingest/csrc/queue.h ingest/csrc/ticket.h
"""Runs that were taken from the workers' rings and are not decided yet: in the order of their arrival.

There are never more of them than places in the arenas: a place is in at most one run.
"""

from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport qsort
from libc.string cimport memset

from ingest.engine._queue cimport RUN_DELETE, RUN_PUT, Queue, queue_ring, queue_run, ring_load, ring_publish


cdef extern from "csrc/ticket.h" nogil:
    int64_t ticket_pack(int64_t index)
    int ticket_slot(int64_t index)
    int ticket_run_max(int64_t index)
    int64_t TICKET_INDEX_LAST


cdef int by_place(const void *a, const void *b) noexcept nogil:
    cdef const item *x = (<const item **>a)[0]
    cdef const item *y = (<const item **>b)[0]
    if x.kind != y.kind:
        return -1 if x.kind < y.kind else 1
    if x.pack != y.pack:
        return -1 if x.pack < y.pack else 1
    if x.slot != y.slot:
        return -1 if x.slot < y.slot else 1
    # Rivals for a slot: first come, first served. Items lie in the order of their arrival.
    return -1 if x < y else (1 if x > y else 0)


cdef class Pending:

    def __cinit__(self, Queue queue, uint64_t epoch):
        self.queue = queue
        self.epoch = epoch
        self.capacity = queue.workers * queue.places + 1
        self.items = <item *>PyMem_Malloc(self.capacity * sizeof(item))
        self.sorted = <item **>PyMem_Malloc(self.capacity * sizeof(void *))
        self.taken_from = <uint8_t *>PyMem_Malloc(queue.workers)
        if self.items == NULL or self.sorted == NULL or self.taken_from == NULL:
            raise MemoryError
        memset(self.taken_from, 0, queue.workers)

    def __dealloc__(self):
        PyMem_Free(self.items)
        PyMem_Free(self.sorted)
        PyMem_Free(self.taken_from)

    cdef int take(self, int worker) except -1:
        cdef queue_ring *ring = self.queue.ring(worker)
        cdef queue_run *runs = self.queue.runs(worker)
        cdef queue_run run
        cdef uint64_t head, tail
        cdef uint32_t places = self.queue.places
        cdef item *it
        if ring_load(&ring.worker_epoch) != self.epoch:
            return 0
        head = ring_load(&ring.run_head)
        tail = ring_load(&ring.run_tail)
        while head != tail:
            run = runs[head & (self.queue.ring_size - 1)]
            head += 1
            # One place after the other, without a sum: it could wrap.
            if not (1 <= run.count <= places and run.place <= places - run.count
                    and 0 <= run.first <= TICKET_INDEX_LAST and run.count <= <uint32_t>ticket_run_max(run.first)
                    and (run.kind == RUN_PUT or (run.kind == RUN_DELETE and run.count == 1))):
                raise AssertionError(f"worker {worker} handed over an impossible run: {run}")
            if self.count == self.capacity:
                raise AssertionError(f"worker {worker} handed over more runs than it has places")
            it = &self.items[self.count]
            self.count += 1
            it.first = run.first
            it.pack = ticket_pack(run.first)
            it.slot = ticket_slot(run.first)
            it.count = run.count
            it.place = run.place
            it.worker = worker
            it.kind = run.kind
            # A worker hands over again what is outstanding before it lets the committer of an epoch take anything.
            it.known_before = not self.taken_from[worker]
            it.cookie = run.cookie
            it.held_for = 0
            it.declined = False
            self.frames += run.count
        self.taken_from[worker] = 1
        ring_publish(&ring.run_head, head)
        return 0

    cdef void forget(self, int worker) noexcept nogil:
        cdef int i
        for i in range(self.count):
            if self.items[i].worker == worker:
                self.drop(&self.items[i])
        self.compact()

    cdef void drop(self, item *it) noexcept nogil:
        self.frames -= it.count
        it.count = 0

    cdef void compact(self) noexcept nogil:
        cdef int i, kept = 0
        for i in range(self.count):
            if self.items[i].count:
                if kept != i:
                    self.items[kept] = self.items[i]
                kept += 1
        self.count = kept

    cdef void sort(self, int n) noexcept nogil:
        if n > 1:
            qsort(self.sorted, n, sizeof(void *), &by_place)
