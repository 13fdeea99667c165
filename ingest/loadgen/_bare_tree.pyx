"""What layout tree costs without a server: the same directories, files and attributes, made by one plain loop.

Benchmarks hold the server against it. It shares no code with the server's own, and takes every short cut that a program
may: directories are opened once for all that lie in them, nothing is checked for being there before, nothing is synced.
"""

import os

from libc.errno cimport errno
from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memcpy, memset
from posix.unistd cimport close, write

from ingest import limits, ticket
from ingest.errors import UsageError


cdef extern from "<fcntl.h>" nogil:
    int openat(int directory, const char *path, int flags, ...)
    enum: O_WRONLY, O_CREAT, O_EXCL, O_RDONLY, O_DIRECTORY, O_CLOEXEC

cdef extern from "<sys/stat.h>" nogil:
    int mkdirat(int directory, const char *path, unsigned mode)

cdef extern from "<sys/xattr.h>" nogil:
    int fsetxattr(int fd, const char *name, const void *value, size_t size, int flags)

cdef int DATA_SIZE = limits.DATA_SIZE
cdef const char *LETTERS = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def make(int data_fd, first, count, const uint8_t[::1] data):
    """Makes the files of ``count`` tickets of seven characters below ``data_fd``, a descriptor of an empty directory.

    ``first`` is the ticket's text and ends in 0, so that whole directories are filled. All files hold ``data`` (1458 bytes).
    OSError from the disk.
    """
    if data.shape[0] != DATA_SIZE:
        raise UsageError(f"a chunk has {DATA_SIZE} bytes, not {data.shape[0]}")
    if len(first) != 7 or not first.endswith("0"):
        raise UsageError(f"{first!r}: a ticket of seven characters that ends in 0 is needed")
    cdef int64_t index = ticket.parse(first), left = count
    cdef int64_t some
    cdef int parent, error = 0
    while left > 0 and error == 0:
        name = ticket.format(index)
        path = "/".join((name[:2], name[2:4], name[4:6]))
        try:
            make_directory(data_fd, path)
            parent = os.open(path, os.O_RDONLY | os.O_DIRECTORY, dir_fd=data_fd)
            some = min(left, 36)
            with nogil:
                error = fill(parent, <int>some, &data[0])
            close(parent)
        except OSError as failure:
            raise OSError(failure.errno, f"making {path}: {failure.strerror}") from failure
        index += some
        left -= some
    if error:
        raise OSError(error, os.strerror(error))


def make_directory(data_fd, path):
    try:
        os.mkdir(path, 0o700, dir_fd=data_fd)
    except FileNotFoundError:
        make_directory(data_fd, os.path.dirname(path))
        make_directory(data_fd, path)


cdef int fill(int parent, int count, const uint8_t *data) noexcept nogil:
    """The first `count` tickets' directories and files in one parent: 0 or an errno."""
    cdef char name[8]
    cdef int i, fd
    cdef bint good
    for i in range(count):
        memset(name, 0, sizeof(name))
        name[0] = LETTERS[i]
        if mkdirat(parent, name, 0o700) < 0:
            return errno
        memcpy(name + 1, b"/obj", 4)
        fd = openat(parent, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
        if fd < 0:
            return errno
        good = (write(fd, data, DATA_SIZE) == DATA_SIZE
                and fsetxattr(fd, b"user.ingest.checksum", b"checksum", 8, 0) == 0)
        close(fd)
        if not good:
            return errno
    return 0
