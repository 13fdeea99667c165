# distutils: depends = ingest/csrc/get_connection.h ingest/csrc/frame.h ingest/csrc/queue.h ingest/csrc/tls.h ingest/csrc/counters.h
"""The get port of one worker: requests in, runs of frames out, straight from the files.

The same shape as `_put_server`: the connections live in an epoll of their own, nested in that of the event loop, which
calls ``turn`` once for all that are ready; a turn does not hold the GIL.

One turn: see which sockets are ready · receive from each at most once, one behind the other · verify all
requests in one call · answer each connection, as far as its socket takes it and its share of the turn goes.

Frames are read into one buffer of the worker, run after run and request after request, and leave with one send. sendfile
was measured first: on loopback it is a third slower than this, also for whole packs, because the other end then
gathers its bytes from scattered pages that no cache holds. What a socket does not take is not kept: the
connection remembers the run and how many bytes of it were sent, and reads the rest again later
(`csrc/get_connection.h`).

What N announces is delivered: when a file shrinks or fails under a run that is on its way, zeros take the place of its
frames, and the reader's own check finds them. Checksums are not verified here: every reader does that (contract A3),
and it would cost as much as all the rest. That frames carry their tickets is looked at: it costs next to nothing, and
tells slots that were deleted just now, or lost.
"""

import os

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from ingest._hmac cimport hmac_requests
from ingest._queue cimport Queue, queue_ring, word_add_above_zero
from ingest.store._slot_reader cimport SlotReader, extent

from ingest import limits, tls
from ingest._queue import ROW_WORKER
from ingest.status import Status


cdef extern from "<sys/epoll.h>" nogil:
    enum: EPOLLIN, EPOLLOUT, EPOLLRDHUP, EPOLLHUP, EPOLLERR, EPOLLET
    enum: EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CLOEXEC
    ctypedef union epoll_data_t:
        uint64_t u64
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epfd, int op, int fd, epoll_event *event)
    int epoll_wait(int epfd, epoll_event *events, int maxevents, int timeout)

cdef extern from "<sys/eventfd.h>" nogil:
    enum: EFD_CLOEXEC, EFD_NONBLOCK
    int eventfd(unsigned int value, int flags)
    int eventfd_write(int fd, uint64_t value)

cdef extern from "<sys/socket.h>" nogil:
    enum: SHUT_WR
    int shutdown(int fd, int how)

cdef extern from "<unistd.h>" nogil:
    int close_fd "close"(int fd)

cdef extern from "csrc/counters.h" nogil:
    enum: C_GET_ACCEPTED
    enum: C_GET_REFUSED
    enum: C_GET_CLOSED_BAD
    enum: C_FOREIGN_TLS
    enum: C_GET_CLOSED_HANDSHAKE
    enum: C_GET_CLOSED_NOT_TLS
    enum: C_KEY_REQUESTS
    enum: C_KEY_BAD_REQUESTS
    enum: KEY_COUNTERS
    enum: C_GET_REQUESTS
    enum: C_GET_REQUESTS_BAD
    enum: C_GET_FRAMES
    enum: C_GET_BYTES
    enum: C_GET_ERRORS

cdef extern from "csrc/frame.h" nogil:
    enum: FRAME_SIZE
    int64_t TICKET_INDEX_LAST
    int64_t ticket_index(const uint8_t *ticket)
    void ticket_write(int64_t index, uint8_t *ticket)

cdef extern from "csrc/tls.h" nogil:
    enum: TLS_PLAIN
    ctypedef struct tls_library:
        pass
    ctypedef struct tls_session:
        uint8_t state, wants_write
        uint32_t error
    tls_session *tls_new(const tls_library *lib, void *ssl, int fd, bint is_server)
    void tls_free(tls_session *s)
    uint32_t tls_unsent(const tls_session *s)
    bint tls_in_handshake(const tls_session *s)
    bint tls_at_end(const tls_session *s)
    int tls_flush(tls_session *s)
    void tls_end(tls_session *s)

cdef extern from "csrc/foreign.h" nogil:
    enum: FOREIGN_NONE
    int foreign_protocol(const uint8_t *p, uint32_t size)

cdef extern from "csrc/get_connection.h" nogil:
    enum: REQUEST_SIZE
    enum: RUN_HEADER_SIZE
    enum: GET_FREE
    enum: GET_OPEN
    enum: GET_FINISHED
    enum: GET_REFUSED
    enum: GET_DRAINING
    enum: GET_LINGERING
    enum: GET_FRAMES
    enum: GET_INVENTORY
    enum get_queue_name:
        TO_READ
        TO_SERVE
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
    ctypedef struct get_connection:
        int fd
        uint32_t slot, generation
        uint8_t state, readable, writable, at_end, sending, foreign, carry_size
        uint8_t *carry
        get_request *requests
        uint32_t capacity, head, tail, answered
        get_run run
        uint64_t run_sent
        double received_at, partial_at, sent_at, linger_since, adopted_at
        tls_session *tls
    ctypedef struct get_queue:
        get_connection *first
        uint32_t count
        get_queue_name name
    uint64_t get_cookie(const get_connection *c)
    uint32_t get_waiting(const get_connection *c)
    bint get_has_work(const get_connection *c)
    get_request *get_head(const get_connection *c)
    int get_reserve(get_connection *c, uint32_t n)
    void get_shrink(get_connection *c)
    void run_header(uint8_t *out, const uint8_t *ticket, uint8_t status, uint32_t n)
    ssize_t socket_receive(int fd, uint8_t *buffer, size_t size)
    ssize_t get_receive(get_connection *c, uint8_t *buffer, size_t size)
    ssize_t get_send(get_connection *c, const uint8_t *data, size_t size)
    void get_queue_push(get_queue *q, get_connection *c)
    void get_queue_remove(get_queue *q, get_connection *c)


# Requests that one connection brought in one turn.
ctypedef struct segment:
    get_connection *source
    uint32_t start
    uint32_t count

# A run in the collecting buffer: where it starts there, and where the connection stands behind it.
ctypedef struct piece:
    uint32_t start
    uint32_t n           # tickets
    uint32_t frames      # of them that follow the header
    int64_t first        # -1: the answer to a bad request
    uint32_t head, answered
    uint8_t status

# What Python hears of after a turn.
ctypedef struct rare_event:
    uint32_t kind
    uint32_t slot
    uint32_t value

cdef enum rare_kind:
    CLOSED_BAD_REQUEST
    CLOSED_UNREAD_REPLIES
    CLOSED_PARTIAL_REQUEST
    CLOSED_IDLE
    SPOKE_TLS
    SPOKE_HTTP
    CLOSED_HANDSHAKE
    CLOSED_SLOW_HANDSHAKE
    CLOSED_NOT_TLS

BAD_REQUEST = "bad request"
UNREAD_REPLIES = "unread replies"
PARTIAL_REQUEST = "partial request"
IDLE = "idle"
SPEAKS_TLS = "speaks TLS"
SPEAKS_HTTP = "speaks HTTP"
_EVENT_NAMES = (
    BAD_REQUEST, UNREAD_REPLIES, PARTIAL_REQUEST, IDLE, SPEAKS_TLS, SPEAKS_HTTP,
    tls.HANDSHAKE, tls.SLOW_HANDSHAKE, tls.NOT_TLS,
)

cdef enum:
    KEY_SIZE = 32
    KEYS_MAX = 4  # two get keys, two inventory keys
    KEY_NONE = 255
    RETIRED_MAX = 2 * (KEY_COUNTERS - 1)
    EVENTS_MAX = 1024  # sockets seen in one turn; the others wait in the kernel
    DISCARD_SIZE = 65536  # bytes
    DISCARDS_MAX = 16  # receives of a connection in one turn whose bytes are dropped
    PIECES_MAX = 4096  # runs in the collecting buffer
    SAVED = 1
    ERROR = 2
    BAD_CHECKSUM = 3
    BAD_TICKET = 4

cdef uint64_t DOORBELL = <uint64_t>-1
cdef double LINGER = limits.LINGER_S
cdef double UNREAD_TIMEOUT = limits.UNREAD_ACKS_TIMEOUT_S
cdef double PARTIAL_TIMEOUT = limits.PARTIAL_FRAME_TIMEOUT_S
cdef double IDLE_TIMEOUT = limits.IDLE_TIMEOUT_S
cdef double HANDSHAKE_TIMEOUT = limits.TLS_HANDSHAKE_TIMEOUT_S
cdef uint32_t HANDSHAKE_STEPS = limits.TURN_FRAMES_MAX // limits.TLS_HANDSHAKE_FRAMES
cdef uint32_t COUNT_MAX = limits.RANGE_COUNT_MAX

assert (Status.SAVED, Status.ERROR, Status.BAD_CHECKSUM, Status.BAD_TICKET) == (SAVED, ERROR, BAD_CHECKSUM, BAD_TICKET)


cdef class GetServer:
    """The get connections of worker ``slot``, answered from ``reader``.

    ``keys``: one or two objects with ``get`` and ``inventory`` (32 bytes each), the keys accepted from the network.
    Times are seconds of the clock given to ``tick``. ``turn``, ``tick`` and ``begin_drain`` return what is worth a
    line in the log, a list of (what, peer, number), or None. The other numbers are for tests: ``limits`` gives reasons.
    """

    cdef Queue queue
    cdef SlotReader reader
    cdef queue_ring *ring
    cdef uint64_t *counters
    cdef get_connection *table
    cdef get_queue to_read         # with bytes to receive, and room for requests unless they are discarded
    cdef get_queue to_serve        # with requests to answer, and a socket that takes bytes
    cdef uint32_t *closed          # slots that wait for Python to forget their peer
    cdef uint32_t closed_count
    cdef rare_event *rare
    cdef uint32_t rare_count
    cdef uint8_t *requests         # received in this turn, REQUEST_SIZE each
    cdef uint8_t *tags             # of them
    cdef uint8_t *key_of           # which key each was signed with
    cdef uint32_t request_count, requests_max
    cdef segment *segments
    cdef uint32_t segment_count, segments_max
    cdef uint8_t *out              # the collecting buffer
    cdef uint32_t out_size, out_used
    cdef piece *pieces             # in it
    cdef uint32_t piece_count
    cdef uint8_t keys[KEYS_MAX * KEY_SIZE]
    cdef uint8_t kinds[KEYS_MAX]   # what each key asks for
    cdef int key_count
    cdef uint8_t key_numbers[KEYS_MAX]   # of their counters
    cdef uint8_t retired[RETIRED_MAX * KEY_SIZE]  # keys that are known and not accepted
    cdef uint8_t retired_numbers[RETIRED_MAX]
    cdef int retired_count
    cdef epoll_event *events
    cdef uint8_t *discarded
    cdef int epoll_fd, doorbell_fd
    cdef uint32_t slots_max, slots_used, pipelined_max, looks_max
    cdef int64_t turn_bytes_max
    cdef double now
    cdef bint ticked, draining
    cdef readonly int connections
    cdef readonly int slot
    cdef list _peers
    cdef list _free_slots
    cdef object _tls

    def __cinit__(self):
        self.epoll_fd = self.doorbell_fd = -1

    def __init__(self, Queue queue, int slot, SlotReader reader not None, keys, *,
                 int connections_max=limits.CONNECTIONS_MAX, int pipelined_max=limits.REQUESTS_PIPELINED_MAX,
                 int collect_size=limits.GET_COLLECT_SIZE, int turn_bytes_max=limits.GET_TURN_BYTES_MAX,
                 int turn_looks_max=limits.GET_TURN_LOOKS_MAX, int turn_requests_max=limits.GET_TURN_REQUESTS_MAX):
        if not 0 <= slot < queue.workers:
            raise ValueError(f"worker {slot} of {queue.workers}")
        if min(connections_max, pipelined_max, turn_bytes_max, turn_looks_max, turn_requests_max) < 1:
            raise ValueError("a limit of a get server is less than one")
        if collect_size < RUN_HEADER_SIZE + FRAME_SIZE:
            raise ValueError("the collecting buffer must hold one frame and its header")
        if self.epoll_fd >= 0:
            raise ValueError("made twice")
        self.set_keys(keys)
        self.queue = queue
        self.reader = reader
        self.slot = slot
        self.ring = queue.ring(slot)
        self.counters = queue.counters(ROW_WORKER + slot)
        self.slots_max = connections_max
        self.pipelined_max = pipelined_max
        self.out_size = collect_size
        self.turn_bytes_max = turn_bytes_max
        self.looks_max = turn_looks_max
        self.requests_max = turn_requests_max
        self.segments_max = min(EVENTS_MAX, connections_max)
        self.to_read.name = TO_READ
        self.to_serve.name = TO_SERVE
        self._peers = []
        self._free_slots = []
        # Pages that no connection ever used are never touched: the tables cost address space, not memory.
        self.table = <get_connection *>calloc(connections_max, sizeof(get_connection))
        self.closed = <uint32_t *>calloc(connections_max, sizeof(uint32_t))
        self.rare = <rare_event *>calloc(3 * connections_max, sizeof(rare_event))
        self.requests = <uint8_t *>malloc((self.requests_max + 1) * REQUEST_SIZE)
        self.tags = <uint8_t *>malloc(self.requests_max * 8)
        self.key_of = <uint8_t *>malloc(self.requests_max)
        self.segments = <segment *>calloc(self.segments_max, sizeof(segment))
        self.out = <uint8_t *>malloc(collect_size)
        self.pieces = <piece *>malloc(PIECES_MAX * sizeof(piece))
        self.events = <epoll_event *>calloc(EVENTS_MAX, sizeof(epoll_event))
        self.discarded = <uint8_t *>malloc(DISCARD_SIZE)
        if (self.table == NULL or self.closed == NULL or self.rare == NULL or self.requests == NULL
                or self.tags == NULL or self.key_of == NULL or self.segments == NULL or self.out == NULL
                or self.pieces == NULL or self.events == NULL or self.discarded == NULL):
            raise MemoryError
        self.epoll_fd = epoll_create1(EPOLL_CLOEXEC)
        if self.epoll_fd >= 0:
            self.doorbell_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        if self.doorbell_fd < 0:
            raise OSError(errno, os.strerror(errno))
        self._watch(self.doorbell_fd, EPOLLIN | EPOLLET, DOORBELL)

    def __dealloc__(self):
        cdef uint32_t i
        if self.table != NULL:
            for i in range(self.slots_used):
                if self.table[i].state != GET_FREE:
                    close_fd(self.table[i].fd)
                tls_free(self.table[i].tls)
                free(self.table[i].requests)
        if self.epoll_fd >= 0:
            close_fd(self.epoll_fd)
        if self.doorbell_fd >= 0:
            close_fd(self.doorbell_fd)
        free(self.table)
        free(self.closed)
        free(self.rare)
        free(self.requests)
        free(self.tags)
        free(self.key_of)
        free(self.segments)
        free(self.out)
        free(self.pieces)
        free(self.events)
        free(self.discarded)

    cdef int _watch(self, int fd, uint32_t events, uint64_t data) except -1:
        cdef epoll_event event
        memset(&event, 0, sizeof(event))
        event.events = events
        event.data.u64 = data
        if epoll_ctl(self.epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0:
            raise OSError(errno, os.strerror(errno))
        return 0

    cdef int _check_open(self) except -1:
        if self.epoll_fd < 0:
            raise ValueError("the server is closed")
        return 0

    # --- what Python sees

    def set_keys(self, keys, known=(), names=()):
        """From now on requests signed with these keys are accepted: one or two, the first tried first.

        ``known``: all keys of the server; a request of one that is not accepted is counted under its name. ``names``: the
        identifiers (``id``) of the keys with counters of their own, by the counters' numbers.
        """
        accepted = list(keys)
        if not 1 <= len(accepted) <= 2:
            raise ValueError(f"one or two keys are accepted from the network, not {len(accepted)}")
        ordered = [(key, key.get, GET_FRAMES) for key in accepted]
        ordered += [(key, key.inventory, GET_INVENTORY) for key in accepted]
        if any(len(raw) != KEY_SIZE for _, raw, _ in ordered):
            raise ValueError(f"a key has {KEY_SIZE} bytes")
        retired = [key for key in known if key not in accepted and key.id in names][:KEY_COUNTERS - 1]
        cdef const uint8_t[::1] view
        cdef int i
        for i, (key, raw, kind) in enumerate(ordered):
            view = raw
            memcpy(self.keys + i * KEY_SIZE, &view[0], KEY_SIZE)
            self.kinds[i] = kind
            self.key_numbers[i] = names.index(key.id) if key.id in names else KEY_COUNTERS - 1
        self.key_count = len(ordered)
        for i, (key, raw) in enumerate((key, raw) for key in retired for raw in (key.get, key.inventory)):
            view = raw
            memcpy(self.retired + i * KEY_SIZE, &view[0], KEY_SIZE)
            self.retired_numbers[i] = names.index(key.id)
        self.retired_count = 2 * len(retired)

    def set_tls(self, context):
        """Connections adopted from now on speak TLS by this `tls.TlsContext` of a server; None: they speak plainly."""
        self._tls = context

    def fileno(self):
        """The descriptor to watch for reading; ``turn`` is to be called when it is readable."""
        self._check_open()
        return self.epoll_fd

    @property
    def drained(self):
        """After begin_drain: all connections are answered and closed."""
        return self.draining and self.connections == 0

    def adopt(self, int fd, str peer):
        """Takes ownership of a connected, non-blocking socket. False when it was closed instead: over the limit, or
        draining.

        Whoever gives a connection to this worker has counted it (``Queue.count_connection``); it is taken off that
        count here when it closes.
        """
        cdef get_connection *c
        cdef uint32_t slot
        self._check_open()
        if self.draining or <uint32_t>self.connections >= self.slots_max:
            self._refuse(fd)
            return False
        if self._free_slots:
            slot = self._free_slots.pop()
            self._peers[slot] = peer
        elif self.slots_used < self.slots_max:
            slot = self.slots_used
            self._peers.append(peer)
            self.slots_used += 1
        else:  # slots of connections that closed and that no turn has reported yet
            self._refuse(fd)
            return False
        c = &self.table[slot]
        c.fd = fd
        c.slot = slot
        c.generation += 1
        c.state = GET_OPEN
        c.readable = c.at_end = c.sending = c.foreign = c.carry_size = 0
        c.writable = 1
        c.head = c.tail = c.answered = 0
        c.received_at = c.partial_at = c.sent_at = c.adopted_at = self.now
        c.linger_since = -1
        try:
            c.tls = self._new_session(fd)
            self._watch(fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, get_cookie(c))
        except (OSError, MemoryError):
            c.state = GET_FREE
            tls_free(c.tls)
            c.tls = NULL
            self._free_slots.append(slot)
            self._refuse(fd)
            raise
        self.connections += 1
        self.counters[<int>C_GET_ACCEPTED] += 1
        return True

    cdef tls_session *_new_session(self, int fd) except? NULL:
        """NULL without TLS."""
        cdef tls_session *session
        cdef void *ssl
        if self._tls is None:
            return NULL
        ssl = <void *><uintptr_t>self._tls.session(fd)
        session = tls_new(<const tls_library *><uintptr_t>self._tls.library, ssl, fd, True)
        if session == NULL:
            raise MemoryError
        return session

    cdef void _refuse(self, int fd) noexcept nogil:
        close_fd(fd)
        word_add_above_zero(&self.ring.get_connections, -1)
        self.counters[<int>C_GET_REFUSED] += 1

    def turn(self):
        """Does all that can be done now, without waiting."""
        self._check_open()
        with nogil:
            self._turn()
        return self._report()

    def tick(self, double now):
        """Looks at the deadlines; ``now`` in seconds, of a clock that never goes back. Call it about twice a second."""
        self._check_open()
        cdef uint32_t i
        with nogil:
            for i in range(self.slots_used):
                if self.table[i].state != GET_FREE:
                    if not self.ticked:
                        self.table[i].received_at = self.table[i].partial_at = self.table[i].sent_at = now
                        self.table[i].adopted_at = now
                    self._check_deadlines(&self.table[i], now)
            self.now = now
            self.ticked = True
        return self._report()

    def begin_drain(self):
        """Reads no more requests; each connection ends when those that came whole are answered."""
        self._check_open()
        cdef uint32_t i
        self.draining = True
        with nogil:
            for i in range(self.slots_used):
                if self.table[i].state == GET_OPEN:
                    self._stop_reading(&self.table[i], GET_DRAINING)
                    self._settle(&self.table[i])
            self._go_on_later()
        return self._report()

    def close(self):
        """Closes all connections at once, whatever is in flight."""
        cdef uint32_t i
        if self.epoll_fd < 0:
            return
        for i in range(self.slots_used):
            self._drop(&self.table[i])
        self._report()
        close_fd(self.epoll_fd)
        self.epoll_fd = -1

    cdef object _report(self):
        """The rare events since the last report; forgets the peers of closed connections."""
        if self.rare_count == 0 and self.closed_count == 0:
            return None
        cdef uint32_t i
        events = []
        for i in range(self.rare_count):
            events.append((_EVENT_NAMES[self.rare[i].kind], self._peers[self.rare[i].slot], self.rare[i].value))
        for i in range(self.closed_count):
            self._peers[self.closed[i]] = None
            self._free_slots.append(self.closed[i])
        self.rare_count = self.closed_count = 0
        return events or None

    # --- a turn

    cdef void _turn(self) noexcept nogil:
        cdef uint32_t n
        self._poll()
        self._receive_all()
        self._judge_all()
        self.reader.now()
        n = self.to_serve.count
        while n > 0 and self.to_serve.first != NULL:
            n -= 1
            self._serve(self.to_serve.first)
        self._go_on_later()

    cdef void _go_on_later(self) noexcept nogil:
        """Has the event loop call ``turn`` again when there is more to do at once."""
        if self.to_read.first != NULL or self.to_serve.first != NULL:
            eventfd_write(self.doorbell_fd, 1)

    cdef void _poll(self) noexcept nogil:
        cdef int n, i
        cdef uint32_t what
        cdef get_connection *c
        while True:
            n = epoll_wait(self.epoll_fd, self.events, EVENTS_MAX, 0)
            if n >= 0 or errno != EINTR:
                break
        for i in range(n):
            if self.events[i].data.u64 == DOORBELL:
                continue  # watched by its edges: it needs no reading
            c = self._connection(self.events[i].data.u64)
            if c == NULL:
                continue
            what = self.events[i].events
            if what & EPOLLERR:
                self._drop(c)
                continue
            # HUP alone says that both sides have ended: what the peer sent before is still read, or closing would reset.
            if what & (EPOLLRDHUP | EPOLLHUP):
                c.at_end = 1
            if what & (EPOLLIN | EPOLLRDHUP | EPOLLHUP):
                c.readable = 1
                self._queue_reading(c)
            if what & EPOLLOUT and c.tls != NULL and c.tls.wants_write:
                c.readable = 1
                self._queue_reading(c)
            if what & EPOLLOUT:
                c.writable = 1
                self._queue_serving(c)

    cdef get_connection *_connection(self, uint64_t cookie) noexcept nogil:
        cdef uint32_t slot = <uint32_t>cookie
        cdef get_connection *c
        if slot >= self.slots_used:
            return NULL
        c = &self.table[slot]
        if c.state == GET_FREE or c.generation != <uint32_t>(cookie >> 32):
            return NULL
        return c

    cdef void _queue_reading(self, get_connection *c) noexcept nogil:
        """Queues a connection to be read, if it is to be read at all."""
        if not c.readable or c.state == GET_FREE or c.state == GET_FINISHED:
            return
        if c.state != GET_OPEN or get_waiting(c) < self.pipelined_max:
            get_queue_push(&self.to_read, c)

    cdef void _queue_serving(self, get_connection *c) noexcept nogil:
        if c.writable and get_has_work(c):
            get_queue_push(&self.to_serve, c)

    # --- receiving

    cdef void _receive_all(self) noexcept nogil:
        """Reads each queued connection once; those with more to read go to the end of the queue."""
        cdef uint32_t n = self.to_read.count
        cdef uint32_t handshakes = HANDSHAKE_STEPS
        cdef get_connection *c
        self.request_count = self.segment_count = 0
        while n > 0 and self.to_read.first != NULL:
            n -= 1
            c = self.to_read.first
            if c.state == GET_OPEN:
                if self.request_count == self.requests_max or self.segment_count == self.segments_max:
                    return
                if tls_in_handshake(c.tls):
                    if handshakes == 0:
                        return
                    handshakes -= 1
                get_queue_remove(&self.to_read, c)
                self._receive(c)
            else:
                get_queue_remove(&self.to_read, c)
                self._discard(c)

    cdef void _receive(self, get_connection *c) noexcept nogil:
        cdef uint32_t room = min(self.pipelined_max - get_waiting(c), self.requests_max - self.request_count)
        cdef uint8_t *base = self.requests + <size_t>self.request_count * REQUEST_SIZE
        cdef ssize_t wanted = <ssize_t>room * REQUEST_SIZE - c.carry_size
        cdef ssize_t n
        cdef uint32_t whole
        cdef uint8_t carried = c.carry_size
        memcpy(base, c.carry, c.carry_size)
        n = get_receive(c, base + c.carry_size, wanted)
        if n <= 0:
            if n == 0:
                c.readable = 0
                c.state = GET_FINISHED
                self._settle(c)
            elif n == -EAGAIN:
                c.readable = 0
            elif tls_in_handshake(c.tls):
                self._refuse_handshake(c)
            else:
                self._drop(c)
            return
        c.received_at = self.now
        c.readable = n == wanted or c.at_end or tls_at_end(c.tls)
        n += c.carry_size
        whole = <uint32_t>(n / REQUEST_SIZE)
        c.carry_size = <uint8_t>(n % REQUEST_SIZE)
        memcpy(c.carry, base + <size_t>whole * REQUEST_SIZE, c.carry_size)
        if c.carry_size and (whole or not carried):
            c.partial_at = self.now
            self._look_for_foreign(c, c.carry, c.carry_size)
        if whole:
            self.segments[self.segment_count].source = c
            self.segments[self.segment_count].start = self.request_count
            self.segments[self.segment_count].count = whole
            self.segment_count += 1
            self.request_count += whole
        else:
            self._queue_reading(c)

    cdef void _look_for_foreign(self, get_connection *c, const uint8_t *start, uint32_t size) noexcept nogil:
        cdef int protocol = foreign_protocol(start, size)
        if protocol != FOREIGN_NONE and not c.foreign:
            c.foreign = 1
            self.counters[<int>C_FOREIGN_TLS + protocol - 1] += 1
            self._note(<rare_kind>(SPOKE_TLS + protocol - 1), c, 0)

    cdef void _stop_reading(self, get_connection *c, uint8_t state) noexcept nogil:
        """From OPEN to REFUSED or DRAINING: what else comes is dropped."""
        c.carry_size = 0
        c.state = state
        self._queue_reading(c)

    cdef void _refuse_handshake(self, get_connection *c) noexcept nogil:
        """Not closed at once: a reset would destroy the alert that tells the peer why."""
        if c.tls.state == TLS_PLAIN:
            self.counters[<int>C_GET_CLOSED_NOT_TLS] += 1
            self._note(CLOSED_NOT_TLS, c, 0)
        else:
            self.counters[<int>C_GET_CLOSED_HANDSHAKE] += 1
            self._note(CLOSED_HANDSHAKE, c, c.tls.error)
        self._stop_reading(c, GET_REFUSED)
        self._settle(c)

    cdef void _discard(self, get_connection *c) noexcept nogil:
        """What is dropped is not decrypted before."""
        cdef int i
        cdef ssize_t n
        for i in range(DISCARDS_MAX):
            n = socket_receive(c.fd, self.discarded, DISCARD_SIZE)
            if n < DISCARD_SIZE and not (n > 0 and c.at_end):
                break
        if n > 0:
            c.readable = n == DISCARD_SIZE or c.at_end
            self._queue_reading(c)
        elif n == -EAGAIN:
            c.readable = 0
        elif n == 0 and c.state != GET_LINGERING:
            c.readable = 0
            c.state = GET_FINISHED  # nothing is left that a reset could be sent for
            self._settle(c)
        else:
            self._drop(c)

    # --- judging what came

    cdef void _judge_all(self) noexcept nogil:
        """Verifies all requests that this turn brought and gives them to their connections."""
        cdef uint32_t i
        if self.request_count == 0:
            return
        memset(self.key_of, KEY_NONE, self.request_count)
        self._find_keys()
        for i in range(self.segment_count):
            self._judge(&self.segments[i])

    cdef void _find_keys(self) noexcept nogil:
        """Which key signed each request. Only what failed the keys before is tried with the next one."""
        cdef uint32_t i, start, end
        cdef uint32_t left = self.request_count
        cdef int key
        for key in range(self.key_count):
            end = 0
            while end < self.request_count:
                start = end
                while start < self.request_count and self.key_of[start] != KEY_NONE:
                    start += 1
                end = start
                while end < self.request_count and self.key_of[end] == KEY_NONE:
                    end += 1
                if start == end:
                    break
                hmac_requests(self.keys + key * KEY_SIZE, self.requests + <size_t>start * REQUEST_SIZE, end - start,
                              REQUEST_SIZE, self.tags)
                for i in range(start, end):
                    # Eight bytes are one comparison of one word: as constant in time as it needs to be.
                    if word_of(self.tags + (i - start) * 8) == word_of(self.requests + <size_t>i * REQUEST_SIZE + 16):
                        self.key_of[i] = <uint8_t>key
                        self.counters[<int>C_KEY_REQUESTS + self.key_numbers[key]] += 1
                        left -= 1
            if left == 0:
                return

    cdef void _judge(self, segment *s) noexcept nogil:
        cdef get_connection *c = s.source
        cdef uint32_t i
        cdef uint8_t status
        cdef const uint8_t *raw
        cdef get_request *request
        if c.state == GET_FREE:
            return
        if get_reserve(c, s.count) < 0:
            self._drop(c)
            return
        if not get_has_work(c):
            c.sent_at = self.now
        for i in range(s.start, s.start + s.count):
            raw = self.requests + <size_t>i * REQUEST_SIZE
            request = &c.requests[c.tail & (c.capacity - 1)]
            status = self._parse(raw, self.key_of[i], request)
            request.status = status
            c.tail += 1
            self.counters[<int>C_GET_REQUESTS] += 1
            if status:
                self.counters[<int>C_GET_REQUESTS_BAD] += 1
                if status == BAD_CHECKSUM:
                    self._count_bad(raw)
                self.counters[<int>C_GET_CLOSED_BAD] += 1
                self._look_for_foreign(c, raw, REQUEST_SIZE)
                self._note(CLOSED_BAD_REQUEST, c, status)
                self._stop_reading(c, GET_REFUSED)
                break
        self._queue_serving(c)
        self._queue_reading(c)

    cdef void _count_bad(self, const uint8_t *raw) noexcept nogil:
        """Under the key that signed it, if that is known and not accepted any more. A connection has one such request."""
        cdef int number = KEY_COUNTERS - 1
        cdef int i
        cdef uint8_t tag[8]
        for i in range(self.retired_count):
            hmac_requests(self.retired + i * KEY_SIZE, raw, 1, REQUEST_SIZE, tag)
            if word_of(tag) == word_of(raw + 16):
                number = self.retired_numbers[i]
                break
        self.counters[<int>C_KEY_BAD_REQUESTS + number] += 1

    cdef uint8_t _parse(self, const uint8_t *raw, uint8_t key, get_request *request) noexcept nogil:
        """0, or the status with which it is refused."""
        cdef uint64_t count = 0
        cdef int i
        memcpy(request.ticket, raw, 8)
        request.first = ticket_index(raw)
        for i in range(8, 16):
            count = count << 8 | raw[i]
        request.count = <uint32_t>count
        if request.first < 0:
            return BAD_TICKET
        if key == KEY_NONE:
            return BAD_CHECKSUM
        if count < 1 or count > COUNT_MAX or <int64_t>count > TICKET_INDEX_LAST - request.first + 1:
            return BAD_TICKET
        request.kind = self.kinds[key]
        return 0

    # --- answering

    cdef void _serve(self, get_connection *c) noexcept nogil:
        """Answers one connection until its socket or its share of the turn is full; then it is queued again, or waits
        to become writable."""
        cdef int64_t budget = self.turn_bytes_max
        cdef uint32_t looks = self.looks_max
        get_queue_remove(&self.to_serve, c)
        if tls_unsent(c.tls) and not self._send_held(c):
            return
        while get_has_work(c) and c.writable:
            if budget <= 0 or looks == 0:
                get_queue_push(&self.to_serve, c)
                break
            if c.sending:
                if not self._send_run(c, &budget):
                    break
                continue
            self._collect(c, &looks, budget)
            if not self._send_collected(c, &budget):
                break
        if c.state == GET_OPEN:
            self._queue_reading(c)  # it may have been waiting for room for its requests
        elif c.state != GET_FREE:
            self._settle(c)

    cdef bint _send_held(self, get_connection *c) noexcept nogil:
        """Sends the rest of the last record. False when the connection takes no more now, or is closed."""
        cdef uint32_t before = tls_unsent(c.tls)
        if tls_flush(c.tls) < 0:
            self._drop(c)
            return False
        if tls_unsent(c.tls) < before:
            c.sent_at = self.now
        if tls_unsent(c.tls):
            c.writable = 0
        return c.writable

    cdef void _collect(self, get_connection *c, uint32_t *looks, int64_t budget) noexcept nogil:
        """Fills the buffer with replies."""
        cdef get_request *request
        cdef extent found
        cdef bint suspicious = False
        cdef uint32_t room, good
        cdef uint32_t most = self.out_size  # frames to read at once: few behind one that was not what it should be
        cdef int64_t first
        self.out_used = self.piece_count = 0
        while c.head != c.tail and (looks[0] > 0 or suspicious) and self.out_used < budget:
            room = self.out_size - self.out_used
            if room < RUN_HEADER_SIZE + FRAME_SIZE or self.piece_count == PIECES_MAX:
                return
            request = get_head(c)
            if request.status:
                run_header(self.out + self.out_used, request.ticket, request.status, 0)
                self._add_piece(c, -1, 0, request.status)
                continue
            first = request.first + c.answered
            self.reader.look(first, request.count - c.answered, &found)
            if looks[0] > 0:
                looks[0] -= min(looks[0], <uint32_t>found.looks)
            if found.status == SAVED and request.kind == GET_FRAMES:
                good = self._read_checked(first, &found, min(most, (room - RUN_HEADER_SIZE) / FRAME_SIZE))
                if good:
                    found.count = good
                    most = min(2 * most, self.out_size)
                    suspicious = False
                    self._add_run(c, first, &found)
                    self.out_used += good * FRAME_SIZE
                    continue
                most = 1
                if found.status == SAVED and not suspicious:
                    # Not its frame: deleted since the header was read, or corrupt. The header, read again, tells.
                    suspicious = True
                    self.reader.doubt(&found)
                    continue
                found.status = ERROR
            suspicious = False
            if not self._merge(c, first, &found):
                self._add_run(c, first, &found)

    cdef uint32_t _read_checked(self, int64_t first, extent *found, uint32_t n) noexcept nogil:
        """Reads at most `n` frames to behind the header to come; how many of them, from the first on, carry their ticket.
        When there are none, `found` is one ticket, whose status is ERROR after an I/O error."""
        cdef uint8_t *frames = self.out + self.out_used + RUN_HEADER_SIZE
        cdef uint32_t i
        n = min(<uint32_t>found.count, n)
        if self.reader.read(found, n, frames) != 0:
            found.status = ERROR
            found.count = 1
            return 0
        for i in range(n):
            if ticket_index(frames + <size_t>i * FRAME_SIZE) != first + i:
                if i == 0:
                    found.count = 1
                return i
        return n

    cdef void _add_run(self, get_connection *c, int64_t first, const extent *found) noexcept nogil:
        """A run whose frames, if it has any, lie where they belong already."""
        cdef piece *p = &self.pieces[self.piece_count]
        cdef uint8_t ticket[8]
        cdef bint inventory = get_head(c).kind == GET_INVENTORY
        ticket_write(first, ticket)
        run_header(self.out + self.out_used, ticket, found.status, found.count)
        p.frames = 0
        if found.status == SAVED and not inventory:
            p.frames = found.count
        elif found.status == ERROR:
            self.counters[<int>C_GET_ERRORS] += 1
        self._add_piece(c, first, found.count, found.status)

    cdef void _add_piece(self, get_connection *c, int64_t first, uint32_t n, uint8_t status) noexcept nogil:
        cdef piece *p = &self.pieces[self.piece_count]
        p.start = self.out_used
        p.first = first
        p.n = n
        p.status = status
        if first < 0:
            p.frames = 0
        self.piece_count += 1
        self.out_used += RUN_HEADER_SIZE
        self._advance(c, n, p)

    cdef void _advance(self, get_connection *c, uint32_t n, piece *p) noexcept nogil:
        c.answered += n
        if c.answered >= get_head(c).count or get_head(c).status:
            c.head += 1
            c.answered = 0
        p.head = c.head
        p.answered = c.answered

    cdef bint _merge(self, get_connection *c, int64_t first, const extent *found) noexcept nogil:
        """Lengthens the last run in the buffer, if this goes on where that one ends, in the same request."""
        cdef piece *p
        cdef uint8_t ticket[8]
        if self.piece_count == 0 or c.answered == 0:
            return False
        p = &self.pieces[self.piece_count - 1]
        if p.frames or p.status != found.status or p.first < 0 or p.first + p.n != first:
            return False
        p.n += found.count
        ticket_write(p.first, ticket)
        run_header(self.out + p.start, ticket, p.status, p.n)
        self._advance(c, found.count, p)
        return True

    cdef bint _send_collected(self, get_connection *c, int64_t *budget) noexcept nogil:
        """Sends the buffer. False when the connection takes no more now, or is closed; it then stands where the bytes
        that were sent end."""
        cdef piece *last
        cdef ssize_t n
        if self.piece_count == 0:
            return True
        n = get_send(c, self.out, self.out_used)
        if n < 0:
            self._drop(c)
            return False
        self._sent(c, n, budget)
        if <uint32_t>n == self.out_used:
            self._count_frames(self.piece_count)
            return True
        last = &self.pieces[self.piece_count - 1]
        while last.start > <uint32_t>n:
            last -= 1
        self._count_frames(<uint32_t>(last - self.pieces) + 1)
        c.head = last.head
        c.answered = last.answered
        self._set_run(c, last, n - last.start)
        c.writable = 0
        return False

    cdef void _count_frames(self, uint32_t pieces) noexcept nogil:
        cdef uint32_t i
        for i in range(pieces):
            self.counters[<int>C_GET_FRAMES] += self.pieces[i].frames

    cdef void _sent(self, get_connection *c, ssize_t n, int64_t *budget) noexcept nogil:
        if n > 0:
            if tls_unsent(c.tls):
                c.writable = 0
            c.sent_at = self.now
            budget[0] -= n
            self.counters[<int>C_GET_BYTES] += n

    cdef void _set_run(self, get_connection *c, const piece *p, uint64_t sent) noexcept nogil:
        memcpy(c.run.header, self.out + p.start, RUN_HEADER_SIZE)
        c.run.frames = p.frames
        c.run.first = p.first
        c.run.failed = 0
        c.run_sent = sent
        c.sending = 1

    cdef bint _send_run(self, get_connection *c, int64_t *budget) noexcept nogil:
        """Goes on with the run that is on its way. False when the connection takes no more now, or is closed."""
        cdef uint64_t size = RUN_HEADER_SIZE + <uint64_t>c.run.frames * FRAME_SIZE
        cdef size_t wanted
        cdef ssize_t n
        while c.run_sent < size and budget[0] > 0:
            if c.run_sent < RUN_HEADER_SIZE:
                wanted = RUN_HEADER_SIZE - c.run_sent
                n = get_send(c, c.run.header + c.run_sent, wanted)
            else:
                wanted = <size_t>min(size - c.run_sent, <uint64_t>self.out_size)
                self._read_again(c, wanted)
                n = get_send(c, self.out, wanted)
            if n < 0:
                self._drop(c)
                return False
            self._sent(c, n, budget)
            c.run_sent += n
            if <size_t>n < wanted:
                c.writable = 0
                return False
        if c.run_sent == size:
            c.sending = 0
        return True

    cdef void _read_again(self, get_connection *c, size_t wanted) noexcept nogil:
        """The next bytes of the run that is on its way, to the start of the buffer: zeros when they are lost."""
        if self.reader.read_bytes(c.run.first, c.run_sent - RUN_HEADER_SIZE, wanted, self.out) == 0:
            return
        memset(self.out, 0, wanted)
        if not c.run.failed:
            c.run.failed = 1
            self.counters[<int>C_GET_ERRORS] += 1

    # --- closing

    cdef void _settle(self, get_connection *c) noexcept nogil:
        """Moves on a connection that reads no more requests, once all are answered."""
        if c.state == GET_FREE or get_has_work(c):
            return
        if c.state != GET_LINGERING:
            tls_end(c.tls)
        if c.state == GET_FINISHED:
            self._drop(c)
        elif c.state == GET_REFUSED or c.state == GET_DRAINING:
            if shutdown(c.fd, SHUT_WR) < 0:
                self._drop(c)
            else:
                c.state = GET_LINGERING

    cdef void _check_deadlines(self, get_connection *c, double now) noexcept nogil:
        cdef int kind = -1
        if c.state == GET_LINGERING:
            if c.linger_since < 0:
                c.linger_since = now
            elif now - c.linger_since >= LINGER:
                self._drop(c)
            return
        if tls_in_handshake(c.tls):
            if now - c.adopted_at >= HANDSHAKE_TIMEOUT:
                kind = CLOSED_SLOW_HANDSHAKE
        elif get_has_work(c):
            if c.writable:
                c.sent_at = now  # it is we who do not send: the peer is not late
            elif now - c.sent_at >= UNREAD_TIMEOUT:
                kind = CLOSED_UNREAD_REPLIES
        elif c.state == GET_OPEN and c.readable:
            c.received_at = c.partial_at = now
        elif c.state == GET_OPEN and c.carry_size:
            if now - c.partial_at >= PARTIAL_TIMEOUT:
                kind = CLOSED_PARTIAL_REQUEST
        elif c.state == GET_OPEN and now - max(c.received_at, c.sent_at) >= IDLE_TIMEOUT:
            kind = CLOSED_IDLE
        if kind >= 0:
            if kind == CLOSED_SLOW_HANDSHAKE:
                self.counters[<int>C_GET_CLOSED_HANDSHAKE] += 1
            else:
                self.counters[<int>C_GET_CLOSED_BAD + kind] += 1
            self._note(<rare_kind>kind, c, c.carry_size)
            self._drop(c)
        else:
            get_shrink(c)

    cdef void _note(self, rare_kind kind, get_connection *c, uint32_t value) noexcept nogil:
        # Three times as many as connections: one may speak another protocol, be refused, and reach a deadline before
        # Python hears of it.
        self.rare[self.rare_count].kind = kind
        self.rare[self.rare_count].slot = c.slot
        self.rare[self.rare_count].value = value
        self.rare_count += 1

    cdef void _drop(self, get_connection *c) noexcept nogil:
        """Closes a connection now."""
        if c.state == GET_FREE:
            return
        get_queue_remove(&self.to_read, c)
        get_queue_remove(&self.to_serve, c)
        # Not left to close(): a sibling that passed the socket here may still hold its own copy.
        epoll_ctl(self.epoll_fd, EPOLL_CTL_DEL, c.fd, NULL)
        tls_free(c.tls)
        c.tls = NULL
        close_fd(c.fd)
        c.fd = -1
        c.state = GET_FREE
        c.sending = 0
        c.head = c.tail = c.carry_size = 0
        get_shrink(c)
        self.connections -= 1
        word_add_above_zero(&self.ring.get_connections, -1)
        self.closed[self.closed_count] = c.slot
        self.closed_count += 1


cdef inline uint64_t word_of(const uint8_t *p) noexcept nogil:
    cdef uint64_t word
    memcpy(&word, p, 8)
    return word
