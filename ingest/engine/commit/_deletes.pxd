"""The deletes of the committer's batch: claimed as a whole, logged, then erased step by step."""

from libc.stdint cimport int64_t, uint64_t

from ingest.engine.commit._pending cimport item
from ingest.engine._queue cimport Queue
from ingest.store.layouts._slot_table cimport SlotTable, pack_state


cdef struct delete_range:
    pack_state *pack
    int slot
    int count


cdef class Deletes:
    cdef SlotTable packs
    cdef Queue queue               # keeps the counters
    cdef uint64_t *counters
    cdef item *items
    cdef int logged                # of `items`, in the batch that is being made
    cdef int erasing               # of `items`, of an earlier batch: not answered because their slots are being erased
    cdef delete_range *ranges      # theirs; what is erased is taken off
    cdef int range_count
    cdef int range_erased          # the first one that is not wholly erased
    cdef int64_t tickets           # of all of them
    cdef bint looking              # it left one behind because too many slots had to be looked up; the committer sets it back

    # Claims all slots of a delete of `count` tickets and takes it in. False when it has to wait: for its turn, for a put of
    # one of its slots that is under way; or, with *error an errno, for what *pack lacks (EAGAIN) or for ever.
    cdef bint claim(self, const item *it, uint64_t count, int *error, int64_t *pack) except -1
    # They are logged: from now on they may be erased.
    cdef void begin_erasing(self) noexcept nogil
    # Takes one step: others wait for it. 0 or an errno.
    cdef int erase(self) noexcept nogil
    cdef bint are_erased(self) noexcept nogil
    # They were answered.
    cdef void clear(self) noexcept nogil
    # Slots that are claimed for them.
    cdef int64_t slots_claimed(self) noexcept nogil

    cdef bint _claim_ranges(self, int64_t index, uint64_t count, int *error, int64_t *pack) except -1
