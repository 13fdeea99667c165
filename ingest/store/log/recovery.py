"""Brings the packs up to the end of the log, after whatever ended the last server. `docs/architecture.md`, "Recovery".

Every batch that the packs may lack is done again, in order; doing a thing twice changes nothing. Nothing here relies on what
the page cache says of a pack: slots and headers are written anew, so that the next flush makes them durable
even if an earlier write-back of them failed. The log itself is read past the page cache, and once, whatever is lost.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ingest import limits, sharding, ticket
from ingest.runtime import _failpoints
from ingest.runtime.durable_files import sync_directory, write_all
from ingest.store.layouts._pack_table import PackTable
from ingest.store.layouts.layout import Table
from ingest.store.log.log_format import NOTE_SIZE, Note
from ingest.store.log.log_reader import Batch, LogReader
from ingest.store.log.log_writer import LogWriter, Segment
from ingest.store.log.lost_headers import LostHeaders


@dataclass
class Recovered:
    """What recovery did. `writer` is the log, ready for the next batch."""

    writer: LogWriter
    batches: int
    frames: int
    deletes: int
    torn: str


def recover(
    packs: Table,
    wal_dir: Path,
    log_id: bytes,
    put_keys: list[bytes],
    *,
    log_size: int = limits.LOG_SIZE_DEFAULT,
    segment_size: int = limits.LOG_SEGMENT_SIZE,
    sync: bool = True,
) -> Recovered:
    """Reads the log of `wal_dir` and does again what the packs may lack.

    Raises CorruptionError where durable batches are missing or bad, OSError from the disk.
    """
    reader = LogReader(wal_dir, log_id, segment_size)
    replay = Replay(packs, put_keys, sync)
    batches = 0
    for batch in reader.batches():
        if batch.header.number == reader.number:
            _settle(batch, sync)  # before anything of it can be read: workers serve gets meanwhile
        replay.batch(batch)
        batches += 1
    replay.end()
    in_use: list[Segment] = []
    free: list[Segment] = []
    used = [entry.segment for entry in reader.used]
    for segment in used:
        (in_use if segment.last_batch > reader.synced_to else free).append(segment)
    for entry in reader.segments:
        if entry.header is None:
            _keep_unused(entry.segment, segment_size, free)
    packs.give_back(limits.COMMITTER_DESCRIPTORS)  # the next steps open directories
    if sync:
        sync_directory(wal_dir)  # who made a segment may have died before its name was on the disk
    number = max(reader.number, reader.synced_to)
    writer = LogWriter(
        wal_dir,
        log_id,
        size_max=log_size,
        sync=sync,
        in_use=in_use,
        free=free,
        number=number,
        use=reader.use,
        synced_to=min(reader.synced_to, number),
        segment_size=segment_size,
        opening=packs.opening,
    )
    return Recovered(writer, batches, replay.frames, replay.deletes, reader.torn if batches else "")


def _settle(batch: Batch, sync: bool) -> None:
    """Writes the last whole batch once more and syncs it: if its sync had failed, only the drive's cache may have it."""
    if sync:
        write_all(batch.segment.fd, batch.body, batch.offset)
        _failpoints.passed(_failpoints.LOG_WRITTEN, _failpoints.RECOVERY)
        os.fdatasync(batch.segment.fd)
        _failpoints.passed(_failpoints.LOG_SYNCED, _failpoints.RECOVERY)


def _keep_unused(segment: Segment, segment_size: int, free: list[Segment]) -> None:
    """A segment that was never used is free; one that is not whole is dropped, and made again when it is needed."""
    if os.fstat(segment.fd).st_size == segment_size:
        free.append(segment)
    else:
        os.close(segment.fd)
        os.unlink(segment.path)


class Replay:
    """Does batches again, on packs. What is for a pack whose header is lost goes to `LostHeaders`, until the end."""

    def __init__(self, packs: Table, put_keys: list[bytes], sync: bool) -> None:
        self.packs = packs
        self.sync = sync
        self.lost: LostHeaders | None = None
        if isinstance(packs, PackTable):  # no other layout has headers
            self.lost = packs.lost = LostHeaders(packs, put_keys)
        self.frames = 0
        self.deletes = 0

    def batch(self, batch: Batch) -> None:
        header, payload = batch.header, batch.payload
        size = limits.FRAME_SIZE
        puts = header.puts * size
        frames = puts + header.deletes * size
        self.packs.replay_puts(payload[:puts])
        for offset in range(frames, len(payload), NOTE_SIZE):
            note = Note.parse(payload[offset : offset + NOTE_SIZE])
            self.packs.replay_note(sharding.pack_id(note.prefix), note.slot, note.count)
        for offset in range(puts, frames, size):
            self._delete(payload[offset : offset + size])
        self.frames += header.puts
        self.deletes += header.deletes

    def end(self) -> None:
        """Behind the last batch: the packs get the headers that are owed, and lost ones are made anew."""
        self.packs.write_headers()
        if self.lost is not None:
            assert isinstance(self.packs, PackTable)
            self.packs.lost = None
            self.lost.make(self.sync)

    def _delete(self, frame: memoryview) -> None:
        index = ticket.index_from_wire(frame[: limits.TICKET_SIZE])
        data = limits.TICKET_SIZE + limits.CHECKSUM_SIZE
        count = int.from_bytes(frame[data : data + 8], "big")
        while count:
            some = min(ticket.run_max(index), count)
            self.packs.replay_delete(sharding.ticket_pack(index), sharding.ticket_slot(index), some)
            index += some
            count -= some
