/* Descriptors that a flush can always have, also where the process may have no more: it opens directories with them.
 *
 * To open one, the flush closes a spare first. Whoever else opens something then may get what the flush gave up. If that
 * stays open until a flush has ended, no flush ends any more. So what stays open is opened between spares_begin and
 * spares_end: the flush gives nothing up meanwhile, and nothing is opened while a spare is missing. What somebody opens
 * for a moment needs none of this: the flush tries again. */
#ifndef INGEST_SPARE_DESCRIPTORS_H
#define INGEST_SPARE_DESCRIPTORS_H

#include <pthread.h>
#include <time.h>

#include "beneath.h"

enum { SPARES = 2 }; /* where the kernel has no openat2, a directory is held while the one below it is opened */

typedef struct {
    pthread_mutex_t lock;
    int fds[SPARES]; /* what they refer to does not matter; -1: somebody else has it. Only the flush closes them. */
    int root;
    int64_t retry_ns; /* between two tries of a flush to get one back */
} spare_descriptors;

static void spares_init(spare_descriptors *s, int root, int64_t retry_ns)
{
    pthread_mutex_init(&s->lock, NULL);
    for (int i = 0; i < SPARES; i++)
        s->fds[i] = -1;
    s->root = root;
    s->retry_ns = retry_ns;
}

static inline int lacks_descriptor(int error) { return error == EMFILE || error == ENFILE; }

/* Gets back those that are missing; under the lock. An errno or 0. */
static int spares_refill(spare_descriptors *s)
{
    for (int i = 0; i < SPARES; i++)
        if (s->fds[i] < 0 && (s->fds[i] = fcntl(s->root, F_DUPFD_CLOEXEC, 0)) < 0)
            return errno;
    return 0;
}

static void spares_close(spare_descriptors *s)
{
    for (int i = 0; i < SPARES; i++) {
        if (s->fds[i] >= 0)
            close(s->fds[i]);
        s->fds[i] = -1;
    }
}

/* Before something is opened that stays open: an errno, or 0, and then spares_end must follow. */
static int spares_begin(spare_descriptors *s)
{
    pthread_mutex_lock(&s->lock);
    int error = spares_refill(s);
    if (error)
        pthread_mutex_unlock(&s->lock);
    return error;
}

static void spares_end(spare_descriptors *s) { pthread_mutex_unlock(&s->lock); }

/* The same for what is open already: whether it may stay so. */
static int spares_are_kept(spare_descriptors *s)
{
    int error = spares_begin(s);
    if (!error)
        spares_end(s);
    return !error;
}

/* For the flush: a directory below `root`, which is one of the spares then. It is theirs to close, and open until the next
 * call. Waits for a descriptor; -1 with any other errno. */
static int spares_directory(spare_descriptors *s, int root, const char *path)
{
    struct timespec pause = {s->retry_ns / 1000000000, s->retry_ns % 1000000000};
    for (;;) {
        pthread_mutex_lock(&s->lock);
        spares_close(s);
        int fd = s->fds[0] = open_beneath(root, path, O_RDONLY | O_DIRECTORY, 0);
        int error = errno;
        spares_refill(s); /* if it fails, the next who asks sees to it */
        pthread_mutex_unlock(&s->lock);
        errno = error;
        if (fd >= 0 || !lacks_descriptor(error))
            return fd;
        nanosleep(&pause, NULL);
    }
}

#endif
