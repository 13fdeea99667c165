"""For the Cython modules in which steps are passed: ``if failpoints_armed: failpoint_passed(STEP_…, WAY_…)``, once a batch."""

cdef extern from "csrc/failpoint.h" nogil:
    enum: STEP_RECEIVED
    enum: STEP_VERIFIED
    enum: STEP_CLAIMED
    enum: STEP_LOG_WRITTEN
    enum: STEP_LOG_SYNCED
    enum: STEP_SLOTS_WRITTEN
    enum: STEP_BITS_SET
    enum: STEP_ACKED
    enum: STEP_PACKS_SYNCED
    enum: STEP_LOG_RECYCLED
    enum: STEP_TOMBSTONE_WRITTEN
    enum: WAY_LOG
    enum: WAY_BULK
    enum: WAY_RECOVERY

cdef int failpoints_armed  # how many: 0 in every server but those under test
cdef void failpoint_passed(int step, int way) noexcept nogil
