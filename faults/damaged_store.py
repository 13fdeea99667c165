"""Small stores that a crash could have left, and what has to be in them: the templates that `faults.damage`
damages copies of.

Each is written by the engine's own code (log writer, packs, recovery), with segments small enough to be copied ten
thousand times.
"""

from __future__ import annotations

import mmap
import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ingest import limits, mac, sharding, ticket
from ingest._hmac import sign
from ingest.frame import delete_data
from ingest.limits import DATA_SIZE, FRAME_SIZE, PACK_SLOTS
from ingest.mac import KeyRing, SubKeys
from ingest.runtime.key_file import read_keys
from ingest.status import Status
from ingest.store.data_dir import META
from ingest.store.layouts._slot_reader import SlotReader
from ingest.store.layouts.layout import Table, make_reader, make_table
from ingest.store.log.log_format import BATCH_HEADER_SIZE, NOTE_SIZE, BatchHeader, Note, padded
from ingest.store.log.log_writer import LogWriter
from ingest.store.log.recovery import recover
from ingest.store.store import Store
from ingest.store.store_json import read_store_json

SMALL_SEGMENT = 128 << 10  # bytes
SEGMENTS = 4
PACKS = (0, 5, 900)  # the root pack, one of a single character, one of two
LONG_PACK = sharding.pack_id("AABBC")  # its tickets have seven characters
NEW_PACKS = (LONG_PACK + 1, 1, 40_000)  # that only batches name which the packs lack
SPAN = 150  # slots of a pack that are used


@dataclass
class Batch:
    """One batch of the log: its number, and the place of each frame in the segment's file. ``end``: behind its padding."""

    number: int
    segment: Path
    offset: int
    length: int
    frames: dict[int, list[int]] = field(
        default_factory=dict
    )  # place: indices of the tickets that it is about


@dataclass
class Template:
    """A store at rest. ``truth``: {index: data, or None for deleted}; ``former``: what those that are deleted held.
    ``settled``: the number of the last batch that the packs hold durably.

    ``stale``: {pack path: an older content}, each a state that the pack really had, before batches that the log still has.
    """

    name: str
    directory: Path
    layout: str
    segment_size: int
    truth: dict[int, bytes | None]
    former: dict[int, bytes]
    batches: list[Batch]
    settled: int
    stale: dict[str, bytes]

    def copy(self, target: Path) -> None:
        shutil.copytree(self.directory, target, symlinks=True, copy_function=copy_file)


def copy_file(source: str, target: str) -> str:
    """As shutil.copy2, which also takes the extended attributes along."""
    return str(shutil.copy2(source, target, follow_symlinks=False))


def data_of(random_: random.Random) -> bytes:
    """Bytes of a chunk: some are short and padded, as those of real clients."""
    size = random_.choice((DATA_SIZE, DATA_SIZE, random_.randrange(DATA_SIZE)))
    return random_.randbytes(size).ljust(DATA_SIZE, b"\0")


class Builder:
    """Writes a store as a committer does, batch by batch."""

    def __init__(self, directory: Path, layout: str, random_: random.Random, segment_size: int) -> None:
        self.directory, self.layout, self.random = directory, layout, random_
        meta = directory / META
        self.store = Store.open(directory, layout=layout)
        key = random_.randbytes(mac.SHARED_KEY_SIZE)
        fd = os.open(meta / "key", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(fd, mac.format_keys([key]).encode())
        os.close(fd)
        self.ring = KeyRing([key])
        self.store.check_keys(self.ring)
        self.keys: SubKeys = self.ring.signing
        self.packs = open_table(self.store)
        self.segment_size = segment_size
        self.log = LogWriter(
            self.store.wal_dir, self.store.log_id, size_max=SEGMENTS * segment_size, segment_size=segment_size
        )
        self.truth: dict[int, bytes | None] = {}
        self.former: dict[int, bytes] = {}
        self.batches: list[Batch] = []
        self.stale: dict[str, bytes] = {}

    def close(self) -> None:
        self.log.close()
        self.packs.close()
        self.store.close()

    def frames(self, indices: list[int]) -> bytes:
        raw = bytearray()
        for index in indices:
            data = data_of(self.random)
            self.truth[index] = data
            raw += ticket.index_to_wire(index) + bytes(8) + data
        sign(self.keys.put, raw)
        return bytes(raw)

    def put(self, indices: list[int], apply: bool = True) -> None:
        """One batch of puts; into the packs too, if the power does not go before."""
        indices = sorted(indices)
        raw = self.frames(indices)
        self.append(raw, [[index] for index in indices])
        if apply:
            self.packs.replay_puts(raw)
            self.packs.write_headers()

    def note(self, first: int, count: int) -> None:
        """Frames that went into their pack past the log; in layout tree all go through it."""
        if self.layout == "tree":
            self.put(list(range(first, first + count)))
            return
        raw = self.frames(list(range(first, first + count)))
        self.packs.replay_puts(raw)
        self.packs.write_headers()
        pack = sharding.ticket_pack(first)
        note = Note(sharding.pack_prefix(pack), sharding.ticket_slot(first), count)
        self.append(note.serialize(), [], notes=1)

    def delete(self, first: int, count: int, apply: bool = True) -> None:
        frame = bytearray(ticket.index_to_wire(first) + bytes(8) + delete_data(count))
        sign(self.keys.delete, frame)
        self.append(bytes(frame), [list(range(first, first + count))], deletes=1)
        for index in range(first, first + count):
            held = self.truth.get(index)
            if held is not None:
                self.former[index] = held
            self.truth[index] = None
        if apply:
            self.packs.replay_delete(sharding.ticket_pack(first), sharding.ticket_slot(first), count)

    def put_and_delete(self, index: int, first: int, count: int) -> None:
        """One batch of a put and of a delete of tickets that were never stored; the power goes before they are applied."""
        frame = bytearray(ticket.index_to_wire(first) + bytes(8) + delete_data(count))
        sign(self.keys.delete, frame)
        deleted = list(range(first, first + count))
        self.append(self.frames([index]) + frame, [[index], deleted], deletes=1)
        self.truth.update(dict.fromkeys(deleted))

    def append(self, payload: bytes, about: list[list[int]], deletes: int = 0, notes: int = 0) -> None:
        puts = (len(payload) - notes * NOTE_SIZE) // FRAME_SIZE - deletes
        length = BATCH_HEADER_SIZE + BatchHeader.payload_size(puts, deletes, notes)
        view = memoryview(mmap.mmap(-1, padded(length)))  # page-aligned, as O_DIRECT wants it
        view[BATCH_HEADER_SIZE:length] = payload
        if self.log.needs_spare:
            self.log.make_spare()
        number = self.log.append(view, puts, deletes, notes)
        current = self.log._current
        assert current is not None
        offset = self.log._offset - padded(length)
        batch = Batch(number, current.path.relative_to(self.directory), offset, length)
        for i, indices in enumerate(about):
            batch.frames[offset + BATCH_HEADER_SIZE + i * FRAME_SIZE] = indices
        self.batches.append(batch)

    def settle(self) -> None:
        """The packs are synced: the log says so from its next batch on."""
        self.log.recycle(self.log.number)

    def remember_stale(self) -> None:
        """What the files are now, which later batches of the log make older than it."""
        if self.layout == "pack":
            for path in self.directory.rglob("obj"):
                self.stale[str(path.relative_to(self.directory))] = path.read_bytes()


def open_table(store: Store) -> Table:
    return make_table(store, 64)


def build(directory: Path, layout: str, end: str, seed: int, segment_size: int = SMALL_SEGMENT) -> Template:
    """A store that ends with ``end``: "clean" (stopped), "killed" (the packs have all, and do not know it), "cut"
    (the power went: the packs lack the end of the log), "begun" (likewise, and some of the packs have no file yet)."""
    random_ = random.Random(f"{seed} {layout} {end} {segment_size}")
    builder = Builder(directory, layout, random_, segment_size)
    try:
        for pack in PACKS:  # what was there for long: the log has forgotten it
            builder.put([sharding.slot_ticket(pack, slot) for slot in random_.sample(range(SPAN), 12)])
        _delete_some(builder, 3)
        builder.settle()
        for _ in range(SEGMENTS * 3):  # until the segments went round
            _put_some(builder, random_.randrange(4, 16))
            builder.settle()
        builder.note(sharding.slot_ticket(PACKS[1], SPAN), 9)
        builder.remember_stale()
        for _ in range(3):
            _put_some(builder, random_.randrange(4, 16))
        _delete_some(builder, 2)
        builder.settle()
        builder.append(b"", [])
        settled = builder.log.synced_to
        if end != "clean":
            for _ in range(3):
                _put_some(builder, random_.randrange(4, 12), apply=end == "killed")
            _delete_some(builder, 2, apply=end == "killed")
            if end == "begun":
                _begin_packs(builder)
            _put_some(builder, 4, apply=end == "killed")
    finally:
        builder.close()
    live = _readable(builder.batches)
    return Template(
        f"{layout} {end}",
        directory,
        layout,
        segment_size,
        builder.truth,
        builder.former,
        live,
        settled,
        builder.stale,
    )


def _readable(batches: list[Batch]) -> list[Batch]:
    """Those whose segments were not used again since."""
    last: dict[Path, list[Batch]] = {}
    for batch in batches:
        if batch.offset == 4096:
            last[batch.segment] = []
        last[batch.segment].append(batch)
    return sorted((batch for some in last.values() for batch in some), key=lambda batch: batch.number)


def _put_some(builder: Builder, count: int, apply: bool = True) -> None:
    free = [
        sharding.slot_ticket(pack, slot)
        for pack in PACKS
        for slot in range(SPAN)
        if sharding.slot_ticket(pack, slot) not in builder.truth
    ]
    if len(free) >= count:
        builder.put(builder.random.sample(free, count), apply)


def _begin_packs(builder: Builder) -> None:
    """A pack that has its file, and batches that each delete in a pack that has none, and that no other batch names."""
    builder.put([sharding.slot_ticket(LONG_PACK, slot) for slot in (2, 9)])
    for i, pack in enumerate(NEW_PACKS):
        put = sharding.slot_ticket(LONG_PACK, 20 + i)
        builder.put_and_delete(put, sharding.slot_ticket(pack, builder.random.randrange(SPAN)), 2)


def _delete_some(builder: Builder, count: int, apply: bool = True) -> None:
    for i in range(count):
        pack = PACKS[(builder.log.number + i) % len(PACKS)]
        first = sharding.slot_ticket(pack, builder.random.randrange(SPAN - 4))
        builder.delete(first, builder.random.randrange(1, 4), apply)


# --- what a server does with such a store


@contextmanager
def started(directory: Path, segment_size: int) -> Iterator[SlotReader]:
    """What a server does before it serves, and what it then reads with. Raises what would keep it from starting."""
    store = Store.open(directory, layout=stored_layout(directory))
    try:
        ring = KeyRing(read_keys(directory / META / "key", data_dir=directory))
        store.check_keys(ring)
        table = open_table(store)
        try:
            recovered = recover(
                table,
                store.wal_dir,
                store.log_id,
                [keys.put for keys in ring.all],
                log_size=SEGMENTS * segment_size,
                segment_size=segment_size,
            )
            recovered.writer.close()
        finally:
            table.close()
        reader = make_reader(store, ring.all)
        yield reader
        reader.close()
    finally:
        store.close()


def stored_layout(directory: Path) -> str:
    return str(read_store_json(directory / META / "store.json")["layout"])


def tickets() -> list[tuple[int, int]]:
    """(first, count) of the ranges that hold all that a template ever has, and more."""
    packs = (*PACKS, LONG_PACK, *NEW_PACKS)
    return [(sharding.slot_ticket(pack, 0), SPAN + 12) for pack in packs] + [(0, 36)]


def read_all(reader: SlotReader, keys: SubKeys) -> dict[int, tuple[Status, bytes]]:
    """Status and data of each ticket, as a client that checks gets them: what fails twice is ERROR."""
    found: dict[int, tuple[Status, bytes]] = {}
    for first, count in tickets():
        for start, status, n, frames in reader.read_range(first, count):
            for i in range(n):
                frame = frames[i * FRAME_SIZE : (i + 1) * FRAME_SIZE]
                found[start + i] = checked(start + i, status, frame, keys)
    return found


def checked(index: int, status: Status, frame: bytes, keys: SubKeys) -> tuple[Status, bytes]:
    if status is not Status.SAVED:
        return status, b""
    good = frame[:8] == ticket.index_to_wire(index) and mac.frame_ok(keys.put, frame)
    return (status, frame[16:]) if good else (Status.ERROR, b"")


assert limits.PACK_SLOTS == PACK_SLOTS
