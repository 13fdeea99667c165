/* Failpoints: the named steps of a put or delete at which a test ends processes, see ingest/runtime/failpoints.py.
 *
 * The table lies in memory that all processes of a server share, so that a step's passings are counted over all of them
 * and its failpoint strikes once in the server's life. */
#ifndef INGEST_FAILPOINT_H
#define INGEST_FAILPOINT_H

#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <unistd.h>

#define FAILPOINTS_MAX 16

enum failpoint_step {
    STEP_RECEIVED,
    STEP_VERIFIED,
    STEP_CLAIMED,
    STEP_LOG_WRITTEN,
    STEP_LOG_SYNCED,
    STEP_SLOTS_WRITTEN,
    STEP_BITS_SET,
    STEP_ACKED,
    STEP_PACKS_SYNCED,
    STEP_LOG_RECYCLED,
    STEP_TOMBSTONE_WRITTEN,
    STEPS
};

static const char *const FAILPOINT_NAMES[STEPS] = {
    "received", "verified", "claimed",      "log_written",  "log_synced",        "slots_written",
    "bits_set", "acked",    "packs_synced", "log_recycled", "tombstone_written",
};

/* On which way a step is passed: a set of bits in a failpoint. */
enum failpoint_way { WAY_LOG = 1, WAY_BULK = 2, WAY_RECOVERY = 4 };

enum failpoint_action { ACTION_KILL, ACTION_KILL_PARENT, ACTION_KILL_NODE };

typedef struct {
    int32_t step;
    int32_t ways;
    int32_t action;
    uint64_t strikes_at; /* this passing, counted from 1 */
    uint64_t passed;
} failpoint;

typedef struct {
    int32_t count;
    int32_t parent; /* the process that started all others; they die with it */
    failpoint points[FAILPOINTS_MAX];
} failpoint_table;

static void failpoint_strike(const failpoint_table *table, const failpoint *point)
{
    static const char *const actions[] = {"kill", "kill-parent", "kill-node"};
    dprintf(STDERR_FILENO, "failpoint %s: %s, process %d, passing %llu\n", FAILPOINT_NAMES[point->step], actions[point->action], (int)getpid(),
            (unsigned long long)point->strikes_at);
    if (point->action != ACTION_KILL && (getpid() == table->parent || getppid() == table->parent))
        kill(table->parent, SIGKILL);
    if (point->action != ACTION_KILL_PARENT)
        kill(getpid(), SIGKILL);
}

static void failpoint_count(failpoint_table *table, int step, int way)
{
    for (int i = 0; i < table->count; i++) {
        failpoint *point = &table->points[i];
        if (point->step == step && point->ways & way &&
            __atomic_add_fetch(&point->passed, 1, __ATOMIC_RELAXED) == point->strikes_at)
            failpoint_strike(table, point);
    }
}

#endif
