# distutils: depends = ingest/csrc/bulk_write.h ingest/csrc/beneath.h ingest/csrc/pack_file.h ingest/csrc/queue.h
"""Long runs on their way straight into their packs: they skip the log, which only says which slots they fill.

`BulkPath` chooses the runs and claims their slots, `BulkJob` writes and syncs them in a thread of its own. Afterwards the
committer notes them in its next batch.
"""

from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stdint cimport int64_t, uint8_t
from posix.unistd cimport close

from ingest.runtime._failpoints cimport (
    STEP_PACKS_SYNCED, STEP_SLOTS_WRITTEN, WAY_BULK, failpoint_passed, failpoints_armed,
)
from ingest.engine._queue cimport RUN_PUT, Queue
from ingest.store.layouts._slot_table cimport SLOT_FREE, SlotTable, pack_state, slots_alike

import mmap

from ingest import limits


cdef extern from "csrc/bulk_write.h" nogil:
    size_t BULK_IMAGE_SIZE
    int bulk_open(int data_fd, const pack_state *pack)
    int bulk_write(int fd, pack_state *pack, int slot, const bulk_part *parts, int n, uint8_t *image)
    int bulk_sync(int fd)
    int bulk_sync_directories(int data_fd, int64_t pack, int64_t previous)

cdef int FRAME = limits.FRAME_SIZE
cdef int BULK_MIN = limits.BULK_RUN_MIN
cdef int JOB_FRAMES = limits.BULK_JOB_FRAMES_MAX


cdef class BulkJob:
    """Long runs of frames on their way straight into their packs. `run` may run in any thread, once."""

    def __dealloc__(self):
        self._close()
        PyMem_Free(self.items)
        PyMem_Free(self.sequences)
        PyMem_Free(self.parts)

    cdef void _close(self) noexcept nogil:
        cdef int i
        for i in range(self.sequence_count):
            if self.sequences[i].fd >= 0:
                close(self.sequences[i].fd)
                self.sequences[i].fd = -1

    cdef void add(self, Queue queue, pack_state *p, int fd, item **first, int items, int slots) noexcept nogil:
        cdef sequence *s = &self.sequences[self.sequence_count]
        cdef int i
        cdef item *it
        s.pack = p
        s.fd = fd
        s.slot = first[0].slot
        s.count = slots
        s.item = self.item_count
        s.items = items
        s.error = 0
        self.sequence_count += 1
        for i in range(items):
            it = first[i]
            self.items[self.item_count] = it[0]
            self.parts[self.item_count].frames = queue.arena(it.worker) + <size_t>it.place * FRAME
            self.parts[self.item_count].count = it.count
            self.item_count += 1
        self.frames += slots

    def run(self):
        """Writes all sequences, then syncs the packs and their directories. Errors are kept in the job."""
        cdef int i, error
        cdef sequence *s
        cdef int64_t previous = -1
        with nogil:
            for i in range(self.sequence_count):
                s = &self.sequences[i]
                s.error = bulk_write(s.fd, s.pack, s.slot, self.parts + s.item, s.items, self.image)
                if s.error < 0:         # a failed sync: only recovery can tell what is stored
                    self.error = s.error = -s.error
                    break
            if failpoints_armed:
                failpoint_passed(STEP_SLOTS_WRITTEN, WAY_BULK)
            if self.sync and self.error == 0:
                for i in range(self.sequence_count):
                    s = &self.sequences[i]
                    if s.error:
                        continue
                    error = bulk_sync(s.fd)
                    if error == 0:
                        error = bulk_sync_directories(self.data_fd, s.pack.id, previous)
                        previous = s.pack.id
                    if error:
                        self.error = error
                        break
            self._close()
            if failpoints_armed and self.error == 0:
                failpoint_passed(STEP_PACKS_SYNCED, WAY_BULK)

    cdef bint item_failed(self, int i) noexcept nogil:
        cdef int s
        for s in range(self.sequence_count):
            if self.sequences[s].item <= i < self.sequences[s].item + self.sequences[s].items:
                return self.sequences[s].error != 0
        return False


cdef class BulkPath:
    """Which runs skip the log, in at most `jobs` jobs at a time."""

    def __cinit__(self, Queue queue, SlotTable packs, int jobs, bint sync):
        self.queue = queue
        self.packs = packs
        self.sync = sync
        self.running = {}
        self.images = [mmap.mmap(-1, BULK_IMAGE_SIZE) for _ in range(jobs)]

    cdef BulkJob next_job(self, Pending pending):
        """Goes round the packs, so that no client waits for ever."""
        cdef int i, n = 0
        cdef int64_t last = self.cursor
        cdef item *it
        cdef BulkJob job
        cdef uint8_t[::1] view
        if not self.images:
            return None
        for i in range(pending.count):
            it = &pending.items[i]
            if it.count and it.kind == RUN_PUT:
                pending.sorted[n] = it
                n += 1
        if n == 0:
            return None
        pending.sort(n)
        job = BulkJob.__new__(BulkJob)
        job.items = <item *>PyMem_Malloc(n * sizeof(item))
        job.parts = <bulk_part *>PyMem_Malloc(n * sizeof(bulk_part))
        job.sequences = <sequence *>PyMem_Malloc((JOB_FRAMES // BULK_MIN + 2) * sizeof(sequence))
        if not (job.items and job.parts and job.sequences):
            raise MemoryError
        # First the packs behind the one that the last job ended with, then from the start.
        self._fill(job, pending, n, last, True)
        self._fill(job, pending, n, last, False)
        if job.sequence_count == 0:
            return None
        pending.compact()
        job.data_fd = self.packs.data_fd
        job.sync = self.sync
        job._image = self.images.pop()
        view = job._image
        job.image = &view[0]
        self.jobs += 1
        job.number = self.jobs
        self.running[job.number] = job
        return job

    cdef int _fill(self, BulkJob job, Pending pending, int n, int64_t last, bint behind) except -1:
        """Takes long runs of the first `n` of `pending.sorted` into the job: of packs behind `last`, or of the others."""
        cdef int i = 0, j, first, slots, error, fd, state = 0
        cdef item **sorted_ = pending.sorted
        cdef pack_state *p
        while i < n and job.frames < JOB_FRAMES:
            first = i
            slots = sorted_[i].count
            i += 1
            if slots == 0:
                continue        # in the job already
            while i < n and sorted_[i].pack == sorted_[first].pack and sorted_[i].slot == sorted_[first].slot + slots:
                slots += sorted_[i].count
                i += 1
            if slots < BULK_MIN or (sorted_[first].pack > last) != behind:
                continue
            error, fd = 0, -1
            p = self.packs.get_to_write(sorted_[first].pack, sorted_[first].slot, slots, &error)
            if (p != NULL and self.packs.create_past_cache(p) == 0
                    and slots_alike(p, sorted_[first].slot, slots, &state) == slots and state == SLOT_FREE):
                fd = bulk_open(self.packs.data_fd, p)
            if fd < 0:
                for j in range(first, i):
                    sorted_[j].declined = True      # the way through the log looks at each frame, and answers it
                continue
            self.packs.claim(p, sorted_[first].slot, slots)
            job.add(self.queue, p, fd, sorted_ + first, i - first, slots)
            for j in range(first, i):
                pending.drop(sorted_[j])
            self.cursor = p.id
        return 0

    cdef int done(self, BulkJob job) except -1:
        del self.running[job.number]
        self.images.append(job._image)
        return 0
