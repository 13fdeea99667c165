/* The packs that the committer has open: a hash table from pack id to pack_state, bounded by `max` descriptors.
 * When it is full, a pack that was not used lately and that nothing is under way for is closed (CLOCK). */
#ifndef INGEST_PACK_TABLE_H
#define INGEST_PACK_TABLE_H

#include "beneath.h"
#include "pack_file.h"

typedef struct {
    pack_state *pack;
    int referenced;
} pack_entry;

typedef struct {
    pack_entry *entries; /* capacity: a power of two, at least 4 · max, so that probes stay short */
    uint32_t mask;
    uint32_t hand;
    int count;
    int max;
} pack_table;

static int pack_table_init(pack_table *t, int max)
{
    uint32_t capacity = 1024;
    while (capacity < (uint32_t)max * 4)
        capacity *= 2;
    t->entries = calloc(capacity, sizeof *t->entries);
    t->mask = capacity - 1;
    t->hand = 0;
    t->count = 0;
    t->max = max;
    return t->entries ? 0 : -1;
}

static inline uint32_t pack_home(const pack_table *t, int64_t id)
{
    return (uint32_t)(((uint64_t)id * 0x9E3779B97F4A7C15ULL) >> 32) & t->mask;
}

static inline pack_state *pack_table_find(pack_table *t, int64_t id)
{
    for (uint32_t i = pack_home(t, id); t->entries[i].pack; i = (i + 1) & t->mask)
        if (t->entries[i].pack->id == id) {
            t->entries[i].referenced = 1;
            return t->entries[i].pack;
        }
    return NULL;
}

static void pack_table_insert(pack_table *t, pack_state *p)
{
    uint32_t i = pack_home(t, p->id);
    while (t->entries[i].pack)
        i = (i + 1) & t->mask;
    t->entries[i].pack = p;
    t->entries[i].referenced = 1;
    t->count++;
}

static inline pack_entry *pack_table_at(pack_table *t, int i) { return &t->entries[i]; }

/* Linear probing without tombstones: entries behind the hole move up when their home allows. */
static void pack_table_remove_at(pack_table *t, uint32_t i)
{
    t->count--;
    for (uint32_t j = (i + 1) & t->mask;; j = (j + 1) & t->mask) {
        if (!t->entries[j].pack)
            break;
        uint32_t home = pack_home(t, t->entries[j].pack->id);
        if (((j - home) & t->mask) >= ((j - i) & t->mask)) {
            t->entries[i] = t->entries[j];
            i = j;
        }
    }
    t->entries[i].pack = NULL;
}

static void pack_close(pack_state *p)
{
    if (p->fd >= 0)
        close(p->fd);
    free(p);
}

/* Closes one pack that may be closed. 0, or -1 when every pack is in use. */
static int pack_table_evict(pack_table *t)
{
    for (uint32_t steps = 0; steps <= 2 * t->mask + 1; steps++) {
        uint32_t i = t->hand;
        t->hand = (t->hand + 1) & t->mask;
        pack_entry *e = &t->entries[i];
        if (!e->pack || e->pack->claimed_count || e->pack->touched || e->pack->unsynced)
            continue;
        if (e->referenced) {
            e->referenced = 0;
            continue;
        }
        pack_state *p = e->pack;
        pack_table_remove_at(t, i);
        pack_close(p);
        return 0;
    }
    return -1;
}

static void pack_table_free(pack_table *t)
{
    for (uint32_t i = 0; t->entries && i <= t->mask; i++)
        if (t->entries[i].pack)
            pack_close(t->entries[i].pack);
    free(t->entries);
    t->entries = NULL;
    t->count = 0;
}

#endif
