# distutils: depends = ingest/csrc/pack_table.h ingest/csrc/pack_file.h ingest/csrc/ticket.h ingest/csrc/counters.h
"""One round of commits: what a plan made, from the batch in the log's buffer to its answers.

    plan      the committer fills it: the batch (copied to the log's buffer), bulk jobs
    (the log is written and synced; meanwhile, from `begin_slots` to `apply`, a thread may write the slots)
    apply     slots written, then bits set; deleted slots erased
    (erase    the rest of deletes that would take too long at once, between later commits)
    answer    outcomes to the workers

There is one, which is used again: what it holds when a plan begins are bulk jobs that have ended, and deletes that
are still being erased.
"""

from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memcpy

from ingest.engine.commit._bulk cimport BulkJob, sequence
from ingest.engine.commit._deletes cimport Deletes
from ingest.engine.commit._outcomes cimport Outcomes
from ingest.engine.commit._pending cimport item
from ingest.engine._queue cimport Queue
from ingest.runtime._failpoints cimport STEP_SLOTS_WRITTEN, WAY_LOG, failpoint_passed, failpoints_armed
from ingest.store.layouts._slot_table cimport SlotTable, pack_state

import mmap

from ingest import limits
from ingest.engine._queue import ROW_COMMITTER
from ingest.status import Status
from ingest.store.log.log_format import BATCH_HEADER_SIZE, NOTE_SIZE, padded


cdef extern from "csrc/ticket.h" nogil:
    int ticket_write_value(int64_t v, uint8_t *t)

cdef extern from "csrc/pack_file.h" nogil:
    void put_be(uint8_t *p, uint64_t v, int n)

cdef extern from "csrc/counters.h" nogil:
    enum: C_BULK_RUNS
    enum: C_BULK_FRAMES

cdef int SAVED = Status.SAVED
cdef int ERROR = Status.ERROR
cdef int DELETED = Status.DELETED
cdef int FRAME = limits.FRAME_SIZE
cdef int BATCH_MAX = limits.BATCH_FRAMES_MAX
cdef int AHEAD_MIN = 8                             # frames worth waking a thread for
cdef int NOTES_MAX = 1024


cdef class Round:

    def __cinit__(self, Queue queue, SlotTable packs, Deletes deletes, Outcomes outcomes):
        cdef uint8_t[::1] view
        self.packs = packs
        self.deletes = deletes
        self.outcomes = outcomes
        self.counters = queue.counters(ROW_COMMITTER)
        self.batch = <placed *>PyMem_Malloc((BATCH_MAX + 1) * sizeof(placed))
        self.batch_packs = <pack_state **>PyMem_Malloc((BATCH_MAX + 1) * sizeof(pack_state *))
        if not (self.batch and self.batch_packs):
            raise MemoryError
        self._buffer = mmap.mmap(-1, padded(BATCH_HEADER_SIZE + BATCH_MAX * FRAME + NOTES_MAX * NOTE_SIZE))
        view = self._buffer
        self.staging = &view[0]
        self.noted = []
        self.jobs = []

    def __dealloc__(self):
        if self.slots_begun and self.packs is not None:
            self.packs.end_writes()         # they are in the buffer that goes with this object
        PyMem_Free(self.batch)
        PyMem_Free(self.batch_packs)

    @property
    def buffer(self):
        """The log's buffer: the batch lies in it behind the header's place."""
        return memoryview(self._buffer)

    @property
    def delete_frames(self):
        return self.deletes.logged

    @property
    def looking(self):
        """Whether the plan left a delete behind because too many slots had to be looked up."""
        return self.deletes.looking

    @property
    def empty(self):
        """Whether there is nothing for the log."""
        return self.puts == 0 and self.deletes.logged == 0 and self.notes == 0

    # --- plan -------------------------------------------------------------------------------------

    cdef int begin(self) except -1:
        assert self.puts == 0 and self.deletes.logged == 0, "the last batch was not answered"
        self.jobs = []
        self.stalled = self.deletes.looking = False
        return 0

    cdef int room(self) noexcept nogil:
        return BATCH_MAX - self.puts - self.deletes.logged

    cdef int place(self, const item *it, pack_state *p, const uint8_t *frames) except -1:
        cdef placed *b = &self.batch[self.batch_count]
        self.batch_count += 1
        b.it = it[0]
        b.pack = p
        b.staged = self.puts
        with nogil:
            self.packs.claim(p, it.slot, it.count)
            memcpy(self._staged(self.puts), frames, <size_t>it.count * FRAME)
        self.packs.mark_dirty(p, it.count)
        self.puts += it.count
        self.outcomes.owed[it.worker] += it.count
        return 0

    cdef int place_delete(self, const item *it, const uint8_t *frame) except -1:
        memcpy(self._staged(self.puts + self.deletes.logged - 1), frame, FRAME)
        self.outcomes.owed[it.worker] += 1
        return 0

    cdef uint8_t *_staged(self, int frame) noexcept nogil:
        return self.staging + 64 + <size_t>frame * FRAME

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
            self.outcomes.owed[it.worker] -= it.count
            self.outcomes.put(it, ERROR if failed else SAVED)
        if failed or self.deletes.are_erased():
            for i in range(self.deletes.logged + self.deletes.erasing):
                it = &self.deletes.items[i]
                self.outcomes.owed[it.worker] -= 1
                self.outcomes.put(it, ERROR if failed else DELETED)
            self.deletes.clear()
        for job in self.noted:
            for i in range(job.item_count):
                it = &job.items[i]
                if job.item_failed(i):
                    continue        # answered by bulk_done
                self.outcomes.owed[it.worker] -= it.count
                self.outcomes.put(it, ERROR if failed else SAVED)
            if not failed:
                self.counters[C_BULK_RUNS] += job.sequence_count
                self.counters[C_BULK_FRAMES] += job.frames
        self.noted = []
        self.batch_count = self.puts = self.notes = 0
        self.outcomes.wake()
