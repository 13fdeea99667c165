"""How far a long run is: a line on stderr every ten seconds."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from rich.console import Console

INTERVAL_S = 10.0


@dataclass
class Progress:
    """Silent until `begin`: short runs are part of the tests."""

    _total: int = 0
    _began: float = 0.0
    _shown: float = 0.0
    _console: Console = field(default_factory=lambda: Console(stderr=True, highlight=False, soft_wrap=True))

    def begin(self, total: int) -> None:
        """A run of at most `total` cases begins."""
        self._total = total
        self._began = self._shown = time.monotonic()

    def show(self, cases: int, losses: int) -> None:
        """So many are done, and so many were lost. To be called often; from any thread."""
        now = time.monotonic()
        if self._total and now - self._shown >= INTERVAL_S:
            self._shown = now
            self._console.print(
                f"{now - self._began:6.0f} s: {cases:,} of at most {self._total:,} cases, {losses} losses"
            )


progress = Progress()
