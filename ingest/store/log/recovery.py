"""Brings the packs up to the end of the log, after whatever ended the last server. `docs/architecture.md`, "Recovery".

Every batch that the packs may lack is done again, in order; doing a thing twice changes nothing. Nothing here relies on what
the page cache says of a pack: slots and headers are written anew, so that the next flush makes them durable
even if an earlier write-back of them failed. The log itself is read past the page cache.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ingest import limits, sharding, ticket
from ingest._hmac import verify
from ingest.runtime import _failpoints
from ingest.runtime.durable_files import sync_directory, write_all
from ingest.store.layouts._pack_table import LostHeaderError, PackTable
from ingest.store.layouts.layout import Table
from ingest.store.log.log_format import NOTE_SIZE, Note
from ingest.store.log.log_reader import Batch, LogReader
from ingest.store.log.log_writer import LogWriter, Segment

log = logging.getLogger(__name__)

HEADER_BITS = 168  # bytes of one bitmap


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
    replay = Replay(packs, put_keys, lambda: logged_puts(wal_dir, log_id, segment_size))
    batches = 0
    for batch in reader.batches():
        if batch.header.number == reader.number:
            _settle(batch, sync)  # before anything of it can be read: workers serve gets meanwhile
        replay.batch(batch)
        batches += 1
    packs.write_headers()
    in_use: list[Segment] = []
    free: list[Segment] = []
    used = [entry.segment for entry in reader.used]
    for segment in used:
        (in_use if segment.last_batch > reader.synced_to else free).append(segment)
    for entry in reader.segments:
        if entry.header is None:
            _keep_unused(entry.segment, segment_size, free)
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
    """Does batches again, on packs. A pack whose header is lost gets a new one from its slots first.

    `logged` gives the index of the ticket of every put that is to be done again, for that case.
    """

    def __init__(self, packs: Table, put_keys: list[bytes], logged: Callable[[], Iterator[int]]) -> None:
        self.packs = packs
        self.put_keys = put_keys
        self.logged = logged
        self.rebuilt: set[int] = set()
        self.frames = 0
        self.deletes = 0

    def batch(self, batch: Batch) -> None:
        while True:
            try:
                self._batch(batch)
                break
            except LostHeaderError as error:
                if error.pack in self.rebuilt:
                    raise  # the disk does not keep what we write
                self.rebuilt.add(error.pack)
                self._rebuild(error.pack)
        self.frames += batch.header.puts
        self.deletes += batch.header.deletes

    def _rebuild(self, pack: int) -> None:
        log.warning(
            "%s: the header is lost; rebuilding it from the slots and the log", sharding.pack_path(pack)
        )
        assert isinstance(self.packs, PackTable), "no other layout has headers"
        # Whatever the log holds a put of was free, and is not lost if the slot is: the put is still to be done again.
        free = {sharding.ticket_slot(index) for index in self.logged() if sharding.ticket_pack(index) == pack}
        self.packs.install_header(pack, rebuild_bits(self.packs, pack, self.put_keys, free))

    def _batch(self, batch: Batch) -> None:
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

    def _delete(self, frame: memoryview) -> None:
        index = ticket.index_from_wire(frame[: limits.TICKET_SIZE])
        data = limits.TICKET_SIZE + limits.CHECKSUM_SIZE
        count = int.from_bytes(frame[data : data + 8], "big")
        while count:
            some = min(ticket.run_max(index), count)
            self.packs.replay_delete(sharding.ticket_pack(index), sharding.ticket_slot(index), some)
            index += some
            count -= some


def logged_puts(wal_dir: Path, log_id: bytes, segment_size: int) -> Iterator[int]:
    """The index of the ticket of every put frame that the packs may lack."""
    reader = LogReader(wal_dir, log_id, segment_size)
    try:
        for batch in reader.batches():
            payload = batch.payload
            for offset in range(0, batch.header.puts * limits.FRAME_SIZE, limits.FRAME_SIZE):
                yield ticket.index_from_wire(payload[offset : offset + limits.TICKET_SIZE])
    finally:
        reader.close()


def rebuild_bits(packs: PackTable, pack: int, put_keys: list[bytes], free: set[int]) -> bytes:
    """The present and deleted bitmaps (168 bytes each) of a pack whose header is lost, from its slots.

    A slot with a valid frame is present, every other one counts as deleted, but for those in `free`,
    which the log has. A header that is all zeros was never written (the power went before it reached the disk), if
    the log has all that lies there: then what is not valid was never acknowledged, and stays free.
    """
    present, deleted = bytearray(HEADER_BITS), bytearray(HEADER_BITS)
    content = packs.read(pack)
    valid = set()
    for slot in range(sharding.pack_slots(pack)):
        offset = sharding.slot_offset(slot)
        frame = content[offset : offset + limits.FRAME_SIZE]
        if len(frame) == limits.FRAME_SIZE and _belongs(frame, pack, slot, put_keys):
            valid.add(slot)
            present[slot // 8] |= 1 << slot % 8
    never_written = not any(content[:512]) and valid <= free
    for slot in range(sharding.pack_slots(pack)):
        if slot not in valid and not never_written and slot not in free:
            deleted[slot // 8] |= 1 << slot % 8
    return bytes(present + deleted)


def _belongs(frame: bytes, pack: int, slot: int, put_keys: list[bytes]) -> bool:
    try:
        index = ticket.index_from_wire(frame[: limits.TICKET_SIZE])
    except ValueError:
        return False
    if sharding.ticket_pack(index) != pack or sharding.ticket_slot(index) != slot:
        return False
    return any(verify(key, frame) == b"\x01" for key in put_keys)
