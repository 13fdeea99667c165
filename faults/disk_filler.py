"""Somebody else on the disk: who takes all of its room, or all of its inodes, and gives them back."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

STEPS = (1 << 20, 16_384)  # bytes asked for at a time; then block by block
AGAIN_S = 0.01  # between looks for what was given back
FULL = (errno.ENOSPC, errno.EDQUOT)


class Filler(threading.Thread):
    """Fills the file system of `directory` when told, by bytes or by `inodes`. With `greedy` it also takes what is given
    back while it is full, until it is freed. OSError of another kind than "no space" ends it; `error` says which."""

    def __init__(self, directory: Path, *, inodes: bool, greedy: bool) -> None:
        super().__init__(name="filler", daemon=True)
        directory.mkdir()
        self.directory = directory
        self.inodes = inodes
        self.greedy = greedy
        self.error: OSError | None = None
        self._files = 0
        self._lock = threading.Lock()
        self._full = False
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(AGAIN_S):
            with self._lock:
                if self._full and self.greedy:
                    try:
                        self._take()
                    except OSError as error:
                        self.error = error
                        return

    def fill(self, leave: int = 0) -> None:
        """Returns when nothing is left, or no more than `leave` bytes of blocks."""
        with self._lock:
            self._full = leave == 0
            if leave:
                self._take_bytes(leave)
            else:
                self._take()

    def free(self) -> None:
        """Gives everything back."""
        with self._lock:
            self._full = False
            for path in self.directory.iterdir():
                path.unlink()
            self._files = 0

    def end(self) -> None:
        self._ended.set()
        if self.is_alive():
            self.join()

    def _take(self) -> None:
        if self.inodes:
            self._take_inodes()
        else:
            self._take_bytes()

    def _take_bytes(self, leave: int = 0) -> None:
        fd = os.open(self.directory / "ballast", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(fd).st_size
            for step in (*STEPS, os.fstatvfs(fd).f_frsize):
                while True:
                    if leave and _free(self.directory) < leave + step:
                        break
                    try:
                        os.posix_fallocate(fd, size, step)
                    except OSError as error:
                        if error.errno not in FULL:
                            raise
                        os.ftruncate(fd, size)  # what it has of the step goes back
                        break
                    size += step
            os.fsync(fd)
        finally:
            os.close(fd)

    def _take_inodes(self) -> None:
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
        while True:
            try:
                os.close(os.open(self.directory / str(self._files), flags, 0o600))
            except OSError as error:
                if error.errno not in FULL:
                    raise
                return
            self._files += 1


def _free(directory: Path) -> int:
    """Bytes."""
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize
