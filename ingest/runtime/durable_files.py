"""Files that are there after a power cut: what it takes to write one, to rename one, and to make a directory.

A file is durable when it was synced, and its name when its directory was. A sync that failed is never tried again: the
kernel may have dropped what it could not write, and call the next one a success.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)


def write_all(fd: int, buffer: memoryview, offset: int) -> None:
    """pwrite until everything is written; a short write goes on where it stopped."""
    while buffer:
        written = os.pwrite(fd, buffer, offset)
        if written == 0:
            raise OSError(errno.EIO, "the file system wrote nothing")
        buffer = buffer[written:]
        offset += written


def sync_directory(path: Path) -> None:
    """Makes the names in it durable: of what was made, renamed or removed there."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_file(path: Path) -> None:
    """Makes its bytes durable, whoever wrote them."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def syncfs(fd: int) -> None:
    """Writes back all of the file system of `fd`; OSError when that, or any write-back since `fd` was opened or last
    synced so, failed."""
    while _libc.syncfs(fd) != 0:
        code = ctypes.get_errno()
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))


def make_directory(path: Path) -> None:
    """Makes a directory (0700) and those above it that are missing, durably."""
    if path.is_dir():
        return
    if not path.parent.exists():
        make_directory(path.parent)
    if os.path.lexists(path) and not stat.S_ISDIR(os.stat(path).st_mode):  # or a link that leads nowhere
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    path.mkdir(mode=0o700, exist_ok=True)
    sync_directory(path.parent)


def rename_durably(source: Path, target: Path) -> None:
    """Puts ``source``, whose bytes are durable, in the place of ``target``."""
    os.rename(source, target)
    sync_directory(target.parent)


def open_new(path: Path) -> int:
    """A file of ours alone (0600) that is not there yet, for reading and writing."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


@contextmanager
def new_file(path: Path) -> Iterator[int]:
    """The descriptor of a file that is not there yet, to be written until the block ends: then its bytes are durable. Its
    name is when the caller syncs the directory."""
    fd = open_new(path)
    try:
        yield fd
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def replacing(path: Path, staging: Path | None = None, *, sync: bool = True) -> Iterator[int]:
    """The descriptor of an empty file that takes the place of ``path`` when the block ends: whole new or whole old, whatever
    happens. ``staging``: its name until then, on the same file system; by default ``path`` with `.new`. Without ``sync``
    a power cut may take it back, or leave it empty."""
    staging = path.with_name(path.name + ".new") if staging is None else staging
    with suppress(FileNotFoundError):
        os.unlink(staging)  # of somebody who died
    fd = open_new(staging)
    try:
        yield fd
        if sync:
            os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(staging, path)
    if sync:
        sync_directory(path.parent)
