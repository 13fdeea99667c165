# distutils: depends = ingest/csrc/pack_table.h ingest/csrc/pack_file.h ingest/csrc/beneath.h ingest/csrc/ticket.h ingest/csrc/slot_writer.h
"""The table of layout pack: `_open_packs`, and what recovery needs besides: what the log has is brought into the packs once
more, and lost headers are made anew.
"""

from cpython.bytes cimport PyBytes_AS_STRING
from libc.errno cimport EAGAIN, EBADMSG, EMFILE, ENFILE, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.string cimport memcpy, memset
from posix.unistd cimport close

from ingest.runtime._failpoints cimport (
    STEP_BITS_SET, STEP_SLOTS_WRITTEN, STEP_TOMBSTONE_WRITTEN, WAY_RECOVERY, failpoint_passed, failpoints_armed,
)
from ingest.store.layouts._open_packs cimport OpenPacks, new_header
from ingest.store.layouts._slot_table cimport PACK_PRESENT, PACK_SECTOR, SLOT_DELETED, pack_state, pack_table, slots_alike

import os

from ingest import limits
from ingest.errors import CorruptionError


cdef extern from "csrc/frame.h" nogil:
    pass

cdef extern from "csrc/pack_table.h" nogil:
    ctypedef struct pack_entry:
        pack_state *pack
    pack_entry *pack_table_at(pack_table *t, int i)
    int pack_table_evict(pack_table *t)
    enum: PACK_BITMAP
    enum: EMEDIUMTYPE
    enum: PACK_HEADER_SIZE
    enum: ROOT_PACK_SLOTS
    enum: PACK_SLOTS
    int64_t slot_offset(int slot)
    int pwrite_all(int fd, const uint8_t *data, size_t size, int64_t offset)
    int pack_zero_slots(pack_state *p, int slot, int count)
    void pack_path(int64_t id, char *path)
    int open_beneath(int root, const char *path, int flags, unsigned mode)
    int64_t ticket_index(const uint8_t *t)
    int64_t ticket_pack(int64_t index)
    int ticket_slot(int64_t index)
    int frames_run(const uint8_t *frames, int n, int64_t first)
    int O_RDWR
    int O_RDONLY


cdef int UNWRITTEN_MAX = limits.REPLAYED_PACKS_MAX


class LostHeaderError(CorruptionError):
    """The header of ``pack`` fails its check."""

    def __init__(self, pack, message):
        super().__init__(message)
        self.pack = pack


cdef class PackTable(OpenPacks):
    """Packs of a store, as its one writer has them: first recovery, then the committer.

    What is replayed to a pack leaves it *touched* until its header is written. A touched pack stays open, so the headers
    that are owed are those of open packs, and nothing has to be opened to write them.
    ``lost``: takes what is replayed to packs whose headers are lost (`lost_headers`); None: those are errors.
    """

    def header(self, int64_t pack):
        """The 512 header bytes of a pack as they are in memory; opens (or makes) it. Raises OSError, CorruptionError."""
        cdef pack_state *p = self._must(pack)
        cdef int error = self._create(p) if p.fresh else 0
        if error:
            raise OSError(error, os.strerror(error), f"pack {pack}")
        return <bytes>p.header[:PACK_SECTOR]

    cdef pack_state *_must(self, int64_t pack) except NULL:
        cdef int error = 0
        cdef char path[32]
        cdef pack_state *p = self.get(pack, &error)
        if p == NULL and error == EAGAIN and self._unwritten:
            self.write_headers()        # then they may be closed
            error = 0
            p = self.get(pack, &error)
        if p == NULL and error == EAGAIN and self.syncs_files:
            self._sync_now()
            error = 0
            p = self.get(pack, &error)
        if p == NULL:
            pack_path(pack, path)
            if error == EBADMSG:
                raise LostHeaderError(pack, f"{path.decode()}: the pack's header fails its check")
            if error == EMEDIUMTYPE:
                raise CorruptionError(f"{path.decode()}: this is another store's pack, another pack, or of a format version "
                                      "that this program does not know; put it back where it belongs")
            raise OSError(error, os.strerror(error), path.decode())
        self._written(p)        # or will be
        return p

    cdef pack_state *_to_replay(self, int64_t pack) except? NULL:
        """The pack, opened, to replay to. NULL: its header is lost, and `lost` takes what is for it."""
        if self.lost is None:
            return self._must(pack)
        if pack not in self.lost:
            try:
                return self._must(pack)
            except LostHeaderError:
                self.lost.add(pack)
        return NULL

    cdef int _owe(self, pack_state *p) except -1:
        """Its header is to be written, changed or not: after a failed sync the page cache may claim what the disk lacks."""
        self._unwritten += not p.touched
        p.touched = 1
        return self.mark_dirty(p, 1)

    def replay_puts(self, const uint8_t[::1] frames):
        """Writes frames (n · 1474 bytes) into their slots and sets their bits, but for slots that were deleted since.

        Writes what is there already once more: the disk may not have it. Headers are written by `write_headers`.
        Raises LostHeaderError for a pack that can't be opened because of its header, unless there is somebody who
        takes its frames.
        """
        cdef Py_ssize_t n = frames.shape[0] // 1474, i = 0
        cdef int count, done, alike, state = 0, error = 0, slot
        cdef int64_t first
        cdef pack_state *p
        if frames.shape[0] == 0:
            return
        while i < n:
            first = ticket_index(&frames[i * 1474])
            if first < 0:
                raise CorruptionError("the log holds a frame with a malformed ticket")
            count = frames_run(&frames[i * 1474], <int>(n - i), first)
            slot = ticket_slot(first)
            p = self._to_replay(ticket_pack(first))
            if p == NULL:
                self.lost.put(ticket_pack(first), slot, frames[i * 1474 : (i + count) * 1474])
                i += count
                continue
            self._owe(p)
            done = 0
            with nogil:
                if p.fresh:
                    error = self._create(p)     # the log has its frames; workers read meanwhile
                while done < count and error == 0:
                    alike = slots_alike(p, slot + done, count - done, &state)
                    if state != SLOT_DELETED:
                        error = pwrite_all(p.fd, &frames[(i + done) * 1474], <size_t>alike * 1474, slot_offset(slot + done))
                        self.set_present(p, slot + done, alike)
                    done += alike
            if error:
                raise OSError(error, os.strerror(error), f"pack {p.id}")
            if failpoints_armed:
                failpoint_passed(STEP_SLOTS_WRITTEN, WAY_RECOVERY)
            i += count
            if self._unwritten >= UNWRITTEN_MAX:
                self.write_headers()

    def write_headers(self):
        """Writes the headers of all packs that were replayed to, changed or not."""
        cdef uint32_t i
        cdef int error
        cdef pack_state *p
        for i in range(self.table.mask + 1):
            p = pack_table_at(&self.table, i).pack
            if p == NULL or not p.touched:
                continue
            error = self._write_header(p)
            if error:
                p.touched = 1           # still owed
                raise OSError(error, os.strerror(error), f"pack {p.id}")
            if failpoints_armed:
                failpoint_passed(STEP_BITS_SET, WAY_RECOVERY)
        self._unwritten = 0

    def replay_note(self, int64_t pack, int slot, int count):
        """Sets the bits of slots whose frames were synced before the log said so."""
        cdef pack_state *p = self._to_replay(pack)
        cdef int done = 0, alike, state
        self._check_slots(pack, slot, count)
        if p == NULL:
            self.lost.note(pack, slot, count)
            return
        self._owe(p)
        while done < count:
            alike = slots_alike(p, slot + done, count - done, &state)
            if state != SLOT_DELETED:
                self.set_present(p, slot + done, alike)
            done += alike

    def replay_delete(self, int64_t pack, int slot, int count):
        """Marks slots deleted, then zeroes them."""
        cdef pack_state *p = self._to_replay(pack)
        cdef int error
        self._check_slots(pack, slot, count)
        if p == NULL:
            self.lost.delete(pack, slot, count)
            return
        self._owe(p)
        self.set_deleted(p, slot, count)
        error = self._write_header(p)
        if failpoints_armed and error == 0:
            failpoint_passed(STEP_TOMBSTONE_WRITTEN, WAY_RECOVERY)
        if error == 0:
            error = pack_zero_slots(p, slot, count)
        if error:
            raise OSError(error, os.strerror(error), f"pack {pack}")

    cdef int _check_slots(self, int64_t pack, int slot, int count) except -1:
        if slot < 0 or count < 1 or slot + count > (ROOT_PACK_SLOTS if pack == 0 else PACK_SLOTS):
            raise CorruptionError(f"pack {pack} has no slots {slot} to {slot + count - 1}")
        return 0

    def rewrite_header(self, int64_t pack):
        """Writes a pack's header, changed or not, and counts the pack as dirty."""
        cdef pack_state *p = self._must(pack)
        self._owe(p)
        cdef int error = self._write_header(p)
        if error:
            raise OSError(error, os.strerror(error))

    def _sync_now(self):
        """A flush in the middle of recovery: then what is not synced may be closed."""
        self.flush_begins()
        self.sync()
        self.flush_done()

    # --- packs whose headers are lost: they are not in the table

    cdef int _open_file(self, int64_t pack, int flags) except -1:
        """A descriptor of a pack's file, whatever state its header is in. Packs are closed for it when there is none."""
        cdef char path[32]
        cdef int fd, error, evicted
        pack_path(pack, path)
        while True:
            fd = open_beneath(self.data_fd, path, flags, 0)
            if fd >= 0:
                return fd
            error = errno
            if error == EMFILE or error == ENFILE:
                evicted = pack_table_evict(&self.table)
                if evicted < 0 and self._unwritten:
                    self.write_headers()
                    evicted = pack_table_evict(&self.table)
                if evicted < 0 and self.syncs_files:
                    self._sync_now()
                    evicted = pack_table_evict(&self.table)
                if evicted == 0:
                    continue
            raise OSError(error, os.strerror(error), path.decode())

    def read(self, int64_t pack):
        """All bytes of a pack's file, whatever state its header is in."""
        with os.fdopen(self._open_file(pack, O_RDONLY), "rb") as file:
            return file.read(PACK_HEADER_SIZE + ROOT_PACK_SLOTS * 1474)

    def write_slots(self, int64_t pack, int slot, const uint8_t[::1] frames):
        """Writes frames (n · 1474 bytes) into the slots of a pack whose header is lost; no bit says so."""
        cdef int fd, error
        self._check_slots(pack, slot, <int>(frames.shape[0] // 1474))
        fd = self._open_file(pack, O_RDWR)
        with nogil:
            error = pwrite_all(fd, &frames[0], <size_t>frames.shape[0], slot_offset(slot))
            close(fd)
        if error:
            raise OSError(error, os.strerror(error), f"pack {pack}")
        if failpoints_armed:
            failpoint_passed(STEP_SLOTS_WRITTEN, WAY_RECOVERY)

    def install_header(self, int64_t pack, const uint8_t[::1] bits):
        """Gives a pack whose header was lost a new one: `bits` are its present and deleted bitmaps, 168 bytes each."""
        cdef pack_state state
        if bits.shape[0] != 2 * PACK_BITMAP:
            raise ValueError("two bitmaps of 168 bytes")
        memset(&state, 0, sizeof(pack_state))
        state.id = pack
        state.fd = self._open_file(pack, O_RDWR)
        new_header(state.header, pack, <const uint8_t *>PyBytes_AS_STRING(self.store_id))
        memcpy(state.header + PACK_PRESENT, &bits[0], 2 * PACK_BITMAP)
        cdef int error = self._create(&state)
        close(state.fd)
        if error:
            raise OSError(error, os.strerror(error), f"pack {pack}")
