"""Whose a connection is: of the process that opened it, and of none that was forked from it.

A fork copies the sockets of a client and not the thread that reads them. What an event loop in the copy changes there, it
changes for both processes. So a call in the copy is refused before it touches any of them. Forks are counted, because the
number of a process may come again, in another namespace even at once.
"""

from __future__ import annotations

import os

from ingest.errors import ForkedError

_forks = 0  # between the first process of this interpreter and this one


def _count() -> None:
    global _forks
    _forks += 1


os.register_at_fork(after_in_child=_count)


class ForkGuard:
    """``what``: what belongs to the process that makes this, for the error."""

    __slots__ = ("_forks", "_process", "_what")

    def __init__(self, what: str) -> None:
        self._what = what
        self._forks = _forks
        self._process = os.getpid()

    @property
    def forked(self) -> bool:
        """This process is another one than that which made it."""
        return self._forks != _forks

    def check(self) -> None:
        """ForkedError in another process."""
        if self._forks != _forks:
            raise ForkedError(
                f"{self._what} belongs to process {self._process}, which made it, and process {os.getpid()} was forked "
                "from that one: make another one here, after the fork"
            )
