# distutils: depends = ingest/csrc/tree_file.h ingest/csrc/pack_table.h ingest/csrc/pack_file.h ingest/csrc/beneath.h ingest/csrc/ticket.h
"""Layout tree as the committer writes it: a file for each ticket. `docs/format.md`, "Layout tree".

Nothing stays open between two calls; what is kept of a pack is what was learnt of its slots. The committer is the only
writer, so that stays true.
"""

from libc.errno cimport EBADMSG, EISDIR, ELOOP, ENOENT, ENOTDIR, ENXIO
from libc.stdint cimport int64_t, uint8_t
from libc.stdlib cimport free

from ingest.runtime._failpoints cimport (
    STEP_BITS_SET, STEP_SLOTS_WRITTEN, STEP_TOMBSTONE_WRITTEN, WAY_RECOVERY, failpoint_passed, failpoints_armed,
)
from ingest.store.layouts._slot_table cimport (
    PACK_DELETED, PACK_PRESENT, SLOT_DELETED, SlotTable, bit_get, pack_state, slots_alike,
    unsynced_clear, unsynced_files, unsynced_init, unsynced_sync,
)

import os

from ingest import limits, sharding
from ingest.errors import CorruptionError


cdef extern from "csrc/frame.h" nogil:
    int64_t ticket_index(const uint8_t *t)
    int64_t ticket_pack(int64_t index)
    int ticket_slot(int64_t index)
    int64_t slot_ticket(int64_t pack, int slot)
    int frames_run(const uint8_t *frames, int n, int64_t first)

cdef extern from "csrc/tree_file.h" nogil:
    enum tree_work:
        TREE_KNOW
        TREE_WRITE
        TREE_WRITE_AGAIN
        TREE_ERASE
    int tree_do(int root, pack_state *p, int slot, int count, tree_work work, const uint8_t *frames,
                unsynced_files *unsynced)
    void tree_file_path(int64_t index, char *path)
    int tree_knows(const pack_state *p, int slot, int count)
    int tree_read_frame(int root, int64_t index, uint8_t *frame)

cdef extern from "unistd.h" nogil:
    int fsync(int fd)

cdef int DIRTY_MAX = limits.DIRTY_FILES_MAX // 2   # half, because as many may be in the flush that is under way


cdef bint _is_damage(int error) noexcept nogil:
    """Whether there is no whole file where one must be: missing, of a wrong length or checksum, or something else. Any other
    errno says nothing of the file."""
    return (error == ENOENT or error == EBADMSG or error == ENOTDIR or error == EISDIR or error == ELOOP
            or error == ENXIO)


cdef class TreeTable(SlotTable):
    """Tickets' files below ``data_fd`` (a descriptor of DATA); the states of at most ``open_max`` packs are kept.

    Where each file is synced, at most ``open_max`` of them are kept open for that."""

    def __cinit__(self, int data_fd, bytes store_id, int open_max):
        if unsynced_init(&self._written, open_max // 2) < 0 or unsynced_init(&self._syncing, open_max // 2) < 0:
            raise MemoryError
        self.dirty_max = DIRTY_MAX
        self.bulk_jobs = 0
        self.erase_max = limits.BATCH_ERASED_FILES_MAX
        self.inodes_reserve = limits.RESERVE_INODES_TREE

    def __dealloc__(self):
        self._close_written()
        free(self._written.files)
        free(self._syncing.files)

    def close(self):
        SlotTable.close(self)
        self._close_written()

    cdef void _close_written(self) noexcept:
        unsynced_clear(&self._written, 1)
        unsynced_clear(&self._syncing, 1)

    def sync_each_file(self):
        """As `SlotTable` says. Files stay open until they are synced, so fewer may be dirty: one more is synced at once."""
        SlotTable.sync_each_file(self)
        self._written.spares = self._syncing.spares = &self._spares
        self.dirty_max = min(limits.UNSYNCED_FILES_MAX // 2, self._written.max)

    def flush_begins(self):
        SlotTable.flush_begins(self)
        self._written, self._syncing = self._syncing, self._written

    def flush_done(self):
        SlotTable.flush_done(self)
        unsynced_clear(&self._syncing, 1)

    cdef int _sync_files(self) noexcept nogil:
        return unsynced_sync(&self._syncing, self.data_fd, &fsync, &tree_file_path)

    cdef unsynced_files *_unsynced(self) noexcept nogil:
        return &self._written if self.syncs_files else NULL

    cdef int _know(self, pack_state *p, int slot, int count) noexcept nogil:
        if tree_knows(p, slot, count):
            return 0
        self.looked += count
        return tree_do(self.data_fd, p, slot, count, TREE_KNOW, NULL, NULL)

    cdef int mark_dirty(self, pack_state *p, int count) except -1:
        self.dirty_count += count
        return 0

    cdef int new_tombstones(self, pack_state *p, int slot, int count) noexcept nogil:
        cdef int i, made = count
        for i in range(slot, slot + count):
            made -= bit_get(p.header + PACK_PRESENT, i) or bit_get(p.header + PACK_DELETED, i)
        return made

    cdef int write(self, pack_state *p, int slot, int count, const uint8_t *frames) noexcept nogil:
        return tree_do(self.data_fd, p, slot, count, TREE_WRITE, frames, self._unsynced())    # of known slots: who claimed them knew

    cdef int publish(self, pack_state *p) noexcept nogil:
        p.touched = 0
        return 0

    cdef int erase(self, pack_state *p, int slot, int count) noexcept nogil:
        return tree_do(self.data_fd, p, slot, count, TREE_ERASE, NULL, self._unsynced())

    cdef int64_t allocated(self, pack_state *p) noexcept nogil:
        cdef int i, stored = 0
        for i in range(p.slots):
            stored += bit_get(p.header + PACK_PRESENT, i)
        return stored * 1474        # a deleted ticket's file gives all of it back

    cdef int read_slots(self, pack_state *p, int slot, int count, uint8_t *frames) noexcept nogil:
        cdef int i, error
        for i in range(count):
            error = tree_read_frame(self.data_fd, slot_ticket(p.id, slot + i), frames + <size_t>i * 1474)
            if error != 0 and not _is_damage(error):
                return error
        return 0

    # --- for recovery and tests

    cdef pack_state *_must(self, int64_t pack, int slot, int count) except NULL:
        cdef int error = 0
        cdef pack_state *p = self.get(pack, &error)
        if p == NULL:
            raise OSError(error, os.strerror(error), _below(pack))
        if slot < 0 or count < 1 or slot + count > p.slots:
            raise CorruptionError(f"pack {pack} has no slots {slot} to {slot + count - 1}")
        error = self._know(p, slot, count)
        if error:
            raise OSError(error, os.strerror(error), _below(pack))
        return p

    def replay_puts(self, const uint8_t[::1] frames):
        """Writes the files of frames (n · 1474 bytes), but for tickets that were deleted since.

        Writes what is there already once more: the disk may not have it. OSError from the disk.
        """
        cdef Py_ssize_t n = frames.shape[0] // 1474, i = 0
        cdef int count, done, alike, state = 0, error = 0, slot
        cdef int64_t first
        cdef pack_state *p
        while i < n:
            first = ticket_index(&frames[i * 1474])
            if first < 0:
                raise CorruptionError("the log holds a frame with a malformed ticket")
            count = frames_run(&frames[i * 1474], <int>(n - i), first)
            slot = ticket_slot(first)
            p = self._must(ticket_pack(first), slot, count)
            done = 0
            with nogil:
                while done < count and error == 0:
                    alike = slots_alike(p, slot + done, count - done, &state)
                    if state != SLOT_DELETED:
                        error = tree_do(self.data_fd, p, slot + done, alike, TREE_WRITE_AGAIN, &frames[(i + done) * 1474],
                                        self._unsynced())
                        self.set_present(p, slot + done, alike)
                    done += alike
                self.publish(p)
            if error:
                raise OSError(error, os.strerror(error), _below(p.id))
            if failpoints_armed:
                failpoint_passed(STEP_SLOTS_WRITTEN, WAY_RECOVERY)
                failpoint_passed(STEP_BITS_SET, WAY_RECOVERY)
            self.mark_dirty(p, count)
            i += count

    def replay_note(self, int64_t pack, int slot, int count):
        """Raises CorruptionError: notes are of long runs in layout pack."""
        raise CorruptionError(f"the log notes slots of pack {pack}, but the layout of this store is tree")

    def replay_delete(self, int64_t pack, int slot, int count):
        """Leaves tombstones, also where nothing is stored. OSError from the disk."""
        cdef pack_state *p = self._must(pack, slot, count)
        cdef int error
        with nogil:
            self.set_deleted(p, slot, count)
            error = self.erase(p, slot, count)
            self.publish(p)
        if error:
            raise OSError(error, os.strerror(error), _below(pack))
        if failpoints_armed:
            failpoint_passed(STEP_TOMBSTONE_WRITTEN, WAY_RECOVERY)
        self.mark_dirty(p, count)

    def write_headers(self):
        """There is nothing left to do behind `replay_puts`."""


def _below(pack):
    """Where the files of a pack lie below DATA, for a message."""
    return (sharding.pack_path(pack).removesuffix("obj") or "./") + "…"
