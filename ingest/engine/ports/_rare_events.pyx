"""What happens to connections so rarely that Python hears of it: each is worth a line in the log."""

from libc.stdlib cimport calloc, free

from ingest import tls

IDLE = "idle"
SPEAKS_TLS = "speaks TLS"
SPEAKS_HTTP = "speaks HTTP"


cdef class RareEvents:
    """Of a port with ``slots`` connections at most. ``bad``, ``unread``, ``partial``: what the first three kinds are called."""

    def __cinit__(self, int slots, str bad, str unread, str partial):
        self.names = (bad, unread, partial, IDLE, SPEAKS_TLS, SPEAKS_HTTP, tls.HANDSHAKE, tls.SLOW_HANDSHAKE, tls.NOT_TLS)
        # Three times as many as connections: one may speak another protocol, be refused, and reach a deadline before
        # Python hears of it.
        self.events = <rare_event *>calloc(3 * slots, sizeof(rare_event))
        if self.events == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.events)

    cdef void note(self, rare_kind kind, uint32_t slot, uint32_t value) noexcept nogil:
        self.events[self.count].kind = kind
        self.events[self.count].slot = slot
        self.events[self.count].value = value
        self.count += 1

    cdef list take(self, list peers):
        cdef uint32_t i
        found = [
            (self.names[self.events[i].kind], peers[self.events[i].slot], self.events[i].value) for i in range(self.count)
        ]
        self.count = 0
        return found
