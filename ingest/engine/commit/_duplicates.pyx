# distutils: depends = ingest/csrc/pack_file.h ingest/csrc/ticket.h
"""Frames whose slots are taken, held against what is stored there: write-once is "same bytes" or "conflict"."""

from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memcmp

from ingest._hmac cimport hmac_verify
from ingest.store.layouts._slot_table cimport SlotTable, pack_state

import mmap

from ingest import limits
from ingest.status import Status


cdef extern from "csrc/ticket.h" nogil:
    int64_t ticket_pack(int64_t index)
    int ticket_slot(int64_t index)
    int64_t ticket_index(const uint8_t *t)
    enum: ROOT_PACK_SLOTS

cdef int FRAME = limits.FRAME_SIZE
cdef int DATA = limits.TICKET_SIZE + limits.CHECKSUM_SIZE   # offset of the data in a frame
cdef int DATA_BYTES = limits.DATA_SIZE
cdef uint8_t SAVED = Status.SAVED
cdef uint8_t ERROR = Status.ERROR
cdef uint8_t CONFLICT = Status.CONFLICT


cdef class Duplicates:
    """Compares with stored frames, which count only if they check under one of `put_keys` (32 bytes each)."""

    def __cinit__(self, list put_keys):
        cdef uint8_t[::1] view
        self.keys = put_keys
        self._scratch = mmap.mmap(-1, ROOT_PACK_SLOTS * FRAME)
        view = self._scratch
        self.scratch = &view[0]

    cdef int compare(self, SlotTable packs, pack_state *p, int slot, int count, const uint8_t *frames,
                     uint8_t *statuses, int *errors) except -1:
        """SAVED for the same data, CONFLICT for other. ERROR when the slot can't be read (its errno to `errors`, which else has
        0), or fails its check."""
        cdef uint8_t good[1332]
        cdef int i, attempt, error = 0
        cdef size_t at
        for attempt in range(2):
            # Nobody judges a slot bad before reading it a second time.
            with nogil:
                error = packs.read_slots(p, slot, count, self.scratch)
            if error or self._verify(p, slot, count, good):
                break
        if error and count > 1:         # one slot may have spoilt it for all
            for i in range(count):
                self.compare(packs, p, slot + i, 1, frames + <size_t>i * FRAME, statuses + i, errors + i)
            return 0
        with nogil:
            for i in range(count):
                at = <size_t>i * FRAME + DATA
                errors[i] = error
                if error or not good[i]:
                    statuses[i] = ERROR
                elif memcmp(self.scratch + at, frames + at, DATA_BYTES) == 0:
                    statuses[i] = SAVED
                else:
                    statuses[i] = CONFLICT
        return 0

    cdef bint _verify(self, pack_state *p, int slot, int count, uint8_t *good) except -1:
        """good[i]: whether the frame i in `scratch` is that of its slot, under any key. Returns whether all are."""
        cdef const uint8_t[::1] key
        cdef uint8_t again
        cdef size_t n
        cdef int i, all_good = 1
        cdef int64_t index
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
        for i in range(count):
            index = ticket_index(self.scratch + <size_t>i * FRAME)
            if index < 0 or ticket_pack(index) != p.id or ticket_slot(index) != slot + i:
                good[i] = 0
            all_good &= good[i]
        return all_good
