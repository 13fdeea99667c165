"""Power cuts, short; and that the rig which makes them loses neither too much nor too little."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from faults import block_recorder, power_cut
from faults.ack_history import (
    DELETE,
    GET,
    NEVER,
    NO_VERSION,
    PUT,
    Contents,
    Event,
    Expected,
    History,
    Promise,
    expected,
)
from faults.block_recorder import BLOCK, SECTORS, Overlay, RecordedDisk, Recorder
from faults.power_loss import (
    ENTRY,
    FLUSH,
    SECTOR,
    WHOLE_BELOW,
    Entry,
    Piece,
    durable_count,
    parse_record,
    survivors,
)
from faults.stacked import STACKED
from ingest.status import Status

SAVED, MISSING, DELETED, CONFLICT = Status.SAVED, Status.MISSING, Status.DELETED, Status.CONFLICT
SIZE = 16 * BLOCK

writes = st.tuples(st.integers(0, 30), st.integers(1, 12)).map(lambda w: (w[0] * SECTOR, w[1] * SECTOR))
sequences = st.lists(st.one_of(st.just((FLUSH, 0)), writes), max_size=20)


def entries_of(sequence: Sequence[tuple[int, int]]) -> list[Entry]:
    """Entries whose data lie as in a record: a head before each."""
    entries, position = [], 0
    for offset, length in sequence:
        position += ENTRY.size
        entries.append(Entry(offset, length, position))
        position += length
    return entries


# --- what a cut leaves


@given(sequences, st.data(), st.integers(0, 1 << 30), st.sampled_from(sorted(SECTORS.values())))
def test_what_was_flushed_is_never_at_stake(
    sequence: list[tuple[int, int]], data: st.DataObject, seed: int, sector: int
) -> None:
    entries = entries_of(sequence)
    cut = data.draw(st.integers(0, len(entries)))
    durable = durable_count(entries, cut)
    assert durable <= cut
    assert all(entry.offset != FLUSH for entry in entries[durable:cut])
    assert durable == 0 or entries[durable - 1].offset == FLUSH
    for piece in survivors(entries, cut, random.Random(seed), sector):
        end = piece.offset + piece.length
        assert any(
            entry.position <= piece.position
            and piece.position + piece.length <= entry.position + entry.length
            and piece.offset - entry.offset == piece.position - entry.position
            and (piece.offset == entry.offset or piece.offset % sector == 0)
            and (end == entry.offset + entry.length or end % sector == 0)
            for entry in entries[durable:cut]
        ), "a piece is whole sectors of one write that was not flushed, at their place"


def test_a_cut_loses_keeps_tears_and_reorders() -> None:
    entries = entries_of(
        [(WHOLE_BELOW, BLOCK), (FLUSH, 0), (2 * BLOCK, BLOCK), (2 * BLOCK, BLOCK), (0, BLOCK)]
    )
    left = [survivors(entries, 5, random.Random(seed)) for seed in range(300)]
    first, second, superblock = (Piece(*entries[i]) for i in (2, 3, 4))
    assert [] in left
    assert [first, second, superblock] in left
    assert any(second in pieces and first in pieces[pieces.index(second) :] for pieces in left), (
        "out of order"
    )
    assert any(0 < piece.length < BLOCK for pieces in left for piece in pieces), "torn"
    assert all(piece == superblock for pieces in left for piece in pieces if piece.offset < WHOLE_BELOW)


def test_a_disk_with_larger_sectors_tears_no_block() -> None:
    entries = entries_of([(2 * BLOCK - SECTOR, 3 * BLOCK)])
    pieces = [piece for seed in range(300) for piece in survivors(entries, 1, random.Random(seed), BLOCK)]
    ends = {piece.offset for piece in pieces} | {piece.offset + piece.length for piece in pieces}
    start = entries[0].offset
    assert ends == {start, *range(2 * BLOCK, 5 * BLOCK, BLOCK), start + 3 * BLOCK}


def test_a_record_that_ends_within_an_entry_is_refused(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(bytes(SIZE))
    recorder = Recorder(tmp_path / "image", tmp_path)
    recorder.write(SECTOR, b"a" * SECTOR)
    recorder.flush()
    recorder.write(BLOCK, b"b" * BLOCK)
    record = recorder.record_path.read_bytes()
    assert recorder.count[0] == recorder.entries == 3
    entries = parse_record(record)
    assert [(entry.offset, entry.length) for entry in entries] == [
        (SECTOR, SECTOR),
        (FLUSH, 0),
        (BLOCK, BLOCK),
    ]
    assert record[entries[2].position :] == b"b" * BLOCK
    for size in (5, len(record) - 1):
        with pytest.raises(ValueError, match="ends within"):
            parse_record(record[:size])
    recorder.reset()
    assert recorder.record_path.read_bytes() == b""
    assert recorder.count[0] == 0
    assert recorder.disk.read(0, SIZE) == bytes(SIZE)


def test_the_count_is_never_seen_half_changed(tmp_path: Path) -> None:
    """An answer that is noted with too low a count would be promised in cuts that came before it."""
    (tmp_path / "image").write_bytes(bytes(SIZE))
    disk = RecordedDisk(tmp_path / "image", tmp_path / "disk")
    recorder = Recorder(tmp_path / "image", disk.directory)
    counts = ((1 << 56) - 1, 1 << 56)  # no byte is the same in both
    recorder._counted(counts[0])
    pid = os.fork()
    if pid == 0:
        try:
            block_recorder.end_with_parent()
            while True:
                for count in counts:
                    recorder._counted(count)
        finally:
            os._exit(1)
    try:
        seen = {disk.count for _ in range(200_000)}
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    assert seen <= set(counts)


@given(st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(1, 3 * BLOCK)), max_size=12))
def test_the_overlay_reads_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, parts: list[tuple[int, int]]
) -> None:
    directory = tmp_path_factory.mktemp("overlay")
    base = bytes(range(256)) * (SIZE // 256)
    (directory / "image").write_bytes(base)
    overlay, model = Overlay(directory / "image", directory / "over"), bytearray(base)
    for number, (offset, length) in enumerate(parts):
        data = bytes([number]) * min(length, SIZE - offset)
        overlay.write(offset, data)
        model[offset : offset + len(data)] = data
        start = max(0, offset - 1000)
        assert overlay.read(start, 2 * BLOCK) == model[start : start + 2 * BLOCK]
    assert overlay.read(0, SIZE + BLOCK) == model
    assert (directory / "image").read_bytes() == base
    overlay.reset()
    assert overlay.read(0, SIZE) == base
    os.close(overlay.fd)
    os.close(overlay.base)


# --- what a history promises


@pytest.mark.parametrize(
    ("events", "statuses", "versions"),
    [
        ([Event(PUT, 0, 10, 20, SAVED)], {SAVED}, {0}),
        ([Event(PUT, 0, 10, 31, SAVED)], {SAVED, MISSING}, {0}),
        ([Event(PUT, 0, 10, NEVER, None)], {SAVED, MISSING}, {0}),
        ([Event(PUT, 0, 30, 40, SAVED)], {MISSING}, set()),
        ([Event(PUT, 0, 10, 20, SAVED), Event(PUT, 1, 10, 20, CONFLICT)], {SAVED}, {0}),
        ([Event(PUT, 0, 10, NEVER, None), Event(PUT, 1, 10, 20, CONFLICT)], {SAVED}, {0}),
        ([Event(PUT, 0, 10, 31, SAVED), Event(PUT, 1, 10, 31, CONFLICT)], {SAVED, MISSING}, {0}),
        ([Event(PUT, 0, 10, NEVER, None), Event(PUT, 1, 10, NEVER, None)], {SAVED, MISSING}, {0, 1}),
        ([Event(PUT, 0, 1, 2, SAVED), Event(DELETE, 0, 10, 20, DELETED)], {DELETED}, set()),
        ([Event(PUT, 0, 1, 2, SAVED), Event(DELETE, 0, 10, 31, DELETED)], {SAVED, DELETED}, {0}),
        ([Event(PUT, 0, 1, 2, SAVED), Event(DELETE, 0, 30, 31, DELETED)], {SAVED}, {0}),
        ([Event(DELETE, 0, 10, NEVER, None)], {MISSING, DELETED}, set()),
        ([Event(PUT, 0, 10, NEVER, None), Event(GET, 0, 12, 20, SAVED)], {SAVED}, {0}),
        ([Event(PUT, 0, 10, 20, Status.BUSY)], {MISSING}, set()),
        ([Event(PUT, 0, 10, 20, Status.ERROR)], {SAVED, MISSING}, {0}),
        ([Event(PUT, 0, 10, 20, SAVED), Event(PUT, 1, 10, 20, SAVED)], {SAVED}, set()),
    ],
)
def test_what_a_ticket_may_be_at_moment_30(
    events: list[Event], statuses: set[Status], versions: set[int]
) -> None:
    assert expected(events, 30) == Expected(frozenset(statuses), frozenset(versions))


def shown(indices: np.ndarray, of: dict[int, tuple[Status, int]]) -> Contents:
    pairs = [of.get(int(index), (MISSING, NO_VERSION)) for index in indices]
    return Contents(
        indices,
        np.array([pair[0] for pair in pairs], np.uint8),
        np.array([pair[1] for pair in pairs], np.int16),
    )


def test_an_ack_before_its_flush_is_a_loss() -> None:
    """Entries: the write, its flush. Whoever is told in between, and cut there, has lost."""
    for answered, lost in ((1, 1), (2, 0)):
        history = History()
        history.note(5000, Event(PUT, 0, 0, answered, SAVED))
        indices = history.packs()
        assert len(indices) == 1296
        wanted = history.promise(1, Promise.nothing(indices))
        found = wanted.losses(shown(indices, {}))
        assert len(found) == lost
        assert all("expected SAVED" in line and "found MISSING" in line for line in found)
        assert not wanted.losses(shown(indices, {5000: (SAVED, 0)}))
        for wrong in ((SAVED, 1), (SAVED, NO_VERSION), (DELETED, NO_VERSION)):
            assert len(wanted.losses(shown(indices, {5000: wrong}))) == 1
        assert len(wanted.losses(shown(indices, {5000: (SAVED, 0), 5001: (SAVED, 0)}))) == 1, "from nowhere"


def test_what_was_shown_must_be_shown_again() -> None:
    indices = np.arange(36, 36 + 1296)
    once = shown(indices, {40: (SAVED, 3), 41: (DELETED, NO_VERSION)})
    assert not Promise.exactly(once).losses(once)
    for other in (
        {41: (DELETED, -1)},
        {40: (SAVED, 2), 41: (DELETED, -1)},
        {40: (SAVED, 3)},
        {40: (SAVED, 3), 41: (DELETED, -1), 42: (SAVED, 0)},
    ):
        assert len(Promise.exactly(once).losses(shown(indices, other))) == 1


# --- real file systems on recorded disks


def needs(*file_systems: str) -> None:
    reason = power_cut.what_lacks(Path("/var/tmp"), file_systems)
    if reason:
        pytest.skip(reason)


@pytest.mark.parametrize("file_system", (*power_cut.FILE_SYSTEMS, *STACKED))
def test_nothing_that_was_acknowledged_is_lost(file_system: str, tmp_path: Path) -> None:
    needs(file_system)
    seed = random.randrange(1 << 30)
    outcome = power_cut.run(seed, 4, tmp_path, file_systems=[file_system])
    assert outcome.passed, f"seed {seed}:\n" + "\n".join(outcome.losses)
    assert outcome.counts["states"] == 4
    assert outcome.counts["recorded_flushes"] > 0


def test_a_bulk_put_into_new_packs_leaves_them_whole_or_empty(tmp_path: Path) -> None:
    """Or with a header of zeros that nothing names in the log: all tickets of the pack then answered ERROR for ever."""
    needs("ext4")
    seed = random.randrange(1 << 30)
    outcome = power_cut.run(
        seed, 6, tmp_path, file_systems=["ext4"], layouts=["pack"], steps=("packs", "single")
    )
    assert outcome.passed, f"seed {seed}:\n" + "\n".join(outcome.losses)


def test_without_syncs_the_cuts_lose_what_was_acknowledged(tmp_path: Path) -> None:
    """The proof can fail: with --sync os an ack promises nothing about power, and the cuts show it."""
    needs("ext4")
    outcome = power_cut.run(1, 12, tmp_path, file_systems=["ext4"], layouts=["pack"], flags=("--sync=os",))
    assert not outcome.not_run
    assert outcome.losses


def test_nothing_stays_mounted_when_it_is_killed(tmp_path: Path) -> None:
    needs("ext4")
    reads, writes = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            block_recorder.isolate()
            (tmp_path / "mount").mkdir()
            block_recorder.make_image(tmp_path / "image", "ext4", 64 << 20)
            with (
                RecordedDisk(tmp_path / "image", tmp_path / "disk") as disk,
                block_recorder.mounted(disk.file, tmp_path / "mount", "ext4"),
            ):
                os.write(writes, b"mounted")
                time.sleep(60)
        finally:
            os._exit(1)
    os.close(writes)
    with os.fdopen(reads, "rb") as pipe:
        assert pipe.read(7) == b"mounted"
        assert backed_by(tmp_path)
        assert str(tmp_path) not in Path("/proc/self/mounts").read_text(), "others never see the mounts"
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        pipe.read()  # to the end: the recorder, which had it open too, is gone
    deadline = time.monotonic() + 60
    while backed_by(tmp_path):
        assert time.monotonic() < deadline, "a loop device stays behind"
        time.sleep(0.01)


def backed_by(directory: Path) -> list[Path]:
    """The loop devices whose file lies below `directory`."""
    found = []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            if path.read_text().startswith(str(directory)) or "/disk/fuse/disk" in path.read_text():
                found.append(path)
        except OSError:
            pass  # detached meanwhile
    return found
