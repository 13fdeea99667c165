"""The connections of a put port as those to whom acks are owed."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from ingest.engine.ports._connections cimport connection
from ingest.engine.ports._guarded_connections cimport GuardedConnections


cdef extern from "csrc/frame.h" nogil:
    enum: FRAME_SIZE
    enum: ACK_SIZE
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


# Acks of frames that were received at one time.
ctypedef struct answered:
    uint32_t received   # microseconds of a clock that may wrap
    uint32_t frames

cdef enum:
    ANSWERED_MAX = 64  # times of receipt whose acks are timed together


cdef class AckedConnections(GuardedConnections):
    cdef put_work *work            # of each connection, by slot
    cdef uint32_t unread_acks_max, acks_kept
    cdef uint64_t unread_acks_total, unread_acks_total_max  # bytes, of all connections
    cdef answered answered[ANSWERED_MAX]  # acks of this turn that wait to be timed
    cdef uint32_t answered_count
    cdef bint acks_sent            # since the last flush began

    # Makes it work, beside `_open`.
    cdef int _open_acks(self, int slots_max, uint32_t unread_acks_max, uint64_t unread_acks_total_max) except -1
    # Writes acks for `n` frames. False when the connection had to be dropped.
    cdef bint _ack(self, connection *c, const uint8_t *frames, uint32_t n, uint8_t status) noexcept nogil
    # These acks are timed when they have been sent.
    cdef void _note_answered(self, uint32_t received, uint32_t frames) noexcept nogil
    cdef void _time_acks(self) noexcept nogil
    # Sends what the connections have for their peers, and moves on those that are done.
    cdef void _flush(self) noexcept nogil

    cdef void _send_acks(self, connection *c) noexcept nogil
    cdef bint _leaves_too_much_unread(self, const connection *c) noexcept nogil
