# distutils: depends = ingest/csrc/connection.h ingest/csrc/put_work.h ingest/csrc/tls.h ingest/csrc/frame.h ingest/csrc/queue.h ingest/csrc/counters.h
"""The connections of a put port as those to whom acks are owed: what waits to be sent, what they leave unread, and when.

What frames are answered with is the business of `_put_server`, which derives from this.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from ingest.engine._queue cimport C_ACK_LATENCY_BUCKET, C_ACK_MICROSECONDS, C_ACKS_SAVED, latency_bucket, monotonic_us
from ingest.engine.ports._connections cimport (
    CONNECTION_OPEN, connection, connection_queue_push, connection_queue_remove,
)
from ingest.engine.ports._guarded_connections cimport GuardedConnections
from ingest.engine.ports._rare_events cimport CLOSED_IDLE, CLOSED_PARTIAL, CLOSED_UNREAD
from ingest.runtime._failpoints cimport STEP_ACKED, WAY_LOG, failpoint_passed, failpoints_armed

from ingest import limits

cdef double UNREAD_ACKS_TIMEOUT = limits.UNREAD_ACKS_TIMEOUT_S
cdef double PARTIAL_FRAME_TIMEOUT = limits.PARTIAL_FRAME_TIMEOUT_S
cdef double IDLE_TIMEOUT = limits.IDLE_TIMEOUT_S


cdef class AckedConnections(GuardedConnections):

    cdef int _open_acks(self, int slots_max, uint32_t unread_acks_max, uint64_t unread_acks_total_max) except -1:
        self.unread_acks_max = unread_acks_max
        self.unread_acks_total_max = unread_acks_total_max
        self.acks_kept = limits.ACKS_KEPT_SIZE
        self.work = <put_work *>calloc(slots_max, sizeof(put_work))  # pages that nobody uses are never touched
        if self.work == NULL:
            raise MemoryError
        return 0

    def __dealloc__(self):
        cdef uint32_t i
        if self.work != NULL:
            for i in range(self.slots_used):
                put_clear(&self.work[i])
        free(self.work)

    # --- answering

    cdef bint _ack(self, connection *c, const uint8_t *frames, uint32_t n, uint8_t status) noexcept nogil:
        """Acks wait in the connection's buffer for the end of the turn. False when it had to be dropped."""
        cdef put_work *w = &self.work[c.slot]
        cdef uint8_t *acks
        if acks_unsent(w, c) == 0:
            c.sent_at = self.now
        acks = acks_room(w, n)
        if acks == NULL:
            self._drop(c)
            return False
        acks_write(acks, frames, n, status)
        w.acks_end += n * ACK_SIZE
        self.unread_acks_total += n * ACK_SIZE
        self.counters[<int>C_ACKS_SAVED + status - 1] += n
        connection_queue_push(&self.to_send, c)
        return True

    cdef void _note_answered(self, uint32_t received, uint32_t frames) noexcept nogil:
        """These acks are timed when they have been sent: a look at the clock for all of a turn, not for each."""
        cdef answered *last = &self.answered[self.answered_count - 1]
        if self.answered_count and last.received == received:
            last.frames += frames
            return
        if self.answered_count == ANSWERED_MAX:
            self._time_acks()
        self.answered[self.answered_count].received = received
        self.answered[self.answered_count].frames = frames
        self.answered_count += 1

    cdef void _time_acks(self) noexcept nogil:
        cdef uint32_t now = <uint32_t>monotonic_us()
        cdef uint32_t i, elapsed
        for i in range(self.answered_count):
            elapsed = now - self.answered[i].received
            self.counters[<int>C_ACK_MICROSECONDS] += <uint64_t>elapsed * self.answered[i].frames
            self.counters[<int>C_ACK_LATENCY_BUCKET + latency_bucket(elapsed)] += self.answered[i].frames
        self.answered_count = 0

    cdef bint _leaves_too_much_unread(self, const connection *c) noexcept nogil:
        """Whether a connection is not read because of its acks: its own limit is the protocol's, the one for all together is
        what keeps thousands of such connections from taking the memory of the others."""
        cdef uint32_t unsent = acks_unsent(&self.work[c.slot], c)
        return unsent > self.unread_acks_max or (
            self.unread_acks_total > self.unread_acks_total_max and unsent > self.acks_kept)

    # --- sending and closing

    cdef void _flush(self) noexcept nogil:
        """Sends what the connections have for their peers, and moves on those that are done."""
        cdef connection *c
        while self.to_send.first != NULL:
            c = self.to_send.first
            connection_queue_remove(&self.to_send, c)
            self._send_acks(c)
        if failpoints_armed and self.acks_sent:
            failpoint_passed(STEP_ACKED, WAY_LOG)
        self.acks_sent = False

    cdef void _send_acks(self, connection *c) noexcept nogil:
        cdef put_work *w = &self.work[c.slot]
        cdef uint32_t sent
        cdef int error
        if c.writable and acks_unsent(w, c):
            error = acks_send(w, c, &sent)
            self.unread_acks_total -= sent
            if error:
                self._drop(c)
                return
            if sent:
                c.sent_at = self.now
                self.acks_sent = True
        if c.state == CONNECTION_OPEN:
            self._queue_reading(c)  # it may have been waiting for its acks to be read
        else:
            self._settle(c)

    cdef bint _has_work(self, const connection *c) noexcept nogil:
        return self.work[c.slot].outstanding or acks_unsent(&self.work[c.slot], c)

    cdef void _check_work(self, connection *c, double now) noexcept nogil:
        cdef put_work *w = &self.work[c.slot]
        cdef uint32_t unsent = acks_unsent(w, c)
        cdef double moved
        if c.readable and c.state == CONNECTION_OPEN:
            c.received_at = c.partial_at = now  # it is we who do not read: the peer is not late
        if unsent:
            # Up to the limit a client may send on and read later: it is late only when nothing moves either way.
            moved = c.sent_at if self._leaves_too_much_unread(c) else max(c.received_at, c.sent_at)
            if now - moved >= UNREAD_ACKS_TIMEOUT:
                self._expire(c, CLOSED_UNREAD, unsent)
                return
        elif c.state == CONNECTION_OPEN and c.carry_size == 0 and w.outstanding == 0:
            if now - max(c.received_at, c.sent_at) >= IDLE_TIMEOUT:
                self._expire(c, CLOSED_IDLE, 0)
                return
        if c.state == CONNECTION_OPEN and c.carry_size and now - c.partial_at >= PARTIAL_FRAME_TIMEOUT:
            self._expire(c, CLOSED_PARTIAL, c.carry_size)  # however it grows: a byte a minute holds a connection too
            return
        put_shrink(w, c.carry_size, self.acks_kept)
        if c.state == CONNECTION_OPEN:
            self._queue_reading(c)  # it may have been waiting for others to leave less unread

    cdef void _forget_work(self, connection *c) noexcept nogil:
        """Its outstanding places stay taken until their outcomes come."""
        self.unread_acks_total -= acks_unsent(&self.work[c.slot], c)
        put_clear(&self.work[c.slot])
