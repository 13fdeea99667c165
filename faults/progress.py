"""How far a long run is: a line on stderr every ten seconds, and each loss when it is found."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console

INTERVAL_S = 10.0


@dataclass
class Progress:
    """Silent until `begin`: short runs are part of the tests. One for the process that began the run."""

    _console: Console = field(
        default_factory=lambda: Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    )
    _began: float = 0.0
    _shown: float | None = None
    _cases: int = 0
    _losses: int = 0

    def begin(self) -> None:
        """A long run begins."""
        self._began = self._shown = time.monotonic()

    def done(self, cases: int = 1, losses: Sequence[str] = ()) -> None:
        """So many more cases are done, and these losses were found. From one thread at a time."""
        if self._shown is None:
            return
        self._cases += cases
        self._losses += len(losses)
        for loss in losses:
            self._console.print(f"LOSS: {loss}")
        now = time.monotonic()
        if now - self._shown >= INTERVAL_S:
            self._shown = now
            self._console.print(f"{now - self._began:6.0f} s: {self._cases:,} cases, {self._losses} losses")


_run = Progress()
begin, done = _run.begin, _run.done
