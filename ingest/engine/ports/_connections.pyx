# distutils: depends = ingest/csrc/connection.h ingest/csrc/tls.h ingest/csrc/foreign.h ingest/csrc/queue.h ingest/csrc/counters.h
"""The connections of one frame port of a worker, whichever its protocol: from the accepted socket to its end.

They live in an epoll of their own, nested in that of the event loop: the loop calls ``turn`` once for all of them that are
ready, and a turn does not hold the GIL. `asyncio.BufferedProtocol` was measured first: one Python callback for each
socket event costs more than the frame it brings, and what came is verified connection by connection, which leaves
the SIMD lanes empty at one frame in flight each.

All sockets are watched edge-triggered and for everything, once: a connection that is not to be read now (no place in
the arena, too much unread or unanswered) stays readable, and nothing spins or is registered anew.

`csrc/connection.h` has the states of a connection. What it has to do for its protocol is the business of the two servers,
`_put_server` and `_get_server`, which keep it under the same slot.
"""

import os

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

from ingest.engine._queue cimport C_FOREIGN_TLS, word_add_above_zero
from ingest.engine.ports._rare_events cimport (
    CLOSED_HANDSHAKE, CLOSED_NOT_TLS, CLOSED_SLOW_HANDSHAKE, SPOKE_TLS, RareEvents, rare_kind,
)

from ingest import limits
from ingest.engine._queue import ROW_WORKER


cdef extern from "<sys/socket.h>" nogil:
    enum: SHUT_WR
    int shutdown(int fd, int how)

cdef extern from "csrc/foreign.h" nogil:
    enum: FOREIGN_NONE
    int foreign_protocol(const uint8_t *p, uint32_t size)


cdef enum:
    EVENTS_MAX = 1024  # sockets seen in one turn; the others wait in the kernel
    DISCARD_SIZE = 65536  # bytes
    DISCARDS_MAX = 16  # receives of a connection in one turn whose bytes are dropped

cdef uint64_t DOORBELL = <uint64_t>-1
cdef double LINGER = limits.LINGER_S
cdef double HANDSHAKE_TIMEOUT = limits.TLS_HANDSHAKE_TIMEOUT_S


cdef class Connections:
    """The connections of one port of worker ``slot``.

    Times are seconds of the clock given to ``tick``. ``turn``, ``tick`` and ``begin_drain`` return what is worth a
    line in the log, a list of (what, peer, number), or None.
    """

    def __cinit__(self):
        self.epoll_fd = self.doorbell_fd = -1

    cdef int _open(self, Queue queue, int slot, int slots_max, int doorbell_fd, atomic_u32 *open_count,
                   port_counters port, str bad, str unread, str partial) except -1:
        self.queue = queue
        self.slot = slot
        self.counters = queue.counters(ROW_WORKER + slot)
        self.slots_max = slots_max
        self.doorbell_fd = doorbell_fd
        self.open_count = open_count
        self.port = port
        self.rare = RareEvents(slots_max, bad, unread, partial)
        self.to_read.purpose = self.to_discard.purpose = TO_READ
        self.to_send.purpose = TO_SEND
        self._peers = []
        self._free_slots = []
        # Pages that no connection ever used are never touched: the tables cost address space, not memory.
        self.table = <connection *>calloc(slots_max, sizeof(connection))
        self.closed = <uint32_t *>calloc(slots_max, sizeof(uint32_t))
        self.events = <epoll_event *>calloc(EVENTS_MAX, sizeof(epoll_event))
        self.discarded = <uint8_t *>malloc(DISCARD_SIZE)
        if self.table == NULL or self.closed == NULL or self.events == NULL or self.discarded == NULL:
            raise MemoryError
        self.epoll_fd = epoll_create1(EPOLL_CLOEXEC)
        if self.epoll_fd < 0:
            raise OSError(errno, os.strerror(errno))
        self._watch(doorbell_fd, EPOLLIN | EPOLLET, DOORBELL)
        return 0

    def __dealloc__(self):
        cdef uint32_t i
        if self.table != NULL:
            for i in range(self.slots_used):
                if self.table[i].state != CONNECTION_FREE:
                    close_fd(self.table[i].fd)
                tls_free(self.table[i].tls)
        if self.epoll_fd >= 0:
            close_fd(self.epoll_fd)
        free(self.table)
        free(self.closed)
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

    # --- what the servers replace

    cdef void _turn(self) noexcept nogil:
        pass

    cdef void _go_on_later(self) noexcept nogil:
        pass

    cdef bint _may_read(self, const connection *c) noexcept nogil:
        return True

    cdef bint _has_work(self, const connection *c) noexcept nogil:
        return False

    cdef void _check_work(self, connection *c, double now) noexcept nogil:
        pass

    cdef void _forget_partial(self, connection *c) noexcept nogil:
        c.carry_size = 0

    cdef void _forget_work(self, connection *c) noexcept nogil:
        pass

    # --- what Python sees

    def set_tls(self, context):
        """Connections adopted from now on speak TLS by this `TlsContext` of a server; None: they speak plainly."""
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
        cdef connection *c
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
        if c.generation == 0:  # so that no cookie is 0, which means that nobody owns a place
            c.generation = 1
        c.state = CONNECTION_OPEN
        c.readable = c.at_end = c.began = c.proved = c.foreign = 0
        c.writable = 1
        c.carry_size = 0
        c.received_at = c.partial_at = c.sent_at = c.adopted_at = self.now
        c.linger_since = -1
        try:
            c.tls = self._new_session(fd)
            self._watch(fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, connection_cookie(c))
        except (OSError, MemoryError):
            c.state = CONNECTION_FREE
            tls_free(c.tls)
            c.tls = NULL
            self._free_slots.append(slot)
            self._refuse(fd)
            raise
        self.connections += 1
        self.counters[self.port.accepted] += 1
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
        word_add_above_zero(self.open_count, -1)
        self.counters[self.port.refused] += 1

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
                if self.table[i].state != CONNECTION_FREE:
                    if not self.ticked:
                        self.table[i].received_at = self.table[i].partial_at = self.table[i].sent_at = now
                        self.table[i].adopted_at = now
                    self._check_deadlines(&self.table[i], now)
            self.now = now
            self.ticked = True
            self._go_on_later()
        return self._report()

    def begin_drain(self):
        """Reads no more; each connection ends when what it sent whole is answered."""
        self._check_open()
        cdef uint32_t i
        self.draining = True
        with nogil:
            for i in range(self.slots_used):
                if self.table[i].state == CONNECTION_OPEN:
                    self._stop_reading(&self.table[i], CONNECTION_DRAINING)
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
        if self.rare.count == 0 and self.closed_count == 0:
            return None
        cdef uint32_t i
        events = self.rare.take(self._peers)
        for i in range(self.closed_count):
            self._peers[self.closed[i]] = None
            self._free_slots.append(self.closed[i])
        self.closed_count = 0
        return events or None

    # --- in a turn

    cdef void _poll(self) noexcept nogil:
        cdef int n, i
        while True:
            n = epoll_wait(self.epoll_fd, self.events, EVENTS_MAX, 0)
            if n >= 0 or errno != EINTR:
                break
        for i in range(n):
            if self.events[i].data.u64 != DOORBELL:  # watched by its edges: it needs no reading
                self._take_event(&self.events[i])

    cdef void _take_event(self, const epoll_event *event) noexcept nogil:
        cdef connection *c = self._connection(event.data.u64)
        cdef uint32_t what = event.events
        if c == NULL:
            return
        if what & EPOLLERR:
            self._drop(c)
            return
        # HUP alone says that both sides have ended: what the peer sent before is still read, or closing would reset.
        if what & (EPOLLRDHUP | EPOLLHUP):
            c.at_end = 1
        if what & (EPOLLIN | EPOLLRDHUP | EPOLLHUP) or (what & EPOLLOUT and c.tls != NULL and c.tls.wants_write):
            c.readable = 1
            self._queue_reading(c)
        if what & EPOLLOUT and not c.writable:
            c.writable = 1
            connection_queue_push(&self.to_send, c)

    cdef connection *_connection(self, uint64_t cookie) noexcept nogil:
        cdef uint32_t slot = <uint32_t>cookie
        cdef connection *c
        if slot >= self.slots_used:
            return NULL
        c = &self.table[slot]
        if c.state == CONNECTION_FREE or c.generation != <uint32_t>(cookie >> 32):
            return NULL
        return c

    cdef void _queue_reading(self, connection *c) noexcept nogil:
        if not c.readable or c.state == CONNECTION_FREE or c.state == CONNECTION_FINISHED:
            return
        if c.state != CONNECTION_OPEN:
            connection_queue_push(&self.to_discard, c)
        elif self._may_read(c):
            connection_queue_push(&self.to_read, c)

    cdef void _unqueue_reading(self, connection *c) noexcept nogil:
        connection_queue_remove(&self.to_read if c.state == CONNECTION_OPEN else &self.to_discard, c)

    cdef void _received_none(self, connection *c, ssize_t n) noexcept nogil:
        if n == 0:
            c.readable = 0
            self._forget_partial(c)
            c.state = CONNECTION_FINISHED
            self._settle(c)
        elif n == -EAGAIN:
            c.readable = 0
        elif tls_in_handshake(c.tls):
            self._refuse_handshake(c)
        else:
            self._drop(c)

    cdef void _refuse_handshake(self, connection *c) noexcept nogil:
        """Not closed at once: a reset would destroy the alert that tells the peer why."""
        if c.tls.state == TLS_PLAIN:
            self.counters[self.port.not_tls] += 1
            self._note(CLOSED_NOT_TLS, c, 0)
        else:
            self.counters[self.port.handshake] += 1
            self._note(CLOSED_HANDSHAKE, c, c.tls.error)
        self._stop_reading(c, CONNECTION_REFUSED)

    cdef void _discard_all(self) noexcept nogil:
        cdef uint32_t n = self.to_discard.count
        while n > 0:
            n -= 1
            self._discard(self.to_discard.first)

    cdef void _discard(self, connection *c) noexcept nogil:
        cdef int i
        cdef ssize_t n
        self._unqueue_reading(c)
        for i in range(DISCARDS_MAX):
            n = connection_receive(c, self.discarded, DISCARD_SIZE)
            if n < DISCARD_SIZE and not (n > 0 and c.at_end):
                break
        if n > 0:
            c.readable = n == DISCARD_SIZE or c.at_end
            self._queue_reading(c)
        elif n == -EAGAIN:
            c.readable = 0
        elif n == 0 and c.state != CONNECTION_LINGERING:
            c.readable = 0
            c.state = CONNECTION_FINISHED  # nothing is left that a reset could be sent for
            self._settle(c)
        else:
            self._drop(c)

    cdef void _look_for_foreign(self, connection *c, const uint8_t *start, uint32_t size) noexcept nogil:
        cdef int protocol = foreign_protocol(start, size)
        if protocol != FOREIGN_NONE and not c.foreign:
            c.foreign = 1
            self.counters[<int>C_FOREIGN_TLS + protocol - 1] += 1
            self._note(<rare_kind>(SPOKE_TLS + protocol - 1), c, 0)

    # --- ending

    cdef void _stop_reading(self, connection *c, uint8_t state) noexcept nogil:
        self._unqueue_reading(c)
        self._forget_partial(c)
        c.state = state
        self._queue_reading(c)
        self._settle(c)

    cdef void _settle(self, connection *c) noexcept nogil:
        if (c.state == CONNECTION_FREE or c.state == CONNECTION_OPEN or c.state == CONNECTION_LINGERING
                or self._has_work(c)):
            return
        tls_end(c.tls)
        if c.state == CONNECTION_FINISHED or shutdown(c.fd, SHUT_WR) < 0:
            self._drop(c)
        else:
            c.state = CONNECTION_LINGERING

    cdef void _check_deadlines(self, connection *c, double now) noexcept nogil:
        if c.state == CONNECTION_LINGERING:
            if c.linger_since < 0:
                c.linger_since = now
            elif now - c.linger_since >= LINGER:
                self._drop(c)
        elif not tls_in_handshake(c.tls):
            self._check_work(c, now)
        elif now - c.adopted_at >= HANDSHAKE_TIMEOUT:
            self.counters[self.port.handshake] += 1
            self._note(CLOSED_SLOW_HANDSHAKE, c, 0)
            self._drop(c)

    cdef void _expire(self, connection *c, rare_kind kind, uint32_t value) noexcept nogil:
        self.counters[self.port.closed + <int>kind] += 1
        self._note(kind, c, value)
        self._drop(c)

    cdef void _note(self, rare_kind kind, connection *c, uint32_t value) noexcept nogil:
        self.rare.note(kind, c.slot, value)

    cdef void _drop(self, connection *c) noexcept nogil:
        if c.state == CONNECTION_FREE:
            return
        self._unqueue_reading(c)
        connection_queue_remove(&self.to_send, c)
        self._forget_partial(c)
        self._forget_work(c)
        # Not left to close(): a sibling that passed the socket here may still hold its own copy.
        epoll_ctl(self.epoll_fd, EPOLL_CTL_DEL, c.fd, NULL)
        tls_free(c.tls)
        c.tls = NULL
        close_fd(c.fd)
        c.fd = -1
        c.state = CONNECTION_FREE
        self.connections -= 1
        word_add_above_zero(self.open_count, -1)
        self.closed[self.closed_count] = c.slot
        self.closed_count += 1
