"""Connections of a frame port that were not meant for it, or say nothing while others find no place."""

from libc.stdint cimport uint8_t, uint32_t

from ingest.engine.ports._connections cimport Connections, connection


cdef class GuardedConnections(Connections):
    # Whether its first bytes are of another protocol: then they are answered in that, and it is not read any more.
    cdef bint _begins_foreign(self, connection *c, const uint8_t *start, uint32_t size) noexcept nogil
    # The open one without work that gives way first, or NULL.
    cdef connection *_most_idle(self) noexcept nogil
    cdef void _answer_plain(self, connection *c) noexcept nogil
