/* What one connection of the get port has to do: the requests that wait, and the run that is on its way. All zero while there
 * is no connection.
 *
 * Nothing that was read from disk is kept for a socket that takes no more: only how far it came, because a run of
 * tickets is as good to read again later. So a reader that does not read costs its requests and no more. */
#ifndef INGEST_GET_WORK_H
#define INGEST_GET_WORK_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include "connection.h"

#define REQUEST_SIZE 24
#define RUN_HEADER_SIZE 16

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

typedef struct {
    uint8_t carry[REQUEST_SIZE]; /* the partial request */
    uint8_t sending;       /* `run` is on its way */
    get_request *requests; /* a ring */
    uint32_t capacity;     /* of it: 0 or a power of two */
    uint32_t head, tail;   /* free-running: requests head to before tail wait */
    uint32_t answered;     /* tickets of the request at head whose runs were sent */
    get_run run;
    uint64_t run_sent;     /* bytes of it, header and frames */
} get_work;

/* Whether something of it is unanswered or unsent. */
static inline int get_has_work(const get_work *w, const connection *c)
{
    return w->sending || w->head != w->tail || tls_unsent(c->tls);
}

static inline uint32_t get_waiting(const get_work *w) { return w->tail - w->head; }
static inline get_request *get_head(const get_work *w) { return &w->requests[w->head & (w->capacity - 1)]; }

/* Room for `n` more requests, behind `tail`: 0, or -1 without memory. */
static int get_reserve(get_work *w, uint32_t n)
{
    uint32_t waiting = get_waiting(w);
    if (waiting + n <= w->capacity)
        return 0;
    uint32_t capacity = w->capacity ? w->capacity : 32;
    while (capacity < waiting + n)
        capacity *= 2;
    get_request *requests = malloc(capacity * sizeof *requests);
    if (!requests)
        return -1;
    for (uint32_t i = 0; i < waiting; i++)
        requests[i] = w->requests[(w->head + i) & (w->capacity - 1)];
    free(w->requests);
    w->requests = requests;
    w->capacity = capacity;
    w->head = 0;
    w->tail = waiting;
    return 0;
}

/* Gives back what a connection that waits for nothing does not need. */
static inline void get_shrink(get_work *w)
{
    if (w->head == w->tail && w->capacity) {
        free(w->requests);
        w->requests = NULL;
        w->capacity = w->head = w->tail = 0;
    }
}

/* Of a connection that was closed. */
static inline void get_clear(get_work *w)
{
    free(w->requests);
    memset(w, 0, sizeof *w);
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

#endif
