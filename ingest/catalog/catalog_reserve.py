"""Room that the catalog has taken in advance, so that it can still be changed when somebody else has filled the disk.

It is a file whose blocks are real, and a few empty files, whose inodes are. SQLite finds no room, a part of the file is
given back, and SQLite is asked again. Where no inode is free, one of the empty files is removed: a start makes files.
Whoever has the catalog may give; who changes it for a longer time fills the file again. Nothing is ever read from it:
all of it may be missing, shorter or removed at any moment, and then there is that much less in reserve.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from ingest.limits import (
    CATALOG_RESERVE_FILES,
    CATALOG_RESERVE_RETRY_S,
    CATALOG_RESERVE_SIZE,
    CATALOG_RESERVE_STEP,
)
from ingest.runtime.durable_files import open_new
from ingest.store.space import OUT_OF_SPACE, takes_no_file

BLOCK = 512  # bytes: what st_blocks counts


class CatalogReserve:
    """The file ``path``. It is opened anew each time: other processes give and fill too.

    `short`: something was given or is missing, and the disk had no room for it when that was last tried. Then nothing new
    may be stored: it would use up what is kept for deletes. Inodes do not count in that: nothing that is stored takes one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spares = [path.with_name(f"{path.name}.{i}") for i in range(1, CATALOG_RESERVE_FILES + 1)]
        self.short = False
        self._filled_at = 0.0  # seconds of the machine's monotonic clock: tried, that is

    def give(self) -> bool:
        """Gives some room back to the file system: an inode where none is free, else some blocks as long as there are any.
        False when nothing is left, or the disk does not let it."""
        if takes_no_file(self.path.parent) and self._give_inode():
            return True
        return self._give_blocks()

    def _give_inode(self) -> bool:
        for spare in self.spares:
            with suppress(OSError):  # it is not there, or the disk takes no change at all
                os.unlink(spare)
                return True
        return False

    def _give_blocks(self) -> bool:
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:  # there is none, or the disk takes no change at all
            return False
        try:
            size = os.fstat(fd).st_size
            os.ftruncate(fd, max(0, size - CATALOG_RESERVE_STEP))
        except OSError:  # the same
            return False
        finally:
            os.close(fd)
        self.short = self.short or size > 0
        return size > 0

    def fill(self) -> bool:
        """Takes what is missing of it, as far as there is room. Returns whether it is whole."""
        self._filled_at = time.monotonic()
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                _grow(fd)
            finally:
                os.close(fd)
        except OSError as error:
            self.short = error.errno in OUT_OF_SPACE  # else the disk takes no change, or no file of that size
            return False
        self.short = False
        try:
            for spare in self.spares:
                _make(spare)
        except OSError:  # no inode is free, or the disk takes no change
            return False
        return True

    def refuses(self) -> bool:
        """Whether nothing new may be stored. Once a second it looks for room, which takes a full disk its time."""
        if self.short and time.monotonic() >= self._filled_at + CATALOG_RESERVE_RETRY_S:
            self.fill()
        return self.short


def _make(spare: Path) -> None:
    if not os.path.lexists(spare):
        with suppress(FileExistsError):  # another process was faster
            os.close(open_new(spare))


def _grow(fd: int) -> None:
    stat = os.fstat(fd)
    # What was copied by a tool that leaves holes has no blocks: it begins again.
    size = stat.st_size if stat.st_blocks * BLOCK >= stat.st_size else 0
    while size < CATALOG_RESERVE_SIZE:
        step = min(CATALOG_RESERVE_STEP, CATALOG_RESERVE_SIZE - size)
        try:
            os.posix_fallocate(fd, size, step)
        except OSError:
            with suppress(OSError):
                os.ftruncate(fd, size)  # what it has of the step goes back
            raise
        size += step
