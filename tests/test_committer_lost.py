"""A store that is lost and there again, whoever of two committers sees what of it: what the node says of itself."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from committer_loop import Clock, Looped, clock
from committer_process import FIRST
from test_ended_together import fail_sync_of

from ingest import sharding
from ingest.engine import _queue, readiness
from ingest.engine.commit.committer import EX_SYNC_FAILED, SyncFailedError
from ingest.engine.commit.lost_store import MAY_BE_MISSING
from ingest.limits import PACK_SLOTS
from ingest.status import Status
from ingest.store import possession
from ingest.store.store import NO_SEGMENT

__all__ = ["clock"]

S, B, E = Status.SAVED, Status.BUSY, Status.ERROR
LOST = "data directory lost"


@pytest.fixture
def committer(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Iterator[Looped]:
    monkeypatch.setattr(possession, "POSSESSION_INTERVAL_S", 0.0)
    caplog.set_level(logging.INFO)
    with Looped(tmp_path / "node" / "data", clock) as committer:
        yield committer


def move_away(committer: Looped) -> Path:
    return committer.data_dir.rename(committer.data_dir.with_name("away"))


def told(caplog: pytest.LogCaptureFixture) -> tuple[int, int, int]:
    """How often it was said that something may be missing, that no segment is there, that frames are saved again."""
    return (
        caplog.text.count(MAY_BE_MISSING),
        caplog.text.count(NO_SEGMENT),
        caplog.text.count("frames are saved"),
    )


@pytest.mark.parametrize("segments", ["all", "first removed", "all removed"])
@pytest.mark.parametrize("was_lost", [False, True])
def test_a_loss_that_was_over_before_the_next_committer_looked(
    committer: Looped, caplog: pytest.LogCaptureFixture, was_lost: bool, segments: str
) -> None:
    """Only the flag tells of it: it is there until the recovery, which says once what may be missing, and gone then."""
    loop = committer.start()
    cookie = committer.put(FIRST)
    committer.step()
    loop.log.make_spare()
    committer.die()
    wal = committer.data_dir / ".ingest/wal"
    if segments != "all":
        for path in sorted(wal.glob("*.log"))[: 1 if segments == "first removed" else None]:
            path.unlink()
    if was_lost:
        committer.queue.set_flag(_queue.LOST)
    loop = committer.make()
    caplog.clear()
    assert loop.lost.look() is False
    assert (LOST in readiness.of_the_queue(committer.queue)) is was_lost
    assert told(caplog) == (0, 0, 0)
    loop._recover()
    committer.queue.committer_ready()
    committer.wait_ready()
    assert readiness.of_the_queue(committer.queue) == []
    missing = int(was_lost or segments != "all")
    assert told(caplog) == (missing, int(segments == "all removed"), 0)
    assert committer.answers[cookie] == [S]
    again = committer.put(FIRST + 1)
    committer.step()
    assert committer.answers[again] == [S]


def test_each_loss_after_a_recovery_is_said_and_so_is_its_end(
    committer: Looped, caplog: pytest.LogCaptureFixture
) -> None:
    """Also the second one, and each as often as it was."""
    committer.queue.set_flag(_queue.LOST)
    loop = committer.make()
    assert loop.lost.look() is False
    loop._recover()
    committer.queue.committer_ready()
    for number in range(1, 3):
        away = move_away(committer)
        assert [loop.lost.look() for _ in range(3)] == [True] * 3
        assert readiness.of_the_queue(committer.queue) == [LOST]
        assert caplog.text.count("nothing is saved any more") == number
        away.rename(committer.data_dir)
        assert [loop.lost.look() for _ in range(3)] == [False] * 3
        assert readiness.of_the_queue(committer.queue) == []
        assert told(caplog) == (1, 0, number)


def test_one_that_was_never_lost_leaves_other_reasons_alone(committer: Looped) -> None:
    """What each side says of the node is its own."""
    others = _queue.STARTING | _queue.FAILING | _queue.DRAINING
    committer.queue.set_flag(others | _queue.LOST | _queue.NO_SPACE | _queue.NO_LOG)
    loop = committer.make()
    assert committer.queue.flags == others | _queue.LOST, "only a recovery says that the loss is over"
    loop.lost.look()
    loop._recover()
    assert committer.queue.flags == others
    away = move_away(committer)
    loop.lost.look()
    assert committer.queue.flags == others | _queue.LOST
    away.rename(committer.data_dir)
    loop.lost.look()
    assert committer.queue.flags == others


@pytest.mark.parametrize("failing", [False, True])
def test_a_job_that_ends_while_it_is_lost(committer: Looped, failing: bool) -> None:
    """All is refused, nothing is written, and a sync that failed meanwhile ends the committer as ever."""
    loop = committer.start()
    first = committer.put(FIRST)
    committer.step()
    number = loop.log.number
    long = [committer.put(FIRST + (1 + i) * PACK_SLOTS, PACK_SLOTS) for i in range(2)]
    committer.step()
    assert len(loop._jobs) == 1
    if failing:
        pack = sharding.pack_path(sharding.ticket_pack(FIRST + PACK_SLOTS))
        fail_sync_of(committer.data_dir / pack)
    away = move_away(committer)
    late = [committer.put(FIRST), committer.put(FIRST + 1), committer.delete(FIRST, 1)]
    committer.finish()
    if failing:
        with pytest.raises(SyncFailedError):
            committer.step()
        committer._collect()
    else:
        assert committer.step()
    assert [set(committer.answers[cookie]) for cookie in late] == [{B}] * 3
    assert {status for cookie in long for status in committer.answers[cookie]} <= {B, E}
    assert loop.log.number == number
    assert committer.answers[first] == [S]
    away.rename(committer.data_dir)


def test_who_starts_while_it_is_lost_does_nothing_but_refuse(
    committer: Looped, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It serves until the loss is over or it is told to end, and does not recover after that: its successor does."""
    committer.start()
    committer.die()
    for told_to_end in (True, False):
        away = move_away(committer)
        loop = committer.make()
        monkeypatch.setattr(loop, "_recover", lambda: pytest.fail("it recovers"))
        looks = iter(range(2))

        def settings() -> None:
            if next(looks):  # noqa: B023
                loop.stop() if told_to_end else away.rename(committer.data_dir)  # noqa: B023

        monkeypatch.setattr(loop, "_take_settings", settings)
        monkeypatch.setattr("ingest.limits.POSSESSION_IDLE_INTERVAL_S", 0.001)
        assert loop.run() == EX_SYNC_FAILED
        assert readiness.of_the_queue(committer.queue) == [LOST]
        assert told(caplog)[2] == 0
        committer.die()
        if told_to_end:
            away.rename(committer.data_dir)
