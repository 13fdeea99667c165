# distutils: depends = ingest/csrc/connection.h ingest/csrc/tls.h ingest/csrc/foreign.h ingest/csrc/queue.h ingest/csrc/counters.h
"""Connections of a frame port that were not meant for it, or say nothing while others find no place.

Who speaks another protocol is answered in it, at once: it would wait for an answer until the deadline of a partial frame.
"""

from libc.stdint cimport uint8_t, uint32_t

from ingest.engine.ports._connections cimport (
    CONNECTION_OPEN, CONNECTION_REFUSED, TLS_PLAIN, Connections, connection, connection_send,
)
from ingest.engine.ports._rare_events cimport CLOSED_IDLE


cdef extern from "csrc/connection.h" nogil:
    ssize_t socket_receive(int fd, uint8_t *buffer, size_t size)
    ssize_t socket_send(int fd, const uint8_t *data, size_t size)

cdef extern from "csrc/foreign.h" nogil:
    enum: FOREIGN_NONE, FOREIGN_HTTP, FOREIGN_SIZE
    int foreign_protocol(const uint8_t *p, uint32_t size)
    const char *foreign_answer(int protocol, bint tls, uint32_t *size)


cdef class GuardedConnections(Connections):

    # --- what Python sees

    def make_room(self):
        """When one more connection would be refused, closes the one without work that was answered longest ago."""
        if self._free_slots or self.slots_used < self.slots_max:
            return None
        return self.close_idle(1)

    def close_idle(self, int count):
        """Closes ``count`` connections without work, fewer if there are no more: those without a key first, and the ones that
        were answered longest ago."""
        cdef connection *c
        self._check_open()
        with nogil:
            while count > 0:
                count -= 1
                c = self._most_idle()
                if c == NULL:
                    break
                self._expire(c, CLOSED_IDLE, 0)
        return self._report()

    cdef connection *_most_idle(self) noexcept nogil:
        """One whose peer has shown no key comes before those that have, whatever it dripped."""
        cdef connection *c
        cdef connection *found = NULL
        cdef uint32_t i
        for i in range(self.slots_used):
            c = &self.table[i]
            if c.state != CONNECTION_OPEN or c.readable or self._has_work(c):
                continue
            if found == NULL or c.proved < found.proved or (
                    c.proved == found.proved and max(c.adopted_at, c.sent_at) < max(found.adopted_at, found.sent_at)):
                found = c
        return found

    # --- in a turn

    cdef bint _begins_foreign(self, connection *c, const uint8_t *start, uint32_t size) noexcept nogil:
        cdef int protocol
        cdef uint32_t answer_size
        cdef const char *answer
        if c.began:
            return False
        protocol = foreign_protocol(start, size)
        if protocol == FOREIGN_NONE:
            c.began = size >= FOREIGN_SIZE
            return False
        self._look_for_foreign(c, start, size)
        answer = foreign_answer(protocol, False, &answer_size)
        # All of it, into an empty socket, or the peer has left.
        connection_send(c, <const uint8_t *>answer, answer_size)
        c.carry_size = 0
        self._stop_reading(c, CONNECTION_REFUSED)
        return True

    cdef void _refuse_handshake(self, connection *c) noexcept nogil:
        if c.tls.state == TLS_PLAIN:
            self._answer_plain(c)
        Connections._refuse_handshake(self, c)

    cdef void _answer_plain(self, connection *c) noexcept nogil:
        """HTTP on a port that speaks TLS."""
        cdef uint8_t first[FOREIGN_SIZE]
        cdef ssize_t n = socket_receive(c.fd, first, FOREIGN_SIZE)  # nobody else wants them
        cdef uint32_t size
        cdef const char *answer
        if n > 0 and foreign_protocol(first, <uint32_t>n) == FOREIGN_HTTP:
            answer = foreign_answer(FOREIGN_HTTP, True, &size)
            socket_send(c.fd, <const uint8_t *>answer, size)  # all of it, into an empty socket, or the peer has left
