"""Open packs, as the committer writes them."""

from libc.stdint cimport int64_t, uint8_t

from ingest.store.layouts._slot_table cimport SlotTable, pack_state, unsynced_files


cdef extern from "csrc/slot_writer.h" nogil:
    ctypedef struct slot_write:
        int fd
        const uint8_t *frames
        size_t size
        int64_t offset
    ctypedef struct slot_writer:
        int started
    int slot_writer_start(slot_writer *w, int (*write)(const slot_write *, int) noexcept nogil)
    void slot_writer_begin(slot_writer *w, const slot_write *writes, int count)
    int slot_writer_end(slot_writer *w)
    void slot_writer_stop(slot_writer *w)


# A header without any bit; docs/format.md, "Packs".
cdef void new_header(uint8_t *header, int64_t pack, const uint8_t *store_id) noexcept nogil


cdef class OpenPacks(SlotTable):
    cdef readonly bytes store_id
    cdef int64_t _dirty_last                 # the pack that was marked dirty last; -1: none since the flush
    cdef slot_write *_later                  # queued by `write_later`
    cdef int _later_count
    cdef slot_writer _writer
    cdef unsynced_files _syncing             # of the flush under way, where each file is synced

    # `_open`, whether or not a flush would lack a descriptor then.
    cdef int _open_file_of(self, pack_state *p, const uint8_t *store_id) noexcept nogil
    cdef void _advance_headers(self, int state, int following) noexcept nogil
    cdef int _create(self, pack_state *p) noexcept nogil
    cdef void _count_generation(self, pack_state *p) noexcept nogil
    cdef void _seal(self, pack_state *p) noexcept nogil
    # Notes that the pack's file is being written to.
    cdef void _written(self, pack_state *p) noexcept nogil
    cdef void _collect_unsynced(self) noexcept nogil
    cdef void _settle_synced(self) noexcept nogil
    # Writes the header if it changed: an errno or 0.
    cdef int _write_header(self, pack_state *p) noexcept nogil
