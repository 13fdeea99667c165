"""Whichever byte of a damaged log it is that decayed: what else was acknowledged from it is in the packs after a repair."""

from __future__ import annotations

import mmap
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from log_rig import LOG_ID, SEGMENT_SIZE, puts, read_log
from test_fsck import check_layout
from test_log_reader import LENGTH, batch, segment

from faults.damaged_store import SMALL_SEGMENT, Batch, Builder, read_all, started
from ingest import sharding, ticket
from ingest.frame import delete_data
from ingest.limits import FRAME_SIZE
from ingest.status import Status
from ingest.store.check.fsck import fsck
from ingest.store.check.log_survey import LogSurvey
from ingest.store.layouts.layout import Table, make_table
from ingest.store.log.log_format import BATCH_HEADER_SIZE, BatchHeader, SegmentHeader
from ingest.store.log.recovery import Recovered, recover
from ingest.store.store import Store

OLD, NEW, GONE = (sharding.slot_ticket(5, slot) for slot in (1, 20, 40))


@dataclass
class Made:
    """A store whose packs lack the last three batches: puts, then puts and a delete, then a put."""

    builder: Builder

    def copy(self, target: Path) -> Path:
        shutil.copytree(self.builder.directory, target, symlinks=True)
        return target

    @property
    def middle(self) -> Batch:
        return self.builder.batches[-2]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    stores: dict[str, Made] = {}

    def make(layout: str) -> Made:
        if layout not in stores:
            directory = tmp_path_factory.mktemp("made") / layout
            builder = Builder(directory, layout, random.Random(1), SMALL_SEGMENT)
            builder.put([OLD, OLD + 1, OLD + 2])
            builder.settle()
            builder.put([NEW, NEW + 1], apply=False)
            builder.put_and_delete(NEW + 2, GONE, 3)
            builder.put([NEW + 3], apply=False)
            builder.close()
            stores[layout] = Made(builder)
        return stores[layout]

    return make


def decay(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 0x55]))


def shown(data: Path, builder: Builder) -> dict[int, tuple[Status, bytes]]:
    with started(data, SMALL_SEGMENT) as reader:
        read = read_all(reader, builder.keys)
    return {index: read[index] for index in builder.truth}


def expected(builder: Builder, lost: set[int]) -> dict[int, tuple[Status, bytes]]:
    return {
        index: (Status.DELETED, b"") if held is None or index in lost else (Status.SAVED, held)
        for index, held in builder.truth.items()
    }


@pytest.mark.parametrize("field", [0, 7, 8, 15, 16, 23, 24, 31, 32, 35, 39, 43, 47, 48, 55, 56, 63])
def test_a_batch_whose_header_decayed_has_lost_no_frame(
    made: Callable[[str], Made], tmp_path: Path, layout: str, field: int
) -> None:
    """Its magic, its number, its digests, its length, its counts: each frame in it is authentic by itself."""
    check_layout(layout, tmp_path)
    store = made(layout)
    data = store.copy(tmp_path / "store")
    decay(data / store.middle.segment, store.middle.offset + field)
    report = fsck(data, repair=True, segment_size=SMALL_SEGMENT)
    assert {problem.kind for problem in report.problems} == {"log"}
    assert not any(problem.lost for problem in report.problems)
    assert fsck(data, segment_size=SMALL_SEGMENT).clean
    assert shown(data, store.builder) == expected(store.builder, set())


@pytest.mark.parametrize("field", [0, 8, 11, 16, 31, 32, 39, 47, 48, 55, 56, 63, 504, 511])
def test_nor_has_a_segment_whose_header_decayed(
    made: Callable[[str], Made], tmp_path: Path, layout: str, field: int
) -> None:
    check_layout(layout, tmp_path)
    store = made(layout)
    data = store.copy(tmp_path / "store")
    decay(data / store.middle.segment, field)
    report = fsck(data, repair=True, segment_size=SMALL_SEGMENT)
    assert "log" in {problem.kind for problem in report.problems}
    assert not any(problem.lost for problem in report.problems)
    assert fsck(data, segment_size=SMALL_SEGMENT).clean
    assert shown(data, store.builder) == expected(store.builder, set())


@pytest.mark.parametrize("inside", [8, 15, 16, 700, FRAME_SIZE - 1])
@pytest.mark.parametrize("frame", [0, 1])
def test_a_frame_that_decayed_is_the_only_one_that_is_lost(
    made: Callable[[str], Made], tmp_path: Path, layout: str, frame: int, inside: int
) -> None:
    """Of a delete its first ticket is what is known to have been used."""
    check_layout(layout, tmp_path)
    store = made(layout)
    data = store.copy(tmp_path / "store")
    at = store.middle.offset + BATCH_HEADER_SIZE + frame * FRAME_SIZE + inside
    decay(data / store.middle.segment, at)
    fsck(data, repair=True, segment_size=SMALL_SEGMENT)
    assert fsck(data, segment_size=SMALL_SEGMENT).clean
    found, truth = shown(data, store.builder), expected(store.builder, {NEW + 2} if frame == 0 else set())
    if frame == 1:
        for index in (GONE + 1, GONE + 2):
            del found[index], truth[index]
    assert found == truth


def test_what_the_log_still_has_to_bring_is_written_anew_whatever_is_read_of_it(
    made: Callable[[str], Made], tmp_path: Path, layout: str
) -> None:
    """What is right in the page cache may be nowhere else, if an earlier write-back failed; and the log is put aside."""
    check_layout(layout, tmp_path)
    builder = Builder(tmp_path / "store", layout, random.Random(1), SMALL_SEGMENT)
    builder.put([OLD])
    builder.settle()
    for index in (NEW, NEW + 1, NEW + 2):
        builder.put([index])
    builder.delete(GONE, 2)
    other = sharding.slot_ticket(900, 7)
    builder.put([other])
    builder.append(b"", [])
    builder.close()
    bad = builder.batches[2]
    decay(tmp_path / "store" / bad.segment, min(bad.frames) + 700)
    data = builder.directory

    def inodes() -> dict[Path, int]:
        return {path: path.stat().st_ino for path in data.rglob("obj") if path.is_file()}

    held = [path.open("rb") for path in inodes()]  # so that no inode is used again
    before = inodes()
    fsck(data, repair=True, segment_size=SMALL_SEGMENT)
    same = {path for path, inode in inodes().items() if before[path] == inode}
    for file in held:
        file.close()
    if layout == "pack":
        assert same == set() and len(before) == 2
    else:  # the settled one, and that of the bad batch, whose file shows that it is whole
        assert len(same) <= 2 and len(before) == 7
    assert fsck(data, segment_size=SMALL_SEGMENT).clean


@contextmanager
def opened_log(data: Path) -> Iterator[tuple[Recovered, Table]]:
    store = Store.open(data)
    packs = make_table(store, 64)
    yield (
        recover(
            packs, store.wal_dir, store.log_id, [], log_size=4 * SMALL_SEGMENT, segment_size=SMALL_SEGMENT
        ),
        packs,
    )
    store.close()


@pytest.mark.parametrize("synced", [0, 1, 30, 31, 32, 62, 70])
def test_a_recovered_log_uses_only_segments_again_of_which_the_packs_hold_all(
    tmp_path: Path, synced: int
) -> None:
    """31 empty batches fill one. Whatever comes then, what the packs may lack is read again after the next crash."""
    builder = Builder(tmp_path / "store", "pack", random.Random(1), SMALL_SEGMENT)
    for number in range(1, 71):
        if number == synced + 1 and synced:
            builder.log.recycle(synced)
        builder.append(b"", [])
    builder.close()
    if synced == 70:  # nothing tells the log of it, but the next batch
        synced = 0
    with opened_log(builder.directory) as (recovered, packs):
        log = recovered.writer
        ends = {0: 31, 1: 62, 2: 70}
        assert log.used == sum(end > synced for end in ends.values()) * SMALL_SEGMENT
        assert (log.number, log.synced_to) == (70, synced)
        assert recovered.batches == 70 - synced
        while log.has_room(BATCH_HEADER_SIZE) or log.needs_spare:
            if not log.has_room(BATCH_HEADER_SIZE):
                log.make_spare()
            log.append(memoryview(mmap.mmap(-1, 4096)), 0, 0, 0)
        last = log.number
        assert log.used == log.allocated == 4 * SMALL_SEGMENT
        log.close()
        packs.close()
    with opened_log(builder.directory) as (recovered, packs):
        assert (recovered.writer.number, recovered.batches) == (last, last - synced)
        recovered.writer.close()
        packs.close()


def test_a_batch_that_an_earlier_recovery_cut_counts_nowhere(tmp_path: Path) -> None:
    """It was never acknowledged; the next segment has the batch of its number. Nor is any of it damage."""
    first = SegmentHeader(LOG_ID, 1, 1, 11, 0)
    segment(tmp_path / "0000.log", first, [batch(1), batch(2), batch(3), batch(4)])
    second = SegmentHeader(LOG_ID, 2, 3, 22, 0)
    segment(tmp_path / "0001.log", second, [(BatchHeader(3, LENGTH, 2, 0, 0, 0), puts(9)), batch(4)])
    survey = LogSurvey(tmp_path, LOG_ID, [], SEGMENT_SIZE)
    brought = {
        sharding.slot_ticket(pack, slot): survey.frame(place)
        for pack, entry in survey.packs.items()
        for slot, place in entry.puts.items()
    }
    expected = puts(1) + puts(2) + puts(9) + puts(4)
    frames = [expected[at : at + FRAME_SIZE] for at in range(0, len(expected), FRAME_SIZE)]
    assert brought == {ticket.index_from_wire(frame[:8]): frame for frame in frames}
    assert (survey.faults, survey.number, survey.batches_pending) == ([], 4, 4)
    survey.close()


@pytest.mark.parametrize(
    "marks", [(0, 0, 0), (1, 1, 1), (0, 0, 3), (2, 2, 2), (1, 2, 3), (0, 2, 2), (3, 0, 0)]
)
def test_what_is_pending_is_what_lies_behind_the_highest_mark(
    tmp_path: Path, marks: tuple[int, int, int]
) -> None:
    """Whichever says it: a segment's header or a batch, the last one or not. Both who starts and who checks see the same."""
    of_header, of_fourth, of_fifth = marks
    segment(tmp_path / "0000.log", SegmentHeader(LOG_ID, 1, 1, 11, 0), [batch(1), batch(2), batch(3)])
    header = SegmentHeader(LOG_ID, 2, 4, 22, of_header)
    segment(tmp_path / "0001.log", header, [batch(4, of_fourth), batch(5, of_fifth)])
    survey = LogSurvey(tmp_path, LOG_ID, [], SEGMENT_SIZE)
    assert (survey.synced_to, survey.batches_pending) == (max(marks), 5 - max(marks))
    pending = {
        sharding.slot_ticket(pack, slot)
        for pack, entry in survey.packs.items()
        for slot in range(1332)
        if entry.pending_puts >> slot & 1
    }
    expected = b"".join(puts(number) for number in range(max(marks) + 1, 6))
    wire = [expected[at : at + 8] for at in range(0, len(expected), FRAME_SIZE)]
    assert pending == {ticket.index_from_wire(name) for name in wire}
    survey.close()
    found = read_log(tmp_path)
    assert (found.synced_to, len(found.batches)) == (max(marks), 5 - max(marks))


@pytest.mark.parametrize("pending", [True, False])
def test_each_thing_that_a_batch_says_is_pending_or_not(tmp_path: Path, pending: bool) -> None:
    """Of every pack that it is about: a note of the last slots, a delete over the borders of three packs."""
    builder = Builder(tmp_path / "store", "pack", random.Random(1), SMALL_SEGMENT)
    pack = sharding.pack_id("4")
    builder.note(sharding.slot_ticket(pack, 1293), 3)
    builder.put([sharding.slot_ticket(pack, 7)], apply=False)
    first = sharding.slot_ticket(pack + 1, 1294)
    frame = ticket.index_to_wire(first) + bytes(8) + delete_data(2 + 1296 + 3)
    builder.append(frame, [], deletes=1)
    if not pending:
        builder.settle()
        builder.append(b"", [])
    builder.close()
    store = builder.store
    survey = LogSurvey(store.wal_dir, store.log_id, [], SMALL_SEGMENT)
    masks = {
        "noted": {pack: 0b111 << 1293},
        "deleted": {pack + 1: 0b11 << 1294, pack + 2: (1 << 1296) - 1, pack + 3: 0b111},
    }
    for name, expected in masks.items():
        assert {
            each: getattr(entry, name) for each, entry in survey.packs.items() if getattr(entry, name)
        } == expected
        for each, entry in survey.packs.items():
            assert getattr(entry, f"pending_{name}") == (expected.get(each, 0) if pending else 0)
    assert [*survey.packs[pack].puts] == [7]
    assert survey.packs[pack].pending_puts == (1 << 7 if pending else 0)
    assert survey.packs[pack].settled is not pending
    survey.close()


def test_a_segment_that_is_used_elsewhere_in_the_log_by_now_leaves_no_damage(tmp_path: Path) -> None:
    """Of three uses the second one's file has the third: what it held is in the packs."""
    segment(tmp_path / "0000.log", SegmentHeader(LOG_ID, 1, 1, 11, 0), [batch(1), batch(2)])
    segment(tmp_path / "0001.log", SegmentHeader(LOG_ID, 3, 5, 33, 4), [batch(5, 4)])
    survey = LogSurvey(tmp_path, LOG_ID, [], SEGMENT_SIZE)
    assert (survey.faults, survey.refusal, survey.batches_pending) == ([], "", 1)
    survey.close()


def test_where_nobody_can_tell_where_the_log_ended_its_last_frames_count(
    made: Callable[[str], Made], tmp_path: Path, layout: str
) -> None:
    """With its segment's header gone a batch at the end may be a crash's or decay: what is authentic in it counts."""
    check_layout(layout, tmp_path)
    store = made(layout)
    data = store.copy(tmp_path / "store")
    last = store.builder.batches[-1]
    assert last.segment == store.middle.segment
    decay(data / last.segment, 0)
    decay(data / last.segment, last.offset + 20)
    fsck(data, repair=True, segment_size=SMALL_SEGMENT)
    assert fsck(data, segment_size=SMALL_SEGMENT).clean
    assert shown(data, store.builder) == expected(store.builder, set())


def damaged(directory: Path) -> list[Path]:
    survey = LogSurvey(directory, LOG_ID, [], SEGMENT_SIZE)
    survey.close()
    return [fault.path for fault in survey.faults]


def test_a_segment_of_another_log_or_of_another_size_is_damage(tmp_path: Path) -> None:
    """Whichever byte of the log's id differs, whichever byte of a stump is none of a new segment's."""
    path = tmp_path / "0000.log"
    for at in range(16):
        other = bytearray(LOG_ID)
        other[at] ^= 1
        segment(path, SegmentHeader(bytes(other), 1, 1, 11, 0), [batch(1)])
        assert damaged(tmp_path) == [path]
    segment(path, SegmentHeader(LOG_ID, 1, 1, 11, 0), [batch(1)])
    assert damaged(tmp_path) == []
    for size in (SEGMENT_SIZE - 1, SEGMENT_SIZE + 1, SEGMENT_SIZE + 4096):
        os.truncate(path, size)
        assert damaged(tmp_path) == [path]
    for size in (1, 9, 511, 4095):
        path.write_bytes(bytes(size))
        assert damaged(tmp_path) == []
        path.write_bytes(bytes(size - 1) + b"\1")
        assert damaged(tmp_path) == [path]


@pytest.mark.parametrize("count", [1, 2, 1296, 1297])
def test_a_delete_may_end_with_the_last_ticket_and_not_behind_it(tmp_path: Path, count: int) -> None:
    builder = Builder(tmp_path / "store", "pack", random.Random(1), SMALL_SEGMENT)
    for more in (0, 1):
        frame = ticket.index_to_wire(ticket.COUNT - count) + bytes(8) + delete_data(1)
        frame = frame[:16] + (count + more).to_bytes(8, "big") + frame[24:]
        builder.append(frame, [], deletes=1)
        survey = LogSurvey(builder.store.wal_dir, builder.store.log_id, [], SMALL_SEGMENT)
        assert sum(entry.deleted.bit_count() for entry in survey.packs.values()) == count
        survey.close()
    builder.close()
