"""The connections of one frame port, for the two servers that speak its protocol: `_put_server` and `_get_server`."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from ingest.engine._queue cimport Queue, atomic_u32
from ingest.engine.ports._rare_events cimport RareEvents, rare_kind


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

cdef extern from "<unistd.h>" nogil:
    int close_fd "close"(int fd)

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

cdef extern from "csrc/connection.h" nogil:
    enum: CONNECTION_FREE
    enum: CONNECTION_OPEN
    enum: CONNECTION_FINISHED
    enum: CONNECTION_REFUSED
    enum: CONNECTION_DRAINING
    enum: CONNECTION_LINGERING
    enum connection_purpose:
        TO_READ
        TO_SEND
    ctypedef struct connection:
        int fd
        uint32_t slot, generation
        uint8_t state, readable, writable, at_end, began, proved, foreign
        uint32_t carry_size
        double received_at, partial_at, sent_at, linger_since, adopted_at
        tls_session *tls
    ctypedef struct connection_queue:
        connection *first
        uint32_t count
        connection_purpose purpose
    uint64_t connection_cookie(const connection *c)
    ssize_t connection_receive(connection *c, uint8_t *buffer, size_t size)
    ssize_t connection_send(connection *c, const uint8_t *data, size_t size)
    void connection_queue_push(connection_queue *q, connection *c)
    void connection_queue_remove(connection_queue *q, connection *c)


# Which counters of the worker are this port's.
ctypedef struct port_counters:
    int accepted
    int refused
    int closed       # the first of four
    int handshake
    int not_tls


cdef class Connections:
    cdef readonly int connections          # open now
    cdef readonly int slot                 # of the worker
    cdef Queue queue
    cdef uint64_t *counters                # of the worker
    cdef connection *table                 # slots_max
    cdef uint32_t slots_max, slots_used
    cdef connection_queue to_read          # OPEN, with bytes to receive, and `_may_read`
    cdef connection_queue to_discard       # REFUSED, DRAINING, LINGERING, with bytes to drop
    cdef connection_queue to_send          # with something for their peers, or a socket that takes bytes again
    cdef int doorbell_fd                   # an eventfd that ends the event loop's wait; the server's
    cdef double now                        # the clock of tick()
    cdef bint ticked, draining
    cdef int epoll_fd
    cdef epoll_event *events
    cdef uint8_t *discarded
    cdef uint32_t *closed                  # slots that wait for Python to forget their peer
    cdef uint32_t closed_count
    cdef RareEvents rare
    cdef port_counters port
    cdef atomic_u32 *open_count            # in shared memory: this port's connections, with those on their way here
    cdef list _peers
    cdef list _free_slots
    cdef object _tls

    # Makes it work: `bad`, `unread` and `partial` are the names of the first three rare events.
    cdef int _open(self, Queue queue, int slot, int slots_max, int doorbell_fd, atomic_u32 *open_count,
                   port_counters port, str bad, str unread, str partial) except -1

    # --- what each of the two servers does in its own way

    # All that can be done now.
    cdef void _turn(self) noexcept nogil
    # Rings the doorbell when there is more to do at once.
    cdef void _go_on_later(self) noexcept nogil
    # Whether an open connection with bytes to receive is to be read now.
    cdef bint _may_read(self, const connection *c) noexcept nogil
    # Whether something of it is unanswered or unsent.
    cdef bint _has_work(self, const connection *c) noexcept nogil
    # Closes it when a deadline of the protocol has passed; if none has, gives back the memory that it needs no more.
    cdef void _check_work(self, connection *c, double now) noexcept nogil
    # What came in part will not become whole.
    cdef void _forget_partial(self, connection *c) noexcept nogil
    # It is closed: forgets all that the server keeps under its slot.
    cdef void _forget_work(self, connection *c) noexcept nogil

    # --- what both use

    # The connection that has the cookie, or NULL.
    cdef connection *_connection(self, uint64_t cookie) noexcept nogil
    # Sees which sockets are ready, and queues their connections.
    cdef void _poll(self) noexcept nogil
    # Queues a connection to be read, if it is to be read at all.
    cdef void _queue_reading(self, connection *c) noexcept nogil
    cdef void _unqueue_reading(self, connection *c) noexcept nogil
    # After connection_receive gave no bytes but `n` ≤ 0.
    cdef void _received_none(self, connection *c, ssize_t n) noexcept nogil
    # Receives and drops what those send that are not listened to any more.
    cdef void _discard_all(self) noexcept nogil
    # Notes it when a frame or request begins like another protocol.
    cdef void _look_for_foreign(self, connection *c, const uint8_t *start, uint32_t size) noexcept nogil
    # From OPEN to REFUSED or DRAINING: what else comes is dropped.
    cdef void _stop_reading(self, connection *c, uint8_t state) noexcept nogil
    # Ends a connection that is not read any more, if it has no work left.
    cdef void _settle(self, connection *c) noexcept nogil
    # A line for the log.
    cdef void _note(self, rare_kind kind, connection *c, uint32_t value) noexcept nogil
    # Closes it because of its peer, which is counted and noted: one of the first four kinds.
    cdef void _expire(self, connection *c, rare_kind kind, uint32_t value) noexcept nogil
    # Closes it now.
    cdef void _drop(self, connection *c) noexcept nogil
    # The rare events since the last report, or None; forgets the peers of closed connections.
    cdef object _report(self)
    cdef int _check_open(self) except -1
    cdef int _watch(self, int fd, uint32_t events, uint64_t data) except -1
    cdef tls_session *_new_session(self, int fd) except? NULL
    cdef void _refuse(self, int fd) noexcept nogil
    cdef void _take_event(self, const epoll_event *event) noexcept nogil
    cdef void _discard(self, connection *c) noexcept nogil
    cdef void _refuse_handshake(self, connection *c) noexcept nogil
    cdef void _check_deadlines(self, connection *c, double now) noexcept nogil
