"""What happens to connections so rarely that Python hears of it: each is worth a line in the log."""

from libc.stdint cimport uint32_t


ctypedef struct rare_event:
    uint32_t kind
    uint32_t slot
    uint32_t value

# The order of the first four is also that of their counters.
cdef enum rare_kind:
    CLOSED_BAD
    CLOSED_UNREAD
    CLOSED_PARTIAL
    CLOSED_IDLE
    SPOKE_TLS
    SPOKE_HTTP
    CLOSED_HANDSHAKE
    CLOSED_SLOW_HANDSHAKE
    CLOSED_NOT_TLS


cdef class RareEvents:
    cdef rare_event *events
    cdef uint32_t count
    cdef tuple names       # by rare_kind

    # A connection may have three between two reports.
    cdef void note(self, rare_kind kind, uint32_t slot, uint32_t value) noexcept nogil
    # (what, peer, number) of each, whose peer stands under its slot in `peers`; then there are none.
    cdef list take(self, list peers)
