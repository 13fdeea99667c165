"""Appends batches to the write-ahead log: `docs/format.md`, "The log".

Segments are preallocated by really writing them once, and recycled, so that fdatasync has no metadata to write.
To grow and to append are two things. `make_spare` makes a segment, may run in another thread, and when it fails the log is
as it was; `append` makes nothing, it only takes the room that `has_room` says is there. So what fails in `append` is a write
or sync of the log, always.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import mmap
import os
import secrets
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ingest import limits
from ingest.disk_wait import DiskWait
from ingest.runtime import _failpoints, heartbeat
from ingest.runtime.durable_files import write_all
from ingest.store.log.log_format import BLOCK_SIZE, BatchHeader, SegmentHeader, padded, seal_batch

ZEROS_SIZE = 4 << 20
SEGMENTS_MAX = 10_000  # four digits name a segment


def open_segment(path: Path) -> int:
    """Opens a segment for reading and writing past the page cache where the file system can."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, flags | os.O_DIRECT, 0o600)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.open(path, flags, 0o600)  # a file system without O_DIRECT, such as tmpfs


@dataclass
class Segment:
    path: Path
    fd: int
    last_batch: int = 0  # the highest batch number in it: it may be recycled when that one is synced


class LogWriter:
    """The log of one store, open for appending.

    `segments`: how many files there are. `number`: of the last batch so far. `synced_to`: up to
    which the packs hold everything; `recorded` is what the log itself says of that. `sync`: whether a batch is synced
    before `append` returns. `opening`: what surrounds the opening of a segment; an OSError of it is one of `make_spare`.
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
        opening: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        self.directory = directory
        self.log_id = log_id
        self.segments_max = min(SEGMENTS_MAX, max(3, size_max // segment_size))
        self.segment_size = segment_size
        self.sync = sync
        self.number = number
        self.synced_to = synced_to
        self.recorded = synced_to
        # Kept open: the log must be able to grow when the packs have taken all descriptors but one.
        self._directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._opening = opening
        self._turn = 0  # of `opened_in_turn`
        self._making = threading.Lock()
        self._use = use
        self._in_use = deque(in_use or [])
        self._free = deque(free or [])
        self._names = {segment.path.name for segment in (*self._in_use, *self._free)}
        self._current: Segment | None = None
        self._offset = segment_size  # the first append takes a segment
        self._seed = 0
        self._head = mmap.mmap(-1, BLOCK_SIZE)  # page-aligned, as O_DIRECT wants it

    @property
    def segments(self) -> int:
        return len(self._names)

    @property
    def missing(self) -> list[str]:
        """Names of segments that somebody removed: each is made under the first name that is free."""
        names = (f"{i:04d}.log" for i in range(SEGMENTS_MAX))
        last = max(self._names, default="")
        return [
            name for name in itertools.takewhile(lambda name: name < last, names) if name not in self._names
        ]

    @property
    def needs_spare(self) -> bool:
        """Whether no segment is free and the log may still grow."""
        return not self._free and self.segments < self.segments_max

    def opened(self) -> dict[Path, int]:
        """The descriptor of each segment by its path, also of free ones: any of them may be the next to be written."""
        return {segment.path: segment.fd for segment in (*self._in_use, *self._free)}

    def opened_in_turn(self) -> dict[Path, int]:
        """The same of some: the segment that is written, the one that is next, and others in turn with each call."""
        segments = [*self._in_use, *self._free]
        start = self._turn if self._turn < len(segments) else 0
        self._turn = start + limits.POSSESSION_SEGMENTS
        some = [*segments[start : self._turn], *([*self._in_use][-1:]), *([*self._free, *self._in_use][:1])]
        return {segment.path: segment.fd for segment in some}

    def ends_segment(self, length: int) -> bool:
        """Whether a batch of `length` bytes needs another segment than the present one."""
        return self._offset + padded(length) > self.segment_size

    @property
    def used(self) -> int:
        """Bytes of the segments that may not be recycled yet."""
        return len(self._in_use) * self.segment_size

    @property
    def allocated(self) -> int:
        """Bytes of all segments that exist."""
        return self.segments * self.segment_size

    @property
    def unallocated(self) -> int:
        """Bytes that the log may still grow by."""
        return max(0, self.segments_max - self.segments) * self.segment_size

    @property
    def lacks(self) -> int:
        """Bytes that it lacks of the smallest log that works well: one segment being written, one full, one recycled."""
        return max(0, limits.LOG_SIZE_MIN // limits.LOG_SEGMENT_SIZE - self.segments) * self.segment_size

    def has_room(self, length: int) -> bool:
        """Whether a batch of `length` bytes can be appended now, with neither growing nor recycling first."""
        return not self.ends_segment(length) or bool(self._free) or self._current_is_done

    @property
    def _current_is_done(self) -> bool:
        """Whether the packs hold all that is in the present segment: then it may start anew when no other is free."""
        return self._current is not None and self._current.last_batch <= self.synced_to

    def append(self, buffer: memoryview, puts: int, deletes: int, notes: int) -> int:
        """Appends the batch whose payload lies in `buffer` (page-aligned) behind the header's place; returns its number.

        There must be room for it. Returned means durable, if this log syncs. An OSError means that nothing is known of
        this batch, and that this writer must not be used any more: a failed fdatasync is never retried.
        """
        length = BatchHeader.payload_size(puts, deletes, notes) + 64
        if self.ends_segment(length):
            self._next_segment()
        assert self._current is not None
        self.number += 1
        header = BatchHeader(self.number, length, puts, deletes, notes, self.synced_to)
        end = seal_batch(buffer, header, self._seed)
        way = _failpoints.BULK if notes else _failpoints.LOG
        heart = heartbeat.own()
        heart.wait(DiskWait.LOG_WRITE)
        write_all(self._current.fd, buffer[:end], self._offset)
        _failpoints.passed(_failpoints.LOG_WRITTEN, way)
        if self.sync:
            heart.wait(DiskWait.LOG_SYNC)
            os.fdatasync(self._current.fd)
        heart.wait(DiskWait.PACK_FILES)
        _failpoints.passed(_failpoints.LOG_SYNCED, way)
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
                break
            self._free.append(self._in_use.popleft())

    def make_spare(self) -> None:
        """Makes a segment, if the log may grow and none is free. An OSError leaves the log as it was."""
        with self._making:
            if self.needs_spare:
                self._free.append(self._make_segment())

    def close(self) -> None:
        for segment in (*self._in_use, *self._free):
            os.close(segment.fd)
        self._in_use.clear()
        self._free.clear()
        os.close(self._directory_fd)

    def _next_segment(self) -> None:
        assert self._free or self._current_is_done, "a batch is appended to a log without room"
        segment = (self._free if self._free else self._in_use).popleft()
        self._in_use.append(segment)
        self._current = segment
        self._use += 1
        self._seed = secrets.randbits(64)
        header = SegmentHeader(self.log_id, self._use, self.number + 1, self._seed, self.synced_to)
        self._head[:] = header.serialize()
        heartbeat.own().wait(DiskWait.LOG_SYNC)
        write_all(segment.fd, memoryview(self._head), 0)
        if self.sync:
            # Before anything is written behind it: a new batch under the old header would look like damage to the old
            # batches, and it is this header that says that nobody needs them any more.
            os.fdatasync(segment.fd)
        self._offset = BLOCK_SIZE
        segment.last_batch = self.number + 1

    def _make_segment(self) -> Segment:
        """A new segment, its blocks written and durable. A half-made one from a crash is made again under its name."""
        name = next(name for i in range(SEGMENTS_MAX) if (name := f"{i:04d}.log") not in self._names)
        path = self.directory / name
        with self._opening():
            fd = open_segment(path)
        try:
            there = os.stat(name, dir_fd=self._directory_fd)
            if not os.path.samestat(
                there, os.fstat(fd)
            ):  # the path leads elsewhere: this may be another log's
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
            fill_with_zeros(fd, self.segment_size)
            os.fsync(self._directory_fd)
        except OSError:
            os.close(fd)
            with contextlib.suppress(OSError):  # the next try takes the same name
                os.unlink(
                    name, dir_fd=self._directory_fd
                )  # on a full disk the rest of the server needs what it took
            raise
        self._names.add(name)
        return Segment(path, fd)


def fill_with_zeros(fd: int, size: int) -> None:
    """Really writes `size` zero bytes and syncs them: unwritten extents would make each later sync a metadata write."""
    # Not closed by hand: a write that fails keeps a view of it alive for as long as its exception lives.
    zeros = memoryview(mmap.mmap(-1, min(ZEROS_SIZE, size)))
    for offset in range(0, size, ZEROS_SIZE):
        write_all(fd, zeros[: min(ZEROS_SIZE, size - offset)], offset)
    os.ftruncate(fd, size)
    os.fsync(fd)
