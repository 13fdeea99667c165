"""What room a store has, which of it new frames may not take, and which limit an error of the disk has met."""

from __future__ import annotations

import errno
import os
import resource
from dataclasses import dataclass
from pathlib import Path

from ingest import limits

OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT)


def takes_no_file(directory: Path) -> bool:
    """Whether no file can be made there because no inode is free, or the quota has none: tried with one that has no name."""
    try:
        os.close(os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600))
    except OSError as error:
        if error.errno in OUT_OF_SPACE:
            return True
        try:  # not every file system makes those
            found = os.statvfs(directory)
        except OSError:
            return False
        return found.f_files > 0 and found.f_favail == 0  # some count none
    return False


@dataclass(frozen=True)
class Room:
    """What one file system has free for us, and what of it new frames may not take: bytes, and inodes if it counts them."""

    path: Path
    free_bytes: int
    reserve_bytes: int
    free_inodes: int
    reserve_inodes: int
    reserved_for: str

    @property
    def shortage(self) -> str | None:
        """Which limit is reached, None when neither is."""
        if self.free_bytes < self.reserve_bytes:
            return (
                f"the file system of {self.path}: {self.free_bytes >> 20} MiB are free, "
                f"the reserve ({self.reserved_for}) is {self.reserve_bytes >> 20} MiB"
            )
        if self.free_inodes < self.reserve_inodes:
            return (
                f"the file system of {self.path}: {self.free_inodes} inodes are free, "
                f"the reserve is {self.reserve_inodes}"
            )
        return None


@dataclass
class Space:
    """Whether there is room for new frames: where the packs are, and where the log is, if that is another file system.

    The log takes its room in advance: on a file system of its own it needs none but for the segments that it lacks of the
    smallest log that can work.
    """

    data_dir: Path
    data_fd: int
    wal_dir: Path
    reserve: int  # bytes
    inodes_reserve: int = limits.RESERVE_INODES
    tombstones: int = 0  # that may take a file each, of layout tree, when `check` looked

    def rooms(self, log_growth: int, log_lacks: int) -> list[Room]:
        """`log_growth`: bytes that the log may still take, `log_lacks`: those that it can't do without. OSError."""
        rooms = []
        try:
            same_disk = os.stat(self.wal_dir).st_dev == os.fstat(self.data_fd).st_dev
        except OSError:
            same_disk = True
        stat = os.fstatvfs(self.data_fd)
        needed = self.reserve + (log_growth if same_disk else 0)
        files = self.inodes_reserve if stat.f_files else 0
        reserved_for = "--reserve, and what the log may grow by" if same_disk else "--reserve"
        rooms.append(
            Room(self.data_dir, stat.f_bavail * stat.f_frsize, needed, stat.f_favail, files, reserved_for)
        )
        if not same_disk:
            stat = os.statvfs(self.wal_dir)
            needed = min(self.reserve, log_lacks)
            files = needed // limits.LOG_SEGMENT_SIZE if stat.f_files else 0
            reserved_for = "what the log needs at least"
            rooms.append(
                Room(self.wal_dir, stat.f_bavail * stat.f_frsize, needed, stat.f_favail, files, reserved_for)
            )
        return rooms

    def check(self, log_growth: int, log_lacks: int = 0) -> str | None:
        """None when there is room, else which limit is reached where. See `rooms`."""
        rooms = self.rooms(log_growth, log_lacks)
        data = rooms[0]
        self.tombstones = (data.free_bytes - data.reserve_bytes) // limits.TREE_FILE_SIZE
        if data.reserve_inodes:  # a file system without a number of inodes has as many as it has space for
            self.tombstones = min(self.tombstones, (data.free_inodes - data.reserve_inodes) // 2)
        self.tombstones = max(0, self.tombstones)
        return next((room.shortage for room in rooms if room.shortage is not None), None)


def explain(error: OSError, path: Path) -> str:
    """What `error` says, of which file, and which limit it met: "no space" may be bytes or inodes."""
    where = error.filename if error.filename is not None else path
    text = f"{where}: {error.strerror or error}"
    if error.errno == errno.ENOSPC:
        try:
            stat = os.statvfs(path)
        except OSError:
            return text
        text += f" ({stat.f_bavail * stat.f_frsize >> 10} KiB and {stat.f_favail} inodes are free)"
    elif error.errno == errno.EFBIG:
        text += f" (the limit of a file's size, ulimit -f, is {resource.getrlimit(resource.RLIMIT_FSIZE)[0]} bytes)"
    return text


def existing(path: Path) -> Path:
    """The nearest directory above `path` that we can see, or itself."""
    return path if os.path.exists(path) or path.parent == path else existing(path.parent)


def inodes_kept_free(layout: str) -> int:
    """Below so many free inodes a store of ``layout`` takes no new frames."""
    return limits.RESERVE_INODES_TREE if layout == "tree" else limits.RESERVE_INODES


def shortage_at_start(data_dir: Path, wal_dir: Path, layout: str, reserve: int, wal_size: int) -> str | None:
    """What `Space.check` would say to a server that starts here; the directories need not be there yet. OSError."""
    size = limits.LOG_SEGMENT_SIZE
    segments = sum(1 for _ in wal_dir.glob("*.log"))
    fd = os.open(existing(data_dir), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        space = Space(data_dir, fd, existing(wal_dir), reserve, inodes_kept_free(layout))
        growth, lacks = wal_size // size - segments, limits.LOG_SIZE_MIN // size - segments
        return space.check(max(0, growth) * size, max(0, lacks) * size)
    finally:
        os.close(fd)
