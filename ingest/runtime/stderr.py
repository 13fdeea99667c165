"""Lines to stderr, without waiting for whoever reads them.

Stderr may be a pipe that nobody reads any more, a terminal that was stopped, a file on a full disk or on a server that does
not answer. So a thread of each process writes, and the others only put lines into a bounded queue. What finds no room there,
or cannot be written, is counted. The count is told as a line of its own, in the place of what is missing, when it can be.

The descriptor's O_NONBLOCK would not do: it belongs to all processes that have this stderr, also to a shell.
"""

from __future__ import annotations

import errno
import io
import os
import select
import signal
import threading
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from ingest import limits

_OVERFLOW = "nobody took it in time"


class _Piece(NamedTuple):
    content: bytes
    lines: int  # that are lost when this cannot be written: what a count of lost lines tells of are that many


class LineWriter:
    """Writes lines to the descriptor ``fd``, which may be set anew. Its thread starts with the first line in each process.
    ``tell`` makes the line that says how many were lost, and why."""

    def __init__(self, fd: int, tell: Callable[[int, str], str]) -> None:
        self.fd = fd
        self._tell = tell
        self._begin()
        os.register_at_fork(after_in_child=self._begin)

    def _begin(self) -> None:
        """With nothing in it. In a process that was forked: what waits is its parent's to write, and so is the thread."""
        self._changed = threading.Condition()  # its lock is reentrant: a signal's handler may log
        self._queue: deque[_Piece] = deque()
        self._size = 0  # bytes in the queue
        self._lost = 0  # lines, of which nothing in the queue tells
        self._reason = ""
        self._has_thread = False
        self._idle = True  # the thread has nothing to do, or cannot do it for the moment
        self._torn = False  # the last line that was written has no end

    def put(self, line: str) -> None:
        """Appends a line, without its newline. Returns at once, and raises nothing that a full queue could cause."""
        content = line.encode(errors="backslashreplace") + b"\n"
        with self._changed:
            # Once lines are lost, more are until half of the queue is free: not every other one.
            room = limits.STDERR_QUEUE_SIZE // (2 if self._lost else 1) - self._size
            if self._queue and len(content) > room:
                self._lose(1, _OVERFLOW)
                return
            if not self._start():
                return
            self._tell_of_lost()
            self._append(_Piece(content, 1))

    def flush(self) -> None:
        """Until all is written, or nothing can be for the moment; at most for so long as the end of a process may wait."""
        with self._changed:
            self._changed.wait_for(lambda: self._idle, limits.STDERR_FLUSH_TIMEOUT_S)

    # --- with the lock

    def _append(self, piece: _Piece) -> None:
        self._queue.append(piece)
        self._size += len(piece.content)
        self._idle = False
        self._changed.notify_all()

    def _lose(self, lines: int, reason: str) -> None:
        self._lost += lines
        self._reason = reason

    def _tell_of_lost(self) -> None:
        if self._lost:
            lines, self._lost = self._lost, 0
            self._append(_Piece(self._tell(lines, self._reason).encode() + b"\n", lines))

    def _start(self) -> bool:
        """The thread, if it is not there. False: the system has none for us, the line is lost."""
        if self._has_thread:
            return True
        # It inherits the mask: signals are for the thread that has their handlers.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            threading.Thread(target=self._run, name="stderr", daemon=True).start()
        except RuntimeError as error:
            self._lose(1, str(error))
            return False
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        self._has_thread = True
        return True

    # --- the thread

    def _run(self) -> None:
        while True:
            piece = self._next()
            reason = self._write(piece.content)
            with self._changed:
                self._queue.popleft()
                self._size -= len(piece.content)
                if (
                    reason
                ):  # a line that tells of it would fail too: it comes before the next one, or after a while
                    self._lose(piece.lines, reason)
                elif not self._queue:
                    self._tell_of_lost()
                if not self._queue:
                    self._idle = True
                    self._changed.notify_all()

    def _next(self) -> _Piece:
        """Waits for it. What was lost while nothing could be written is tried once in a while."""
        with self._changed:
            while not self._queue:
                if not self._changed.wait(limits.STDERR_RETRY_INTERVAL_S if self._lost else None):
                    self._tell_of_lost()
            return self._queue[0]

    def _write(self, content: bytes) -> str:
        """All of it, however long that takes. Returns why that is not possible."""
        if self._torn:
            content = b"\n" + content
        view = memoryview(content)
        while view:
            try:
                view = view[os.write(self.fd, view) :]
            except BlockingIOError:  # somebody has set O_NONBLOCK
                ready = select.poll()
                ready.register(self.fd, select.POLLOUT)
                ready.poll()
            except OSError as error:
                self._torn = self._torn or len(view) != len(content)
                return os.strerror(error.errno or errno.EIO)
        self._torn = False
        return ""


class LineStream(io.TextIOBase):
    """A `sys.stderr` whose lines go to a `LineWriter`: tracebacks, warnings, and what else Python says there. It keeps the
    one that it ``replaces``, whose descriptor would be closed with it."""

    encoding: Final = "utf-8"  # type: ignore[misc]
    errors: Final = "backslashreplace"  # type: ignore[misc]

    def __init__(self, writer: LineWriter, replaces: object) -> None:
        super().__init__()
        self._replaces = replaces
        self._writer = writer
        self._begun = ""

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._writer.fd

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self._writer.put(line)
        return len(text)
