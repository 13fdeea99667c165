/* Long runs of frames straight into their pack, past the page cache: docs/architecture.md, "The bulk path". */
#ifndef INGEST_BULK_WRITE_H
#define INGEST_BULK_WRITE_H

#include "file_syncs.h"
#include "pack_file.h"

/* The slots of one pack and the header page before them, up to whole blocks. */
#define BULK_IMAGE_SIZE (((size_t)PACK_HEADER_SIZE + (size_t)ROOT_PACK_SLOTS * FRAME_SIZE + PACK_BLOCK - 1) / PACK_BLOCK * PACK_BLOCK)

typedef struct {
    const uint8_t *frames;
    int count;
} bulk_part;

/* A descriptor of the pack for one job alone, past the page cache where the file system has that; or -1 with errno. It is
 * opened before the job writes, and is what the job syncs: a write-back that failed is reported once to each descriptor, and
 * somebody else may sync another one meanwhile. */
static int bulk_open(int data_fd, const pack_state *pack)
{
    char path[32];
    pack_path(pack->id, path);
    int fd = open_beneath(data_fd, path, O_WRONLY | O_DIRECT, 0);
    return fd < 0 && errno == EINVAL ? open_beneath(data_fd, path, O_WRONLY, 0) : fd;
}

/* Writes consecutive frames, given in parts, into the slots from `slot` on. `fd` is that of `bulk_open`. Whole blocks go past
 * the page cache; the first and last block, which other slots share, through it. `image` is a page-aligned buffer of
 * BULK_IMAGE_SIZE. An errno or 0; a negative errno when a sync failed that is not to be retried. */
static int bulk_write(int fd, pack_state *pack, int slot, const bulk_part *parts, int n, uint8_t *image)
{
    int64_t from = slot_offset(slot), to = from;
    for (int i = 0; i < n; i++) {
        memcpy(image + to, parts[i].frames, (size_t)parts[i].count * FRAME_SIZE);
        to += (int64_t)parts[i].count * FRAME_SIZE;
    }
    int64_t low = (from + PACK_BLOCK - 1) / PACK_BLOCK * PACK_BLOCK, high = to / PACK_BLOCK * PACK_BLOCK;
    int error = 0;
    /* A pack's header must not reach the disk after the size that the slots give the file: a power cut would leave a
     * pack without a header that no log record names. */
    if (pack->header_cached) {
        if ((error = synced(fdatasync, fd)) != 0)
            return -error;
        pack->header_cached = HEADER_DURABLE;
    }
    error = pwrite_all(fd, image + low, (size_t)(high - low), low);
    if (!error && from < low)
        error = pwrite_all(pack->fd, image + from, (size_t)(low - from), from);
    if (!error && high < to)
        error = pwrite_all(pack->fd, image + high, (size_t)(to - high), high);
    return error;
}

/* An errno or 0. */
static inline int bulk_sync(int fd) { return synced(fdatasync, fd); }

/* Syncs the directories of `pack`'s path, from DATA down, except those that it shares with `previous` (-1: none). */
static int bulk_sync_directories(int data_fd, int64_t pack, int64_t previous)
{
    char path[32], other[32] = "";
    pack_path(pack, path);
    if (previous >= 0)
        pack_path(previous, other);
    return sync_directories(data_fd, path, other, NULL);
}

#endif
