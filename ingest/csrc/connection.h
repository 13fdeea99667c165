/* One connection of a frame port, whichever of the two: its socket, its TLS, and the times that deadlines are counted from.
 * What it has for the port's protocol stands beside it, under the same slot: put_work.h, get_work.h.
 *
 *  state      comes from                    reads                     leaves when nothing is unanswered or unsent
 *  OPEN       adopt                         for the protocol          -
 *  FINISHED   end of stream                 nothing                   closed
 *  REFUSED    what its peer may not send    and discards              FIN sent: LINGERING
 *  DRAINING   the worker drains             and discards              FIN sent: LINGERING
 *  LINGERING  FIN sent                      and discards              closed at end of stream, or after LINGER_S
 *
 * LINGERING exists because closing a socket with unread bytes sends a reset, which destroys answers on their way. */
#ifndef INGEST_CONNECTION_H
#define INGEST_CONNECTION_H

#include <errno.h>
#include <stdint.h>
#include <sys/socket.h>
#include <unistd.h>
#include "tls.h"

enum connection_state {
    CONNECTION_FREE = 0,
    CONNECTION_OPEN,
    CONNECTION_FINISHED,
    CONNECTION_REFUSED,
    CONNECTION_DRAINING,
    CONNECTION_LINGERING
};

enum connection_purpose { TO_READ = 0, TO_SEND, PURPOSES };

typedef struct connection {
    int fd;
    uint32_t slot;
    uint32_t generation;  /* of the slot: what belongs to an earlier one finds no connection */
    uint8_t state;        /* connection_state */
    uint8_t readable;     /* the socket may hold bytes: edge-triggered, true until a receive came back short */
    uint8_t writable;     /* until a send came back short */
    uint8_t at_end;       /* the kernel told of a FIN: a short receive does not mean that nothing follows */
    uint8_t began;        /* its first bytes were looked at: they are of no other protocol */
    uint8_t proved;       /* its peer has a key: a frame or a request of it was authentic */
    uint8_t foreign;      /* it spoke another protocol, which was noted */
    uint32_t carry_size;  /* bytes of the frame or request that came in part */
    double received_at;   /* the clock of tick(): last byte received */
    double partial_at;    /* first byte of what came in part received */
    double sent_at;       /* last byte sent, or first answer after there were none */
    double linger_since;  /* first tick in LINGERING, before that negative */
    double adopted_at;
    tls_session *tls;     /* NULL: plain */
    uint8_t queued[PURPOSES];
    struct connection *next[PURPOSES], *previous[PURPOSES]; /* in the queue that it is in */
} connection;

static inline uint64_t connection_cookie(const connection *c) { return c->slot | (uint64_t)c->generation << 32; }

static inline ssize_t socket_receive(int fd, uint8_t *buffer, size_t size)
{
    for (;;) {
        ssize_t n = recv(fd, buffer, size, MSG_DONTWAIT);
        if (n >= 0)
            return n;
        if (errno != EINTR)
            return -errno;
    }
}

static inline ssize_t socket_send(int fd, const uint8_t *data, size_t size)
{
    size_t sent = 0;
    while (sent < size) {
        ssize_t n = send(fd, data + sent, size - sent, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n >= 0)
            sent += (size_t)n; /* a short send alone does not say that the socket is full */
        else if (errno == EAGAIN)
            break;
        else if (errno != EINTR)
            return -errno;
    }
    return (ssize_t)sent;
}

/* recv without waiting; the number of bytes, 0 at the end of the stream, or -errno. What is to be dropped is not decrypted:
 * then the bytes are those of the socket. */
static inline ssize_t connection_receive(connection *c, uint8_t *buffer, size_t size)
{
    return c->tls && c->state == CONNECTION_OPEN ? tls_receive(c->tls, buffer, size) : socket_receive(c->fd, buffer, size);
}

/* send without waiting; the number of bytes (fewer: the socket is full, EPOLLOUT will tell when it is not), or -errno.
 * All may be taken and tls_unsent be left, which says the same. */
static inline ssize_t connection_send(connection *c, const uint8_t *data, size_t size)
{
    return c->tls ? tls_send(c->tls, data, size) : socket_send(c->fd, data, size);
}

/* A queue of connections: first come, first served. For each purpose a connection is in at most one, at most once. */
typedef struct {
    connection *first, *last;
    uint32_t count;
    enum connection_purpose purpose;
} connection_queue;

static inline void connection_queue_push(connection_queue *q, connection *c)
{
    int p = q->purpose;
    if (c->queued[p])
        return;
    c->queued[p] = 1;
    q->count++;
    c->next[p] = NULL;
    c->previous[p] = q->last;
    if (q->last)
        q->last->next[p] = c;
    else
        q->first = c;
    q->last = c;
}

static inline void connection_queue_remove(connection_queue *q, connection *c)
{
    int p = q->purpose;
    if (!c->queued[p])
        return;
    c->queued[p] = 0;
    q->count--;
    if (c->previous[p])
        c->previous[p]->next[p] = c->next[p];
    else
        q->first = c->next[p];
    if (c->next[p])
        c->next[p]->previous[p] = c->previous[p];
    else
        q->last = c->previous[p];
    c->next[p] = c->previous[p] = NULL;
}

#endif
