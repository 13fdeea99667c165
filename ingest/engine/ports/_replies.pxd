"""The replies of a get port, for `_get_server`; `csrc/get_work.h` has what a connection waits for."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from ingest.engine.ports._connections cimport connection
from ingest.engine._queue cimport Queue
from ingest.store.layouts._slot_reader cimport SlotReader, extent


cdef extern from "csrc/get_work.h" nogil:
    enum: REQUEST_SIZE
    enum: RUN_HEADER_SIZE
    enum: GET_FRAMES
    enum: GET_INVENTORY
    ctypedef struct get_request:
        int64_t first
        uint32_t count
        uint8_t kind, status
        uint8_t *ticket
    ctypedef struct get_run:
        uint8_t *header
        int64_t first
        uint32_t frames
        uint8_t failed
    ctypedef struct get_work:
        uint8_t *carry
        uint8_t sending
        get_request *requests
        uint32_t capacity, head, tail, answered
        get_run run
        uint64_t run_sent
    bint get_has_work(const get_work *w, const connection *c)
    uint32_t get_waiting(const get_work *w)
    get_request *get_head(const get_work *w)
    int get_reserve(get_work *w, uint32_t n)
    void get_shrink(get_work *w)
    void get_clear(get_work *w)
    void run_header(uint8_t *out, const uint8_t *ticket, uint8_t status, uint32_t n)


# A run in the collecting buffer: where it starts there, and where the connection stands behind it.
ctypedef struct piece:
    uint32_t start
    uint32_t n           # tickets
    uint32_t frames      # of them that follow the header
    int64_t first        # -1: the answer to a bad request
    uint32_t head, answered
    uint8_t status


cdef class Replies:
    cdef Queue queue               # keeps the counters
    cdef SlotReader reader
    cdef uint64_t *counters        # of the worker
    cdef uint8_t *out              # the collecting buffer
    cdef uint32_t out_size, out_used
    cdef piece *pieces             # in it
    cdef uint32_t piece_count
    cdef int64_t turn_bytes_max
    cdef uint32_t looks_max
    cdef double now                # the clock of tick()
    cdef uint64_t[::1] heart       # of this process, `ingest.runtime.heartbeat`

    # Answers a connection. 0: nothing is left, or its socket takes no more now; 1: there is more, and its share of the turn
    # is used up; -1: it broke.
    cdef int send(self, connection *c, get_work *w, double now) noexcept nogil

    # While it reads the process says that it waits for the disk: a parent then does not take it for one that stands still.
    cdef void _begin_reading(self) noexcept nogil
    cdef void _end_reading(self) noexcept nogil
    cdef int _send_held(self, connection *c) noexcept nogil
    cdef void _collect(self, get_work *w, uint32_t *looks, int64_t budget) noexcept nogil
    cdef uint32_t _read_checked(self, int64_t first, extent *found, uint32_t n) noexcept nogil
    cdef void _add_run(self, get_work *w, int64_t first, const extent *found) noexcept nogil
    cdef void _add_piece(self, get_work *w, int64_t first, uint32_t n, uint8_t status) noexcept nogil
    cdef void _advance(self, get_work *w, uint32_t n, piece *p) noexcept nogil
    cdef bint _merge(self, get_work *w, int64_t first, const extent *found) noexcept nogil
    cdef int _send_collected(self, connection *c, get_work *w, int64_t *budget) noexcept nogil
    cdef void _count_frames(self, uint32_t pieces) noexcept nogil
    cdef void _sent(self, connection *c, ssize_t n, int64_t *budget) noexcept nogil
    cdef void _set_run(self, get_work *w, const piece *p, uint64_t sent) noexcept nogil
    cdef int _send_run(self, connection *c, get_work *w, int64_t *budget) noexcept nogil
    cdef void _read_again(self, get_work *w, size_t wanted) noexcept nogil
