# distutils: depends = ingest/csrc/frame.h ingest/csrc/ticket.h
"""Reading what is stored, while another process writes it. The seam between the ports and the layouts.

`PackReader` and `TreeReader` know what lies on the disk. What they show is durable: the committer makes it visible
behind the sync of its log.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport EIO
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from ingest._hmac cimport hmac_verify

from ingest import limits
from ingest.errors import TicketError, UsageError
from ingest.status import Status


cdef extern from "csrc/frame.h" nogil:
    enum: FRAME_SIZE
    int64_t TICKET_INDEX_LAST
    int64_t ticket_index(const uint8_t *ticket)

cdef enum:
    KEY_SIZE = 32
    SAVED = 1
    ERROR = 2

assert (Status.SAVED, Status.ERROR) == (SAVED, ERROR)


cdef class SlotReader:
    """Reads what lies below ``data_fd``, a descriptor of DATA, which stays the caller's and must outlive this.

    ``keys``: objects with ``put`` (32 bytes), all that ever signed what is stored; only ``read_chunk`` needs them.
    ``store_id``: what of other stores is bad; None takes any. For one thread at a time.
    """

    def __cinit__(self, int data_fd, keys=(), bytes store_id=None, **_):
        cdef const uint8_t[::1] view
        if store_id is not None and len(store_id) != 16:
            raise UsageError(f"a store id has 16 bytes, not {len(store_id)}")
        put_keys = [bytes(key.put) for key in keys]
        if any(len(key) != KEY_SIZE for key in put_keys):
            raise UsageError(f"a key has {KEY_SIZE} bytes")
        self.keys = <uint8_t *>malloc(max(1, len(put_keys)) * KEY_SIZE)
        if self.keys == NULL:
            raise MemoryError
        for key in put_keys:
            view = key
            memcpy(self.keys + self.key_count * KEY_SIZE, &view[0], KEY_SIZE)
            self.key_count += 1
        self.data_fd = data_fd
        self.moment = 1

    def __dealloc__(self):
        free(self.keys)

    def __len__(self):
        """Descriptors that are kept."""
        return 0

    def close(self):
        """Closes all that is kept open. What is read later opens it again."""

    # --- what a layout does

    cdef void now(self) noexcept nogil:
        self.moment += 1

    cdef void look(self, int64_t first, int count, extent *found) noexcept nogil:
        found.first = first
        found.count = 1
        found.status = ERROR
        found.looks = 1

    cdef int read(self, const extent *found, int count, uint8_t *frames) noexcept nogil:
        return EIO

    cdef void doubt(self, const extent *found) noexcept nogil:
        pass

    cdef int read_bytes(self, int64_t first, uint64_t offset, size_t size, uint8_t *to) noexcept nogil:
        return EIO

    # --- what Python sees

    cdef bint _authentic(self, const uint8_t *frame, int64_t index) noexcept nogil:
        cdef uint8_t good
        cdef int key
        if ticket_index(frame) != index:
            return False
        for key in range(self.key_count):
            if hmac_verify(self.keys + key * KEY_SIZE, frame, 1, &good):
                return True
        return False

    cdef int _check_range(self, int64_t first, int64_t count) except -1:
        if first < 0 or count < 1 or first > TICKET_INDEX_LAST or count > TICKET_INDEX_LAST - first + 1:
            raise TicketError(f"{count} tickets from index {first} on are not a range of tickets")
        if count > <int64_t>limits.RANGE_COUNT_MAX:
            raise TicketError(f"{count} tickets at once: at most {limits.RANGE_COUNT_MAX}")
        return 0

    def read_range(self, int64_t first, int64_t count):
        """What lies under ``count`` (1 to 65,536) tickets from index ``first`` on, as a list of (first, status, n, frames)
        that covers them in order: ``frames`` has n · 1474 bytes if the status is SAVED, as they lie on disk, else none.
        TicketError when that is no range."""
        cdef extent found
        cdef int error
        self._check_range(first, count)
        self.now()
        runs = []
        while count > 0:
            with nogil:
                self.look(first, <int>count, &found)
            frames = b""
            if found.status == SAVED:
                frames = PyBytes_FromStringAndSize(NULL, found.count * FRAME_SIZE)
                error = self.read(&found, found.count, <uint8_t *>PyBytes_AS_STRING(frames))
                if error != 0:
                    found.status, frames = ERROR, b""
            runs.append((first, Status(found.status), found.count, frames))
            first += found.count
            count -= found.count
        return runs

    def read_chunk(self, int64_t index):
        """(status, frame) of one ticket: the 1474 bytes if the status is SAVED, else none. A frame that fails its checksum
        under every key is read a second time, and then answered with ERROR. TicketError when there is no such ticket."""
        cdef extent found
        cdef uint8_t frame[1474]
        cdef int attempt
        self._check_range(index, 1)
        with nogil:
            for attempt in range(2):
                self.now()
                self.look(index, 1, &found)
                if found.status != SAVED:
                    break
                if self.read(&found, 1, frame) == 0 and self._authentic(frame, index):
                    break
            else:
                found.status = ERROR
        if found.status != SAVED:
            return Status(found.status), b""
        return Status.SAVED, PyBytes_FromStringAndSize(<char *>frame, FRAME_SIZE)
