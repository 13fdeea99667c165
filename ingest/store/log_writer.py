"""Appends batches to the write-ahead log: `docs/format.md`, "The log".

Segments are preallocated by really writing them once, and recycled, so that fdatasync has no metadata to write.
One thread appends. `make_spare` may run in another: it makes a segment ahead of its need.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import secrets
import threading
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from ingest import limits
from ingest.store.log_format import BLOCK_SIZE, BatchHeader, SegmentHeader, padded, seal_batch

ZEROS_SIZE = 4 << 20
SEGMENTS_MAX = 10_000  # four digits name a segment

_libc = ctypes.CDLL(None, use_errno=True)


def open_segment(path: Path) -> int:
    """Opens a segment for reading and writing past the page cache where the file system can."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, flags | os.O_DIRECT, 0o600)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.open(path, flags, 0o600)  # a file system without O_DIRECT, such as tmpfs


def write_all(fd: int, buffer: memoryview, offset: int) -> None:
    """pwrite until everything is written; a short write goes on where it stopped."""
    while buffer:
        written = os.pwrite(fd, buffer, offset)
        if written == 0:
            raise OSError(errno.EIO, "the file system wrote nothing")
        buffer = buffer[written:]
        offset += written


def sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def syncfs(fd: int) -> None:
    """Writes back all of the file system of `fd`; OSError when that, or any write-back since `fd` was opened or last synced so, failed."""
    if _libc.syncfs(fd) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


@dataclass
class Segment:
    path: Path
    fd: int
    last_batch: int = 0  # the highest batch number in it: it may be recycled when that one is synced


class LogWriter:
    """The log of one store, open for appending.

    `segments`: the files that exist, those in use oldest first. `number`: of the last batch so far. `synced_to`: up to
    which the packs hold everything; `recorded` is what the log itself says of that. `sync`: whether a batch is synced
    before `append` returns. `may_grow`: cleared when a segment could not be made; whoever clears space sets it again.
    """

    def __init__(
        self,
        directory: Path,
        log_id: bytes,
        *,
        size_max: int,
        sync: bool = True,
        in_use: list[Segment] | None = None,
        free: list[Segment] | None = None,
        number: int = 0,
        use: int = 0,
        synced_to: int = 0,
        segment_size: int = limits.LOG_SEGMENT_SIZE,
    ) -> None:
        self.directory = directory
        self.log_id = log_id
        self.segments_max = min(SEGMENTS_MAX, max(3, size_max // segment_size))
        self.segment_size = segment_size
        self.sync = sync
        self.number = number
        self.synced_to = synced_to
        self.recorded = synced_to
        self.may_grow = True
        self._growing = threading.Lock()
        self._use = use
        self._in_use = deque(in_use or [])
        self._free = deque(free or [])
        self._current: Segment | None = None
        self._offset = segment_size  # the first append takes a segment
        self._seed = 0
        self._head = mmap.mmap(-1, BLOCK_SIZE)  # page-aligned, as O_DIRECT wants it

    @property
    def segments(self) -> int:
        return len(self._in_use) + len(self._free)

    @property
    def needs_spare(self) -> bool:
        """Whether no segment is free and the log may still grow."""
        return not self._free and self.may_grow and self.segments < self.segments_max

    def ends_segment(self, length: int) -> bool:
        """Whether a batch of `length` bytes needs another segment than the present one."""
        return self._offset + padded(length) > self.segment_size

    @property
    def used(self) -> int:
        """Bytes of the segments that may not be recycled yet."""
        return len(self._in_use) * self.segment_size

    @property
    def unallocated(self) -> int:
        """Bytes that the log may still grow by."""
        return max(0, self.segments_max - self.segments) * self.segment_size

    def has_room(self, length: int) -> bool:
        """Whether a batch of `length` bytes can be appended without recycling first."""
        if not self.ends_segment(length):
            return True
        return bool(self._free) or (self.may_grow and self.segments < self.segments_max)

    def append(self, buffer: memoryview, puts: int, deletes: int, notes: int) -> int:
        """Appends the batch whose payload lies in `buffer` (page-aligned) behind the header's place; returns its number.

        Returned means durable, if this log syncs. An OSError means that nothing is known of this batch, and that this
        writer must not be used any more: a failed fdatasync is never retried.
        """
        length = BatchHeader.payload_size(puts, deletes, notes) + 64
        if self.ends_segment(length):
            self._next_segment()
        assert self._current is not None
        self.number += 1
        header = BatchHeader(self.number, length, puts, deletes, notes, self.synced_to)
        end = seal_batch(buffer, header, self._seed)
        write_all(self._current.fd, buffer[:end], self._offset)
        if self.sync:
            os.fdatasync(self._current.fd)
        self._offset += end
        self._current.last_batch = self.number
        self.recorded = header.synced_to
        return self.number

    def recycle(self, synced_to: int) -> None:
        """The packs hold every batch up to `synced_to` durably: segments with nothing later are free again."""
        assert self.synced_to <= synced_to <= self.number
        self.synced_to = synced_to
        while self._in_use and self._in_use[0].last_batch <= synced_to:
            if self._in_use[0] is self._current:
                if self._free or self.may_grow:
                    break
                # There is no other one and will be none: this one starts anew.
                self._current, self._offset = None, self.segment_size
            self._free.append(self._in_use.popleft())

    def make_spare(self) -> None:
        """Makes a segment ahead of its need, if the log may grow and none is free. An OSError leaves the log as it was,
        but for `may_grow`: it goes on in the segments that it has."""
        with self._growing:
            if self.needs_spare:
                try:
                    self._free.append(self._make_segment())
                except OSError:
                    self.may_grow = False
                    raise

    def close(self) -> None:
        for segment in (*self._in_use, *self._free):
            os.close(segment.fd)
        self._in_use.clear()
        self._free.clear()

    def _next_segment(self) -> None:
        with self._growing:
            segment = self._free.popleft() if self._free else self._make_segment()
        self._in_use.append(segment)
        self._current = segment
        self._use += 1
        self._seed = secrets.randbits(64)
        header = SegmentHeader(self.log_id, self._use, self.number + 1, self._seed, self.synced_to)
        self._head[:] = header.serialize()
        write_all(segment.fd, memoryview(self._head), 0)
        if self.sync:
            # Before anything is written behind it: a new batch under the old header would look like damage to the old
            # batches, and it is this header that says that nobody needs them any more.
            os.fdatasync(segment.fd)
        self._offset = BLOCK_SIZE
        segment.last_batch = self.number + 1

    def _make_segment(self) -> Segment:
        """A new segment, its blocks written and durable. A half-made one from a crash is made again under its name."""
        taken = {segment.path.name for segment in (*self._in_use, *self._free)}
        index = next(i for i in range(SEGMENTS_MAX) if f"{i:04d}.log" not in taken)
        path = self.directory / f"{index:04d}.log"
        fd = open_segment(path)
        try:
            fill_with_zeros(fd, self.segment_size)
            sync_directory(self.directory)
        except OSError:
            os.close(fd)
            os.unlink(path)  # on a full disk the rest of the server needs what it took
            raise
        return Segment(path, fd)


def fill_with_zeros(fd: int, size: int) -> None:
    """Really writes `size` zero bytes and syncs them: unwritten extents would make each later sync a metadata write."""
    # Not closed by hand: a write that fails keeps a view of it alive for as long as its exception lives.
    zeros = memoryview(mmap.mmap(-1, min(ZEROS_SIZE, size)))
    for offset in range(0, size, ZEROS_SIZE):
        write_all(fd, zeros[: min(ZEROS_SIZE, size - offset)], offset)
    os.ftruncate(fd, size)
    os.fsync(fd)
