"""Which tickets hold an object: runs of consecutive ones, in the order of its bytes. Pure.

An object of ``size`` bytes is cut into chunks of 1458 bytes, the last one padded with zeros; an empty one has one chunk. Its
extents hold the chunks one after the other, and behind the last one the chunks of its manifest.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

import msgspec

from ingest import ticket
from ingest.errors import CatalogError
from ingest.limits import DATA_SIZE

FIRST = ticket.parse("00000000")  # where ranges are given from: the tickets of 8 characters
RESERVED = ticket.LAST  # ZZZZZZZZ, which says whose the store is: no range goes so far
_ENTRY = struct.Struct(">QQ")


class Extent(msgspec.Struct, frozen=True, order=True, gc=False):
    """``count`` tickets from the one with index ``first`` on."""

    first: int
    count: int

    @property
    def stop(self) -> int:
        return self.first + self.count

    def __str__(self) -> str:
        return f"{ticket.format(self.first)}+{self.count}"


def chunks_needed(size: int) -> int:
    """How many chunks an object of ``size`` bytes has."""
    return max(1, -(-size // DATA_SIZE))


def total(extents: Iterable[Extent]) -> int:
    """Their tickets."""
    return sum(extent.count for extent in extents)


def joined(extents: Iterable[Extent]) -> tuple[Extent, ...]:
    """The same tickets in the same order, neighbours made one, empty extents left out."""
    result: list[Extent] = []
    for extent in extents:
        if result and result[-1].stop == extent.first:
            result[-1] = Extent(result[-1].first, result[-1].count + extent.count)
        elif extent.count:
            result.append(extent)
    return tuple(result)


def part(extents: Iterable[Extent], start: int, count: int) -> Iterator[Extent]:
    """Where ``count`` chunks from number ``start`` (0: the first) on lie."""
    for extent in extents:
        if count == 0:
            return
        if start >= extent.count:
            start -= extent.count
            continue
        here = min(count, extent.count - start)
        yield Extent(extent.first + start, here)
        start, count = 0, count - here
    assert count == 0, f"{count} chunks more were asked for than the extents hold"


def without(extents: Iterable[Extent], index: int) -> tuple[Extent, ...]:
    """All of them but the ticket with this index."""
    result = []
    for extent in extents:
        if extent.first <= index < extent.stop:
            result += [Extent(extent.first, index - extent.first), Extent(index + 1, extent.stop - index - 1)]
        else:
            result.append(extent)
    return tuple(extent for extent in result if extent.count)


def difference(held: Iterable[Extent], kept: Iterable[Extent]) -> list[Extent]:
    """What of ``held`` is not in ``kept``, in ticket order. In each of them no ticket may stand twice."""
    result: list[Extent] = []
    gone = sorted(kept)
    at = 0
    for place in sorted(held):
        first = place.first
        while at < len(gone) and gone[at].stop <= first:
            at += 1
        for one in gone[at:]:
            if one.first >= place.stop:
                break
            if one.first > first:
                result.append(Extent(first, one.first - first))
            first = max(first, one.stop)
        if first < place.stop:
            result.append(Extent(first, place.stop - first))
    return result


def serialize(extents: Iterable[Extent]) -> bytes:
    """16 bytes for each: index of the first ticket and count, big-endian."""
    return b"".join(_ENTRY.pack(extent.first, extent.count) for extent in extents)


def parse(raw: bytes) -> tuple[Extent, ...]:
    """From what ``serialize`` made. CatalogError for anything that can't be extents."""
    if len(raw) % _ENTRY.size:
        raise CatalogError(f"extents of {len(raw)} bytes: each has {_ENTRY.size}")
    extents = tuple(Extent(first, count) for first, count in _ENTRY.iter_unpack(raw))
    for extent in extents:
        if extent.count < 1 or extent.stop > ticket.COUNT:
            raise CatalogError(
                f"an extent of {extent.count} tickets from index {extent.first}: there is none"
            )
    return extents
