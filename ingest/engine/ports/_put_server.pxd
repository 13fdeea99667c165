"""What `_put_server` takes from C: frames; and its own small structures."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from ingest.engine.ports._connections cimport connection


cdef extern from "csrc/frame.h" nogil:
    enum: FRAME_SIZE
    int64_t ticket_index(const uint8_t *ticket)
    int frames_run(const uint8_t *frames, int n, int64_t first)
    int32_t frame_delete_count(const uint8_t *frame, int64_t first)

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
