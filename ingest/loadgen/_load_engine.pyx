# distutils: depends = ingest/csrc/load.h ingest/csrc/tls.h ingest/csrc/frame.h
"""The engine of the load generator: one epoll loop over the connections of one process, without the GIL.

A turn of the loop takes the acks that came, then fills one send buffer with frames of the connections that may send,
signs all of them together (so that the lanes of the checksum kernel are full also with one frame in flight for
each connection) and hands each connection its part. Memory: the send buffer, 4 bytes for each frame of twice the window
of each connection (touched only as far as frames are in flight), and for each connection that does not take its part the rest of it.
`loopback` is the module to use.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from ingest._hmac cimport hmac_sign
from ingest.loadgen._load_connections cimport FINE, LOAD_OPEN, LoadConnections, load_connection
from ingest.loadgen._load_content cimport Content

from ingest.errors import UsageError
from ingest.limits import IN_FLIGHT_MAX


cdef extern from "csrc/load.h" nogil:
    enum: FRAME_SIZE
    ctypedef struct load_part:
        int connection
        int frames

cdef extern from "<sys/epoll.h>" nogil:
    enum: EPOLLOUT
    ctypedef union epoll_data_t:
        uint32_t u32
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_wait(int epoll, epoll_event *events, int n, int timeout_ms)

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

cdef enum:
    BUFFER_FRAMES = 176         # of the send buffer, 253 KiB: 11 times 16 lanes, and it stays in the cache until it is sent
    PARTS_MAX = BUFFER_FRAMES
    EVENTS_MAX = 256
    RESTS_SIZE_MAX = 64 << 20   # bytes that all connections together may hold of parts not taken


cdef inline uint64_t _now() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <uint64_t>t.tv_sec * 1000000000 + <uint64_t>t.tv_nsec


cdef class Engine(LoadConnections):
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
    cdef uint8_t *buffer            # send buffer, BUFFER_FRAMES frames
    cdef int *ready                 # ring of connections that may send
    cdef int ready_head, ready_size
    cdef load_part parts[PARTS_MAX]
    cdef int64_t window, threshold
    cdef int chunk                  # frames of one part at most
    cdef uint64_t end               # ns
    cdef uint64_t next_due          # ns, rate mode: nothing is due before
    cdef uint64_t building, sending # ns spent in each

    def __init__(self, Content content, const uint8_t[::1] put_key, sockets, firsts, counts, int window, *,
                 double interval_ns=0, int64_t offset=0, int64_t connections_total=0, sessions=()):
        if not 1 <= window <= IN_FLIGHT_MAX:
            raise UsageError(f"a window of {window} frames: 1 to {IN_FLIGHT_MAX} are possible")
        if put_key.shape[0] != 32:
            raise UsageError(f"a key has 32 bytes, not {put_key.shape[0]}")
        self._open(sockets, firsts, counts, list(sessions), window)
        self.content = content
        memcpy(self.key, &put_key[0], 32)
        self.window = window
        self.interval = interval_ns
        self.offset = offset
        self.total = connections_total or self.size
        # Few frames at a time would leave lanes empty; a quarter of the window keeps the server busy meanwhile.
        self.threshold = 1 if interval_ns > 0 else max(1, min(64, window // 4))
        self.chunk = max(16, min(BUFFER_FRAMES, RESTS_SIZE_MAX // FRAME_SIZE // self.size))
        self.ready = <int *>malloc(self.size * sizeof(int))
        self.buffer = <uint8_t *>malloc(BUFFER_FRAMES * FRAME_SIZE)
        if not (self.ready and self.buffer):
            raise MemoryError

    def __dealloc__(self):
        free(self.ready)
        free(self.buffer)

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

    def stop(self):
        """Sends nothing new from now on."""
        self.end = 1

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
            self.content.write(c.first + c.built, n, self.buffer + <size_t>frames * FRAME_SIZE)
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

    cdef void _finish(self, uint64_t now) noexcept nogil:
        """The time is over: what was built is the last."""
        cdef int i
        self.end = 0
        for i in range(self.size):
            self.connections[i].count = self.connections[i].built
            self._settle(i, now)
