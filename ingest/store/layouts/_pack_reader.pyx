# distutils: depends = ingest/csrc/pack_cache.h ingest/csrc/pack_file.h ingest/csrc/beneath.h ingest/csrc/ticket.h
"""Reading packs, while another process writes them: `docs/format.md`, "Packs".

The committer sets a present bit only when the slot is written and its frame durable, so the bits in the file are
what may be shown. A header may be read while it is being written, and is then half new: one that fails its check is read
again a few times before it counts as bad.
"""

import os
import resource

from cpython.bytes cimport PyBytes_AS_STRING
from libc.errno cimport EINTR, EIO, ENOENT, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from ingest._hmac cimport hmac_digest504
from ingest.store.layouts._slot_reader cimport SlotReader, extent

from ingest import limits
from ingest.errors import UsageError
from ingest.status import Status


cdef extern from "csrc/frame.h" nogil:
    enum: FRAME_SIZE
    int64_t ticket_pack(int64_t index)
    int ticket_slot(int64_t index)
    int ticket_run_max(int64_t index)

cdef extern from "csrc/pack_cache.h" nogil:
    enum: PACK_SECTOR
    enum: PACK_DIGEST
    enum: HEADER_UNKNOWN
    enum: HEADER_GOOD
    enum: HEADER_BAD
    enum: SLOT_FREE
    enum: SLOT_PRESENT
    enum: SLOT_DELETED
    int pread_all(int fd, uint8_t *data, size_t size, int64_t offset)
    int64_t slot_offset(int slot)
    int pack_cache_init(pack_cache *c, int max)
    open_pack *pack_cache_find(pack_cache *c, int64_t id)
    int pack_cache_open(pack_cache *c, int root, int64_t id, open_pack **pack)
    int pack_cache_evict(pack_cache *c)
    void pack_cache_free(pack_cache *c)
    int pack_header_fits(const uint8_t *header, int64_t id, const uint8_t *store_id)
    int header_slots_alike(const uint8_t *header, int slot, int count, int *state)

cdef extern from "<unistd.h>" nogil:
    ssize_t pread(int fd, void *buffer, size_t size, int64_t offset)
    int usleep(uint32_t microseconds)


cdef enum:
    SAVED = 1
    ERROR = 2
    MISSING = 8
    DELETED = 9
    HEADER_SHORT = -1  # of _read_header: the file has no whole header yet

assert (Status.SAVED, Status.ERROR, Status.MISSING, Status.DELETED) == (SAVED, ERROR, MISSING, DELETED)

cdef int HEADER_READS = limits.HEADER_READS_MAX
cdef uint32_t HEADER_PAUSE_US = limits.HEADER_READ_PAUSE_US


def open_max():
    """How many packs a reader may keep open: as `limits` says, but no more than an eighth of the process's descriptors."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, min(limits.READ_PACKS_MAX, limits.READ_PACKS_MAX if soft < 0 else soft // 8))


cdef class PackReader(SlotReader):
    """Reads the packs below ``data_fd``. ``store_id``: headers of other stores are bad; None takes those of any.
    ``packs_max``: descriptors to keep."""

    def __cinit__(self, int data_fd, keys=(), bytes store_id=None, *, packs_max=None):
        if packs_max is not None and packs_max < 1:
            raise UsageError("a reader needs at least one descriptor")
        if pack_cache_init(&self.cache, open_max() if packs_max is None else packs_max) < 0:
            raise MemoryError
        self.any_store = store_id is None
        if store_id is not None:
            memcpy(self.store_id, PyBytes_AS_STRING(store_id), 16)

    def __dealloc__(self):
        pack_cache_free(&self.cache)

    def __len__(self):
        """Packs that are open."""
        return self.cache.count

    def close(self):
        """Closes all packs. What is read later opens them again."""
        while pack_cache_evict(&self.cache) == 0:
            pass

    # --- cores

    cdef int _get(self, int64_t id, open_pack **pack) noexcept nogil:
        """The pack, open: 0 or an errno."""
        cdef int error = 0
        pack[0] = pack_cache_find(&self.cache, id)
        if pack[0] == NULL:
            error = pack_cache_open(&self.cache, self.data_fd, id, pack)
        return error

    cdef int _read_header(self, open_pack *pack, uint8_t *header) noexcept nogil:
        """0, HEADER_SHORT or an errno."""
        cdef ssize_t n
        cdef int have = 0
        while have < PACK_SECTOR:
            n = pread(pack.fd, header + have, PACK_SECTOR - have, have)
            if n == 0:
                return HEADER_SHORT     # the end of the file; fewer bytes than asked for alone are not
            if n > 0:
                have += n
            elif errno != EINTR:
                return errno
        return 0

    cdef int _refresh(self, open_pack *pack) noexcept nogil:
        """Reads the header again, unless that was done at this moment already: 0, HEADER_SHORT or an errno; EIO when it
        is bad. `pack.header` is then the one in the file, or the bad one."""
        cdef uint8_t header[512]
        cdef uint8_t tag[8]
        cdef int error, attempt
        if pack.fresh_at == self.moment:
            return 0 if pack.verdict == HEADER_GOOD else EIO
        for attempt in range(HEADER_READS):
            error = self._read_header(pack, header)
            if error != 0:
                return error
            if pack.verdict != HEADER_UNKNOWN and memcmp(header, pack.header, PACK_SECTOR) == 0:
                break  # judged before
            hmac_digest504(header, tag)
            if (memcmp(tag, header + PACK_DIGEST, 8) == 0
                    and pack_header_fits(header, pack.id, NULL if self.any_store else self.store_id)):
                memcpy(pack.header, header, PACK_SECTOR)
                pack.verdict = HEADER_GOOD
                break
            if attempt > 0 and attempt + 1 < HEADER_READS:
                usleep(HEADER_PAUSE_US)  # its writer lost the processor in the middle
        else:
            memcpy(pack.header, header, PACK_SECTOR)
            pack.verdict = HEADER_BAD
        pack.fresh_at = self.moment
        return 0 if pack.verdict == HEADER_GOOD else EIO

    cdef void look(self, int64_t first, int count, extent *found) noexcept nogil:
        cdef int most = ticket_run_max(first)
        cdef int state = SLOT_FREE
        cdef open_pack *pack
        cdef int error = self._get(ticket_pack(first), &pack)
        if error == 0:
            error = self._refresh(pack)
        found.first = first
        found.count = min(count, most)
        found.looks = 1
        found.slot = ticket_slot(first)
        found.pack = NULL
        if error == 0:
            found.count = header_slots_alike(pack.header, found.slot, found.count, &state)
            if state == SLOT_PRESENT:
                found.status = SAVED
                found.pack = pack
            else:
                found.status = DELETED if state == SLOT_DELETED else MISSING
        elif error == ENOENT or error == HEADER_SHORT:
            found.status = MISSING
        else:
            found.status = ERROR

    cdef int read(self, const extent *found, int count, uint8_t *frames) noexcept nogil:
        return pread_all((<open_pack *>found.pack).fd, frames, <size_t>count * FRAME_SIZE, slot_offset(found.slot))

    cdef void doubt(self, const extent *found) noexcept nogil:
        (<open_pack *>found.pack).fresh_at = 0

    cdef int read_bytes(self, int64_t first, uint64_t offset, size_t size, uint8_t *to) noexcept nogil:
        cdef open_pack *pack
        cdef int error = self._get(ticket_pack(first), &pack)     # whatever its header says now
        return error if error != 0 else pread_all(pack.fd, to, size, slot_offset(ticket_slot(first)) + <int64_t>offset)
