"""The committer's answers to the workers."""

from libc.stdint cimport int64_t, uint8_t

from ingest.engine.commit._pending cimport item
from ingest.engine._queue cimport Queue


cdef class Outcomes:
    cdef Queue queue
    cdef uint8_t *touched          # workers that got outcomes since they were woken
    cdef int64_t *owed             # frames of each worker that are claimed, and not answered yet

    # One outcome to the worker that the item came from, unless that one died.
    cdef int put(self, const item *it, int status) except -1
    # Rings the doorbell of each worker that got outcomes and sleeps.
    cdef int wake(self) except -1
