# distutils: depends = ingest/csrc/queue.h ingest/csrc/pack_table.h ingest/csrc/pack_file.h ingest/csrc/ticket.h ingest/csrc/counters.h
"""What the committer does with frames between taking them from the workers and answering them.

The steps of one commit, in this order (`docs/architecture.md`, "Life of one put"); `write_behind` calls them:

    take      runs from the rings of all workers                           → pending
    plan      claim slots; duplicates, conflicts, tombstones are answered; → batch (copied to the log's buffer), bulk jobs
    (the log is written and synced)
    apply     slots written, then bits set
    answer    outcomes to the workers

A frame is in exactly one place at a time: a ring, `pending`, the batch, or a bulk job. Whatever fails between claim and
answer releases the claim and answers; a slot is never left claimed.
"""

from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from libc.errno cimport EBADMSG, EDQUOT, ENOSPC
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport qsort
from libc.string cimport memcmp, memcpy, memset

from ingest._hmac cimport hmac_verify
from ingest._queue cimport (
    COUNTERS_MAX, RING_LIVE, RING_RETIRE, RING_RETIRED, RUN_DELETE, RUN_PUT, Queue, full_fence, queue_outcome,
    queue_ring, queue_run, ring_load, ring_publish, ring_store, word_load, word_store,
)
from ingest.store._pack_table cimport (
    SLOT_CLAIMED, SLOT_DELETED, SLOT_FREE, SLOT_PRESENT, PackTable, get_be, pack_state, pack_zero_slots, pread_all,
    pwrite_all, slot_offset, slots_alike,
)

import mmap
import os

from ingest import limits
from ingest._queue import ROW_COMMITTER
from ingest.store.log_format import BATCH_HEADER_SIZE, BLOCK_SIZE, NOTE_SIZE, padded


cdef extern from "csrc/ticket.h" nogil:
    int64_t ticket_pack(int64_t index)
    int ticket_slot(int64_t index)
    int ticket_run_max(int64_t index)
    int64_t ticket_index(const uint8_t *t)
    int ticket_write_value(int64_t v, uint8_t *t)
    int64_t TICKET_INDEX_LAST

cdef extern from "csrc/pack_file.h" nogil:
    void put_be(uint8_t *p, uint64_t v, int n)

cdef extern from "csrc/counters.h" nogil:
    enum: C_DUPLICATES
    enum: C_DELETED_TICKETS
    enum: C_BULK_RUNS
    enum: C_BULK_FRAMES
    enum: C_COMMITS
    enum: C_COMMIT_FRAMES
    enum: C_COMMIT_BYTES
    enum: C_COMMIT_NANOSECONDS
    enum: C_COMMIT_SIZE_BUCKET
    enum: C_COMMIT_LATENCY_BUCKET
    enum: C_PACKS_CREATED
    enum: C_FLUSHES
    enum: C_FLUSH_NANOSECONDS
    enum: C_SYNC_FAILURES
    enum: C_RECOVERIES
    enum: C_RECOVERED_FRAMES
    enum: C_LOG_STALLS
    int histogram_bucket(unsigned long long value, int buckets)

cdef extern from "csrc/bulk_write.h" nogil:
    ctypedef struct bulk_part:
        const uint8_t *frames
        int count
    size_t BULK_IMAGE_SIZE
    int bulk_write(int data_fd, const pack_state *pack, int slot, const bulk_part *parts, int n, uint8_t *image, int sync)
    int bulk_sync_directories(int data_fd, int64_t pack, int64_t previous)

cdef enum:
    SAVED = 1
    ERROR = 2
    CONFLICT = 5
    NO_SPACE = 7
    DELETED = 9

cdef int FRAME = 1474
cdef int DATA = 16          # offset of the data in a frame
cdef int DATA_BYTES = 1458
cdef int BATCH_MAX = limits.BATCH_FRAMES_MAX
cdef int BULK_MIN = limits.BULK_RUN_MIN
cdef int BULK_PENDING = limits.BULK_PENDING_MIN
cdef int BULK_JOB_FRAMES = limits.BULK_JOB_FRAMES_MAX
cdef int HOLD_MIN = limits.BULK_HOLD_MIN
cdef int DIRTY_MAX = limits.DIRTY_PACKS_MAX // 2   # half, because as many may be in the flush that is under way
cdef int DELETES_MAX = 64                          # of one batch: each touches up to 53 packs
cdef int NOTES_MAX = 1024


cdef struct item:       # frames of one run that share their fate
    int64_t first       # ticket index
    int64_t pack
    int32_t slot
    uint32_t count      # 0: gone from pending
    uint32_t place
    int32_t worker
    uint32_t kind
    uint64_t cookie
    uint64_t held_for   # bulk job that it waits for; 0: not seen yet

cdef struct placed:     # an item in the batch; its frames lie at `staged` in the log's buffer
    item it
    pack_state *pack
    int staged

cdef struct delete_range:
    pack_state *pack
    int slot
    int count

cdef struct sequence:   # consecutive items of one pack in a bulk job
    pack_state *pack
    int slot
    int count
    int item            # the first one in the job's items
    int items
    int error


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


cdef class BulkJob:
    """Runs of 256 and more frames on their way straight into their packs. `run` may run in any thread, once."""

    cdef readonly uint64_t number
    cdef readonly int frames
    cdef readonly int error        # an errno of a failed sync: nothing in this job is known to be stored
    cdef object _image
    cdef uint8_t *image
    cdef int data_fd
    cdef bint sync
    cdef item *items
    cdef int item_count
    cdef sequence *sequences
    cdef int sequence_count
    cdef bulk_part *parts

    def __dealloc__(self):
        PyMem_Free(self.items)
        PyMem_Free(self.sequences)
        PyMem_Free(self.parts)

    def run(self):
        """Writes all sequences, then syncs the packs and their directories. Errors are kept in the job."""
        cdef int i, error
        cdef sequence *s
        cdef int64_t previous = -1
        with nogil:
            for i in range(self.sequence_count):
                s = &self.sequences[i]
                s.error = bulk_write(self.data_fd, s.pack, s.slot, self.parts + s.item, s.items, self.image, 0)
            if self.sync:
                for i in range(self.sequence_count):
                    s = &self.sequences[i]
                    if s.error:
                        continue
                    error = bulk_write(self.data_fd, s.pack, 0, NULL, 0, NULL, 1)
                    if error == 0:
                        error = bulk_sync_directories(self.data_fd, s.pack.id, previous)
                        previous = s.pack.id
                    if error:
                        self.error = error
                        break


cdef class Committer:
    """The state of the frames that one committer holds. Only its own thread calls it."""

    cdef Queue queue
    cdef PackTable packs
    cdef uint64_t epoch
    cdef uint64_t *counters
    cdef item *pending
    cdef int pending_count
    cdef readonly int pending_frames
    cdef int pending_capacity
    cdef item **sorted
    cdef placed *batch
    cdef int batch_count
    cdef readonly int puts             # frames in the batch
    cdef item *deletes
    cdef int delete_count
    cdef delete_range *ranges
    cdef int range_count
    cdef readonly int notes
    cdef list noted                    # bulk jobs whose notes are in the batch
    cdef object _buffer
    cdef uint8_t *staging
    cdef uint8_t *scratch              # one pack's worth of stored frames
    cdef object _scratch
    cdef list keys                     # put keys that verify what is stored
    cdef int64_t *in_progress          # frames of each worker in the batch or in bulk jobs
    cdef uint8_t *touched_workers
    cdef uint64_t jobs
    cdef int64_t cursor                # the pack that the last bulk job ended with
    cdef set running                   # numbers of the bulk jobs under way
    cdef list images                   # free image buffers
    cdef int bulk_jobs_max
    cdef bint sync
    cdef readonly bint stalled         # a plan left frames behind because too many packs are dirty
    cdef readonly list corrupt         # (pack, slot) that failed their check, for the log
    cdef readonly list disk_errors     # (pack, errno) met while opening packs, for the log

    def __cinit__(self, Queue queue, PackTable packs, list put_keys, *, int bulk_jobs=2, bint sync=True):
        cdef uint8_t[::1] view
        self.queue = queue
        self.packs = packs
        self.keys = put_keys
        self.epoch = ring_load(&queue.header.epoch) + 1   # the one that committer_ready() announces
        self.counters = queue.counters(ROW_COMMITTER)
        self.pending_capacity = queue.workers * queue.places + 1
        self.pending = <item *>PyMem_Malloc(self.pending_capacity * sizeof(item))
        self.sorted = <item **>PyMem_Malloc(self.pending_capacity * sizeof(void *))
        self.batch = <placed *>PyMem_Malloc((BATCH_MAX + 1) * sizeof(placed))
        self.deletes = <item *>PyMem_Malloc(DELETES_MAX * sizeof(item))
        self.ranges = <delete_range *>PyMem_Malloc(DELETES_MAX * 64 * sizeof(delete_range))
        self.in_progress = <int64_t *>PyMem_Malloc(queue.workers * sizeof(int64_t))
        self.touched_workers = <uint8_t *>PyMem_Malloc(queue.workers)
        if not (self.pending and self.sorted and self.batch and self.deletes and self.ranges and self.in_progress
                and self.touched_workers):
            raise MemoryError
        memset(self.in_progress, 0, queue.workers * sizeof(int64_t))
        memset(self.touched_workers, 0, queue.workers)
        self._buffer = mmap.mmap(-1, padded(BATCH_HEADER_SIZE + BATCH_MAX * FRAME + NOTES_MAX * NOTE_SIZE))
        view = self._buffer
        self.staging = &view[0]
        self._scratch = mmap.mmap(-1, padded(1332 * FRAME))
        view = self._scratch
        self.scratch = &view[0]
        self.bulk_jobs_max = bulk_jobs
        self.images = []
        for _ in range(bulk_jobs):
            self.images.append(mmap.mmap(-1, BULK_IMAGE_SIZE))
        self.running = set()
        self.noted = []
        self.corrupt = []
        self.disk_errors = []
        self.sync = sync

    def __dealloc__(self):
        PyMem_Free(self.pending)
        PyMem_Free(self.sorted)
        PyMem_Free(self.batch)
        PyMem_Free(self.deletes)
        PyMem_Free(self.ranges)
        PyMem_Free(self.in_progress)
        PyMem_Free(self.touched_workers)

    @property
    def buffer(self):
        """The log's buffer: the batch lies in it behind the header's place."""
        return memoryview(self._buffer)

    @property
    def delete_frames(self):
        return self.delete_count

    @property
    def batch_empty(self):
        return self.puts == 0 and self.delete_count == 0 and self.notes == 0

    @property
    def bulk_running(self):
        return len(self.running)

    # --- take ---------------------------------------------------------------------------------

    def take(self):
        """Moves all runs of the workers' rings to `pending`; lets go of dead workers. Returns frames pending."""
        cdef int worker
        cdef queue_ring *ring
        cdef queue_run *runs
        cdef queue_run run
        cdef uint64_t head, tail
        cdef uint32_t retire
        cdef item *it
        for worker in range(self.queue.workers):
            ring = self.queue.ring(worker)
            retire = word_load(&ring.retire)
            if retire == RING_RETIRE:
                self._forget(worker)
                if self.in_progress[worker] == 0:
                    word_store(&ring.retire, RING_RETIRED)
            if retire != RING_LIVE or ring_load(&ring.worker_epoch) != self.epoch:
                continue
            runs = self.queue.runs(worker)
            head = ring_load(&ring.run_head)
            tail = ring_load(&ring.run_tail)
            while head != tail:
                run = runs[head & (self.queue.ring_size - 1)]
                head += 1
                if not (1 <= run.count <= <uint32_t>self.queue.places and run.place + run.count <= <uint32_t>self.queue.places
                        and 0 <= run.first <= TICKET_INDEX_LAST and run.kind <= RUN_DELETE
                        and run.count <= <uint32_t>ticket_run_max(run.first)):
                    raise AssertionError(f"worker {worker} handed over an impossible run: {run}")
                assert self.pending_count < self.pending_capacity, "more runs than places"
                it = &self.pending[self.pending_count]
                self.pending_count += 1
                it.first = run.first
                it.pack = ticket_pack(run.first)
                it.slot = ticket_slot(run.first)
                it.count = run.count
                it.place = run.place
                it.worker = worker
                it.kind = run.kind
                it.cookie = run.cookie
                it.held_for = 0
                self.pending_frames += run.count
            ring_publish(&ring.run_head, head)
        return self.pending_frames

    cdef int _forget(self, int worker) except -1:
        """Drops what is pending from a worker that died: nobody waits for it, nothing of it was claimed."""
        cdef int i
        for i in range(self.pending_count):
            if self.pending[i].worker == worker:
                self.pending_frames -= self.pending[i].count
                self.pending[i].count = 0
        self._compact()
        return 0

    cdef void _compact(self) noexcept:
        cdef int i, kept = 0
        for i in range(self.pending_count):
            if self.pending[i].count:
                if kept != i:
                    self.pending[kept] = self.pending[i]
                kept += 1
        self.pending_count = kept

    # --- plan ---------------------------------------------------------------------------------

    def plan(self, bint space):
        """Fills the batch from `pending`; returns the BulkJobs to be run now. Without `space` nothing new is stored.

        What can't be decided now stays pending: slots claimed by others, a full batch, too many dirty packs.
        """
        cdef list jobs = []
        cdef int i, n = 0, frames = 0
        cdef item *it
        assert self.puts == 0 and self.delete_count == 0, "the last batch was not answered"
        self.stalled = False
        if self.pending_count == 0:
            return jobs
        while space and self.pending_frames >= BULK_PENDING and self.images:
            job = self._plan_bulk()
            if job is None:
                break
            jobs.append(job)
        for i in range(self.pending_count):
            it = &self.pending[i]
            if it.count == 0:
                continue
            if it.kind == RUN_PUT and it.count >= <uint32_t>HOLD_MIN and self.running and space:
                # Part of a long run, perhaps: while the disk is busy with bulk jobs it may grow into one. It waits for
                # the job that is the last one now, not for later ones, so that it can't wait for ever.
                if it.held_for == 0:
                    it.held_for = self.jobs
                if it.held_for in self.running:
                    continue
            if n and frames + it.count > <uint32_t>BATCH_MAX:
                break
            self.sorted[n] = it
            n += 1
            frames += it.count
        if n > 1:
            qsort(self.sorted, n, sizeof(void *), &by_place)
        for i in range(n):
            if self.sorted[i].kind == RUN_PUT:
                self._plan_put(self.sorted[i], space)
        for i in range(n):
            if self.sorted[i].kind == RUN_DELETE:
                self._plan_delete(self.sorted[i])
        self._compact()
        return jobs

    cdef int _plan_put(self, item *it, bint space) except -1:
        """Decides each slot of an item; what stays undecided is put back to pending as (up to) one shorter item."""
        cdef int error = 0, state = 0, alike, status
        cdef pack_state *p = self._pack(it, &error)
        cdef item part
        if p == NULL:
            if error:
                self._answer_item(it, NO_SPACE if error == ENOSPC or error == EDQUOT else ERROR)
                self._drop(it)
            return 0
        while it.count:
            alike = slots_alike(p, it.slot, it.count, &state)
            part = it[0]
            part.count = alike
            if state == SLOT_FREE and space:
                if self.puts + alike > BATCH_MAX:
                    alike = BATCH_MAX - self.puts
                    if alike == 0:
                        return 0
                    part.count = alike
                self._place(&part, p)
            elif state == SLOT_FREE:
                self._answer_item(&part, NO_SPACE)
            elif state == SLOT_DELETED:
                self._answer_item(&part, DELETED)
            elif state == SLOT_PRESENT:
                self._compare(&part, p)
            else:
                # Claimed: wait for its outcome. The rest of the run waits with it (and goes on next time).
                return 0
            it.count -= alike
            it.slot += alike
            it.first += alike
            it.place += alike
            self.pending_frames -= alike
        return 0

    cdef pack_state *_pack(self, item *it, int *error) except? NULL:
        """The pack of an item; NULL with *error 0 when the log covers too many packs already."""
        cdef pack_state *p
        error[0] = 0
        if self.packs.dirty_count >= DIRTY_MAX and it.pack not in self.packs._dirty:
            self.stalled = True
            return NULL
        p = self.packs.get(it.pack, error)
        if p == NULL and len(self.disk_errors) < 16:
            self.disk_errors.append((it.pack, error[0]))
        return p

    cdef int _place(self, item *it, pack_state *p) except -1:
        """Claims the slots of an item and copies its frames to the log's buffer."""
        cdef placed *b = &self.batch[self.batch_count]
        self.batch_count += 1
        b.it = it[0]
        b.pack = p
        b.staged = self.puts
        with nogil:
            self.packs.claim(p, it.slot, it.count)
            memcpy(self._staged(self.puts), self.queue.arena(it.worker) + <size_t>it.place * FRAME, <size_t>it.count * FRAME)
        if self.batch_count == 1 or self.batch[self.batch_count - 2].pack != p:
            self.packs.mark_dirty(p)
        self.puts += it.count
        self.in_progress[it.worker] += it.count
        return 0

    cdef uint8_t *_staged(self, int frame) noexcept nogil:
        return self.staging + 64 + <size_t>frame * FRAME

    cdef void _drop(self, item *it) noexcept:
        self.pending_frames -= it.count
        it.count = 0

    cdef int _compare(self, item *it, pack_state *p) except -1:
        """Answers frames whose slots are taken: SAVED when they hold the same data, CONFLICT when other."""
        cdef const uint8_t *frames = self.queue.arena(it.worker) + <size_t>it.place * FRAME
        cdef uint8_t good[1332]
        cdef int i, attempt, status, error = 0
        cdef item one = it[0]
        for attempt in range(2):
            with nogil:
                error = pread_all(p.fd, self.scratch, <size_t>it.count * FRAME, slot_offset(it.slot))
            if error:
                break
            if self._verify_stored(p, it.slot, it.count, good):
                break
        i = 0
        while i < <int>it.count:
            status = self._stored_status(frames, i, error == 0 and good[i])
            one.place = it.place + i
            one.count = 1
            while i + <int>one.count < <int>it.count and status == self._stored_status(
                    frames, i + one.count, error == 0 and good[i + one.count]):
                one.count += 1
            if status == ERROR and len(self.corrupt) < 64:
                # The bit says durable and valid, the bytes say otherwise: corruption. Only a repair may write here.
                self.corrupt.append((it.pack, it.slot + i))
            elif status == SAVED:
                self.counters[C_DUPLICATES] += one.count
            self._answer_item(&one, status)
            i += one.count
        return 0

    cdef int _stored_status(self, const uint8_t *frames, int i, bint good) noexcept nogil:
        """What to answer for frame i of `frames`, whose slot's frame is the i-th in `scratch`."""
        if not good:
            return ERROR
        if memcmp(self.scratch + <size_t>i * FRAME + DATA, frames + <size_t>i * FRAME + DATA, DATA_BYTES) == 0:
            return SAVED
        return CONFLICT

    cdef bint _verify_stored(self, pack_state *p, int slot, int count, uint8_t *good) except -1:
        """good[i]: whether the frame i in `scratch` is that of its slot, under any key. Returns whether all are."""
        cdef const uint8_t[::1] key
        cdef uint8_t again
        cdef size_t n
        cdef int i, all_good
        cdef int64_t first = slot if p.id == 0 and slot >= 1296 else 0
        key = self.keys[0]
        with nogil:
            n = hmac_verify(&key[0], self.scratch, count, good)
        if n < <size_t>count:
            for other in self.keys[1:]:
                key = other
                for i in range(count):
                    if not good[i]:
                        hmac_verify(&key[0], self.scratch + <size_t>i * FRAME, 1, &again)
                        good[i] = again
        all_good = 1
        for i in range(count):
            first = ticket_index(self.scratch + <size_t>i * FRAME)
            if first < 0 or ticket_pack(first) != p.id or ticket_slot(first) != slot + i:
                good[i] = 0
            all_good &= good[i]
        return all_good

    cdef int _plan_delete(self, item *it) except -1:
        """Claims every slot that a delete frame names, or leaves it pending while a put of one is under way."""
        cdef const uint8_t *frame = self.queue.arena(it.worker) + <size_t>it.place * FRAME
        cdef uint64_t count = get_be(frame + DATA, 8)
        cdef int64_t index = it.first
        cdef int first_range = self.range_count, most, state = 0, error = 0, i
        cdef pack_state *p
        cdef delete_range *r
        if self.delete_count == DELETES_MAX or self.puts + self.delete_count >= BATCH_MAX:
            return 0
        if not 1 <= count <= 65536 or index + <int64_t>count - 1 > TICKET_INDEX_LAST:
            raise AssertionError(f"worker {it.worker} handed over a delete of {count} tickets from {index}")
        while count:
            most = ticket_run_max(index)
            if <uint64_t>most > count:
                most = count
            p = self.packs.get(ticket_pack(index), &error)
            if p == NULL:
                break
            i = 0
            while i < most:
                i += slots_alike(p, ticket_slot(index) + i, most - i, &state)
                if state == SLOT_CLAIMED:
                    break
            if state == SLOT_CLAIMED:
                break
            r = &self.ranges[self.range_count]
            self.range_count += 1
            r.pack = p
            r.slot = ticket_slot(index)
            r.count = most
            self.packs.claim(p, r.slot, most)
            self.packs.mark_dirty(p)
            index += most
            count -= most
        if count:
            while self.range_count > first_range:
                self.range_count -= 1
                r = &self.ranges[self.range_count]
                self.packs.release(r.pack, r.slot, r.count)
            if error:
                self.disk_errors.append((ticket_pack(index), error))
                self._answer_item(it, NO_SPACE if error == ENOSPC or error == EDQUOT else ERROR)
                self._drop(it)
            return 0
        memcpy(self._staged(self.puts + self.delete_count), frame, FRAME)
        self.deletes[self.delete_count] = it[0]
        self.delete_count += 1
        self.in_progress[it.worker] += 1
        self._drop(it)
        return 0

    # --- bulk -----------------------------------------------------------------------------------

    cdef object _plan_bulk(self):
        """A job of the long runs that are pending, or None. Goes round the packs, so that no client waits for ever."""
        cdef int i, j, n = 0, first, slots, chosen = 0, nseq = 0, nitems = 0, pass_, error, state = 0
        cdef item *it
        cdef pack_state *p
        cdef BulkJob job
        cdef uint8_t[::1] view
        for i in range(self.pending_count):
            it = &self.pending[i]
            if it.count and it.kind == RUN_PUT:
                self.sorted[n] = it
                n += 1
        if n == 0:
            return None
        qsort(self.sorted, n, sizeof(void *), &by_place)
        job = BulkJob.__new__(BulkJob)
        job.items = <item *>PyMem_Malloc(n * sizeof(item))
        job.parts = <bulk_part *>PyMem_Malloc(n * sizeof(bulk_part))
        job.sequences = <sequence *>PyMem_Malloc((BULK_JOB_FRAMES // BULK_MIN + 2) * sizeof(sequence))
        if not (job.items and job.parts and job.sequences):
            raise MemoryError
        for pass_ in range(2):
            # First the packs behind the one that the last job ended with, then from the start.
            i = 0
            while i < n and job.frames < BULK_JOB_FRAMES:
                first = i
                slots = self.sorted[i].count
                i += 1
                while (i < n and self.sorted[i].pack == self.sorted[first].pack
                       and self.sorted[i].slot == self.sorted[first].slot + slots):
                    slots += self.sorted[i].count
                    i += 1
                if slots < BULK_MIN or (self.sorted[first].pack > self.cursor) != (pass_ == 0):
                    continue
                error = 0
                p = self._pack(self.sorted[first], &error)
                if p == NULL:
                    continue        # the way through the log will answer it
                if slots_alike(p, self.sorted[first].slot, slots, &state) != slots or state != SLOT_FREE:
                    continue        # duplicates among them: the log's way looks at each
                job.sequences[nseq].pack = p
                job.sequences[nseq].slot = self.sorted[first].slot
                job.sequences[nseq].count = slots
                job.sequences[nseq].item = nitems
                job.sequences[nseq].items = i - first
                job.sequences[nseq].error = 0
                nseq += 1
                self.packs.claim(p, self.sorted[first].slot, slots)
                for j in range(first, i):
                    it = self.sorted[j]
                    job.items[nitems] = it[0]
                    job.parts[nitems].frames = self.queue.arena(it.worker) + <size_t>it.place * FRAME
                    job.parts[nitems].count = it.count
                    nitems += 1
                    self.in_progress[it.worker] += it.count
                    self._drop(it)
                job.frames += slots
                self.cursor = p.id
        if nseq == 0:
            return None
        self._compact()
        job.item_count = nitems
        job.sequence_count = nseq
        job.data_fd = self.packs.data_fd
        job.sync = self.sync
        job._image = self.images.pop()
        view = job._image
        job.image = &view[0]
        self.jobs += 1
        job.number = self.jobs
        self.running.add(job.number)
        return job

    def bulk_done(self, BulkJob job):
        """Takes a finished job back: what was written is noted in the batch, what was not is answered.

        Returns False when its sync failed: everything in it was answered ERROR, and nothing may be saved any more.
        """
        cdef int i, j
        cdef sequence *s
        cdef item *it
        cdef uint8_t *note
        self.running.discard(job.number)
        self.images.append(job._image)
        for i in range(job.sequence_count):
            s = &job.sequences[i]
            if job.error or s.error:
                self.packs.release(s.pack, s.slot, s.count)
                for j in range(s.item, s.item + s.items):
                    it = &job.items[j]
                    self.in_progress[it.worker] -= it.count
                    self._answer_item(it, NO_SPACE if not job.error and s.error in (ENOSPC, EDQUOT) else ERROR)
                if len(self.disk_errors) < 16:
                    self.disk_errors.append((s.pack.id, job.error or s.error))
        if not job.error:
            self.noted.append(job)
        return job.error == 0

    def write_notes(self):
        """Puts the notes of finished jobs behind the frames of the batch. The last step before the log is written."""
        cdef BulkJob job
        cdef sequence *s
        cdef uint8_t *note = self._staged(self.puts + self.delete_count)
        cdef int i
        for job in self.noted:
            for i in range(job.sequence_count):
                s = &job.sequences[i]
                if s.error:
                    continue
                assert self.notes < NOTES_MAX
                ticket_write_value(s.pack.id, note)
                put_be(note + 8, s.slot, 2)
                put_be(note + 10, s.count, 2)
                put_be(note + 12, 0, 4)
                note += 16
                self.notes += 1
                self.packs.mark_dirty(s.pack)

    # --- apply and answer -----------------------------------------------------------------------

    def apply(self):
        """Writes the batch's slots, then their packs' bits: the log is synced. Returns 0 or an errno; then what was
        claimed stays so and the caller answers ERROR and leaves the rest to recovery."""
        cdef int error, i
        cdef BulkJob job
        with nogil:
            error = self._apply_puts()
        if error:
            return error
        for job in self.noted:
            for i in range(job.sequence_count):
                if job.sequences[i].error == 0:
                    self.packs.release(job.sequences[i].pack, job.sequences[i].slot, job.sequences[i].count)
                    self.packs.set_present(job.sequences[i].pack, job.sequences[i].slot, job.sequences[i].count)
            for i in range(job.sequence_count):
                error = self.packs.write_header(job.sequences[i].pack)
                if error:
                    return error
        with nogil:
            error = self._apply_deletes()
        return error

    cdef int _apply_puts(self) noexcept nogil:
        cdef int i = 0, j, error, frames
        cdef placed *b
        cdef placed *next_
        while i < self.batch_count:
            b = &self.batch[i]
            frames = b.it.count
            j = i + 1
            # Neighbours in the batch that are neighbours in the pack too lie one behind the other in the log's buffer.
            while (j < self.batch_count and self.batch[j].pack == b.pack
                   and self.batch[j].it.slot == b.it.slot + frames and self.batch[j].staged == b.staged + frames):
                frames += self.batch[j].it.count
                j += 1
            error = pwrite_all(b.pack.fd, self._staged(b.staged), <size_t>frames * FRAME, slot_offset(b.it.slot))
            if error:
                return error
            self.packs.release(b.pack, b.it.slot, frames)
            self.packs.set_present(b.pack, b.it.slot, frames)
            if j == self.batch_count or self.batch[j].pack != b.pack:
                error = self.packs.write_header(b.pack)
                if error:
                    return error
            i = j
        return 0

    cdef int _apply_deletes(self) noexcept nogil:
        cdef int i, error
        cdef delete_range *r
        for i in range(self.range_count):
            r = &self.ranges[i]
            self.packs.release(r.pack, r.slot, r.count)
            self.packs.set_deleted(r.pack, r.slot, r.count)
            error = self.packs.write_header(r.pack)
            if error:
                return error
            # Only now: who reads zeros finds the deleted bit when it looks again.
            error = pack_zero_slots(r.pack, r.slot, r.count)
            if error:
                return error
            self.counters[C_DELETED_TICKETS] += r.count
        return 0

    def answer(self, bint failed=False):
        """Answers everything in the batch, SAVED or DELETED (ERROR if `failed`), and empties it. Wakes the workers."""
        cdef int i
        cdef item *it
        cdef BulkJob job
        for i in range(self.batch_count):
            it = &self.batch[i].it
            self.in_progress[it.worker] -= it.count
            self._answer_item(it, ERROR if failed else SAVED)
        for i in range(self.delete_count):
            it = &self.deletes[i]
            self.in_progress[it.worker] -= 1
            self._answer_item(it, ERROR if failed else DELETED)
        for job in self.noted:
            for i in range(job.item_count):
                it = &job.items[i]
                if self._item_failed(job, i):
                    continue        # answered by bulk_done
                self.in_progress[it.worker] -= it.count
                self._answer_item(it, ERROR if failed else SAVED)
            if not failed:
                self.counters[C_BULK_RUNS] += job.sequence_count
                self.counters[C_BULK_FRAMES] += job.frames
        self.noted = []
        self.batch_count = self.puts = self.delete_count = self.range_count = self.notes = 0
        self.wake()

    cdef bint _item_failed(self, BulkJob job, int i) noexcept:
        cdef int s
        for s in range(job.sequence_count):
            if job.sequences[s].item <= i < job.sequences[s].item + job.sequences[s].items:
                return job.sequences[s].error != 0
        return False

    cdef int _answer_item(self, item *it, int status) except -1:
        """One outcome to the worker that it came from, unless that one died."""
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
        self.touched_workers[it.worker] = 1
        return 0

    def wake(self):
        """Rings the doorbell of each worker that got outcomes and sleeps."""
        cdef int worker
        full_fence()
        for worker in range(self.queue.workers):
            if self.touched_workers[worker]:
                self.touched_workers[worker] = 0
                if word_load(&self.queue.ring(worker).worker_sleeping):
                    os.eventfd_write(self.queue.worker_doorbells[worker], 1)

    # --- sleep ----------------------------------------------------------------------------------

    def sleeping(self, bint asleep):
        """Says that the committer is about to sleep (the workers then ring), or that it woke."""
        word_store(&self.queue.header.committer_sleeping, asleep)
        full_fence()

    def work_waiting(self):
        """Whether a ring holds runs that `take` would take, or a dead worker waits to be let go."""
        cdef int worker
        cdef queue_ring *ring
        for worker in range(self.queue.workers):
            ring = self.queue.ring(worker)
            if word_load(&ring.retire) == RING_RETIRE and self.in_progress[worker] == 0:
                return True
            if (word_load(&ring.retire) == RING_LIVE and ring_load(&ring.worker_epoch) == self.epoch
                    and ring_load(&ring.run_head) != ring_load(&ring.run_tail)):
                return True
        return False

    # --- what is counted --------------------------------------------------------------------------

    def count_commit(self, uint64_t frames, uint64_t size, uint64_t nanoseconds):
        """One batch of `frames` and `size` bytes was synced, `nanoseconds` after it was taken."""
        self.counters[C_COMMITS] += 1
        self.counters[C_COMMIT_FRAMES] += frames
        self.counters[C_COMMIT_BYTES] += size
        self.counters[C_COMMIT_NANOSECONDS] += nanoseconds
        self.counters[C_COMMIT_SIZE_BUCKET + histogram_bucket(frames, 16)] += 1
        self.counters[C_COMMIT_LATENCY_BUCKET + histogram_bucket(nanoseconds // 1000, 24)] += 1

    def count_flush(self, uint64_t nanoseconds):
        self.counters[C_FLUSHES] += 1
        self.counters[C_FLUSH_NANOSECONDS] += nanoseconds

    def count_sync_failure(self):
        self.counters[C_SYNC_FAILURES] += 1

    def count_log_stall(self):
        self.counters[C_LOG_STALLS] += 1

    def count_recovery(self, uint64_t frames):
        self.counters[C_RECOVERIES] += 1
        self.counters[C_RECOVERED_FRAMES] += frames

    def publish_gauges(self, uint64_t log_used):
        """What the admin port shows of the committer's state."""
        self.counters[C_PACKS_CREATED] += self.packs.created
        self.packs.created = 0
        word_store(&self.queue.header.dirty_packs, self.packs.dirty_count)
        ring_store(&self.queue.header.log_used, log_used)
