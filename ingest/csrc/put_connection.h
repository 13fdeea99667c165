/* One connection of the put port: its socket, at most one partial frame, the acks that wait to be sent.
 *
 *  state      comes from                        reads                  leaves when nothing is outstanding or unsent
 *  OPEN       adopt                             into the arena         -
 *  FINISHED   end of stream                     nothing                closed
 *  REFUSED    the last bad frame it may send    and discards           FIN sent: LINGERING
 *  DRAINING   the worker drains                 and discards           FIN sent: LINGERING
 *  LINGERING  FIN sent                          and discards           closed at end of stream, or after LINGER_S
 *
 * LINGERING exists because closing a socket with unread bytes sends a reset, which destroys acks on their way. */
#ifndef INGEST_PUT_CONNECTION_H
#define INGEST_PUT_CONNECTION_H

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "frame.h"
#include "tls.h"

enum connection_state {
    CONNECTION_FREE = 0,
    CONNECTION_OPEN,
    CONNECTION_FINISHED,
    CONNECTION_REFUSED,
    CONNECTION_DRAINING,
    CONNECTION_LINGERING
};

typedef struct connection {
    int fd;
    uint32_t slot;
    uint32_t generation;  /* of the slot: an outcome for an earlier one finds no connection */
    uint8_t state;        /* connection_state */
    uint8_t readable;     /* the socket may hold bytes: edge-triggered, true until a receive came back short */
    uint8_t writable;     /* until a send came back short */
    uint8_t at_end;       /* the kernel told of a FIN: a short receive does not mean that nothing follows */
    uint8_t fast;         /* its last receive was filled to the brim */
    uint8_t queued;       /* in a queue of those to be read */
    uint8_t dirty;        /* in the list of those to be flushed */
    uint8_t foreign;      /* it spoke another protocol, which was noted */
    uint32_t bad_frames;
    uint32_t outstanding; /* places */
    uint32_t carry_size;  /* bytes of the partial frame */
    uint8_t *carry;       /* FRAME_SIZE bytes, made when first needed */
    uint8_t *acks;
    uint32_t acks_start, acks_end, acks_capacity; /* bytes */
    double received_at;   /* the clock of tick(): last byte received */
    double partial_at;    /* first byte of the partial frame received */
    double sent_at;       /* last byte sent, or first ack after there were none */
    double linger_since;  /* first tick in LINGERING, before that negative */
    double adopted_at;    /* the clock of tick() */
    tls_session *tls;     /* NULL: plain */
    struct connection *next, *previous; /* in the queue that it is in */
} connection;

static inline uint64_t connection_cookie(const connection *c) { return c->slot | (uint64_t)c->generation << 32; }
static inline uint32_t connection_unsent(const connection *c) { return c->acks_end - c->acks_start + tls_unsent(c->tls); }

/* Room for `n` more acks, 9 bytes each; NULL without memory. The caller moves `acks_end`. */
static inline uint8_t *connection_acks(connection *c, uint32_t n)
{
    uint32_t more = n * ACK_SIZE;
    if (c->acks_start == c->acks_end)
        c->acks_start = c->acks_end = 0;
    if (c->acks_end + more > c->acks_capacity && c->acks_start > 0) {
        memmove(c->acks, c->acks + c->acks_start, c->acks_end - c->acks_start);
        c->acks_end -= c->acks_start;
        c->acks_start = 0;
    }
    if (c->acks_end + more > c->acks_capacity) {
        uint32_t capacity = c->acks_capacity ? c->acks_capacity : 32 * ACK_SIZE;
        while (capacity < c->acks_end + more)
            capacity *= 2;
        uint8_t *acks = realloc(c->acks, capacity);
        if (!acks)
            return NULL;
        c->acks = acks;
        c->acks_capacity = capacity;
    }
    return c->acks + c->acks_end;
}

static inline int connection_send_tls(connection *c, uint32_t *sent)
{
    uint32_t before = connection_unsent(c);
    ssize_t n = tls_send(c->tls, c->acks + c->acks_start, c->acks_end - c->acks_start);
    if (n > 0)
        c->acks_start += (uint32_t)n;
    *sent = before - connection_unsent(c);
    if (n < 0)
        return (int)-n;
    if (connection_unsent(c))
        c->writable = 0;
    return 0;
}

/* Sends what waits, as far as the socket takes it. 0, or an errno that ends the connection. Sets *sent. */
static inline int connection_send(connection *c, uint32_t *sent)
{
    if (c->tls)
        return connection_send_tls(c, sent);
    *sent = 0;
    while (c->acks_start < c->acks_end) {
        uint32_t size = c->acks_end - c->acks_start;
        ssize_t n = send(c->fd, c->acks + c->acks_start, size, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0) {
            if (errno == EINTR)
                continue;
            if (errno != EAGAIN)
                return errno;
            /* Only this says that the socket is full, and that it will be told when it is not: a short send does not. */
            c->writable = 0;
            return 0;
        }
        c->acks_start += (uint32_t)n;
        *sent += (uint32_t)n;
    }
    return 0;
}

/* recv without waiting; the number of bytes, 0 at the end of the stream, or -errno. What is to be dropped is not decrypted:
 * then the bytes are those of the socket. */
static inline ssize_t connection_receive(connection *c, uint8_t *buffer, size_t size)
{
    if (c->tls && c->state == CONNECTION_OPEN)
        return tls_receive(c->tls, buffer, size);
    for (;;) {
        ssize_t n = recv(c->fd, buffer, size, MSG_DONTWAIT);
        if (n >= 0)
            return n;
        if (errno != EINTR)
            return -errno;
    }
}

/* Gives back buffers that a quiet connection does not need. */
static inline void connection_shrink(connection *c, uint32_t keep)
{
    if (c->acks_start == c->acks_end && c->acks_capacity > keep) {
        free(c->acks);
        c->acks = NULL;
        c->acks_start = c->acks_end = c->acks_capacity = 0;
    }
    if (c->carry_size == 0) {
        free(c->carry);
        c->carry = NULL;
    }
}

/* A queue of connections to be read: first come, first served. A connection is in at most one, at most once. */
typedef struct {
    connection *first, *last;
    uint32_t count;
} read_queue;

static inline void read_queue_push(read_queue *q, connection *c)
{
    if (c->queued)
        return;
    c->queued = 1;
    q->count++;
    c->next = NULL;
    c->previous = q->last;
    if (q->last)
        q->last->next = c;
    else
        q->first = c;
    q->last = c;
}

static inline void read_queue_remove(read_queue *q, connection *c)
{
    if (!c->queued)
        return;
    c->queued = 0;
    q->count--;
    if (c->previous)
        c->previous->next = c->next;
    else
        q->first = c->next;
    if (c->next)
        c->next->previous = c->previous;
    else
        q->last = c->previous;
    c->next = c->previous = NULL;
}

#endif
