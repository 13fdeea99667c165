"""The log: one text line an event on stderr, `2026-11-21T12:00:00.123Z worker-0 info connection from …`."""

from __future__ import annotations

import logging
import sys
import time

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


class LineBudget:
    """At most ``lines`` log lines in each ``interval`` (seconds) about what strangers can cause at will.

    Times are of a clock that the caller reads. ``left_out`` counts what was not logged since the last ``lapsed``.
    """

    def __init__(self, lines: int, interval: float) -> None:
        self._lines = lines
        self._interval = interval
        self._until = 0.0
        self._left = lines
        self.left_out = 0

    def take(self, now: float) -> bool:
        """Whether there may be a line now. If not, it counts as left out."""
        if now >= self._until:
            self._until = now + self._interval
            self._left = self._lines
        if self._left == 0:
            self.left_out += 1
            return False
        self._left -= 1
        return True

    def lapsed(self, now: float) -> int:
        """How many lines were left out in an interval that is over by now; told once."""
        if now < self._until:
            return 0
        number, self.left_out = self.left_out, 0
        return number


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
