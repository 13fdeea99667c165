/* Tickets: docs/protocol.md, "Tickets"; docs/format.md, "Packs".
 *
 * Tickets count in bijective base 36, shortest first: "0" is 0, "Z" 35, "00" 36. With v(t) = index + 1
 * and v("") = 0, a ticket p·x·y (prefix p, last two characters x, y) has
 *     v = 1296·v(p) + 36·(x + 1) + (y + 1),    so    index - 36 = 1296·v(p) + (36·x + y).
 * The pack of a ticket is v(p), its slot 36·x + y: one division and no table. The 36 one-character
 * tickets lie in pack 0 (the root pack) behind its 1296 slots. */
#ifndef INGEST_TICKET_H
#define INGEST_TICKET_H

#include <stdint.h>
#include <string.h>

#define TICKET_INDEX_LAST 2901713047667LL /* "ZZZZZZZZ" */
#define PACK_SLOTS 1296
#define ROOT_PACK_SLOTS 1332

/* The index of the ticket at `t` (8 bytes, NUL-padded), or -1 when it is malformed. */
static inline int64_t ticket_index(const uint8_t *t)
{
    int64_t v = 0;
    int i = 0;
    for (; i < 8; i++) {
        uint8_t c = t[i];
        if (c >= '0' && c <= '9')
            v = v * 36 + (c - '0') + 1;
        else if (c >= 'A' && c <= 'Z')
            v = v * 36 + (c - 'A') + 11;
        else
            break;
    }
    if (i == 0)
        return -1;
    for (int j = i; j < 8; j++)
        if (t[j] != 0)
            return -1;
    return v - 1;
}

/* Writes the ticket of v = index + 1 (0 writes the empty prefix) to `t`, 8 bytes, NUL-padded. Returns its length. */
static inline int ticket_write_value(int64_t v, uint8_t *t)
{
    uint8_t reversed[8];
    int n = 0;
    while (v > 0 && n < 8) {
        int digit = (int)((v - 1) % 36);
        reversed[n++] = (uint8_t)(digit < 10 ? '0' + digit : 'A' + digit - 10);
        v = (v - 1) / 36;
    }
    memset(t, 0, 8);
    for (int i = 0; i < n; i++)
        t[i] = reversed[n - 1 - i];
    return n;
}

static inline void ticket_write(int64_t index, uint8_t *t) { ticket_write_value(index + 1, t); }

/* The pack of a ticket: v of its prefix, 0 for the root pack. */
static inline int64_t ticket_pack(int64_t index) { return index < 36 ? 0 : (index - 36) / PACK_SLOTS; }

static inline int ticket_slot(int64_t index)
{
    return index < 36 ? PACK_SLOTS + (int)index : (int)((index - 36) % PACK_SLOTS);
}

/* The ticket in `slot` of `pack`. */
static inline int64_t slot_ticket(int64_t pack, int slot)
{
    return slot >= PACK_SLOTS ? slot - PACK_SLOTS : pack * PACK_SLOTS + slot + 36;
}

/* How many tickets from `index` on lie in consecutive slots of one pack. */
static inline int ticket_run_max(int64_t index)
{
    return index < 36 ? 36 - (int)index : PACK_SLOTS - ticket_slot(index);
}

#endif
