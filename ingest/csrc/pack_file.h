/* One pack: docs/format.md, "Packs". Writing it, for the one process that may (the committer).
 *
 * The committer keeps the header of each pack that it has open in memory and writes the file's from it; readers in
 * other processes read the file's. `claimed` marks slots that a put or delete is under way for. Layout tree has no such
 * file; there the bits in `header` are what the committer has learnt of the slots in `known`. */
#ifndef INGEST_PACK_FILE_H
#define INGEST_PACK_FILE_H

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "ticket.h"

#ifndef FRAME_SIZE
#define FRAME_SIZE 1474
#endif
#define PACK_HEADER_SIZE 4096
#define PACK_SECTOR 512
#define PACK_BITMAP 168
#define PACK_GENERATION 40
#define PACK_PRESENT 64
#define PACK_DELETED 232
#define PACK_DIGEST 504
#define PACK_BLOCK 4096

/* Where a pack's header is: in the page cache, of which the disk may have the file's size and not the bytes; there when
 * the flush under way began; on the disk. */
enum { HEADER_DURABLE, HEADER_CACHED, HEADER_FLUSHING };

/* What a pack lacks where each file is synced by itself: written to since the flush began; in the flush under way. */
enum { PACK_UNSYNCED = 1, PACK_SYNCING = 2 };

typedef struct {
    int64_t id;
    int fd;
    int slots;
    int claimed_count;   /* slots claimed: while there are any, the pack stays in the table */
    int touched;         /* header changed in this commit and not written yet */
    int fresh;           /* its file is empty: the header is not written before the log has what goes behind it */
    int header_cached;   /* HEADER_...: only behind a durable one may slots be written that the log does not have yet */
    int unsynced;        /* PACK_...: until it is synced, the pack stays in the table */
    int unnamed;         /* its directories may not be durable, for all that this process has synced */
    uint8_t header[PACK_SECTOR];
    uint8_t claimed[PACK_BITMAP];
    uint8_t known[PACK_BITMAP]; /* layout tree: slots whose files were looked at */
} pack_state;

static inline int bit_get(const uint8_t *bits, int i) { return bits[i >> 3] >> (i & 7) & 1; }

static inline void bits_fill(uint8_t *bits, int from, int count, int value)
{
    for (int i = from, end = from + count; i < end;) {
        if ((i & 7) == 0 && end - i >= 8) {
            bits[i >> 3] = value ? 0xff : 0;
            i += 8;
        } else {
            uint8_t mask = (uint8_t)(1u << (i & 7));
            bits[i >> 3] = value ? bits[i >> 3] | mask : bits[i >> 3] & (uint8_t)~mask;
            i++;
        }
    }
}

/* Writes the header page of a new pack past the page cache. The file system then logs the file's size after the bytes: a power cut
 * leaves a pack with its header or an empty one. Through the page cache ext4 may log the size first. An errno or 0. */
static int pack_create_direct(int fd, const uint8_t *header)
{
    uint8_t page[PACK_HEADER_SIZE] __attribute__((aligned(PACK_BLOCK))) = {0};
    int flags = fcntl(fd, F_GETFL), error = 0;
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_DIRECT) < 0)
        return errno;
    memcpy(page, header, PACK_SECTOR);
    ssize_t n = pwrite(fd, page, sizeof page, 0);
    if (n != sizeof page)
        error = n < 0 ? errno : EIO;
    if (fcntl(fd, F_SETFL, flags) < 0)
        return errno;
    return error;
}

enum slot_state { SLOT_FREE = 0, SLOT_PRESENT = 1, SLOT_DELETED = 2, SLOT_CLAIMED = 3 };

static inline int slot_state_of(const pack_state *p, int slot)
{
    if (bit_get(p->claimed, slot))
        return SLOT_CLAIMED;
    if (bit_get(p->header + PACK_DELETED, slot))
        return SLOT_DELETED;
    return bit_get(p->header + PACK_PRESENT, slot) ? SLOT_PRESENT : SLOT_FREE;
}

/* How many of the `count` slots from `slot` on are in the state of the first one, which goes to `*state`. */
static inline int slots_alike(const pack_state *p, int slot, int count, int *state)
{
    int i = 1;
    *state = slot_state_of(p, slot);
    while (i < count) {
        int s = slot + i;
        if (*state == SLOT_FREE && (s & 7) == 0 && count - i >= 8 &&
            (p->claimed[s >> 3] | p->header[PACK_DELETED + (s >> 3)] | p->header[PACK_PRESENT + (s >> 3)]) == 0) {
            i += 8;
            continue;
        }
        if (slot_state_of(p, s) != *state)
            break;
        i++;
    }
    return i;
}

static inline int64_t slot_offset(int slot) { return PACK_HEADER_SIZE + (int64_t)slot * FRAME_SIZE; }

static inline void put_be(uint8_t *p, uint64_t v, int n)
{
    for (int i = n - 1; i >= 0; i--, v >>= 8)
        p[i] = (uint8_t)v;
}

static inline uint64_t get_be(const uint8_t *p, int n)
{
    uint64_t v = 0;
    for (int i = 0; i < n; i++)
        v = v << 8 | p[i];
    return v;
}

/* Writes all of it or returns an errno. */
static int pwrite_all(int fd, const uint8_t *data, size_t size, int64_t offset)
{
    while (size > 0) {
        ssize_t n = pwrite(fd, data, size, offset);
        if (n < 0) {
            if (errno == EINTR)
                continue;
            return errno;
        }
        if (n == 0)
            return EIO;
        data += n;
        offset += n;
        size -= (size_t)n;
    }
    return 0;
}

/* Reads `size` bytes, less at the end of the file (the rest is zeroed); an errno or 0. */
static int pread_all(int fd, uint8_t *data, size_t size, int64_t offset)
{
    while (size > 0) {
        ssize_t n = pread(fd, data, size, offset);
        if (n < 0) {
            if (errno == EINTR)
                continue;
            return errno;
        }
        if (n == 0) {
            memset(data, 0, size);
            return 0;
        }
        data += n;
        offset += n;
        size -= (size_t)n;
    }
    return 0;
}

/* The length of a file, -1 when that is not to be had. */
static inline int64_t file_size(int fd)
{
    struct stat st;
    return fstat(fd, &st) < 0 ? -1 : (int64_t)st.st_size;
}

/* The bytes that a file takes on the disk, 0 when that is not to be had. */
static inline int64_t file_allocated(int fd)
{
    struct stat st;
    return fstat(fd, &st) < 0 ? 0 : (int64_t)st.st_blocks * 512;
}

/* A pack's path below DATA, "AA/BB/CC/obj", at most 16 bytes with the NUL. */
static inline void pack_path(int64_t id, char *path)
{
    uint8_t prefix[9] = {0};
    int n = ticket_write_value(id, prefix);
    int at = 0;
    for (int i = 0; i < n; i++) {
        path[at++] = (char)prefix[i];
        if ((i & 1) == 1 || i == n - 1)
            path[at++] = '/';
    }
    memcpy(path + at, "obj", 4);
}

/* Whether no slot from `from` to before `to` is alive: neither present nor claimed. Slots that don't exist are dead. */
static int slots_dead(const pack_state *p, int from, int to)
{
    if (from < 0)
        from = 0;
    if (to > p->slots)
        to = p->slots;
    for (int s = from; s < to; s++)
        if (bit_get(p->header + PACK_PRESENT, s) || bit_get(p->claimed, s))
            return 0;
    return 1;
}

/* Writes zeros over what a file holds between two offsets; a hole there stays one, so that nothing is allocated. An errno
 * or 0. */
static int zero_data(int fd, int64_t from, int64_t to)
{
    static const uint8_t zeros[PACK_BLOCK];
    while (from < to) {
        off_t data = lseek(fd, from, SEEK_DATA);
        if (data < 0)
            return errno == ENXIO ? 0 : errno; /* nothing but a hole to the end */
        if (data >= to)
            return 0;
        off_t hole = lseek(fd, data, SEEK_HOLE);
        if (hole < 0)
            return errno;
        for (from = hole < to ? hole : to; data < from;) {
            int64_t size = from - data < PACK_BLOCK ? from - data : PACK_BLOCK;
            int error = pwrite_all(fd, zeros, (size_t)size, data);
            if (error)
                return error;
            data += size;
        }
    }
    return 0;
}

/* Zeroes `count` dead slots from `slot` on; their blocks go back to the file system, also the blocks that they share
 * with slots that are dead too. A pack with nothing alive shrinks to its header. An errno or 0. */
static int pack_zero_slots(pack_state *p, int slot, int count)
{
    if (slots_dead(p, 0, p->slots)) {
        while (ftruncate(p->fd, PACK_HEADER_SIZE) < 0)
            if (errno != EINTR)
                return errno;
        return 0;
    }
    int64_t from = slot_offset(slot), to = slot_offset(slot + count);
    int64_t low = from / PACK_BLOCK * PACK_BLOCK, high = (to + PACK_BLOCK - 1) / PACK_BLOCK * PACK_BLOCK;
    if (low >= PACK_HEADER_SIZE && slots_dead(p, (int)((low - PACK_HEADER_SIZE) / FRAME_SIZE), slot))
        from = low;
    if (slots_dead(p, slot + count, (int)((high - PACK_HEADER_SIZE + FRAME_SIZE - 1) / FRAME_SIZE)))
        to = high;
    while (fallocate(p->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, from, to - from) < 0) {
        if (errno == EINTR)
            continue;
        /* A hole in the middle of an extent may need a new block of metadata, which a full disk does not have. */
        if (errno != EOPNOTSUPP && errno != ENOSPC && errno != EDQUOT)
            return errno;
        return zero_data(p->fd, slot_offset(slot), slot_offset(slot + count));
    }
    return 0;
}

#endif
