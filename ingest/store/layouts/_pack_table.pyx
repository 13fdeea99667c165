# distutils: depends = ingest/csrc/pack_table.h ingest/csrc/pack_file.h ingest/csrc/beneath.h ingest/csrc/ticket.h ingest/csrc/slot_writer.h
"""Layout pack as the committer writes it: the packs that it has open, their bits, their files.

The only writer of pack headers in a running server. The header of an open pack is kept in memory (it is
authoritative) and written whole, one sector, after each change.
"""

from cpython.bytes cimport PyBytes_AS_STRING
from libc.errno cimport EAGAIN, EBADMSG, EINVAL, ENOENT, ENOSPC, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memset
from posix.unistd cimport close

from ingest.runtime._failpoints cimport (
    STEP_BITS_SET, STEP_SLOTS_WRITTEN, STEP_TOMBSTONE_WRITTEN, WAY_RECOVERY, failpoint_passed, failpoints_armed,
)
from ingest._hmac cimport hmac_digest504, hmac_digests504
from ingest.store.layouts._slot_table cimport (
    PACK_DELETED, PACK_PRESENT, PACK_SECTOR, SLOT_DELETED, SlotTable, pack_state, pack_table, slots_alike,
)

import os

from ingest import limits
from ingest.errors import CorruptionError


cdef extern from "csrc/frame.h" nogil:
    pass

cdef extern from "csrc/pack_table.h" nogil:
    ctypedef struct pack_entry:
        pack_state *pack
    pack_entry *pack_table_at(pack_table *t, int i)
    enum: HEADER_DURABLE
    enum: HEADER_CACHED
    enum: HEADER_FLUSHING
    enum: PACK_BITMAP
    enum: EMEDIUMTYPE
    enum: PACK_HEADER_SIZE
    enum: PACK_GENERATION
    enum: PACK_DIGEST
    int64_t slot_offset(int slot)
    int pwrite_all(int fd, const uint8_t *data, size_t size, int64_t offset)
    int pread_all(int fd, uint8_t *data, size_t size, int64_t offset)
    int pack_zero_slots(pack_state *p, int slot, int count)
    void pack_path(int64_t id, char *path)
    int64_t file_size(int fd)
    int64_t file_allocated(int fd)
    int open_beneath(int root, const char *path, int flags, unsigned mode)
    uint64_t get_be(const uint8_t *p, int n)
    int pack_create_direct(int fd, const uint8_t *header)
    int directory_beneath(int root, const char *path, int make, const char **name)
    void put_be(uint8_t *p, uint64_t v, int n)
    int ticket_write_value(int64_t v, uint8_t *t)
    int64_t ticket_index(const uint8_t *t)
    int64_t ticket_pack(int64_t index)
    int ticket_slot(int64_t index)
    int frames_run(const uint8_t *frames, int n, int64_t first)
    enum: ROOT_PACK_SLOTS
    enum: PACK_SLOTS
    int O_RDWR
    int O_RDONLY
    int O_CREAT
    int ftruncate(int fd, int64_t length)


cdef int DIRTY_MAX = limits.DIRTY_PACKS_MAX // 2   # half, because as many may be in the flush that is under way


cdef enum:
    HEADERS_AT_ONCE = 64                           # whose digests are computed before they are written

cdef int REPLAYED_MAX = 1024                       # packs that recovery keeps open until their headers are written


class LostHeaderError(CorruptionError):
    """The header of ``pack`` fails its check."""

    def __init__(self, pack, message):
        super().__init__(message)
        self.pack = pack


cdef void new_header(uint8_t *header, int64_t pack, const uint8_t *store_id) noexcept nogil:
    """A header without any bit; docs/format.md, "Packs"."""
    memset(header, 0, PACK_SECTOR)
    memcpy(header, b"INGPACK1", 8)
    put_be(header + 8, 1, 4)
    put_be(header + 12, ROOT_PACK_SLOTS if pack == 0 else PACK_SLOTS, 4)
    ticket_write_value(pack, header + 16)
    memcpy(header + 24, store_id, 16)


cdef int check_header(const uint8_t *header, int64_t pack, const uint8_t *store_id) noexcept nogil:
    """0 when `header` is whole and is that of `pack` in this store; EBADMSG when it is lost, EMEDIUMTYPE when it is
    whole, but of another version, store or place: nobody may take that for lost and write over it."""
    cdef uint8_t expected[PACK_SECTOR]
    cdef uint8_t tag[8]
    hmac_digest504(header, tag)
    if memcmp(tag, header + PACK_DIGEST, 8) != 0:
        return EBADMSG
    new_header(expected, pack, store_id)
    return 0 if memcmp(expected, header, PACK_GENERATION) == 0 else EMEDIUMTYPE


cdef int write_slots(const slot_write *writes, int count) noexcept nogil:
    cdef int i, error
    for i in range(count):
        error = pwrite_all(writes[i].fd, writes[i].frames, writes[i].size, writes[i].offset)
        if error:
            return error
    return 0


cdef class PackTable(SlotTable):
    """Packs below ``data_fd`` (a descriptor of DATA), at most ``open_max`` of them open at a time."""

    def __cinit__(self, int data_fd, bytes store_id, int open_max):
        self.store_id = store_id
        self.hides_slots = True
        self._later = <slot_write *>calloc(limits.BATCH_FRAMES_MAX, sizeof(slot_write))
        if self._later == NULL:
            raise MemoryError
        self._replayed = set()
        self._dirty_last = -1
        self.dirty_max = DIRTY_MAX
        self.bulk_jobs = limits.BULK_JOBS
        self.inodes_reserve = limits.RESERVE_INODES
        self.erase_max = 0x7fffffff      # a pack's worth takes two system calls

    def __dealloc__(self):
        slot_writer_stop(&self._writer)
        free(self._later)

    def close(self):
        slot_writer_end(&self._writer)      # of a batch that nobody waits for: its descriptors are in use until then
        SlotTable.close(self)

    # --- layout pack

    cdef bint _may_get_dirty(self, int64_t pack) noexcept:
        return self.dirty_count < DIRTY_MAX or pack in self._dirty

    cdef int mark_dirty(self, pack_state *p, int count) except -1:
        if p.id != self._dirty_last:
            self._dirty.add(p.id)
            self._dirty_last = p.id
            self.dirty_count = len(self._dirty)
        return 0

    def flush_begins(self):
        SlotTable.flush_begins(self)
        self._dirty_last = -1
        self._advance_headers(HEADER_CACHED, HEADER_FLUSHING)

    def flush_done(self):
        SlotTable.flush_done(self)
        self._advance_headers(HEADER_FLUSHING, HEADER_DURABLE)

    cdef void _advance_headers(self, int state, int following) noexcept nogil:
        cdef uint32_t i
        cdef pack_state *p
        for i in range(self.table.mask + 1):
            p = pack_table_at(&self.table, i).pack
            if p != NULL and p.header_cached == state:
                p.header_cached = following

    cdef int write(self, pack_state *p, int slot, int count, const uint8_t *frames) noexcept nogil:
        cdef int error = self._create(p) if p.fresh else 0
        if error:
            return error
        return pwrite_all(p.fd, frames, <size_t>count * 1474, slot_offset(slot))

    cdef void write_later(self, pack_state *p, int slot, int count, const uint8_t *frames) noexcept nogil:
        cdef slot_write *w = &self._later[self._later_count]
        self._later_count += 1
        w.fd = p.fd
        w.frames = frames
        w.size = <size_t>count * 1474
        w.offset = slot_offset(slot)

    cdef bint begin_writes(self) noexcept nogil:
        cdef int count = self._later_count
        self._later_count = 0
        if not self._writer.started and slot_writer_start(&self._writer, &write_slots) != 0:
            return False
        slot_writer_begin(&self._writer, self._later, count)
        return True

    cdef int end_writes(self) noexcept nogil:
        return slot_writer_end(&self._writer)

    cdef int publish(self, pack_state *p) noexcept nogil:
        return self._write_header(p)

    cdef int publish_all(self, pack_state **packs, int n) noexcept nogil:
        """Like `publish`, with the digests of many headers side by side."""
        cdef const uint8_t *headers[HEADERS_AT_ONCE]
        cdef uint8_t tags[HEADERS_AT_ONCE * 8]
        cdef pack_state *p
        cdef int i, first = 0, some, error
        while first < n:
            some = min(n - first, <int>HEADERS_AT_ONCE)
            for i in range(some):
                headers[i] = packs[first + i].header
                self._count_generation(packs[first + i])
            hmac_digests504(headers, some, tags)
            for i in range(some):
                p = packs[first + i]
                memcpy(p.header + PACK_DIGEST, tags + 8 * i, 8)
                p.touched = 0
                error = pwrite_all(p.fd, p.header, PACK_SECTOR, 0)     # not fresh: its slots are written
                if error:
                    return error
            first += some
        return 0

    cdef int erase(self, pack_state *p, int slot, int count) noexcept nogil:
        return pack_zero_slots(p, slot, count)

    cdef int64_t allocated(self, pack_state *p) noexcept nogil:
        return file_allocated(p.fd)

    cdef int read_slots(self, pack_state *p, int slot, int count, uint8_t *frames) noexcept nogil:
        return pread_all(p.fd, frames, <size_t>count * 1474, slot_offset(slot))

    cdef int _open(self, pack_state *p) noexcept:
        cdef char path[32]
        cdef const char *name
        cdef int directory, attempt, error = 0
        cdef int64_t size
        cdef int flags = O_RDWR | O_CREAT if self.may_create else O_RDWR
        cdef const uint8_t *store_id = <const uint8_t *>PyBytes_AS_STRING(self.store_id)
        cdef uint8_t zeros[PACK_SECTOR]
        p.fd = -1
        pack_path(p.id, path)
        with nogil:
            p.fd = open_beneath(self.data_fd, path, flags, 0o600)
            if p.fd < 0 and errno == ENOENT and not self.may_create:
                return ENOSPC
            if p.fd < 0 and errno == ENOENT:
                directory = directory_beneath(self.data_fd, path, 1, &name)
                if directory >= 0:
                    close(directory)
                    p.fd = open_beneath(self.data_fd, path, O_RDWR | O_CREAT, 0o600)
            if p.fd < 0:
                return errno
            for attempt in range(2):
                error = pread_all(p.fd, p.header, PACK_SECTOR, 0)
                if error != 0:
                    return error
                error = check_header(p.header, p.id, store_id)
                if error == 0:
                    p.header_cached = HEADER_CACHED     # for all we know: a committer before us may have written it
                    return 0
            memset(zeros, 0, PACK_SECTOR)
            size = file_size(p.fd)
            if size < 0:
                return errno
            if memcmp(p.header, zeros, PACK_SECTOR) != 0 or size != 0:
                return error
            if not self.may_create:
                return ENOSPC
            new_header(p.header, p.id, store_id)
            p.fresh = 1
            return 0

    cdef int create_past_cache(self, pack_state *p) noexcept nogil:
        cdef int error
        if not p.fresh:
            return 0
        self._seal(p)
        error = pack_create_direct(p.fd, p.header)
        if error == EINVAL:
            return self._create(p)      # no O_DIRECT on this file system
        if error:
            ftruncate(p.fd, 0)          # half a header would be taken for a lost one
            return error
        self.created += 1
        p.fresh = p.touched = 0
        return 0

    cdef int _create(self, pack_state *p) noexcept nogil:
        """Writes the header page of a new pack. Only when the log has what goes into it: a power cut may leave the size
        of the file and not the header."""
        cdef uint8_t page[4096]
        cdef int error
        memset(page, 0, 4096)
        self._seal(p)
        memcpy(page, p.header, PACK_SECTOR)
        error = pwrite_all(p.fd, page, 4096, 0)
        if error:
            if p.fresh and file_size(p.fd) <= PACK_HEADER_SIZE:
                ftruncate(p.fd, 0)      # half a header would be taken for a lost one
            return error
        self.created += p.fresh
        p.fresh = p.touched = 0
        p.header_cached = HEADER_CACHED
        return 0

    cdef void _count_generation(self, pack_state *p) noexcept nogil:
        put_be(p.header + PACK_GENERATION, get_be(p.header + PACK_GENERATION, 8) + 1, 8)

    cdef void _seal(self, pack_state *p) noexcept nogil:
        self._count_generation(p)
        hmac_digest504(p.header, p.header + PACK_DIGEST)

    cdef int _write_header(self, pack_state *p) noexcept nogil:
        if p.fresh and p.touched:
            return self._create(p)
        if not p.touched:
            return 0
        p.touched = 0
        self._seal(p)
        return pwrite_all(p.fd, p.header, PACK_SECTOR, 0)

    # --- for recovery and tests, where speed does not matter ------------------------------------

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
        if p == NULL:
            pack_path(pack, path)
            if error == EBADMSG:
                raise LostHeaderError(pack, f"{path.decode()}: the pack's header fails its check")
            if error == EMEDIUMTYPE:
                raise CorruptionError(f"{path.decode()}: this is another store's pack, another pack, or of a format version "
                                      "that this program does not know; put it back where it belongs")
            raise OSError(error, os.strerror(error), path.decode())
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
