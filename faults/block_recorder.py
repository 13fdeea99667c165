"""A disk that remembers: one FUSE file (`mfusepy`), under a loop device, that records each write and each flush in order.

What is written goes into an overlay over a base image, which this never changes; `reset` is the base again. The file is
opened with direct I/O, so that it has no page cache of its own, and is served by one thread, so that there is one order. A
loop device passes a flush on as fsync. Needs root, /dev/fuse, loop devices and libfuse (Debian: libfuse2 or libfuse3-3).
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from faults.power_loss import ENTRY, FLUSH, Entry, parse_record

BLOCK = 4096  # bytes: what the overlay replaces
FILE_NAME = "disk"
MOUNT_OPTIONS = {"ext4": "loop,noatime", "xfs": "loop,noatime,nouuid"}  # copies of one image share its UUID
# xfs stamps each block of its metadata with the place in its log of the last change, and a log recovery leaves blocks alone
# that say they are as new: it needs a disk that writes its blocks whole, so it gets sectors of their size.
SECTORS = {"ext4": 512, "xfs": 4096}  # bytes that the disk writes whole or not at all
MAKE = {
    "ext4": ["-q", "-F", "-b", "4096", "-i", "4096", "-E", "nodiscard"],
    "xfs": ["-q", "-f", "-K", "-s", f"size={SECTORS['xfs']}"],
}
UNMOUNT_TIMEOUT_S = 30.0
CLONE_NEWNS = 0x20000
MNT_DETACH = 2
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

_libc = ctypes.CDLL(None, use_errno=True)


def end_with_parent() -> None:
    """This process gets SIGKILL when its parent ends."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def isolate() -> None:
    """Gives this process mounts of its own: they go when it and its children end, however that happens.

    It also inherits its children's children, so that it can wait until they are really gone. OSError without the right.
    """
    end_with_parent()
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if _libc.unshare(CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "no mounts of one's own: this needs root")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)


def make_image(path: Path, file_system: str, size: int) -> None:
    """A new file of `size` bytes, mostly a hole, with an empty file system in it."""
    with path.open("xb") as file:
        file.truncate(size)
    command = [f"mkfs.{file_system}", *MAKE[file_system], str(path)]
    subprocess.run(command, check=True, capture_output=True)


@contextmanager
def mounted(device: Path, where: Path, file_system: str) -> Iterator[None]:
    """Mounts an image file through a loop device. CalledProcessError says (in `stderr`) why the file system refuses."""
    command = ["mount", "-t", file_system, "-o", MOUNT_OPTIONS[file_system], str(device), str(where)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    try:
        yield
    finally:
        deadline = time.monotonic() + UNMOUNT_TIMEOUT_S
        while (done := subprocess.run(["umount", str(where)], capture_output=True, text=True)).returncode:
            if time.monotonic() > deadline or "busy" not in done.stderr:
                raise OSError(f"{where} can't be unmounted: {done.stderr.strip()}")
            time.sleep(0.02)


class Overlay:
    """The bytes of the disk: `base` under what was written since."""

    def __init__(self, base: Path, overlay: Path) -> None:
        self.base = os.open(base, os.O_RDONLY)
        self.size = os.fstat(self.base).st_size
        self.fd = os.open(overlay, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        self.reset()

    def reset(self) -> None:
        os.ftruncate(self.fd, 0)
        os.ftruncate(self.fd, self.size)
        self.written = bytearray(-(-self.size // BLOCK))  # 1: this block is in the overlay

    def read(self, offset: int, size: int) -> bytes:
        size = max(0, min(size, self.size - offset))
        first, last = offset // BLOCK, -(-(offset + size) // BLOCK)
        blocks = self.written[first:last]
        if not any(blocks):
            return os.pread(self.base, size, offset)
        if all(blocks):
            return os.pread(self.fd, size, offset)
        data = bytearray(os.pread(self.base, (last - first) * BLOCK, first * BLOCK))
        for i, written in enumerate(blocks):
            if written:
                data[i * BLOCK : (i + 1) * BLOCK] = os.pread(self.fd, BLOCK, (first + i) * BLOCK)
        start = offset - first * BLOCK
        return bytes(data[start : start + size])

    def write(self, offset: int, data: bytes) -> None:
        if offset + len(data) > self.size:
            raise OSError(errno.ENOSPC, "behind the end of the disk")
        first, last = offset // BLOCK, -(-(offset + len(data)) // BLOCK)
        for block in {first, last - 1}:  # those that may be written in part
            if not self.written[block]:
                os.pwrite(self.fd, os.pread(self.base, BLOCK, block * BLOCK), block * BLOCK)
        os.pwrite(self.fd, data, offset)
        self.written[first:last] = b"\1" * (last - first)


class Recorder:
    """The daemon's half: `write` and `flush` go into the overlay and into the record, and are counted."""

    def __init__(self, base: Path, directory: Path) -> None:
        self.disk = Overlay(base, directory / "overlay")
        self.record_path = directory / "record"
        self.count = _counter(directory)
        self.entries = 0
        self._new_record()

    def _new_record(self) -> None:
        self.record_path.unlink(missing_ok=True)
        self.record = os.open(self.record_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)

    def reset(self) -> None:
        """The base again, and a new record; the file of the last one stays as it is for who has it open."""
        self.disk.reset()
        os.close(self.record)
        self._new_record()
        self._counted(0)

    def write(self, offset: int, data: bytes) -> None:
        self.disk.write(offset, data)
        size = os.writev(self.record, [ENTRY.pack(offset, len(data)), data])
        assert size == ENTRY.size + len(data), "the record must be whole"
        self._counted(self.entries + 1)

    def flush(self) -> None:
        os.write(self.record, ENTRY.pack(FLUSH, 0))
        self._counted(self.entries + 1)

    def _counted(self, entries: int) -> None:
        """Counts before the disk answers: whoever then learns of a completed sync sees its flush counted."""
        self.entries = entries
        self.count[0] = entries


def _counter(directory: Path) -> memoryview:
    """The count, in memory that all processes share: an array of one.

    An item of such an array is stored and loaded whole. `struct.pack_into` would zero it first and then store it byte by
    byte: who reads in between sees 0, and an answer that is noted with that is a promise in cuts that came before it.
    """
    fd = os.open(directory / "count", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.ftruncate(fd, mmap.PAGESIZE)
        return memoryview(mmap.mmap(fd, mmap.PAGESIZE)).cast("Q")[:1]
    finally:
        os.close(fd)


class RecordedDisk:
    """The file, served by a process of its own while this is open: `file` is what to mount.

    `directory` is empty and stays this one's. Make it after `isolate`.
    """

    def __init__(self, base: Path, directory: Path) -> None:
        directory.mkdir()
        self.base = base
        self.directory = directory
        self.point = directory / "fuse"
        self.point.mkdir()
        self.file = self.point / FILE_NAME
        self._counter = _counter(directory)

    @property
    def count(self) -> int:
        """Entries so far. A sync that somebody was told of before this was read has its flush among them."""
        return int(self._counter[0])

    def __enter__(self) -> RecordedDisk:
        reads, writes = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                end_with_parent()
                os.close(reads)
                _serve(Recorder(self.base, self.directory), self.point, writes)
            except BaseException as error:
                os.write(2, f"the block recorder ended: {error!r}\n".encode())
            finally:
                os._exit(1)
        os.close(writes)
        with os.fdopen(reads, "rb") as ready:
            if ready.read(1) != b"1":  # the end of the pipe: the daemon is gone
                os.waitpid(self.pid, 0)
                raise OSError("the block recorder did not start: what it said stands above")
        return self

    def __exit__(self, *_: object) -> None:
        done = subprocess.run(["umount", str(self.point)], capture_output=True, text=True)
        if done.returncode:  # a loop device holds it: nobody may wait for a daemon that is gone
            os.kill(self.pid, signal.SIGKILL)
            subprocess.run(["umount", "-l", str(self.point)], capture_output=True)
        os.waitpid(self.pid, 0)
        self._counter.release()

    def reset(self) -> None:
        """The base image again, with an empty record. Nothing may be mounted from it."""
        os.truncate(self.file, 0)

    def record(self) -> mmap.mmap:
        """The record so far, to be closed by the caller; it stays readable after a `reset`."""
        with (self.directory / "record").open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def entries_of(record: mmap.mmap) -> list[Entry]:
    with memoryview(record) as view:
        return parse_record(view)


def _leave_mounts(point: Path) -> None:
    """Gives this process mounts of its own once more, without the one at `point`.

    The last process with some mounts unmounts them while it ends. If that was this one, a file system on its disk would wait
    for its answers for ever.
    """
    if _libc.unshare(CLONE_NEWNS) != 0 or _libc.umount2(bytes(point), MNT_DETACH) != 0:
        raise OSError(ctypes.get_errno(), "the block recorder can't leave the mounts that it serves")


def _serve(recorder: Recorder, point: Path, ready: int) -> None:
    """Serves the file until it is unmounted. Only here is libfuse needed."""
    import mfusepy

    class Operations(mfusepy.Operations):  # type: ignore[misc]
        use_ns = True

        def init(self, path: str) -> None:
            _leave_mounts(point)
            os.write(ready, b"1")

        def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:
            if path == "/":
                return {"st_mode": stat.S_IFDIR | 0o700, "st_nlink": 2}
            if path == f"/{FILE_NAME}":
                return {"st_mode": stat.S_IFREG | 0o600, "st_nlink": 1, "st_size": recorder.disk.size}
            raise mfusepy.FuseOSError(errno.ENOENT)

        def open(self, path: str, flags: int) -> int:
            return 0

        def truncate(self, path: str, length: int, fh: int | None = None) -> int:
            recorder.reset()
            return 0

        def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
            return recorder.disk.read(offset, size)

        def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
            recorder.write(offset, data)
            return len(data)

        def fsync(self, path: str, datasync: int, fh: int) -> int:
            recorder.flush()
            return 0

    # libfuse 2 splits writes into pages unless it is told not to.
    options = {"big_writes": True} if mfusepy.fuse_version_major == 2 else {}
    mfusepy.FUSE(
        Operations(),
        str(point),
        foreground=True,
        nothreads=True,
        direct_io=True,
        fsname="ingest-recorder",
        **options,
    )
