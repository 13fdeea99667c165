# distutils: depends = ingest/csrc/tree_file.h ingest/csrc/pack_file.h ingest/csrc/beneath.h ingest/csrc/ticket.h
"""Reading layout tree, while another process writes it: `docs/format.md`, "Layout tree".

A look opens the files of tickets that follow one another, and keeps those that are SAVED open for `read`. Nothing else is
kept: each look is at the disk.
"""

from libc.errno cimport ENOENT, errno
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memcpy, memset
from posix.unistd cimport close

from ingest.store.layouts._slot_reader cimport SlotReader, extent

from ingest.status import Status


cdef extern from "csrc/frame.h" nogil:
    enum: FRAME_SIZE
    void ticket_write(int64_t index, uint8_t *ticket)

cdef extern from "csrc/tree_file.h" nogil:
    enum: SLOT_FREE
    enum: SLOT_PRESENT
    enum: SLOT_DELETED
    enum: TREE_DATA
    enum: TREE_PATH_SIZE
    int tree_path(int64_t index, char *path)
    int tree_siblings(int64_t index)
    int tree_directory(int root, const char *path, int length, int make)
    int tree_open(int parent, const char *name)
    int tree_look(int fd, int *state, uint8_t *checksum)
    int tree_read_data(int fd, uint8_t *data)
    int tree_read_frame(int root, int64_t index, uint8_t *frame)

cdef enum:
    SAVED = 1
    ERROR = 2
    MISSING = 8
    DELETED = 9

assert (Status.SAVED, Status.ERROR, Status.MISSING, Status.DELETED) == (SAVED, ERROR, MISSING, DELETED)


cdef class TreeReader(SlotReader):
    """Reads the tickets' files below ``data_fd``. A file does not say of which store it is: its checksum does."""

    def __dealloc__(self):
        while self.file_count > 0:      # not a method: there is none yet when the making of the base has failed
            self.file_count -= 1
            close(self.files[self.file_count])

    def __len__(self):
        return self.file_count

    def close(self):
        self._close()

    cdef void _close(self) noexcept nogil:
        while self.file_count > 0:
            self.file_count -= 1
            close(self.files[self.file_count])

    cdef int _open(self, int parent, const char *name) noexcept nogil:
        cdef int state = SLOT_FREE
        cdef int fd = tree_open(parent, name)
        cdef int error
        if fd < 0:
            return MISSING if errno == ENOENT else ERROR
        error = tree_look(fd, &state, self.checksums + 8 * self.file_count)
        if error == 0 and state == SLOT_PRESENT:
            self.files[self.file_count] = fd
            self.file_count += 1
            return SAVED
        close(fd)
        return ERROR if error else DELETED if state == SLOT_DELETED else MISSING

    cdef void look(self, int64_t first, int count, extent *found) noexcept nogil:
        cdef char path[TREE_PATH_SIZE]
        cdef int parent, status, siblings = tree_siblings(first)
        self._close()
        found.first = first
        found.count = min(count, siblings)
        found.looks = 1
        parent = tree_directory(self.data_fd, path, tree_path(first, path), 0)
        if parent < 0:
            # Without the directory all that would be in it is missing.
            found.status = MISSING if errno == ENOENT else ERROR
            return
        count = min(found.count, FILES_MAX)
        found.status = self._open(parent, path + tree_path(first, path))
        found.count = 1
        while found.count < count:
            found.looks += 1
            status = self._open(parent, path + tree_path(first + found.count, path))
            if status != found.status:
                if status == SAVED:
                    self.file_count -= 1
                    close(self.files[self.file_count])
                break
            found.count += 1
        close(parent)

    cdef int read(self, const extent *found, int count, uint8_t *frames) noexcept nogil:
        cdef int i
        cdef uint8_t *frame
        for i in range(min(count, self.file_count)):
            frame = frames + <size_t>i * FRAME_SIZE
            if tree_read_data(self.files[i], frame + TREE_DATA) != 0:
                memset(frame, 0, FRAME_SIZE)      # deleted meanwhile, or corrupt: that it lacks its ticket tells
                continue
            ticket_write(found.first + i, frame)
            memcpy(frame + 8, self.checksums + 8 * i, 8)
        return 0

    cdef int read_bytes(self, int64_t first, uint64_t offset, size_t size, uint8_t *to) noexcept nogil:
        cdef uint8_t frame[1474]
        cdef size_t part, at
        cdef int error
        while size > 0:
            at = offset % FRAME_SIZE
            part = min(size, FRAME_SIZE - at)
            error = tree_read_frame(self.data_fd, first + <int64_t>(offset / FRAME_SIZE), frame)
            if error:
                return error
            memcpy(to, frame + at, part)
            to += part
            offset += part
            size -= part
        return 0
