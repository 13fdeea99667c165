# distutils: depends = ingest/csrc/pack_table.h ingest/csrc/pack_file.h ingest/csrc/beneath.h ingest/csrc/ticket.h ingest/csrc/slot_writer.h
"""The packs that the committer has open, their bits, their files: layout pack as it is written.

The only writer of pack headers in a running server. The header of an open pack is kept in memory (it is
authoritative) and written whole, one sector, after each change.
"""

from cpython.bytes cimport PyBytes_AS_STRING
from libc.errno cimport EBADMSG, EINVAL, ENOENT, ENOSPC, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memset
from posix.unistd cimport close

from ingest._hmac cimport hmac_digest504, hmac_digests504
from ingest.store.layouts._slot_table cimport (
    PACK_SECTOR, SlotTable, pack_state, pack_table, spares_begin, spares_end, unsynced_add, unsynced_clear,
    unsynced_init, unsynced_sync,
)

from ingest import limits


cdef extern from "csrc/frame.h" nogil:
    pass

cdef extern from "csrc/pack_table.h" nogil:
    ctypedef struct pack_entry:
        pack_state *pack
    pack_entry *pack_table_at(pack_table *t, int i)
    enum: HEADER_DURABLE
    enum: HEADER_CACHED
    enum: HEADER_FLUSHING
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
    enum: ROOT_PACK_SLOTS
    enum: PACK_SLOTS
    int O_RDWR
    int O_CREAT
    int ftruncate(int fd, int64_t length)
    enum: PACK_UNSYNCED
    enum: PACK_SYNCING

cdef extern from "unistd.h" nogil:
    int fdatasync(int fd)


cdef int DIRTY_MAX = limits.DIRTY_PACKS_MAX // 2   # half, because as many may be in the flush that is under way


cdef enum:
    HEADERS_AT_ONCE = 64                           # whose digests are computed before they are written


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


cdef class OpenPacks(SlotTable):
    """Packs below ``data_fd`` (a descriptor of DATA), at most ``open_max`` of them open at a time."""

    def __cinit__(self, int data_fd, bytes store_id, int open_max):
        self.store_id = store_id
        self.hides_slots = True
        self._later = <slot_write *>calloc(limits.BATCH_FRAMES_MAX, sizeof(slot_write))
        if self._later == NULL or unsynced_init(&self._syncing, open_max) < 0:
            raise MemoryError
        self._dirty_last = -1
        self.dirty_max = DIRTY_MAX
        self.bulk_jobs = limits.BULK_JOBS
        self.inodes_reserve = limits.RESERVE_INODES
        self.erase_max = 0x7fffffff      # a pack's worth takes two system calls

    def __dealloc__(self):
        slot_writer_stop(&self._writer)
        free(self._later)
        free(self._syncing.files)

    def close(self):
        slot_writer_end(&self._writer)      # of a batch that nobody waits for: its descriptors are in use until then
        SlotTable.close(self)

    # --- layout pack

    cdef bint _may_get_dirty(self, int64_t pack) noexcept:
        return self.dirty_count < self.dirty_max or pack in self._dirty

    cdef int mark_dirty(self, pack_state *p, int count) except -1:
        if p.id != self._dirty_last:
            self._dirty.add(p.id)
            self._dirty_last = p.id
            self.dirty_count = len(self._dirty)
        return 0

    def sync_each_file(self):
        """As `SlotTable` says. Packs stay open until they are synced, so fewer may be dirty."""
        SlotTable.sync_each_file(self)
        self._syncing.spares = &self._spares
        self.dirty_max = min(limits.UNSYNCED_PACKS_MAX // 2, self.table.max // 4)

    def flush_begins(self):
        SlotTable.flush_begins(self)
        self._dirty_last = -1
        if self.syncs_files:
            self._collect_unsynced()
        else:
            self._advance_headers(HEADER_CACHED, HEADER_FLUSHING)

    def flush_done(self):
        SlotTable.flush_done(self)
        self._advance_headers(HEADER_FLUSHING, HEADER_DURABLE)
        if self.syncs_files:
            self._settle_synced()

    cdef void _written(self, pack_state *p) noexcept nogil:
        if self.syncs_files:
            p.unsynced |= PACK_UNSYNCED

    cdef void _collect_unsynced(self) noexcept nogil:
        """The packs that the flush is to sync. They stay in the table meanwhile, and their descriptors open."""
        cdef uint32_t i
        cdef pack_state *p
        unsynced_clear(&self._syncing, 0)
        for i in range(self.table.mask + 1):
            p = pack_table_at(&self.table, i).pack
            if p == NULL or not p.unsynced:
                continue
            p.unsynced = PACK_SYNCING
            if p.header_cached == HEADER_CACHED:
                p.header_cached = HEADER_FLUSHING
            unsynced_add(&self._syncing, p.id, p.fd, p.unnamed)

    cdef void _settle_synced(self) noexcept nogil:
        cdef uint32_t i
        cdef pack_state *p
        for i in range(self.table.mask + 1):
            p = pack_table_at(&self.table, i).pack
            if p != NULL and p.unsynced & PACK_SYNCING:
                p.unsynced &= ~<int>PACK_SYNCING
                p.unnamed = 0
        unsynced_clear(&self._syncing, 0)

    cdef int _sync_files(self) noexcept nogil:
        return unsynced_sync(&self._syncing, self.data_fd, &fdatasync, &pack_path)

    cdef void _advance_headers(self, int state, int following) noexcept nogil:
        cdef uint32_t i
        cdef pack_state *p
        for i in range(self.table.mask + 1):
            p = pack_table_at(&self.table, i).pack
            if p != NULL and p.header_cached == state:
                p.header_cached = following

    cdef int write(self, pack_state *p, int slot, int count, const uint8_t *frames) noexcept nogil:
        cdef int error
        self._written(p)
        error = self._create(p) if p.fresh else 0
        if error:
            return error
        return pwrite_all(p.fd, frames, <size_t>count * 1474, slot_offset(slot))

    cdef void write_later(self, pack_state *p, int slot, int count, const uint8_t *frames) noexcept nogil:
        cdef slot_write *w = &self._later[self._later_count]
        self._later_count += 1
        self._written(p)
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
                self._written(p)
                error = pwrite_all(p.fd, p.header, PACK_SECTOR, 0)     # not fresh: its slots are written
                if error:
                    return error
            first += some
        return 0

    cdef int erase(self, pack_state *p, int slot, int count) noexcept nogil:
        self._written(p)
        return pack_zero_slots(p, slot, count)

    cdef int64_t allocated(self, pack_state *p) noexcept nogil:
        return file_allocated(p.fd)

    cdef int read_slots(self, pack_state *p, int slot, int count, uint8_t *frames) noexcept nogil:
        return pread_all(p.fd, frames, <size_t>count * 1474, slot_offset(slot))

    cdef int _open(self, pack_state *p) noexcept:
        cdef int error = 0
        cdef const uint8_t *store_id = <const uint8_t *>PyBytes_AS_STRING(self.store_id)
        with nogil:
            if self.syncs_files:
                error = spares_begin(&self._spares)     # a pack stays open
            if error == 0:
                error = self._open_file_of(p, store_id)
                if self.syncs_files:
                    spares_end(&self._spares)
        return error

    cdef int _open_file_of(self, pack_state *p, const uint8_t *store_id) noexcept nogil:
        cdef char path[32]
        cdef const char *name
        cdef int directory, attempt, error = 0
        cdef int64_t size
        cdef int flags = O_RDWR | O_CREAT if self.may_create else O_RDWR
        cdef uint8_t zeros[PACK_SECTOR]
        p.fd = -1
        p.unnamed = 1       # for all we know, too, whoever made it
        pack_path(p.id, path)
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
        self._written(p)
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
        self._written(p)
        self._seal(p)
        return pwrite_all(p.fd, p.header, PACK_SECTOR, 0)
