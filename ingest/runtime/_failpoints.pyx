# distutils: depends = ingest/csrc/failpoint.h
"""The failpoints of this process: `ingest.runtime.failpoints` says what they are and arms them, `csrc/failpoint.h` strikes.

One integer of the process is tested at each step, once a batch; all else happens only when it is not 0.
"""

from libc.string cimport memset

import mmap
import os


cdef extern from "csrc/failpoint.h" nogil:
    enum: FAILPOINTS_MAX
    ctypedef struct failpoint:
        int step
        int ways
        int action
        unsigned long long strikes_at
        unsigned long long passed
    ctypedef struct failpoint_table:
        int count
        int parent
        failpoint *points
    enum: STEPS
    const char *FAILPOINT_NAMES[]
    void failpoint_count(failpoint_table *table, int step, int way)

RECEIVED = STEP_RECEIVED
VERIFIED = STEP_VERIFIED
CLAIMED = STEP_CLAIMED
LOG_WRITTEN = STEP_LOG_WRITTEN
LOG_SYNCED = STEP_LOG_SYNCED
SLOTS_WRITTEN = STEP_SLOTS_WRITTEN
BITS_SET = STEP_BITS_SET
ACKED = STEP_ACKED
PACKS_SYNCED = STEP_PACKS_SYNCED
LOG_RECYCLED = STEP_LOG_RECYCLED
TOMBSTONE_WRITTEN = STEP_TOMBSTONE_WRITTEN
LOG = WAY_LOG
BULK = WAY_BULK
RECOVERY = WAY_RECOVERY
MOST = FAILPOINTS_MAX

# In the order of their numbers; the words of the steps in docs/architecture.md.
NAMES = tuple((<bytes>FAILPOINT_NAMES[i]).decode() for i in range(STEPS))

cdef failpoint_table *_table = NULL
cdef object _memory = None


def arm(points):
    """Arms (step, ways, action, passing) tuples, for this process and those that it forks; replaces what was armed."""
    global failpoints_armed, _table, _memory
    cdef unsigned char[::1] view
    cdef int i
    if len(points) > FAILPOINTS_MAX:
        raise ValueError(f"{len(points)} failpoints: at most {FAILPOINTS_MAX} are possible")
    failpoints_armed = 0
    memory = mmap.mmap(-1, sizeof(failpoint_table) + FAILPOINTS_MAX * sizeof(failpoint))
    view = memory
    _table = <failpoint_table *>&view[0]
    memset(_table, 0, sizeof(failpoint_table))
    _table.parent = os.getpid()
    _table.count = len(points)
    for i, (step, ways, action, passing) in enumerate(points):
        _table.points[i].step = step
        _table.points[i].ways = ways
        _table.points[i].action = action
        _table.points[i].strikes_at = passing
    _memory = memory
    failpoints_armed = len(points)


cdef void failpoint_passed(int step, int way) noexcept nogil:
    failpoint_count(_table, step, way)


def passed(int step, int way=WAY_LOG):
    """A step that Python code does is over, for all frames of a batch."""
    if failpoints_armed:
        failpoint_passed(step, way)
