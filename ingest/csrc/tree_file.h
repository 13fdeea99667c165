/* Layout tree, one file for each ticket: docs/format.md, "Layout tree".
 *
 * What a file means is said by its attributes, which are written last. So a file that a crash left half made has
 * none, and holds nothing. */
#ifndef INGEST_TREE_FILE_H
#define INGEST_TREE_FILE_H

#include <sys/xattr.h>

#include "file_syncs.h"
#include "pack_file.h"

#define TREE_CHECKSUM "user.ingest.checksum" /* 8 bytes, those of the frame */
#define TREE_DELETED "user.ingest.deleted"   /* being there is what counts */
#define TREE_PATH_SIZE 24                    /* "AA/BB/CC/DD/obj" and a NUL, and some more */
#define TREE_DATA 16                         /* offset of the data in a frame */
#define TREE_DATA_SIZE 1458

/* A ticket's path below DATA, "AA/BB/CC/DD/obj". Returns where in it the last directory's name starts. */
static inline int tree_path(int64_t index, char *path)
{
    uint8_t ticket[8];
    int n = ticket_write_value(index + 1, ticket);
    int at = 0, last = 0;
    for (int i = 0; i < n; i++) {
        if ((i & 1) == 0)
            last = at;
        path[at++] = (char)ticket[i];
        if ((i & 1) == 1 || i == n - 1)
            path[at++] = '/';
    }
    memcpy(path + at, "obj", 4);
    return last;
}

/* How many tickets from `index` on have their directories in one parent directory, within one pack. */
static inline int tree_siblings(int64_t index)
{
    uint8_t ticket[8];
    int n = ticket_write_value(index + 1, ticket), most = ticket_run_max(index);
    if (n < 2 || (n & 1) == 0)
        return most; /* two characters name a directory: the whole pack lies in one parent */
    int left = 36 - ticket_slot(index) % 36;
    return left < most ? left : most;
}

/* The descriptor of a directory below `root` ("" is `root` itself), made if it is missing and `make`; or -1 with errno. */
static int tree_directory(int root, const char *path, int length, int make)
{
    char name[TREE_PATH_SIZE + 8];
    if (length == 0)
        return dup(root);
    memcpy(name, path, (size_t)length - 1); /* without its slash */
    name[length - 1] = 0;
    int fd = open_beneath(root, name, O_RDONLY | O_DIRECTORY, 0);
    if (fd >= 0 || errno != ENOENT || !make)
        return fd;
    memcpy(name, path, (size_t)length);
    memcpy(name + length, "obj", 4);
    const char *last;
    return directory_beneath(root, name, 1, &last);
}

/* A ticket's file, for reading, whose directory lies in `parent`. */
static inline int tree_open(int parent, const char *name) { return open_beneath(parent, name, O_RDONLY | O_NOCTTY, 0); }

/* What an open file says: a slot_state to `*state`, and the checksum if it is present. An errno or 0; EBADMSG for a
 * checksum that is none. */
static int tree_look(int fd, int *state, uint8_t *checksum)
{
    char unused[1];
    uint8_t value[9];
    ssize_t n = fgetxattr(fd, TREE_DELETED, unused, 0);
    if (n >= 0) {
        *state = SLOT_DELETED;
        return 0;
    }
    if (errno != ENODATA)
        return errno;
    n = fgetxattr(fd, TREE_CHECKSUM, value, sizeof value);
    if (n < 0 && errno == ENODATA) {
        *state = SLOT_FREE;
        return 0;
    }
    *state = SLOT_PRESENT;
    if (n < 0)
        return errno == ERANGE ? EBADMSG : errno;
    if (n != 8)
        return EBADMSG;
    memcpy(checksum, value, 8);
    return 0;
}

/* The data of an open file: 0 or an errno, EBADMSG when it has not exactly as many bytes as a chunk. */
static int tree_read_data(int fd, uint8_t *data)
{
    uint8_t buffer[TREE_DATA_SIZE + 1];
    size_t size = 0;
    while (size < sizeof buffer) {
        ssize_t n = pread(fd, buffer + size, sizeof buffer - size, (off_t)size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return errno;
        if (n == 0)
            break;
        size += (size_t)n;
    }
    if (size != TREE_DATA_SIZE)
        return EBADMSG;
    memcpy(data, buffer, TREE_DATA_SIZE);
    return 0;
}

/* The frame of a ticket, from its file: all zeros, and an errno, when there is no whole one. */
static int tree_read_frame(int root, int64_t index, uint8_t *frame)
{
    char path[TREE_PATH_SIZE];
    int state, error = 0;
    tree_path(index, path);
    memset(frame, 0, FRAME_SIZE);
    int fd = open_beneath(root, path, O_RDONLY | O_NOCTTY, 0);
    if (fd < 0)
        return errno;
    error = tree_look(fd, &state, frame + 8);
    if (!error && state != SLOT_PRESENT)
        error = ENOENT;
    if (!error)
        error = tree_read_data(fd, frame + TREE_DATA);
    close(fd);
    if (error)
        memset(frame, 0, FRAME_SIZE);
    else
        ticket_write(index, frame);
    return error;
}

/* The file of a ticket whose directory is `name` in `parent`, made if it is missing: a descriptor or -1 with errno. */
static int tree_make(int parent, const char *name, int flags)
{
    char directory[TREE_PATH_SIZE];
    size_t length = strlen(name) - 4; /* without "/obj" */
    memcpy(directory, name, length);
    directory[length] = 0;
    while (mkdirat(parent, directory, 0700) < 0)
        if (errno == EEXIST)
            break;
        else if (errno != EINTR)
            return -1;
    return open_beneath(parent, name, flags | O_CREAT | O_NOCTTY, 0600);
}

static void tree_file_path(int64_t index, char *path) { tree_path(index, path); }

/* Where each file is synced by itself: what was written since the last flush began. */
typedef struct {
    int root;
    unsynced_files *unsynced; /* NULL: the file system is synced as a whole */
} tree_syncs;

/* Ends the writing of a ticket's file. It is closed, kept open for the next flush, or synced now: when that is full, or has
 * no descriptor but this one. */
static int tree_written(tree_syncs syncs, int fd, int64_t index)
{
    int error;
    if (syncs.unsynced && syncs.unsynced->count < syncs.unsynced->max && spares_are_kept(syncs.unsynced->spares)) {
        unsynced_add(syncs.unsynced, index, fd, 1);
        return 0;
    }
    if (syncs.unsynced) {
        char path[TREE_PATH_SIZE];
        tree_path(index, path);
        error = synced(fsync, fd);
        close(fd); /* first: its directories may need the descriptor */
        return error ? error : sync_directories(syncs.root, path, "", NULL);
    }
    close(fd);
    return 0;
}

/* Writes a frame's file: the data first, the attribute last. With `again` it may be there already, and readers may
 * have it open. An errno or 0. */
static int tree_write_file(int parent, const char *name, const uint8_t *frame, int again, tree_syncs syncs, int64_t index)
{
    int fd = tree_make(parent, name, again ? O_RDWR : O_WRONLY | O_TRUNC);
    if (fd < 0)
        return errno;
    int error = pwrite_all(fd, frame + TREE_DATA, TREE_DATA_SIZE, 0);
    if (!error && again && file_size(fd) != TREE_DATA_SIZE && ftruncate(fd, TREE_DATA_SIZE) < 0)
        error = errno;
    if (!error && fsetxattr(fd, TREE_CHECKSUM, frame + 8, 8, 0) < 0)
        error = errno;
    int unsynced = tree_written(syncs, fd, index);
    return error ? error : unsynced;
}

/* Leaves a tombstone: the attribute first, so that whoever finds no data any more finds it. An errno or 0. */
static int tree_erase_file(int parent, const char *name, tree_syncs syncs, int64_t index)
{
    int fd = tree_make(parent, name, O_WRONLY);
    if (fd < 0)
        return errno;
    int error = 0;
    if (fsetxattr(fd, TREE_DELETED, "1", 1, 0) < 0)
        error = errno;
    while (!error && ftruncate(fd, 0) < 0)
        if (errno != EINTR)
            error = errno;
    if (!error && fremovexattr(fd, TREE_CHECKSUM) < 0 && errno != ENODATA)
        error = errno;
    int unsynced = tree_written(syncs, fd, index);
    return error ? error : unsynced;
}

enum tree_work { TREE_KNOW, TREE_WRITE, TREE_WRITE_AGAIN, TREE_ERASE };

/* One file of a pack's slot. */
static int tree_do_file(pack_state *p, int slot, int parent, const char *name, enum tree_work work, const uint8_t *frame,
                        tree_syncs syncs)
{
    uint8_t checksum[8];
    int state = SLOT_FREE, error = 0;
    if (work == TREE_WRITE || work == TREE_WRITE_AGAIN)
        return tree_write_file(parent, name, frame, work == TREE_WRITE_AGAIN, syncs, slot_ticket(p->id, slot));
    if (work == TREE_ERASE)
        return tree_erase_file(parent, name, syncs, slot_ticket(p->id, slot));
    if (bit_get(p->known, slot))
        return 0;
    int fd = tree_open(parent, name);
    if (fd >= 0) {
        error = tree_look(fd, &state, checksum);
        close(fd);
        if (error == EBADMSG)
            error = 0; /* something is stored there, if a corrupt one: nothing may be written over it */
    } else if (errno != ENOENT)
        error = errno;
    if (!error) {
        bits_fill(p->header + PACK_PRESENT, slot, 1, state == SLOT_PRESENT);
        bits_fill(p->header + PACK_DELETED, slot, 1, state == SLOT_DELETED);
        bits_fill(p->known, slot, 1, 1);
    }
    return error;
}

/* Does one thing with the files of `count` slots, whose parent directories are opened once for all siblings. `frames`
 * are what is to be written; `unsynced` takes what must be synced by itself (NULL: nothing). An errno or 0. */
static int tree_do(int root, pack_state *p, int slot, int count, enum tree_work work, const uint8_t *frames,
                   unsynced_files *unsynced)
{
    tree_syncs syncs = {root, unsynced};
    char path[TREE_PATH_SIZE];
    int error = 0;
    for (int i = 0; i < count && !error;) {
        int64_t index = slot_ticket(p->id, slot + i);
        int siblings = tree_siblings(index);
        int parent = tree_directory(root, path, tree_path(index, path), work != TREE_KNOW);
        if (parent < 0 && errno == ENOENT && work == TREE_KNOW) {
            bits_fill(p->known, slot + i, siblings, 1); /* nothing lies below, and the bits are clear */
            i += siblings;
            continue;
        }
        if (parent < 0)
            return errno;
        for (int n = 0; n < siblings && i < count && !error; n++, i++) {
            int name = tree_path(index + n, path);
            error = tree_do_file(p, slot + i, parent, path + name, work, frames ? frames + (size_t)i * FRAME_SIZE : NULL,
                                 syncs);
        }
        close(parent);
    }
    return error;
}

/* Whether all slots are known. */
static inline int tree_knows(const pack_state *p, int slot, int count)
{
    for (int i = slot; i < slot + count; i++)
        if (!bit_get(p->known, i))
            return 0;
    return 1;
}

#endif
