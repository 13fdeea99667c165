"""What `_put_server` takes from C: frames, what a connection has to do; and its own small structures."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from ingest.engine.ports._connections cimport connection


cdef extern from "csrc/frame.h" nogil:
    enum: FRAME_SIZE
    enum: ACK_SIZE
    int64_t ticket_index(const uint8_t *ticket)
    int frames_run(const uint8_t *frames, int n, int64_t first)
    int32_t frame_delete_count(const uint8_t *frame, int64_t first)
    void acks_write(uint8_t *acks, const uint8_t *frames, int n, uint8_t status)

cdef extern from "csrc/put_work.h" nogil:
    ctypedef struct put_work:
        uint8_t fast
        uint32_t bad_frames, outstanding
        uint8_t *carry
        uint8_t *acks
        uint32_t acks_start, acks_end, acks_capacity
    uint32_t acks_unsent(const put_work *w, const connection *c)
    uint8_t *acks_room(put_work *w, uint32_t n)
    int acks_send(put_work *w, connection *c, uint32_t *sent)
    void put_shrink(put_work *w, uint32_t carry_size, uint32_t keep)
    void put_clear(put_work *w)


# What a frame turned out to be, while a stretch is judged: FAILED_FIRST is what hmac_verify leaves.
cdef enum verdict:
    FAILED_FIRST = 0
    PUT_FRAME = 1
    DELETE_FRAME = 2
    FAILED_ALL = 3

# Frames that one connection brought in one turn.
ctypedef struct segment:
    connection *source
    uint32_t place
    uint32_t count

# Acks of frames that were received at one time.
ctypedef struct answered:
    uint32_t received   # microseconds of a clock that may wrap
    uint32_t frames
