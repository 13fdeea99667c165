/* What one connection of the put port has to do: at most one partial frame, the frames that the committer has not answered,
 * and the acks that wait to be sent. All zero while there is no connection. */
#ifndef INGEST_PUT_WORK_H
#define INGEST_PUT_WORK_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include "connection.h"
#include "frame.h"

typedef struct {
    uint8_t fast;         /* its last receive was filled to the brim */
    uint32_t bad_frames;
    uint32_t outstanding; /* places */
    uint8_t *carry;       /* the partial frame, FRAME_SIZE bytes, made when first needed */
    uint8_t *acks;
    uint32_t acks_start, acks_end, acks_capacity; /* bytes */
} put_work;

static inline uint32_t acks_unsent(const put_work *w, const connection *c)
{
    return w->acks_end - w->acks_start + tls_unsent(c->tls);
}

/* Room for `n` more acks, 9 bytes each; NULL without memory. The caller moves `acks_end`. */
static inline uint8_t *acks_room(put_work *w, uint32_t n)
{
    uint32_t more = n * ACK_SIZE;
    if (w->acks_start == w->acks_end)
        w->acks_start = w->acks_end = 0;
    if (w->acks_end + more > w->acks_capacity && w->acks_start > 0) {
        memmove(w->acks, w->acks + w->acks_start, w->acks_end - w->acks_start);
        w->acks_end -= w->acks_start;
        w->acks_start = 0;
    }
    if (w->acks_end + more > w->acks_capacity) {
        uint32_t capacity = w->acks_capacity ? w->acks_capacity : 32 * ACK_SIZE;
        while (capacity < w->acks_end + more)
            capacity *= 2;
        uint8_t *acks = realloc(w->acks, capacity);
        if (!acks)
            return NULL;
        w->acks = acks;
        w->acks_capacity = capacity;
    }
    return w->acks + w->acks_end;
}

/* Sends what waits, as far as the socket takes it. 0, or an errno that ends the connection. Sets *sent. */
static inline int acks_send(put_work *w, connection *c, uint32_t *sent)
{
    uint32_t before = acks_unsent(w, c);
    ssize_t n = connection_send(c, w->acks + w->acks_start, w->acks_end - w->acks_start);
    if (n > 0)
        w->acks_start += (uint32_t)n;
    *sent = before - acks_unsent(w, c);
    if (n < 0)
        return (int)-n;
    if (acks_unsent(w, c))
        c->writable = 0;
    return 0;
}

/* Gives back buffers that a quiet connection does not need. */
static inline void put_shrink(put_work *w, uint32_t carry_size, uint32_t keep)
{
    if (w->acks_start == w->acks_end && w->acks_capacity > keep) {
        free(w->acks);
        w->acks = NULL;
        w->acks_start = w->acks_end = w->acks_capacity = 0;
    }
    if (carry_size == 0) {
        free(w->carry);
        w->carry = NULL;
    }
}

/* Of a connection that was closed. */
static inline void put_clear(put_work *w)
{
    free(w->carry);
    free(w->acks);
    memset(w, 0, sizeof *w);
}

#endif
