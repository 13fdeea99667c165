"""Where the benchmarks write: empty directories on a real disk, one at a time, and a warm page cache."""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "INGEST_BENCH_DIR"
IN_MEMORY = frozenset({"tmpfs", "ramfs", "devtmpfs"})
WARM_CHUNK = 8 << 20  # bytes of one write
_libc = ctypes.CDLL(None, use_errno=True)


class ScratchError(Exception):
    """The directory for the benchmark's data will not do; the message says why."""


def file_system(path: Path) -> str:
    """Its type, such as `ext4`, from /proc/self/mountinfo."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    found = "unknown"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount, _, rest = line.partition(" - ")
        if mount.split()[2] == wanted:
            found = rest.split()[0]
    return found


def sync(directory: Path) -> None:
    """Waits until its file system has written everything, deletions too: the next round then starts with an idle disk."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if _libc.syncfs(fd) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(directory))
    finally:
        os.close(fd)


@dataclass(frozen=True)
class Scratch:
    """A directory of our own on the disk that is measured. At most one round's data lies in it at a time."""

    directory: Path

    @contextmanager
    def round(self) -> Iterator[Path]:
        """An empty directory; afterwards it is deleted, and the deletion is on the disk."""
        path = self.directory / "round"
        path.mkdir(mode=0o700)
        try:
            yield path
        finally:
            shutil.rmtree(path)
            sync(self.directory)

    def warm_page_cache(self, size: int) -> None:
        """Writes a file of `size` bytes (at most a third of what memory is free) and deletes it.

        A virtual machine's host takes freed pages back, and getting them again costs ten times what a copy does: without
        this the first to run would pay for all others.
        """
        size = min(size, os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 3)
        path = self.directory / "warm"
        with mmap.mmap(-1, WARM_CHUNK) as chunk, open(path, "wb", buffering=0) as file:
            for _ in range(max(1, size // WARM_CHUNK)):
                file.write(chunk)
            path.unlink()
        sync(self.directory)


@contextmanager
def scratch() -> Iterator[Scratch]:
    """A new directory below $INGEST_BENCH_DIR, or else /var/tmp; ScratchError when that is memory, not a disk."""
    below = Path(os.environ.get(VARIABLE) or "/var/tmp")
    if not below.is_dir():
        raise ScratchError(f"{below} is no directory: set {VARIABLE} to one on the disk to measure")
    kind = file_system(below)
    if kind in IN_MEMORY:
        raise ScratchError(f"{below} is in memory ({kind}): set {VARIABLE} to a directory on a disk")
    with tempfile.TemporaryDirectory(prefix="ingest-bench-", dir=below) as directory:
        yield Scratch(Path(directory))
