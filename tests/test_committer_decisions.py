"""What the committer decides beside its commits, one decision at a time: flushes, and segments of its log."""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
from committer_loop import Clock, Looped, clock
from committer_process import FIRST
from committer_rig import SEGMENT_SIZE

from ingest import limits
from ingest.engine import _queue, metrics
from ingest.engine.commit.committer import CommitLoop, SyncFailedError
from ingest.limits import PACK_SLOTS
from ingest.status import Status
from ingest.store import possession

__all__ = ["clock"]

S, N, E = Status.SAVED, Status.NO_SPACE, Status.ERROR
FLUSH = limits.FLUSH_INTERVAL_S


@pytest.fixture
def committer(tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture) -> Iterator[Looped]:
    caplog.set_level(logging.INFO)
    with Looped(tmp_path / "node" / "data", clock) as committer:
        yield committer


def put(committer: Looped, *indices: int) -> None:
    """Stored, in one batch."""
    cookies = [committer.put(index) for index in indices]
    assert committer.step()
    assert [committer.answers[cookie] for cookie in cookies] == [[S]] * len(indices)


def counted(committer: Looped, counter: str) -> int:
    return committer.queue.counter_row(_queue.ROW_COMMITTER)[metrics.INDEX[counter]]


def run_now(work: Callable[[], None]) -> Future[None]:
    done: Future[None] = Future()
    done.set_result(work())
    return done


class TestFlush:
    @pytest.mark.parametrize("behind", [0, 1, 3])
    @pytest.mark.parametrize("under_way", [False, True])
    def test_a_clean_stop_leaves_nothing_to_recover(
        self, committer: Looped, caplog: pytest.LogCaptureFixture, under_way: bool, behind: int
    ) -> None:
        """Also of what came behind the beginning of a flush."""
        loop = committer.start()
        put(committer, FIRST)
        if under_way:
            loop._begin_flush()
        for i in range(behind):
            put(committer, FIRST + 1 + i)
        committer.finish()
        loop._submit = run_now  # type: ignore[method-assign]
        loop._end()
        committer.loop = None
        caplog.clear()
        committer.start()
        assert "recovered 0 frames and 0 deletes" in caplog.text

    @pytest.mark.parametrize(
        ("passed", "wal_size", "due"),
        [
            (FLUSH - 0.01, 2 * SEGMENT_SIZE, False),
            (FLUSH, 2 * SEGMENT_SIZE, True),
            (0.0, 2 * SEGMENT_SIZE - 2, True),  # more than half of the log is in use
        ],
    )
    def test_when_it_is_due(
        self, committer: Looped, clock: Clock, passed: float, wal_size: int, due: bool
    ) -> None:
        loop = committer.start()
        loop.config = dataclasses.replace(loop.config, wal_size=wal_size)
        put(committer, FIRST)
        loop._flushed_at = clock.now
        clock.now += passed
        loop._housekeep()
        assert (loop._flush is not None) is due

    def test_packs_that_want_one_need_not_wait(
        self, committer: Looped, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "UNSYNCED_PACKS_MAX", 32)
        loop = committer.start()
        loop.packs.sync_each_file()  # where fewer may be dirty
        number = 0
        while not loop.packs.wants_flush:
            put(committer, *(FIRST + (number + i) * PACK_SLOTS for i in range(4)))
            number += 4
        loop._flushed_at = clock.now
        assert loop.log.used <= loop.config.wal_size // 2
        loop._housekeep()
        assert loop._flush is not None

    def test_nothing_new_is_flushed_again(self, committer: Looped, clock: Clock) -> None:
        """Nor does a second one begin beside the first; the time to the next counts from its end."""
        loop = committer.start()
        clock.now += 2 * FLUSH
        loop._housekeep()
        assert loop._flush is None, "nothing is stored yet"
        put(committer, FIRST)
        clock.now += 2 * FLUSH
        loop._housekeep()
        flush = loop._flush
        assert flush is not None
        put(committer, FIRST + 1)
        clock.now += 2 * FLUSH
        loop._housekeep()
        loop._begin_flush()
        assert loop._flush is flush
        committer.finish()
        loop._housekeep()
        assert loop._flush is None and loop._flushed_at == clock.now
        assert loop.log.synced_to == 1 and counted(committer, "FLUSHES") == 1
        clock.now += FLUSH
        loop._housekeep()
        assert loop._flush is not None, "what came after the first had begun"
        committer.finish()
        loop._housekeep()
        clock.now += 2 * FLUSH
        loop._housekeep()
        assert loop._flush is None and loop.log.synced_to == loop.log.number == 2

    def test_one_that_failed_ends_the_committer_wherever_its_end_is_seen(
        self, committer: Looped, clock: Clock
    ) -> None:
        looks: list[Callable[[CommitLoop], object]] = [
            CommitLoop._housekeep,
            CommitLoop._end,
            CommitLoop._end_flush,
            lambda loop: committer.step(),
        ]
        for number, look in enumerate(looks):
            loop = committer.start()
            put(committer, FIRST + number)
            loop._begin_flush()
            committer.put(FIRST + 100)
            before = loop.log.number
            committer.finish(OSError(errno.EIO, "bad"))
            with pytest.raises(SyncFailedError, match="bad; the log keeps them"):
                look(loop)
            assert loop.log.synced_to < loop.log.number == before
            committer.die()


class TestSegments:
    def test_a_spare_is_made_once_and_not_before_it_is_needed(self, committer: Looped) -> None:
        loop = committer.start()
        loop._housekeep()
        assert loop._spare is None, "a store that nobody puts into takes no room for a log"
        put(committer, FIRST)
        loop._housekeep()
        spare = loop._spare
        assert spare is not None
        loop._housekeep()
        assert loop._spare is spare and len(committer.handed) == 1
        committer.finish()
        loop._housekeep()
        assert loop._spare is None and loop.log.segments == 2 and not committer.handed

    def test_none_is_made_while_the_store_is_lost(
        self, committer: Looped, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(possession, "POSSESSION_INTERVAL_S", 0.0)
        loop = committer.start()
        put(committer, FIRST)
        away = committer.data_dir.rename(committer.data_dir.with_name("away"))
        assert loop.lost.look()
        loop._housekeep()
        assert loop._spare is None
        away.rename(committer.data_dir)
        assert not loop.lost.look()
        loop._housekeep()
        assert loop._spare is not None

    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE])
    @pytest.mark.parametrize("segments", [0, 1])
    def test_one_that_cannot_be_made(
        self, committer: Looped, clock: Clock, caplog: pytest.LogCaptureFixture, segments: int, code: int
    ) -> None:
        """Tried again when its time has come, told once for each reason; the node says so if there is no log at all."""
        loop = committer.start()
        if segments:
            put(committer, FIRST)
        descriptors = code in (errno.EMFILE, errno.ENFILE)
        delay = limits.LOG_GROW_RETRY_S if segments else limits.LOG_START_RETRY_S
        delay = limits.LOG_DESCRIPTOR_RETRY_S if descriptors else delay

        def fail(with_code: int = code) -> None:
            raise OSError(with_code, os.strerror(with_code))

        for _ in range(2):
            loop._grow(fail)
            assert loop._growth_errno == code
            assert bool(committer.queue.flags & _queue.NO_LOG) is (segments == 0)
            assert caplog.text.count("the log does not grow") == 1
            clock.now += delay - 0.001
            assert not loop._may_grow()
            clock.now += 0.002
            assert loop._may_grow()
        loop._grow(lambda: fail(errno.EROFS))
        assert caplog.text.count("the log does not grow") == 2, "another reason"
        clock.now += limits.LOG_GROW_RETRY_S
        loop._housekeep()
        assert loop._spare is not None, "who waits for it need not put anything"
        committer.finish()
        loop._housekeep()
        assert loop.log.segments == segments + 1 and not loop._growth_errno
        assert not committer.queue.flags & _queue.NO_LOG
        assert caplog.text.count("the log grows again") == 1
        put(committer, FIRST + 1)
        loop._grow(lambda: None)
        assert caplog.text.count("the log grows again") == 1

    @pytest.mark.parametrize(
        ("code", "answer"),
        [(errno.ENOSPC, N), (errno.EDQUOT, N), (errno.EIO, E), (errno.EMFILE, None), (errno.ENFILE, None)],
    )
    def test_what_comes_without_any(
        self, committer: Looped, code: int, answer: Status | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No flush would help. Where descriptors are missing they come back: frames wait for them."""
        loop = committer.start()

        def fail() -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(loop.log, "make_spare", fail)
        cookies = [committer.put(FIRST), committer.delete(FIRST, 2)]
        assert committer.step() is (answer is not None)
        assert [committer.answers[cookie] for cookie in cookies] == [[answer]] * 2
        assert committer.step() is False, "nothing is left that could move"
        assert counted(committer, "LOG_STALLS") == 2

    def test_frames_wait_while_a_log_that_has_segments_is_full(
        self, committer: Looped, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Also when it could not grow: a flush gives it room, and begins at once."""
        loop = committer.start()
        put(committer, FIRST)
        loop._growth_errno, loop._grow_again_at = errno.ENOSPC, committer.clock.now + 5
        room = False
        monkeypatch.setattr(loop.log, "has_room", lambda length: room)
        cookie = committer.put(FIRST + 1)
        assert committer.step() is False
        assert committer.answers[cookie] == [None]
        assert loop._flush is not None
        room = True
        assert committer.step() is True
        assert committer.answers[cookie] == [S]

    def test_who_needs_the_spare_that_is_being_made_waits_for_it(self, committer: Looped) -> None:
        """And makes no second one beside it; when it fails nothing else is tried in the same round."""
        loop = committer.start()
        loop._spare = Future()
        loop._spare.set_exception(OSError(errno.ENOSPC, "full"))
        cookie = committer.put(FIRST)
        committer.step()
        assert loop._spare is None and loop.log.segments == 0
        assert committer.answers[cookie] == [N]
        assert loop._grow_again_at == committer.clock.now + limits.LOG_START_RETRY_S


@pytest.mark.parametrize("held", [0, 3])
def test_the_room_for_tombstones_is_looked_at_anew(committer: Looped, clock: Clock, held: int) -> None:
    """What deletes took of it, and what there was before, counts until the next look at the disk."""
    loop = committer.start()
    loop._out_of_space()
    loop.packs.room = held
    loop._out_of_space()
    assert loop.packs.room == held
    clock.now += 2 * limits.SPACE_CHECK_INTERVAL_S
    loop._out_of_space()
    assert loop.packs.room == loop.space.tombstones > held
