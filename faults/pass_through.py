"""A file system in user space that passes everything through to a directory, with libfuse (`mfusepy`)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mfusepy

# Direct writes need aligned buffers, which nothing here has. The page cache below is what gets synced.
UNWANTED = os.O_CREAT | os.O_EXCL | os.O_TRUNC | os.O_DIRECT | os.O_NOFOLLOW
STAT = ("mode", "nlink", "uid", "gid", "size", "ino", "blocks")
TIMES = ("atime", "mtime", "ctime")
STATVFS = ("bavail", "bfree", "blocks", "bsize", "favail", "ffree", "files", "flag", "frsize", "namemax")


class PassThrough(mfusepy.Operations):  # type: ignore[misc]
    """The operations on paths below the directory ``below``. Times are in nanoseconds."""

    use_ns = True

    def __init__(self, below: Path) -> None:
        self.below = str(below)

    def real(self, path: str) -> str:
        return self.below + path

    def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:
        found = os.lstat(self.real(path)) if fh is None else os.fstat(fh)
        times = {f"st_{name}": getattr(found, f"st_{name}_ns") for name in TIMES}
        return {f"st_{name}": getattr(found, f"st_{name}") for name in STAT} | times

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", *os.listdir(self.real(path))]

    def mkdir(self, path: str, mode: int) -> int:
        return done(os.mkdir, self.real(path), mode)

    def rmdir(self, path: str) -> int:
        return done(os.rmdir, self.real(path))

    def unlink(self, path: str) -> int:
        return done(os.unlink, self.real(path))

    def rename(self, old: str, new: str) -> int:
        return done(os.rename, self.real(old), self.real(new))

    def link(self, target: str, source: str) -> int:
        return done(os.link, self.real(source), self.real(target))

    def chmod(self, path: str, mode: int) -> int:
        return done(os.chmod, self.real(path), mode)

    def utimens(self, path: str, times: tuple[int, int]) -> int:
        os.utime(self.real(path), ns=times)
        return 0

    def open(self, path: str, flags: int) -> int:
        return os.open(self.real(path), flags & ~UNWANTED)

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        return os.open(self.real(path), os.O_RDWR | os.O_CREAT, mode)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return os.pread(fh, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        return os.pwrite(fh, data, offset)

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        return done(os.truncate, self.real(path) if fh is None else fh, length)

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        return done(os.fdatasync if datasync else os.fsync, fh)

    def fsyncdir(self, path: str, datasync: int, fh: int) -> int:
        directory = os.open(self.real(path), os.O_RDONLY | os.O_DIRECTORY)
        try:
            return done(os.fsync, directory)
        finally:
            os.close(directory)

    def release(self, path: str, fh: int) -> int:
        return done(os.close, fh)

    def getxattr(self, path: str, name: str, position: int = 0) -> bytes:
        return os.getxattr(self.real(path), name)

    def setxattr(self, path: str, name: str, value: bytes, options: int, position: int = 0) -> int:
        return done(os.setxattr, self.real(path), name, value, options)

    def listxattr(self, path: str) -> list[str]:
        return os.listxattr(self.real(path))

    def removexattr(self, path: str, name: str) -> int:
        return done(os.removexattr, self.real(path), name)

    def statfs(self, path: str) -> dict[str, int]:
        found = os.statvfs(self.real(path))
        return {f"f_{name}": getattr(found, f"f_{name}") for name in STATVFS}


def done(call: Callable[..., object], *arguments: Any) -> int:
    """0, as libfuse wants it, when `call` returns; its OSError is the answer otherwise."""
    call(*arguments)
    return 0


def serve(below: Path, point: Path) -> None:
    """Serves the directory `below` at `point`, with one thread, until it is unmounted."""
    # libfuse 2 splits writes into pages unless it is told not to.
    options = {"big_writes": True} if mfusepy.fuse_version_major == 2 else {}
    operations = PassThrough(below)
    mfusepy.FUSE(
        operations, str(point), foreground=True, nothreads=True, fsname="ingest-pass-through", **options
    )
