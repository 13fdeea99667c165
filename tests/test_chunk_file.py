"""Layout tree: whatever is wrong with the bytes or attributes of a file, a check sees it, and a copy leaves it out."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest
from test_fsck import check_layout

from faults.damaged_store import SMALL_SEGMENT, Builder, read_all, started
from ingest import sharding, ticket
from ingest.limits import DATA_SIZE
from ingest.mac import build_frame
from ingest.status import Status
from ingest.store.check.export import export
from ingest.store.check.fsck import fsck
from ingest.store.layouts.tree_file import CHECKSUM, DELETED

DATA = {
    "bytes": bytes(range(1, 256)) * 6,
    "zeros": bytes(DATA_SIZE),  # of which nothing tells how many there were
    "ends with zeros": b"x".ljust(DATA_SIZE, b"\0"),
}
SIZES = (0, 1, DATA_SIZE - 1, DATA_SIZE, DATA_SIZE + 1)
CHECKSUMS = ("right", "none", "empty", "cut", "longer", "first bit", "last bit", "zeros")


@dataclass(frozen=True)
class Made:
    """A ticket's file, and what it is."""

    index: int
    content: str
    size: int
    checksum: str
    deleted: bool

    @property
    def right(self) -> bool:
        if self.deleted:
            return (self.size, self.checksum) == (0, "none")
        return (self.size, self.checksum) == (DATA_SIZE, "right")


def altered(checksum: bytes, how: str) -> bytes:
    return {
        "right": checksum,
        "empty": b"",
        "cut": checksum[:-1],
        "longer": checksum + b"\0",
        "first bit": bytes([checksum[0] ^ 0x80]) + checksum[1:],
        "last bit": checksum[:-1] + bytes([checksum[-1] ^ 1]),
        "zeros": bytes(len(checksum)),
    }[how]


def write(data: Path, key: bytes, made: Made) -> None:
    content = DATA[made.content][:DATA_SIZE].ljust(DATA_SIZE, b"\0")
    frame = build_frame(key, ticket.index_to_wire(made.index), content)
    path = data / ticket.tree_path(ticket.format(made.index))
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.write_bytes((content + b"\0")[: made.size])
    path.chmod(0o600)
    if made.checksum != "none":
        os.setxattr(path, CHECKSUM, altered(frame[8:16], made.checksum))
    if made.deleted:
        os.setxattr(path, DELETED, b"1")


@pytest.mark.parametrize("content", DATA)
def test_a_file_is_right_only_as_a_whole(tmp_path: Path, content: str) -> None:
    check_layout("tree", tmp_path)
    builder = Builder(tmp_path / "store", "tree", random.Random(1), SMALL_SEGMENT)
    builder.close()
    data = tmp_path / "store"
    kinds = product(SIZES, CHECKSUMS, (False, True))
    files = [
        Made(sharding.slot_ticket(5, slot), content, size, checksum, deleted)
        for slot, (size, checksum, deleted) in enumerate(kinds)
    ]
    for made in files:
        write(data, builder.keys.put, made)
    for path in data.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
    wrong = {ticket.format(made.index): made for made in files if not made.right}
    found = {problem.ticket: problem for problem in fsck(data, segment_size=SMALL_SEGMENT).problems}
    assert found.keys() == wrong.keys()
    for name, made in wrong.items():
        expected = ("deleted_bytes", False) if made.deleted else ("slot", True)
        assert (found[name].kind, found[name].lost) == expected, made
    copied = export(data, tmp_path / "new", "pack", segment_size=SMALL_SEGMENT)
    assert (copied.chunks, copied.deleted) == (1, sum(made.deleted for made in files))
    assert len(copied.problems) == sum(not made.deleted for made in wrong.values())
    with started(data, SMALL_SEGMENT) as reader:
        read = read_all(reader, builder.keys)
    for made in files:
        status = read[made.index][0]
        if made.deleted:
            assert status is Status.DELETED, made
        else:
            assert (status is Status.SAVED) == made.right, made
