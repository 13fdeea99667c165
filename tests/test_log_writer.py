"""Appending, recycling and growing."""

from __future__ import annotations

import errno
import itertools
import os
import resource
import stat
import threading

import pytest
from log_rig import LOG_ID, SEGMENT_SIZE, append, buffer_of, new_log, puts, read_log
from lossy_disk import LossyDisk

from ingest import limits
from ingest.store.log import log_writer
from ingest.store.log.log_format import BLOCK_SIZE, SegmentHeader
from ingest.store.log.log_writer import LogWriter, Segment
from ingest.store.possession import Possession


@pytest.fixture
def log(tmp_path):
    log = new_log(tmp_path / "wal")
    yield log
    log.close()


def header(path):
    return SegmentHeader.parse(path.read_bytes()[:BLOCK_SIZE])


def fill(log, batches=15):
    """15 batches of two frames fill a segment."""
    for _ in range(batches):
        append(log, puts(log.number + 1))


def test_what_was_appended_is_read(log, tmp_path):
    for number in range(1, 6):
        assert append(log, puts(number)) == number
    found = read_log(tmp_path / "wal")
    assert found.batches == {number: puts(number) for number in range(1, 6)}
    assert (found.number, found.synced_to, found.use) == (5, 0, 1)


def test_segments_are_whole_from_the_start_and_ours_alone(log, tmp_path):
    append(log, puts(1))
    (path,) = (tmp_path / "wal").iterdir()
    assert path.name == "0000.log"
    status = path.stat()
    assert (status.st_size, stat.S_IMODE(status.st_mode)) == (SEGMENT_SIZE, 0o600)
    assert status.st_blocks * 512 >= SEGMENT_SIZE, "its blocks are there, not a hole"


def test_a_segment_begins_with_its_use_and_first_batch(log, tmp_path):
    fill(log, 16)
    first, second = header(tmp_path / "wal/0000.log"), header(tmp_path / "wal/0001.log")
    assert (first.use, first.first_batch, first.log_id) == (1, 1, LOG_ID)
    assert (second.use, second.first_batch, second.synced_to) == (2, 16, 0)
    assert first.seed != second.seed


def test_segments_are_used_again_oldest_first(log, tmp_path):
    fill(log, 45)
    log.recycle(30)
    assert log.segments == 3
    fill(log, 15)
    assert log.segments == 3
    assert [header(tmp_path / f"wal/000{i}.log").use for i in range(3)] == [4, 2, 3]
    assert header(tmp_path / "wal/0000.log").synced_to == 30
    fill(log, 15)
    assert [header(tmp_path / f"wal/000{i}.log").use for i in range(3)] == [4, 5, 3]


def test_a_segment_is_recycled_only_when_all_of_it_is_synced(log):
    fill(log, 30)
    log.recycle(14)
    assert (log.used, log.synced_to) == (2 * SEGMENT_SIZE, 14)
    log.recycle(15)
    assert log.used == SEGMENT_SIZE


def test_the_segment_that_is_written_to_is_not_recycled(log):
    fill(log, 5)
    log.recycle(5)
    assert log.used == SEGMENT_SIZE
    fill(log, 1)
    assert log.number == 6


def test_batches_say_how_far_the_packs_are(log, tmp_path):
    fill(log, 3)
    log.recycle(2)
    assert log.recorded == 0
    fill(log, 1)
    assert log.recorded == 2
    found = read_log(tmp_path / "wal")
    assert found.synced_to == 2
    assert list(found.batches) == [3, 4]


def test_a_new_segment_s_header_is_durable_before_a_batch_is_written(tmp_path, monkeypatch):
    """Else a power cut can leave the old header over a new batch: like damage to the old ones."""
    (tmp_path / "wal").mkdir()
    disk = LossyDisk(tmp_path / "wal")
    disk.install(monkeypatch)
    log = new_log(tmp_path / "wal")
    fill(log, 45)
    log.recycle(30)
    headers = []
    real = log_writer.write_all

    def write_all(fd, buffer, offset):
        if offset == BLOCK_SIZE:
            headers.append(SegmentHeader.parse(bytes(disk.durable["0000.log"][:BLOCK_SIZE])))
        real(fd, buffer, offset)

    monkeypatch.setattr(log_writer, "write_all", write_all)
    fill(log, 1)
    assert [(h.use, h.first_batch, h.synced_to) for h in headers] == [(4, 46, 30)]
    log.close()


def test_nothing_is_synced_for_sync_os(tmp_path, monkeypatch):
    log = new_log(tmp_path / "wal", sync=False)
    log.make_spare()
    disk = LossyDisk(tmp_path / "wal")
    disk.install(monkeypatch)
    append(log, puts(1))
    append(log, puts(2))
    assert disk.syncs == 0
    assert read_log(tmp_path / "wal").number == 2
    log.close()


def test_the_log_is_bounded(log):
    fill(log, 60)
    assert log.segments == log.segments_max == 4
    assert not log.has_room(8192)
    assert (log.unallocated, log.needs_spare) == (0, False)
    log.recycle(15)
    assert log.has_room(8192)


def test_names_never_take_a_fifth_digit(tmp_path):
    log = log_writer.LogWriter(tmp_path, LOG_ID, size_max=1 << 50, segment_size=SEGMENT_SIZE)
    assert log.segments_max == 10_000


def test_a_spare_is_made_ahead_and_only_one(log):
    assert log.needs_spare
    log.make_spare()
    log.make_spare()
    assert (log.segments, log.needs_spare) == (1, False)
    fill(log, 1)
    assert log.segments == 1


def test_a_spare_is_never_made_of_another_log_s_segment(log, tmp_path):
    """The log's directory was moved away, and another store's is in its place."""
    (tmp_path / "wal").rename(tmp_path / "moved")
    (tmp_path / "wal").mkdir()
    (tmp_path / "wal/0000.log").write_bytes(b"another log's")
    with pytest.raises(OSError, match=r"0000\.log") as caught:
        log.make_spare()
    assert caught.value.errno in (errno.ENOENT, errno.ESTALE)
    assert (tmp_path / "wal/0000.log").read_bytes() == b"another log's"
    (tmp_path / "wal/0000.log").unlink()
    (tmp_path / "wal").rmdir()
    (tmp_path / "moved").rename(tmp_path / "wal")
    append(log, puts(1))
    assert read_log(tmp_path / "wal").batches == {1: puts(1)}


def test_two_that_make_a_spare_at_once_do_not_take_the_same_file(tmp_path):
    for round_ in range(10):
        directory = tmp_path / str(round_)
        log = new_log(directory)
        thread = threading.Thread(target=log.make_spare)
        thread.start()
        fill(log, 16)
        thread.join()
        names = sorted(path.name for path in directory.iterdir())
        assert len(names) == log.segments in (2, 3)
        assert read_log(directory).number == 16
        log.close()


def broken_fill(monkeypatch):
    """A disk that has room for half a segment."""
    real = os.pwrite

    def pwrite(fd, data, offset):
        if offset >= SEGMENT_SIZE // 2:
            raise OSError(errno.ENOSPC, "no space")
        return real(fd, data[: SEGMENT_SIZE // 2], offset)

    monkeypatch.setattr(os, "pwrite", pwrite)


def test_a_full_disk_takes_no_spare_and_gets_its_blocks_back(log, tmp_path, monkeypatch):
    fill(log, 15)
    with monkeypatch.context() as patch:
        broken_fill(patch)
        with pytest.raises(OSError, match="no space"):
            log.make_spare()
    assert sorted(path.name for path in (tmp_path / "wal").iterdir()) == ["0000.log"]
    assert log.segments == 1
    assert not log.has_room(8192)
    log.make_spare()
    assert log.has_room(8192)


def test_a_log_that_cannot_grow_goes_on_in_the_segment_that_it_has(log, tmp_path, monkeypatch):
    fill(log, 15)
    with monkeypatch.context() as patch:
        broken_fill(patch)
        with pytest.raises(OSError, match="no space"):
            log.make_spare()
    log.recycle(14)
    assert not log.has_room(8192)
    log.recycle(15)
    assert log.has_room(8192)
    fill(log, 15)
    assert header(tmp_path / "wal/0000.log").first_batch == 16
    found = read_log(tmp_path / "wal")
    assert (found.synced_to, list(found.batches)) == (15, list(range(16, 31)))
    fill(log, 1)
    assert log.segments == 2


def test_a_segment_that_starts_anew_waits_for_its_turn(log, tmp_path):
    """As long as another one is free, the oldest is used: a header that is torn then costs nothing."""
    fill(log, 15)
    log.recycle(15)
    log.make_spare()
    fill(log, 1)
    assert [header(tmp_path / f"wal/000{i}.log").use for i in range(2)] == [1, 2]


def test_append_makes_no_segment(tmp_path):
    log = new_log(tmp_path / "wal")
    assert not log.has_room(8192)
    with pytest.raises(AssertionError, match="without room"):
        log.append(buffer_of(puts(1)), 2, 0, 0)
    assert list((tmp_path / "wal").iterdir()) == []
    log.close()


def test_the_last_descriptor_makes_a_segment(log):
    """Its directory was opened before."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(int(name) for name in os.listdir("/proc/self/fd")) + 1
    takers = [os.open("/dev/null", os.O_RDONLY) for _ in range(used)]  # no hole is left below
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(takers) + 2, hard))
        log.make_spare()
        assert log.segments == 1
        with pytest.raises(OSError) as caught:
            os.open("/dev/null", os.O_RDONLY)
        assert caught.value.errno == errno.EMFILE
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in takers:
            os.close(fd)


def test_a_file_system_that_writes_nothing_is_an_error(monkeypatch):
    monkeypatch.setattr(os, "pwrite", lambda *_: 0)
    with pytest.raises(OSError, match="wrote nothing"):
        log_writer.write_all(0, memoryview(b"x"), 0)


def test_short_writes_go_on_where_they_stopped(tmp_path, monkeypatch):
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[:3], at))
    with (tmp_path / "file").open("wb") as file:
        log_writer.write_all(file.fileno(), memoryview(b"0123456789"), 2)
    assert (tmp_path / "file").read_bytes() == b"\0\x000123456789"


def test_a_link_in_a_segment_s_place_is_not_followed(tmp_path):
    log = new_log(tmp_path / "wal")
    (tmp_path / "wal/0000.log").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError):
        append(log, puts(1))
    assert not (tmp_path / "elsewhere").exists()


def test_a_look_is_at_some_segments_and_all_have_their_turn(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "POSSESSION_SEGMENTS", 3)
    segments = [Segment(tmp_path / f"{i:04}.log", os.open(os.devnull, os.O_RDONLY)) for i in range(20)]
    log = LogWriter(tmp_path, bytes(16), size_max=1 << 30, in_use=segments[:8], free=segments[8:])
    looks = [log.opened_in_turn() for _ in range(7)]
    assert all(len(look) <= 5 and {segments[7].path, segments[8].path} <= set(look) for look in looks)
    assert set().union(*looks) == set(log.opened()) == {segment.path for segment in segments}
    log.close()


def test_a_loss_is_over_when_all_segments_are_there(tmp_path):
    paths = [tmp_path / f"{i}" for i in range(2)]
    opened = {path: os.open(path, os.O_CREAT | os.O_RDWR) for path in paths}
    turns = itertools.cycle(paths)
    possession = Possession({})
    possession.add_changing(lambda: opened, lambda: {path: opened[path] for path in [next(turns)]})
    paths[1].rename(tmp_path / "away")
    assert "is gone" in possession.look() + possession.look()
    assert all(possession.look() for _ in range(4))
    (tmp_path / "away").rename(paths[1])
    assert not possession.look()
    for fd in opened.values():
        os.close(fd)


STEPS = ("pwrite", "ftruncate", "fsync", "second fsync")  # the zeros, the size, the file, its name


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("step", STEPS)
def test_a_segment_that_could_not_be_made_leaves_nothing(log, tmp_path, monkeypatch, step, code):
    """Whatever step fails, and however often: no file, no descriptor, no name that is taken."""
    fill(log, 3)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with monkeypatch.context() as patch:
            name, calls = step.rpartition(" ")[2], itertools.count(1)
            real, which = getattr(os, name), 2 if "second" in step else 1

            def call(*arguments, real=real, calls=calls, which=which):
                if next(calls) == which:
                    raise OSError(code, os.strerror(code))
                return real(*arguments)

            patch.setattr(os, name, call)
            log._free.clear()
            with pytest.raises(OSError, match=os.strerror(code)):
                log.make_spare()
        assert len(os.listdir("/proc/self/fd")) == before
        assert [path.name for path in (tmp_path / "wal").iterdir()] == ["0000.log"]
        assert (log.segments, log.needs_spare, log.missing) == (1, True, [])
    log.make_spare()
    assert sorted(path.name for path in (tmp_path / "wal").iterdir()) == ["0000.log", "0001.log"]
    fill(log, 20)
    assert read_log(tmp_path / "wal").number == 23


@pytest.mark.parametrize(
    ("there", "missing", "made"),
    [
        ([], [], "0000"),
        ([0], [], "0001"),
        ([1], ["0000"], "0000"),
        ([0, 1, 2], [], "0003"),
        ([0, 2], ["0001"], "0001"),
        ([2, 5], ["0000", "0001", "0003", "0004"], "0000"),
        ([9], [f"{i:04d}" for i in range(9)], "0000"),
    ],
)
def test_segments_that_somebody_removed_are_named_and_made_again(tmp_path, there, missing, made):
    """Until all of them are there somebody has to be told."""
    segments = [Segment(tmp_path / f"{i:04d}.log", os.open(os.devnull, os.O_RDONLY)) for i in there]
    for split in (0, len(segments)):
        log = LogWriter(
            tmp_path, LOG_ID, size_max=20 * SEGMENT_SIZE, in_use=segments[:split], free=segments[split:],
            segment_size=SEGMENT_SIZE,
        )  # fmt: skip
        assert log.missing == [f"{name}.log" for name in missing]
        assert log.segments == len(there)
    log._free.clear()
    log.make_spare()
    assert [path.name for path in tmp_path.iterdir()] == [f"{made}.log"]
    assert log.missing == [f"{name}.log" for name in missing if name != made]
    log.close()


@pytest.mark.parametrize("segments", range(9))
def test_what_a_log_has_taken_and_may_still_take(tmp_path, segments):
    """Six at the most; three are the least that works well."""
    free = [Segment(tmp_path / f"{i:04d}.log", os.open(os.devnull, os.O_RDONLY)) for i in range(segments)]
    in_use = [free.pop() for _ in range(segments // 2)]
    size = limits.LOG_SEGMENT_SIZE
    log = LogWriter(tmp_path, LOG_ID, size_max=6 * size, in_use=in_use, free=free)
    assert (log.used, log.allocated) == (segments // 2 * size, segments * size)
    assert log.unallocated == max(0, 6 - segments) * size
    assert log.lacks == max(0, limits.LOG_SIZE_MIN // size - segments) * size
    assert log.needs_spare == (segments == 0), "as long as one is free none is made"
    assert not log.has_room(1) if segments == 0 else log.has_room(size - BLOCK_SIZE)
    assert log.opened().keys() == {segment.path for segment in (*in_use, *free)}
    log.close()


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ELOOP, errno.EACCES, errno.ENOSPC, errno.EMFILE])
def test_only_a_file_system_that_knows_no_direct_writes_gets_others(tmp_path, monkeypatch, code):
    """A file that is opened a second time after another error may be one that was not to be opened at all."""
    real, tries = os.open, []

    def open_(path, flags, *rest):
        tries.append(flags)
        if flags & os.O_DIRECT:
            raise OSError(code, os.strerror(code))
        return real(path, flags, *rest)

    monkeypatch.setattr(os, "open", open_)
    if code == errno.EINVAL:
        os.close(log_writer.open_segment(tmp_path / "0000.log"))
        assert tries == [tries[0], tries[0] & ~os.O_DIRECT]
        assert tries[1] & os.O_NOFOLLOW and tries[1] & os.O_CLOEXEC
        assert stat.S_IMODE((tmp_path / "0000.log").stat().st_mode) == 0o600
    else:
        with pytest.raises(OSError, match=os.strerror(code)):
            log_writer.open_segment(tmp_path / "0000.log")
        assert len(tries) == 1


@pytest.mark.parametrize("sync", [True, False])
def test_a_batch_that_could_not_be_written_is_not_one_that_the_log_knows(tmp_path, monkeypatch, sync):
    """Its segment must not be free again as if the packs had it, nor may the log say that it recorded anything with it."""
    log = new_log(tmp_path / "wal", sync=sync)
    fill(log, 3)
    log.recycle(2)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "no")))
        with pytest.raises(OSError, match="no"):
            append(log, puts(4))
    assert log.recorded == 0
    assert read_log(tmp_path / "wal").number == 3
    log.close()
