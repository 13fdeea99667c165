"""Reads the write-ahead log back: what recovery has to do again.

A batch is written only after the sync of the one before it returned, so only the last one can be torn by a crash:

    what lies behind the last whole batch        | verdict
    ---------------------------------------------|----------------------------------------
    nothing, or bytes that do not check          | the end; a torn batch was never acked
    bytes that do not check, then a whole batch  | corruption: refuse to start
    with a later number                          |
    a batch that the packs lack is not there     | corruption: refuse to start
    batches in a segment whose header is zeros   | corruption: refuse to start
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ingest.errors import CorruptionError, StoreFormatError
from ingest.store.log.log_format import (
    BATCH_HEADER_SIZE,
    BATCH_MAGIC,
    BLOCK_SIZE,
    BatchHeader,
    SegmentHeader,
    padded,
    parse_batch,
)
from ingest.store.log.log_writer import Segment, open_segment

READ_SIZE = 4 << 20


@dataclass
class ReadSegment:
    segment: Segment
    header: SegmentHeader | None  # None: never used


@dataclass
class Batch:
    """One whole batch. The views stay valid until the reader goes on to the next segment."""

    header: BatchHeader
    segment: Segment
    offset: int
    body: memoryview  # header, payload and padding

    @property
    def payload(self) -> memoryview:
        return self.body[BATCH_HEADER_SIZE : self.header.length]


@dataclass
class LogReader:
    """The segments of a log directory, and the batches that the packs may lack.

    `number` is the last whole batch's. `torn` says why the log ends there, once `batches` is exhausted.
    """

    directory: Path
    log_id: bytes
    segment_size: int
    segments: list[ReadSegment] = field(default_factory=list)
    number: int = 0
    use: int = 0
    synced_to: int = 0
    torn: str = ""

    def __post_init__(self) -> None:
        self._buffer = mmap.mmap(-1, self.segment_size)  # of the segment read last
        try:
            self._open()
            self._find_end()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        for path in sorted(self.directory.glob("[0-9][0-9][0-9][0-9].log")):
            fd = open_segment(path)
            segment = Segment(path, fd)
            entry = ReadSegment(segment, None)
            self.segments.append(entry)
            # A segment that is too short was being made when the power went: it is all zero.
            size = os.fstat(fd).st_size
            if size >= BLOCK_SIZE:
                entry.header = self._header(segment)
            if entry.header is not None and size != self.segment_size:
                raise CorruptionError(
                    f"{path}: a segment in use has {size} bytes instead of {self.segment_size}; `ingest fsck` tells more"
                )
        self.used = sorted(
            (s for s in self.segments if s.header), key=lambda s: s.header.use if s.header else 0
        )

    def _header(self, segment: Segment) -> SegmentHeader | None:
        with mmap.mmap(-1, BLOCK_SIZE) as block:
            os.preadv(segment.fd, [block], 0)
            try:
                header = SegmentHeader.parse(bytes(block))
            except (CorruptionError, StoreFormatError) as error:
                raise type(error)(f"{segment.path}: {error}; `ingest fsck` tells more") from None
            if header is None:
                os.preadv(segment.fd, [block], BLOCK_SIZE)
                # The header is durable before the first batch is written.
                if block[: len(BATCH_MAGIC)] == BATCH_MAGIC:
                    raise CorruptionError(
                        f"{segment.path}: the segment's header is gone, but batches follow; `ingest fsck` tells more"
                    )
        if header is not None and header.log_id != self.log_id:
            raise CorruptionError(f"{segment.path} belongs to another log ({header.log_id.hex()})")
        return header

    def _find_end(self) -> None:
        """Reads the last used segment for the last batch: it knows best how far the packs are synced."""
        for earlier, later in zip(self.used, self.used[1:], strict=False):
            assert earlier.header and later.header
            if earlier.header.use == later.header.use:
                raise CorruptionError(
                    f"{earlier.segment.path} and {later.segment.path} claim the same use of the log"
                )
        self.synced_to = max((s.header.synced_to for s in self.used if s.header), default=0)
        self.use = self.used[-1].header.use if self.used and self.used[-1].header else 0
        following: SegmentHeader | None = None
        for entry in reversed(self.used):
            assert entry.header
            self.number = max(self.number, entry.header.first_batch - 1)
            if following is not None and following.first_batch - 1 <= self.synced_to:
                # The packs hold all that came before the torn segment. The segments before it need not form a chain any
                # more: what was recycled is used again in any order.
                break
            last = None
            for batch in self._scan(entry, following):
                last = batch.header
            following = entry.header
            if last is not None:
                self.number = max(self.number, last.number)
                self.synced_to = max(self.synced_to, last.synced_to)
                break

    def batches(self) -> Iterator[Batch]:
        """Every batch behind `synced_to`, in order. Raises CorruptionError where one is missing."""
        expected = self.synced_to + 1
        for position, entry in enumerate(self.used):
            assert entry.header
            following = self.used[position + 1].header if position + 1 < len(self.used) else None
            if following is not None and following.first_batch <= expected:
                entry.segment.last_batch = following.first_batch - 1
                continue
            if entry.header.first_batch > expected:
                raise CorruptionError(
                    f"{entry.segment.path}: the log goes on with batch {entry.header.first_batch}, but {expected} "
                    "is missing and not in the packs; `ingest fsck` tells more"
                )
            for batch in self._scan(entry, following):
                entry.segment.last_batch = batch.header.number
                if batch.header.number == expected:
                    yield batch
                    expected += 1
            entry.segment.last_batch = max(entry.segment.last_batch, entry.header.first_batch - 1)
        assert expected == max(self.number, self.synced_to) + 1, "the log ends where it was found to end"

    def _scan(self, entry: ReadSegment, following: SegmentHeader | None) -> Iterator[Batch]:
        """The whole batches of one segment, in order; CorruptionError when a whole one follows a bad one.

        A batch that `following`, the next segment, has too was cut by an earlier recovery: that one counts.
        """
        header = entry.header
        assert header
        view = memoryview(self._buffer)
        self._read(entry.segment, view)
        offset, expected = BLOCK_SIZE, header.first_batch
        while offset < self.segment_size and (following is None or expected < following.first_batch):
            parsed = parse_batch(view[offset:], header.seed)
            if isinstance(parsed, str) or parsed.number != expected:
                self.torn = parsed if isinstance(parsed, str) else f"batch {parsed.number}, not {expected}"
                self._refuse_later(entry, view, offset, expected)
                return
            end = offset + padded(parsed.length)
            yield Batch(parsed, entry.segment, offset, view[offset:end])
            offset, expected = end, expected + 1

    def _read(self, segment: Segment, view: memoryview) -> None:
        for offset in range(0, self.segment_size, READ_SIZE):
            part = view[offset : offset + READ_SIZE]
            got = os.preadv(segment.fd, [part], offset)
            part.release()
            if got != min(READ_SIZE, self.segment_size - offset):
                raise CorruptionError(
                    f"{segment.path}: read {got} bytes at {offset}, fewer than its size promises"
                )

    def _refuse_later(self, entry: ReadSegment, view: memoryview, offset: int, expected: int) -> None:
        """A whole batch of this use behind a bad place means that the bad one had been synced: corruption."""
        assert entry.header
        for at in range(offset + BLOCK_SIZE, self.segment_size, BLOCK_SIZE):
            if self._buffer[at : at + len(BATCH_MAGIC)] != BATCH_MAGIC:
                continue
            parsed = parse_batch(view[at:], entry.header.seed)
            if isinstance(parsed, BatchHeader) and parsed.number > expected:
                raise CorruptionError(
                    f"{entry.segment.path}: batch {expected} at offset {offset} is bad ({self.torn}), but batch "
                    f"{parsed.number} at {at} is whole; `ingest fsck` tells more"
                )
        for later in self.used:
            assert later.header
            if later.header.use > entry.header.use and later.header.first_batch > expected:
                raise CorruptionError(
                    f"{entry.segment.path}: batch {expected} at offset {offset} is bad ({self.torn}), but "
                    f"{later.segment.path} goes on with batch {later.header.first_batch}; `ingest fsck` tells more"
                )

    def close(self) -> None:
        for entry in self.segments:
            os.close(entry.segment.fd)
