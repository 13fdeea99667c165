"""What the committer decides when it has no commit to make: how long it sleeps, whether there is room, how it ends."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
from committer_loop import Clock, Looped, Sleep, clock
from committer_process import FIRST
from test_commit_loop import to_be_done_again

from ingest import limits
from ingest.disk_wait import DiskWait
from ingest.engine import _queue, metrics
from ingest.engine.commit import committer as loop_module
from ingest.engine.commit.committer import EX_CORRUPT, EX_SYNC_FAILED, CommitLoop
from ingest.errors import CorruptionError
from ingest.status import Status
from ingest.store import possession
from ingest.store.log.log_format import BLOCK_SIZE

__all__ = ["clock"]

S, D, N, E = Status.SAVED, Status.DELETED, Status.NO_SPACE, Status.ERROR
NO_ROOM = 1 << 60  # bytes of reserve


@pytest.fixture
def committer(tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture) -> Iterator[Looped]:
    caplog.set_level(logging.INFO)
    with Looped(tmp_path / "node" / "data", clock) as committer:
        yield committer


def put(committer: Looped, index: int, status: Status = S) -> None:
    cookie = committer.put(index)
    assert committer.step()
    assert committer.answers[cookie] == [status]


def no_space(committer: Looped) -> bool:
    return bool(committer.queue.flags & _queue.NO_SPACE)


class TestSleep:
    """In ms, by what the loop's poll is called with."""

    def slept(self, committer: Looped) -> list[float]:
        assert committer.loop is not None and isinstance(committer.loop._poll, Sleep)
        committer.loop._sleep()
        slept, committer.loop._poll.slept = committer.loop._poll.slept, []
        return slept

    @pytest.mark.parametrize("since", [0.0, 0.3, 0.9995, 1.0, 7.0])
    def test_until_a_flush_is_due(self, committer: Looped, clock: Clock, since: float) -> None:
        loop = committer.start()
        assert self.slept(committer) == [1000]
        put(committer, FIRST)
        loop._flushed_at = clock.now
        clock.now += since
        assert self.slept(committer) == [pytest.approx(max(1, 1000 * (limits.FLUSH_INTERVAL_S - since)))]
        loop._begin_flush()
        assert self.slept(committer) == [1000], "who makes it rings when it is over"
        committer.finish()
        loop._end_flush()
        assert self.slept(committer) == [1000]

    @pytest.mark.parametrize("full", [False, True])
    @pytest.mark.parametrize("lost", [False, True])
    def test_it_looks_more_often_while_something_is_wrong(
        self, committer: Looped, clock: Clock, monkeypatch: pytest.MonkeyPatch, full: bool, lost: bool
    ) -> None:
        """And at both, whatever the other look finds; a flush that is due earlier is not forgotten for it."""
        monkeypatch.setattr(possession, "POSSESSION_INTERVAL_S", 0.0)
        loop = committer.start()
        put(committer, FIRST)
        clock.now += 10
        loop._flushed_at = clock.now
        loop.space.reserve = NO_ROOM if full else 0
        away = committer.data_dir.with_name("away")
        if lost:
            committer.data_dir.rename(away)
        assert self.slept(committer) == [250 if full or lost else 1000]
        assert no_space(committer) is full
        assert bool(committer.queue.flags & _queue.LOST) is lost
        clock.now += limits.FLUSH_INTERVAL_S - 0.1
        assert self.slept(committer) == [pytest.approx(100)]
        if lost:
            away.rename(committer.data_dir)

    @pytest.mark.parametrize(("left", "asleep"), [(0.5, 500), (30.0, 1000), (0.0, 1), (-3.0, 1)])
    def test_until_a_first_segment_is_tried_again(
        self, committer: Looped, clock: Clock, left: float, asleep: float
    ) -> None:
        loop = committer.start()
        loop._growth_errno, loop._grow_again_at = errno.EIO, clock.now + left
        assert self.slept(committer) == [pytest.approx(asleep)]

    def test_not_at_all_when_something_came_meanwhile(self, committer: Looped) -> None:
        committer.start()
        committer.put(FIRST)
        assert self.slept(committer) == []


class TestRoom:
    def test_it_looks_when_its_look_is_old_and_tells_each_change_once(
        self, committer: Looped, clock: Clock, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What is stored is answered, and a delete makes its room, whether there is any or not."""
        loop = committer.start()
        put(committer, FIRST)
        for number in range(1, 3):
            loop.space.reserve = NO_ROOM
            clock.now += limits.SPACE_CHECK_INTERVAL_S - 0.001
            put(committer, FIRST + 2 * number - 1)
            assert not no_space(committer), "the last look is not old enough"
            clock.now += 0.002
            put(committer, FIRST + 100, N)
            put(committer, FIRST, S)
            assert no_space(committer)
            clock.now += 1
            put(committer, FIRST + 100, N)
            assert caplog.text.count("new frames are refused") == number
            loop.space.reserve = 0
            put(committer, FIRST + 100, N)
            clock.now += 1
            put(committer, FIRST + 2 * number)
            clock.now += 1
            assert not loop._out_of_space()
            assert not no_space(committer)
            assert caplog.text.count("there is room again") == number
        deleted = committer.delete(FIRST, 5)
        loop.space.reserve = NO_ROOM
        clock.now += 1
        assert committer.step() and committer.answers[deleted] == [D]

    @pytest.mark.parametrize("code", [0, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE])
    @pytest.mark.parametrize("segments", [0, 1])
    def test_a_log_without_room_is_no_room(
        self, committer: Looped, clock: Clock, segments: int, code: int
    ) -> None:
        """Of a log that has a segment it is not, nor is another error."""
        loop = committer.start()
        if segments:
            put(committer, FIRST)
        clock.now += 1
        loop._growth_errno = code
        full = not segments and code in (errno.ENOSPC, errno.EDQUOT)
        assert loop._out_of_space() is full
        assert no_space(committer) is full
        loop._growth_errno = 0
        clock.now += 1
        assert not loop._out_of_space() and not no_space(committer)


class TestEnd:
    @pytest.mark.parametrize("flush", ["none", "under way", "over", "over, and more since"])
    @pytest.mark.parametrize("spare", [False, True])
    def test_the_next_start_does_nothing_again(self, committer: Looped, flush: str, spare: bool) -> None:
        loop = committer.start()
        put(committer, FIRST)
        if flush != "none":
            loop._begin_flush()
        if flush.startswith("over"):
            committer.finish()
            loop._end_flush()
        if flush != "over":
            put(committer, FIRST + 1)
        committer.finish()  # what the loop has not looked at yet
        if spare:
            loop._housekeep()
            committer.finish()

        def run(work: object) -> Future[None]:
            future: Future[None] = Future()
            work()  # type: ignore[operator]
            future.set_result(None)
            return future

        loop._submit = run  # type: ignore[method-assign, assignment]
        loop._end()
        assert loop.log.recorded == loop.log.synced_to
        committer.loop = None
        assert to_be_done_again_quickly(committer) == 0

    def test_one_that_did_nothing_writes_nothing(self, committer: Looped) -> None:
        loop = committer.start()
        loop._end()
        committer.loop = None
        assert not list(committer.data_dir.glob(".ingest/wal/*.log"))

    def test_a_log_without_room_for_a_last_batch_is_no_hindrance(
        self, committer: Looped, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loop = committer.start()
        put(committer, FIRST)
        loop._begin_flush()
        committer.finish()
        asked: list[int] = []
        monkeypatch.setattr(loop.log, "has_room", lambda length: asked.append(length) is not None)
        number = loop.log.number
        loop._end()
        committer.loop = None
        assert loop.log.number == number and asked == [BLOCK_SIZE]


def to_be_done_again_quickly(committer: Looped) -> int:
    from committer_rig import SEGMENT_SIZE

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "LOG_SEGMENT_SIZE", SEGMENT_SIZE)
        return to_be_done_again(committer.data_dir, committer.node.store.log_id)


@pytest.mark.parametrize("starting", [False, True])
@pytest.mark.parametrize(
    ("error", "code", "full"),
    [
        (OSError(errno.ENOSPC, "full"), EX_SYNC_FAILED, True),
        (OSError(errno.EDQUOT, "full"), EX_SYNC_FAILED, True),
        (OSError(errno.EIO, "bad"), EX_SYNC_FAILED, False),
        (OSError(errno.EROFS, "bad"), EX_SYNC_FAILED, False),
        (CorruptionError("bad"), EX_CORRUPT, False),
    ],
)
def test_a_recovery_that_fails(
    committer: Looped,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    code: int,
    full: bool,
    starting: bool,
) -> None:
    """Only one that found no room answers what comes, and only where workers serve already: else somebody would read."""

    def fail(*_: object, **__: object) -> None:
        raise error

    loop = committer.make()
    monkeypatch.setattr(loop_module, "recover", fail)
    monkeypatch.setattr(limits, "RECOVERY_RETRY_MIN_S", 0.0)
    if starting:
        committer.queue.set_flag(_queue.STARTING)
    counters = committer.queue.counter_row(_queue.ROW_COMMITTER)
    assert loop.run() == code
    assert no_space(committer) is full
    serves = full and not starting
    assert committer.queue.epoch % 2 == (0 if serves else 1)
    assert counters[metrics.INDEX["SYNC_FAILURES"]] == (code == EX_SYNC_FAILED)
    assert counters[metrics.INDEX["RECOVERIES"]] == 0


def test_an_error_that_no_step_expects_is_one_of_the_disk(
    committer: Looped, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it leaves behind is not known: the next committer recovers. This one served: it refuses nothing."""
    loop = committer.make()
    committer.queue.set_flag(_queue.NO_SPACE)

    def fail() -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(loop, "_serve", fail)
    assert loop.run() == EX_SYNC_FAILED
    counters = committer.queue.counter_row(_queue.ROW_COMMITTER)
    assert [counters[metrics.INDEX[name]] for name in ("SYNC_FAILURES", "RECOVERIES")] == [1, 1]


@pytest.mark.parametrize(
    ("jobs", "flush", "wait"),
    [
        (False, False, DiskWait.LOG_SEGMENT),
        (False, True, DiskWait.PACKS_SYNC),
        (True, False, DiskWait.BULK_WRITE),
        (True, True, DiskWait.BULK_WRITE),
    ],
)
def test_what_it_says_that_it_waits_for(committer: Looped, jobs: bool, flush: bool, wait: DiskWait) -> None:
    loop: CommitLoop = committer.start()
    if jobs:
        loop._jobs[Future()] = None  # type: ignore[assignment]
    if flush:
        loop._flush = Future()
    assert loop._held_up_by() is wait
