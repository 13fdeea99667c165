/* The instances of the two templates for each instruction set, and the choice between them at run time. */
#include "blake3_lanes.h"

#include <string.h>

#if !defined(__GNUC__)
#error "needs the vector extensions of GCC or Clang"
#endif
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "BLAKE3 words are little endian: a big-endian machine needs a byte swap after each load and before each tag"
#endif
#if !defined(__clang__)
/* GCC's second scheduler spreads the four mixes of a half-round over too many registers: 10 to 15 % slower. */
#pragma GCC optimize("no-schedule-insns2")
#endif
#if defined(__x86_64__) || defined(__i386__)
#define LANES_X86 1
#include <immintrin.h>
#endif

#define FRAME_SIZE 1474
#define REQUEST_SIGNED 16          /* bytes of a request that its checksum covers */
#define CHUNK_SIZE 1024            /* bytes of a BLAKE3 chunk */
#define LAST_LENGTH 58             /* bytes of block 22, the last */
#define BLOCK_OFFSET(b) (8 + 64 * (b)) /* of block b ≥ 1 in a frame */
#define GROUP 64                   /* frames whose checksums are computed before they are compared or written */

enum { CHUNK_START = 1, CHUNK_END = 2, PARENT = 4, ROOT = 8, KEYED_HASH = 16 };

static const uint32_t IV[8] = {0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A,
                               0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19};

typedef uint32_t vec4 __attribute__((vector_size(16)));
typedef uint32_t vec8 __attribute__((vector_size(32)));
typedef uint32_t vec16 __attribute__((vector_size(64)));

/* Word w of the result is word iw of a‖b. */
#if defined(__clang__)
#define SHUFFLE4(a, b, i0, i1, i2, i3) __builtin_shufflevector(a, b, i0, i1, i2, i3)
#else
#define SHUFFLE4(a, b, i0, i1, i2, i3) __builtin_shuffle(a, b, (vec4){i0, i1, i2, i3})
#endif

/* Computes x now. Without it the compiler turns (a + m) + b into a + (m + b), which puts a second addition on the
 * longest path, because b is what everything waits for. */
#if defined(LANES_X86)
#define KEEP(x) __asm__("" : "+v"(x))
#elif defined(__aarch64__)
#define KEEP(x) __asm__("" : "+w"(x))
#else
#define KEEP(x) ((void)0)
#endif

/* Block 0: the ticket, and the data up to where the blocks lie in one piece. */
static inline void block_first(uint8_t block[64], const uint8_t *frame)
{
    memcpy(block, frame, 8);
    memcpy(block + 8, frame + 16, 56);
}

/* Block 22: what is left of the frame, and zeros. */
static inline void block_last(uint8_t block[64], const uint8_t *frame)
{
    memcpy(block, frame + BLOCK_OFFSET(22), LAST_LENGTH);
    memset(block + LAST_LENGTH, 0, 64 - LAST_LENGTH);
}

/* ---- portable: SSE2, NEON, or plain C by the compiler's own lowering ---------------------------------------- */

static inline __attribute__((always_inline)) vec4 rotate_portable(vec4 x, int n) { return (x >> n) | (x << (32 - n)); }

static inline void transpose_portable(vec4 m[16], const uint8_t *const at[4], size_t offset)
{
    for (int q = 0; q < 4; q++) {
        vec4 r[4];
        for (int i = 0; i < 4; i++)
            memcpy(&r[i], at[i] + offset + 16 * q, 16);
        vec4 low01 = SHUFFLE4(r[0], r[1], 0, 4, 1, 5), high01 = SHUFFLE4(r[0], r[1], 2, 6, 3, 7);
        vec4 low23 = SHUFFLE4(r[2], r[3], 0, 4, 1, 5), high23 = SHUFFLE4(r[2], r[3], 2, 6, 3, 7);
        m[4 * q + 0] = SHUFFLE4(low01, low23, 0, 1, 4, 5);
        m[4 * q + 1] = SHUFFLE4(low01, low23, 2, 3, 6, 7);
        m[4 * q + 2] = SHUFFLE4(high01, high23, 0, 1, 4, 5);
        m[4 * q + 3] = SHUFFLE4(high01, high23, 2, 3, 6, 7);
    }
}

#define FN(name) portable_##name
#define TARGET
#define ROTATE(x, n) rotate_portable(x, n)
#include "blake3_lanes_row.h"

#define LANES 4
#define V vec4
#define FN(name) portable4_##name
#define TARGET
#define ROTATE(x, n) rotate_portable(x, n)
#define TRANSPOSE transpose_portable
#include "blake3_lanes_group.h"

static size_t portable_some_frames(const uint8_t *key, const uint8_t *frames, size_t n, uint8_t *tags)
{
    if (n == 1)
        return portable_row_frame(key, frames, tags), 1;
    if (n == 2)
        return portable4_chunks(key, frames, n, tags), n;
    return portable4_frames(key, frames, n, tags), n < 4 ? n : 4;
}

static size_t portable_some_requests(const uint8_t *key, const uint8_t *requests, size_t n, size_t stride, uint8_t *tags)
{
    if (n < 2)
        return portable_row_request(key, requests, tags), 1;
    n = n < 4 ? n : 4;
    return portable4_requests(key, requests, n, stride, tags), n;
}

static size_t portable_some_digests504(const uint8_t *const *headers, size_t n, uint8_t *tags)
{
    if (n == 1)
        return portable_row_digest504(headers[0], tags), 1;
    n = n < 4 ? n : 4;
    return portable4_digests504(headers, n, tags), n;
}

#ifdef LANES_X86
/* ---- AVX2 ---------------------------------------------------------------------------------------------------- */

#define TARGET_AVX2 __attribute__((target("avx2")))
#define INLINE_AVX2 TARGET_AVX2 static inline __attribute__((always_inline))

/* Rotations by whole bytes are one shuffle, the others two shifts and an or. */
INLINE_AVX2 vec8 rotate8_avx2(vec8 x, int n)
{
    const __m256i by16 = _mm256_set_epi8(13, 12, 15, 14, 9, 8, 11, 10, 5, 4, 7, 6, 1, 0, 3, 2,
                                         13, 12, 15, 14, 9, 8, 11, 10, 5, 4, 7, 6, 1, 0, 3, 2);
    const __m256i by8 = _mm256_set_epi8(12, 15, 14, 13, 8, 11, 10, 9, 4, 7, 6, 5, 0, 3, 2, 1,
                                        12, 15, 14, 13, 8, 11, 10, 9, 4, 7, 6, 5, 0, 3, 2, 1);
    if (n == 16)
        return (vec8)_mm256_shuffle_epi8((__m256i)x, by16);
    if (n == 8)
        return (vec8)_mm256_shuffle_epi8((__m256i)x, by8);
    return (x >> n) | (x << (32 - n));
}

INLINE_AVX2 vec4 rotate4_avx2(vec4 x, int n)
{
    if (n == 16)
        return (vec4)_mm_shuffle_epi8((__m128i)x, _mm_set_epi8(13, 12, 15, 14, 9, 8, 11, 10, 5, 4, 7, 6, 1, 0, 3, 2));
    if (n == 8)
        return (vec4)_mm_shuffle_epi8((__m128i)x, _mm_set_epi8(12, 15, 14, 13, 8, 11, 10, 9, 4, 7, 6, 5, 0, 3, 2, 1));
    return (x >> n) | (x << (32 - n));
}

/* The rows of lanes i and i + 4 share a register, so that what is left are four 4x4 transposes inside its halves. */
INLINE_AVX2 void transpose8_avx2(vec8 m[16], const uint8_t *const at[8], size_t offset)
{
    for (int q = 0; q < 4; q++) {
        __m256i r[4];
        for (int i = 0; i < 4; i++)
            r[i] = _mm256_inserti128_si256(
                _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(at[i] + offset + 16 * q))),
                _mm_loadu_si128((const __m128i *)(at[i + 4] + offset + 16 * q)), 1);
        __m256i low01 = _mm256_unpacklo_epi32(r[0], r[1]), high01 = _mm256_unpackhi_epi32(r[0], r[1]);
        __m256i low23 = _mm256_unpacklo_epi32(r[2], r[3]), high23 = _mm256_unpackhi_epi32(r[2], r[3]);
        m[4 * q + 0] = (vec8)_mm256_unpacklo_epi64(low01, low23);
        m[4 * q + 1] = (vec8)_mm256_unpackhi_epi64(low01, low23);
        m[4 * q + 2] = (vec8)_mm256_unpacklo_epi64(high01, high23);
        m[4 * q + 3] = (vec8)_mm256_unpackhi_epi64(high01, high23);
    }
}

#define FN(name) avx2_##name
#define TARGET TARGET_AVX2
#define ROTATE(x, n) rotate4_avx2(x, n)
#include "blake3_lanes_row.h"

#define LANES 8
#define V vec8
#define FN(name) avx2x8_##name
#define TARGET TARGET_AVX2
#define ROTATE(x, n) rotate8_avx2(x, n)
#define TRANSPOSE transpose8_avx2
#include "blake3_lanes_group.h"

static size_t avx2_some_frames(const uint8_t *key, const uint8_t *frames, size_t n, uint8_t *tags)
{
    if (n == 1)
        return avx2_row_frame(key, frames, tags), 1;
    if (n <= 4)
        return avx2x8_chunks(key, frames, n, tags), n;
    return avx2x8_frames(key, frames, n, tags), n < 8 ? n : 8;
}

static size_t avx2_some_requests(const uint8_t *key, const uint8_t *requests, size_t n, size_t stride, uint8_t *tags)
{
    if (n < 2)
        return avx2_row_request(key, requests, tags), 1;
    n = n < 8 ? n : 8;
    return avx2x8_requests(key, requests, n, stride, tags), n;
}

static size_t avx2_some_digests504(const uint8_t *const *headers, size_t n, uint8_t *tags)
{
    if (n == 1)
        return avx2_row_digest504(headers[0], tags), 1;
    n = n < 8 ? n : 8;
    return avx2x8_digests504(headers, n, tags), n;
}

/* ---- AVX-512 --------------------------------------------------------------------------------------------------- */

#define TARGET_AVX512 __attribute__((target("avx512f,avx512vl")))
#define INLINE_AVX512 TARGET_AVX512 static inline __attribute__((always_inline))

/* The rows of lanes i and i + 4 share a register, and so do those of i + 8 and i + 12. Transposing inside quarters then
 * gives [w of 0–3 | w + 4 of 0–3 | w of 4–7 | w + 4 of 4–7], and the same of lanes 8–15, for w = 0 to 3. */
INLINE_AVX512 void transpose16_avx512(vec16 m[16], const uint8_t *const at[16], size_t offset)
{
    for (int half = 0; half < 2; half++) {
        __m512i parts[2][4];
        for (int p = 0; p < 2; p++) {
            __m512i r[4];
            for (int i = 0; i < 4; i++)
                r[i] = _mm512_inserti64x4(
                    _mm512_castsi256_si512(
                        _mm256_loadu_si256((const __m256i *)(at[8 * p + i] + offset + 32 * half))),
                    _mm256_loadu_si256((const __m256i *)(at[8 * p + i + 4] + offset + 32 * half)), 1);
            __m512i low01 = _mm512_unpacklo_epi32(r[0], r[1]), high01 = _mm512_unpackhi_epi32(r[0], r[1]);
            __m512i low23 = _mm512_unpacklo_epi32(r[2], r[3]), high23 = _mm512_unpackhi_epi32(r[2], r[3]);
            parts[p][0] = _mm512_unpacklo_epi64(low01, low23);
            parts[p][1] = _mm512_unpackhi_epi64(low01, low23);
            parts[p][2] = _mm512_unpacklo_epi64(high01, high23);
            parts[p][3] = _mm512_unpackhi_epi64(high01, high23);
        }
        for (int w = 0; w < 4; w++) {
            m[8 * half + w] = (vec16)_mm512_shuffle_i32x4(parts[0][w], parts[1][w], 0x88);
            m[8 * half + w + 4] = (vec16)_mm512_shuffle_i32x4(parts[0][w], parts[1][w], 0xdd);
        }
    }
}

INLINE_AVX512 void transpose8_avx512(vec8 m[16], const uint8_t *const at[8], size_t offset)
{
    transpose8_avx2(m, at, offset);
}

#define FN(name) avx512_##name
#define TARGET TARGET_AVX512
#define ROTATE(x, n) ((vec4)_mm_ror_epi32((__m128i)(x), n))
#include "blake3_lanes_row.h"

#define LANES 8
#define V vec8
#define FN(name) avx512x8_##name
#define TARGET TARGET_AVX512
#define ROTATE(x, n) ((vec8)_mm256_ror_epi32((__m256i)(x), n))
#define TRANSPOSE transpose8_avx512
#include "blake3_lanes_group.h"

#define LANES 16
#define V vec16
#define FN(name) avx512x16_##name
#define TARGET TARGET_AVX512
#define ROTATE(x, n) ((vec16)_mm512_ror_epi32((__m512i)(x), n))
#define TRANSPOSE transpose16_avx512
#include "blake3_lanes_group.h"

static size_t avx512_some_frames(const uint8_t *key, const uint8_t *frames, size_t n, uint8_t *tags)
{
    if (n == 1)
        return avx512_row_frame(key, frames, tags), 1;
    if (n <= 4)
        return avx512x8_chunks(key, frames, n, tags), n;
    if (n <= 8)
        return avx512x16_chunks(key, frames, n, tags), n;
    return avx512x16_frames(key, frames, n, tags), n < 16 ? n : 16;
}

static size_t avx512_some_requests(const uint8_t *key, const uint8_t *requests, size_t n, size_t stride, uint8_t *tags)
{
    if (n < 2)
        return avx512_row_request(key, requests, tags), 1;
    if (n <= 8)
        return avx512x8_requests(key, requests, n, stride, tags), n;
    n = n < 16 ? n : 16;
    return avx512x16_requests(key, requests, n, stride, tags), n;
}

static size_t avx512_some_digests504(const uint8_t *const *headers, size_t n, uint8_t *tags)
{
    if (n == 1)
        return avx512_row_digest504(headers[0], tags), 1;
    if (n <= 8)
        return avx512x8_digests504(headers, n, tags), n;
    n = n < 16 ? n : 16;
    return avx512x16_digests504(headers, n, tags), n;
}
#endif

/* ---- the choice ------------------------------------------------------------------------------------------------ */

/* some_…: as many of the first of `n` ≥ 1 as suit this path; returns how many it did. */
struct lanes {
    size_t (*some_frames)(const uint8_t *key, const uint8_t *frames, size_t n, uint8_t *tags);
    size_t (*some_requests)(const uint8_t *key, const uint8_t *requests, size_t n, size_t stride, uint8_t *tags);
    size_t (*some_digests504)(const uint8_t *const *headers, size_t n, uint8_t *tags);
};

static const struct lanes LANES_OF[LANES_PATHS] = {
    [LANES_PORTABLE] = {portable_some_frames, portable_some_requests, portable_some_digests504},
#ifdef LANES_X86
    [LANES_AVX2] = {avx2_some_frames, avx2_some_requests, avx2_some_digests504},
    [LANES_AVX512] = {avx512_some_frames, avx512_some_requests, avx512_some_digests504},
#endif
};

static int used = LANES_PORTABLE; /* a word that is read once by each call, so that a change is seen whole */

int lanes_available(int path)
{
    switch (path) {
    case LANES_PORTABLE:
        return 1;
#ifdef LANES_X86
    case LANES_AVX2:
        return __builtin_cpu_supports("avx2") != 0;
    case LANES_AVX512:
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl");
#endif
    default:
        return 0;
    }
}

__attribute__((constructor)) static void use_fastest(void)
{
#ifdef LANES_X86
    __builtin_cpu_init();
#endif
    int path = LANES_PATHS - 1;
    while (!lanes_available(path))
        path--;
    __atomic_store_n(&used, path, __ATOMIC_RELAXED);
}

int lanes_path(void) { return __atomic_load_n(&used, __ATOMIC_RELAXED); }

int lanes_use(int path)
{
    if (!lanes_available(path))
        return -1;
    __atomic_store_n(&used, path, __ATOMIC_RELAXED);
    return 0;
}

void lanes_frame_tags(const uint8_t key[32], const uint8_t *frames, size_t n, uint8_t *tags)
{
    const struct lanes *lanes = &LANES_OF[lanes_path()];
    for (size_t i = 0; i < n;)
        i += lanes->some_frames(key, frames + i * FRAME_SIZE, n - i, tags + 8 * i);
}

void lanes_request_tags(const uint8_t key[32], const uint8_t *requests, size_t n, size_t stride, uint8_t *tags)
{
    const struct lanes *lanes = &LANES_OF[lanes_path()];
    for (size_t i = 0; i < n;)
        i += lanes->some_requests(key, requests + i * stride, n - i, stride, tags + 8 * i);
}

void lanes_digests504(const uint8_t *const *headers, size_t n, uint8_t *tags)
{
    const struct lanes *lanes = &LANES_OF[lanes_path()];
    for (size_t i = 0; i < n;)
        i += lanes->some_digests504(headers + i, n - i, tags + 8 * i);
}

void lanes_frames_sign(const uint8_t key[32], uint8_t *frames, size_t n)
{
    uint8_t tags[8 * GROUP];
    for (size_t i = 0; i < n; i += GROUP) {
        size_t k = n - i < GROUP ? n - i : GROUP;
        lanes_frame_tags(key, frames + i * FRAME_SIZE, k, tags);
        for (size_t j = 0; j < k; j++)
            memcpy(frames + (i + j) * FRAME_SIZE + 8, tags + 8 * j, 8);
    }
}

size_t lanes_frames_verify(const uint8_t key[32], const uint8_t *frames, size_t n, uint8_t *good)
{
    uint8_t tags[8 * GROUP];
    size_t total = 0;
    for (size_t i = 0; i < n; i += GROUP) {
        size_t k = n - i < GROUP ? n - i : GROUP;
        lanes_frame_tags(key, frames + i * FRAME_SIZE, k, tags);
        for (size_t j = 0; j < k; j++) {
            uint64_t right, stands;
            memcpy(&right, tags + 8 * j, 8);
            memcpy(&stands, frames + (i + j) * FRAME_SIZE + 8, 8);
            uint64_t differs = right ^ stands;
            good[i + j] = (uint8_t)(((differs | (0 - differs)) >> 63) ^ 1);
            total += good[i + j];
        }
    }
    return total;
}
