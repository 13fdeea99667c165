/* The counters of one process: indices into its row of shared memory. The names are in metrics.py, in this order
 * (a test holds the two together). Each row has one writer; readers may be a moment behind. */
#ifndef INGEST_COUNTERS_H
#define INGEST_COUNTERS_H

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
    C_PUT_REFUSED,          /* over the limit, or a bad peer */
    C_PUT_CLOSED_BAD,       /* closed for bad frames */
    C_PUT_CLOSED_TIMEOUT,   /* closed by a deadline */
    C_PUT_PASSED,           /* accepted connections passed on to a sibling */
    C_GET_ACCEPTED,
    C_GET_REFUSED,
    C_GET_CLOSED_TIMEOUT,
    C_GET_REQUESTS,
    C_GET_REQUESTS_BAD,
    C_GET_FRAMES,           /* frames sent */
    C_GET_BYTES,
    C_GET_ERRORS,           /* runs answered with ERROR */
    /* committer */
    C_COMMITS,              /* log batches synced */
    C_COMMIT_FRAMES,
    C_COMMIT_BYTES,         /* bytes of log written */
    C_COMMIT_NANOSECONDS,   /* from the first frame of a batch taken to its sync returned */
    C_BULK_RUNS,            /* runs written straight to their packs */
    C_BULK_FRAMES,
    C_PACKS_CREATED,
    C_FLUSHES,              /* syncfs calls that made packs durable */
    C_FLUSH_NANOSECONDS,
    C_SYNC_FAILURES,
    C_DELETED_TICKETS,
    C_DUPLICATES,           /* frames that were stored already with the same bytes */
    C_RECOVERIES,
    C_RECOVERED_FRAMES,
    C_LOG_STALLS,           /* times that a commit waited for the flusher */
    /* parent */
    C_WORKER_RESTARTS,
    C_COMMITTER_RESTARTS,
    /* workers, TLS */
    C_PUT_CLOSED_HANDSHAKE, /* a handshake that failed or took too long */
    C_PUT_CLOSED_NOT_TLS,   /* plain bytes where TLS is spoken */
    C_GET_CLOSED_HANDSHAKE,
    C_GET_CLOSED_NOT_TLS,
    /* committer: histograms, bucket i counts values up to 2^i (frames; microseconds), the last everything above */
    C_COMMIT_SIZE_BUCKET,                               /* 16 buckets */
    C_COMMIT_LATENCY_BUCKET = C_COMMIT_SIZE_BUCKET + 16, /* 24 buckets */
    /* workers: by the number of the key (`reload.name_keys`), the last one for all keys without a number of their own */
    C_KEY_FRAMES = C_COMMIT_LATENCY_BUCKET + 24,       /* authentic frames */
    C_KEY_BAD_FRAMES = C_KEY_FRAMES + KEY_COUNTERS,    /* of a key that is known and not accepted; the last: of none */
    C_KEY_REQUESTS = C_KEY_BAD_FRAMES + KEY_COUNTERS,  /* likewise */
    C_KEY_BAD_REQUESTS = C_KEY_REQUESTS + KEY_COUNTERS,
    C_COUNTERS = C_KEY_BAD_REQUESTS + KEY_COUNTERS
};

/* The bucket of a histogram with `buckets` buckets: the smallest i with value <= 2^i. */
static inline int histogram_bucket(unsigned long long value, int buckets)
{
    int i = 0;
    while (i < buckets - 1 && value > (1ULL << i))
        i++;
    return i;
}

#endif
