"""Where the head of an HTTP request ends, and where its body does: so much is given to the parser at a time, and no more.

A parser that gets all that came reads ahead: the requests behind the one under way are then in memory, parsed. And it bounds
single fields, not the head of all of them. Whoever cuts what comes bounds both. What is malformed the parser finds.
RFC 9112, sections 2.1 and 7.1.
"""

from __future__ import annotations

import re

from ingest.limits import HTTP_BODY_DIGITS_MAX, HTTP_CHUNKS_EXCESS_MAX, HTTP_HEAD_SIZE_MAX

_END = b"\r\n\r\n"
_HEX = b"0123456789abcdefABCDEF"
_SIZE_LINE = re.compile(rb"([0-9a-fA-F]{1,16})\r\n")


class HeadEnd:
    """``size``: bytes of the head so far, without the empty lines before it; ``ended``: it is whole."""

    def __init__(self) -> None:
        self.size = 0
        self.ended = False
        self._last = b""  # its last 3 bytes: its end may come in pieces

    def take(self, data: bytes) -> int:
        """How many bytes of ``data`` are of the head."""
        before = len(self._last)
        whole = self._last + data if before else data
        at = whole.find(_END)
        if at < 0:
            taken = len(data)
            self._last = whole[-3:]
        else:
            taken = at + len(_END) - before
            self.ended = True
        self.size += taken
        return taken


def is_length(text: str) -> bool:
    """Whether ``text``, a Content-Length that the parser took, is one for us too. llhttp means "no length" by 2^64 - 1: then
    aiohttp sees no body, where others wait for one. Python reads no number of thousands of digits."""
    return len(text) <= HTTP_BODY_DIGITS_MAX


class SizedEnd:
    """The end of a body whose ``size`` was said: bytes, more than 0. ``left``: of them, to come."""

    def __init__(self, size: int) -> None:
        assert size > 0
        self.left = size

    @property
    def ended(self) -> bool:
        return self.left == 0

    def take(self, data: bytes) -> int:
        """How many bytes of ``data`` are of the body."""
        taken = min(self.left, len(data))
        self.left -= taken
        return taken


class ChunkedEnd:
    """The end of a body in chunks, trailers and all. ``trailers``: bytes of them so far; more than a head may have is too
    much for whoever keeps them. ``excess``: bytes of framing beyond those of data, as they have come. A chunk costs as much
    time as kilobytes of data do, so chunks of next to nothing are refused; Go's net/http counts the same way.

    | state | what comes | then |
    |---|---|---|
    | size | hexadecimal digits, an extension, LF | data, or trailers after a size of 0 |
    | data | so many bytes, and CR LF | size |
    | trailers | lines | the end, after an empty one |
    """

    def __init__(self) -> None:
        self.ended = False
        self.trailers = 0
        self.excess = 0
        self._size = 0  # of the chunk, as far as its digits have come
        self._digits = True  # no extension has begun
        self._data = 0  # bytes of the chunk that are to come, with its CR LF
        self._in_trailers = False
        self._line = 0  # bytes of this line of the trailers, without CR

    @property
    def too_long(self) -> bool:
        return self.trailers > HTTP_HEAD_SIZE_MAX

    @property
    def too_thin(self) -> bool:
        return self.excess > HTTP_CHUNKS_EXCESS_MAX

    def take(self, data: bytes) -> int:
        """How many bytes of ``data`` are of the body, or until it is too thin."""
        at = 0
        while at < len(data) and not self.ended and self.excess <= HTTP_CHUNKS_EXCESS_MAX:
            if self._data:
                step = min(self._data, len(data) - at)
                self._data -= step
                at += step
            elif self._in_trailers:
                at = self._trailer(data, at)
            elif (
                self._digits and not self._size and (whole := _SIZE_LINE.match(data, at))
            ):  # nearly all of them
                size = int(whole[1], 16)
                self.excess += whole.end() - at
                at = whole.end()
                if 0 < size <= len(data) - at - 2:
                    at += size + 2
                    self._count(size)
                else:
                    self._begin(size)
            else:
                at = self._size_line(data, at)
        return at

    def _begin(self, size: int) -> None:
        """A chunk, or the trailers."""
        self._in_trailers = size == 0
        self._data = size + 2 if size else 0
        self._count(size)

    def _count(self, size: int) -> None:
        """A chunk's data, and the CR LF behind them."""
        self.excess = max(0, self.excess + 2 - size)

    def _size_line(self, data: bytes, at: int) -> int:
        end = data.find(b"\n", at)
        line = data[at:] if end < 0 else data[at:end]
        self.excess += len(line) + 1
        if self._digits:
            digits = line[: len(line) - len(line.lstrip(_HEX))]
            self._digits = len(digits) == len(line)
            if digits:  # the parser takes no number above 64 bits
                self._size = min((self._size << 4 * len(digits)) + int(digits, 16), 1 << 64)
        if end < 0:
            return len(data)
        size, self._size, self._digits = self._size, 0, True
        self._begin(size)
        return end + 1

    def _trailer(self, data: bytes, at: int) -> int:
        end = data.find(b"\n", at)
        stop = len(data) if end < 0 else end
        self._line += len(data[at:stop].rstrip(b"\r"))
        taken = stop - at if end < 0 else end + 1 - at
        self.trailers += taken
        if end >= 0:
            self.ended = self._line == 0
            self._line = 0
        return at + taken
