"""What a power cut leaves of a sequence of writes and flushes: a pure function of the sequence, the moment, and chance.

A disk with a volatile cache keeps what it had when a flush was asked for, and of what came later anything: each write whole,
in part, or not at all, and of two to one place either. A sector is whole.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from typing import NamedTuple

SECTOR = 512  # bytes: the least that a disk writes whole or not at all
WHOLE_BELOW = 4096  # bytes: ext4 relies on its superblock, 1024 bytes of the first block, being written whole
ENTRY = struct.Struct("=QQ")  # offset and length, before the data of a write, as they are recorded
FLUSH = (1 << 64) - 1  # as an offset: this entry is a flush


class Entry(NamedTuple):
    """One write, or (`offset` is FLUSH, `length` 0) a flush. `position`: where in the record its data lie. Bytes."""

    offset: int
    length: int
    position: int


class Piece(NamedTuple):
    """`length` bytes at `position` of the record, that the disk has at `offset`."""

    offset: int
    length: int
    position: int


def parse_record(record: bytes | memoryview) -> list[Entry]:
    """The entries of a record, in the order in which the disk got them. ValueError when it ends within one."""
    entries, position = [], 0
    while position < len(record):
        if position + ENTRY.size > len(record):
            raise ValueError(f"the record ends within the entry at {position}")
        offset, length = ENTRY.unpack_from(record, position)
        position += ENTRY.size
        if position + length > len(record):
            raise ValueError(f"the record ends within the write at {position - ENTRY.size}")
        entries.append(Entry(offset, length, position))
        position += length
    return entries


def durable_count(entries: Sequence[Entry], cut: int) -> int:
    """How many of the first `cut` entries are on the disk for certain: all up to the last flush among them."""
    return next((i for i in range(cut, 0, -1) if entries[i - 1].offset == FLUSH), 0)


def survivors(entries: Sequence[Entry], cut: int, chance: random.Random, sector: int = SECTOR) -> list[Piece]:
    """What the disk has, beyond `durable_count`, of the first `cut` entries, in an order in which it may have got it.

    `sector`: bytes that it writes whole or not at all.
    """
    kept: list[Piece] = []
    share = chance.choice((0.0, 0.1, 0.5, 0.9, 1.0))
    tears = chance.random() < 0.7
    for entry in entries[durable_count(entries, cut) : cut]:
        sectors = _sectors(entry, sector)
        if not tears or entry.offset < WHOLE_BELOW or chance.random() < 0.3:
            kept += [Piece(*entry)] if chance.random() < share else []
        elif chance.random() < 0.5:
            kept += sectors[: chance.randrange(len(sectors) + 1)]
        else:
            kept += [sector for sector in sectors if chance.random() < share]
    if chance.random() < 0.7:
        chance.shuffle(kept)
    return _joined(kept)


def _sectors(entry: Entry, sector: int) -> list[Piece]:
    """A write, divided where sectors of the disk begin."""
    starts = [0, *range(sector - entry.offset % sector, entry.length, sector)]
    return [
        Piece(entry.offset + start, end - start, entry.position + start)
        for start, end in zip(starts, [*starts[1:], entry.length], strict=True)
    ]


def _joined(pieces: list[Piece]) -> list[Piece]:
    """The same with neighbours, as they lie in one write, in one piece."""
    joined: list[Piece] = []
    for piece in pieces:
        last = joined[-1] if joined else None
        if last and (last.offset + last.length, last.position + last.length) == (
            piece.offset,
            piece.position,
        ):
            joined[-1] = Piece(last.offset, last.length + piece.length, last.position)
        else:
            joined.append(piece)
    return joined
