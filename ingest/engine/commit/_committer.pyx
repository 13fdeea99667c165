# distutils: depends = ingest/csrc/queue.h ingest/csrc/pack_table.h ingest/csrc/pack_file.h ingest/csrc/ticket.h ingest/csrc/counters.h
"""What the committer does with frames between taking them from the workers and answering them.

The steps of one commit, in this order (`docs/architecture.md`, "Life of one put"); `committer` calls them:

    take      runs from the rings of all workers                           → pending
    plan      claim slots; duplicates, conflicts, tombstones are answered; → batch (copied to the log's buffer), bulk jobs
    (the log is written and synced; meanwhile, from `begin_slots` to `apply`, a thread may write the slots)
    apply     slots written, then bits set; deleted slots erased
    (erase    the rest of deletes that would take too long at once, between later commits)
    answer    outcomes to the workers

A frame is in exactly one place at a time: a ring, `pending`, the batch, a bulk job, or the deletes being erased. Slots are
claimed exactly for the frames in the last three (`check` counts). Only a commit that failed leaves claims
behind: the process ends with it. `_deletes` has the deletes, `_outcomes` the answers.
"""

from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.errno cimport EAGAIN, EDQUOT, ENOSPC
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from ingest.engine.commit._bulk cimport BulkJob, BulkPath, sequence
from ingest.engine.commit._deletes cimport Deletes
from ingest.runtime._failpoints cimport STEP_SLOTS_WRITTEN, WAY_LOG, failpoint_passed, failpoints_armed
from ingest.engine.commit._outcomes cimport Outcomes
from ingest.engine.commit._pending cimport Pending, item
from ingest.engine._queue cimport (
    RING_LIVE, RING_RETIRE, RING_RETIRED, RUN_DELETE, RUN_PUT, Queue, full_fence, queue_ring, ring_load, ring_store,
    word_load, word_store,
)
from ingest.engine.commit._duplicates cimport StoredFrames
from ingest.store.layouts._slot_table cimport (
    SLOT_DELETED, SLOT_FREE, SLOT_PRESENT, SlotTable, pack_state, slots_alike,
)

import mmap
import os

from ingest import limits
from ingest.engine._queue import ROW_COMMITTER
from ingest.store.log.log_format import BATCH_HEADER_SIZE, NOTE_SIZE, padded


cdef extern from "csrc/ticket.h" nogil:
    int ticket_write_value(int64_t v, uint8_t *t)

cdef extern from "csrc/pack_file.h" nogil:
    void put_be(uint8_t *p, uint64_t v, int n)
    uint64_t get_be(const uint8_t *p, int n)

cdef extern from "csrc/counters.h" nogil:
    enum: C_DUPLICATES
    enum: C_BULK_JOBS
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

cdef enum:
    SAVED = 1
    ERROR = 2
    CONFLICT = 5
    NO_SPACE = 7
    DELETED = 9

cdef int FRAME = 1474
cdef int DATA = 16          # offset of the data in a frame
cdef int BATCH_MAX = limits.BATCH_FRAMES_MAX
cdef int BULK_PENDING = limits.BULK_PENDING_MIN
cdef int HOLD_MIN = limits.BULK_HOLD_MIN
cdef int HOLD_JOBS = limits.BULK_HOLD_JOBS
cdef int BULK_RUN = limits.BULK_RUN_MIN
cdef int AHEAD_MIN = 8                             # frames worth waking a thread for
cdef int NOTES_MAX = 1024


cdef struct placed:     # an item in the batch; its frames lie at `staged` in the log's buffer
    item it
    pack_state *pack
    int staged


cdef class Committer:
    """The state of the frames that one committer holds. Only its own thread calls it."""

    cdef Queue queue
    cdef SlotTable packs
    cdef uint64_t epoch
    cdef uint64_t *counters
    cdef Pending pending
    cdef BulkPath bulk
    cdef StoredFrames stored
    cdef placed *batch
    cdef int batch_count
    cdef pack_state **batch_packs      # those of the batch, each once
    cdef bint slots_begun              # a thread writes the batch's slots
    cdef readonly int puts             # frames in the batch
    cdef Deletes deletes
    cdef Outcomes outcomes
    cdef readonly int notes
    cdef list noted                    # bulk jobs whose notes are in the batch
    cdef object _buffer
    cdef uint8_t *staging
    cdef int64_t *in_progress          # frames of each worker in the batch or in bulk jobs
    cdef int log_errno                 # why there is no log, in the plan that is being made
    cdef readonly bint stalled         # a plan left frames behind because too many packs are dirty
    cdef readonly list corrupt         # (pack, slot) that failed their check, for the log
    cdef readonly list disk_errors     # (pack, errno) met while opening and reading packs, for the log

    def __cinit__(self, Queue queue, SlotTable packs, list put_keys, *, bint sync=True):
        cdef uint8_t[::1] view
        self.queue = queue
        self.packs = packs
        self.epoch = ring_load(&queue.header.epoch) + 1   # the one that committer_ready() announces
        self.counters = queue.counters(ROW_COMMITTER)
        self.pending = Pending(queue, self.epoch)
        self.bulk = BulkPath(queue, packs, packs.bulk_jobs, sync)
        self.stored = StoredFrames(put_keys)
        self.batch = <placed *>PyMem_Malloc((BATCH_MAX + 1) * sizeof(placed))
        self.batch_packs = <pack_state **>PyMem_Malloc((BATCH_MAX + 1) * sizeof(pack_state *))
        self.deletes = Deletes(queue, packs)
        self.outcomes = Outcomes(queue)
        self.in_progress = <int64_t *>PyMem_Malloc(queue.workers * sizeof(int64_t))
        if not (self.batch and self.batch_packs and self.in_progress):
            raise MemoryError
        memset(self.in_progress, 0, queue.workers * sizeof(int64_t))
        self._buffer = mmap.mmap(-1, padded(BATCH_HEADER_SIZE + BATCH_MAX * FRAME + NOTES_MAX * NOTE_SIZE))
        view = self._buffer
        self.staging = &view[0]
        self.noted = []
        self.corrupt = []
        self.disk_errors = []

    def __dealloc__(self):
        if self.slots_begun and self.packs is not None:
            self.packs.end_writes()         # they are in the buffer that goes with this object
        PyMem_Free(self.batch)
        PyMem_Free(self.batch_packs)
        PyMem_Free(self.in_progress)

    def set_put_keys(self, list put_keys):
        """The keys (32 bytes each) of which any may have signed what is stored."""
        self.stored.keys = put_keys

    @property
    def buffer(self):
        """The log's buffer: the batch lies in it behind the header's place."""
        return memoryview(self._buffer)

    @property
    def delete_frames(self):
        return self.deletes.logged

    @property
    def looking(self):
        """Whether the last plan left a delete behind because too many slots had to be looked up."""
        return self.deletes.looking

    @property
    def erasing(self):
        """Whether deletes of an earlier batch are not wholly erased yet."""
        return self.deletes.erasing > 0

    @property
    def batch_empty(self):
        return self.puts == 0 and self.deletes.logged == 0 and self.notes == 0

    @property
    def pending_frames(self):
        return self.pending.frames

    @property
    def bulk_running(self):
        return len(self.bulk.running)

    # --- take ---------------------------------------------------------------------------------

    def take(self):
        """Moves all runs of the workers' rings to `pending`; lets go of dead workers. Returns frames pending."""
        cdef int worker
        cdef queue_ring *ring
        cdef uint32_t retire
        for worker in range(self.queue.workers):
            ring = self.queue.ring(worker)
            retire = word_load(&ring.retire)
            if retire == RING_RETIRE:
                # Nobody waits for what is pending from a worker that died, and nothing of it was claimed.
                self.pending.forget(worker)
                if self.in_progress[worker] == 0:
                    word_store(&ring.retire, RING_RETIRED)
            elif retire == RING_LIVE:
                self.pending.take(worker)
        return self.pending.frames

    # --- plan ---------------------------------------------------------------------------------

    def plan(self, bint space, int log_errno=0):
        """Fills the batch from `pending`; returns the BulkJobs to be run now. Without `space` nothing new is stored.

        With `log_errno`, the reason why there is no log at all, the batch stays empty: deletes are refused too.
        What can't be decided now stays pending: slots claimed by others, a full batch, too many dirty packs.
        """
        cdef list jobs = []
        cdef int i, n = 0, frames = 0
        cdef Pending pending = self.pending
        cdef item *it
        assert self.puts == 0 and self.deletes.logged == 0, "the last batch was not answered"
        self.stalled = self.deletes.looking = False
        self.packs.looked = 0
        if pending.count == 0:
            return jobs
        # A refused frame must not make a pack, or refusing would use up what the reserve keeps.
        self.packs.may_create = space
        self.log_errno = log_errno
        while space and pending.frames >= BULK_PENDING:
            job = self.bulk.plan(pending)
            if job is None:
                break
            self._count_in_progress(job, 1)
            self.counters[C_BULK_JOBS] += 1
            jobs.append(job)
        for i in range(pending.count):
            it = &pending.items[i]
            if it.kind == RUN_PUT and it.count >= <uint32_t>HOLD_MIN and space and self._waits_for_bulk(it):
                continue
            if n and frames + it.count > <uint32_t>BATCH_MAX:
                break
            pending.sorted[n] = it
            n += 1
            frames += it.count
        pending.sort(n)
        for i in range(n):
            if pending.sorted[i].kind == RUN_PUT:
                self._plan_put(pending.sorted[i], space)
        for i in range(n):
            if pending.sorted[i].kind == RUN_DELETE:
                self._plan_delete(pending.sorted[i])
        pending.compact()
        return jobs

    cdef bint _waits_for_bulk(self, item *it) except -1:
        """Whether a run of some length stays pending because the bulk path may take it: it is cheaper than the log.

        A run that is long enough waits for its turn among others, a shorter one may grow into such while the job that
        is the last one now is under way. Neither waits for ever, nor does one that the bulk path has declined.
        """
        if it.declined or not self.bulk.running:
            return False
        if it.held_for == 0:
            it.held_for = self.bulk.jobs
        return it.held_for in self.bulk.running or (
            it.count >= <uint32_t>BULK_RUN and self.bulk.jobs - it.held_for < <uint64_t>HOLD_JOBS)

    cdef int _count_in_progress(self, BulkJob job, int sign) except -1:
        cdef int i
        for i in range(job.item_count):
            self.in_progress[job.items[i].worker] += sign * <int64_t>job.items[i].count
        return 0

    cdef int _plan_put(self, item *it, bint space) except -1:
        """Decides each slot of an item; what stays undecided is put back to pending as (up to) one shorter item."""
        cdef int error = 0, state = 0, alike
        cdef pack_state *p = self.packs.get_to_write(it.pack, it.slot, it.count, &error)
        cdef item part
        if p == NULL:
            if error == EAGAIN:
                self.stalled = True
                return 0
            self._refuse(it, it.pack, error)
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
                self.outcomes.put(&part, self._refusal(self.log_errno or ENOSPC))
            elif state == SLOT_DELETED:
                self.outcomes.put(&part, DELETED)
            elif state == SLOT_PRESENT:
                self._compare(&part, p)
            else:
                # Claimed: wait for its outcome. The rest of the run waits with it (and goes on next time).
                return 0
            it.count -= alike
            it.slot += alike
            it.first += alike
            it.place += alike
            self.pending.frames -= alike
        return 0

    cdef int _refuse(self, item *it, int64_t pack, int error) except -1:
        """Answers an item whose pack can't be opened."""
        cdef bint refused = error == ENOSPC and not self.packs.may_create    # there is none, and we make none
        if not refused and len(self.disk_errors) < 16:
            self.disk_errors.append((pack, error))
        self.outcomes.put(it, self._refusal(self.log_errno if refused and self.log_errno else error))
        self.pending.drop(it)
        return 0

    cdef int _refusal(self, int error) noexcept nogil:
        return NO_SPACE if error == ENOSPC or error == EDQUOT else ERROR

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
        self.packs.mark_dirty(p, it.count)
        self.puts += it.count
        self.in_progress[it.worker] += it.count
        return 0

    cdef uint8_t *_staged(self, int frame) noexcept nogil:
        return self.staging + 64 + <size_t>frame * FRAME

    cdef int _compare(self, item *it, pack_state *p) except -1:
        """Answers frames whose slots are taken: SAVED when they hold the same data, CONFLICT when other."""
        cdef uint8_t statuses[1332]
        cdef int errors[1332]
        cdef int i = 0
        cdef item one = it[0]
        self.stored.compare(self.packs, p, it.slot, it.count, self.queue.arena(it.worker) + <size_t>it.place * FRAME, statuses,
                            errors)
        while i < <int>it.count:
            one.place = it.place + i
            one.count = 1
            while i + one.count < it.count and statuses[i + one.count] == statuses[i] and errors[i + one.count] == errors[i]:
                one.count += 1
            if errors[i]:
                if len(self.disk_errors) < 16:
                    self.disk_errors.append((it.pack, errors[i]))
            elif statuses[i] == ERROR and len(self.corrupt) < 64:
                # The bit says durable and valid, the bytes say otherwise: corruption. Only a repair may write here.
                self.corrupt.append((it.pack, it.slot + i))
            elif statuses[i] == SAVED:
                self.counters[C_DUPLICATES] += one.count
            self.outcomes.put(&one, statuses[i])
            i += one.count
        return 0

    cdef int _plan_delete(self, item *it) except -1:
        """Puts a delete into the batch, or leaves it pending: `Deletes.claim` says when."""
        cdef const uint8_t *frame = self.queue.arena(it.worker) + <size_t>it.place * FRAME
        cdef int64_t pack = 0
        cdef int error = 0
        if self.log_errno:
            self.outcomes.put(it, self._refusal(self.log_errno))
            self.pending.drop(it)
            return 0
        if self.puts + self.deletes.logged >= BATCH_MAX:
            return 0
        if not self.deletes.claim(it, get_be(frame + DATA, 8), &error, &pack):
            if error == EAGAIN:
                self.stalled = True
            elif error:
                self._refuse(it, pack, error)
            return 0
        memcpy(self._staged(self.puts + self.deletes.logged - 1), frame, FRAME)
        self.in_progress[it.worker] += 1
        self.pending.drop(it)
        return 0

    # --- bulk -----------------------------------------------------------------------------------

    def bulk_done(self, BulkJob job):
        """Takes a finished job back: what was written is noted in the batch, what was not is answered.

        Returns False when its sync failed: everything in it was answered ERROR, and nothing may be saved any more.
        """
        cdef int i, j
        cdef sequence *s
        cdef item *it
        self.bulk.done(job)
        for i in range(job.sequence_count):
            s = &job.sequences[i]
            if job.error or s.error:
                self.packs.release(s.pack, s.slot, s.count)
                for j in range(s.item, s.item + s.items):
                    it = &job.items[j]
                    self.in_progress[it.worker] -= it.count
                    self.outcomes.put(it, ERROR if job.error else self._refusal(s.error))
                if len(self.disk_errors) < 16:
                    self.disk_errors.append((s.pack.id, job.error or s.error))
        if not job.error:
            self.noted.append(job)
        return job.error == 0

    def write_notes(self):
        """Puts the notes of finished jobs behind the frames of the batch. The last step before the log is written."""
        cdef BulkJob job
        cdef sequence *s
        cdef uint8_t *note = self._staged(self.puts + self.deletes.logged)
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
                self.packs.mark_dirty(s.pack, s.count)

    # --- apply and answer -----------------------------------------------------------------------

    def begin_slots(self):
        """Has a thread write the batch's slots while the log is written and synced: `apply` and `answer` wait for it.

        Only in a layout where nobody sees a slot before its bit is published, which is after the sync, as ever: what a
        batch that is lost leaves behind are bytes in free slots. A batch of few frames is left to `apply`.
        """
        cdef int i = 0, frames
        cdef placed *b
        if self.puts < AHEAD_MIN or not self.packs.hides_slots:
            return
        for i in range(self.batch_count):
            if self.batch[i].pack.fresh or self.batch[i].pack.header_cached:
                return      # nothing of a new pack may reach the disk before the log has it
        i = 0
        while i < self.batch_count:
            b = &self.batch[i]
            i = self._end_of_neighbours(i, &frames)
            self.packs.write_later(b.pack, b.it.slot, frames, self._staged(b.staged))
        self.slots_begun = self.packs.begin_writes()

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
                if job.sequences[i].error:
                    continue  # released by bulk_done: its pack may be closed by now
                error = self.packs.publish(job.sequences[i].pack)
                if error:
                    return error
        if self.deletes.logged == 0:
            return 0
        self.deletes.begin_erasing()
        return self.erase()

    cdef int _apply_puts(self) noexcept nogil:
        cdef int i, packs = 0
        cdef placed *b
        cdef int error = self._write_slots()
        if error:
            return error
        for i in range(self.batch_count):
            b = &self.batch[i]
            self.packs.release(b.pack, b.it.slot, b.it.count)
            self.packs.set_present(b.pack, b.it.slot, b.it.count)
            if i == 0 or self.batch[i - 1].pack != b.pack:      # the batch is in the order of the packs
                self.batch_packs[packs] = b.pack
                packs += 1
        return self.packs.publish_all(self.batch_packs, packs)

    cdef int _write_slots(self) noexcept nogil:
        """Writes them, or waits for the thread that does."""
        cdef int i = 0, frames, error = 0
        cdef int armed = failpoints_armed
        cdef bint begun = self.slots_begun
        cdef placed *b
        if begun:
            self.slots_begun = False
            error = self.packs.end_writes()
        while i < self.batch_count and error == 0:
            b = &self.batch[i]
            i = self._end_of_neighbours(i, &frames)
            if not begun:
                error = self.packs.write(b.pack, b.it.slot, frames, self._staged(b.staged))
            if armed and error == 0:
                failpoint_passed(STEP_SLOTS_WRITTEN, WAY_LOG)
        return error

    cdef int _end_of_neighbours(self, int i, int *frames) noexcept nogil:
        """Neighbours in the batch that are neighbours in the pack too lie one behind the other in the log's buffer: they are
        one write. The first item behind those of item `i`, and how many frames they are."""
        cdef placed *b = &self.batch[i]
        frames[0] = b.it.count
        i += 1
        while (i < self.batch_count and self.batch[i].pack == b.pack
               and self.batch[i].it.slot == b.it.slot + frames[0] and self.batch[i].staged == b.staged + frames[0]):
            frames[0] += self.batch[i].it.count
            i += 1
        return i

    def erase(self):
        """Goes on with the deletes of an earlier batch. Returns 0 or an errno, like `apply`."""
        cdef int error
        with nogil:
            error = self.deletes.erase()
        return error

    def answer(self, bint failed=False):
        """Answers everything in the batch, SAVED or DELETED (ERROR if `failed`), and empties it. Deletes that are not wholly
        erased stay, unless `failed`. Wakes the workers."""
        cdef int i
        cdef item *it
        cdef BulkJob job
        if self.slots_begun:                # only when the log failed
            self.slots_begun = False
            self.packs.end_writes()
        for i in range(self.batch_count):
            it = &self.batch[i].it
            self.in_progress[it.worker] -= it.count
            self.outcomes.put(it, ERROR if failed else SAVED)
        if failed or self.deletes.are_erased():
            for i in range(self.deletes.logged + self.deletes.erasing):
                it = &self.deletes.items[i]
                self.in_progress[it.worker] -= 1
                self.outcomes.put(it, ERROR if failed else DELETED)
            self.deletes.clear()
        for job in self.noted:
            for i in range(job.item_count):
                it = &job.items[i]
                if job.item_failed(i):
                    continue        # answered by bulk_done
                self.in_progress[it.worker] -= it.count
                self.outcomes.put(it, ERROR if failed else SAVED)
            if not failed:
                self.counters[C_BULK_RUNS] += job.sequence_count
                self.counters[C_BULK_FRAMES] += job.frames
        self.noted = []
        self.batch_count = self.puts = self.notes = 0
        self.wake()

    def wake(self):
        """Rings the doorbell of each worker that got outcomes and sleeps."""
        self.outcomes.wake()

    # --- sleep ----------------------------------------------------------------------------------

    def sleeping(self, bint asleep):
        """Says that the committer is about to sleep (the workers then ring), or that it woke."""
        word_store(&self.queue.header.committer_sleeping, asleep)
        full_fence()

    def check(self):
        """Asserts that every claim has its owner: slots claimed = frames in the batch, in its deletes, in bulk jobs."""
        cdef int64_t owned = self.puts + self.deletes.slots_claimed()
        cdef int64_t frames = self.puts + self.deletes.logged + self.deletes.erasing
        cdef int i
        cdef BulkJob job
        for job in (*self.bulk.running.values(), *self.noted):
            for i in range(job.sequence_count):
                if job.sequences[i].error == 0 or job.number in self.bulk.running:
                    owned += job.sequences[i].count
                    frames += job.sequences[i].count
        claims = self.packs.claims()
        assert sum(claims.values()) == self.packs.claimed == owned, f"{claims} claimed, {owned} owned"
        assert sum(self.in_progress[i] for i in range(self.queue.workers)) == frames, "frames are lost between claim and answer"
        assert self.pending.frames == sum(self.pending.items[i].count for i in range(self.pending.count))

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
        """One batch of `frames` and `size` bytes was synced and answered, `nanoseconds` after it was taken."""
        self.counters[C_COMMITS] += 1
        self.counters[C_COMMIT_FRAMES] += frames
        self.counters[C_COMMIT_BYTES] += size
        self.counters[C_COMMIT_NANOSECONDS] += nanoseconds
        self.counters[C_COMMIT_SIZE_BUCKET + histogram_bucket(frames, SIZE_BUCKETS)] += 1
        self.counters[C_COMMIT_LATENCY_BUCKET + latency_bucket(nanoseconds // 1000)] += 1

    def count_flush(self, uint64_t nanoseconds):
        self.counters[C_FLUSHES] += 1
        self.counters[C_FLUSH_NANOSECONDS] += nanoseconds
        self.counters[C_FLUSH_LATENCY_BUCKET + latency_bucket(nanoseconds // 1000)] += 1

    def count_sync_failure(self):
        self.counters[C_SYNC_FAILURES] += 1

    def count_log_stall(self):
        self.counters[C_LOG_STALLS] += 1

    def count_recovery(self, uint64_t frames, uint64_t nanoseconds):
        self.counters[C_RECOVERIES] += 1
        self.counters[C_RECOVERED_FRAMES] += frames
        self.counters[C_RECOVERY_NANOSECONDS] += nanoseconds

    def publish_gauges(self, uint64_t log_used, uint64_t log_allocated):
        """What the admin port shows of the committer's state."""
        self.counters[C_PACKS_CREATED] += self.packs.created
        self.packs.created = 0
        word_store(&self.queue.header.dirty_packs, self.packs.dirty_count + self.packs.flushing_count)
        ring_store(&self.queue.header.log_used, log_used)
        self.counters[C_LOG_ALLOCATED] = log_allocated
        self.counters[C_PENDING_FRAMES] = self.pending.frames
        self.counters[C_BULK_RUNNING] = len(self.bulk.running)
