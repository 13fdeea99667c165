"""What `_put_server` takes from C: epoll, frames, places, connections; and its own small structures."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t


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
    int eventfd_write(int fd, uint64_t value)

cdef extern from "<sys/socket.h>" nogil:
    enum: SHUT_WR
    int shutdown(int fd, int how)

cdef extern from "<unistd.h>" nogil:
    int close_fd "close"(int fd)

cdef extern from "csrc/frame.h" nogil:
    enum: FRAME_SIZE
    enum: ACK_SIZE
    int64_t ticket_index(const uint8_t *ticket)
    int frames_run(const uint8_t *frames, int n, int64_t first)
    int32_t frame_delete_count(const uint8_t *frame, int64_t first)
    void acks_write(uint8_t *acks, const uint8_t *frames, int n, uint8_t status)

cdef extern from "csrc/arena.h" nogil:
    ctypedef struct arena:
        uint32_t places
        uint32_t block_places
        uint32_t fill
        uint32_t outstanding
        uint32_t free_count
        uint64_t *owner
        uint8_t *kind
        uint32_t *received
    int arena_init(arena *a, uint32_t places, uint32_t block_places)
    void arena_close(arena *a)
    void arena_rewind(arena *a)
    int arena_next_block(arena *a)
    uint32_t arena_room(const arena *a)
    int arena_has_room(const arena *a)
    void arena_take(arena *a, uint32_t place, uint32_t count, uint64_t owner, uint8_t kind,
                    uint32_t received)
    int arena_owned(const arena *a, uint32_t place, uint32_t count, uint64_t owner)
    void arena_release(arena *a, uint32_t place, uint32_t count)

cdef extern from "csrc/tls.h" nogil:
    enum: TLS_PLAIN
    ctypedef struct tls_library:
        pass
    ctypedef struct tls_session:
        uint8_t state, wants_write
        uint32_t error
    tls_session *tls_new(const tls_library *lib, void *ssl, int fd, bint is_server)
    void tls_free(tls_session *s)
    bint tls_in_handshake(const tls_session *s)
    bint tls_at_end(const tls_session *s)
    void tls_end(tls_session *s)

cdef extern from "csrc/put_connection.h" nogil:
    enum: CONNECTION_FREE
    enum: CONNECTION_OPEN
    enum: CONNECTION_FINISHED
    enum: CONNECTION_REFUSED
    enum: CONNECTION_DRAINING
    enum: CONNECTION_LINGERING
    ctypedef struct connection:
        int fd
        uint32_t slot, generation
        uint8_t state, readable, writable, at_end, fast, queued, dirty, foreign
        uint32_t bad_frames, outstanding, carry_size
        uint8_t *carry
        uint8_t *acks
        uint32_t acks_start, acks_end, acks_capacity
        double received_at, partial_at, sent_at, linger_since, adopted_at
        tls_session *tls
    ctypedef struct read_queue:
        connection *first
        uint32_t count
    uint64_t connection_cookie(const connection *c)
    uint32_t connection_unsent(const connection *c)
    uint8_t *connection_acks(connection *c, uint32_t n)
    int connection_send(connection *c, uint32_t *sent)
    ssize_t connection_receive(connection *c, uint8_t *buffer, size_t size)
    void connection_shrink(connection *c, uint32_t keep)
    void read_queue_push(read_queue *q, connection *c)
    void read_queue_remove(read_queue *q, connection *c)

cdef extern from "csrc/foreign.h" nogil:
    enum: FOREIGN_NONE
    int foreign_protocol(const uint8_t *p, uint32_t size)


# What a frame turned out to be, while a stretch is judged: FAILED_FIRST is what hmac_verify leaves.
cdef enum verdict:
    FAILED_FIRST = 0
    PUT_FRAME = 1
    DELETE_FRAME = 2
    FAILED_ALL = 3

# Frames that one connection brought in one turn.
ctypedef struct segment:
    connection *source
    uint32_t place
    uint32_t count

# Acks of frames that were received at one time.
ctypedef struct answered:
    uint32_t received   # microseconds of a clock that may wrap
    uint32_t frames

# What Python hears of after a turn.
ctypedef struct rare_event:
    uint32_t kind
    uint32_t slot
    uint32_t value

cdef enum rare_kind:
    CLOSED_BAD_FRAMES
    CLOSED_UNREAD_ACKS
    CLOSED_PARTIAL_FRAME
    CLOSED_IDLE
    SPOKE_TLS
    SPOKE_HTTP
    CLOSED_HANDSHAKE
    CLOSED_SLOW_HANDSHAKE
    CLOSED_NOT_TLS
