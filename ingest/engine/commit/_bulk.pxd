"""Long runs on their way straight into their packs: docs/architecture.md, "The bulk path"."""

from libc.stdint cimport int64_t, uint8_t, uint64_t

from ingest.engine.commit._pending cimport Pending, item
from ingest.engine._queue cimport Queue
from ingest.store.layouts._slot_table cimport SlotTable, pack_state


cdef extern from "csrc/bulk_write.h" nogil:
    ctypedef struct bulk_part:
        const uint8_t *frames
        int count


cdef struct sequence:   # consecutive items of one pack in a bulk job
    pack_state *pack
    int slot
    int count
    int item            # the first one in the job's items
    int items
    int fd              # its own, of the pack: -1 when it is closed
    int error


cdef class BulkJob:
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

    cdef void add(self, Queue queue, pack_state *p, int fd, item **first, int items, int slots) noexcept nogil
    cdef void _close(self) noexcept nogil
    # Whether the i-th item's frames could not be written.
    cdef bint item_failed(self, int i) noexcept nogil


cdef class BulkPath:
    cdef Queue queue
    cdef SlotTable packs
    cdef bint sync
    cdef uint64_t jobs             # made so far; the last one's number
    cdef int64_t cursor            # the pack that the last job ended with
    cdef dict running              # {number: job}
    cdef list images               # free image buffers

    # A job of the long runs that are pending (their slots claimed), or None.
    cdef BulkJob next_job(self, Pending pending)
    cdef int _fill(self, BulkJob job, Pending pending, int n, int64_t last, bint behind) except -1
    # Takes a job back that has run.
    cdef int done(self, BulkJob job) except -1
