"""What a log directory holds, whatever state it is in. `log_reader` says whether a server may start on it and refuses where
it may not; this reads on, and tells batch by batch what can still be had. Nothing here writes.

    what is found                                | verdict
    ---------------------------------------------|------------------------------------------------------------
    a bad batch at the end of the log            | a crash: it was never acknowledged
    a bad batch before a whole one               | corruption: its frames are looked for one by one
    a segment header that fails its digest, or   | corruption; what lies behind it likewise
    is all zero with batches behind it           |
    a batch that is missing                      | corruption, unless the packs hold it and its segment was used again
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ingest import sharding, ticket
from ingest._frame import indices
from ingest._hmac import verify
from ingest.errors import CorruptionError, StoreFormatError, TicketError
from ingest.frame import delete_count
from ingest.limits import FRAME_SIZE, LOG_SEGMENT_SIZE
from ingest.mac import SubKeys
from ingest.store.log.log_format import (
    BATCH_HEADER_SIZE,
    BATCH_MAGIC,
    BLOCK_SIZE,
    NOTE_SIZE,
    SEGMENT_HEADER,
    BatchHeader,
    Note,
    SegmentHeader,
    padded,
    parse_batch,
    parse_batch_head,
)
from ingest.store.log.log_reader import LogReader

SEGMENT_NAMES = "[0-9][0-9][0-9][0-9].log"


@dataclass
class LoggedPack:
    """What the whole batches of a log say of one pack. Bitmaps are integers: slot i is 1 << i.

    ``puts``: {slot: (segment, offset of the frame in it)}. ``noted``: slots whose frames lay in the pack, synced,
    before the log said so. ``deleted``. Those of ``pending_…`` come from batches that the packs may lack: recovery
    does them again.
    """

    puts: dict[int, tuple[int, int]] = field(default_factory=dict)
    noted: int = 0
    deleted: int = 0
    pending_puts: int = 0
    pending_noted: int = 0
    pending_deleted: int = 0
    named_before: bool = False  # by a batch that is not pending, whatever others say of the same slots

    @property
    def pending(self) -> int:
        return self.pending_puts | self.pending_noted | self.pending_deleted

    @property
    def settled(self) -> bool:
        """Whether it names anything that the pack must hold without a recovery."""
        put = sum(1 << slot for slot in self.puts)
        return self.named_before or bool((put | self.noted | self.deleted) & ~self.pending)


@dataclass
class LogFault:
    """Durable bytes of the log that are not valid. ``batches``: the numbers of those that are lost, None when not known."""

    path: Path
    detail: str
    offset: int = 0
    batches: tuple[int, int] | None = None


@dataclass
class SurveyedSegment:
    path: Path
    view: memoryview
    header: SegmentHeader | None = None
    damaged: bool = False
    batches: list[tuple[int, BatchHeader]] = field(default_factory=list)  # (offset, header)
    bad: list[tuple[int, int, int, str]] = field(default_factory=list)  # (from, to, batch expected, why)
    next_batch: int = 0  # the number behind the last whole one


class LogSurvey:
    """The batches of all segments of ``directory``, for as long as it is open (``close``).

    ``packs``: {pack id: LoggedPack}. ``faults``: empty when a server starts on this log. ``salvaged``: frames that
    were found by themselves where a batch is bad, authentic, in the order of the log; ``doomed``: tickets of frames
    there that are not (so that they were used, and what they held is lost). ``refusal``: what a server that starts
    here says.
    """

    def __init__(
        self,
        directory: Path,
        log_id: bytes,
        keys: Iterable[SubKeys] = (),
        segment_size: int = LOG_SEGMENT_SIZE,
    ) -> None:
        self.directory = directory
        self.log_id = log_id
        self.segment_size = segment_size
        self.segments: list[SurveyedSegment] = []
        self.packs: dict[int, LoggedPack] = {}
        self.faults: list[LogFault] = []
        self.salvaged: list[tuple[int, bytes]] = []  # (ticket index, frame)
        self.salvaged_deletes: list[tuple[int, int]] = []  # (first ticket index, count)
        self.doomed: list[int] = []
        self.synced_to = 0
        self.number = 0
        self.batches_pending = 0
        self.torn = ""
        self.refusal = ""
        self._keys = list(keys)
        self._maps: list[mmap.mmap] = []
        try:
            self._read_segments()
            self._chain()
            self._ask_reader()
        except BaseException:
            self.close()
            raise

    # --- segments

    def _read_segments(self) -> None:
        for path in sorted(self.directory.glob(SEGMENT_NAMES)):
            if path.is_symlink() or not path.is_file():
                continue  # named by whoever looks at the directory
            segment = SurveyedSegment(path, self._map(path))
            self.segments.append(segment)
            self._read_header(segment)
            if segment.header is not None:
                self._scan(segment, segment.header)
            elif segment.damaged:
                # The seed may be lost: what is authentic by itself is looked for.
                segment.bad.append((0, len(segment.view), 0, "its segment's header is bad"))

    def _map(self, path: Path) -> memoryview:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if os.fstat(fd).st_size == 0:
                return memoryview(b"")
            mapped = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
        finally:
            os.close(fd)
        self._maps.append(mapped)
        return memoryview(mapped)

    def _read_header(self, segment: SurveyedSegment) -> None:
        view, path = segment.view, segment.path
        if len(view) < BLOCK_SIZE:
            if bytes(view).strip(b"\0"):
                self._damage(segment, f"it has {len(view)} bytes, which are not zero and no header")
            return
        try:
            segment.header = SegmentHeader.parse(bytes(view[:BLOCK_SIZE]))
        except StoreFormatError as error:
            raise StoreFormatError(f"{path}: {error}") from None
        except CorruptionError as error:
            self._damage(segment, str(error))
            segment.header = self._guess_header(view)
            return
        if segment.header is None:
            at = _find_batch(view, BLOCK_SIZE)
            if at >= 0:
                self._damage(
                    segment, f"its header is zero, as if it had never been used, but a batch lies at {at}"
                )
        elif segment.header.log_id != self.log_id:
            self._damage(segment, f"it belongs to another log ({segment.header.log_id.hex()})")
            segment.header = None
        elif len(view) != self.segment_size:
            self._damage(segment, f"it has {len(view)} bytes instead of {self.segment_size}")

    def _guess_header(self, view: memoryview) -> SegmentHeader | None:
        """The header that a bad one was, if its seed still fits the batch behind it: only then anything of it is
        believed."""
        _, _, _, use, _, seed, _ = SEGMENT_HEADER.unpack_from(view)
        first = parse_batch(view[BLOCK_SIZE:], seed)
        if isinstance(first, str):
            return None
        return SegmentHeader(self.log_id, use, first.number, seed, 0)

    def _damage(self, segment: SurveyedSegment, detail: str) -> None:
        segment.damaged = True
        self.faults.append(LogFault(segment.path, detail))

    def _scan(self, segment: SurveyedSegment, header: SegmentHeader) -> None:
        """All whole batches of one use, also those behind bad ones."""
        view = segment.view
        offset, expected = BLOCK_SIZE, header.first_batch
        while offset < len(view):
            parsed = parse_batch(view[offset:], header.seed)
            if isinstance(parsed, BatchHeader) and parsed.number == expected:
                segment.batches.append((offset, parsed))
                offset += padded(parsed.length)
                expected += 1
                continue
            why = parsed if isinstance(parsed, str) else f"batch {parsed.number}, not {expected}"
            found = _next_batch(view, offset + BLOCK_SIZE, header.seed, expected)
            end = found[0] if found else len(view)
            segment.bad.append((offset, end, expected, why))
            if found is None:
                break
            offset, expected = found
        segment.next_batch = expected

    # --- the chain of the segments

    def _chain(self) -> None:
        """Which batches count, which are missing, which bad ones are the torn end of the log."""
        used = sorted(
            (s for s in self.segments if s.header is not None),
            key=lambda s: (s.header.first_batch, s.header.use) if s.header else (0, 0),
        )
        headers = [s.header for s in used if s.header]
        marks = [h.synced_to for h in headers] + [b.synced_to for s in used for _, b in s.batches]
        self.synced_to = max(marks, default=0)
        for position, segment in enumerate(used):
            following = headers[position + 1] if position + 1 < len(used) else None
            last = following is None
            self._judge(segment, headers[position], following)
            for offset, batch in segment.batches:
                # One that the next segment has too was cut by an earlier recovery: that one counts.
                if last or following is None or batch.number < following.first_batch:
                    self._take(segment, offset, batch)
        for segment in self.segments:
            if segment.damaged and segment.header is None:
                for start, end, _, _ in segment.bad:
                    self._salvage(segment.view, start, end)

    def _judge(
        self, segment: SurveyedSegment, header: SegmentHeader, following: SegmentHeader | None
    ) -> None:
        """The bad stretches of one segment: which of them are damage."""
        for start, end, expected, why in segment.bad:
            at_the_end = end == len(segment.view) and expected == segment.next_batch
            if not at_the_end:
                found = next(batch.number for offset, batch in segment.batches if offset == end)
                self._lost(
                    segment, start, end, (expected, found - 1), f"{why}, but batch {found} at {end} is whole"
                )
            elif segment.damaged:
                # Nobody can tell where it ended: what is authentic counts as stored.
                self._salvage(segment.view, start, end, header.seed)
            elif following is None:
                # Bytes of earlier uses lie behind every end: only a header of this use says that a batch was begun.
                head = parse_batch_head(segment.view[start:], header.seed)
                self.torn = why if isinstance(head, BatchHeader) else ""
            elif following.use == header.use + 1 and following.first_batch > expected:
                lost = (expected, following.first_batch - 1)
                self._lost(
                    segment, start, end, lost, f"{why}, but the next segment goes on with {lost[1] + 1}"
                )
        if following is not None and following.use == header.use:
            self.faults.append(
                LogFault(segment.path, f"another segment claims the same use {header.use} of the log")
            )

    def _lost(
        self, segment: SurveyedSegment, start: int, end: int, batches: tuple[int, int], why: str
    ) -> None:
        segment.damaged = True
        self.faults.append(LogFault(segment.path, why, start, batches))
        self._salvage(segment.view, start, end, segment.header.seed if segment.header else None)

    def _ask_reader(self) -> None:
        """The verdict of the code that a server starts with."""
        try:
            reader = LogReader(self.directory, self.log_id, self.segment_size)
            try:
                for _ in reader.batches():
                    pass
            finally:
                reader.close()
        except (CorruptionError, AssertionError) as error:
            self.refusal = str(error)
            if not self.faults:
                self.faults.append(LogFault(self.directory, self.refusal))

    # --- what the batches say

    def _take(self, segment: SurveyedSegment, offset: int, batch: BatchHeader) -> None:
        self.number = max(self.number, batch.number)
        pending = batch.number > self.synced_to
        self.batches_pending += pending and batch.length > BATCH_HEADER_SIZE
        at = offset + BATCH_HEADER_SIZE
        place = self.segments.index(segment)
        for i, index in enumerate(indices(segment.view[at : at + batch.puts * FRAME_SIZE])):
            if index >= 0:
                self._put(index, (place, at + i * FRAME_SIZE), pending)
        at += batch.puts * FRAME_SIZE
        for _ in range(batch.deletes):
            frame = segment.view[at : at + FRAME_SIZE]
            for pack, mask in _deleted_slots(frame):
                entry = self._of(pack)
                entry.deleted |= mask
                entry.pending_deleted |= mask if pending else 0
                entry.named_before |= not pending
            at += FRAME_SIZE
        for _ in range(batch.notes):
            self._note(segment.view[at : at + NOTE_SIZE], pending)
            at += NOTE_SIZE

    def _put(self, index: int, place: tuple[int, int], pending: bool) -> None:
        entry = self._of(sharding.ticket_pack(index))
        slot = sharding.ticket_slot(index)
        entry.puts[slot] = place
        entry.named_before |= not pending
        if pending:
            entry.pending_puts |= 1 << slot

    def _note(self, raw: memoryview, pending: bool) -> None:
        try:
            note = Note.parse(raw)
            entry = self._of(sharding.pack_id(note.prefix))
        except (TicketError, UnicodeDecodeError):
            return
        mask = ((1 << note.count) - 1) << note.slot
        entry.noted |= mask
        entry.named_before |= not pending
        entry.pending_noted |= mask if pending else 0

    def _of(self, pack: int) -> LoggedPack:
        entry = self.packs.get(pack)
        if entry is None:
            entry = self.packs[pack] = LoggedPack()
        return entry

    def frame(self, place: tuple[int, int]) -> bytes:
        """The 1474 bytes at a place of ``LoggedPack.puts``."""
        segment, offset = place
        return bytes(self.segments[segment].view[offset : offset + FRAME_SIZE])

    # --- what is authentic without its batch

    def _salvage(self, view: memoryview, start: int, end: int, seed: int | None = None) -> None:
        """Frames in a bad stretch, each judged by its own checksum; batches start at multiples of a block."""
        blocks = set(_batch_starts(view, start, end))
        if start >= BLOCK_SIZE:
            blocks.add(start)  # one was expected here, whatever it begins with
        for block in sorted(blocks):
            at = block + BATCH_HEADER_SIZE
            header = parse_batch_head(view[block:end], seed) if seed is not None else ""
            if isinstance(header, BatchHeader):
                limit = at + (header.puts + header.deletes) * FRAME_SIZE
            else:
                limit = min((later for later in blocks if later > block), default=end)
            while at + FRAME_SIZE <= limit:
                # Without a header that counts them, what fails its checksum need not be a frame at all.
                self._salvage_frame(bytes(view[at : at + FRAME_SIZE]), isinstance(header, BatchHeader))
                at += FRAME_SIZE

    def _salvage_frame(self, frame: bytes, is_frame: bool) -> None:
        (index,) = indices(frame)
        if index < 0:
            return
        if any(verify(keys.put, frame) == b"\1" for keys in self._keys):
            self.salvaged.append((index, frame))
        elif any(verify(keys.delete, frame) == b"\1" for keys in self._keys):
            try:
                self.salvaged_deletes.append((index, delete_count(frame[16:], ticket.format(index))))
            except TicketError:
                pass
        elif is_frame:
            self.doomed.append(index)

    def close(self) -> None:
        for segment in self.segments:
            segment.view.release()
        for mapped in self._maps:
            mapped.close()
        self._maps.clear()


def segment_log_ids(directory: Path) -> list[bytes]:
    """The log ids that the whole segment headers in a directory name, oldest file name first."""
    found = []
    for path in sorted(directory.glob(SEGMENT_NAMES)):
        if path.is_symlink() or not path.is_file():
            continue
        with path.open("rb") as file:
            block = file.read(BLOCK_SIZE)
        try:
            header = SegmentHeader.parse(block)
        except (CorruptionError, StoreFormatError):
            continue
        if header is not None:
            found.append(header.log_id)
    return found


def _deleted_slots(frame: memoryview) -> Iterator[tuple[int, int]]:
    """(pack, mask of slots) that a delete frame names."""
    (index,) = indices(frame)
    count = int.from_bytes(frame[16:24], "big")
    if index < 0 or count < 1 or count > ticket.COUNT - index:
        return
    while count:
        some = min(ticket.run_max(index), count)
        yield sharding.ticket_pack(index), ((1 << some) - 1) << sharding.ticket_slot(index)
        index += some
        count -= some


def _batch_starts(view: memoryview, start: int, end: int) -> Iterator[int]:
    """Blocks of a stretch that begin with the magic of a batch."""
    first = max(start, BLOCK_SIZE)
    for block in range(-(-first // BLOCK_SIZE) * BLOCK_SIZE, end, BLOCK_SIZE):
        if view[block : block + len(BATCH_MAGIC)] == BATCH_MAGIC:
            yield block


def _find_batch(view: memoryview, start: int) -> int:
    return next(_batch_starts(view, start, len(view)), -1)


def _next_batch(view: memoryview, start: int, seed: int, after: int) -> tuple[int, int] | None:
    """(offset, number) of the next whole batch with a number over ``after``."""
    for at in range(start, len(view), BLOCK_SIZE):
        if view[at : at + len(BATCH_MAGIC)] == BATCH_MAGIC:
            parsed = parse_batch(view[at:], seed)
            if isinstance(parsed, BatchHeader) and parsed.number > after:
                return at, parsed.number
    return None
