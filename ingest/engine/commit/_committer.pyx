# distutils: depends = ingest/csrc/queue.h ingest/csrc/pack_table.h ingest/csrc/pack_file.h ingest/csrc/counters.h
"""What the committer decides about frames between taking them from the workers and answering them.

The steps of one commit, in this order (`docs/architecture.md`, "Life of one put"); the loop in `committer` calls them:

    take      runs from the rings of all workers                           → pending
    plan      claim slots; duplicates, conflicts, tombstones are answered; → the round: batch and bulk jobs
    (what becomes of a round: `_round`)

A frame is in exactly one place at a time: a ring, `pending`, the batch, a bulk job, or the deletes being erased. Slots are
claimed exactly for the frames in the last three (`check` counts). Only a commit that failed leaves claims
behind: the process ends with it. `_deletes` has the deletes, `_outcomes` the answers, `_duplicates` says what is one.
"""

from libc.errno cimport EAGAIN, EDQUOT, ENOSPC
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from ingest.engine.commit._bulk cimport BulkJob, BulkPath, sequence
from ingest.engine.commit._deletes cimport Deletes
from ingest.engine.commit._duplicates cimport Duplicates
from ingest.engine.commit._outcomes cimport Outcomes
from ingest.engine.commit._pending cimport Pending, item
from ingest.engine.commit._round cimport Round
from ingest.engine._queue cimport (
    RING_LIVE, RING_RETIRE, RING_RETIRED, RUN_DELETE, RUN_PUT, Queue, full_fence, queue_ring, ring_load, word_load, word_store,
)
from ingest.store.layouts._slot_table cimport (
    SLOT_DELETED, SLOT_FREE, SLOT_PRESENT, SlotTable, pack_state, slots_alike,
)

import os

from ingest import limits
from ingest.engine._queue import ROW_COMMITTER
from ingest.status import Status


cdef extern from "csrc/pack_file.h" nogil:
    uint64_t get_be(const uint8_t *p, int n)

cdef extern from "csrc/counters.h" nogil:
    enum: C_DUPLICATES
    enum: C_BULK_JOBS

cdef int SAVED = Status.SAVED
cdef int ERROR = Status.ERROR
cdef int NO_SPACE = Status.NO_SPACE
cdef int DELETED = Status.DELETED
cdef int FRAME = limits.FRAME_SIZE
cdef int DATA = limits.TICKET_SIZE + limits.CHECKSUM_SIZE   # offset of the data in a frame
cdef int BATCH_MAX = limits.BATCH_FRAMES_MAX
cdef int BULK_PENDING = limits.BULK_PENDING_MIN
cdef int HOLD_MIN = limits.BULK_HOLD_MIN
cdef int HOLD_JOBS = limits.BULK_HOLD_JOBS
cdef int BULK_RUN = limits.BULK_RUN_MIN


cdef class Committer:
    """The state of the frames that one committer holds. Only its own thread calls it."""

    cdef Queue queue
    cdef SlotTable packs
    cdef uint64_t epoch
    cdef uint64_t *counters
    cdef Pending pending
    cdef BulkPath bulk
    cdef Duplicates duplicates
    cdef Deletes deletes
    cdef Outcomes outcomes
    cdef readonly Round round          # the one that is planned, written, applied and answered now
    cdef int log_errno                 # why there is no log, in the plan that is being made
    cdef readonly list corrupt         # (pack, slot) that failed their check, for the log
    cdef readonly list disk_errors     # (pack, errno) met while opening and reading packs, for the log

    def __cinit__(self, Queue queue, SlotTable packs, list put_keys, *, bint sync=True):
        self.queue = queue
        self.packs = packs
        self.epoch = ring_load(&queue.header.epoch) + 1   # the one that committer_ready() announces
        self.counters = queue.counters(ROW_COMMITTER)
        self.pending = Pending(queue, self.epoch)
        self.bulk = BulkPath(queue, packs, packs.bulk_jobs, sync)
        self.duplicates = Duplicates(put_keys)
        self.deletes = Deletes(queue, packs)
        self.outcomes = Outcomes(queue)
        self.round = Round(queue, packs, self.deletes, self.outcomes)
        self.corrupt = []
        self.disk_errors = []

    def set_put_keys(self, list put_keys):
        """The keys (32 bytes each) of which any may have signed what is stored."""
        self.duplicates.keys = put_keys

    @property
    def erasing(self):
        """Whether deletes of an earlier batch are not wholly erased yet."""
        return self.deletes.erasing > 0

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
                if self.outcomes.owed[worker] == 0:
                    word_store(&ring.retire, RING_RETIRED)
            elif retire == RING_LIVE:
                self.pending.take(worker)
        return self.pending.frames

    # --- plan ---------------------------------------------------------------------------------

    def plan(self, bint space, int log_errno=0):
        """Fills the round from `pending`, and returns it. Without `space` nothing new is stored.

        With `log_errno`, the reason why there is no log at all, the batch stays empty: deletes are refused too.
        What can't be decided now stays pending: slots claimed by others, a full batch, too many dirty packs.
        """
        cdef int i, n = 0, frames = 0
        cdef Pending pending = self.pending
        cdef item *it
        self.round.begin()
        self.packs.looked = 0
        if pending.count == 0:
            return self.round
        # A refused frame must not make a pack, or refusing would use up what the reserve keeps.
        self.packs.may_create = space
        self.log_errno = log_errno
        while space and pending.frames >= BULK_PENDING:
            job = self.bulk.next_job(pending)
            if job is None:
                break
            self._count_owed(job, 1)
            self.counters[C_BULK_JOBS] += 1
            self.round.jobs.append(job)
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
        return self.round

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

    cdef int _count_owed(self, BulkJob job, int sign) except -1:
        cdef int i
        for i in range(job.item_count):
            self.outcomes.owed[job.items[i].worker] += sign * <int64_t>job.items[i].count
        return 0

    cdef int _plan_put(self, item *it, bint space) except -1:
        """Decides each slot of an item; what stays undecided is put back to pending as (up to) one shorter item."""
        cdef int error = 0, state = 0, alike
        cdef pack_state *p = self.packs.get_to_write(it.pack, it.slot, it.count, &error)
        cdef item part
        if p == NULL:
            if error == EAGAIN:
                self.round.stalled = True
                return 0
            self._refuse(it, it.pack, error)
            return 0
        while it.count:
            alike = slots_alike(p, it.slot, it.count, &state)
            part = it[0]
            part.count = alike
            if state == SLOT_FREE and space:
                if alike > self.round.room():
                    alike = self.round.room()
                    if alike == 0:
                        return 0
                    part.count = alike
                self.round.place(&part, p, self.queue.arena(it.worker) + <size_t>part.place * FRAME)
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

    cdef int _compare(self, item *it, pack_state *p) except -1:
        """Answers frames whose slots are taken: SAVED when they hold the same data, CONFLICT when other."""
        cdef uint8_t statuses[1332]
        cdef int errors[1332]
        cdef int i = 0, j
        cdef item one = it[0]
        self.duplicates.compare(self.packs, p, it.slot, it.count, self.queue.arena(it.worker) + <size_t>it.place * FRAME, statuses,
                            errors)
        while i < <int>it.count:
            one.place = it.place + i
            one.count = 1
            while i + one.count < it.count and statuses[i + one.count] == statuses[i] and errors[i + one.count] == errors[i]:
                one.count += 1
            if errors[i]:
                if len(self.disk_errors) < 16:
                    self.disk_errors.append((it.pack, errors[i]))
            elif statuses[i] == ERROR:
                # The bit says durable and valid, the bytes say otherwise: corruption. Only a repair may write here.
                for j in range(i, i + <int>one.count):
                    if len(self.corrupt) < 64:
                        self.corrupt.append((it.pack, it.slot + j))
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
        if self.round.room() <= 0:
            return 0
        if not self.deletes.claim(it, get_be(frame + DATA, 8), &error, &pack):
            if error == EAGAIN:
                self.round.stalled = True
            elif error:
                self._refuse(it, pack, error)
            return 0
        self.round.place_delete(it, frame)
        self.pending.drop(it)
        return 0

    # --- refuse ---------------------------------------------------------------------------------

    def refuse(self, int status):
        """Answers `status` to all that is pending, puts and deletes, whatever their tickets hold: nothing of it is looked at.
        ERROR to what a committer before may have had: that may be in the log, so nobody can say that it is not stored."""
        cdef int i
        cdef item *it
        for i in range(self.pending.count):
            it = &self.pending.items[i]
            self.outcomes.put(it, ERROR if it.known_before else status)
            self.pending.drop(it)
        self.pending.compact()
        self.outcomes.wake()

    def discard(self, BulkJob job):
        """As `bulk_done`, but all of it is answered ERROR: its slots are free again, as if it had not run."""
        cdef int i
        cdef bint fine
        errors = list(self.disk_errors)
        for i in range(job.sequence_count if job.error == 0 else 0):
            if job.sequences[i].error == 0:
                job.sequences[i].error = EAGAIN     # not what the disk said
        fine = self.bulk_done(job)
        if fine:
            self.round.noted.pop()
            self.disk_errors = errors       # the disk had no part in it
        return fine

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
                    self.outcomes.owed[it.worker] -= it.count
                    self.outcomes.put(it, ERROR if job.error else self._refusal(s.error))
                if len(self.disk_errors) < 16:
                    self.disk_errors.append((s.pack.id, job.error or s.error))
        if not job.error:
            self.round.noted.append(job)
        return job.error == 0

    # --- erase and sleep --------------------------------------------------------------------------

    def wake(self):
        """Rings the doorbell of each worker that got outcomes and sleeps."""
        self.outcomes.wake()

    def sleeping(self, bint asleep):
        """Says that the committer is about to sleep (the workers then ring), or that it woke: then the doorbell falls silent."""
        word_store(&self.queue.header.committer_sleeping, asleep)
        full_fence()
        if not asleep:
            try:
                os.eventfd_read(self.queue.committer_doorbell)
            except BlockingIOError:
                pass

    def check(self):
        """Asserts that every claim has its owner: slots claimed = frames in the batch, in its deletes, in bulk jobs."""
        cdef int64_t owned = self.round.puts + self.deletes.slots_claimed()
        cdef int64_t frames = self.round.puts + self.deletes.logged + self.deletes.erasing
        cdef int i
        cdef BulkJob job
        for job in (*self.bulk.running.values(), *self.round.noted):
            for i in range(job.sequence_count):
                if job.sequences[i].error == 0 or job.number in self.bulk.running:
                    owned += job.sequences[i].count
                    frames += job.sequences[i].count
        claims = self.packs.claims()
        assert sum(claims.values()) == self.packs.claimed == owned, f"{claims} claimed, {owned} owned"
        assert sum(self.outcomes.owed[i] for i in range(self.queue.workers)) == frames, "frames are lost between claim and answer"
        assert self.pending.frames == sum(self.pending.items[i].count for i in range(self.pending.count))

    def work_waiting(self):
        """Whether a ring holds runs that `take` would take, or a dead worker waits to be let go."""
        cdef int worker
        cdef queue_ring *ring
        for worker in range(self.queue.workers):
            ring = self.queue.ring(worker)
            if word_load(&ring.retire) == RING_RETIRE and self.outcomes.owed[worker] == 0:
                return True
            if (word_load(&ring.retire) == RING_LIVE and ring_load(&ring.worker_epoch) == self.epoch
                    and ring_load(&ring.run_head) != ring_load(&ring.run_tail)):
                return True
        return False
