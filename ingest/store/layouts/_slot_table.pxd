"""Slots as the committer sees them, in any layout: `csrc/pack_file.h` has the structures."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t


cdef extern from "csrc/pack_table.h" nogil:
    enum: SLOT_FREE
    enum: SLOT_PRESENT
    enum: SLOT_DELETED
    enum: SLOT_CLAIMED
    enum: PACK_SECTOR
    enum: PACK_PRESENT
    enum: PACK_DELETED
    ctypedef struct pack_state:
        int64_t id
        int fd
        int slots
        int claimed_count
        int touched
        int fresh
        int header_cached
        int unsynced
        int unnamed
        uint8_t *header
        uint8_t *claimed
        uint8_t *known
    ctypedef struct pack_table:
        uint32_t mask
        int count
        int max
    int slots_alike(const pack_state *p, int slot, int count, int *state)
    void bits_fill(uint8_t *bits, int start, int count, int value)
    int bit_get(const uint8_t *bits, int i)

cdef extern from "csrc/spare_descriptors.h" nogil:
    ctypedef struct spare_descriptors:
        pass
    void spares_init(spare_descriptors *s, int root, int64_t retry_ns)
    int spares_begin(spare_descriptors *s)
    void spares_end(spare_descriptors *s)
    int spares_are_kept(spare_descriptors *s)
    void spares_close(spare_descriptors *s)
    bint lacks_descriptor(int error)

cdef extern from "csrc/file_syncs.h" nogil:
    ctypedef struct unsynced_files:
        void *files
        int count
        int max
        spare_descriptors *spares
    int unsynced_init(unsynced_files *u, int max)
    void unsynced_add(unsynced_files *u, int64_t id, int fd, int unnamed)
    int unsynced_sync(unsynced_files *u, int root, int (*sync)(int), void (*write_path)(int64_t, char *))
    void unsynced_clear(unsynced_files *u, int ours)


cdef class SlotTable:
    cdef pack_table table
    cdef readonly int data_fd
    cdef readonly int dirty_max              # of what the layout counts (packs, files): a flush must come before more
    cdef readonly int dirty_count            # written to since the last flush began
    cdef readonly int flushing_count         # what the flush under way is to make durable
    cdef readonly int bulk_jobs              # long runs that may be written past the log at a time; 0: the layout has none
    cdef readonly bint hides_slots           # what `write` wrote is not seen before `publish`
    cdef readonly int erase_max              # tickets that one step of a delete may erase: others wait for it
    cdef int looked                          # slots whose states had to be read from the disk; whoever counts sets it to 0
    cdef readonly uint64_t created           # packs made
    cdef readonly int64_t claimed            # slots, of all packs
    cdef readonly int inodes_reserve         # to be kept free, so that what is logged can be applied
    cdef public bint may_create              # else what would have to make a file is ENOSPC
    cdef public int64_t room                 # tombstones that may take a file of their own now
    cdef readonly bint syncs_files           # each file must be synced by itself: syncing the file system is not enough
    cdef set _dirty
    cdef spare_descriptors _spares           # that the flush may have: it opens directories

    # --- what a layout does, in the order in which a commit calls it

    # Opens a new entry of the table: 0 or an errno. EBADMSG: its header fails its check; EMEDIUMTYPE: it is whole and that
    # of something else.
    cdef int _open(self, pack_state *p) noexcept
    # Has the states of some slots in `p`: 0 or an errno.
    cdef int _know(self, pack_state *p, int slot, int count) noexcept nogil
    # How many files tombstones of these slots, whose states are known, have to make.
    cdef int new_tombstones(self, pack_state *p, int slot, int count) noexcept nogil
    # Counts what these slots make dirty, once they are in the batch.
    cdef int mark_dirty(self, pack_state *p, int count) except -1
    # Makes the file of a new pack before slots are written past the page cache: 0 or an errno.
    cdef int create_past_cache(self, pack_state *p) noexcept nogil
    # Writes frames into free slots: 0 or an errno. Their bits are set then, and `publish` called.
    cdef int write(self, pack_state *p, int slot, int count, const uint8_t *frames) noexcept nogil
    # The same, but a thread does it between `begin_writes` and `end_writes`, which gives an errno or 0. Only where nobody
    # sees a slot before it is published (`hides_slots`). The frames must stay until then, and what is claimed too.
    cdef void write_later(self, pack_state *p, int slot, int count, const uint8_t *frames) noexcept nogil
    cdef bint begin_writes(self) noexcept nogil      # False: there is no thread to be had, and nothing is queued any more
    cdef int end_writes(self) noexcept nogil
    # Makes what changed in `p` visible to readers: 0 or an errno.
    cdef int publish(self, pack_state *p) noexcept nogil
    cdef int publish_all(self, pack_state **packs, int n) noexcept nogil
    # Leaves nothing but tombstones of slots whose deleted bits are set and published: 0 or an errno.
    cdef int erase(self, pack_state *p, int slot, int count) noexcept nogil
    # Bytes that what is stored in `p` takes on the disk, 0 when that is not to be had.
    cdef int64_t allocated(self, pack_state *p) noexcept nogil
    # Reads stored frames: 0 or an errno. What is not there reads as zeros.
    cdef int read_slots(self, pack_state *p, int slot, int count, uint8_t *frames) noexcept nogil

    # Syncs the files of the flush that has begun, and their directories: an errno or 0.
    cdef int _sync_files(self) noexcept nogil

    # --- what all layouts share

    # The pack, opened and if need be created; NULL with *error an errno: what `_open` gives, or EAGAIN when no descriptor
    # is free before claims are released.
    cdef pack_state *get(self, int64_t pack, int *error) noexcept
    # The same, with the states of `count` slots; EAGAIN also while the log covers too much already and this would be more.
    cdef pack_state *get_to_write(self, int64_t pack, int slot, int count, int *error) noexcept
    cdef bint _may_get_dirty(self, int64_t pack) noexcept
    cdef int claim(self, pack_state *p, int slot, int count) noexcept nogil
    cdef int release(self, pack_state *p, int slot, int count) noexcept nogil
    cdef void set_present(self, pack_state *p, int slot, int count) noexcept nogil
    cdef void set_deleted(self, pack_state *p, int slot, int count) noexcept nogil
