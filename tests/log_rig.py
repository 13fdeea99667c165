"""Small logs on files: a few verbs, so that a case of the log's tests is a few lines."""

from __future__ import annotations

import mmap
from dataclasses import dataclass, field
from pathlib import Path

from ingest import ticket
from ingest.limits import FRAME_SIZE
from ingest.store.log.log_format import BATCH_HEADER_SIZE, NOTE_SIZE, BatchHeader
from ingest.store.log.log_reader import LogReader
from ingest.store.log.log_writer import LogWriter

LOG_ID = bytes(range(16))
SEGMENT_SIZE = 64 << 10  # bytes: 15 batches of two frames


def put(index: int, fill: int = 0) -> bytes:
    """A frame's bytes; nothing looks at its checksum on the way through the log."""
    return ticket.index_to_wire(index) + bytes([fill % 251]) * (FRAME_SIZE - 8)


def puts(number: int, count: int = 2) -> bytes:
    return b"".join(put(36 + number * 100 + i, number) for i in range(count))


def buffer_of(payload: bytes) -> memoryview:
    size = -(-(BATCH_HEADER_SIZE + len(payload)) // 4096) * 4096
    view = memoryview(mmap.mmap(-1, size))
    view[BATCH_HEADER_SIZE : BATCH_HEADER_SIZE + len(payload)] = payload
    return view


def append(log: LogWriter, payload: bytes, deletes: int = 0, notes: int = 0) -> int:
    count = (len(payload) - notes * NOTE_SIZE) // FRAME_SIZE - deletes
    assert BatchHeader.payload_size(count, deletes, notes) == len(payload)
    if not log.has_room(BATCH_HEADER_SIZE + len(payload)):
        log.make_spare()
    return log.append(buffer_of(payload), count, deletes, notes)


def new_log(directory: Path, segments: int = 4, **options: object) -> LogWriter:
    directory.mkdir(exist_ok=True)
    return LogWriter(
        directory, LOG_ID, size_max=segments * SEGMENT_SIZE, segment_size=SEGMENT_SIZE, **options
    )  # type: ignore[arg-type]


@dataclass
class Read:
    """What a reader found. `batches`: {number: payload} of what is to be done again."""

    number: int
    synced_to: int
    use: int
    torn: str
    batches: dict[int, bytes] = field(default_factory=dict)


def read_log(directory: Path, log_id: bytes = LOG_ID) -> Read:
    reader = LogReader(directory, log_id, SEGMENT_SIZE)
    try:
        batches = {batch.header.number: bytes(batch.payload) for batch in reader.batches()}
        return Read(reader.number, reader.synced_to, reader.use, reader.torn, batches)
    finally:
        reader.close()
