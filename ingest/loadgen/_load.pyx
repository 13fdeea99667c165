# distutils: depends = ingest/csrc/load.h ingest/csrc/tls.h ingest/csrc/frame.h
"""The engine of the load generator: one epoll loop over the connections of one process, without the GIL.

A turn of the loop takes the acks that came, then fills one send buffer with frames of the connections that may send,
signs all of them together (so that the lanes of the checksum kernel are full also with one frame in flight for
each connection) and hands each connection its part. Memory: the send buffer, 4 bytes for each frame of twice the window
of each connection (touched only as far as frames are in flight), and for each connection that does not take its part the rest of it.
`loopback` is the module to use.
"""

from libc.errno cimport EAGAIN, EINTR, ENOMEM, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset

from ingest._hmac cimport hmac_sign, hmac_verify

import os

from ingest.errors import ConnectionLostError, ProtocolError, UsageError
from ingest.limits import IN_FLIGHT_MAX
from ingest.runtime import openssl


cdef extern from "csrc/tls.h" nogil:
    ctypedef struct tls_library:
        pass
    ctypedef struct tls_session:
        pass
    tls_session *tls_new(const tls_library *lib, void *ssl, int fd, bint is_server)
    void tls_free(tls_session *s)
    uint32_t tls_unsent(const tls_session *s)
    void tls_note_handshake(tls_session *s)
    ssize_t tls_receive(tls_session *s, uint8_t *buffer, size_t size)
    ssize_t tls_send(tls_session *s, const uint8_t *data, size_t size)
    void tls_end(tls_session *s)

cdef extern from "csrc/load.h" nogil:
    enum: FRAME_SIZE
    enum: FRAME_DATA
    enum: DATA_SIZE
    enum: ACK_SIZE
    enum: LOAD_WORDS
    enum: LATENCY_BUCKETS
    enum: LOAD_OPEN
    enum: LOAD_DEAF
    enum: LOAD_DONE
    ctypedef struct load_connection:
        int fd
        int phase
        int queued
        int64_t first
        int64_t count
        int64_t low
        int64_t built
        int64_t acked
        uint64_t done_at
        uint32_t *stamps
        uint8_t *rest
        size_t rest_start
        size_t rest_end
        tls_session *tls
        int ack_have
        uint8_t *ack
    ctypedef struct load_part:
        int connection
        int frames
    int64_t TICKET_INDEX_LAST
    int64_t ticket_index(const uint8_t *t)
    void load_table(uint64_t seed, uint64_t *table)
    void load_data(const uint64_t *table, uint64_t seed, int64_t index, uint8_t *data)
    void load_frames(const uint64_t *table, uint64_t seed, int64_t first, int n, uint8_t *frames)
    int latency_bucket(uint64_t ns)
    double latency_value(int bucket)

cdef extern from "<sys/epoll.h>" nogil:
    enum: EPOLL_CTL_ADD
    enum: EPOLL_CTL_MOD
    enum: EPOLL_CTL_DEL
    enum: EPOLLIN
    enum: EPOLLOUT
    ctypedef union epoll_data_t:
        uint32_t u32
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    enum: EPOLL_CLOEXEC
    int epoll_create1(int flags)
    int epoll_ctl(int epoll, int op, int fd, epoll_event *event)
    int epoll_wait(int epoll, epoll_event *events, int n, int timeout_ms)

cdef extern from "<unistd.h>" nogil:
    int close(int fd)

cdef extern from "<poll.h>" nogil:
    enum: POLLIN
    struct pollfd:
        int fd
        short events
        short revents
    int ppoll(pollfd *fds, unsigned long n, const timespec *timeout, const void *mask)

cdef extern from "<time.h>" nogil:
    enum: CLOCK_MONOTONIC
    struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec *t)

cdef extern from "<sys/socket.h>" nogil:
    enum: MSG_NOSIGNAL
    enum: MSG_DONTWAIT
    ssize_t send(int fd, const void *data, size_t size, int flags)
    ssize_t recv(int fd, void *data, size_t size, int flags)

cdef enum:
    BUFFER_FRAMES = 176         # of the send buffer, 253 KiB: 11 times 16 lanes, and it stays in the cache until it is sent
    PARTS_MAX = BUFFER_FRAMES
    EVENTS_MAX = 256
    ACKS_SIZE = 9 * 8192        # bytes of one recv
    RESTS_SIZE_MAX = 64 << 20   # bytes that all connections together may hold of parts not taken
    STATUS_LAST = 9

cdef enum failure:
    FINE, LOST, UNKNOWN_ACK, UNKNOWN_STATUS, NO_MEMORY

BUCKETS = LATENCY_BUCKETS


cdef inline uint64_t _now() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <uint64_t>t.tv_sec * 1000000000 + <uint64_t>t.tv_nsec


def bucket_of(uint64_t ns):
    """The histogram bucket that a latency falls into."""
    return latency_bucket(ns)


def bucket_value(int bucket):
    """The latency in ns that stands for a bucket: its middle."""
    if not 0 <= bucket < LATENCY_BUCKETS:
        raise UsageError(f"no bucket {bucket}: there are {LATENCY_BUCKETS}")
    return latency_value(bucket)


cdef class Content:
    """The data that the load generator puts under each ticket, drawn from ``seed`` (0 to 2⁶⁴ - 1)."""

    cdef uint64_t seed
    cdef uint64_t table[LOAD_WORDS]

    def __init__(self, uint64_t seed):
        self.seed = seed
        load_table(seed, self.table)

    def data(self, int64_t index):
        """The 1458 bytes of the ticket with this index."""
        cdef uint8_t out[DATA_SIZE]
        load_data(self.table, self.seed, index, out)
        return (<char *>out)[:DATA_SIZE]

    def frames(self, const uint8_t[::1] put_key, int64_t first, int n):
        """``n`` signed frames with consecutive tickets from ``first`` on, as a bytearray."""
        if put_key.shape[0] != 32 or n < 0 or first < 0 or first + n - 1 > TICKET_INDEX_LAST:
            raise UsageError("a key of 32 bytes and a range of tickets are needed")
        out = bytearray(n * FRAME_SIZE)
        cdef uint8_t[::1] view = out
        if n:
            with nogil:
                load_frames(self.table, self.seed, first, n, &view[0])
                hmac_sign(&put_key[0], &view[0], n)
        return out

    def check(self, tuple put_keys, const uint8_t[::1] frames, int64_t first):
        """Compares whole frames that were read back with what was put from ``first`` on.

        Returns one byte for each: 1 when ticket, data and the checksum under one of ``put_keys`` are right, else 0.
        """
        cdef const uint8_t[::1] key
        cdef size_t n = <size_t>frames.shape[0] // FRAME_SIZE
        if frames.shape[0] % FRAME_SIZE:
            raise UsageError(f"{frames.shape[0]} bytes are not whole frames")
        good = bytearray(n)
        if n == 0:
            return good
        cdef uint8_t[::1] flags = good
        cdef uint8_t[::1] of_key = bytearray(n)
        cdef size_t i
        for item in put_keys:
            key = item
            if key.shape[0] != 32:
                raise UsageError("a key has 32 bytes")
            with nogil:
                hmac_verify(&key[0], &frames[0], n, &of_key[0])
                for i in range(n):
                    flags[i] |= of_key[i]
            if 0 not in good:
                break
        with nogil:
            for i in range(n):
                if flags[i]:
                    flags[i] = self._equal(&frames[0] + i * FRAME_SIZE, first + <int64_t>i)
        return good

    cdef bint _equal(self, const uint8_t *frame, int64_t index) noexcept nogil:
        cdef uint8_t expected[DATA_SIZE]
        load_data(self.table, self.seed, index, expected)
        return ticket_index(frame) == index and memcmp(frame + FRAME_DATA, expected, DATA_SIZE) == 0


cdef class Engine:
    """Puts the frames of some connections.

    ``sockets``: connected file descriptors (they stay the caller's); ``firsts`` and ``counts``: the tickets of each,
    which must not overlap; ``window``: frames in flight on each connection, 1 to 65,536. ``interval_ns`` > 0: frame p of connection i
    is due ``(p · connections_total + offset + i) · interval_ns`` after the start and not sent before; its latency counts from then, sent or not,
    so that a server that stalls is charged for every frame that it kept waiting (no coordinated omission: Gil Tene, wrk2).
    Otherwise each connection keeps its window full, and latencies count from sending.
    ``sessions``: for connections that speak TLS, the SSL of each (`tls_context.handshake`), which are the engine's from now on.
    """

    cdef Content content
    cdef uint8_t key[32]
    cdef load_connection *connections
    cdef int size                   # of connections
    cdef int open                   # connections with something left to do
    cdef int epoll
    cdef uint8_t *buffer            # send buffer, BUFFER_FRAMES frames
    cdef uint8_t *acks              # receive buffer, ACKS_SIZE
    cdef int *ready                 # ring of connections that may send
    cdef int ready_head, ready_size
    cdef load_part parts[PARTS_MAX]
    cdef int64_t window, threshold, mask
    cdef int chunk                  # frames of one part at most
    cdef uint64_t started, end      # ns
    cdef double interval
    cdef int64_t offset, total
    cdef uint64_t next_due          # ns, rate mode: nothing is due before
    cdef uint64_t statuses[STATUS_LAST + 1]
    cdef uint64_t *latencies
    cdef readonly uint64_t sent, acked
    cdef uint64_t building, sending # ns spent in each
    cdef int failure, failed_connection, failed_errno
    cdef uint8_t failed_ack[ACK_SIZE]

    def __cinit__(self):
        self.epoll = -1

    def __init__(self, Content content, const uint8_t[::1] put_key, sockets, firsts, counts, int window, *,
                 double interval_ns=0, int64_t offset=0, int64_t connections_total=0, sessions=()):
        cdef int i
        cdef int64_t ring = 64
        if not 1 <= window <= IN_FLIGHT_MAX:
            raise UsageError(f"a window of {window} frames: 1 to {IN_FLIGHT_MAX} are possible")
        if put_key.shape[0] != 32:
            raise UsageError(f"a key has 32 bytes, not {put_key.shape[0]}")
        if self.connections != NULL or not len(sockets) == len(firsts) == len(counts) > 0:
            raise UsageError("an engine is made once, of at least one connection with its first ticket and count")
        for first, count in zip(firsts, counts):
            if first < 0 or count < 0 or first + count - 1 > TICKET_INDEX_LAST:
                raise UsageError(f"{count} tickets from index {first} on: there are not as many")
        while ring < 2 * window:
            ring *= 2
        self.content = content
        memcpy(self.key, &put_key[0], 32)
        self.size = len(sockets)
        self.window = window
        self.mask = ring - 1
        self.interval = interval_ns
        self.offset = offset
        self.total = connections_total or self.size
        # Few frames at a time would leave lanes empty; a quarter of the window keeps the server busy meanwhile.
        self.threshold = 1 if interval_ns > 0 else max(1, min(64, window // 4))
        self.chunk = max(16, min(BUFFER_FRAMES, RESTS_SIZE_MAX // FRAME_SIZE // self.size))
        self.connections = <load_connection *>calloc(self.size, sizeof(load_connection))
        self.ready = <int *>malloc(self.size * sizeof(int))
        self.buffer = <uint8_t *>malloc(BUFFER_FRAMES * FRAME_SIZE)
        self.acks = <uint8_t *>malloc(ACKS_SIZE + ACK_SIZE)
        self.latencies = <uint64_t *>calloc(LATENCY_BUCKETS, sizeof(uint64_t))
        if not (self.connections and self.ready and self.buffer and self.acks and self.latencies):
            raise MemoryError
        for i in range(self.size):
            self.connections[i].fd = sockets[i]
            self.connections[i].first = firsts[i]
            self.connections[i].count = counts[i]
            self.connections[i].stamps = <uint32_t *>calloc(ring, sizeof(uint32_t))
            if self.connections[i].stamps == NULL:
                raise MemoryError
        self._take_sessions(list(sessions))
        self.epoll = epoll_create1(EPOLL_CLOEXEC)
        if self.epoll < 0:
            raise OSError(errno, os.strerror(errno))
        self.open = self.size
        for i in range(self.size):
            if self._watch(i, EPOLL_CTL_ADD, EPOLLIN) != 0:
                raise OSError(errno, os.strerror(errno))

    cdef int _take_sessions(self, list sessions) except -1:
        cdef load_connection *c
        cdef const tls_library *library
        if not sessions:
            return 0
        if len(sessions) != self.size:
            raise UsageError(f"{len(sessions)} TLS sessions for {self.size} connections")
        library = <const tls_library *><uintptr_t>openssl.library().table
        for i in range(self.size):
            c = &self.connections[i]
            c.tls = tls_new(library, <void *><uintptr_t>sessions[i], c.fd, False)
            if c.tls == NULL:
                raise MemoryError
            tls_note_handshake(c.tls)
        return 0

    def __dealloc__(self):
        cdef int i
        if self.connections != NULL:
            for i in range(self.size):
                tls_end(self.connections[i].tls)
                tls_free(self.connections[i].tls)
                free(self.connections[i].stamps)
                free(self.connections[i].rest)
        free(self.connections)
        free(self.ready)
        free(self.buffer)
        free(self.acks)
        free(self.latencies)
        if self.epoll >= 0:
            close(self.epoll)

    def start(self, uint64_t at_ns, uint64_t end_ns=0):
        """The clock starts at ``at_ns`` (CLOCK_MONOTONIC); from ``end_ns`` on (0: never) nothing new is sent."""
        cdef int i
        self.started = at_ns
        self.end = end_ns
        for i in range(self.size):
            self._settle(i, at_ns)
            self._consider(i, at_ns)

    def run(self, uint64_t slice_ns):
        """Works for about ``slice_ns``. Returns whether every frame was acked.

        ConnectionLostError when a connection ends before its last ack, ProtocolError for an ack of something that
        does not wait for one.
        """
        with nogil:
            self._run(_now() + slice_ns)
        if self.failure != FINE:
            self._raise()
        return self.open == 0

    cdef void _raise(self) except *:
        cdef load_connection *c = &self.connections[self.failed_connection]
        ack = (<char *>self.failed_ack)[:ACK_SIZE]
        name = ack[:8].rstrip(b"\0").decode("ascii", "backslashreplace")
        if self.failure == NO_MEMORY:
            raise MemoryError
        if self.failure == LOST:
            answers = ", ".join(f"{status}: {n}" for status, n in self.status_counts().items())
            why = os.strerror(self.failed_errno) if self.failed_errno else "the server closed it"
            raise ConnectionLostError(
                f"connection {self.offset + self.failed_connection}: {why} with {c.built - c.acked} frames not acked"
                f" (acks so far by status: {answers or 'none'})")
        if self.failure == UNKNOWN_STATUS:
            raise ProtocolError(f"connection {self.offset + self.failed_connection}: ack of {name} with status {ack[8]}")
        raise ProtocolError(
            f"connection {self.offset + self.failed_connection}: an ack of {name} (status {ack[8]}), "
            "which does not wait for one: unknown ticket, or acked twice")

    def stop(self):
        """Sends nothing new from now on."""
        self.end = 1

    @property
    def outstanding(self):
        """Frames sent, or about to be, and not acked."""
        return self.sent - self.acked

    def status_counts(self):
        """How many acks of each status came: {status number: count}."""
        return {i: self.statuses[i] for i in range(1, STATUS_LAST + 1) if self.statuses[i]}

    def latency_counts(self):
        """The histogram, ``BUCKETS`` counts: see ``bucket_value``."""
        return [self.latencies[i] for i in range(LATENCY_BUCKETS)]

    def connection_counts(self):
        """For each connection (frames sent, frames acked, seconds from the start to its last ack)."""
        return [(self.connections[i].built, self.connections[i].acked,
                 max(0, <int64_t>(self.connections[i].done_at - self.started)) / 1e9) for i in range(self.size)]

    def times(self):
        """(seconds of building and signing, seconds of sending) so far."""
        return self.building / 1e9, self.sending / 1e9

    # --- the loop, without the GIL ---------------------------------------------------------------

    cdef void _run(self, uint64_t until) noexcept nogil:
        cdef epoll_event events[EVENTS_MAX]
        cdef uint64_t now = _now()
        cdef int i, n
        while self.open > 0 and self.failure == FINE and now < until:
            if self.end != 0 and now >= self.end:
                self._finish(now)
            if self.interval > 0 and now >= self.next_due:
                self._admit(now)
            if self.ready_size == 0:
                self._sleep(now, until)
            n = epoll_wait(self.epoll, events, EVENTS_MAX, 0)
            now = _now()
            for i in range(n):
                if self.failure != FINE:
                    return
                if events[i].events & EPOLLOUT:
                    self._flush(<int>events[i].data.u32)
                if events[i].events & ~<uint32_t>EPOLLOUT:
                    self._receive(<int>events[i].data.u32, now)
                self._consider(<int>events[i].data.u32, now)
            if self.ready_size > 0 and self.failure == FINE:
                self._send(now)
            now = _now()

    cdef void _sleep(self, uint64_t now, uint64_t until) noexcept nogil:
        """Until something arrives, a frame is due or the slice ends."""
        cdef pollfd waiting
        cdef timespec timeout
        if self.end > now and self.end < until:
            until = self.end
        if self.interval > 0 and self.next_due < until:
            until = self.next_due
        if until <= now:
            return
        timeout.tv_sec = <long>((until - now) // 1000000000)
        timeout.tv_nsec = <long>((until - now) % 1000000000)
        waiting.fd = self.epoll
        waiting.events = POLLIN
        ppoll(&waiting, 1, &timeout, NULL)

    cdef inline uint64_t _due(self, int i, int64_t position) noexcept nogil:
        return self.started + <uint64_t>(<double>(position * self.total + self.offset + i) * self.interval)

    cdef void _admit(self, uint64_t now) noexcept nogil:
        """Rate mode: lets every connection send what is due, and finds out when the next frame will be."""
        cdef int i
        cdef uint64_t due
        cdef uint64_t soonest = ~<uint64_t>0
        cdef load_connection *c
        for i in range(self.size):
            c = &self.connections[i]
            if c.phase != LOAD_OPEN or c.built >= c.count:
                continue
            self._consider(i, now)
            due = self._due(i, c.built)
            if due > now and due < soonest:
                soonest = due  # what is due already waits for an ack or for the socket, which wake us
        self.next_due = soonest

    cdef inline int64_t _room(self, int i, uint64_t now) noexcept nogil:
        """How many frames connection i may send now."""
        cdef load_connection *c = &self.connections[i]
        cdef int64_t room = self.window - (c.built - c.acked)
        cdef int64_t span = self.mask + 1 - (c.built - c.low)
        cdef int64_t due
        if c.phase != LOAD_OPEN or c.rest != NULL:
            return 0
        if span < room:
            room = span
        if c.count - c.built < room:
            room = c.count - c.built
        if self.interval > 0 and room > 0:
            if now < self._due(i, c.built):
                return 0
            due = <int64_t>((<double>(now - self.started) / self.interval - <double>(self.offset + i)) / <double>self.total)
            due = due + 1 - c.built
            if due < 1:
                due = 1
            if due < room:
                room = due
        return room

    cdef void _consider(self, int i, uint64_t now) noexcept nogil:
        """Puts connection i on the ready list if it may send enough."""
        cdef load_connection *c = &self.connections[i]
        cdef int64_t room
        if c.queued:
            return
        room = self._room(i, now)
        if room <= 0:
            return
        if room >= self.threshold or room == c.count - c.built or c.built == c.acked:
            c.queued = 1
            self.ready[(self.ready_head + self.ready_size) % self.size] = i
            self.ready_size += 1

    cdef void _send(self, uint64_t now) noexcept nogil:
        """One send buffer: build for the connections at the head of the ready list, sign together, send."""
        cdef int parts = 0, frames = 0, i, k, n
        cdef int64_t room, p
        cdef load_connection *c
        cdef uint64_t before
        cdef uint32_t stamp
        while self.ready_size > 0 and parts < PARTS_MAX and frames < BUFFER_FRAMES:
            i = self.ready[self.ready_head]
            self.ready_head = (self.ready_head + 1) % self.size
            self.ready_size -= 1
            c = &self.connections[i]
            c.queued = 0
            room = self._room(i, now)
            if room <= 0:
                continue
            n = self.chunk if room > self.chunk else <int>room
            if n > BUFFER_FRAMES - frames:
                n = BUFFER_FRAMES - frames
            load_frames(self.content.table, self.content.seed, c.first + c.built, n,
                        self.buffer + <size_t>frames * FRAME_SIZE)
            self.parts[parts].connection = i
            self.parts[parts].frames = n
            parts += 1
            frames += n
        if frames == 0:
            return
        hmac_sign(self.key, self.buffer, frames)
        before = _now()
        self.building += before - now
        self.sent += frames
        frames = 0
        stamp = self._stamp(before)
        for k in range(parts):
            i = self.parts[k].connection
            n = self.parts[k].frames
            c = &self.connections[i]
            for p in range(c.built, c.built + n):
                c.stamps[p & self.mask] = stamp
            c.built += n
            self._write(i, self.buffer + <size_t>frames * FRAME_SIZE, <size_t>n * FRAME_SIZE)
            frames += n
            if self.interval > 0 and c.built < c.count and self._due(i, c.built) < self.next_due:
                self.next_due = self._due(i, c.built)
            self._consider(i, now)
        self.sending += _now() - before

    cdef inline uint32_t _stamp(self, uint64_t now) noexcept nogil:
        """Time in 256 ns; wraps after 18 minutes, much longer than anybody waits for an ack. Never 0."""
        return <uint32_t>((now - self.started) >> 8) | 1

    cdef void _write(self, int i, const uint8_t *data, size_t size) noexcept nogil:
        cdef load_connection *c = &self.connections[i]
        cdef size_t done = self._push(i, data, size)
        if (done == size and not tls_unsent(c.tls)) or c.phase != LOAD_OPEN:
            return
        c.rest = <uint8_t *>malloc(max(<size_t>1, size - done))
        if c.rest == NULL:
            self._fail(i, NO_MEMORY, ENOMEM)
            return
        memcpy(c.rest, data + done, size - done)
        c.rest_start = 0
        c.rest_end = size - done
        if self._watch(i, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT) != 0:
            self._fail(i, LOST, errno)

    cdef void _flush(self, int i) noexcept nogil:
        cdef load_connection *c = &self.connections[i]
        if c.rest == NULL:
            return
        c.rest_start += self._push(i, c.rest + c.rest_start, c.rest_end - c.rest_start)
        if (c.rest_start < c.rest_end or tls_unsent(c.tls)) and c.phase == LOAD_OPEN:
            return
        free(c.rest)
        c.rest = NULL
        if self._watch(i, EPOLL_CTL_MOD, EPOLLIN) != 0:
            self._fail(i, LOST, errno)

    cdef size_t _push(self, int i, const uint8_t *data, size_t size) noexcept nogil:
        """How many bytes the socket took. A peer that takes no more may have acks on the way that say why: DEAF."""
        cdef size_t done = 0
        cdef ssize_t n
        if self.connections[i].tls != NULL:
            n = tls_send(self.connections[i].tls, data, size)
            if n < 0:
                self.connections[i].phase = LOAD_DEAF
            return <size_t>max(n, <ssize_t>0)
        while done < size:
            n = send(self.connections[i].fd, data + done, size - done, MSG_NOSIGNAL | MSG_DONTWAIT)
            if n >= 0:
                done += <size_t>n
            elif errno == EAGAIN:
                break
            elif errno != EINTR:
                self.connections[i].phase = LOAD_DEAF
                break
        return done

    cdef void _receive(self, int i, uint64_t now) noexcept nogil:
        # What a TLS session has read ahead does not make its socket readable again.
        while self._receive_once(i, now) and self.connections[i].tls != NULL and self.failure == FINE:
            pass

    cdef bint _receive_once(self, int i, uint64_t now) noexcept nogil:
        """Whether there may be more: the buffer was filled to the brim."""
        cdef load_connection *c = &self.connections[i]
        cdef ssize_t n
        cdef size_t have
        if c.phase == LOAD_DONE:
            return False
        have = <size_t>c.ack_have
        memcpy(self.acks, c.ack, have)
        if c.tls != NULL:
            n = tls_receive(c.tls, self.acks + have, ACKS_SIZE)
        else:
            n = recv(c.fd, self.acks + have, ACKS_SIZE, MSG_DONTWAIT)
            if n < 0:
                n = -errno
        if n < 0:
            if n != -EAGAIN and n != -EINTR:
                self._fail(i, LOST, <int>-n)
            return False
        if n == 0:
            self._fail(i, LOST, 0)
            return False
        have += <size_t>n
        self._take(i, have // ACK_SIZE, now)
        c.ack_have = <int>(have % ACK_SIZE)
        memcpy(c.ack, self.acks + have - c.ack_have, c.ack_have)
        self._settle(i, now)
        return n == ACKS_SIZE

    cdef void _take(self, int i, size_t n, uint64_t now) noexcept nogil:
        cdef load_connection *c = &self.connections[i]
        cdef uint32_t stamp = self._stamp(now)
        cdef const uint8_t *ack = self.acks
        cdef int64_t position
        cdef size_t k
        cdef int64_t waited
        for k in range(n):
            position = ticket_index(ack) - c.first
            if position < c.low or position >= c.built or c.stamps[position & self.mask] == 0:
                memcpy(self.failed_ack, ack, ACK_SIZE)
                self._fail(i, UNKNOWN_ACK, 0)
                return
            if ack[8] < 1 or ack[8] > STATUS_LAST:
                memcpy(self.failed_ack, ack, ACK_SIZE)
                self._fail(i, UNKNOWN_STATUS, 0)
                return
            self.statuses[ack[8]] += 1
            if self.interval > 0:
                waited = <int64_t>(now - self._due(i, position))
            else:
                waited = <int64_t>(stamp - c.stamps[position & self.mask]) << 8
            self.latencies[latency_bucket(<uint64_t>waited if waited > 0 else 0)] += 1
            c.stamps[position & self.mask] = 0
            c.acked += 1
            self.acked += 1
            while c.low < c.built and c.stamps[c.low & self.mask] == 0:
                c.low += 1
            ack += ACK_SIZE

    cdef void _finish(self, uint64_t now) noexcept nogil:
        """The time is over: what was built is the last."""
        cdef int i
        self.end = 0
        for i in range(self.size):
            self.connections[i].count = self.connections[i].built
            self._settle(i, now)

    cdef void _settle(self, int i, uint64_t now) noexcept nogil:
        """Notices when connection i has got its last ack."""
        cdef load_connection *c = &self.connections[i]
        if self.failure != FINE or c.phase == LOAD_DONE or c.acked < c.count:
            return
        c.phase = LOAD_DONE
        c.done_at = now
        self.open -= 1
        self._watch(i, EPOLL_CTL_DEL, 0)

    cdef int _watch(self, int i, int op, uint32_t events) noexcept nogil:
        cdef epoll_event event
        memset(&event, 0, sizeof(event))
        event.events = events
        event.data.u32 = <uint32_t>i
        return epoll_ctl(self.epoll, op, self.connections[i].fd, &event)

    cdef void _fail(self, int i, int code, int number) noexcept nogil:
        if self.failure == FINE:
            self.failure = code
            self.failed_connection = i
            self.failed_errno = number
