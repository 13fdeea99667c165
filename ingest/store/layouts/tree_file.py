"""A ticket's file in layout tree: `docs/format.md`, "Layout tree". Its bytes and attributes, and what they mean.

The server's own paths are C (`csrc/tree_file.h`); this is for tools, tests and whoever wants to read a store without it.
"""

from __future__ import annotations

import errno
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ingest import ticket
from ingest.errors import ConfigError, CorruptionError
from ingest.limits import CHECKSUM_SIZE, DATA_SIZE
from ingest.status import Status

# On disk: must not change.
CHECKSUM = "user.ingest.checksum"  # attribute: the frame's checksum, 8 bytes
DELETED = "user.ingest.deleted"  # attribute: the ticket is deleted for good
TOMBSTONE = b"1"  # what a server gives it as a value; being there is what counts


@dataclass(frozen=True)
class TreeFile:
    """What the file of one ticket holds. ``checksum`` is None without the attribute."""

    data: bytes
    checksum: bytes | None
    deleted: bool

    @classmethod
    def read(cls, fd: int) -> TreeFile:
        """From an open file; reads at most one byte more than a chunk has. OSError from the disk."""
        attributes = os.listxattr(fd)
        checksum = os.getxattr(fd, CHECKSUM) if CHECKSUM in attributes else None
        return cls(os.pread(fd, DATA_SIZE + 1, 0), checksum, DELETED in attributes)

    def write(self, fd: int) -> None:
        """To an open file, the attributes last. OSError from the disk."""
        os.pwrite(fd, self.data, 0)
        os.ftruncate(fd, len(self.data))
        if self.checksum is not None:
            os.setxattr(fd, CHECKSUM, self.checksum)
        if self.deleted:
            os.setxattr(fd, DELETED, TOMBSTONE)

    @property
    def status(self) -> Status:
        """SAVED, DELETED or MISSING (a crash left it half made). CorruptionError for what no server leaves."""
        if self.deleted:
            return Status.DELETED
        if self.checksum is None:
            return Status.MISSING
        if len(self.checksum) != CHECKSUM_SIZE:
            raise CorruptionError(f"{CHECKSUM} has {len(self.checksum)} bytes, expected {CHECKSUM_SIZE}")
        if len(self.data) != DATA_SIZE:
            size = f"only {len(self.data)}" if len(self.data) < DATA_SIZE else f"more than {DATA_SIZE}"
            raise CorruptionError(f"the file has {size} bytes, a chunk has {DATA_SIZE}")
        return Status.SAVED

    def frame(self, name: str) -> bytes:
        """The frame (1474 bytes) that was put, ``name`` being the ticket. Only where the status is SAVED."""
        assert self.status is Status.SAVED and self.checksum is not None
        return ticket.to_wire(name) + self.checksum + self.data


def check_file_system(directory: Path) -> None:
    """ConfigError unless files in `directory` can have the attributes of this layout."""
    with tempfile.TemporaryFile(dir=directory) as file:
        try:
            os.setxattr(file.fileno(), CHECKSUM, bytes(CHECKSUM_SIZE))
            os.setxattr(file.fileno(), DELETED, TOMBSTONE)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.ENOSPC, errno.EPERM):
                raise
            raise ConfigError(
                f"{directory}: this file system keeps no extended attributes of users ({error.strerror}), which "
                "layout tree needs: use layout pack, or another file system"
            ) from error
