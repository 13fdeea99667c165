# distutils: depends = ingest/csrc/pack_table.h ingest/csrc/pack_file.h ingest/csrc/ticket.h ingest/csrc/counters.h
"""The deletes of the committer's batch: claimed as a whole, logged, then erased step by step, with commits in between.

Until the last step they keep their claims, and there are no others: `docs/architecture.md`, "Deletes".
"""

from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.errno cimport ENOSPC

from ingest.runtime._failpoints cimport STEP_TOMBSTONE_WRITTEN, WAY_LOG, failpoint_passed, failpoints_armed
from ingest.store.layouts._slot_table cimport PACK_PRESENT, SLOT_CLAIMED, bit_get, slots_alike

from ingest import limits
from ingest.engine._queue import ROW_COMMITTER


cdef extern from "csrc/ticket.h" nogil:
    int64_t ticket_pack(int64_t index)
    int ticket_slot(int64_t index)
    int ticket_run_max(int64_t index)
    int64_t TICKET_INDEX_LAST

cdef extern from "csrc/counters.h" nogil:
    enum: C_DELETED_TICKETS
    enum: C_DELETED_BYTES
    enum: C_RECLAIMED_BYTES

cdef int FRAME = 1474
cdef int DELETES_MAX = 64   # of one batch: each touches up to 53 packs
cdef int RANGES_MAX = 64 * DELETES_MAX
cdef int COUNT_MAX = limits.RANGE_COUNT_MAX
cdef int LOOKS_MAX = limits.DELETE_LOOKS_MAX


cdef class Deletes:

    def __cinit__(self, Queue queue, SlotTable packs):
        self.queue = queue
        self.packs = packs
        self.counters = queue.counters(ROW_COMMITTER)
        self.items = <item *>PyMem_Malloc(DELETES_MAX * sizeof(item))
        self.ranges = <delete_range *>PyMem_Malloc(RANGES_MAX * sizeof(delete_range))
        if not (self.items and self.ranges):
            raise MemoryError

    def __dealloc__(self):
        PyMem_Free(self.items)
        PyMem_Free(self.ranges)

    cdef bint claim(self, const item *it, uint64_t count, int *error, int64_t *pack) except -1:
        cdef int first_range = self.range_count, i
        cdef delete_range *r
        if self.erasing or self.logged == DELETES_MAX:
            return False
        if self.logged and self.tickets + <int64_t>count > max(<int64_t>COUNT_MAX, self.packs.erase_max):
            return False
        if not 1 <= count <= <uint64_t>COUNT_MAX or it.first + <int64_t>count - 1 > TICKET_INDEX_LAST:
            raise AssertionError(f"worker {it.worker} handed over a delete of {count} tickets from {it.first}")
        if not self._claim_ranges(it.first, count, error, pack):
            while self.range_count > first_range:
                self.range_count -= 1
                r = &self.ranges[self.range_count]
                self.packs.release(r.pack, r.slot, r.count)
            return False
        for i in range(first_range, self.range_count):
            self.packs.mark_dirty(self.ranges[i].pack, self.ranges[i].count)
            self.tickets += self.ranges[i].count
        self.items[self.logged] = it[0]
        self.logged += 1
        return True

    cdef bint _claim_ranges(self, int64_t index, uint64_t count, int *error, int64_t *pack) except -1:
        """Claims pack by pack. False as soon as it can't, with what it has claimed in `ranges`."""
        cdef int64_t room = self.packs.room if self.packs.may_create else 0
        cdef int most, slot, i, state = 0
        cdef pack_state *p
        cdef delete_range *r
        while count:
            most = ticket_run_max(index)
            if <uint64_t>most > count:
                most = count
            pack[0] = ticket_pack(index)
            slot = ticket_slot(index)
            if self.packs.looked > LOOKS_MAX:
                # What it has learnt so far is kept: it goes on from there.
                self.looking = True
                return False
            p = self.packs.get_to_write(pack[0], slot, most, error)
            if p == NULL:
                return False
            room -= self.packs.new_tombstones(p, slot, most)
            if room < 0:
                error[0] = ENOSPC
                return False
            i = 0
            while i < most:
                i += slots_alike(p, slot + i, most - i, &state)
                if state == SLOT_CLAIMED:
                    return False
            r = &self.ranges[self.range_count]
            self.range_count += 1
            r.pack = p
            r.slot = slot
            r.count = most
            self.packs.claim(p, slot, most)
            index += most
            count -= most
        self.packs.room = room
        return True

    cdef void begin_erasing(self) noexcept nogil:
        self.erasing = self.logged
        self.logged = 0

    cdef int erase(self) noexcept nogil:
        cdef int error, count, slot, left = self.packs.erase_max
        cdef int armed = failpoints_armed
        cdef int64_t before
        cdef delete_range *r
        while self.range_erased < self.range_count and left > 0:
            r = &self.ranges[self.range_erased]
            count = min(r.count, left)
            for slot in range(r.slot, r.slot + count):
                if bit_get(r.pack.header + PACK_PRESENT, slot):
                    self.counters[C_DELETED_BYTES] += FRAME
            before = self.packs.allocated(r.pack)
            self.packs.release(r.pack, r.slot, count)
            self.packs.set_deleted(r.pack, r.slot, count)
            error = self.packs.publish(r.pack)
            if error:
                return error
            if armed:
                failpoint_passed(STEP_TOMBSTONE_WRITTEN, WAY_LOG)
            # Only now: who reads zeros finds the deleted bit when it looks again.
            error = self.packs.erase(r.pack, r.slot, count)
            if error:
                return error
            self.counters[C_DELETED_TICKETS] += count
            self.counters[C_RECLAIMED_BYTES] += max(0, before - self.packs.allocated(r.pack))
            r.slot += count
            r.count -= count
            left -= count
            self.range_erased += r.count == 0
        return 0

    cdef bint are_erased(self) noexcept nogil:
        return self.range_erased == self.range_count

    cdef void clear(self) noexcept nogil:
        self.logged = self.erasing = self.range_count = self.range_erased = 0
        self.tickets = 0

    cdef int64_t slots_claimed(self) noexcept nogil:
        cdef int64_t claimed = 0
        cdef int i
        for i in range(self.range_erased, self.range_count):
            claimed += self.ranges[i].count
        return claimed
