"""What the kernel says of this server's processes and of its file systems, for the metrics. Linux: /proc and statvfs."""

from __future__ import annotations

import os
from dataclasses import dataclass

_CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class ProcessUse:
    """What one process uses now. Seconds, bytes, a number of descriptors."""

    cpu_seconds: float
    resident_bytes: int
    open_descriptors: int | None  # None: the kernel does not say


@dataclass(frozen=True)
class FileSystemUse:
    """What a file system has free for us, and in all; bytes and inodes. It may have no bound of inodes: 0 in all."""

    free_bytes: int
    size_bytes: int
    free_inodes: int
    inodes: int


def process_use(pid: int, parent: int) -> ProcessUse | None:
    """None when ``pid`` is no process now, or one that ``parent`` did not start: a number may be used again."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            # The name, in parentheses, may hold anything.
            fields = file.read().rpartition(")")[2].split()
        with open(f"/proc/{pid}/statm", encoding="utf-8") as file:
            pages = int(file.read().split()[1])
    except (OSError, IndexError, ValueError):
        return None
    if pid != parent and int(fields[1]) != parent:
        return None
    return ProcessUse(
        (int(fields[11]) + int(fields[12])) / _CLOCK_TICKS, pages * _PAGE_SIZE, _open_descriptors(pid)
    )


def _open_descriptors(pid: int) -> int | None:
    try:
        # Linux 6.2 and later tell the number without listing them.
        return os.stat(f"/proc/{pid}/fd").st_size or len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return None


def file_system_use(path: int | str | os.PathLike[str]) -> FileSystemUse | None:
    """Of the file system that ``path``, or an open descriptor, lies on; None when it does not answer."""
    try:
        stat = os.statvfs(path)
    except OSError:
        return None
    return FileSystemUse(
        stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize, stat.f_favail, stat.f_files
    )
