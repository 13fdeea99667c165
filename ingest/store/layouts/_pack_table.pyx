# distutils: depends = ingest/csrc/pack_table.h ingest/csrc/pack_file.h ingest/csrc/beneath.h ingest/csrc/ticket.h ingest/csrc/slot_writer.h
"""The table of layout pack: `_open_packs`, and what recovery needs besides: what the log has is brought into the packs once
more, and lost headers are made anew. Speed does not matter there.
"""

from cpython.bytes cimport PyBytes_AS_STRING
from libc.errno cimport EAGAIN, EBADMSG, errno
from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memcpy, memset
from posix.unistd cimport close

from ingest.runtime._failpoints cimport (
    STEP_BITS_SET, STEP_SLOTS_WRITTEN, STEP_TOMBSTONE_WRITTEN, WAY_RECOVERY, failpoint_passed, failpoints_armed,
)
from ingest.store.layouts._open_packs cimport OpenPacks, new_header
from ingest.store.layouts._slot_table cimport PACK_PRESENT, PACK_SECTOR, SLOT_DELETED, pack_state, slots_alike

import os

from ingest.errors import CorruptionError


cdef extern from "csrc/frame.h" nogil:
    pass

cdef extern from "csrc/pack_table.h" nogil:
    enum: PACK_BITMAP
    enum: EMEDIUMTYPE
    enum: PACK_HEADER_SIZE
    enum: ROOT_PACK_SLOTS
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


cdef int REPLAYED_MAX = 1024                       # packs that recovery keeps open until their headers are written


class LostHeaderError(CorruptionError):
    """The header of ``pack`` fails its check."""

    def __init__(self, pack, message):
        super().__init__(message)
        self.pack = pack


cdef class PackTable(OpenPacks):
    """Packs of a store, as its one writer has them: first recovery, then the committer."""

    def __cinit__(self, int data_fd, bytes store_id, int open_max):
        self._replayed = set()

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
        if p == NULL and error == EAGAIN and self._replayed:
            self.write_headers()        # then they may be closed
            error = 0
            p = self.get(pack, &error)
        if p == NULL and error == EAGAIN and self.syncs_files:
            self.flush_begins()
            self.sync()
            self.flush_done()
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

    def replay_puts(self, const uint8_t[::1] frames):
        """Writes frames (n · 1474 bytes) into their slots and sets their bits, but for slots that were deleted since.

        Writes what is there already once more: the disk may not have it. Headers are written by `write_headers`.
        Raises LostHeaderError for a pack that can't be opened because of its header; then nothing is lost by doing
        all of it again.
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
            p = self._must(ticket_pack(first))
            slot = ticket_slot(first)
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
            self.mark_dirty(p, 1)
            self._replayed.add(p.id)
            i += count
            if len(self._replayed) > REPLAYED_MAX:
                self.write_headers()

    def write_headers(self):
        """Writes the headers of all packs that were replayed to, changed or not."""
        for pack in self._replayed:
            self.rewrite_header(pack)
            if failpoints_armed:
                failpoint_passed(STEP_BITS_SET, WAY_RECOVERY)
        self._replayed.clear()

    def replay_note(self, int64_t pack, int slot, int count):
        """Sets the bits of slots whose frames were synced before the log said so."""
        cdef pack_state *p = self._must(pack)
        cdef int done = 0, alike, state
        if slot < 0 or count < 1 or slot + count > p.slots:
            raise CorruptionError(f"pack {pack} has no slots {slot} to {slot + count - 1}")
        while done < count:
            alike = slots_alike(p, slot + done, count - done, &state)
            if state != SLOT_DELETED:
                self.set_present(p, slot + done, alike)
            done += alike
        self.mark_dirty(p, 1)
        self._replayed.add(pack)

    def replay_delete(self, int64_t pack, int slot, int count):
        """Marks slots deleted, then zeroes them."""
        cdef pack_state *p = self._must(pack)
        cdef int error
        if slot < 0 or count < 1 or slot + count > p.slots:
            raise CorruptionError(f"pack {pack} has no slots {slot} to {slot + count - 1}")
        self.set_deleted(p, slot, count)
        error = self._write_header(p)
        if failpoints_armed and error == 0:
            failpoint_passed(STEP_TOMBSTONE_WRITTEN, WAY_RECOVERY)
        if error == 0:
            error = pack_zero_slots(p, slot, count)
        if error:
            raise OSError(error, os.strerror(error), f"pack {pack}")
        self.mark_dirty(p, 1)

    def rewrite_header(self, int64_t pack):
        """Writes a pack's header, changed or not: after a failed sync the page cache may claim what the disk lacks."""
        cdef pack_state *p = self._must(pack)
        p.touched = 1
        cdef int error = self._write_header(p)
        if error:
            raise OSError(error, os.strerror(error))
        self.mark_dirty(p, 1)

    def read(self, int64_t pack):
        """All bytes of a pack's file, whatever state its header is in."""
        cdef char path[32]
        pack_path(pack, path)
        cdef int fd = open_beneath(self.data_fd, path, O_RDONLY, 0)
        if fd < 0:
            raise OSError(errno, os.strerror(errno), path.decode())
        with os.fdopen(fd, "rb") as file:
            return file.read(PACK_HEADER_SIZE + ROOT_PACK_SLOTS * 1474)

    def install_header(self, int64_t pack, const uint8_t[::1] bits):
        """Gives a pack whose header was lost a new one: `bits` are its present and deleted bitmaps, 168 bytes each."""
        cdef char path[32]
        cdef pack_state state
        if bits.shape[0] != 2 * PACK_BITMAP:
            raise ValueError("two bitmaps of 168 bytes")
        memset(&state, 0, sizeof(pack_state))
        state.id = pack
        pack_path(pack, path)
        state.fd = open_beneath(self.data_fd, path, O_RDWR, 0)
        if state.fd < 0:
            raise OSError(errno, os.strerror(errno), path.decode())
        new_header(state.header, pack, <const uint8_t *>PyBytes_AS_STRING(self.store_id))
        memcpy(state.header + PACK_PRESENT, &bits[0], 2 * PACK_BITMAP)
        cdef int error = self._create(&state)
        close(state.fd)
        if error:
            raise OSError(error, os.strerror(error), path.decode())
