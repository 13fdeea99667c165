"""Shared memory of one server for other Cython modules: `csrc/queue.h` has the structures and who writes what."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t


cdef extern from "csrc/queue.h" nogil:
    enum: RUN_PUT
    enum: RUN_DELETE
    enum: RING_LIVE
    enum: RING_RETIRE
    enum: RING_RETIRED
    enum: NODE_DRAINING
    enum: NODE_NO_SPACE
    enum: NODE_FAILING
    enum: NODE_STARTING
    enum: NODE_NO_LOG
    enum: NODE_LOST
    enum: COUNTERS_MAX
    ctypedef struct atomic_u64 "_Atomic uint64_t":
        pass
    ctypedef struct atomic_u32 "_Atomic uint32_t":
        pass
    ctypedef struct queue_run:
        int64_t first
        uint64_t cookie
        uint32_t place
        uint32_t count
        uint32_t kind
        uint32_t reserved
    ctypedef struct queue_outcome:
        uint64_t cookie
        uint32_t place
        uint32_t count
        uint32_t status
        uint32_t reserved
    ctypedef struct queue_ring:
        atomic_u64 run_tail
        atomic_u64 run_head
        atomic_u64 outcome_tail
        atomic_u64 outcome_head
        atomic_u64 worker_epoch
        atomic_u32 worker_sleeping
        atomic_u32 retire
        atomic_u32 put_connections
        atomic_u32 get_connections
    ctypedef struct queue_header:
        atomic_u64 epoch
        atomic_u32 committer_sleeping
        atomic_u32 flags
        atomic_u32 dirty_packs
        atomic_u64 log_used
    uint64_t ring_load(const atomic_u64 *p)
    void ring_store(atomic_u64 *p, uint64_t v)
    void ring_publish(atomic_u64 *p, uint64_t v)
    uint32_t word_load(const atomic_u32 *p)
    void word_store(atomic_u32 *p, uint32_t v)
    void word_or(atomic_u32 *p, uint32_t v)
    void word_clear(atomic_u32 *p, uint32_t v)
    void full_fence()
    void word_add_above_zero(atomic_u32 *p, int v)

cdef extern from "csrc/counters.h" nogil:
    enum: C_FRAMES_RECEIVED
    enum: C_BYTES_RECEIVED
    enum: C_PARTIAL_FRAMES
    enum: C_ACKS_SAVED
    enum: C_PUT_ACCEPTED
    enum: C_PUT_REFUSED
    enum: C_PUT_CLOSED_BAD
    enum: C_PUT_CLOSED_UNREAD
    enum: C_FOREIGN_TLS
    enum: C_ACK_MICROSECONDS
    enum: C_OUTSTANDING_FRAMES
    enum: C_ACK_LATENCY_BUCKET
    enum: C_PUT_CLOSED_HANDSHAKE
    enum: C_PUT_CLOSED_NOT_TLS
    enum: C_GET_ACCEPTED
    enum: C_GET_REFUSED
    enum: C_GET_CLOSED_BAD
    enum: C_GET_REQUESTS
    enum: C_GET_REQUESTS_BAD
    enum: C_GET_FRAMES
    enum: C_GET_BYTES
    enum: C_GET_ERRORS
    enum: C_GET_CLOSED_HANDSHAKE
    enum: C_GET_CLOSED_NOT_TLS
    enum: C_KEY_FRAMES
    enum: C_KEY_BAD_FRAMES
    enum: C_KEY_REQUESTS
    enum: C_KEY_BAD_REQUESTS
    enum: KEY_COUNTERS
    int latency_bucket(uint64_t microseconds)
    uint64_t monotonic_us()


cdef class Queue:
    cdef readonly int workers          # rings and arenas
    cdef readonly int places           # of one arena
    cdef readonly uint32_t ring_size   # entries, a power of two, at least places
    cdef readonly int committer_doorbell      # eventfd
    cdef readonly tuple worker_doorbells      # eventfds
    cdef object _map                   # the anonymous shared mapping
    cdef uint8_t *base
    cdef queue_header *header
    cdef size_t ring_stride
    cdef size_t rings_offset
    cdef size_t counters_offset
    cdef size_t arenas_offset
    cdef size_t arena_stride

    cdef queue_ring *ring(self, int worker) noexcept nogil
    cdef queue_run *runs(self, int worker) noexcept nogil            # ring_size entries
    cdef queue_outcome *outcomes(self, int worker) noexcept nogil    # ring_size entries
    cdef uint8_t *arena(self, int worker) noexcept nogil             # places · 1474 bytes
    cdef uint64_t *counters(self, int row) noexcept nogil            # COUNTERS_MAX of them
    cdef queue_ring *_checked(self, int worker) except NULL          # IndexError when there is none
