# distutils: depends = ingest/csrc/pack_table.h ingest/csrc/pack_file.h ingest/csrc/beneath.h ingest/csrc/ticket.h ingest/csrc/file_syncs.h ingest/csrc/spare_descriptors.h
"""Slots as the committer sees them: free, present, deleted or claimed. The seam between it and the layouts.

A pack is what 1296 neighbouring tickets share (`ingest.sharding`): in layout pack a file, in layout tree a few directories. In
both it is the unit in which claims, states and descriptors are kept here. `PackTable` and `TreeTable` know what lies on the disk.
"""

from libc.errno cimport EAGAIN, ENOMEM
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport calloc

import os
from contextlib import contextmanager

from ingest import limits
from ingest.runtime.durable_files import syncfs


cdef extern from "csrc/frame.h" nogil:
    pass

cdef extern from "csrc/pack_table.h" nogil:
    ctypedef struct pack_entry:
        pack_state *pack
    pack_entry *pack_table_at(pack_table *t, int i)
    int pack_table_init(pack_table *t, int max)
    pack_state *pack_table_find(pack_table *t, int64_t id)
    void pack_table_insert(pack_table *t, pack_state *p)
    int pack_table_evict(pack_table *t)
    void pack_table_free(pack_table *t)
    void pack_close(pack_state *p)
    enum: ROOT_PACK_SLOTS
    enum: PACK_SLOTS


cdef class SlotTable:
    """Slots below ``data_fd`` (a descriptor of DATA), of at most ``open_max`` packs at a time. For one thread."""

    def __cinit__(self, int data_fd, bytes store_id, int open_max):
        if len(store_id) != 16:
            raise ValueError("a store id has 16 bytes")
        if pack_table_init(&self.table, open_max) < 0:
            raise MemoryError
        self.data_fd = data_fd
        self._dirty = set()
        spares_init(&self._spares, data_fd, <int64_t>(limits.LOG_DESCRIPTOR_RETRY_S * 1e9))
        self.may_create = True
        self.room = limits.RANGE_COUNT_MAX

    def __dealloc__(self):
        pack_table_free(&self.table)
        spares_close(&self._spares)

    def __len__(self):
        return self.table.count

    def close(self):
        """Closes all packs; nothing may be claimed."""
        pack_table_free(&self.table)
        if pack_table_init(&self.table, self.table.max) < 0:
            raise MemoryError

    # --- what a layout does

    cdef int _open(self, pack_state *p) noexcept:
        return 0

    cdef int _know(self, pack_state *p, int slot, int count) noexcept nogil:
        return 0

    cdef int new_tombstones(self, pack_state *p, int slot, int count) noexcept nogil:
        return 0

    cdef int mark_dirty(self, pack_state *p, int count) except -1:
        return 0

    cdef int create_past_cache(self, pack_state *p) noexcept nogil:
        return 0

    cdef int write(self, pack_state *p, int slot, int count, const uint8_t *frames) noexcept nogil:
        return 0

    cdef void write_later(self, pack_state *p, int slot, int count, const uint8_t *frames) noexcept nogil:
        pass

    cdef bint begin_writes(self) noexcept nogil:
        return False

    cdef int end_writes(self) noexcept nogil:
        return 0

    cdef int publish(self, pack_state *p) noexcept nogil:
        return 0

    cdef int publish_all(self, pack_state **packs, int n) noexcept nogil:
        cdef int i, error
        for i in range(n):
            error = self.publish(packs[i])
            if error:
                return error
        return 0

    cdef int erase(self, pack_state *p, int slot, int count) noexcept nogil:
        return 0

    cdef int64_t allocated(self, pack_state *p) noexcept nogil:
        return 0

    cdef int read_slots(self, pack_state *p, int slot, int count, uint8_t *frames) noexcept nogil:
        return 0

    # --- what all layouts share

    cdef pack_state *get(self, int64_t pack, int *error) noexcept:
        cdef pack_state *p = pack_table_find(&self.table, pack)
        if p != NULL:
            return p
        if self.table.count >= self.table.max and pack_table_evict(&self.table) < 0:
            error[0] = EAGAIN
            return NULL
        p = <pack_state *>calloc(1, sizeof(pack_state))
        if p == NULL:
            error[0] = ENOMEM
            return NULL
        p.id = pack
        p.fd = -1
        p.slots = ROOT_PACK_SLOTS if pack == 0 else PACK_SLOTS
        error[0] = self._open(p)
        while lacks_descriptor(error[0]):
            # Others used up the descriptors that we counted on: make do with fewer. One may not be enough: to make a
            # directory takes two.
            if pack_table_evict(&self.table) < 0:
                if self.table.count:
                    error[0] = EAGAIN
                break
            error[0] = self._open(p)
        if error[0] != 0:
            pack_close(p)
            return NULL
        pack_table_insert(&self.table, p)
        return p

    @contextmanager
    def opening(self):
        """Around opening what stays open, in any thread: the flush's own descriptors are not given away meanwhile. OSError
        (EMFILE, ENFILE): one of them is missing, and nothing may be opened."""
        cdef int error = 0
        if not self.syncs_files:
            yield
            return
        with nogil:
            error = spares_begin(&self._spares)
        if error:
            raise OSError(error, os.strerror(error))
        try:
            yield
        finally:
            spares_end(&self._spares)

    def give_back(self, int count):
        """Forgets up to `count` packs that nothing is under way for: somebody else needs their descriptors."""
        while count and pack_table_evict(&self.table) == 0:
            count -= 1

    cdef bint _may_get_dirty(self, int64_t pack) noexcept:
        return self.dirty_count < self.dirty_max

    cdef pack_state *get_to_write(self, int64_t pack, int slot, int count, int *error) noexcept:
        cdef pack_state *p
        if not self._may_get_dirty(pack):
            error[0] = EAGAIN
            return NULL
        p = self.get(pack, error)
        if p == NULL:
            return NULL
        error[0] = self._know(p, slot, count)
        return p if error[0] == 0 else NULL

    cdef int claim(self, pack_state *p, int slot, int count) noexcept nogil:
        bits_fill(p.claimed, slot, count, 1)
        p.claimed_count += count
        self.claimed += count
        return 0

    cdef int release(self, pack_state *p, int slot, int count) noexcept nogil:
        bits_fill(p.claimed, slot, count, 0)
        p.claimed_count -= count
        self.claimed -= count
        return 0

    cdef void set_present(self, pack_state *p, int slot, int count) noexcept nogil:
        bits_fill(p.header + PACK_PRESENT, slot, count, 1)
        p.touched = 1

    cdef void set_deleted(self, pack_state *p, int slot, int count) noexcept nogil:
        bits_fill(p.header + PACK_PRESENT, slot, count, 0)
        bits_fill(p.header + PACK_DELETED, slot, count, 1)
        p.touched = 1

    # --- making what was written durable

    def sync_each_file(self):
        """From now on `sync` also syncs each file that was written to: before anything is written."""
        self.syncs_files = True
        spares_are_kept(&self._spares)      # if they are not, whoever opens something sees to them first

    def flush_begins(self):
        """A `sync` is about to start: what is dirty now is what it makes durable."""
        self.flushing_count = self.dirty_count
        self._dirty = set()
        self.dirty_count = 0

    def sync(self):
        """Makes durable what was dirty when the flush began; in any thread, while the table is used. OSError: a write-back
        failed, and only recovery can tell of which slots. Waits for a descriptor where there is none."""
        cdef int error = 0
        syncfs(self.data_fd)        # where each file is synced too: writes all of them back at once, which is faster
        if self.syncs_files:
            with nogil:
                error = self._sync_files()
        if error:
            raise OSError(error, os.strerror(error))

    cdef int _sync_files(self) noexcept nogil:
        return 0

    def flush_done(self):
        """The `sync` that was started last has returned."""
        self.flushing_count = 0

    @property
    def wants_flush(self):
        """Whether so much is dirty that the next flush should not wait for its time."""
        return self.dirty_count >= self.dirty_max // 2

    def claims(self):
        """{pack: claimed slots} of the open packs, counted anew from their bits."""
        cdef int i, slot, count
        cdef pack_state *p
        found = {}
        for i in range(self.table.mask + 1):
            p = pack_table_at(&self.table, i).pack
            if p == NULL:
                continue
            count = 0
            for slot in range(p.slots):
                count += bit_get(p.claimed, slot)
            assert count == p.claimed_count, f"pack {p.id} has {count} slots claimed and counts {p.claimed_count}"
            if count:
                found[p.id] = count
        return found
