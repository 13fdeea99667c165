"""The log: one text line an event on stderr, `2026-11-21T12:00:00.123Z worker-0 info connection from …`.

A line never blocks who has something to say, and never fails: `stderr` writes it.
"""

from __future__ import annotations

import logging
import sys
import time
from contextlib import suppress
from dataclasses import dataclass

from ingest.runtime.stderr import LineStream, LineWriter

LEVELS = ("debug", "info", "warning", "error")
_STDERR = 2

_process = "server"


def start(level: str) -> None:
    """Sends the log of this process and of those it forks to stderr, and all else that Python says there the same way."""
    with suppress(OSError, ValueError, AttributeError):  # what has no descriptor stands for the process's own
        _writer.fd = sys.stderr.fileno()
    sys.stderr = LineStream(_writer, sys.stderr)
    handler = _Handler()
    handler.setFormatter(_Formatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.raiseExceptions = False  # a message that cannot be formatted is no reason for more of them


def flush() -> None:
    """Before a process ends without the interpreter's help: what was said is written, unless nobody takes it for a while."""
    _writer.flush()


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


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception as error:  # a mistake of ours, which is no reason for whoever made it to fail
            text = f"a message cannot be formatted, {error!r}: {record.msg!r}"
            line = _line(record.created, record.levelname, text)
        _writer.put(line)

    def flush(self) -> None:
        """`logging` calls it at the end of the interpreter."""
        flush()


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        # What a peer sent may end up in a message: it must not be able to begin a line of its own.
        if not text.isprintable():
            text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
        line = _line(record.created, record.levelname, text)
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def _line(moment: float, level: str, text: str) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment))
    return f"{seconds}.{int(moment % 1 * 1000):03d}Z {_process} {level.lower()} {text}"


def _tell_of_lost(count: int, reason: str) -> str:
    lines = "1 line" if count == 1 else f"{count} lines"
    return _line(time.time(), "WARNING", f"{lines} of this log could not be written: {reason}")


_writer = LineWriter(_STDERR, _tell_of_lost)
