"""The checksum kernel for other Cython modules. Frames lie back to back, 1474 bytes each; a key has 32 bytes.
No function keeps a pointer after it returned; all run without the GIL."""

from libc.stdint cimport uint8_t


# The checksums of `n` frames (the 8 bytes that should stand at offset 8), to `tags`, 8 bytes each.
cdef void hmac_tags(const uint8_t *key, const uint8_t *frames, size_t n, uint8_t *tags) noexcept nogil
# Writes the checksum of each of `n` frames into it.
cdef void hmac_sign(const uint8_t *key, uint8_t *frames, size_t n) noexcept nogil
# good[i] = 1 when frame i carries the right checksum, else 0, in constant time; returns how many do.
cdef size_t hmac_verify(const uint8_t *key, const uint8_t *frames, size_t n, uint8_t *good) noexcept nogil
# The checksums over the first 16 bytes of each of `n` requests that lie `stride` bytes apart.
cdef void hmac_requests(const uint8_t *key, const uint8_t *requests, size_t n, size_t stride, uint8_t *tags) noexcept nogil
# The first 8 bytes of BLAKE3 without a key over the 504 bytes at `header` (a pack header's own checksum).
cdef void hmac_digest504(const uint8_t *header, uint8_t *tag) noexcept nogil
# The same for `n` headers, 8 bytes each.
cdef void hmac_digests504(const uint8_t *const *headers, size_t n, uint8_t *tags) noexcept nogil
