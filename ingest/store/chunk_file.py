"""One chunk of layout tree as a file: `docs/format.md`, "Trees". For the tools, which read and write them one by one.

The file holds the data alone; its checksum is an extended attribute. A deleted ticket leaves an empty file with another one.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ingest import sharding, ticket
from ingest.limits import CHECKSUM_SIZE, DATA_SIZE, FRAME_SIZE, TICKET_SIZE
from ingest.store.pack_check import SlotState
from ingest.store.store import make_directory

# On disk: must not change.
CHECKSUM_ATTRIBUTE = "user.ingest.checksum"  # 8 bytes
DELETED_ATTRIBUTE = "user.ingest.deleted"


@dataclass(frozen=True)
class ChunkFile:
    """What a file holds, whatever that is. ``checksum`` and ``deleted``: the values of the attributes, None where
    there are none."""

    data: bytes
    checksum: bytes | None
    deleted: bytes | None

    @property
    def is_tombstone(self) -> bool:
        return self.deleted is not None

    @property
    def attributes(self) -> dict[str, str]:
        """Those that are there, as hex digits."""
        pairs = ((CHECKSUM_ATTRIBUTE, self.checksum), (DELETED_ATTRIBUTE, self.deleted))
        return {name: value.hex() for name, value in pairs if value is not None}

    def frame(self, index: int) -> bytes:
        """The frame of ticket ``index`` that the file makes: of 1474 bytes, and wrong where the file is."""
        checksum = self.checksum or b""
        if len(self.data) != DATA_SIZE or len(checksum) != CHECKSUM_SIZE:
            checksum = bytes(CHECKSUM_SIZE)  # no data have this one but by a chance of 2⁻⁶⁴
        name = ticket.index_to_wire(index) if self.data or self.checksum else bytes(TICKET_SIZE)
        return (name + checksum + self.data[:DATA_SIZE]).ljust(FRAME_SIZE, b"\0")


def read_chunk_file(path: Path) -> ChunkFile:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(fd, "rb", buffering=0) as file:
        return ChunkFile(
            file.read(2 * DATA_SIZE) or b"",
            _attribute(fd, CHECKSUM_ATTRIBUTE),
            _attribute(fd, DELETED_ATTRIBUTE),
        )


def _attribute(fd: int, name: str) -> bytes | None:
    try:
        return os.getxattr(fd, name)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return None
        raise


def read_chunks(data_dir: Path, pack: int, slots: Iterable[int], put_keys: Iterable[bytes]) -> SlotState:
    """The chunks of one pack's tickets, from their files. ``slots``: those that have one."""
    frames = np.zeros((sharding.pack_slots(pack), FRAME_SIZE), np.uint8)
    present: list[int] = []
    deleted: list[int] = []
    for slot in slots:
        index = sharding.slot_ticket(pack, slot)
        file = read_chunk_file(data_dir / ticket.tree_path(ticket.format(index)))
        frames[slot] = np.frombuffer(file.frame(index), np.uint8)
        (deleted if file.is_tombstone else present).append(slot)
    state = SlotState(pack, frames, put_keys)
    state.present[present] = True
    state.deleted[deleted] = True
    return state


def write_chunk_file(path: Path, frame: bytes | None, staging: Path, *, sync: bool = True) -> None:
    """Puts a chunk, or with None a tombstone, in the place of whatever is there: whole new or whole old."""
    fd = os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        if frame is None:
            os.setxattr(fd, DELETED_ATTRIBUTE, b"1")
        else:
            os.setxattr(fd, CHECKSUM_ATTRIBUTE, frame[TICKET_SIZE : TICKET_SIZE + CHECKSUM_SIZE])
            data = memoryview(frame)[TICKET_SIZE + CHECKSUM_SIZE :]
            while data:
                data = data[os.write(fd, data) :]
        if sync:
            os.fsync(fd)
    finally:
        os.close(fd)
    make_directory(path.parent)
    os.rename(staging, path)
    if sync:
        parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(parent)
        finally:
            os.close(parent)
