"""One round of commits: what a plan made, from the batch in the log's buffer to its answers."""

from libc.stdint cimport int64_t, uint8_t, uint64_t

from ingest.engine.commit._deletes cimport Deletes
from ingest.engine.commit._outcomes cimport Outcomes
from ingest.engine.commit._pending cimport item
from ingest.store.layouts._slot_table cimport SlotTable, pack_state


cdef struct placed:     # an item in the batch; its frames lie at `staged` in the log's buffer
    item it
    pack_state *pack
    int staged


cdef class Round:
    cdef SlotTable packs
    cdef Deletes deletes
    cdef Outcomes outcomes
    cdef uint64_t *counters
    cdef placed *batch
    cdef int batch_count
    cdef pack_state **batch_packs      # those of the batch, each once
    cdef bint slots_begun              # a thread writes the batch's slots
    cdef readonly int puts             # frames in the batch
    cdef readonly int notes
    cdef list noted                    # bulk jobs whose notes are in the batch
    cdef readonly list jobs            # bulk jobs to be run now
    cdef readonly bint stalled         # frames were left behind because too many packs are dirty
    cdef object _buffer
    cdef uint8_t *staging

    # A new plan begins: what the last one decided was answered. Jobs that have ended meanwhile stay noted.
    cdef int begin(self) except -1
    # How many frames the batch still takes.
    cdef int room(self) noexcept nogil
    # Claims the slots of an item and copies its frames to the log's buffer.
    cdef int place(self, const item *it, pack_state *p, const uint8_t *frames) except -1
    # Copies the frame of a delete that `deletes` has just taken in.
    cdef int place_delete(self, const item *it, const uint8_t *frame) except -1

    cdef uint8_t *_staged(self, int frame) noexcept nogil
    cdef int _apply_puts(self) noexcept nogil
    cdef int _write_slots(self) noexcept nogil
    cdef int _end_of_neighbours(self, int i, int *frames) noexcept nogil
