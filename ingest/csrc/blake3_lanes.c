#include "blake3_lanes.h"

#include <string.h>

#define FRAME_SIZE 1474
#define GROUP 64

enum { CHUNK_START = 1, CHUNK_END = 2, PARENT = 4, ROOT = 8, KEYED_HASH = 16 };

static const uint32_t IV[8] = {0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A,
                               0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19};
static const uint8_t SCHEDULE[7][16] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, {2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8},
    {3, 4, 10, 12, 13, 2, 7, 14, 6, 5, 9, 0, 11, 15, 8, 1}, {10, 7, 12, 9, 14, 3, 13, 15, 4, 0, 11, 2, 5, 8, 1, 6},
    {12, 13, 9, 11, 15, 10, 14, 8, 7, 2, 5, 3, 0, 1, 6, 4}, {9, 14, 11, 5, 8, 12, 15, 1, 13, 3, 0, 10, 2, 6, 4, 7},
    {11, 15, 5, 0, 1, 9, 8, 6, 14, 10, 2, 12, 3, 4, 7, 13}};

static inline uint32_t rotr(uint32_t x, int n) { return (x >> n) | (x << (32 - n)); }

static inline void mix(uint32_t *v, int a, int b, int c, int d, uint32_t x, uint32_t y)
{
    v[a] += v[b] + x;
    v[d] = rotr(v[d] ^ v[a], 16);
    v[c] += v[d];
    v[b] = rotr(v[b] ^ v[c], 12);
    v[a] += v[b] + y;
    v[d] = rotr(v[d] ^ v[a], 8);
    v[c] += v[d];
    v[b] = rotr(v[b] ^ v[c], 7);
}

static void compress(uint32_t h[8], const uint8_t *block, uint32_t length, uint32_t counter, uint32_t flags)
{
    uint32_t m[16], v[16];
    memcpy(m, block, 64);
    memcpy(v, h, 32);
    memcpy(v + 8, IV, 16);
    v[12] = counter, v[13] = 0, v[14] = length, v[15] = flags;
    for (int r = 0; r < 7; r++) {
        const uint8_t *s = SCHEDULE[r];
        for (int i = 0; i < 4; i++)
            mix(v, i, 4 + i, 8 + i, 12 + i, m[s[2 * i]], m[s[2 * i + 1]]);
        for (int i = 0; i < 4; i++)
            mix(v, i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4, m[s[8 + 2 * i]], m[s[9 + 2 * i]]);
    }
    for (int i = 0; i < 8; i++)
        h[i] = v[i] ^ v[i + 8];
}

static void frame_tag(const uint8_t key[32], const uint8_t *frame, uint8_t *tag)
{
    uint32_t h[16];
    uint8_t block[64];
    memcpy(h, key, 32);
    memcpy(h + 8, key, 32);
    memcpy(block, frame, 8);
    memcpy(block + 8, frame + 16, 56);
    compress(h, block, 64, 0, KEYED_HASH | CHUNK_START);
    for (int b = 1; b < 16; b++)
        compress(h, frame + 8 + 64 * b, 64, 0, KEYED_HASH | (b == 15 ? CHUNK_END : 0));
    for (int b = 16; b < 22; b++)
        compress(h + 8, frame + 8 + 64 * b, 64, 1, KEYED_HASH | (b == 16 ? CHUNK_START : 0));
    memset(block, 0, 64);
    memcpy(block, frame + 8 + 64 * 22, 58);
    compress(h + 8, block, 58, 1, KEYED_HASH | CHUNK_END);
    uint32_t root[8];
    memcpy(root, key, 32);
    compress(root, (const uint8_t *)h, 64, 0, KEYED_HASH | PARENT | ROOT);
    memcpy(tag, root, 8);
}

int lanes_available(int path) { return path == LANES_PORTABLE; }
int lanes_path(void) { return LANES_PORTABLE; }
int lanes_use(int path) { return lanes_available(path) ? 0 : -1; }

void lanes_frame_tags(const uint8_t key[32], const uint8_t *frames, size_t n, uint8_t *tags)
{
    for (size_t i = 0; i < n; i++)
        frame_tag(key, frames + i * FRAME_SIZE, tags + 8 * i);
}

void lanes_request_tags(const uint8_t key[32], const uint8_t *requests, size_t n, size_t stride, uint8_t *tags)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t h[8];
        uint8_t block[64] = {0};
        memcpy(h, key, 32);
        memcpy(block, requests + i * stride, 16);
        compress(h, block, 16, 0, KEYED_HASH | CHUNK_START | CHUNK_END | ROOT);
        memcpy(tags + 8 * i, h, 8);
    }
}

void lanes_digest504(const uint8_t *header, uint8_t tag[8])
{
    uint32_t h[8];
    uint8_t block[64] = {0};
    memcpy(h, IV, 32);
    for (int b = 0; b < 7; b++)
        compress(h, header + 64 * b, 64, 0, b == 0 ? CHUNK_START : 0);
    memcpy(block, header + 448, 56);
    compress(h, block, 56, 0, CHUNK_END | ROOT);
    memcpy(tag, h, 8);
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
