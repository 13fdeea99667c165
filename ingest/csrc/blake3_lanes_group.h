/* One width of the kernel: LANES messages side by side, word i of all of them in one vector. A template: included
 * once for each width and instruction set by blake3_lanes.c, which defines
 *     LANES        messages, a power of two
 *     FN(name)     the name of this instance's function
 *     TARGET       the attribute that lets the compiler use the instructions
 *     ROTATE(x, n) each 32-bit word of x rotated right by n, one of 16, 12, 8, 7
 *     TRANSPOSE    a function (V m[16], const uint8_t *const at[LANES], size_t offset) that loads 64 bytes at
 *                  at[i] + offset for each lane i: afterwards m[w] holds word w of all lanes
 *     V            the type of LANES words
 *
 * A compression is about 784 operations in which every lane does the same, so its cost does not depend on how many
 * lanes are of use. Few frames therefore use two lanes each, one for either chunk. */

#define MIX(a, b, c, d, x, y)           \
    do {                                \
        v[a] = v[a] + m[x];             \
        KEEP(v[a]);                     \
        v[a] = v[a] + v[b];             \
        v[d] = ROTATE(v[d] ^ v[a], 16); \
        v[c] = v[c] + v[d];             \
        v[b] = ROTATE(v[b] ^ v[c], 12); \
        v[a] = v[a] + m[y];             \
        KEEP(v[a]);                     \
        v[a] = v[a] + v[b];             \
        v[d] = ROTATE(v[d] ^ v[a], 8);  \
        v[c] = v[c] + v[d];             \
        v[b] = ROTATE(v[b] ^ v[c], 7);  \
    } while (0)

#define ROUND(s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, s10, s11, s12, s13, s14, s15) \
    do {                                                                            \
        MIX(0, 4, 8, 12, s0, s1);                                                   \
        MIX(1, 5, 9, 13, s2, s3);                                                   \
        MIX(2, 6, 10, 14, s4, s5);                                                  \
        MIX(3, 7, 11, 15, s6, s7);                                                  \
        MIX(0, 5, 10, 15, s8, s9);                                                  \
        MIX(1, 6, 11, 12, s10, s11);                                                \
        MIX(2, 7, 8, 13, s12, s13);                                                 \
        MIX(3, 4, 9, 14, s14, s15);                                                 \
    } while (0)

/* h becomes the compression of h and the block m; `counter`, `length` and `flags` may differ from lane to lane. */
TARGET static inline __attribute__((always_inline)) void FN(compress)(
    V h[8], const V m[16], V counter, V length, V flags)
{
    V v[16];
    for (int i = 0; i < 8; i++)
        v[i] = h[i];
    for (int i = 0; i < 4; i++)
        v[8 + i] = (V){0} + IV[i];
    v[12] = counter;
    v[13] = (V){0};
    v[14] = length;
    v[15] = flags;
    ROUND(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    ROUND(2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8);
    ROUND(3, 4, 10, 12, 13, 2, 7, 14, 6, 5, 9, 0, 11, 15, 8, 1);
    ROUND(10, 7, 12, 9, 14, 3, 13, 15, 4, 0, 11, 2, 5, 8, 1, 6);
    ROUND(12, 13, 9, 11, 15, 10, 14, 8, 7, 2, 5, 3, 0, 1, 6, 4);
    ROUND(9, 14, 11, 5, 8, 12, 15, 1, 13, 3, 0, 10, 2, 6, 4, 7);
    ROUND(11, 15, 5, 0, 1, 9, 8, 6, 14, 10, 2, 12, 3, 4, 7, 13);
    for (int i = 0; i < 8; i++)
        h[i] = v[i] ^ v[i + 8];
}

#undef MIX
#undef ROUND

/* The same for the blocks of 64 bytes at at[i] + offset, for each lane i. */
TARGET static __attribute__((noinline)) void FN(step)(
    V h[8], const uint8_t *const at[LANES], size_t offset, V counter, V length, V flags)
{
    V m[16];
    TRANSPOSE(m, at, offset);
    FN(compress)(h, m, counter, length, flags);
}

/* The roots, in h, above the chaining values of both chunks. */
TARGET static __attribute__((noinline)) void FN(join)(V h[8], const V cv[16])
{
    const V zero = {0};
    FN(compress)(h, cv, zero, zero + 64, zero + (KEYED_HASH | PARENT | ROOT));
}

TARGET static inline V FN(splat)(uint32_t x) { return (V){0} + x; }

TARGET static inline void FN(splat_words)(V *h, const uint8_t bytes[32])
{
    uint32_t words[8];
    memcpy(words, bytes, 32);
    for (int i = 0; i < 8; i++)
        h[i] = FN(splat)(words[i]);
}

TARGET static inline void FN(write_tags)(const V h[8], size_t n, uint8_t *tags)
{
    uint32_t low[LANES], high[LANES];
    memcpy(low, &h[0], sizeof low);
    memcpy(high, &h[1], sizeof high);
    for (size_t i = 0; i < n; i++) {
        memcpy(tags + 8 * i, &low[i], 4);
        memcpy(tags + 8 * i + 4, &high[i], 4);
    }
}

/* Asks for a part of the group that comes next, so that it has arrived when its turn comes: the frames of one group are
 * read in too many streams at once for the hardware to foresee. */
TARGET static inline void FN(prefetch)(const uint8_t *next, size_t step)
{
    for (size_t i = 0; i < LANES; i++)
        __builtin_prefetch(next + 64 * (LANES * step + i));
}

/* The checksums of the first LANES of `n` frames (of all, if fewer), a lane each: 24 compressions. */
TARGET static __attribute__((unused)) void FN(frames)(
    const uint8_t *key, const uint8_t *frames, size_t n, uint8_t *tags)
{
    _Alignas(64) uint8_t edge[LANES][64]; /* what does not lie in a frame as one block */
    const uint8_t *at[LANES], *edges[LANES];
    V start[8], cv[16]; /* cv: the chaining values of both chunks, which are the parent's block */
    const V zero = FN(splat)(0), one = FN(splat)(1), full = FN(splat)(64), keyed = FN(splat)(KEYED_HASH);

    const uint8_t *next = frames + (n > LANES ? LANES * FRAME_SIZE : 0);

    n = n < LANES ? n : LANES;
    FN(splat_words)(start, key);
    for (int i = 0; i < 8; i++)
        cv[i] = cv[8 + i] = start[i];
    for (size_t i = 0; i < LANES; i++) {
        at[i] = frames + (i < n ? i : n - 1) * FRAME_SIZE;
        edges[i] = edge[i];
        block_first(edge[i], at[i]);
    }
    FN(step)(cv, edges, 0, zero, full, FN(splat)(KEYED_HASH | CHUNK_START));
    for (size_t b = 1; b < 15; b++) {
        FN(prefetch)(next, b);
        FN(step)(cv, at, BLOCK_OFFSET(b), zero, full, keyed);
    }
    FN(prefetch)(next, 0);
    FN(prefetch)(next, 15);
    FN(step)(cv, at, BLOCK_OFFSET(15), zero, full, FN(splat)(KEYED_HASH | CHUNK_END));

    FN(step)(cv + 8, at, BLOCK_OFFSET(16), one, full, FN(splat)(KEYED_HASH | CHUNK_START));
    for (size_t b = 17; b < 22; b++) {
        FN(prefetch)(next, b);
        FN(step)(cv + 8, at, BLOCK_OFFSET(b), one, full, keyed);
    }
    FN(prefetch)(next, 16);
    FN(prefetch)(next, 22);
    for (size_t i = 0; i < LANES; i++)
        block_last(edge[i], at[i]);
    FN(step)(cv + 8, edges, 0, one, FN(splat)(LAST_LENGTH), FN(splat)(KEYED_HASH | CHUNK_END));

    FN(join)(start, cv);
    FN(write_tags)(start, n, tags);
}

/* The checksums of `n` (1 to LANES / 2) frames, two lanes each: chunk 0 in lane i, chunk 1 in lane LANES / 2 + i.
 * 17 compressions; in the last 9 of chunk 0 the lanes of chunk 1 compute something that nobody reads. */
TARGET static __attribute__((unused)) void FN(chunks)(
    const uint8_t *key, const uint8_t *frames, size_t n, uint8_t *tags)
{
    enum { HALF = LANES / 2 };
    _Alignas(64) uint8_t edge[LANES][64];
    const uint8_t *at[LANES], *edges[LANES]; /* at: so that block b of a lane's chunk lies at BLOCK_OFFSET(b) */
    V start[8], cv[16], h[8];
    V upper = FN(splat)(0); /* all ones in the lanes of chunk 1 */
    for (int i = HALF; i < LANES; i++)
        upper[i] = ~(uint32_t)0;
    const V counter = upper & 1, full = FN(splat)(64);

    FN(splat_words)(start, key);
    memcpy(h, start, sizeof h);
    for (size_t i = 0; i < HALF; i++) {
        at[i] = frames + (i < n ? i : n - 1) * FRAME_SIZE;
        at[HALF + i] = at[i] + CHUNK_SIZE;
        edges[i] = edge[i];
        block_first(edge[i], at[i]);
        edges[HALF + i] = at[HALF + i] + BLOCK_OFFSET(0);
    }
    FN(step)(h, edges, 0, counter, full, FN(splat)(KEYED_HASH | CHUNK_START));
    for (size_t b = 1; b < 6; b++)
        FN(step)(h, at, BLOCK_OFFSET(b), counter, full, FN(splat)(KEYED_HASH));
    for (size_t i = 0; i < HALF; i++) {
        edges[i] = at[i] + BLOCK_OFFSET(6);
        edges[HALF + i] = edge[i];
        block_last(edge[i], at[i]);
        at[HALF + i] = at[i]; /* from here on */
    }
    FN(step)(h, edges, 0, counter, (upper & LAST_LENGTH) | (~upper & 64), (upper & CHUNK_END) | KEYED_HASH);
    for (int i = 0; i < 8; i++) { /* the chaining value of chunk 1, moved to the lane of its frame */
        cv[8 + i] = FN(splat)(0);
        memcpy(&cv[8 + i], (const uint8_t *)&h[i] + sizeof(V) / 2, sizeof(V) / 2);
    }
    for (size_t b = 7; b < 16; b++)
        FN(step)(h, at, BLOCK_OFFSET(b), counter, full,
                 FN(splat)(b == 15 ? KEYED_HASH | CHUNK_END : KEYED_HASH));
    memcpy(cv, h, sizeof h);
    FN(join)(start, cv);
    FN(write_tags)(start, n, tags);
}

/* The checksums of `n` (1 to LANES) requests that lie `stride` bytes apart: one compression. */
TARGET static __attribute__((unused)) void FN(requests)(
    const uint8_t *key, const uint8_t *requests, size_t n, size_t stride, uint8_t *tags)
{
    _Alignas(64) uint8_t edge[LANES][64];
    const uint8_t *edges[LANES];
    V h[8];
    memset(edge, 0, sizeof edge);
    for (size_t i = 0; i < LANES; i++) {
        edges[i] = edge[i];
        memcpy(edge[i], requests + (i < n ? i : n - 1) * stride, REQUEST_SIGNED);
    }
    FN(splat_words)(h, key);
    FN(step)(h, edges, 0, FN(splat)(0), FN(splat)(REQUEST_SIGNED),
             FN(splat)(KEYED_HASH | CHUNK_START | CHUNK_END | ROOT));
    FN(write_tags)(h, n, tags);
}

/* The digests of `n` (1 to LANES) pack headers, 504 bytes each without a key: 8 compressions. */
TARGET static __attribute__((unused)) void FN(digests504)(const uint8_t *const *headers, size_t n, uint8_t *tags)
{
    _Alignas(64) uint8_t edge[LANES][64];
    const uint8_t *at[LANES], *edges[LANES];
    V h[8];
    const V zero = FN(splat)(0), full = FN(splat)(64);
    memset(edge, 0, sizeof edge);
    for (size_t i = 0; i < LANES; i++) {
        at[i] = headers[i < n ? i : n - 1];
        edges[i] = edge[i];
        memcpy(edge[i], at[i] + 448, 56);
    }
    for (int i = 0; i < 8; i++)
        h[i] = FN(splat)(IV[i]);
    for (size_t b = 0; b < 7; b++)
        FN(step)(h, at, 64 * b, zero, full, FN(splat)(b == 0 ? CHUNK_START : 0));
    FN(step)(h, edges, 0, zero, FN(splat)(56), FN(splat)(CHUNK_END | ROOT));
    FN(write_tags)(h, n, tags);
}

#undef LANES
#undef FN
#undef V
#undef TARGET
#undef ROTATE
#undef TRANSPOSE
