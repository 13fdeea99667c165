/* What the load generator sends and how it counts latencies: `_load_content`, `_load_latency`, `_load_connections`.
 *
 * The data of a frame is a fixed table of random words, each XORed with one word that is a bijection of seed and
 * ticket index: every frame differs from every other, costs one pass over memory to make, and is checked by making it
 * again. */
#ifndef INGEST_LOAD_H
#define INGEST_LOAD_H

#include <stdint.h>
#include <string.h>
#include "frame.h"
#include "tls.h"

#define LOAD_WORDS 183 /* of 8 bytes: 1464 bytes, the first 1458 of which are used */

/* splitmix64, Sebastiano Vigna, https://prng.di.unimi.it/splitmix64.c (public domain): a bijection of x. */
static inline uint64_t load_mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15ULL;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
    return x ^ (x >> 31);
}

static inline void load_table(uint64_t seed, uint64_t *table)
{
    for (int i = 0; i < LOAD_WORDS; i++)
        table[i] = load_mix(seed ^ load_mix((uint64_t)i));
}

/* The 1458 bytes under ticket `index`. */
static inline void load_data(const uint64_t *table, uint64_t seed, int64_t index, uint8_t *data)
{
    uint64_t own = load_mix(seed ^ (uint64_t)index), last;
    for (int i = 0; i < LOAD_WORDS - 1; i++) {
        uint64_t word = table[i] ^ own;
        memcpy(data + 8 * i, &word, 8);
    }
    last = table[LOAD_WORDS - 1] ^ own;
    memcpy(data + 8 * (LOAD_WORDS - 1), &last, DATA_SIZE - 8 * (LOAD_WORDS - 1));
}

/* One more ticket of the same length, in place; 0 when there is none. */
static inline int load_ticket_next(uint8_t *t)
{
    int i = 7;
    while (t[i] == 0)
        i--;
    for (; i >= 0; i--) {
        if (t[i] == 'Z') {
            t[i] = '0';
            continue;
        }
        t[i] = t[i] == '9' ? 'A' : (uint8_t)(t[i] + 1);
        return 1;
    }
    return 0;
}

/* `n` unsigned frames with consecutive tickets from `first` on. */
static inline void load_frames(const uint64_t *table, uint64_t seed, int64_t first, int n, uint8_t *frames)
{
    uint8_t ticket[8];
    ticket_write(first, ticket);
    for (int i = 0; i < n; i++) {
        memcpy(frames, ticket, 8);
        load_data(table, seed, first + i, frames + FRAME_DATA);
        frames += FRAME_SIZE;
        if (!load_ticket_next(ticket))
            ticket_write(first + i + 1, ticket);
    }
}

/* A log-linear histogram (Gil Tene's HdrHistogram has the idea): 128 buckets for each power of two, so a value is known
 * to 0.8 % whatever it is. Values from 0 to 2^40 ns (18 minutes), larger ones count as that. */
#define LATENCY_BITS 7
#define LATENCY_BUCKETS ((40 - LATENCY_BITS + 1) << LATENCY_BITS)

static inline int latency_bucket(uint64_t ns)
{
    int shift;
    if (ns >= (1ULL << 40))
        return LATENCY_BUCKETS - 1;
    if (ns < (2ULL << LATENCY_BITS))
        return (int)ns;
    shift = 63 - __builtin_clzll(ns) - LATENCY_BITS;
    return (shift << LATENCY_BITS) + (int)(ns >> shift);
}

/* The middle of a bucket, ns. */
static inline double latency_value(int bucket)
{
    int shift = (bucket >> LATENCY_BITS) - 1;
    if (shift <= 0)
        return bucket;
    return ((double)((1 << LATENCY_BITS) + (bucket & ((1 << LATENCY_BITS) - 1))) + 0.5) * (double)(1ULL << shift);
}

/* One connection of the load generator. Its frames are numbered from 0 (position); position p has ticket first + p.
 * low <= every position that waits for its ack < built <= low + mask + 1. */
typedef struct {
    int fd;
    int phase;          /* enum load_phase */
    int queued;         /* stands in the ready list */
    int64_t first;
    int64_t count;      /* positions of this connection */
    int64_t low, built; /* see above */
    int64_t acked;
    uint64_t done_at;   /* ns, when the last ack came */
    uint32_t *stamps;   /* when position p was sent, at p & mask; 0: it does not wait for an ack */
    uint8_t *rest;      /* what the socket did not take of the last chunk: rest_start to rest_end, or NULL. Empty while
                         * only the TLS session holds something back */
    size_t rest_start, rest_end;
    tls_session *tls;   /* NULL: plain */
    int ack_have;       /* bytes of a partial ack */
    uint8_t ack[ACK_SIZE];
} load_connection;

/* OPEN: sends and waits for acks. DEAF: the peer takes no more bytes, but acks may still come. DONE: every ack came. */
enum load_phase { LOAD_OPEN, LOAD_DEAF, LOAD_DONE };

/* Some connection's frames in the send buffer. */
typedef struct {
    int connection;
    int frames;
} load_part;

#endif
