/* A thread that writes a batch's slots into the packs while the committer's own thread waits for the log to be synced.
 * Nobody reads a slot before its bit is set, so the two may run side by side: docs/architecture.md, "Life of one put".
 *
 * The two take turns: between slot_writer_begin and the return of slot_writer_end the writes and what they point to belong
 * to the thread. */
#ifndef INGEST_SLOT_WRITER_H
#define INGEST_SLOT_WRITER_H

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdint.h>

typedef struct {
    int fd; /* of the pack */
    const uint8_t *frames;
    size_t size;
    int64_t offset;
} slot_write;

typedef struct {
    int (*write)(const slot_write *writes, int count); /* an errno or 0 */
    const slot_write *writes;
    int count;
    int error;
    int started, busy, ending;
    pthread_t thread;
    sem_t begun, ended;
} slot_writer;

static void slot_writer_wait(sem_t *s)
{
    while (sem_wait(s) < 0 && errno == EINTR)
        ;
}

static void *slot_writer_main(void *argument)
{
    slot_writer *w = argument;
    for (;;) {
        slot_writer_wait(&w->begun);
        if (w->ending)
            return NULL;
        w->error = w->write(w->writes, w->count);
        sem_post(&w->ended);
    }
}

/* Starts the thread, of the process that calls it: a fork does not take it along. An errno or 0. */
static int slot_writer_start(slot_writer *w, int (*write)(const slot_write *, int))
{
    sigset_t all, before;
    w->write = write;
    w->busy = w->ending = 0;
    if (sem_init(&w->begun, 0, 0) < 0 || sem_init(&w->ended, 0, 0) < 0)
        return errno;
    /* Signals are the main thread's. */
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    int error = pthread_create(&w->thread, NULL, slot_writer_main, w);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    w->started = error == 0;
    return error;
}

static void slot_writer_begin(slot_writer *w, const slot_write *writes, int count)
{
    w->writes = writes;
    w->count = count;
    w->busy = 1;
    sem_post(&w->begun);
}

/* Waits for what was begun, if anything was. An errno or 0. */
static int slot_writer_end(slot_writer *w)
{
    if (!w->busy)
        return 0;
    slot_writer_wait(&w->ended);
    w->busy = 0;
    return w->error;
}

static void slot_writer_stop(slot_writer *w)
{
    if (!w->started)
        return;
    slot_writer_end(w);
    w->ending = 1;
    sem_post(&w->begun);
    pthread_join(w->thread, NULL);
    sem_destroy(&w->begun);
    sem_destroy(&w->ended);
    w->started = 0;
}

#endif
