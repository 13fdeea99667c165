/* The packs that a reader has open: docs/format.md, "Packs". A table from pack id to descriptor, bounded by `max`; the one
 * that was used longest ago is closed for a new one. A running server never renames, replaces or unlinks a pack, so a
 * descriptor stays good. Packs that do not exist are not remembered: they may be made at any moment. */
#ifndef INGEST_PACK_CACHE_H
#define INGEST_PACK_CACHE_H

#include "beneath.h"
#include "pack_file.h"

enum pack_verdict { HEADER_UNKNOWN = 0, HEADER_GOOD, HEADER_BAD };

typedef struct {
    int64_t id;
    int fd;
    int verdict;         /* pack_verdict, of the header below */
    uint64_t fresh_at;   /* the caller's moment at which the header was last read */
    int32_t next_home;   /* in its chain of the hash table */
    int32_t newer, older;
    uint8_t header[PACK_SECTOR]; /* as judged last */
} open_pack;

typedef struct {
    open_pack *packs; /* max */
    int32_t *homes;   /* mask + 1 chains; -1 ends one */
    uint32_t mask;
    int count, max;
    int32_t newest, oldest;
    int32_t unused; /* chain of unused entries */
} pack_cache;

static int pack_cache_init(pack_cache *c, int max)
{
    uint32_t capacity = 64;
    while (capacity < (uint32_t)max * 2)
        capacity *= 2;
    c->packs = calloc((size_t)max, sizeof *c->packs);
    c->homes = malloc(capacity * sizeof *c->homes);
    if (!c->packs || !c->homes)
        return -1;
    c->mask = capacity - 1;
    c->count = 0;
    c->max = max;
    c->newest = c->oldest = -1;
    for (uint32_t i = 0; i < capacity; i++)
        c->homes[i] = -1;
    for (int i = 0; i < max; i++)
        c->packs[i].next_home = i + 1 < max ? i + 1 : -1;
    c->unused = 0;
    return 0;
}

static inline uint32_t pack_cache_home(const pack_cache *c, int64_t id)
{
    return (uint32_t)(((uint64_t)id * 0x9E3779B97F4A7C15ULL) >> 32) & c->mask;
}

static inline void pack_cache_unlink(pack_cache *c, int32_t i)
{
    open_pack *p = &c->packs[i];
    if (p->newer >= 0)
        c->packs[p->newer].older = p->older;
    else
        c->newest = p->older;
    if (p->older >= 0)
        c->packs[p->older].newer = p->newer;
    else
        c->oldest = p->newer;
}

static inline void pack_cache_link_newest(pack_cache *c, int32_t i)
{
    c->packs[i].newer = -1;
    c->packs[i].older = c->newest;
    if (c->newest >= 0)
        c->packs[c->newest].newer = i;
    else
        c->oldest = i;
    c->newest = i;
}

/* The pack if it is open; it counts as used now. */
static inline open_pack *pack_cache_find(pack_cache *c, int64_t id)
{
    for (int32_t i = c->homes[pack_cache_home(c, id)]; i >= 0; i = c->packs[i].next_home)
        if (c->packs[i].id == id) {
            if (c->newest != i) {
                pack_cache_unlink(c, i);
                pack_cache_link_newest(c, i);
            }
            return &c->packs[i];
        }
    return NULL;
}

/* Closes the pack that was used longest ago. 0, or -1 when none is open. */
static int pack_cache_evict(pack_cache *c)
{
    int32_t i = c->oldest;
    if (i < 0)
        return -1;
    open_pack *p = &c->packs[i];
    int32_t *link = &c->homes[pack_cache_home(c, p->id)];
    while (*link != i)
        link = &c->packs[*link].next_home;
    *link = p->next_home;
    pack_cache_unlink(c, i);
    close(p->fd);
    p->next_home = c->unused;
    c->unused = i;
    c->count--;
    return 0;
}

/* Opens a pack that is not in the cache. 0 and *pack, or an errno: ENOENT when there is no such pack. */
static int pack_cache_open(pack_cache *c, int root, int64_t id, open_pack **pack)
{
    char path[32];
    struct stat st;
    pack_path(id, path);
    int fd = open_beneath(root, path, O_RDONLY | O_NOCTTY, 0);
    if (fd < 0 && (errno == EMFILE || errno == ENFILE) && pack_cache_evict(c) == 0)
        fd = open_beneath(root, path, O_RDONLY | O_NOCTTY, 0); /* others used up what we counted on: make do with fewer */
    if (fd < 0)
        return errno;
    int error = fstat(fd, &st) < 0 ? errno : S_ISREG(st.st_mode) ? 0 : EBADF;
    if (error) {
        close(fd);
        return error;
    }
    if (c->count == c->max)
        pack_cache_evict(c);
    int32_t i = c->unused;
    open_pack *p = &c->packs[i];
    int32_t *home = &c->homes[pack_cache_home(c, id)];
    c->unused = p->next_home;
    c->count++;
    p->id = id;
    p->fd = fd;
    p->verdict = HEADER_UNKNOWN;
    p->fresh_at = 0;
    p->next_home = *home;
    *home = i;
    pack_cache_link_newest(c, i);
    *pack = p;
    return 0;
}

static void pack_cache_free(pack_cache *c)
{
    if (c->packs && c->homes)
        while (pack_cache_evict(c) == 0)
            ;
    free(c->packs);
    free(c->homes);
    c->packs = NULL;
    c->homes = NULL;
}

/* Whether a header whose checksum is right is one of pack `id`, in the store `store_id` (16 bytes; NULL: in any). */
static inline int pack_header_fits(const uint8_t *header, int64_t id, const uint8_t *store_id)
{
    uint8_t prefix[8];
    ticket_write_value(id, prefix);
    return memcmp(header, "INGPACK1", 8) == 0 && get_be(header + 8, 4) == 1 &&
           get_be(header + 12, 4) == (id == 0 ? ROOT_PACK_SLOTS : PACK_SLOTS) && memcmp(header + 16, prefix, 8) == 0 &&
           (store_id == NULL || memcmp(header + 24, store_id, 16) == 0);
}

static inline int header_slot(const uint8_t *header, int slot)
{
    return bit_get(header + PACK_DELETED, slot) ? SLOT_DELETED : bit_get(header + PACK_PRESENT, slot);
}

/* How many of the `count` slots from `slot` on are alike; what they are goes to `*state`. */
static inline int header_slots_alike(const uint8_t *header, int slot, int count, int *state)
{
    int i = 1;
    *state = header_slot(header, slot);
    const uint8_t present = *state == SLOT_PRESENT ? 0xff : 0, deleted = *state == SLOT_DELETED ? 0xff : 0;
    while (i < count) {
        int s = slot + i;
        /* A deleted slot's present bit says nothing: whole bytes that differ in it are looked at bit by bit. */
        if ((s & 7) == 0 && count - i >= 8 && header[PACK_PRESENT + (s >> 3)] == present &&
            header[PACK_DELETED + (s >> 3)] == deleted) {
            i += 8;
            continue;
        }
        if (header_slot(header, s) != *state)
            break;
        i++;
    }
    return i;
}

/* Whether the file is so long that it holds everything before `end`. */
static inline int pack_reaches(int fd, int64_t end)
{
    struct stat st;
    return fstat(fd, &st) == 0 && st.st_size >= end;
}

#endif
