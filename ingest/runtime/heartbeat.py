"""Whether a process gets anywhere: a heart in shared memory, which its own loop makes beat, and others listen to.

A beat is a time of CLOCK_MONOTONIC. It says when the loop came round the last time, so a process that stands still, for
whatever reason, falls silent. A process that waits for a disk writes down for what, before it does.

A heart is one page, made before the fork. The process writes, but for `reset`, which is its parent's while there is none.
"""

from __future__ import annotations

import asyncio
import mmap
import time

from ingest import limits
from ingest.disk_wait import DiskWait

# Words of 8 bytes: each is written whole.
_BEAT = 0  # ns; 0: none since the process was started
# ns: of the wait; without a beat, of the end of the last process that had one, or of the first start
SINCE = 1
WAIT = 2  # DiskWait
_STALLED = 3  # ns; 0: what was handed over is answered
_STALLED_BY = 4  # DiskWait


class Heart:
    """Of one process, and of the ones that replace it."""

    def __init__(self) -> None:
        # Compiled code writes its waits there itself: `SINCE`, then `WAIT`.
        self.words = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("Q")

    # --- the process

    def beat(self) -> None:
        self.words[_BEAT] = time.monotonic_ns()

    def wait(self, what: DiskWait) -> None:
        """From now on its loop waits for this, or for nothing any more. That it got so far is a beat."""
        now = time.monotonic_ns()
        self.words[SINCE] = now
        self.words[WAIT] = what
        self.words[_BEAT] = now

    def stall(self, what: DiskWait) -> None:
        """Its loop goes round, but nothing of what it was given is done, because of this; NOTHING: something is, or it has
        nothing to do. It may be said again and again."""
        if what is DiskWait.NOTHING:
            self.words[_STALLED] = 0
        elif self.words[_STALLED] == 0:
            self.words[_STALLED] = time.monotonic_ns()
        self.words[_STALLED_BY] = what

    # --- who started it

    def reset(self) -> None:
        """There is no process, or one that has not beaten yet. Since when that is so stays, however often one starts that
        ends before its first beat."""
        if self.words[_BEAT] or not self.words[SINCE]:
            self.words[SINCE] = time.monotonic_ns()
        self.words[_BEAT] = self.words[WAIT] = self.words[_STALLED] = 0

    # --- who listens

    @property
    def last_beat(self) -> int:
        """0: none since the process was started."""
        return self.words[_BEAT]

    def age(self, now: int) -> float | None:
        """Seconds since the last beat, by ``now``, ns of the monotonic clock; None when there was none."""
        beat = self.words[_BEAT]
        return max(0.0, (now - beat) * 1e-9) if beat else None

    def missing(self, now: int) -> float:
        """For how many seconds there has been no process that beat; 0 while there is one, and before the first start."""
        since = self.words[SINCE]
        return max(0.0, (now - since) * 1e-9) if since and not self.words[_BEAT] else 0.0

    def waiting(self, now: int) -> tuple[DiskWait, float]:
        """What it waits for, or its work does, and for how many seconds."""
        stalled, since = self.words[_STALLED], self.words[SINCE]
        if self.words[WAIT]:
            return DiskWait(self.words[WAIT]), max(0.0, (now - since) * 1e-9)
        if stalled:
            return DiskWait(self.words[_STALLED_BY]), max(0.0, (now - stalled) * 1e-9)
        return DiskWait.NOTHING, 0.0

    def trouble(self, name: str, now: int) -> str:
        """What is wrong with the process, in words; empty when it answers, or did a moment ago."""
        age, (wait, seconds) = self.age(now), self.waiting(now)
        if age is None:
            return f"{name} does not run" if self.missing(now) >= limits.HEART_UNREADY_S else ""
        if wait and seconds >= limits.HEART_UNREADY_S:
            return f"{name} waits for the disk: {wait.words} for {seconds:.0f} s"
        return f"{name} has not answered for {age:.0f} s" if age >= limits.HEART_UNREADY_S else ""


class Listener:
    """Counts for how long a heart is silent. Only the time counts that who listens says: in which it ran itself."""

    def __init__(self, heart: Heart) -> None:
        self._heart = heart
        self._heard = 0
        self.seconds = 0.0
        self.patience = limits.HEART_SILENCE_MAX_S  # seconds after which it is killed, if it may be
        self.told = False  # the log says that it is silent
        self.told_missing = False  # the log says that none comes up

    def listen(self, passed: float) -> float:
        """``passed``: seconds since the last call that count. Returns for how many there was no beat; a process that has not
        beaten yet is not silent."""
        beat = self._heart.last_beat
        if beat and beat == self._heard:
            self.seconds += passed
        else:
            self.seconds, self.patience = 0.0, limits.HEART_SILENCE_MAX_S
        self._heard = beat
        return self.seconds


class _Own:
    """The heart of this process: its parent's Child has it too, when it has a parent of ours."""

    heart = Heart()


def own() -> Heart:
    return _Own.heart


def take(heart: Heart) -> None:
    """In a process that was forked: this one is its own."""
    _Own.heart = heart


def keep_beating() -> None:
    """With the present event loop, as long as that comes round."""
    _Own.heart.beat()
    asyncio.get_running_loop().call_later(limits.HEART_INTERVAL_S, keep_beating)
