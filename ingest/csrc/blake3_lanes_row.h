/* One message at a time, or the two chunks of one frame: the four rows of the BLAKE3 state are four vectors of four
 * words, so that the four mixes of a half-round run side by side (as in the reference implementation's SSE code). This
 * waits for latency, not for throughput: a second message in the same instruction stream is almost free.
 *
 * A template like blake3_lanes_group.h; blake3_lanes.c defines FN, TARGET and ROTATE (on vec4) before it includes it. */

#define EACH for (int i = 0; i < count; i++)
#define HALF_MIX(x, turn_d, turn_b)          \
    EACH a[i] = a[i] + x[i];                 \
    EACH KEEP(a[i]);                         \
    EACH a[i] = a[i] + b[i];                 \
    EACH d[i] = ROTATE(d[i] ^ a[i], turn_d); \
    EACH c[i] = c[i] + d[i];                 \
    EACH b[i] = ROTATE(b[i] ^ c[i], turn_b);

/* Compresses `count` (1 or 2) blocks of 64 bytes at at[i] into the chaining values h[i]. */
TARGET static inline __attribute__((always_inline)) void FN(row_compress)(
    const int count, vec4 h[][2], const uint8_t *const at[], const vec4 tail[])
{
    vec4 a[2], b[2], c[2], d[2], m0[2], m1[2], m2[2], m3[2], t0[2], t1[2], t2[2], t3[2];
    EACH {
        a[i] = h[i][0];
        b[i] = h[i][1];
        c[i] = (vec4){IV[0], IV[1], IV[2], IV[3]};
        d[i] = tail[i];
        memcpy(&m0[i], at[i], 16);
        memcpy(&m1[i], at[i] + 16, 16);
        memcpy(&m2[i], at[i] + 32, 16);
        memcpy(&m3[i], at[i] + 48, 16);
        /* The words of a round in the order of its mixes: first and second of each column, then of each diagonal.
         * The diagonals begin with the last one, because a, c and d are turned against b, which is on the
         * longest path. */
        t0[i] = SHUFFLE4(m0[i], m1[i], 0, 2, 4, 6);
        t1[i] = SHUFFLE4(m0[i], m1[i], 1, 3, 5, 7);
        t2[i] = SHUFFLE4(m2[i], m3[i], 6, 0, 2, 4);
        t3[i] = SHUFFLE4(m2[i], m3[i], 7, 1, 3, 5);
    }
#pragma GCC unroll 7
    for (int round = 0; round < 7; round++) {
        if (round > 0)
            EACH { /* the next round's words are a fixed permutation of this one's */
                m0[i] = t0[i], m1[i] = t1[i], m2[i] = t2[i], m3[i] = t3[i];
                t0[i] = SHUFFLE4(m0[i], m1[i], 1, 5, 7, 2);
                t1[i] = SHUFFLE4(m2[i], m3[i], 2, 7, 2, 7);
                t1[i] = SHUFFLE4(m0[i], t1[i], 3, 4, 0, 5);
                t2[i] = SHUFFLE4(m1[i], m2[i], 0, 7, 0, 7);
                t2[i] = SHUFFLE4(m3[i], t2[i], 0, 4, 5, 1);
                t3[i] = SHUFFLE4(m1[i], m3[i], 2, 6, 2, 6);
                t3[i] = SHUFFLE4(m2[i], t3[i], 1, 5, 4, 0);
            }
        HALF_MIX(t0, 16, 12)
        HALF_MIX(t1, 8, 7)
        EACH {
            a[i] = SHUFFLE4(a[i], a[i], 3, 0, 1, 2);
            d[i] = SHUFFLE4(d[i], d[i], 2, 3, 0, 1);
            c[i] = SHUFFLE4(c[i], c[i], 1, 2, 3, 0);
        }
        HALF_MIX(t2, 16, 12)
        HALF_MIX(t3, 8, 7)
        EACH {
            a[i] = SHUFFLE4(a[i], a[i], 1, 2, 3, 0);
            d[i] = SHUFFLE4(d[i], d[i], 2, 3, 0, 1);
            c[i] = SHUFFLE4(c[i], c[i], 3, 0, 1, 2);
        }
    }
    EACH {
        h[i][0] = a[i] ^ c[i];
        h[i][1] = b[i] ^ d[i];
    }
}

#undef EACH
#undef HALF_MIX

TARGET static __attribute__((noinline)) void FN(row_one)(
    vec4 h[2], const uint8_t *at, uint32_t counter, uint32_t length, uint32_t flags)
{
    const vec4 tail = {counter, 0, length, flags};
    FN(row_compress)(1, (vec4(*)[2])h, &at, &tail);
}

/* A block of chunk 0, whole, and a block of chunk 1. */
TARGET static __attribute__((noinline)) void FN(row_two)(
    vec4 h[2][2], const uint8_t *at, const uint8_t *at1, uint32_t flags, uint32_t length1, uint32_t flags1)
{
    const uint8_t *const both[2] = {at, at1};
    const vec4 tails[2] = {{0, 0, 64, flags}, {1, 0, length1, flags1}};
    FN(row_compress)(2, h, both, tails);
}

TARGET static void FN(row_frame)(const uint8_t *key, const uint8_t *frame, uint8_t *tag)
{
    uint8_t edge[64];
    vec4 root[2], cv[2][2]; /* cv: of both chunks, which are the parent's block */
    const uint8_t *chunk = frame + CHUNK_SIZE;
    memcpy(root, key, 32);
    memcpy(cv[0], key, 32);
    memcpy(cv[1], key, 32);
    block_first(edge, frame);
    FN(row_two)(cv, edge, chunk + BLOCK_OFFSET(0), KEYED_HASH | CHUNK_START, 64, KEYED_HASH | CHUNK_START);
    for (size_t b = 1; b < 6; b++)
        FN(row_two)(cv, frame + BLOCK_OFFSET(b), chunk + BLOCK_OFFSET(b), KEYED_HASH, 64, KEYED_HASH);
    block_last(edge, frame);
    FN(row_two)(cv, frame + BLOCK_OFFSET(6), edge, KEYED_HASH, LAST_LENGTH, KEYED_HASH | CHUNK_END);
    for (size_t b = 7; b < 16; b++)
        FN(row_one)(cv[0], frame + BLOCK_OFFSET(b), 0, 64, b == 15 ? KEYED_HASH | CHUNK_END : KEYED_HASH);
    FN(row_one)(root, (const uint8_t *)cv, 0, 64, KEYED_HASH | PARENT | ROOT);
    memcpy(tag, root, 8);
}

TARGET static void FN(row_request)(const uint8_t *key, const uint8_t *request, uint8_t *tag)
{
    uint8_t edge[64] = {0};
    vec4 h[2];
    memcpy(edge, request, REQUEST_SIGNED);
    memcpy(h, key, 32);
    FN(row_one)(h, edge, 0, REQUEST_SIGNED, KEYED_HASH | CHUNK_START | CHUNK_END | ROOT);
    memcpy(tag, h, 8);
}

/* 504 bytes without a key: one chunk of 8 blocks, the last of 56 bytes. */
TARGET static void FN(row_digest504)(const uint8_t *header, uint8_t *tag)
{
    uint8_t edge[64] = {0};
    vec4 h[2];
    memcpy(h, IV, 32);
    for (size_t b = 0; b < 7; b++)
        FN(row_one)(h, header + 64 * b, 0, 64, b == 0 ? CHUNK_START : 0);
    memcpy(edge, header + 448, 56);
    FN(row_one)(h, edge, 0, 56, CHUNK_END | ROOT);
    memcpy(tag, h, 8);
}

#undef FN
#undef TARGET
#undef ROTATE
