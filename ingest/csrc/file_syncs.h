/* Making files and their names durable one by one: docs/operations.md, "File systems". */
#ifndef INGEST_FILE_SYNCS_H
#define INGEST_FILE_SYNCS_H

#include <stdlib.h>

#include "spare_descriptors.h"

/* Calls `sync` until it was not interrupted; an errno or 0. One that failed is never called again. */
static int synced(int (*sync)(int), int fd)
{
    while (sync(fd) < 0)
        if (errno != EINTR)
            return errno;
    return 0;
}

/* Syncs the directories of `path`, from `root` down, except those that it shares with `previous` ("": none). An errno or 0.
 * With `spares` it waits for a descriptor where there is none; without (NULL) that is an error. */
static int sync_directories(int root, const char *path, const char *previous, spare_descriptors *spares)
{
    int error = *previous ? 0 : synced(fsync, root);
    for (const char *slash = strchr(path, '/'); slash && !error; slash = strchr(slash + 1, '/')) {
        size_t length = (size_t)(slash - path);
        char directory[256];
        if (strncmp(path, previous, length + 1) == 0)
            continue;
        if (length >= sizeof directory)
            return ENAMETOOLONG;
        memcpy(directory, path, length);
        directory[length] = 0;
        int lent = 0, fd = open_beneath(root, directory, O_RDONLY | O_DIRECTORY, 0);
        if (fd < 0 && lacks_descriptor(errno) && spares) {
            lent = 1;
            fd = spares_directory(spares, root, directory);
        }
        if (fd < 0)
            return errno;
        error = synced(fsync, fd);
        if (!lent)
            close(fd);
    }
    return error;
}

/* A file that was written to and not synced since. Its descriptor is the one that wrote, or was open by then: only such a
 * one surely hears of a write that failed. */
typedef struct {
    int64_t id; /* of a pack, or a ticket's index: where it lies */
    int fd;
    int unnamed; /* whether its directories are to be synced, too */
} unsynced_file;

typedef struct {
    unsynced_file *files;
    int count;
    int max;
    spare_descriptors *spares; /* NULL: none are kept */
} unsynced_files;

static int unsynced_init(unsynced_files *u, int max)
{
    u->files = calloc((size_t)max, sizeof *u->files);
    u->count = 0;
    u->max = max;
    u->spares = NULL;
    return u->files ? 0 : -1;
}

static inline void unsynced_add(unsynced_files *u, int64_t id, int fd, int unnamed)
{
    u->files[u->count++] = (unsynced_file){id, fd, unnamed};
}

static int unsynced_order(const void *a, const void *b)
{
    int64_t x = ((const unsynced_file *)a)->id, y = ((const unsynced_file *)b)->id;
    return (x > y) - (x < y);
}

/* Syncs all of the files with `sync`, then the directories of the unnamed ones. `write_path` makes a path below `root` of
 * an id, of at most 31 bytes. Waits for a descriptor where there is none. An errno or 0: after an error nothing is known of
 * any of them. */
static int unsynced_sync(unsynced_files *u, int root, int (*sync)(int), void (*write_path)(int64_t, char *))
{
    char paths[2][32] = {"", ""};
    int error = 0, last = 0;
    for (int i = 0; i < u->count && !error; i++)
        error = synced(sync, u->files[i].fd);
    qsort(u->files, (size_t)u->count, sizeof *u->files, unsynced_order); /* neighbours share directories */
    for (int i = 0; i < u->count && !error; i++)
        if (u->files[i].unnamed) {
            write_path(u->files[i].id, paths[!last]);
            error = sync_directories(root, paths[!last], paths[last], u->spares);
            last = !last;
        }
    return error;
}

/* Forgets all of them. Their descriptors are closed if they are ours. */
static void unsynced_clear(unsynced_files *u, int ours)
{
    for (int i = 0; ours && i < u->count; i++)
        close(u->files[i].fd);
    u->count = 0;
}

#endif
