"""A raw TCP sink, the upper limit that benchmarks measure against: it reads frames into one buffer, looks at nothing but
their tickets, drops them, and acks each SAVED. It is no server: nothing is verified and nothing stored."""

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memmove, memset

import os
import socket



cdef extern from "csrc/frame.h" nogil:
    enum: FRAME_SIZE
    enum: ACK_SIZE

cdef extern from "<sys/epoll.h>" nogil:
    enum: EPOLL_CTL_ADD
    enum: EPOLL_CTL_MOD
    enum: EPOLLIN
    enum: EPOLLOUT
    enum: EPOLL_CLOEXEC
    ctypedef union epoll_data_t:
        uint32_t u32
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epoll, int op, int fd, epoll_event *event)
    int epoll_wait(int epoll, epoll_event *events, int n, int timeout_ms)

cdef extern from "<sys/socket.h>" nogil:
    enum: MSG_NOSIGNAL
    enum: MSG_DONTWAIT
    ssize_t send(int fd, const void *data, size_t size, int flags)
    ssize_t recv(int fd, void *data, size_t size, int flags)

cdef extern from "<unistd.h>" nogil:
    int close(int fd)

cdef enum:
    RECEIVE_SIZE = 256 << 10
    EVENTS_MAX = 256
    CONNECTIONS_MAX = 65536     # descriptors are smaller
    NEW_CONNECTION = 0xFFFFFFFF # marks the descriptor that connections come from

cdef struct sink_connection:
    int have            # bytes of the current frame
    uint8_t ticket[8]
    uint8_t *acks       # what could not be sent yet, or NULL
    size_t acks_size


cdef class Sink:
    """Serves the connections that arrive, as descriptors, on ``source`` (a SOCK_STREAM end of a socket pair)."""

    cdef object source
    cdef int epoll
    cdef sink_connection *connections   # by descriptor
    cdef uint8_t *buffer
    cdef uint8_t *acks

    def __cinit__(self):
        self.epoll = -1

    def __init__(self, source):
        self.source = source
        self.connections = <sink_connection *>calloc(CONNECTIONS_MAX, sizeof(sink_connection))
        self.buffer = <uint8_t *>malloc(RECEIVE_SIZE)
        self.acks = <uint8_t *>malloc((RECEIVE_SIZE // FRAME_SIZE + 2) * ACK_SIZE)
        self.epoll = epoll_create1(EPOLL_CLOEXEC)
        if not (self.connections and self.buffer and self.acks):
            raise MemoryError
        if self.epoll < 0 or self._watch(EPOLL_CTL_ADD, source.fileno(), NEW_CONNECTION, EPOLLIN) != 0:
            raise OSError(errno, os.strerror(errno))

    def __dealloc__(self):
        cdef int fd
        if self.connections != NULL:
            for fd in range(CONNECTIONS_MAX):
                free(self.connections[fd].acks)
        free(self.connections)
        free(self.buffer)
        free(self.acks)
        if self.epoll >= 0:
            close(self.epoll)

    def serve(self):
        """Until the other end of ``source`` is closed."""
        cdef int arrived
        while True:
            with nogil:
                arrived = self._serve()
            if arrived < 0:
                raise OSError(errno, os.strerror(errno))
            _, fds, _, _ = socket.recv_fds(self.source, 1, 1)
            if not fds:
                return
            if fds[0] >= CONNECTIONS_MAX or self._watch(EPOLL_CTL_ADD, fds[0], fds[0], EPOLLIN) != 0:
                close(fds[0])

    cdef int _serve(self) noexcept nogil:
        """Until a new connection arrives (1) or epoll fails (-1)."""
        cdef epoll_event events[EVENTS_MAX]
        cdef int i, n, arrived = 0
        while not arrived:
            n = epoll_wait(self.epoll, events, EVENTS_MAX, -1)
            if n < 0 and errno != EINTR:
                return -1
            for i in range(n):
                if events[i].data.u32 == NEW_CONNECTION:
                    arrived = 1
                elif self._turn(<int>events[i].data.u32) != 0:
                    self._forget(<int>events[i].data.u32)
        return 1

    cdef int _turn(self, int fd) noexcept nogil:
        """Sends acks, receives once. Not 0: the connection is over."""
        cdef sink_connection *c = &self.connections[fd]
        cdef ssize_t n
        if c.acks != NULL:
            n = send(fd, c.acks, c.acks_size, MSG_NOSIGNAL | MSG_DONTWAIT)
            if n < 0:
                return 0 if errno == EAGAIN or errno == EINTR else -1
            if <size_t>n < c.acks_size:
                c.acks_size -= <size_t>n
                memmove(c.acks, c.acks + n, c.acks_size)
                return 0
            free(c.acks)
            c.acks = NULL
            c.acks_size = 0
            return self._watch(EPOLL_CTL_MOD, fd, fd, EPOLLIN)
        n = recv(fd, self.buffer, RECEIVE_SIZE, MSG_DONTWAIT)
        if n <= 0:
            return 0 if n < 0 and (errno == EAGAIN or errno == EINTR) else -1
        return self._answer(fd, self._parse(c, <size_t>n))

    cdef size_t _parse(self, sink_connection *c, size_t size) noexcept nogil:
        """Bytes of acks for the frames that end in the buffer."""
        cdef size_t at = 0, step, acks = 0
        while at < size:
            if c.have < 8:
                step = min(<size_t>(8 - c.have), size - at)
                memcpy(&c.ticket[c.have], self.buffer + at, step)
            else:
                step = min(<size_t>(FRAME_SIZE - c.have), size - at)
            c.have += <int>step
            at += step
            if c.have == FRAME_SIZE:
                memcpy(self.acks + acks, c.ticket, 8)
                self.acks[acks + 8] = 1
                acks += ACK_SIZE
                c.have = 0
        return acks

    cdef int _answer(self, int fd, size_t size) noexcept nogil:
        cdef sink_connection *c = &self.connections[fd]
        cdef ssize_t n
        if size == 0:
            return 0
        n = send(fd, self.acks, size, MSG_NOSIGNAL | MSG_DONTWAIT)
        if n < 0:
            if errno != EAGAIN and errno != EINTR:
                return -1
            n = 0
        if <size_t>n == size:
            return 0
        c.acks_size = size - <size_t>n
        c.acks = <uint8_t *>malloc(c.acks_size)  # nothing more is read before they are gone
        if c.acks == NULL:
            return -1
        memcpy(c.acks, self.acks + n, c.acks_size)
        return self._watch(EPOLL_CTL_MOD, fd, fd, EPOLLOUT)

    cdef void _forget(self, int fd) noexcept nogil:
        free(self.connections[fd].acks)
        memset(&self.connections[fd], 0, sizeof(sink_connection))
        close(fd)

    cdef int _watch(self, int op, int fd, uint32_t name, uint32_t events) noexcept nogil:
        cdef epoll_event event
        memset(&event, 0, sizeof(event))
        event.events = events
        event.data.u32 = name
        return epoll_ctl(self.epoll, op, fd, &event)
