"""The committer's own loop in this process: a test says when what it gave to a thread runs, and what time it is."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from committer_rig import SEGMENT_SIZE
from test_flushed import Stepped

from ingest.engine.commit import committer as loop_module
from ingest.engine.commit.committer import CommitLoop
from ingest.store.log.recovery import recover


@dataclass
class Clock:
    now: float = 1000.0

    def monotonic(self) -> float:
        return self.now

    def monotonic_ns(self) -> int:
        return int(self.now * 1e9)


@dataclass
class Sleep:
    """In the place of the loop's poll object: for how long it would have slept, in ms."""

    slept: list[float] = field(default_factory=list)

    def poll(self, timeout_ms: float) -> list[tuple[int, int]]:
        self.slept.append(round(timeout_ms, 6))
        return []


class Looped(Stepped):
    """``handed``: what the loop has handed to a thread, with the future that it waits for; see `finish`."""

    def __init__(self, data_dir: Path, clock: Clock, **config: object) -> None:
        super().__init__(data_dir, "pack")
        self.clock = clock
        self.changes = config
        self.handed: list[tuple[Callable[[], None], Future[None]]] = []

    def make(self) -> CommitLoop:
        """A loop that has not recovered yet."""
        self.queue.committer_gone()
        self.handed.clear()
        self.loop = loop = CommitLoop(self.node)
        loop._submit = self._hand_over  # type: ignore[method-assign]
        loop._poll = Sleep()  # type: ignore[assignment]
        return loop

    def start(self, wait: bool = True) -> CommitLoop:  # type: ignore[override]
        loop = self.make()
        loop._recover()
        self.queue.committer_ready()
        self.wait_ready()
        return loop

    def die(self) -> None:
        if self.loop is not None:
            self.loop.threads.shutdown()
            if hasattr(self.loop, "log"):
                self.loop.log.close()
            self.loop.packs.close()
            self.loop = None

    def _hand_over(self, work: Callable[[], None]) -> Future[None]:
        self.handed.append((work, Future()))
        return self.handed[-1][1]

    def finish(self, error: OSError | None = None) -> None:
        """All that was handed over runs, or fails with `error`."""
        for work, future in self.handed:
            if error is not None:
                future.set_exception(error)
            else:
                work()
                future.set_result(None)
        self.handed.clear()

    def step(self) -> bool:
        """One round. Whether anything moved."""
        assert self.loop is not None
        self.loop.core.take()
        moved = self.loop._commit(self.clock.monotonic_ns())
        self._collect()
        return moved


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(
        loop_module, "time", SimpleNamespace(monotonic=clock.monotonic, monotonic_ns=clock.monotonic_ns)
    )
    monkeypatch.setattr(loop_module, "recover", partial(recover, segment_size=SEGMENT_SIZE))  # made faster
    return clock
