"""The connections of the load generator: `csrc/load.h` has the structure of one."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t


cdef extern from "csrc/tls.h" nogil:
    ctypedef struct tls_session:
        pass

cdef extern from "csrc/load.h" nogil:
    enum: ACK_SIZE
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

cdef enum:
    STATUS_LAST = 9

# The first thing that went wrong, with any of them.
cdef enum load_failure:
    FINE, LOST, UNKNOWN_ACK, UNKNOWN_STATUS, NO_MEMORY


cdef class LoadConnections:
    cdef load_connection *connections
    cdef int size                   # of connections
    cdef int open                   # connections with something left to do
    cdef int epoll
    cdef uint8_t *acks              # receive buffer, ACKS_SIZE
    cdef int64_t mask               # of the stamps of each connection
    cdef uint64_t started           # ns
    cdef double interval            # ns between two frames of all connections of the load together; 0: no rate is wanted
    cdef int64_t offset, total      # of our first connection among all, and how many those are
    cdef uint64_t statuses[STATUS_LAST + 1]
    cdef uint64_t *latencies
    cdef readonly uint64_t sent, acked
    cdef int failure, failed_connection, failed_errno
    cdef uint8_t failed_ack[ACK_SIZE]

    # Takes over what `Engine` is made of.
    cdef int _open(self, sockets, firsts, counts, list sessions, int window) except -1
    cdef int _take_sessions(self, list sessions) except -1
    cdef void _raise(self) except *

    # When frame `position` of connection `i` is to be sent, ns: where a rate is wanted.
    cdef inline uint64_t _due(self, int i, int64_t position) noexcept nogil:
        return self.started + <uint64_t>(<double>(position * self.total + self.offset + i) * self.interval)

    # Time in 256 ns; wraps after 18 minutes, much longer than anybody waits for an ack. Never 0.
    cdef inline uint32_t _stamp(self, uint64_t now) noexcept nogil:
        return <uint32_t>((now - self.started) >> 8) | 1

    # Sends whole frames, or keeps what the socket does not take: then the connection sends nothing else before.
    cdef void _write(self, int i, const uint8_t *data, size_t size) noexcept nogil
    # Sends what was kept.
    cdef void _flush(self, int i) noexcept nogil
    cdef size_t _push(self, int i, const uint8_t *data, size_t size) noexcept nogil
    # Takes the acks that came.
    cdef void _receive(self, int i, uint64_t now) noexcept nogil
    cdef bint _receive_once(self, int i, uint64_t now) noexcept nogil
    cdef void _take(self, int i, size_t n, uint64_t now) noexcept nogil
    # Notices when connection `i` has got its last ack.
    cdef void _settle(self, int i, uint64_t now) noexcept nogil
    cdef int _watch(self, int i, int op, uint32_t events) noexcept nogil
    cdef void _fail(self, int i, int code, int number) noexcept nogil
