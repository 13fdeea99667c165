"""Frames whose slots are taken, held against what is stored there."""

from libc.stdint cimport uint8_t

from ingest.store.layouts._slot_table cimport SlotTable, pack_state


cdef class Duplicates:
    cdef list keys                     # put keys that verify what is stored
    cdef object _scratch
    cdef uint8_t *scratch              # one pack's worth of stored frames

    # What to answer for each of `count` (at most 1332) frames, whose present slots start at `slot`, to `statuses`; to `errors`
    # the errno of each slot that could not be read, else 0.
    cdef int compare(self, SlotTable packs, pack_state *p, int slot, int count, const uint8_t *frames, uint8_t *statuses,
                     int *errors) except -1
    cdef bint _verify(self, pack_state *p, int slot, int count, uint8_t *good) except -1
