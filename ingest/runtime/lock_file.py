"""Lock files: one process has it, and whoever wants to know sees whether, and what that process wrote there.

A lock is a flock(2): it ends with the last process that has a copy of the descriptor, however that ends. It is on a file,
and on a directory too: who removes the file and makes another one, or has one made, finds the directory locked.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ingest import limits

# flock(2) of a directory where there is none. NFS makes a lock of bytes of it, which wants a descriptor for writing: EBADF.
NO_DIRECTORY_LOCKS = frozenset(
    (errno.EBADF, errno.EINVAL, errno.EISDIR, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
)


def open_lock(path: Path) -> int:
    """The descriptor of a lock file, which is made (0600) when it is not there. Nobody has it by that. OSError."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def take(fd: int) -> None:
    """BlockingIOError when another process has the lock."""
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def take_directory(fd: int) -> bool:
    """The same with a directory. False where the file system locks none: then the file alone is the lock."""
    return _lock_directory(fd, fcntl.LOCK_EX)


def _lock_directory(fd: int, how: int) -> bool:
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in NO_DIRECTORY_LOCKS:
            return False
        raise
    return True


def take_patiently(fd: int) -> None:
    """`take`; but whoever only looks whether somebody has it (`is_held`) is gone in a moment."""
    _patiently(lambda: take(fd))


def _patiently(take_it: Callable[[], object]) -> None:
    for _ in range(limits.LOCK_TRIES - 1):
        with suppress(BlockingIOError):
            take_it()
            return
        time.sleep(limits.LOCK_TRY_INTERVAL_S)
    take_it()


def open_directory(path: Path) -> int:
    """The descriptor of a directory, for `take_directory`. OSError."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def acquire(path: Path, directory: Path) -> tuple[int, int]:
    """Takes the lock patiently: descriptors of the file and of the directory, to be closed by who has it. BlockingIOError
    when another process has one of them, OSError."""
    fds = [open_directory(directory)]
    try:
        _patiently(
            lambda: take_directory(fds[0])
        )  # first: who comes second makes no file in the place of one that is gone
        fds.append(open_lock(path))
        take_patiently(fds[1])
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    return fds[1], fds[0]


def is_held(path: Path, directory: Path) -> bool:
    """Whether a process has it. It looks for a moment whether it could have the lock itself. OSError when the file cannot be
    opened: FileNotFoundError when there is none, and nobody has the directory."""
    fds = [open_directory(directory)]
    try:
        _lock_directory(fds[0], fcntl.LOCK_SH)
        fds.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW))
        fcntl.flock(fds[1], fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        for fd in fds:
            os.close(fd)
    return False


def holder(path: Path) -> str:
    """Who has it, from what it wrote there, for the end of a sentence; empty when that is not readable."""
    try:
        record = json.loads(path.read_bytes()[:4096])
        return f" (process {int(record['pid'])})"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""
