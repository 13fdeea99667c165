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
