# distutils: depends = ingest/csrc/load.h ingest/csrc/tls.h ingest/csrc/frame.h
"""The connections of the load generator: their sockets, with TLS or without, and which of their frames wait for an ack.

What a socket does not take at once is kept, for each connection the rest of one part. Each ack is matched with its frame, and
its latency counted. Without the GIL; `_load_engine` says what is sent, and when.
"""

from libc.errno cimport EAGAIN, EINTR, ENOMEM, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

import os

from ingest.errors import ConnectionLostError, ProtocolError, UsageError
from ingest.runtime import openssl


cdef extern from "csrc/tls.h" nogil:
    ctypedef struct tls_library:
        pass
    tls_session *tls_new(const tls_library *lib, void *ssl, int fd, bint is_server)
    void tls_free(tls_session *s)
    uint32_t tls_unsent(const tls_session *s)
    void tls_note_handshake(tls_session *s)
    ssize_t tls_receive(tls_session *s, uint8_t *buffer, size_t size)
    ssize_t tls_send(tls_session *s, const uint8_t *data, size_t size)
    void tls_end(tls_session *s)

cdef extern from "csrc/load.h" nogil:
    enum: LATENCY_BUCKETS
    int64_t TICKET_INDEX_LAST
    int64_t ticket_index(const uint8_t *t)
    int latency_bucket(uint64_t ns)

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

cdef extern from "<unistd.h>" nogil:
    int close(int fd)

cdef extern from "<sys/socket.h>" nogil:
    enum: MSG_NOSIGNAL
    enum: MSG_DONTWAIT
    ssize_t send(int fd, const void *data, size_t size, int flags)
    ssize_t recv(int fd, void *data, size_t size, int flags)

cdef enum:
    ACKS_SIZE = 9 * 8192        # bytes of one recv


cdef class LoadConnections:
    """See `Engine`, which is made of them."""

    def __cinit__(self):
        self.epoll = -1

    cdef int _open(self, sockets, firsts, counts, list sessions, int window) except -1:
        cdef int i
        cdef int64_t ring = 64
        if self.connections != NULL or not len(sockets) == len(firsts) == len(counts) > 0:
            raise UsageError("an engine is made once, of at least one connection with its first ticket and count")
        for first, count in zip(firsts, counts):
            if first < 0 or count < 0 or first + count - 1 > TICKET_INDEX_LAST:
                raise UsageError(f"{count} tickets from index {first} on: there are not as many")
        while ring < 2 * window:
            ring *= 2
        self.size = len(sockets)
        self.mask = ring - 1
        self.connections = <load_connection *>calloc(self.size, sizeof(load_connection))
        self.acks = <uint8_t *>malloc(ACKS_SIZE + ACK_SIZE)
        self.latencies = <uint64_t *>calloc(LATENCY_BUCKETS, sizeof(uint64_t))
        if not (self.connections and self.acks and self.latencies):
            raise MemoryError
        for i in range(self.size):
            self.connections[i].fd = sockets[i]
            self.connections[i].first = firsts[i]
            self.connections[i].count = counts[i]
            self.connections[i].stamps = <uint32_t *>calloc(ring, sizeof(uint32_t))
            if self.connections[i].stamps == NULL:
                raise MemoryError
        self._take_sessions(sessions)
        self.epoll = epoll_create1(EPOLL_CLOEXEC)
        if self.epoll < 0:
            raise OSError(errno, os.strerror(errno))
        self.open = self.size
        for i in range(self.size):
            if self._watch(i, EPOLL_CTL_ADD, EPOLLIN) != 0:
                raise OSError(errno, os.strerror(errno))
        return 0

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
        free(self.acks)
        free(self.latencies)
        if self.epoll >= 0:
            close(self.epoll)

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

    # --- without the GIL -------------------------------------------------------------------------

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
