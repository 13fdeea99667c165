/* One connection of the get port: its socket, the requests that wait, and the run that is on its way.
 *
 *  state      comes from                  reads            leaves when all requests are answered
 *  OPEN       adopt                       requests         -
 *  FINISHED   end of stream               nothing          closed
 *  REFUSED    a bad request               and discards     FIN sent: LINGERING
 *  DRAINING   the worker drains           and discards     FIN sent: LINGERING
 *  LINGERING  FIN sent                    and discards     closed at end of stream, or after LINGER_S
 *
 * Nothing that was read from disk is kept for a socket that takes no more: only how far it came, because a run of
 * tickets is as good to read again later. So a reader that does not read costs its requests and no more.
 *
 * LINGERING exists because closing a socket with unread bytes sends a reset, which destroys replies on their way. */
#ifndef INGEST_GET_CONNECTION_H
#define INGEST_GET_CONNECTION_H

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "frame.h"
#include "tls.h"

#define REQUEST_SIZE 24
#define RUN_HEADER_SIZE 16

enum get_state { GET_FREE = 0, GET_OPEN, GET_FINISHED, GET_REFUSED, GET_DRAINING, GET_LINGERING };
enum get_kind { GET_FRAMES = 0, GET_INVENTORY };

/* A request that was verified, or, with a status other than 0, one that is to be refused. */
typedef struct {
    int64_t first;
    uint32_t count;
    uint8_t kind;      /* get_kind */
    uint8_t status;
    uint8_t ticket[8]; /* as it was received */
} get_request;

/* A run as it is announced. Its frames are those of `first`, an index, and the tickets behind it. */
typedef struct {
    uint8_t header[RUN_HEADER_SIZE];
    int64_t first;
    uint32_t frames;   /* that follow the header */
    uint8_t failed;    /* reading it went wrong, which is counted once: zeros were sent, which no reader takes for a frame */
} get_run;

enum get_queue_name { TO_READ = 0, TO_SERVE = 1, GET_QUEUES = 2 };

typedef struct get_connection {
    int fd;
    uint32_t slot;
    uint32_t generation; /* of the slot: an event for an earlier one finds no connection */
    uint8_t state;       /* get_state */
    uint8_t readable;    /* the socket may hold bytes: edge-triggered, true until a receive came back short */
    uint8_t writable;    /* until a send came back short */
    uint8_t at_end;      /* the kernel told of a FIN: a short receive does not mean that nothing follows */
    uint8_t sending;     /* `run` is on its way */
    uint8_t foreign;     /* it spoke another protocol, which was noted */
    uint8_t carry_size;  /* bytes of the partial request */
    uint8_t carry[REQUEST_SIZE];
    get_request *requests; /* a ring */
    uint32_t capacity;     /* of it: 0 or a power of two */
    uint32_t head, tail;   /* free-running: requests head to before tail wait */
    uint32_t answered;     /* tickets of the request at head whose runs were sent */
    get_run run;
    uint64_t run_sent;     /* bytes of it, header and frames */
    double received_at;    /* the clock of tick(): last byte received */
    double partial_at;     /* first byte of the partial request received */
    double sent_at;        /* last byte sent, or first request after there were none */
    double linger_since;   /* first tick in LINGERING, before that negative */
    double adopted_at;     /* the clock of tick() */
    tls_session *tls;      /* NULL: plain */
    uint8_t queued[GET_QUEUES];
    struct get_connection *next[GET_QUEUES], *previous[GET_QUEUES];
} get_connection;

static inline uint64_t get_cookie(const get_connection *c) { return c->slot | (uint64_t)c->generation << 32; }
static inline uint32_t get_waiting(const get_connection *c) { return c->tail - c->head; }
static inline int get_has_work(const get_connection *c) { return c->sending || c->head != c->tail || tls_unsent(c->tls); }
static inline get_request *get_head(const get_connection *c) { return &c->requests[c->head & (c->capacity - 1)]; }

/* Room for `n` more requests, behind `tail`: 0, or -1 without memory. */
static int get_reserve(get_connection *c, uint32_t n)
{
    uint32_t waiting = get_waiting(c);
    if (waiting + n <= c->capacity)
        return 0;
    uint32_t capacity = c->capacity ? c->capacity : 32;
    while (capacity < waiting + n)
        capacity *= 2;
    get_request *requests = malloc(capacity * sizeof *requests);
    if (!requests)
        return -1;
    for (uint32_t i = 0; i < waiting; i++)
        requests[i] = c->requests[(c->head + i) & (c->capacity - 1)];
    free(c->requests);
    c->requests = requests;
    c->capacity = capacity;
    c->head = 0;
    c->tail = waiting;
    return 0;
}

/* Gives back what a connection that waits for nothing does not need. */
static inline void get_shrink(get_connection *c)
{
    if (c->head == c->tail && c->capacity) {
        free(c->requests);
        c->requests = NULL;
        c->capacity = c->head = c->tail = 0;
    }
}

static inline void run_header(uint8_t *out, const uint8_t *ticket, uint8_t status, uint32_t n)
{
    memcpy(out, ticket, 8);
    out[8] = status;
    out[9] = out[10] = out[11] = 0;
    out[12] = (uint8_t)(n >> 24);
    out[13] = (uint8_t)(n >> 16);
    out[14] = (uint8_t)(n >> 8);
    out[15] = (uint8_t)n;
}

/* recv without waiting; the number of bytes, 0 at the end of the stream, or -errno. */
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

/* send without waiting; the number of bytes (fewer: the socket is full, EPOLLOUT will tell when it is not), or -errno. */
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

/* The same two on a connection, whether it speaks TLS or not. */
static inline ssize_t get_receive(get_connection *c, uint8_t *buffer, size_t size)
{
    return c->tls ? tls_receive(c->tls, buffer, size) : socket_receive(c->fd, buffer, size);
}

static inline ssize_t get_send(get_connection *c, const uint8_t *data, size_t size)
{
    return c->tls ? tls_send(c->tls, data, size) : socket_send(c->fd, data, size);
}

/* Queues of connections: first come, first served. A connection is in each at most once. */
typedef struct {
    get_connection *first, *last;
    uint32_t count;
    enum get_queue_name name;
} get_queue;

static inline void get_queue_push(get_queue *q, get_connection *c)
{
    if (c->queued[q->name])
        return;
    c->queued[q->name] = 1;
    q->count++;
    c->next[q->name] = NULL;
    c->previous[q->name] = q->last;
    if (q->last)
        q->last->next[q->name] = c;
    else
        q->first = c;
    q->last = c;
}

static inline void get_queue_remove(get_queue *q, get_connection *c)
{
    if (!c->queued[q->name])
        return;
    c->queued[q->name] = 0;
    q->count--;
    if (c->previous[q->name])
        c->previous[q->name]->next[q->name] = c->next[q->name];
    else
        q->first = c->next[q->name];
    if (c->next[q->name])
        c->next[q->name]->previous[q->name] = c->previous[q->name];
    else
        q->last = c->previous[q->name];
    c->next[q->name] = c->previous[q->name] = NULL;
}

#endif
