/* Keyed BLAKE3 over many equal-length messages at once, each in a SIMD lane of its own.
 *
 * A frame's checksum is the first 8 bytes of BLAKE3 (mode keyed_hash) over frame[0:8] and frame[16:1474],
 * 1466 bytes: chunk 0 has 16 blocks of 64 bytes, chunk 1 six of 64 and one of 58, and a parent node joins
 * them. Only block 0 straddles the checksum field; block b > 0 lies contiguous at frame offset 8 + 64·b. */
#ifndef INGEST_BLAKE3_LANES_H
#define INGEST_BLAKE3_LANES_H

#include <stddef.h>
#include <stdint.h>

/* A way to compute, by the instructions that it needs. */
enum lanes_path { LANES_PORTABLE = 0, LANES_AVX2 = 1, LANES_AVX512 = 2, LANES_PATHS = 3 };

/* Whether this CPU (and its operating system) can run `path`. */
int lanes_available(int path);
/* The path in use: at first the fastest available one. */
int lanes_path(void);
/* Uses `path` from now on, in every thread. Returns 0, or -1 (and changes nothing) when it is not available. */
int lanes_use(int path);

/* The checksums of `n` frames that lie back to back, 8 bytes each, to `tags`. Never writes a frame, never reads
 * behind the last one. */
void lanes_frame_tags(const uint8_t key[32], const uint8_t *frames, size_t n, uint8_t *tags);
/* The checksums over the first 16 bytes of each of `n` requests that lie `stride` bytes apart. */
void lanes_request_tags(const uint8_t key[32], const uint8_t *requests, size_t n, size_t stride, uint8_t *tags);
/* First 8 bytes of BLAKE3 (no key) over the 504 bytes at each of `n` `headers`, 8 bytes each. */
void lanes_digests504(const uint8_t *const *headers, size_t n, uint8_t *tags);

/* Writes the checksum of each of `n` frames into it. */
void lanes_frames_sign(const uint8_t key[32], uint8_t *frames, size_t n);
/* good[i] = 1 when frame i carries its checksum, else 0; how many do. The time does not depend on the bytes. */
size_t lanes_frames_verify(const uint8_t key[32], const uint8_t *frames, size_t n, uint8_t *good);

#endif
