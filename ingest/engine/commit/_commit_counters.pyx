# distutils: depends = ingest/csrc/queue.h ingest/csrc/counters.h
"""What the committer counts of its commits, flushes and recoveries: its row of the shared counters (`metrics`)."""

from libc.stdint cimport uint64_t

from ingest.engine._queue cimport Queue, ring_store, word_store
from ingest.store.layouts._slot_table cimport SlotTable

from ingest.engine._queue import ROW_COMMITTER


cdef extern from "csrc/counters.h" nogil:
    enum: C_COMMITS
    enum: C_COMMIT_FRAMES
    enum: C_COMMIT_BYTES
    enum: C_COMMIT_NANOSECONDS
    enum: C_COMMIT_SIZE_BUCKET
    enum: C_COMMIT_LATENCY_BUCKET
    enum: C_PACKS_CREATED
    enum: C_FLUSHES
    enum: C_FLUSH_NANOSECONDS
    enum: C_FLUSH_LATENCY_BUCKET
    enum: C_SYNC_FAILURES
    enum: C_RECOVERIES
    enum: C_RECOVERED_FRAMES
    enum: C_RECOVERY_NANOSECONDS
    enum: C_LOG_STALLS
    enum: C_PENDING_FRAMES
    enum: C_BULK_RUNNING
    enum: C_LOG_ALLOCATED
    enum: SIZE_BUCKETS
    int histogram_bucket(uint64_t value, int buckets)
    int latency_bucket(uint64_t microseconds)


cdef class CommitCounters:
    """Only the committer's own thread calls it."""

    cdef Queue queue
    cdef uint64_t *counters

    def __cinit__(self, Queue queue):
        self.queue = queue
        self.counters = queue.counters(ROW_COMMITTER)

    def commit(self, uint64_t frames, uint64_t size, uint64_t nanoseconds):
        """One batch of `frames` and `size` bytes was synced and answered, `nanoseconds` after it was taken."""
        self.counters[C_COMMITS] += 1
        self.counters[C_COMMIT_FRAMES] += frames
        self.counters[C_COMMIT_BYTES] += size
        self.counters[C_COMMIT_NANOSECONDS] += nanoseconds
        self.counters[C_COMMIT_SIZE_BUCKET + histogram_bucket(frames, SIZE_BUCKETS)] += 1
        self.counters[C_COMMIT_LATENCY_BUCKET + latency_bucket(nanoseconds // 1000)] += 1

    def flush(self, uint64_t nanoseconds):
        self.counters[C_FLUSHES] += 1
        self.counters[C_FLUSH_NANOSECONDS] += nanoseconds
        self.counters[C_FLUSH_LATENCY_BUCKET + latency_bucket(nanoseconds // 1000)] += 1

    def sync_failure(self):
        self.counters[C_SYNC_FAILURES] += 1

    def log_stall(self):
        self.counters[C_LOG_STALLS] += 1

    def recovery(self, uint64_t frames, uint64_t nanoseconds):
        self.counters[C_RECOVERIES] += 1
        self.counters[C_RECOVERED_FRAMES] += frames
        self.counters[C_RECOVERY_NANOSECONDS] += nanoseconds

    def publish(self, SlotTable packs, uint64_t pending, uint64_t bulk_running, uint64_t log_used, uint64_t log_allocated):
        """What the admin port shows of the committer's state: frames pending, bulk jobs, bytes of the log."""
        self.counters[C_PACKS_CREATED] += packs.created
        packs.created = 0
        word_store(&self.queue.header.dirty_packs, packs.dirty_count + packs.flushing_count)
        ring_store(&self.queue.header.log_used, log_used)
        self.counters[C_LOG_ALLOCATED] = log_allocated
        self.counters[C_PENDING_FRAMES] = pending
        self.counters[C_BULK_RUNNING] = bulk_running
