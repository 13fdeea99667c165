"""Packs as a committer leaves them, made by plain file operations."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ingest import sharding
from ingest.limits import DATA_SIZE, FRAME_SIZE, RANGE_COUNT_MAX
from ingest.mac import build_frame, derive
from ingest.status import Status
from ingest.store.layouts import pack_file
from ingest.store.layouts.pack_file import PackHeader
from ingest.ticket import index_to_wire, parse

KEYS = derive(bytes(range(32)))
OTHER_KEYS = derive(bytes(range(1, 33)))
STORE_ID = bytes(range(16, 32))


def frame(index: int, data: bytes | None = None, key: bytes = KEYS.put) -> bytes:
    """Signed. Its data, unless given, fills the frame to its last byte and is that of no other ticket."""
    text = b"data of %d, " % index
    return build_frame(key, index_to_wire(index), (text * 150)[:DATA_SIZE] if data is None else data)


class Packs:
    """The packs below ``root``. ``model`` holds what should come back: {index: frame, or None for deleted}."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        self.model: dict[int, bytes | None] = {}

    def __enter__(self) -> Packs:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def path(self, index: int) -> Path:
        return self.root / sharding.pack_path(sharding.ticket_pack(index))

    def header(self, index: int) -> PackHeader:
        path = self.path(index)
        if path.exists():
            return PackHeader.parse(path.read_bytes()[:512])
        return PackHeader.of_pack(sharding.ticket_pack(index), STORE_ID)

    def write_header(self, index: int, header: PackHeader) -> None:
        header.generation += 1
        self.write(index, 0, header.serialize())

    def write(self, index: int, offset: int, data: bytes) -> None:
        """Writes into the pack of a ticket, and makes it when there is none."""
        path = self.path(index)
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.pwrite(fd, data, offset)
        finally:
            os.close(fd)

    def write_slot(self, index: int, data: bytes) -> None:
        self.write(index, sharding.slot_offset(sharding.ticket_slot(index)), data)

    def put(self, indices: Iterable[int]) -> None:
        by_pack: dict[int, list[int]] = {}
        for index in indices:
            by_pack.setdefault(sharding.ticket_pack(index), []).append(index)
        for members in by_pack.values():
            header = self.header(members[0])
            for index in members:
                self.model[index] = frame(index)
                self.write_slot(index, self.model[index] or b"")
                pack_file.set_bits(header.present, sharding.ticket_slot(index))
            self.write_header(members[0], header)

    def delete(self, indices: Iterable[int], zero: bool = True) -> None:
        for index in indices:
            header = self.header(index)
            pack_file.set_bits(header.present, sharding.ticket_slot(index), 1, False)
            pack_file.set_bits(header.deleted, sharding.ticket_slot(index))
            self.write_header(index, header)
            if zero:
                self.write_slot(index, bytes(FRAME_SIZE))
            self.model[index] = None

    def expected(self, first: int, count: int) -> list[tuple[Status, bytes]]:
        """What each of the tickets holds."""
        assert count <= RANGE_COUNT_MAX
        answers = []
        for index in range(first, first + count):
            if index not in self.model:
                answers.append((Status.MISSING, b""))
            elif (held := self.model[index]) is None:
                answers.append((Status.DELETED, b""))
            else:
                answers.append((Status.SAVED, held))
        return answers


def flat(runs: list[tuple[int, Status, int, bytes]], first: int) -> list[tuple[Status, bytes]]:
    """Runs ticket by ticket; asserts that they follow one another."""
    answers = []
    for start, status, n, frames in runs:
        assert start == first and n >= 1
        assert len(frames) == (n * FRAME_SIZE if status == Status.SAVED else 0)
        for i in range(n):
            answers.append((status, frames[i * FRAME_SIZE : (i + 1) * FRAME_SIZE]))
        first += n
    return answers


A0 = parse("A00")  # the first ticket of pack A
