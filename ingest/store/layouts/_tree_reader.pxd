"""Reading layout tree."""

from libc.stdint cimport int64_t, uint8_t

from ingest.store.layouts._slot_reader cimport SlotReader, extent


cdef enum:
    FILES_MAX = 64


cdef class TreeReader(SlotReader):
    cdef int files[FILES_MAX]            # of what `look` found to be SAVED last, until the next look
    cdef uint8_t checksums[FILES_MAX * 8]
    cdef int file_count

    cdef void _close(self) noexcept nogil
    # Opens one ticket's file if something is stored under it, and keeps it: its status.
    cdef int _open(self, int parent, const char *name) noexcept nogil
