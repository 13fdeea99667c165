"""The log: one text line an event on stderr, `2026-11-21T12:00:00.123Z worker-0 info connection from …`."""

from __future__ import annotations

import logging
import sys
import time
from dataclasses import dataclass

LEVELS = ("debug", "info", "warning", "error")

_process = "server"


def start(level: str) -> None:
    """Sends the log of this process and of those it forks to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # A server outlives whoever read its stderr.
    logging.raiseExceptions = False


def name_process(name: str) -> None:
    """What the lines of this process call it from now on."""
    global _process
    _process = name


@dataclass
class _Interval:
    until: float
    left: int
    left_out: int = 0


class LineBudget:
    """At most ``lines`` log lines of a kind in each ``interval`` (seconds) about what strangers can cause at will.

    Kinds are words of ours, few of them: one has its own budget, so that a flood of one hides no other. Times are of a clock
    that the caller reads.
    """

    def __init__(self, lines: int, interval: float) -> None:
        self._lines = lines
        self._interval = interval
        self._kinds: dict[str, _Interval] = {}

    def take(self, kind: str, now: float) -> bool:
        """Whether there may be a line now. If not, it counts as left out."""
        current = self._kinds.get(kind)
        if current is None or now >= current.until:
            left_out = current.left_out if current else 0
            current = self._kinds[kind] = _Interval(now + self._interval, self._lines, left_out)
        if current.left == 0:
            current.left_out += 1
            return False
        current.left -= 1
        return True

    def lapsed(self, now: float) -> list[tuple[str, int]]:
        """The kinds of which lines were left out in an interval that is over by now, and how many; told once."""
        over = [
            (kind, one.left_out) for kind, one in self._kinds.items() if now >= one.until and one.left_out
        ]
        for kind, _ in over:
            self._kinds[kind].left_out = 0
        return over


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        text = record.getMessage()
        # What a peer sent may end up in a message: it must not be able to begin a line of its own.
        if not text.isprintable():
            text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
        line = f"{seconds}.{int(record.msecs):03d}Z {_process} {record.levelname.lower()} {text}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line
