/* Frames in a buffer: docs/protocol.md, "Frames". A frame is 8 bytes ticket, 8 bytes checksum, 1458 bytes data. */
#ifndef INGEST_FRAME_H
#define INGEST_FRAME_H

#include "ticket.h"

#define FRAME_SIZE 1474
#define FRAME_DATA 16 /* offset of the data */
#define DATA_SIZE 1458
#define ACK_SIZE 9
#define DELETE_COUNT_MAX 65536

/* How many of the `n` frames from `frames` on carry consecutive tickets of one pack, starting with `first`, the
 * (valid) index of the first one. At least 1 for n >= 1. */
static inline int frames_run(const uint8_t *frames, int n, int64_t first)
{
    int most = ticket_run_max(first);
    int i = 1;
    if (most > n)
        most = n;
    while (i < most && ticket_index(frames + (size_t)i * FRAME_SIZE) == first + i)
        i++;
    return i;
}

/* How many tickets a delete frame names, `first` being the (valid) index of its ticket: its data is a count (8 bytes,
 * big endian, 1 to 65,536) and zeros. -1 when the data is malformed or the range goes past the last ticket. */
static inline int32_t frame_delete_count(const uint8_t *frame, int64_t first)
{
    const uint8_t *data = frame + FRAME_DATA;
    uint64_t count = 0;
    uint8_t padding = 0;
    for (int i = 0; i < 8; i++)
        count = count << 8 | data[i];
    for (int i = 8; i < DATA_SIZE; i++)
        padding |= data[i];
    if (padding || count < 1 || count > DELETE_COUNT_MAX || first > TICKET_INDEX_LAST - (int64_t)(count - 1))
        return -1;
    return (int32_t)count;
}

/* Writes `n` acks (9 bytes each) with one status for consecutive frames. */
static inline void acks_write(uint8_t *acks, const uint8_t *frames, int n, uint8_t status)
{
    for (int i = 0; i < n; i++) {
        memcpy(acks + (size_t)i * ACK_SIZE, frames + (size_t)i * FRAME_SIZE, 8);
        acks[(size_t)i * ACK_SIZE + 8] = status;
    }
}

#endif
