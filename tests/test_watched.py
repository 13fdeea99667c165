"""A parent and what it watches: each state of a child, each place among others, each trouble that begins or ends."""

from __future__ import annotations

import ctypes
import itertools
import logging
import os
import signal
import socket
import time

import pytest

from ingest import limits
from ingest.disk_wait import DiskWait
from ingest.runtime import heartbeat
from ingest.runtime.heartbeat import SINCE, WAIT, Heart
from ingest.runtime.supervised import Child, State
from ingest.runtime.supervisor import Supervisor

SET_CHILD_SUBREAPER = 36  # prctl(2)
S = 1_000_000_000  # ns


def pause() -> int:
    while True:
        signal.pause()


class Parent(Supervisor):
    """Of three, in a process that adopts orphans. One ends while the parent does something else, and when all have been
    started again it is told to end."""

    def __init__(self, who: int) -> None:
        super().__init__([[Child(name, pause, has_line=True) for name in ("a", "b", "c")]], 10.0)
        self.who, self.ended = who, False

    def _step(self, now: float) -> None:
        if not self.ended:
            child = self._children[self.who]
            os.kill(child.pid, signal.SIGKILL)
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
            self.ended = True
        elif all(child.state is State.RUNNING for child in self._children) and not self._draining:
            self._drain()
        super()._step(now)


@pytest.mark.parametrize("who", range(3))
def test_who_adopts_orphans_reaps_each_child_of_its_own_itself(
    monkeypatch: pytest.MonkeyPatch, who: int
) -> None:
    """Whichever it is that ends before the parent looks for orphans: it is started again, and the end is a clean one."""

    monkeypatch.setattr(limits, "HEART_LISTEN_INTERVAL_S", 0.01)  # it comes round without anything happening

    def main() -> int:
        ctypes.CDLL(None).prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        parent = Parent(who)
        code = parent.run()
        return code or 10 + sum(child.starts for child in parent._children)

    family = Child("family", main)
    family.start(lambda: None)
    family.reap()
    assert family.exit_code == 10 + 4


def test_a_new_process_lets_go_of_all_that_its_parent_has() -> None:
    """Of the others, also of those that come behind it: it may be one that is started again."""
    children = [Child(name, pause) for name in ("a", "b", "c")]
    supervisor = Supervisor([children[:1], children[1:]], 1.0)
    supervisor._signals_read, supervisor._signals_write = os.pipe()
    others = []
    for child in children:
        child.pidfd = os.pidfd_open(os.getpid())
        child.line, other = socket.socketpair()
        others.append(other)
    held = [supervisor._signals_read, supervisor._signals_write, *(child.pidfd for child in children)]
    supervisor._leave()
    assert [fd for fd in held if os.path.exists(f"/proc/self/fd/{fd}")] == []
    for other in others:
        assert other.recv(1) == b"", "its line does not end when the parent's end is closed"
        other.close()
    assert [(child.pidfd, child.line) for child in children] == [(-1, None)] * 3


def test_a_reload_is_passed_on_to_those_that_run_and_take_it(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(signal, "pidfd_send_signal", lambda fd, number: told.append((fd, number)))
    kinds = list(itertools.product(State, (False, True)))
    children = [
        Child(f"{state}-{reloads}", pause, reloads=reloads, state=state, pidfd=number)
        for number, (state, reloads) in enumerate(kinds)
    ]
    Supervisor([children], 1.0)._signal_reload()
    for child in children:
        child.pidfd = -1
    assert told == [(kinds.index((State.RUNNING, True)), signal.SIGHUP)]


@pytest.mark.parametrize("state", State)
def test_one_that_ended_and_does_not_come_up_is_told_of(
    caplog: pytest.LogCaptureFixture, state: State
) -> None:
    """One that runs is starting; one whose turn has not come, or that is to stay ended, is not missed."""
    child = Child("child", pause, state=state)
    supervisor = Supervisor([[child]], 10.0)
    for look in range(1, 4):
        child.heart.words[SINCE] = time.monotonic_ns() - int(limits.HEART_UNREADY_S * S) - S
        supervisor._listen(supervisor._listened_at + limits.HEART_LISTEN_INTERVAL_S)
        expected = state in (State.RESTING, State.RETIRING)
        assert [line.partition(" for ")[0] for line in caplog.messages] == ["child has not run"] * expected, (
            look
        )


@pytest.mark.parametrize("order", list(itertools.product(["well", "silent", "stalled", "waits"], repeat=3)))
def test_each_trouble_is_told_once_when_it_begins_and_once_when_it_ends(
    caplog: pytest.LogCaptureFixture, order: tuple[str, ...]
) -> None:
    """Whatever keeps it: its loop, or the disk though its loop goes round. One trouble that follows another is the same."""
    child = Child("child", pause, state=State.RUNNING, pid=os.getpid())
    supervisor = Supervisor([[child]], 10.0)
    ago = time.monotonic_ns() - int(limits.HEART_UNREADY_S * S) - S
    expected: list[str] = []
    before = "well"
    for what in order:
        child.heart = Heart()
        child.heart.beat()
        if what == "waits":
            child.heart.words[SINCE], child.heart.words[WAIT] = ago, DiskWait.LOG_SYNC
        elif what == "stalled":
            child.heart.stall(DiskWait.PACKS_SYNC)
            child.heart.words[heartbeat._STALLED] = ago
        silent = limits.HEART_UNREADY_S if what == "silent" else 0.0
        for _ in range(2):
            supervisor._judge(child, silent)
        if (what == "well") != (before == "well"):
            expected.append("answers again" if what == "well" else "has answered nothing")
        before = what
    said = [
        "answers again" if "answers again" in line else "has answered nothing" for line in caplog.messages
    ]
    assert said == expected
    assert all(record.levelno == logging.WARNING for record in caplog.records)


def test_a_parent_lives_before_its_children_do() -> None:
    """They ask whether it does, for readiness, and its first look at them comes a second later."""

    class Fresh(Supervisor):
        def _begin(self) -> None:
            alive.append(heartbeat.own().last_beat != 0)
            super()._begin()

    alive: list[bool] = []
    before = heartbeat.own()
    heartbeat.take(Heart())
    try:
        assert Fresh([[Child("child", lambda: 1, stays=True)]], 10.0).run() == 1
    finally:
        heartbeat.take(before)
    assert alive == [True]
