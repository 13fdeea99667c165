# distutils: depends = ingest/csrc/connection.h ingest/csrc/get_work.h ingest/csrc/frame.h ingest/csrc/queue.h ingest/csrc/tls.h ingest/csrc/counters.h
"""The get port of one worker: requests in, runs of frames out, straight from the files.

One turn: see which sockets are ready · receive from each at most once, one behind the other · verify all
requests in one call · answer each connection, as far as its socket takes it and its share of the turn goes.

`_replies` has what is read and sent, `_connections` what a get port shares with a put port.
"""

import os

from libc.errno cimport errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from ingest.engine.ports._connections cimport (
    CONNECTION_FREE, CONNECTION_OPEN, CONNECTION_REFUSED, EFD_CLOEXEC, EFD_NONBLOCK, close_fd,
    connection, connection_queue_push, connection_queue_remove, connection_receive, eventfd, eventfd_write,
    port_counters, tls_at_end, tls_in_handshake,
)
from ingest.engine.ports._guarded_connections cimport GuardedConnections
from ingest.engine.ports._rare_events cimport CLOSED_BAD, CLOSED_IDLE, CLOSED_PARTIAL, CLOSED_UNREAD
from ingest._hmac cimport hmac_requests
from ingest.engine.ports._port_keys cimport KEY_SIZE, KEY_UNNAMED, port_keys, port_keys_set
from ingest.engine._queue cimport (
    C_GET_ACCEPTED, C_GET_CLOSED_BAD, C_GET_CLOSED_HANDSHAKE, C_GET_CLOSED_NOT_TLS, C_GET_REFUSED, C_GET_REQUESTS,
    C_GET_REQUESTS_BAD, C_KEY_BAD_REQUESTS, C_KEY_REQUESTS, Queue,
)
from ingest.engine.ports._replies cimport (
    GET_FRAMES, GET_INVENTORY, REQUEST_SIZE, Replies, get_clear, get_has_work, get_request, get_reserve, get_shrink,
    get_waiting, get_work,
)
from ingest.store.layouts._slot_reader cimport SlotReader

from ingest import limits
from ingest.engine.ports._rare_events import IDLE, SPEAKS_HTTP, SPEAKS_TLS  # names of events, with those below
from ingest.status import Status


cdef extern from "csrc/frame.h" nogil:
    int64_t TICKET_INDEX_LAST
    int64_t ticket_index(const uint8_t *ticket)

# Requests that one connection brought in one turn.
ctypedef struct segment:
    connection *source
    uint32_t start
    uint32_t count

BAD_REQUEST = "bad request"
UNREAD_REPLIES = "unread replies"
PARTIAL_REQUEST = "partial request"

cdef enum:
    KEY_NONE = 255
    SEGMENTS_MAX = 1024  # connections whose requests are taken in one turn
    BAD_CHECKSUM = 3
    BAD_TICKET = 4

cdef double UNREAD_TIMEOUT = limits.UNREAD_ACKS_TIMEOUT_S
cdef double PARTIAL_TIMEOUT = limits.PARTIAL_FRAME_TIMEOUT_S
cdef double IDLE_TIMEOUT = limits.IDLE_TIMEOUT_S
cdef uint32_t HANDSHAKE_STEPS = limits.TURN_FRAMES_MAX // limits.TLS_HANDSHAKE_FRAMES
cdef uint32_t COUNT_MAX = limits.RANGE_COUNT_MAX

cdef port_counters PORT = port_counters(
    accepted=C_GET_ACCEPTED, refused=C_GET_REFUSED, closed=C_GET_CLOSED_BAD, handshake=C_GET_CLOSED_HANDSHAKE,
    not_tls=C_GET_CLOSED_NOT_TLS,
)

assert (Status.BAD_CHECKSUM, Status.BAD_TICKET) == (BAD_CHECKSUM, BAD_TICKET)


cdef class GetServer(GuardedConnections):
    """The get connections of worker ``slot``, answered from ``reader``.

    ``keys``: one or two objects with ``get`` and ``inventory`` (32 bytes each), the keys accepted from the network.
    The other numbers are for tests: ``limits`` gives reasons.
    """

    cdef SlotReader reader
    cdef get_work *work            # of each connection, by slot
    cdef uint8_t *requests         # received in this turn, REQUEST_SIZE each
    cdef uint8_t *tags             # of them
    cdef uint8_t *key_of           # which key each was signed with
    cdef uint32_t request_count, requests_max
    cdef segment *segments
    cdef uint32_t segment_count, segments_max
    cdef Replies replies
    cdef port_keys keys
    cdef uint32_t pipelined_max

    def __init__(self, Queue queue, int slot, SlotReader reader not None, keys, *,
                 int connections_max=limits.CONNECTIONS_MAX, int pipelined_max=limits.REQUESTS_PIPELINED_MAX,
                 int collect_size=limits.GET_COLLECT_SIZE, int turn_bytes_max=limits.GET_TURN_BYTES_MAX,
                 int turn_looks_max=limits.GET_TURN_LOOKS_MAX, int turn_requests_max=limits.GET_TURN_REQUESTS_MAX):
        if not 0 <= slot < queue.workers:
            raise ValueError(f"worker {slot} of {queue.workers}")
        if min(connections_max, pipelined_max, turn_bytes_max, turn_looks_max, turn_requests_max) < 1:
            raise ValueError("a limit of a get server is less than one")
        if self.epoll_fd >= 0:
            raise ValueError("made twice")
        self.set_keys(keys)
        self.reader = reader
        self.replies = Replies(queue, slot, reader, collect_size, turn_bytes_max, turn_looks_max)
        self.pipelined_max = pipelined_max
        self.requests_max = turn_requests_max
        self.segments_max = min(SEGMENTS_MAX, connections_max)
        self.work = <get_work *>calloc(connections_max, sizeof(get_work))  # pages that nobody uses are never touched
        self.requests = <uint8_t *>malloc((self.requests_max + 1) * REQUEST_SIZE)
        self.tags = <uint8_t *>malloc(self.requests_max * 8)
        self.key_of = <uint8_t *>malloc(self.requests_max)
        self.segments = <segment *>calloc(self.segments_max, sizeof(segment))
        if (self.work == NULL or self.requests == NULL or self.tags == NULL or self.key_of == NULL
                or self.segments == NULL):
            raise MemoryError
        self.doorbell_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        if self.doorbell_fd < 0:
            raise OSError(errno, os.strerror(errno))
        self._open(queue, slot, connections_max, self.doorbell_fd, &queue.ring(slot).get_connections,
                   PORT, BAD_REQUEST, UNREAD_REPLIES, PARTIAL_REQUEST)

    def __dealloc__(self):
        cdef uint32_t i
        if self.work != NULL:
            for i in range(self.slots_used):
                get_clear(&self.work[i])
        if self.doorbell_fd >= 0:
            close_fd(self.doorbell_fd)
        free(self.work)
        free(self.requests)
        free(self.tags)
        free(self.key_of)
        free(self.segments)

    # --- what Python sees

    def set_keys(self, keys, known=(), names=()):
        """From now on requests signed with these keys are accepted: one or two, the first tried first.

        ``known``: all keys of the server; a request of one that is not accepted is counted under its name. ``names``: the
        identifiers (``id``) of the keys with counters of their own, by the counters' numbers.
        """
        port_keys_set(&self.keys, keys, known, names, (("get", GET_FRAMES), ("inventory", GET_INVENTORY)))

    # --- a turn

    cdef void _turn(self) noexcept nogil:
        cdef uint32_t n
        self._poll()
        self._receive_all()
        self._judge_all()
        self._discard_all()
        self.reader.now()
        n = self.to_send.count
        while n > 0 and self.to_send.first != NULL:
            n -= 1
            self._serve(self.to_send.first)
        self._go_on_later()

    cdef void _go_on_later(self) noexcept nogil:
        if self.to_read.first != NULL or self.to_discard.first != NULL or self.to_send.first != NULL:
            eventfd_write(self.doorbell_fd, 1)

    cdef bint _may_read(self, const connection *c) noexcept nogil:
        return get_waiting(&self.work[c.slot]) < self.pipelined_max

    cdef bint _has_work(self, const connection *c) noexcept nogil:
        return get_has_work(&self.work[c.slot], c)

    # --- receiving

    cdef void _receive_all(self) noexcept nogil:
        """Reads each queued connection once; those with more to read go to the end of the queue."""
        cdef uint32_t n = self.to_read.count
        cdef uint32_t handshakes = HANDSHAKE_STEPS
        cdef connection *c
        self.request_count = self.segment_count = 0
        while n > 0 and self.to_read.first != NULL:
            n -= 1
            c = self.to_read.first
            if self.request_count == self.requests_max or self.segment_count == self.segments_max:
                return
            if tls_in_handshake(c.tls):
                if handshakes == 0:
                    return
                handshakes -= 1
            self._unqueue_reading(c)
            self._receive(c)

    cdef void _receive(self, connection *c) noexcept nogil:
        cdef get_work *w = &self.work[c.slot]
        cdef uint32_t room = min(self.pipelined_max - get_waiting(w), self.requests_max - self.request_count)
        cdef uint8_t *base = self.requests + <size_t>self.request_count * REQUEST_SIZE
        cdef ssize_t wanted = <ssize_t>room * REQUEST_SIZE - c.carry_size
        cdef ssize_t n
        cdef uint32_t whole
        cdef uint32_t carried = c.carry_size
        memcpy(base, w.carry, c.carry_size)
        n = connection_receive(c, base + c.carry_size, wanted)
        if n <= 0:
            self._received_none(c, n)
            return
        c.received_at = self.now
        c.readable = n == wanted or c.at_end or tls_at_end(c.tls)
        n += c.carry_size
        if self._begins_foreign(c, base, <uint32_t>n):
            return
        whole = <uint32_t>(n / REQUEST_SIZE)
        c.carry_size = <uint32_t>(n % REQUEST_SIZE)
        memcpy(w.carry, base + <size_t>whole * REQUEST_SIZE, c.carry_size)
        if c.carry_size and (whole or not carried):
            c.partial_at = self.now
            self._look_for_foreign(c, w.carry, c.carry_size)
        if whole:
            self.segments[self.segment_count].source = c
            self.segments[self.segment_count].start = self.request_count
            self.segments[self.segment_count].count = whole
            self.segment_count += 1
            self.request_count += whole
        else:
            self._queue_reading(c)

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
        for key in range(self.keys.count):
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
                hmac_requests(self.keys.raw + key * KEY_SIZE, self.requests + <size_t>start * REQUEST_SIZE, end - start,
                              REQUEST_SIZE, self.tags)
                for i in range(start, end):
                    # Eight bytes are one comparison of one word: as constant in time as it needs to be.
                    if word_of(self.tags + (i - start) * 8) == word_of(self.requests + <size_t>i * REQUEST_SIZE + 16):
                        self.key_of[i] = <uint8_t>key
                        self.counters[<int>C_KEY_REQUESTS + self.keys.numbers[key]] += 1
                        left -= 1
            if left == 0:
                return

    cdef void _judge(self, segment *s) noexcept nogil:
        cdef connection *c = s.source
        cdef get_work *w = &self.work[c.slot]
        cdef uint32_t i
        cdef uint8_t status
        cdef const uint8_t *raw
        cdef get_request *request
        if c.state == CONNECTION_FREE:
            return
        if get_reserve(w, s.count) < 0:
            self._drop(c)
            return
        if not self._has_work(c):
            c.sent_at = self.now
        for i in range(s.start, s.start + s.count):
            raw = self.requests + <size_t>i * REQUEST_SIZE
            request = &w.requests[w.tail & (w.capacity - 1)]
            status = self._parse(raw, self.key_of[i], request)
            request.status = status
            w.tail += 1
            self.counters[<int>C_GET_REQUESTS] += 1
            if not status:
                c.proved = 1
            else:
                self.counters[<int>C_GET_REQUESTS_BAD] += 1
                if status == BAD_CHECKSUM:
                    self._count_bad(raw)
                self.counters[<int>C_GET_CLOSED_BAD] += 1
                self._look_for_foreign(c, raw, REQUEST_SIZE)
                self._note(CLOSED_BAD, c, status)
                self._stop_reading(c, CONNECTION_REFUSED)
                break
        if c.writable:
            connection_queue_push(&self.to_send, c)
        self._queue_reading(c)

    cdef void _count_bad(self, const uint8_t *raw) noexcept nogil:
        """Under the key that signed it, if that is known and not accepted any more. A connection has one such request."""
        cdef int number = KEY_UNNAMED
        cdef int i
        cdef uint8_t tag[8]
        for i in range(self.keys.retired_count):
            hmac_requests(self.keys.retired + i * KEY_SIZE, raw, 1, REQUEST_SIZE, tag)
            if word_of(tag) == word_of(raw + 16):
                number = self.keys.retired_numbers[i]
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
        request.kind = self.keys.kinds[key]
        return 0

    # --- answering

    cdef void _serve(self, connection *c) noexcept nogil:
        """Answers one connection until its socket or its share of the turn is full; then it is queued again, or waits
        to become writable."""
        cdef int more
        connection_queue_remove(&self.to_send, c)
        more = self.replies.send(c, &self.work[c.slot], self.now)
        if more < 0:
            self._drop(c)
            return
        if more:
            connection_queue_push(&self.to_send, c)
        if c.state == CONNECTION_OPEN:
            self._queue_reading(c)  # it may have been waiting for room for its requests
        else:
            self._settle(c)

    # --- deadlines, and the end

    cdef void _check_work(self, connection *c, double now) noexcept nogil:
        if self._has_work(c):
            if c.writable:
                c.sent_at = now  # it is we who do not send: the peer is not late
            elif now - c.sent_at >= UNREAD_TIMEOUT:
                self._expire(c, CLOSED_UNREAD, c.carry_size)
                return
        elif c.state == CONNECTION_OPEN and c.readable:
            c.received_at = c.partial_at = now
        elif c.state == CONNECTION_OPEN and c.carry_size:
            if now - c.partial_at >= PARTIAL_TIMEOUT:
                self._expire(c, CLOSED_PARTIAL, c.carry_size)
                return
        elif c.state == CONNECTION_OPEN and now - max(c.received_at, c.sent_at) >= IDLE_TIMEOUT:
            self._expire(c, CLOSED_IDLE, 0)
            return
        get_shrink(&self.work[c.slot])

    cdef void _forget_work(self, connection *c) noexcept nogil:
        get_clear(&self.work[c.slot])


cdef inline uint64_t word_of(const uint8_t *p) noexcept nogil:
    cdef uint64_t word
    memcpy(&word, p, 8)
    return word
