"""Frames in a buffer for other Cython modules: `docs/protocol.md`, "Frames". All cores run without the GIL and
keep no pointer; they trust their arguments, the `def` functions of the `.pyx` check them."""

from libc.stdint cimport int64_t, uint8_t


cdef extern from "csrc/frame.h" nogil:
    enum: FRAME_SIZE
    enum: FRAME_DATA
    enum: DATA_SIZE
    enum: ACK_SIZE
    enum: PACK_SLOTS
    int64_t TICKET_INDEX_LAST
    int64_t ticket_index(const uint8_t *t)                # -1: malformed
    void ticket_write(int64_t index, uint8_t *t)
    int64_t ticket_pack(int64_t index)
    int ticket_slot(int64_t index)
    int ticket_run_max(int64_t index)
    int frames_run(const uint8_t *frames, int n, int64_t first)
    void acks_write(uint8_t *acks, const uint8_t *frames, int n, uint8_t status)


# Frames with consecutive tickets from `first` on over `size` bytes of data, the last one padded with zeros,
# checksums zero. `out` has room for all of them and does not overlap `data`. Returns how many there are.
cdef size_t frames_build(int64_t first, const uint8_t *data, size_t size, uint8_t *out) noexcept nogil
# The data of `n` frames, one after the other, to `out` (n · 1458 bytes).
cdef void frames_extract(const uint8_t *frames, size_t n, uint8_t *out) noexcept nogil
# The index of each of `n` tickets that lie `stride` bytes apart, -1 for a malformed one.
cdef void tickets_index(const uint8_t *records, size_t n, size_t stride, int64_t *indices) noexcept nogil
# Cuts `n` frames into runs; three numbers each (position, count, first index or -1: malformed) to `runs`, which has
# room for 3·n. Returns how many runs there are.
cdef size_t frames_runs(const uint8_t *frames, size_t n, int64_t *runs) noexcept nogil
