"""Tickets, the names of chunks: `docs/protocol.md`, "Tickets". Pure; `csrc/ticket.h` is the same arithmetic in C.

A ticket has three forms: text (`str`, 1 to 8 of `0-9A-Z`), index (`int`, its place in the count `0`, …, `Z`,
`00`, …, that is shortest first), and wire (8 bytes, ASCII, padded right with NUL).
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from ingest.errors import TicketError
from ingest.limits import PACK_SLOTS, TICKET_LENGTH_MAX, TICKET_SIZE

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
BASE = 36
_PAIRS = [first + second for first in ALPHABET for second in ALPHABET]  # two digits are one step

_TEXT = re.compile(r"[0-9A-Z]{1,8}")
_WIRE = re.compile(rb"([0-9A-Z]{1,8})\0*")
_PATH = re.compile(r"(?:[0-9A-Z]{2}/){0,3}[0-9A-Z]{1,2}/obj")

# _SHORTER[n]: how many tickets are shorter than n characters, which is the index of the first one of n.
_SHORTER: list[int] = [0, *((BASE**n - BASE) // (BASE - 1) for n in range(1, TICKET_LENGTH_MAX + 2))]

COUNT = _SHORTER[TICKET_LENGTH_MAX + 1]  # of all tickets
LAST = COUNT - 1  # the index of ZZZZZZZZ


def parse(text: str) -> int:
    """The index of a ticket. TicketError for anything that is not one."""
    if not isinstance(text, str) or not _TEXT.fullmatch(text):
        raise TicketError(f"{text!r} is not a ticket: 1 to {TICKET_LENGTH_MAX} characters of 0-9A-Z are")
    return _SHORTER[len(text)] + int(text, BASE)


def format(index: int) -> str:
    """The ticket at ``index``, 0 to ``LAST``. TicketError outside of that."""
    check_index(index)
    length = bisect_right(_SHORTER, index) - 1
    rest = index - _SHORTER[length]
    text = ""
    for _ in range(length // 2):
        rest, pair = divmod(rest, len(_PAIRS))
        text = _PAIRS[pair] + text
    return ALPHABET[rest] + text if length % 2 else text


def check_index(index: int) -> None:
    """TicketError unless ``index`` is one of a ticket."""
    if not 0 <= index <= LAST:
        raise TicketError(f"no ticket has the index {index}: they go from 0 to {LAST} (ZZZZZZZZ)")


def to_wire(text: str) -> bytes:
    """The 8 bytes of a ticket as it travels. TicketError when ``text`` is not a ticket."""
    parse(text)
    return _padded(text)


def from_wire(raw: bytes | bytearray | memoryview) -> str:
    """The ticket that travels as ``raw``. TicketError when that is malformed or not 8 bytes long."""
    raw = bytes(raw)
    match = _WIRE.fullmatch(raw)
    if match is None or len(raw) != TICKET_SIZE:
        raise TicketError(f"malformed ticket on the wire: {raw.hex(' ')}")
    return match[1].decode("ascii")


def index_to_wire(index: int) -> bytes:
    return _padded(format(index))


def _padded(text: str) -> bytes:
    return text.encode("ascii").ljust(TICKET_SIZE, b"\0")


def index_from_wire(raw: bytes | bytearray | memoryview) -> int:
    return parse(from_wire(raw))


def compare(a: str, b: str) -> int:
    """-1, 0 or 1 as ticket ``a`` comes before, is, or comes after ``b``. TicketError when one is no ticket."""
    left, right = parse(a), parse(b)
    return (left > right) - (left < right)


def successor(text: str) -> str:
    """The next ticket. TicketError after ZZZZZZZZ: the count never wraps."""
    index = parse(text)
    if index == LAST:
        raise TicketError(f"{text} is the last ticket: all {COUNT} are used")
    return format(index + 1)


def run_max(index: int) -> int:
    """How many tickets from ``index`` on lie in consecutive slots of one pack (`docs/format.md`, "Packs")."""
    check_index(index)
    return BASE - index if index < BASE else PACK_SLOTS - (index - BASE) % PACK_SLOTS


def tree_path(text: str) -> str:
    """Where a ticket lies below DATA in layout tree: `AABBCCDD` is `AA/BB/CC/DD/obj`, `ABC` is `AB/C/obj`."""
    parse(text)
    return "/".join([*(text[i : i + 2] for i in range(0, len(text), 2)), "obj"])


def from_tree_path(path: str) -> str:
    """The ticket of a path as `tree_path` makes them. TicketError for any other path, also one that leads there."""
    if not isinstance(path, str) or not _PATH.fullmatch(path):
        raise TicketError(f"{path!r} is not the path of a ticket: one looks like AA/BB/C/obj")
    return path.removesuffix("/obj").replace("/", "")


@dataclass(frozen=True, slots=True)
class TicketRange:
    """``count`` tickets from ``first`` on, at least one. TicketError when that is malformed or goes past the last one.

    Iterating gives texts in order; ``indices`` is the same as numbers.
    """

    first: str
    count: int

    def __post_init__(self) -> None:
        start = parse(self.first)
        if self.count < 1:
            raise TicketError(f"a range of {self.count} tickets: at least one is needed")
        if self.count > COUNT - start:
            raise TicketError(
                f"{self.count} tickets from {self.first} on go past ZZZZZZZZ: only {COUNT - start} are left"
            )

    @classmethod
    def of_indices(cls, start: int, count: int) -> TicketRange:
        return cls(format(start), count)

    @property
    def indices(self) -> range:
        start = parse(self.first)
        return range(start, start + self.count)

    @property
    def last(self) -> str:
        return format(self.indices[-1])

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[str]:
        return map(format, self.indices)

    def __contains__(self, text: object) -> bool:
        return isinstance(text, str) and bool(_TEXT.fullmatch(text)) and parse(text) in self.indices

    def split(self, count_max: int | None = None) -> Iterator[TicketRange]:
        """The range in order, cut so that each piece lies in consecutive slots of one pack (and holds at most
        ``count_max`` tickets)."""
        if count_max is not None and count_max < 1:
            raise TicketError(f"pieces of {count_max} tickets: at least one is needed")
        start, stop = self.indices.start, self.indices.stop
        while start < stop:
            count = min(run_max(start), stop - start, count_max or self.count)
            yield TicketRange.of_indices(start, count)
            start += count
