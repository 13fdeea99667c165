/* The counters of one process: indices into its row of shared memory. The names are in metrics.py, in this order
 * (a test holds the two together). Each row has one writer; readers may be a moment behind. A process that takes the
 * place of one that died counts on from there; what is marked as a level it sets anew. */
#ifndef INGEST_COUNTERS_H
#define INGEST_COUNTERS_H

#include <stdint.h>
#include <time.h>
#define KEY_COUNTERS 16

enum counter {
    /* workers */
    C_FRAMES_RECEIVED,      /* whole frames */
    C_BYTES_RECEIVED,
    C_PARTIAL_FRAMES,       /* dropped at the end of a stream */
    C_ACKS_SAVED,           /* C_ACKS_SAVED + status - 1, for the nine statuses */
    C_ACKS_ERROR,
    C_ACKS_BAD_CHECKSUM,
    C_ACKS_BAD_TICKET,
    C_ACKS_CONFLICT,
    C_ACKS_BUSY,
    C_ACKS_NO_SPACE,
    C_ACKS_MISSING,
    C_ACKS_DELETED,
    C_PUT_ACCEPTED,         /* connections, ever */
    C_PUT_REFUSED,          /* over the limit */
    C_PUT_REFUSED_BAD_PEER,
    C_PUT_REFUSED_RESOURCES, /* no descriptor or no memory to serve it */
    C_PUT_CLOSED_BAD,       /* closed for bad frames */
    C_PUT_CLOSED_UNREAD,    /* by a deadline, like the next two */
    C_PUT_CLOSED_PARTIAL,
    C_PUT_CLOSED_IDLE,
    C_PUT_PASSED,           /* accepted connections passed on to a sibling */
    C_GET_ACCEPTED,
    C_GET_REFUSED,
    C_GET_REFUSED_BAD_PEER,
    C_GET_REFUSED_RESOURCES,
    C_GET_CLOSED_BAD,
    C_GET_CLOSED_UNREAD,
    C_GET_CLOSED_PARTIAL,
    C_GET_CLOSED_IDLE,
    C_GET_REQUESTS,
    C_GET_REQUESTS_BAD,
    C_GET_FRAMES,           /* frames sent */
    C_GET_BYTES,
    C_GET_ERRORS,           /* runs answered with ERROR */
    C_FOREIGN_TLS,          /* connections that began like another protocol */
    C_FOREIGN_HTTP,
    C_LINES_SUPPRESSED,     /* log lines about peers that were left out */
    C_ACK_MICROSECONDS,     /* sum over acks: from the turn that received the frame to the ack's first send */
    C_OUTSTANDING_FRAMES,   /* level: handed to the committer and not answered */
    /* committer */
    C_COMMITS,              /* log batches synced */
    C_COMMIT_FRAMES,
    C_COMMIT_BYTES,         /* bytes of log written */
    C_COMMIT_NANOSECONDS,   /* from the first frame of a batch taken to its frames answered */
    C_BULK_JOBS,
    C_BULK_RUNS,            /* runs written straight to their packs */
    C_BULK_FRAMES,
    C_PACKS_CREATED,
    C_FLUSHES,              /* syncfs calls that made packs durable */
    C_FLUSH_NANOSECONDS,
    C_SYNC_FAILURES,
    C_DELETED_TICKETS,
    C_DELETED_BYTES,        /* of frames that were stored under them */
    C_RECLAIMED_BYTES,      /* of these, and of their packs, that went back to the file system */
    C_DUPLICATES,           /* frames that were stored already with the same bytes */
    C_RECOVERIES,
    C_RECOVERED_FRAMES,
    C_RECOVERY_NANOSECONDS,
    C_LOG_STALLS,           /* times that a commit waited for the flusher */
    C_PENDING_FRAMES,       /* level: taken and not decided */
    C_BULK_RUNNING,         /* level: bulk jobs under way */
    C_LOG_ALLOCATED,        /* level: bytes of the log's segments */
    /* parent */
    C_WORKER_RESTARTS,
    C_COMMITTER_RESTARTS,
    C_ADMIN_RESTARTS,
    /* every process */
    C_PID,                  /* level */
    C_PAST_CPU_MICROSECONDS, /* that its predecessors used; the parent's to write */
    /* workers, TLS */
    C_PUT_CLOSED_HANDSHAKE, /* a handshake that failed or took too long */
    C_PUT_CLOSED_NOT_TLS,   /* plain bytes where TLS is spoken */
    C_GET_CLOSED_HANDSHAKE,
    C_GET_CLOSED_NOT_TLS,
    /* histograms: bucket i counts values up to 2^i frames or 16 * 2^i microseconds, the last one everything above */
    C_COMMIT_SIZE_BUCKET,                                /* committer, 16 buckets */
    C_COMMIT_LATENCY_BUCKET = C_COMMIT_SIZE_BUCKET + 16, /* committer, 22 buckets, as the next two */
    C_FLUSH_LATENCY_BUCKET = C_COMMIT_LATENCY_BUCKET + 22,
    C_ACK_LATENCY_BUCKET = C_FLUSH_LATENCY_BUCKET + 22,  /* worker */
    /* workers: by the number of the key (`reload.name_keys`), the last one for all keys without a number of their own */
    C_KEY_FRAMES = C_ACK_LATENCY_BUCKET + 22,         /* authentic frames */
    C_KEY_BAD_FRAMES = C_KEY_FRAMES + KEY_COUNTERS,   /* of a key that is known and not accepted; the last: of none */
    C_KEY_REQUESTS = C_KEY_BAD_FRAMES + KEY_COUNTERS, /* likewise */
    C_KEY_BAD_REQUESTS = C_KEY_REQUESTS + KEY_COUNTERS,
    C_COUNTERS = C_KEY_BAD_REQUESTS + KEY_COUNTERS
};

#define SIZE_BUCKETS 16
#define LATENCY_BUCKETS 22

/* The bucket of a histogram with `buckets` buckets: the smallest i with value <= 2^i. */
static inline int histogram_bucket(uint64_t value, int buckets)
{
    int i = value <= 1 ? 0 : 64 - __builtin_clzll(value - 1);
    return i < buckets ? i : buckets - 1;
}

static inline int latency_bucket(uint64_t microseconds) { return histogram_bucket((microseconds + 15) / 16, LATENCY_BUCKETS); }

static inline uint64_t monotonic_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

#endif
