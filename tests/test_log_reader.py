"""What a reader makes of every way in which a log can end or be damaged."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterable, Iterator
from itertools import chain, combinations
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from log_rig import LOG_ID, SEGMENT_SIZE, append, buffer_of, new_log, puts, read_log
from lossy_disk import LossyDisk, PowerCut

from ingest.errors import CorruptionError, StoreFormatError
from ingest.limits import FRAME_SIZE
from ingest.store.log import log_reader
from ingest.store.log.log_format import (
    BLOCK_SIZE,
    BatchHeader,
    SegmentHeader,
    padded,
    parse_batch,
    seal_batch,
)
from ingest.store.log.log_reader import LogReader
from ingest.store.log.log_writer import LogWriter, Segment

BATCH_SIZE = BLOCK_SIZE  # of two frames, padded
LENGTH = 64 + 2 * FRAME_SIZE
READ = SEGMENT_SIZE // 4  # at a time, of a segment that is read in parts


@pytest.fixture
def wal(tmp_path):
    """Five batches of one block each, from offset 4096 on."""
    log = new_log(tmp_path / "wal")
    for number in range(1, 6):
        append(log, puts(number))
    log.close()
    return tmp_path / "wal"


def damage(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def batch_at(number: int) -> int:
    return BLOCK_SIZE + (number - 1) * BATCH_SIZE


def batches_in(files: dict[Path, bytes]) -> dict[int, tuple[Path, int]]:
    """{number: its segment and its offset there} of a log that was read from these files."""
    found = {}
    for path, content in files.items():
        header = SegmentHeader.parse(content[:BLOCK_SIZE])
        at = BLOCK_SIZE
        while header and at < len(content):
            parsed = parse_batch(memoryview(content)[at:], header.seed)
            if isinstance(parsed, str):
                break
            found[parsed.number] = (path, at)
            at += padded(parsed.length)
    return found


def subsets(numbers: Iterable[int]) -> Iterator[tuple[int, ...]]:
    """All of them, of the least to the most."""
    some = sorted(numbers)
    return chain.from_iterable(combinations(some, count) for count in range(len(some) + 1))


def segment(
    path: Path, header: SegmentHeader, batches: list[tuple[BatchHeader, bytes]], seed: int | None = None
) -> None:
    """Writes a segment by hand."""
    content = bytearray(header.serialize())
    for batch, payload in batches:
        buffer = buffer_of(payload)
        seal_batch(buffer, batch, header.seed if seed is None else seed)
        content += buffer
    path.write_bytes(content.ljust(SEGMENT_SIZE, b"\0"))


def batch(number: int, synced_to: int = 0) -> tuple[BatchHeader, bytes]:
    return BatchHeader(number, LENGTH, 2, 0, 0, synced_to), puts(number)


class TestEnd:
    def test_an_empty_directory_is_an_empty_log(self, tmp_path):
        found = read_log(tmp_path)
        assert (found.number, found.synced_to, found.use, found.batches) == (0, 0, 0, {})

    @pytest.mark.parametrize("rest", [b"\0", b"\xff", b"INGBATCH"], ids=["zeros", "ones", "magic"])
    @pytest.mark.parametrize("cut", range(0, BATCH_SIZE, 512))
    def test_a_last_batch_torn_anywhere_is_a_crash(self, wal, cut, rest):
        size = BATCH_SIZE - cut
        damage(wal / "0000.log", batch_at(5) + cut, (rest * size)[:size])
        found = read_log(wal)
        whole = cut >= LENGTH
        assert found.number == (5 if whole else 4)
        assert list(found.batches) == list(range(1, found.number + 1))

    @pytest.mark.parametrize("sector", range(0, LENGTH, 512))
    def test_a_last_batch_that_lacks_one_sector_is_a_crash(self, wal, sector):
        damage(wal / "0000.log", batch_at(5) + sector, b"\0" * 512)
        assert read_log(wal).number == 4

    @pytest.mark.parametrize("number", [1, 2, 4])
    @pytest.mark.parametrize("cut", [0, 8, 16, 48, 64, 2000])
    def test_a_bad_batch_with_whole_ones_behind_is_corruption(self, wal, number, cut):
        damage(wal / "0000.log", batch_at(number) + cut, b"\xff" * 8)
        with pytest.raises(
            CorruptionError, match=f"0000.log: batch {number} at offset {batch_at(number)} is bad"
        ):
            read_log(wal)

    def test_the_message_names_the_whole_batch_and_what_to_do(self, wal):
        damage(wal / "0000.log", batch_at(2), b"\0" * 8)
        with pytest.raises(CorruptionError, match="batch 3 at 12288 is whole; `ingest fsck` tells more"):
            read_log(wal)

    def test_a_bad_batch_with_a_later_segment_is_corruption(self, tmp_path):
        log = new_log(tmp_path)
        for number in range(1, 18):
            append(log, puts(number))
        log.close()
        damage(tmp_path / "0000.log", batch_at(15), b"\0" * 8)
        with pytest.raises(CorruptionError, match=r"0001.log goes on with batch 16"):
            read_log(tmp_path)

    def test_two_batches_torn_are_told_from_one(self, wal):
        """A batch is written after the sync of the one before: two can only be lost by damage, which nobody can see."""
        damage(wal / "0000.log", batch_at(4), bytes(2 * BATCH_SIZE))
        assert read_log(wal).number == 3

    @pytest.mark.parametrize("frames", [2, 18], ids=["one-segment", "three-segments"])
    def test_whichever_batches_are_bad_only_those_at_the_end_are_a_crash(self, tmp_path, frames):
        """Any number of neighbours, or of others: once a whole one follows, or a segment does, acked puts are lost."""
        log = new_log(tmp_path / "log")
        for number in range(1, 6):
            append(log, puts(number, frames))
        log.close()
        files = {path: path.read_bytes() for path in sorted((tmp_path / "log").iterdir())}
        places = batches_in(files)
        last_segment = max(path for path, _ in places.values())
        for bad in subsets(places):
            for path, content in files.items():
                path.write_bytes(content)
            for number in bad:
                damage(*places[number], b"\xff" * 8)
            lost = [n for n in bad if places[n][0] != last_segment or any(m not in bad for m in range(n, 6))]
            if lost:
                with pytest.raises(CorruptionError, match=r"batch \d at offset \d+ is bad"):
                    read_log(tmp_path / "log")
            else:
                assert list(read_log(tmp_path / "log").batches) == list(range(1, min(bad, default=6))), bad

    @pytest.mark.parametrize("whole", range(2, 16))
    def test_the_one_whole_batch_behind_bad_ones_is_found_wherever_it_lies(self, tmp_path, whole):
        """In a segment that is full, up to its last block; and of no other batch the head is left."""
        log = new_log(tmp_path)
        for number in range(1, 16):
            append(log, puts(number))
        log.close()
        (path,) = tmp_path.iterdir()
        for number in {*range(1, 16)} - {whole}:
            damage(path, batch_at(number), bytes(8))
        with pytest.raises(CorruptionError, match=rf"batch {whole} at {batch_at(whole)} is whole"):
            read_log(tmp_path)

    def test_a_batch_with_the_wrong_number_ends_the_log(self, tmp_path):
        header = SegmentHeader(LOG_ID, 1, 1, 99, 0)
        segment(tmp_path / "0000.log", header, [batch(1), batch(1)])
        found = read_log(tmp_path)
        assert (found.number, found.torn) == (1, "batch 1, not 2")

    def test_a_segment_filled_to_its_last_byte(self, tmp_path):
        log = new_log(tmp_path)
        for number in range(1, 16):
            append(log, puts(number))
        log.close()
        assert read_log(tmp_path).number == 15


class TestOldBytes:
    def recycled(self, directory: Path, log_options: dict[str, object] | None = None) -> LogWriter:
        """Three segments of 15 batches, the first of them in use again for batch 46."""
        log = new_log(directory, **(log_options or {}))
        for number in range(1, 46):
            append(log, puts(number))
        log.recycle(30)
        append(log, puts(46))
        return log

    def test_batches_of_earlier_uses_are_not_read_again(self, tmp_path):
        self.recycled(tmp_path).close()
        found = read_log(tmp_path)
        assert (found.number, found.synced_to, found.use) == (46, 30, 4)
        assert list(found.batches) == list(range(31, 47))

    def test_a_torn_first_batch_of_a_recycled_segment_is_a_crash(self, tmp_path):
        self.recycled(tmp_path).close()
        for cut in range(0, LENGTH, 512):
            damage(tmp_path / "0000.log", BLOCK_SIZE + cut, b"\0" * 512)
            found = read_log(tmp_path)
            assert (found.number, found.synced_to) == (45, 30), (
                "the segment's header still says what the packs have"
            )
            assert list(found.batches) == list(range(31, 46))

    def test_an_old_batch_of_the_number_that_is_expected_is_not_taken(self, tmp_path):
        """A seed is drawn at each use: the same number at the same place under another seed is not this log's."""
        header = SegmentHeader(LOG_ID, 1, 1, seed=1, synced_to=0)
        segment(tmp_path / "0000.log", header, [batch(1), batch(2), batch(3)], seed=2)
        found = read_log(tmp_path)
        assert (found.number, found.batches) == (0, {})

    def test_bytes_of_a_client_that_look_like_a_batch_are_not_taken(self, tmp_path):
        """Whole batches inside the data of frames, at block borders, for every seed but the right one."""
        log = new_log(tmp_path)
        payload = bytearray(puts(1, 20))
        for number, at in enumerate(range(BLOCK_SIZE - 64, len(payload) - BLOCK_SIZE, BLOCK_SIZE), 2):
            forged = buffer_of(puts(number))
            seal_batch(forged, BatchHeader(number, LENGTH, 2, 0, 0, 0), seed=0)
            payload[at : at + BLOCK_SIZE] = forged
        append(log, bytes(payload))
        log.close()
        assert list(read_log(tmp_path).batches) == [1]
        damage(tmp_path / "0000.log", BLOCK_SIZE + 100, b"\xff")  # torn: now what is inside it is looked at
        assert read_log(tmp_path).number == 0

    def test_a_batch_that_an_earlier_recovery_cut_stays_cut(self, tmp_path):
        """It did not check then; the next server wrote another one of its number into the next segment."""
        segment(tmp_path / "0000.log", SegmentHeader(LOG_ID, 1, 1, 5, 0), [batch(1), (batch(2)[0], puts(77))])
        segment(tmp_path / "0001.log", SegmentHeader(LOG_ID, 2, 2, 6, 0), [batch(2)])
        found = read_log(tmp_path)
        assert found.batches == {1: puts(1), 2: puts(2)}
        damage(tmp_path / "0001.log", BLOCK_SIZE, b"\0" * 8)
        assert read_log(tmp_path).number == 1


class TestSegments:
    def test_a_missing_segment_is_a_gap(self, tmp_path):
        log = new_log(tmp_path)
        for number in range(1, 46):
            append(log, puts(number))
        log.close()
        (tmp_path / "0001.log").unlink()
        with pytest.raises(
            CorruptionError, match=r"0002\.log: the log goes on with batch 31, but 16 is missing"
        ):
            read_log(tmp_path)
        (tmp_path / "0000.log").unlink()
        with pytest.raises(
            CorruptionError,
            match=r"0002\.log: the log goes on with batch 31, but 1 is missing and not in the packs",
        ):
            read_log(tmp_path)

    def test_a_missing_segment_that_the_packs_have_is_none(self, tmp_path):
        log = new_log(tmp_path)
        for number in range(1, 46):
            append(log, puts(number))
        log.recycle(30)
        append(log, puts(46))
        log.close()
        (tmp_path / "0001.log").unlink()
        assert list(read_log(tmp_path).batches) == list(range(31, 47))

    @pytest.mark.parametrize(("synced_to", "starts"), [(4, True), (3, False), (2, False)])
    def test_a_gap_before_a_segment_without_a_batch(self, tmp_path, synced_to, starts):
        """Somebody removed the one between. The packs hold all that was in it, up to its last batch, or they do not."""
        segment(tmp_path / "0000.log", SegmentHeader(LOG_ID, 1, 1, 5, 0), [batch(1), batch(2)])
        segment(tmp_path / "0002.log", SegmentHeader(LOG_ID, 3, 5, 6, synced_to), [])
        if starts:
            found = read_log(tmp_path)
            assert (found.number, found.synced_to, found.batches) == (4, 4, {})
        else:
            with pytest.raises(
                CorruptionError, match=r"batch 3 at offset .* is bad|3 is missing|4 is missing"
            ):
                read_log(tmp_path)

    @pytest.mark.parametrize("size", [0, 100, 4096, SEGMENT_SIZE // 2, SEGMENT_SIZE])
    def test_a_segment_that_was_being_made_is_unused(self, wal, size):
        (wal / "0001.log").write_bytes(bytes(size))
        found = read_log(wal)
        assert found.number == 5
        reader = LogReader(wal, LOG_ID, SEGMENT_SIZE)
        assert [entry.header is None for entry in reader.segments] == [False, True]
        reader.close()

    @pytest.mark.parametrize("size", [BLOCK_SIZE, SEGMENT_SIZE - 4096, SEGMENT_SIZE + 4096])
    def test_a_segment_in_use_of_another_size_is_refused(self, wal, size):
        with (wal / "0000.log").open("r+b") as file:
            file.truncate(size)
        with pytest.raises(
            CorruptionError, match=f"0000.log: a segment in use has {size} bytes instead of {SEGMENT_SIZE}"
        ):
            read_log(wal)
        assert (wal / "0000.log").stat().st_size == size

    def test_another_log_s_segment_is_refused(self, wal):
        with pytest.raises(CorruptionError, match=f"0000.log belongs to another log .{LOG_ID.hex()}"):
            read_log(wal, log_id=bytes(16))

    def test_an_unknown_version_is_refused_by_name(self, wal):
        from blake3 import blake3

        head = bytearray((wal / "0000.log").read_bytes()[:504])
        head[8:12] = (9).to_bytes(4, "big")
        damage(wal / "0000.log", 0, bytes(head) + blake3(head).digest(8))
        with pytest.raises(
            StoreFormatError, match=r"0000\.log: log segment of format version 9; this program knows 1"
        ):
            read_log(wal)

    def test_a_damaged_header_is_corruption(self, wal):
        damage(wal / "0000.log", 30, b"\xff")
        with pytest.raises(CorruptionError, match=r"0000\.log: the segment header fails its digest"):
            read_log(wal)

    def test_batches_behind_a_header_of_zeros_are_corruption(self, wal):
        """Not a segment that was never used: its header was durable before its first batch."""
        damage(wal / "0000.log", 0, bytes(BLOCK_SIZE))
        with pytest.raises(CorruptionError, match="header is gone, but batches follow; `ingest fsck`"):
            LogReader(wal, LOG_ID, SEGMENT_SIZE)

    def test_two_segments_of_one_use_are_refused(self, wal):
        (wal / "0001.log").write_bytes((wal / "0000.log").read_bytes())
        with pytest.raises(CorruptionError, match="claim the same use of the log"):
            read_log(wal)

    def test_other_files_are_left_alone(self, wal):
        (wal / "log.json").write_text("{}")
        (wal / "00000.log").write_bytes(b"x" * SEGMENT_SIZE)
        assert read_log(wal).number == 5

    def test_the_best_knowledge_of_what_is_synced_wins(self, tmp_path):
        segment(
            tmp_path / "0000.log",
            SegmentHeader(LOG_ID, 1, 1, 5, 0),
            [batch(1), batch(2), batch(3, synced_to=2)],
        )
        assert list(read_log(tmp_path).batches) == [3]
        segment(tmp_path / "0001.log", SegmentHeader(LOG_ID, 2, 4, 6, synced_to=3), [])
        found = read_log(tmp_path)
        assert (found.number, found.synced_to, found.batches) == (3, 3, {})

    @pytest.mark.parametrize("got", [0, 1, BLOCK_SIZE, READ // 2, READ - BLOCK_SIZE, READ - 1])
    @pytest.mark.parametrize("part", [0, 1, SEGMENT_SIZE // READ - 1])
    def test_a_segment_of_which_a_part_is_not_read_is_refused(self, wal, monkeypatch, part, got):
        """What the buffer has there is of another segment, or nothing: as if no batch had been written."""
        real = os.preadv

        def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
            whole = sum(map(len, buffers))
            return real(fd, buffers, offset) if whole != READ or offset != part * READ else got

        monkeypatch.setattr(log_reader, "READ_SIZE", READ)
        assert sorted(read_log(wal).batches) == [1, 2, 3, 4, 5]
        monkeypatch.setattr(os, "preadv", preadv)
        with pytest.raises(CorruptionError, match="fewer than its size promises"):
            read_log(wal)

    def test_nothing_stays_open_after_a_refusal(self, wal):
        damage(wal / "0000.log", 30, b"\xff")
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(CorruptionError):
            read_log(wal)
        assert len(os.listdir("/proc/self/fd")) == before


def restart(directory: Path) -> tuple[LogWriter, dict[int, bytes], int]:
    """What recovery does with the log: the writer that goes on, what is to be done again, how far the packs are."""
    reader = LogReader(directory, LOG_ID, SEGMENT_SIZE)
    batches = {batch.header.number: bytes(batch.payload) for batch in reader.batches()}
    in_use: list[Segment] = []
    free: list[Segment] = []
    for entry in reader.used:
        (in_use if entry.segment.last_batch > reader.synced_to else free).append(entry.segment)
    free += [entry.segment for entry in reader.segments if entry.header is None and _whole(entry.segment)]
    log = new_log(
        directory,
        in_use=in_use,
        free=free,
        number=max(reader.number, reader.synced_to),
        use=reader.use,
        synced_to=reader.synced_to,
    )
    return log, batches, reader.synced_to


def _whole(segment: Segment) -> bool:
    return segment.path.stat().st_size == SEGMENT_SIZE


def steps_of(chance: random.Random) -> Iterator[tuple[str, int]]:
    """Batches of all sizes, some of which fill a segment, and packs that are some batches behind."""
    for _ in range(chance.randrange(40)):
        yield chance.choices(
            [
                ("append", chance.randint(1, 5)),
                ("append", chance.randint(15, 40)),
                ("recycle", chance.randrange(4)),
                ("spare", 0),
            ],
            [3, 4, 3, 1],
        )[0]


@given(seed=st.integers(0, 2**32))
@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_a_power_cut_leaves_every_synced_batch_is_read_and_no_other(seed):
    """Several lives of one log, each ended by a power cut in the middle of any operation."""
    durable: dict[int, bytes] = {}  # appended and returned
    packs_have = 0  # up to this batch the packs are durable
    with tempfile.TemporaryDirectory() as root, pytest.MonkeyPatch.context() as patch:
        home = Path(root) / "0"
        home.mkdir()
        chance = random.Random(seed)
        for life in range(1, 5):
            with patch.context() as patched:
                log, _, _ = restart(home)
                disk = LossyDisk(
                    home, durable={path.name: bytearray(path.read_bytes()) for path in home.iterdir()}
                )
                disk.install(patched)
                disk.operations = chance.randrange(60)
                attempted = None
                try:
                    for step, amount in steps_of(chance):
                        if step == "append":
                            number = log.number + 1
                            payload = puts(number * 7 + life, amount)
                            if not log.has_room(64 + len(payload)):
                                log.make_spare()
                            if not log.has_room(64 + len(payload)):
                                continue
                            attempted = (number, payload)
                            append(log, payload)
                            durable[number], attempted = payload, None
                        elif step == "recycle":
                            packs_have = max(packs_have, log.number - amount)
                            log.recycle(max(log.synced_to, packs_have))
                        else:
                            log.make_spare()
                except PowerCut:
                    pass
                log.close()
                home = Path(root) / str(life)
                disk.crash(chance, home)
            again, found, synced_to = restart(home)
            again.close()
            assert synced_to <= packs_have
            last = max([synced_to, *found])
            assert list(found) == list(range(synced_to + 1, last + 1))
            assert last >= max(durable, default=0)
            if attempted is not None and attempted[0] in found:
                durable[attempted[0]] = attempted[1]
            assert found == {number: payload for number, payload in durable.items() if number > synced_to}
