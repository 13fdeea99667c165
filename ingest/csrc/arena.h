/* The places of one worker's arena: which are outstanding, whose they are, and where the next frames are received.
 *
 * The arena is divided in blocks. One of them, the fill block, is being received into; `fill` moves over it by whole
 * frames, so that a block is an array of frames without gaps. A place that was handed to the committer is outstanding
 * until its outcome came; a block is free when none of its places is outstanding and it is not the fill block. A fill
 * block with nothing outstanding is filled from its start again: at low load the same few pages stay in the cache. */
#ifndef INGEST_ARENA_H
#define INGEST_ARENA_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define ARENA_NO_BLOCK UINT32_MAX

typedef struct {
    uint32_t places;       /* of the arena */
    uint32_t block_places; /* of one block; divides `places` */
    uint32_t block;        /* the fill block, or ARENA_NO_BLOCK */
    uint32_t fill;         /* place of the next frame */
    uint32_t fill_end;     /* end of the fill block (= fill when there is no room) */
    uint32_t free_count;
    uint32_t outstanding;
    uint64_t *owner; /* places: cookie of the connection while outstanding, else 0 */
    uint8_t *kind;   /* places: run_kind while outstanding */
    uint32_t *received; /* places: when, in microseconds of a clock that may wrap */
    uint32_t *busy;  /* blocks: outstanding places in each */
    uint32_t *free;  /* blocks: a stack, so that the block used last (still in the cache) is used next */
} arena;

/* 0, or -1 without memory. */
static inline int arena_init(arena *a, uint32_t places, uint32_t block_places)
{
    uint32_t blocks = places / block_places;
    memset(a, 0, sizeof(*a));
    a->places = places;
    a->block_places = block_places;
    a->block = ARENA_NO_BLOCK;
    a->owner = calloc(places, sizeof(*a->owner));
    a->kind = calloc(places, sizeof(*a->kind));
    a->received = calloc(places, sizeof(*a->received));
    a->busy = calloc(blocks, sizeof(*a->busy));
    a->free = calloc(blocks, sizeof(*a->free));
    if (!a->owner || !a->kind || !a->received || !a->busy || !a->free)
        return -1;
    for (uint32_t b = blocks; b-- > 0;)
        a->free[a->free_count++] = b;
    return 0;
}

static inline void arena_close(arena *a)
{
    free(a->owner);
    free(a->kind);
    free(a->received);
    free(a->busy);
    free(a->free);
    memset(a, 0, sizeof(*a));
}

/* Fills the block from its start again when nothing of it is outstanding. Only while no frame waits to be handed over. */
static inline void arena_rewind(arena *a)
{
    if (a->block != ARENA_NO_BLOCK && a->busy[a->block] == 0)
        a->fill = a->block * a->block_places;
}

/* Makes a free block the fill block. 0 when there is none: then the fill block stays. */
static inline int arena_next_block(arena *a)
{
    uint32_t old = a->block;
    if (a->free_count == 0)
        return 0;
    a->block = a->free[--a->free_count];
    a->fill = a->block * a->block_places;
    a->fill_end = a->fill + a->block_places;
    if (old != ARENA_NO_BLOCK && a->busy[old] == 0)
        a->free[a->free_count++] = old;
    return 1;
}

static inline uint32_t arena_room(const arena *a) { return a->fill_end - a->fill; }

/* Whether a receive would find room, now or after a rewind. */
static inline int arena_has_room(const arena *a)
{
    return a->free_count > 0 || arena_room(a) > 0 || (a->block != ARENA_NO_BLOCK && a->busy[a->block] == 0);
}

/* `count` places of one block, received at one time, become outstanding. */
static inline void arena_take(arena *a, uint32_t place, uint32_t count, uint64_t owner, uint8_t kind, uint32_t received)
{
    for (uint32_t i = 0; i < count; i++) {
        a->owner[place + i] = owner;
        a->kind[place + i] = kind;
        a->received[place + i] = received;
    }
    a->busy[place / a->block_places] += count;
    a->outstanding += count;
}

/* Whether these places are outstanding and belong to `owner`: what an outcome must name. */
static inline int arena_owned(const arena *a, uint32_t place, uint32_t count, uint64_t owner)
{
    if (count == 0 || count > a->places || place > a->places - count || owner == 0 ||
        place / a->block_places != (place + count - 1) / a->block_places)
        return 0;
    for (uint32_t i = 0; i < count; i++)
        if (a->owner[place + i] != owner)
            return 0;
    return 1;
}

/* Places of one block are not outstanding any more; their frames may be overwritten from now on. */
static inline void arena_release(arena *a, uint32_t place, uint32_t count)
{
    uint32_t b = place / a->block_places;
    memset(a->owner + place, 0, count * sizeof(*a->owner));
    a->outstanding -= count;
    a->busy[b] -= count;
    if (a->busy[b] == 0 && b != a->block)
        a->free[a->free_count++] = b;
}

#endif
