"""A committer that cannot save: for how long it refuses, what it answers, and what a commit that goes wrong leaves."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
from committer_loop import Clock, Looped, clock
from committer_process import FIRST

from ingest import limits
from ingest.engine import _queue
from ingest.engine.commit import refusing
from ingest.engine.commit.committer import SyncFailedError
from ingest.engine.commit.refusing import until_room
from ingest.limits import PACK_SLOTS
from ingest.runtime import heartbeat
from ingest.status import Status

__all__ = ["clock"]

S, N, E = Status.SAVED, Status.NO_SPACE, Status.ERROR
NO_ROOM = 1 << 60  # bytes of reserve
LOOK = limits.FULL_DISK_LOOK_S


@pytest.fixture
def committer(tmp_path: Path, clock: Clock) -> Iterator[Looped]:
    with Looped(tmp_path / "node" / "data", clock) as committer:
        yield committer


@dataclass
class Looks:
    """`select` to the module that refuses: time passes while it sleeps, and `meanwhile` happens."""

    clock: Clock
    slept: list[float] = field(default_factory=list)
    POLLIN: int = 1

    def poll(self) -> SimpleNamespace:
        return SimpleNamespace(register=lambda *_: None, poll=self._sleep)

    def _sleep(self, timeout_ms: float) -> None:
        self.slept.append(timeout_ms / 1000)
        self.clock.now += timeout_ms / 1000


class TestARecoveryWithoutRoom:
    @pytest.mark.parametrize(
        ("trouble", "until"),
        [
            ("full", limits.RECOVERY_RETRY_S),
            ("room", limits.RECOVERY_RETRY_MIN_S),
            ("room after 2 s", 2.0),
            ("room after 0.5 s", limits.RECOVERY_RETRY_MIN_S),
            ("no look", limits.RECOVERY_RETRY_MIN_S),
            ("told to end after 0.5 s", 0.5),
        ],
    )
    def test_it_is_tried_again_in_time(
        self, committer: Looped, clock: Clock, monkeypatch: pytest.MonkeyPatch, trouble: str, until: float
    ) -> None:
        """All that comes meanwhile is answered, whatever its tickets hold, each reload too, and the heart goes on."""
        committer.start()
        committer.put(FIRST)
        committer.step()
        committer.die()
        loop = committer.make()  # what its recovery found is no matter here
        committer.queue.set_flag(_queue.NO_SPACE)
        looks = Looks(clock)
        monkeypatch.setattr(refusing, "select", looks)
        monkeypatch.setattr(refusing, "time", clock)
        loop.space.reserve = 0 if trouble == "room" else NO_ROOM
        if trouble == "no look":
            loop.space.data_fd = -1
        began, cookies, beats = clock.now, [], []

        def come() -> None:
            """Called in each round."""
            passed = clock.now - began
            beats.append(heartbeat.own().last_beat)
            if not cookies:
                committer.queue.empty_rings(0)
                committer.queue.attend(0)
            cookies.extend([committer.put(FIRST), committer.put(FIRST + 1), committer.delete(FIRST, 1)])
            if trouble == f"room after {passed:g} s":
                loop.space.reserve = 0

        def stopping() -> bool:
            return trouble == f"told to end after {clock.now - began:g} s"

        until_room(loop.space, committer.queue, loop.core, stopping, come)
        committer._collect()
        assert clock.now - began == pytest.approx(until, abs=LOOK)
        assert clock.now - began >= until - 1e-6
        assert set(looks.slept) == {LOOK}
        assert len(cookies) == 3 * len(looks.slept)
        answers = [set(committer.answers[cookie]) for cookie in cookies]
        assert answers[:3] == [{E}] * 3, "it was there at the start: the committer before may have logged it"
        assert answers[3:] == [{N}] * (len(cookies) - 3)
        assert beats == sorted(set(beats)), "it beat in each round"

    @pytest.mark.parametrize("flags", [0, _queue.NO_SPACE, _queue.STARTING | _queue.NO_SPACE, _queue.LOST])
    @pytest.mark.parametrize("recovered", [False, True])
    def test_whoever_has_another_reason_ends_at_once(
        self, committer: Looped, clock: Clock, monkeypatch: pytest.MonkeyPatch, flags: int, recovered: bool
    ) -> None:
        """One that recovered leaves what it took to the next; before the first recovery nobody is answered."""
        loop = committer.start()
        if not recovered:
            committer.queue.committer_gone()
        committer.queue.set_flag(flags)
        epoch = committer.queue.epoch
        looks = Looks(clock)
        monkeypatch.setattr(refusing, "select", looks)
        monkeypatch.setattr(refusing, "time", clock)
        until_room(loop.space, committer.queue, loop.core, lambda: False, lambda: None)
        refuses = flags == _queue.NO_SPACE and not recovered
        assert bool(looks.slept) is refuses
        assert (committer.queue.epoch == epoch) is not refuses


class TestACommit:
    @pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EFBIG])
    def test_a_log_that_cannot_be_written_is_the_end_of_all_that_was_in_its_batch(
        self, committer: Looped, monkeypatch: pytest.MonkeyPatch, code: int
    ) -> None:
        loop = committer.start()

        def fail(*_: object) -> int:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(loop.log, "append", fail)
        cookies = [committer.put(FIRST), committer.put(FIRST + PACK_SLOTS), committer.delete(FIRST + 7, 2)]
        with pytest.raises(SyncFailedError, match="writing the log failed"):
            committer.step()
        committer._collect()
        assert [set(committer.answers[cookie]) for cookie in cookies] == [{E}] * 3

    @pytest.mark.parametrize("failure", [0, errno.EIO, errno.ENOSPC])
    def test_what_could_not_be_applied_is_not_saved(self, committer: Looped, failure: int) -> None:
        loop = committer.start()
        cookie = committer.put(FIRST)
        loop.core.take()
        assert loop._log_has_room()
        planned = loop.core.plan(True)
        planned.begin_slots()
        loop.log.append(planned.buffer, planned.puts, planned.delete_frames, planned.notes)
        assert planned.apply() == 0
        if failure:
            with pytest.raises(SyncFailedError, match="writing chunks failed"):
                loop._settle(failure)
        else:
            loop._settle(failure)
        committer._collect()
        assert committer.answers[cookie] == [E if failure else S]

    @pytest.mark.parametrize("together", [1, 7, 50])
    def test_frames_that_find_too_many_dirty_packs_have_a_flush_at_once(
        self, committer: Looped, monkeypatch: pytest.MonkeyPatch, together: int
    ) -> None:
        """Whether the batch in which they found no place has others or none: else they would wait for its time."""
        monkeypatch.setattr(limits, "UNSYNCED_PACKS_MAX", 32)
        loop = committer.start()
        loop.packs.sync_each_file()  # where fewer may be dirty
        cookies: list[int] = []
        stalls = 0
        while stalls < 2:
            first = FIRST + len(cookies) * PACK_SLOTS
            cookies += [committer.put(first + i * PACK_SLOTS) for i in range(together)]
            committer.step()
            while any(committer.answers[cookie] == [None] for cookie in cookies):
                assert loop._flush is not None
                committer.finish()
                stalls += 1
                committer.step()
        assert all(committer.answers[cookie] == [S] for cookie in cookies)

    def test_whether_anything_moved(self, committer: Looped) -> None:
        """A round that says so is followed by another one, any other by a sleep."""
        committer.start()
        assert not committer.step(), "nothing came"
        for index, moves in ((FIRST, "a batch"), (FIRST, "a duplicate"), (FIRST + 1, "a batch")):
            committer.put(index)
            assert committer.step(), moves
            assert not committer.step()
        long = [committer.put(FIRST + (1 + i) * PACK_SLOTS, PACK_SLOTS) for i in range(2)]
        assert committer.step(), "a bulk job has begun"
        assert not committer.step(), "it is not over"
        committer.finish()
        assert committer.step(), "its note"
        assert [set(committer.answers[cookie]) for cookie in long] == [{S}, {S}]
        assert not committer.step()

    @pytest.mark.parametrize("where", ["at rest", "with a sync that failed"])
    def test_what_it_met_of_damage_is_told(
        self, committer: Looped, caplog: pytest.LogCaptureFixture, where: str
    ) -> None:
        """Also when it ends for what it met: its successor does not know."""
        loop = committer.start()
        loop.core.corrupt.append((5, 3))
        loop.core.disk_errors.append((6, errno.EIO))
        if where == "at rest":
            loop._housekeep()
        else:
            with pytest.raises(SyncFailedError, match="syncing packs"):
                loop._end_jobs(True)
        assert "slot 3 is corrupt" in caplog.text and "Input/output error" in caplog.text
        assert not loop.core.corrupt and not loop.core.disk_errors
