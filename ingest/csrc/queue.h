/* The write-behind queue in memory that all processes of a server share: docs/architecture.md, "The queue".
 *
 * Each worker owns one arena (an array of places, 1474 bytes each, into which it receives frames) and a pair
 * of rings with one producer and one consumer each: runs go to the committer, outcomes come back. A ring has
 * at least as many entries as the arena has places, and a place is in at most one run or outcome, so neither
 * ring can overflow.
 *
 * epoch: even while a committer serves, odd while there is none. A new committer takes nothing from a ring whose
 * worker_epoch is not its own epoch. A worker that sees a new even epoch first takes the outcomes that are
 * still in its ring (they are true), then empties both rings, submits again all that is outstanding (puts are
 * idempotent) and only then stores worker_epoch. */
#ifndef INGEST_QUEUE_H
#define INGEST_QUEUE_H

#include <stdint.h>
#include <stdatomic.h>

#ifndef FRAME_SIZE
#define FRAME_SIZE 1474
#endif
#define COUNTERS_MAX 512

enum run_kind { RUN_PUT = 0, RUN_DELETE = 1 };

/* Worker to committer: `count` verified frames with consecutive tickets of one pack in consecutive places (a delete: 1). */
typedef struct {
    int64_t first;   /* index of the first ticket */
    uint64_t cookie; /* the worker's, comes back unchanged */
    uint32_t place;  /* of the first frame */
    uint32_t count;
    uint32_t kind;
    uint32_t reserved;
} queue_run;

/* Committer to worker: what became of `count` frames from `place` on; each frame is answered exactly once. */
typedef struct {
    uint64_t cookie;
    uint32_t place;
    uint32_t count;
    uint32_t status;
    uint32_t reserved;
} queue_outcome;

enum ring_retire { RING_LIVE = 0, RING_RETIRE = 1, RING_RETIRED = 2 };

typedef struct {
    _Alignas(64) _Atomic uint64_t run_tail;     /* worker */
    _Alignas(64) _Atomic uint64_t run_head;     /* committer */
    _Alignas(64) _Atomic uint64_t outcome_tail; /* committer */
    _Alignas(64) _Atomic uint64_t outcome_head; /* worker */
    _Alignas(64) _Atomic uint64_t worker_epoch; /* worker */
    _Atomic uint32_t worker_sleeping;           /* worker: ring its doorbell after an outcome */
    _Atomic uint32_t retire;      /* parent sets 1 when the worker died, committer 2 when it let go of the arena */
    _Atomic uint32_t put_connections; /* open or on the way to this worker */
    _Atomic uint32_t get_connections;
} queue_ring;

/* NODE_STARTING: the frame ports do not listen yet; the parent clears it once. NODE_NO_LOG: the log could not get its first
 * segment, so nothing is stored. NODE_LOST: the data directory is not the one that was opened; the committer's to set. */
enum node_flag {
    NODE_DRAINING = 1,
    NODE_NO_SPACE = 2,
    NODE_FAILING = 4,
    NODE_STARTING = 8,
    NODE_NO_LOG = 16,
    NODE_LOST = 32
};

typedef struct {
    _Alignas(64) _Atomic uint64_t epoch;
    _Alignas(64) _Atomic uint32_t committer_sleeping; /* committer: ring the doorbell after a run */
    _Atomic uint32_t flags;                           /* node_flag */
    _Atomic uint32_t dirty_packs;                     /* packs that the log still covers */
    _Atomic uint64_t log_used;                        /* bytes */
} queue_header;

/* The producer's half: write entry [tail & mask], then publish. */
static inline void ring_publish(_Atomic uint64_t *tail, uint64_t value)
{
    atomic_store_explicit(tail, value, memory_order_release);
}

static inline uint64_t ring_load(const _Atomic uint64_t *p) { return atomic_load_explicit(p, memory_order_acquire); }
static inline void ring_store(_Atomic uint64_t *p, uint64_t v) { atomic_store_explicit(p, v, memory_order_release); }
static inline uint32_t word_load(const _Atomic uint32_t *p) { return atomic_load_explicit(p, memory_order_seq_cst); }
static inline void word_store(_Atomic uint32_t *p, uint32_t v) { atomic_store_explicit(p, v, memory_order_seq_cst); }
/* The same, but a count never goes below 0: a ring that was emptied forgot those that came before. */
static inline void word_add_above_zero(_Atomic uint32_t *p, int32_t v)
{
    uint32_t old = atomic_load(p);
    while (!atomic_compare_exchange_weak(p, &old, v < 0 && old < (uint32_t)-v ? 0 : old + (uint32_t)v))
        ;
}
static inline void word_or(_Atomic uint32_t *p, uint32_t v) { atomic_fetch_or(p, v); }
static inline void word_clear(_Atomic uint32_t *p, uint32_t v) { atomic_fetch_and(p, ~v); }
/* Between publishing and looking whether the other side sleeps; and between going to sleep and looking once more. */
static inline void full_fence(void) { atomic_thread_fence(memory_order_seq_cst); }

#endif
