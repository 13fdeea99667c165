"""Whether a process still works on what it has opened: a path may lead elsewhere by now, or nowhere.

An open descriptor goes on working when its file or directory was removed, moved away, or hidden by a mount. What is written
there is found by nobody, or belongs to somebody else's store. A lock that was removed keeps nobody out.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from ingest.errors import DataDirLostError
from ingest.limits import POSSESSION_INTERVAL_S

Identity = tuple[int, int]  # device and inode


def identity_of(found: os.stat_result) -> Identity:
    return found.st_dev, found.st_ino


class Possession:
    """``opened``: for each path the descriptor that was opened there, or, where a second one must not be opened (SQLite's
    locks end with it), the identity. ``present``: paths that need only lead to something. It is used after a fork as before.
    """

    def __init__(self, opened: Mapping[Path, int | Identity], present: Iterable[Path] = ()) -> None:
        self._opened = dict(opened)
        self._present = tuple(present)
        self._more: Callable[[], Mapping[Path, int | Identity]] = dict
        self._some: Callable[[], Mapping[Path, int | Identity]] = dict
        self._looked_at = 0.0  # of the monotonic clock
        self.loss = (
            ""  # what the last look has found: which path, and what is wrong there; empty when all is well
        )

    def add(self, path: Path, opened: int | Identity) -> None:
        self._opened[path] = opened

    def add_changing(
        self,
        opened: Callable[[], Mapping[Path, int | Identity]],
        some: Callable[[], Mapping[Path, int | Identity]] | None = None,
    ) -> None:
        """Files that come and go: each look asks what is open now, and at which paths. ``some``: of many, those that one
        look is enough for while nothing is lost; a loss is over when all are there."""
        self._more = opened
        self._some = some or opened

    def check(self) -> None:
        """DataDirLostError when the last look has found a loss."""
        if self.loss:
            raise DataDirLostError(f"{self.loss}: nothing is saved here any more")

    def look(self) -> str:
        """Looks now, and returns ``loss``. It waits as long as the file system does."""
        self.loss = next(self._losses(), "")
        self._looked_at = time.monotonic()
        return self.loss

    def look_again(self) -> str:
        """``loss``, which is not older than `POSSESSION_INTERVAL_S`."""
        if time.monotonic() - self._looked_at >= POSSESSION_INTERVAL_S:
            self.look()
        return self.loss

    def _losses(self) -> Iterator[str]:
        more = self._more() if self.loss else self._some()
        for opened in (self._opened, dict.fromkeys(self._present), more):
            yield from filter(None, map(self._loss_of, opened, opened.values()))

    def _loss_of(self, path: Path, was: int | Identity | None) -> str:
        try:
            found = identity_of(os.stat(path))
            if was is None or found == (identity_of(os.fstat(was)) if isinstance(was, int) else was):
                return ""
        except (FileNotFoundError, NotADirectoryError):
            return f"{path} is gone"
        except OSError as error:  # nobody can tell whether it is ours: it may be the next moment
            return f"{path} can't be looked at: {error.strerror}"
        return f"{path} is not the one that was opened here"
