"""The committer's process: killed, stopped, and on a disk that fails."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from committer_process import FIRST, CommitterProcess
from put_rig import frame

from ingest import limits, sharding
from ingest.engine import _queue, metrics, readiness
from ingest.engine.commit.committer import EX_CORRUPT, EX_SYNC_FAILED
from ingest.engine.commit.lost_store import MAY_BE_MISSING
from ingest.limits import FRAME_SIZE
from ingest.status import Status
from ingest.store.log.log_reader import LogReader
from ingest.store.store import NO_SEGMENT

S, E, C, N, D, B = (
    *(Status.SAVED, Status.ERROR, Status.CONFLICT, Status.NO_SPACE, Status.DELETED),
    Status.BUSY,
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


def to_be_done_again(data: Path, log_id: bytes) -> int:
    """Frames and deletes that the next start would do again."""
    reader = LogReader(data / ".ingest/wal", log_id, limits.LOG_SEGMENT_SIZE)
    try:
        return sum(
            batch.header.puts + batch.header.deletes + batch.header.notes for batch in reader.batches()
        )
    finally:
        reader.close()


def stored(data: Path, index: int) -> bytes:
    with (data / sharding.pack_path(sharding.ticket_pack(index))).open("rb") as file:
        file.seek(sharding.slot_offset(sharding.ticket_slot(index)))
        return file.read(FRAME_SIZE)


class TestLife:
    def test_puts_duplicates_conflicts_and_deletes(self, data):
        with CommitterProcess(data) as committer:
            committer.start()
            assert committer.wait(committer.put(FIRST, 100)) == [{S}]
            assert committer.wait(committer.put(FIRST, 100), committer.put(FIRST, 1, b"x")) == [{S}, {C}]
            assert committer.wait(committer.delete(FIRST, 50)) == [{D}]
            assert committer.wait(committer.put(FIRST, 50), committer.put(FIRST + 50, 50)) == [{D}, {S}]
            assert committer.stop() == 0
        assert stored(data, FIRST + 99) == frame(FIRST + 99, b"data")

    def test_long_runs(self, data):
        with CommitterProcess(data) as committer:
            cookies = [committer.put(FIRST + 1296 * i, 1296) for i in range(5)]
            committer.start()  # after the puts: so it finds them all at once
            assert committer.wait(*cookies) == [{S}] * 5
            assert committer.queue.counter_row(1)[metrics.INDEX["BULK_FRAMES"]] > 0
            committer.kill()
            committer.start()
            assert committer.wait(committer.put(FIRST + 1296 * 4, 1295, b"data")) == [{S}]

    def test_a_term_flushes_and_leaves_nothing_to_do(self, data):
        with CommitterProcess(data) as committer:
            committer.start()
            committer.wait(committer.put(FIRST, 100), committer.delete(FIRST + 200, 3))
            assert committer.stop() == 0
            assert to_be_done_again(data, committer.node.store.log_id) == 0
            committer.start()
            assert committer.says("recovered 0 frames and 0 deletes")

    def test_also_when_the_last_flush_was_over_long_before(self, data):
        """Nothing was appended since: the log on the disk knows nothing of that flush yet."""
        with CommitterProcess(data) as committer:
            committer.start()
            committer.wait(committer.put(FIRST, 100))
            flushes = metrics.INDEX["FLUSHES"]
            committer.queue.set_worker_sleeping(0, True)
            while committer.queue.counter_row(1)[flushes] == 0:
                committer.wait(committer.put(FIRST))  # a duplicate: answered, not logged
            assert committer.stop() == 0
            assert to_be_done_again(data, committer.node.store.log_id) == 0

    def test_a_term_answers_what_was_handed_over(self, data):
        with CommitterProcess(data) as committer:
            committer.start()
            cookies = [committer.put(FIRST + 1296 * i, 500) for i in range(10)]
            assert committer.stop() == 0
            assert [set(committer.answers[cookie]) for cookie in cookies] == [{S}] * 10

    def test_a_term_before_anything(self, data):
        with CommitterProcess(data) as committer:
            committer.start()
            assert committer.stop() == 0
            committer.start()
            assert committer.stop() == 0


class TestLost:
    """The data directory is not the one that was opened: nothing is saved, and nobody is told so."""

    @staticmethod
    def answers(committer: CommitterProcess, cookie: int) -> set[Status | None]:
        return committer.wait(cookie)[0]

    def until(self, committer: CommitterProcess, status: Status) -> None:
        """Duplicates of the first frame, until one is answered so: a look may be as old as POSSESSION_INTERVAL_S."""
        while self.answers(committer, committer.put(FIRST)) != {status}:
            pass

    @pytest.mark.parametrize("name", ["", ".ingest", ".ingest/lock", ".ingest/wal", ".ingest/wal/0000.log"])
    def test_all_is_refused_until_it_is_back(self, data, name):
        away = data.with_name("away")
        with CommitterProcess(data) as committer:
            committer.start()
            committer.wait(committer.put(FIRST, 100))
            (data / name).rename(away)
            self.until(committer, B)
            long = [committer.put(FIRST + 1296 * i, 1296) for i in range(1, 4)]
            assert committer.wait(committer.put(FIRST), committer.put(FIRST + 100), *long) == [{B}] * 5
            assert committer.wait(committer.put(FIRST, 1, b"rival"), committer.delete(FIRST, 3)) == [{B}, {B}]
            assert readiness.of_the_queue(committer.queue) == ["data directory lost"]
            assert not (data / name).exists(), "it was made anew"
            away.rename(data / name)
            self.until(committer, S)
            assert committer.wait(committer.put(FIRST + 100), committer.delete(FIRST, 3)) == [{S}, {D}]
            assert readiness.of_the_queue(committer.queue) == []
            assert (
                committer.says("nothing is saved any more")
                and committer.log().count("nothing is saved any more") == 1
            )
            assert committer.stop() == 0

    def next_is_whole(self, committer, data):
        """A thread makes the next segment: one that is removed before that has looked at it is just made again."""
        path = data / ".ingest/wal/0001.log"
        while not path.exists() or path.stat().st_size < limits.LOG_SEGMENT_SIZE:
            committer.wait(committer.put(FIRST, 1))

    @pytest.mark.parametrize("segment", [0, 1])  # the one that is written, and the one that is next
    def test_a_segment_of_the_log_that_is_removed(self, data, segment):
        path = data / f".ingest/wal/{segment:04}.log"
        with CommitterProcess(data) as committer:
            committer.start()
            committer.wait(committer.put(FIRST, 100))
            self.next_is_whole(committer, data)
            path.unlink()
            self.until(committer, B)
            assert committer.says(f"{path} is gone; nothing is saved any more")
            assert committer.wait(committer.put(FIRST + 100)) == [{B}]
            # What was answered before is in the packs when it ends, and the next one says what it found.
            assert committer.stop() == 0
            committer.start()
            assert committer.wait(committer.put(FIRST, 100), committer.put(FIRST + 100)) == [{S}, {S}]
            assert committer.stop() == 0

    @pytest.mark.parametrize("segment", [0, 1])
    def test_who_recovers_after_a_segment_was_removed_says_so(self, data, segment):
        path = data / f".ingest/wal/{segment:04}.log"
        with CommitterProcess(data) as committer:
            committer.start()
            committer.wait(committer.put(FIRST, 100))
            self.next_is_whole(committer, data)
            path.unlink()
            self.until(committer, B)
            committer.kill()
            committer.start()
            self.until(committer, S)
            assert committer.says(MAY_BE_MISSING)
            assert committer.stop() == 0
            assert committer.says(MAY_BE_MISSING) and committer.log().count(MAY_BE_MISSING) == 1

    def test_a_log_without_segments_is_told_of(self, data):
        with CommitterProcess(data) as committer:
            committer.start()
            assert NO_SEGMENT not in committer.log(), "a new store has none"
            committer.wait(committer.put(FIRST, 100))
            assert committer.stop() == 0
            for path in (data / ".ingest/wal").glob("*.log"):
                path.unlink()
            committer.start()
            assert committer.says(NO_SEGMENT) and committer.log().count(NO_SEGMENT) == 1
            assert committer.wait(committer.put(FIRST, 100)) == [{S}]
            assert committer.stop() == 0
            committer.start()
            assert committer.says(NO_SEGMENT) and committer.log().count(NO_SEGMENT) == 1, "it has them again"

    @pytest.mark.parametrize("reserve", [0, 1 << 60])  # with room, and without
    def test_one_that_nobody_puts_into_says_so_too(self, data, reserve):
        with CommitterProcess(data, reserve=reserve) as committer:
            committer.start()
            shutil.rmtree(data)
            while not committer.queue.flags & _queue.LOST:
                assert not select.select([committer.pidfd], [], [], 0.01)[0], "it has ended"

    def test_the_next_committer_neither_recovers_nor_saves(self, data):
        """What lies there by now may be another store, with a log of its own."""
        away = data.with_name("away")
        with CommitterProcess(data) as committer:
            committer.start()
            committer.wait(committer.put(FIRST, 100))
            os.kill(committer.pid, signal.SIGSTOP)
            under_way = [
                committer.put(FIRST + 300, 3),
                committer.put(FIRST + 400),
                committer.delete(FIRST, 1),
            ]
            committer.kill()
            data.rename(away)
            shutil.copytree(away, data)
            before = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
            committer.start()
            # Not BUSY, which says that it is not stored: the committer before may have put it into the log.
            assert committer.wait(*under_way) == [{E}] * 3
            assert committer.wait(committer.put(FIRST), committer.put(FIRST + 200)) == [{B}, {B}]
            assert {path: path.read_bytes() for path in data.rglob("*") if path.is_file()} == before
            assert committer.stop() == EX_SYNC_FAILED, "nothing is flushed: who ends the server learns that"
            committer.start()
            shutil.rmtree(data)
            away.rename(data)
            assert committer.wait_end() == EX_SYNC_FAILED  # another one may recover now
            assert committer.queue.flags & _queue.LOST, "who recovers has to say it, be it the second to try"
            assert "frames are saved" not in committer.log(), "they are not before a recovery"
            committer.start()
            assert committer.wait(committer.put(FIRST, 100), committer.put(FIRST + 200)) == [{S}, {S}]
            assert committer.says(MAY_BE_MISSING) and committer.log().count(MAY_BE_MISSING) == 1
            assert not committer.queue.flags & _queue.LOST
            assert committer.stop() == 0


class TestKill:
    def test_what_was_answered_is_there_and_the_rest_is_answered_by_the_next(self, data):
        with CommitterProcess(data) as committer:
            cookies = []
            for round_ in range(5):
                committer.start()
                first = FIRST + 1296 * 20 * round_
                done = committer.put(first, 200)
                committer.wait(done)
                cookies += [
                    done,
                    *(committer.put(first + 1296 * i, 300) for i in range(1, 4)),
                    committer.delete(first, 5),
                ]
                committer.kill()
            committer.start()
            committer.wait(*cookies)
            for i, cookie in enumerate(cookies):
                assert set(committer.answers[cookie]) == ({D} if i % 5 == 4 else {S})
            for round_ in range(5):
                first = FIRST + 1296 * 20 * round_
                assert committer.wait(committer.put(first, 5), committer.put(first + 5, 5)) == [{D}, {S}]
                assert committer.wait(committer.put(first + 1296, 5, b"rival")) == [{C}]

    def test_runs_of_another_epoch_wait_for_their_worker(self, data):
        with CommitterProcess(data) as committer:
            committer.start()
            committer.kill()
            cookie = committer.put(FIRST)
            committer.start()
            assert committer.wait(cookie) == [{S}]
            assert committer.queue.epoch == committer.queue.worker_epoch(0)

    def test_corruption_ends_it_for_good(self, data):
        with CommitterProcess(data) as committer:
            committer.start()
            for i in range(3):
                committer.wait(committer.put(FIRST + i))
            committer.kill()
            log = data / ".ingest/wal/0000.log"
            with log.open("r+b") as file:
                file.seek(4096)
                file.write(b"\0" * 64)
            committer.start(wait=False)
            assert committer.wait_end() == EX_CORRUPT
            assert committer.says("batch 1 at offset 4096 is bad")

    def test_garbage_of_a_worker_ends_it_and_loses_nothing(self, data):
        with CommitterProcess(data) as committer:
            committer.start()
            committer.wait(committer.put(FIRST, 10))
            committer.queue.submit(0, FIRST, 2**32 - 1, 1, 0, 1)
            assert committer.wait_end() == 70
            committer.start()
            assert committer.wait(committer.put(FIRST, 10)) == [{S}]


class TestSpace:
    def test_below_the_reserve(self, data):
        with CommitterProcess(data, reserve=1 << 60) as committer:
            committer.start()
            assert committer.wait(committer.put(FIRST, 10), committer.put(FIRST + 1296 * 7, 1296)) == [
                {N},
                {N},
            ]
            assert committer.queue.flags & 2
            assert sorted(os.listdir(data)) == [".ingest"]

    def test_a_committer_that_has_nothing_to_do_looks_too(self, data):
        with CommitterProcess(data, reserve=1 << 60) as committer:
            committer.start()
            looks = 0
            while not committer.queue.flags & _queue.NO_SPACE:
                looks += 1
                assert looks < 1000 and not select.select([committer.pidfd], [], [], 0.02)[0]
            assert committer.says("no space: ")

    def test_a_log_that_gets_no_first_segment_makes_the_node_not_ready(self, data):
        """Whatever the reason: puts and deletes are answered ERROR until it has one."""
        with CommitterProcess(data) as committer:
            committer.start()
            in_the_way = data / ".ingest/wal/0000.log"
            in_the_way.mkdir()
            assert committer.wait(committer.put(FIRST, 10)) == [{E}]
            assert readiness.of_the_queue(committer.queue) == ["no log"]
            in_the_way.rmdir()
            looks = 0
            while readiness.of_the_queue(committer.queue):
                looks += 1
                assert looks < 1000 and not select.select([committer.pidfd], [], [], 0.02)[0]
            assert committer.wait(committer.put(FIRST, 10)) == [{S}]
            assert committer.says("the log grows again")

    def test_a_log_without_room_for_segments_goes_on_with_one(self, tmp_path, data):
        """The log lies on a file system that takes one segment and a half."""
        small = tmp_path / "small"
        if not small_file_system(small):
            pytest.skip("no file system whose size a test may choose: it takes the right to mount")
        try:
            with CommitterProcess(data, wal_dir=small / "wal") as committer:
                committer.start()
                for round_ in range(12):
                    cookies = [committer.put(FIRST + 1296 * (round_ * 40 + i), 100) for i in range(40)]
                    assert committer.wait(*cookies) == [{S}] * 40
                assert committer.says("the log does not grow")
                assert committer.stop() == 0
        finally:
            subprocess.run(["umount", "-l", small], check=True)


def small_file_system(path: Path) -> bool:
    """Mounts a tmpfs of 48 MiB, one log segment of 32 and half of another; False where a test may not mount."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", path]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def strace_works() -> bool:
    strace = shutil.which("strace")
    if strace is None:
        return False
    probe = subprocess.run(
        [strace, "-o", "/dev/null", "-e", "inject=getpid:error=EPERM", "true"],
        capture_output=True,
        check=False,
    )
    return probe.returncode == 0


needs_strace = pytest.mark.skipif(not strace_works(), reason="strace is not installed, or may not trace")


@needs_strace
class TestFailingDisk:
    def run(
        self, data: Path, inject: str, batches: int = 4, packs: int = 1, deletes: int = 0, file: str = ""
    ) -> dict[str, object]:
        """One life of a committer under `inject`, of calls on `file` only if there is one. With one pack, each batch of
        puts is one commit."""
        only = ["-P", str(data / file)] if file else []
        command = [
            "strace", "-f", "-qq", "-o", "/dev/null", *only, "-e", f"inject={inject}", sys.executable,
            str(Path(__file__).parent / "committer_process.py"), str(data), str(batches), str(packs), str(deletes),
        ]  # fmt: skip
        paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parent.parent)])
        done = subprocess.run(
            command,
            env=os.environ | {"PYTHONPATH": paths},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        assert isinstance(result, dict)
        assert result["code"] in (0, EX_SYNC_FAILED), result
        assert ("saving stops until recovery" in str(result["log"])) == (result["code"] == EX_SYNC_FAILED)
        return result

    def check(self, data: Path, answers: list[list[list[str | None]]], packs: int = 1) -> None:
        """The next committer recovers: what was SAVED is there, all else can be put and is then there too."""
        with CommitterProcess(data) as committer:
            committer.start()
            for batch, some in enumerate(answers):
                for i, statuses in enumerate(some):
                    first = FIRST + 1296 * (batch * packs + i)
                    if set(statuses) == {"SAVED"}:
                        assert stored(data, first + 2) == frame(first + 2, b"data")
                        assert committer.wait(committer.put(first, 3, b"rival")) == [{C}]
                    assert committer.wait(committer.put(first, 3)) == [{S}]

    @pytest.mark.parametrize("when", [1, 2, 3, 4])
    def test_a_sync_of_the_log_that_fails(self, data, when):
        """The first sync is of the segment's header, each other one of a batch."""
        result = self.run(data, f"fdatasync:error=EIO:when={when}")
        assert result["code"] == EX_SYNC_FAILED
        answers = result["answers"]
        failed = max(0, when - 2)
        assert answers[: failed + 1] == [[["SAVED"] * 3]] * failed + [[["ERROR"] * 3]]
        assert answers[failed + 1 :] in ([], [[[None] * 3]]), "nothing is saved after it"
        self.check(data, answers)

    @pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
    def test_a_write_that_fails(self, data, error):
        """From the first write on: of the pack's header, of the new segment, of the batch, of slots, of bits, ..."""
        for when in range(1, 16, 2):
            home = data.with_name(f"data-{when}")
            result = self.run(home, f"pwrite64:error={error}:when={when}+", batches=2)
            statuses = {status for some in result["answers"] for answers in some for status in answers}
            assert statuses <= {"SAVED", "ERROR", "NO_SPACE", None}
            assert statuses & {"ERROR", "NO_SPACE"}
            self.check(home, result["answers"])

    @pytest.mark.parametrize(
        ("call", "error"), [("pwrite64", "ENOSPC"), ("fsync", "EDQUOT"), ("openat", "ENOSPC")]
    )
    def test_a_first_segment_that_finds_no_room_is_no_sync_failure(self, data, call, error):
        result = self.run(data, f"{call}:error={error}", file=FIRST_SEGMENT, deletes=2)
        assert result["code"] == 0
        assert result["answers"] == [[["NO_SPACE"] * 3]] * 4 + [[["NO_SPACE"]]]
        assert "the log does not grow, and has no segment yet" in str(result["log"])
        assert not (data / FIRST_SEGMENT).exists(), "it gave back what it had taken"
        self.check(data, result["answers"])

    def test_a_first_segment_that_meets_a_bad_disk_is_no_sync_failure(self, data):
        result = self.run(data, "pwrite64:error=EIO", file=FIRST_SEGMENT, deletes=2)
        assert result["code"] == 0
        assert result["answers"] == [[["ERROR"] * 3]] * 4 + [[["ERROR"]]]
        self.check(data, result["answers"])

    @pytest.mark.parametrize("error", ["EMFILE", "ENFILE"])
    def test_without_a_descriptor_for_the_first_segment_frames_wait(self, data, error):
        result = self.run(data, f"openat:error={error}:when=1..2", file=FIRST_SEGMENT)
        assert result["code"] == 0
        assert result["answers"] == [[["SAVED"] * 3]] * 4
        assert "the log does not grow" in str(result["log"])
        assert "the log grows again" in str(result["log"])

    def test_a_log_that_never_gets_its_second_segment_goes_round_in_the_first(self, data):
        """Each time it is full the packs are flushed, and it starts anew, whenever growth is tried again."""
        script = ROUNDS_SCRIPT.format(tests=str(Path(__file__).parent), data=str(data))
        done = subprocess.run(
            ["strace", "-f", "-qq", "-o", "/dev/null", "-P", str(data / ".ingest/wal/0001.log"),
             "-e", "inject=openat:error=ENOSPC", sys.executable, "-c", script],
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)},
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        code, statuses, log = json.loads(done.stdout)
        assert (code, statuses) == (0, ["SAVED"])
        assert "the log does not grow, it goes on with what it has" in log
        assert [path.name for path in data.glob(".ingest/wal/*.log")] == ["0000.log"]

    def test_a_sync_of_the_packs_that_fails_keeps_the_log(self, data):
        result = self.run(data, "syncfs:error=EIO:when=1")
        assert result["code"] == EX_SYNC_FAILED
        assert "the log keeps them" in str(result["log"])
        assert result["answers"] == [[["SAVED"] * 3]] * 4
        for path in data.rglob("obj"):  # as if nothing that was not synced had reached the disk
            path.unlink()
        self.check(data, result["answers"])

    def test_a_hole_that_cannot_be_made(self, data):
        """The delete is in the log and its bits are set: the next committer zeroes the slots."""
        result = self.run(data, "fallocate:error=EIO:when=1", batches=1, deletes=2)
        assert result["code"] == EX_SYNC_FAILED
        assert result["answers"] == [[["SAVED"] * 3], [["ERROR"]]]
        with CommitterProcess(data) as committer:
            committer.start()
            assert committer.wait(committer.put(FIRST, 2), committer.put(FIRST + 2, 1)) == [{D}, {S}]
        assert stored(data, FIRST + 1) == bytes(FRAME_SIZE)

    @pytest.mark.parametrize("error", ["ENOSPC", "EDQUOT", "EOPNOTSUPP"])
    def test_a_hole_that_finds_no_room_is_written_with_zeros(self, data, error):
        """What makes room must not need any."""
        result = self.run(data, f"fallocate:error={error}", batches=1, deletes=2)
        assert result["code"] == 0
        assert result["answers"] == [[["SAVED"] * 3], [["DELETED"]]]
        assert stored(data, FIRST) == stored(data, FIRST + 1) == bytes(FRAME_SIZE)
        assert stored(data, FIRST + 2) == frame(FIRST + 2, b"data")

    @pytest.mark.parametrize("when", [1, 2])
    def test_a_bulk_job_whose_sync_fails(self, data, when):
        """Both packs are written, one of them perhaps synced, none is noted: all of the job is ERROR."""
        script = BULK_SCRIPT.format(tests=str(Path(__file__).parent), data=str(data))
        done = subprocess.run(
            ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"inject=fdatasync:error=EIO:when={when}",
             sys.executable, "-c", script],
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)},
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        code, statuses = json.loads(done.stdout)
        assert code == EX_SYNC_FAILED
        assert set(statuses) == {"ERROR"}
        with CommitterProcess(data) as committer:
            committer.start()
            assert (
                committer.wait(*(committer.put(FIRST + 1296 * i, 1296, b"other") for i in range(2)))
                == [{S}] * 2
            )
            committer.stop()
        assert stored(data, FIRST) == frame(FIRST, b"other")

    def test_a_bulk_job_whose_pack_s_header_can_t_be_synced(self, data):
        """The sync before the slots is one like all others: it is never tried again, and only recovery can tell."""
        with CommitterProcess(data) as committer:
            small = committer.put(FIRST, 1)
            committer.start()
            committer.wait(small)
            committer.kill()
        script = BULK_SCRIPT.format(tests=str(Path(__file__).parent), data=str(data)).replace(
            "FIRST + 1296 * i, 1296", "FIRST + 1 + 1296 * i, 1295"
        )
        pack = data / sharding.pack_path(sharding.ticket_pack(FIRST))
        done = subprocess.run(
            ["strace", "-f", "-qq", "-o", "/dev/null", "-P", str(pack), "-e", "inject=fdatasync:error=EIO:when=1",
             sys.executable, "-c", script],
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)},
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        code, statuses = json.loads(done.stdout)
        assert code == EX_SYNC_FAILED
        assert "ERROR" in statuses and "SAVED" not in statuses[:1295]


FIRST_SEGMENT = ".ingest/wal/0000.log"

# 70 MB through the log, none of it in runs that are long enough to go past it.
ROUNDS_SCRIPT = """
import json, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from committer_process import FIRST, CommitterProcess
with CommitterProcess(Path({data!r})) as committer:
    committer.start()
    statuses = set()
    for round_ in range(12):
        cookies = [committer.put(FIRST + 1296 * (round_ * 40 + i), 100) for i in range(40)]
        statuses.update(*committer.wait(*cookies))
    print(json.dumps([committer.stop(), [status.name for status in statuses], committer.log()]))
"""

BULK_SCRIPT = """
import json, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from committer_process import FIRST, CommitterProcess
with CommitterProcess(Path({data!r})) as committer:
    cookies = [committer.put(FIRST + 1296 * i, 1296, b"bulk") for i in range(2)]
    committer.start()
    committer.wait(*cookies)
    print(json.dumps([committer.wait_end(), [status.name for cookie in cookies for status in committer.answers[cookie]]]))
"""


@needs_strace
def test_a_new_pack_s_header_goes_past_the_page_cache_before_its_slots_do(data, tmp_path):
    """Or a power cut could keep the size that the slots give the file, and not the header."""
    script = BULK_SCRIPT.format(tests=str(Path(__file__).parent), data=str(data)).replace(
        "wait_end()", "stop()"
    )
    trace = tmp_path / "strace.log"
    subprocess.run(
        ["strace", "-f", "-qq", "-o", str(trace), "-e", "trace=pwrite64", "-y", "-s", "8",
         sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)},
        check=True, timeout=120, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    first: dict[str, str] = {}  # call on each pack
    for call in re.findall(r"pwrite64\(\d+<([^>]*/obj)>, (.*)", trace.read_text()):
        first.setdefault(*call)
    assert len(first) == 2
    for call in first.values():
        assert '"INGPACK1"..., 4096, 0' in call, call


@needs_strace
def test_a_pack_of_the_committer_before_is_synced_before_a_bulk_run_goes_into_it(data, tmp_path):
    """Its header may be in the page cache only; the disk must not have the size of the slots without it."""
    with CommitterProcess(data) as committer:
        small = committer.put(FIRST, 1)
        committer.start()
        committer.wait(small)
        committer.kill()
    script = (
        BULK_SCRIPT.format(tests=str(Path(__file__).parent), data=str(data))
        .replace("wait_end()", "stop()")
        .replace("FIRST + 1296 * i, 1296", "FIRST + 1 + 1296 * i, 1295")
    )
    trace = tmp_path / "strace.log"
    subprocess.run(
        ["strace", "-f", "-qq", "-o", str(trace), "-e", "trace=pwrite64,fdatasync", "-y", "-s", "8",
         sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)},
        check=True, timeout=120, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    name = sharding.pack_path(sharding.ticket_pack(FIRST))
    calls = re.findall(rf"(pwrite64|fdatasync)\(\d+<[^>]*/{name}>(.*)", trace.read_text())
    large = next(i for i, (_, rest) in enumerate(calls) if re.search(r", \d{6,}, \d+\) = ", rest))
    assert "fdatasync" in [call for call, _ in calls[:large]], calls


def test_a_new_committer_looks_for_space_itself(data):
    with CommitterProcess(data) as committer:
        committer.queue.set_flag(_queue.NO_SPACE)  # as the one before left it
        committer.start()
        assert committer.wait(committer.put(FIRST, 1)) == [{S}]
        assert not committer.queue.flags & _queue.NO_SPACE


@pytest.mark.parametrize("left", [_queue.NO_SPACE, _queue.NO_LOG, _queue.NO_SPACE | _queue.NO_LOG])
def test_a_new_committer_says_nothing_that_was_true_of_the_last_one(data, left):
    """Its log has segments, so that nothing that it does would say otherwise."""
    with CommitterProcess(data) as committer:
        committer.start()
        committer.wait(committer.put(FIRST, 1))
        committer.kill()
        committer.queue.set_flag(left)
        committer.start()
        assert committer.wait(committer.put(FIRST + 1, 1)) == [{S}]
        assert not committer.queue.flags & (_queue.NO_SPACE | _queue.NO_LOG)
