"""Range requests: a single range of bytes (RFC 9110, 14). Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ingest.gateway.http.failures import Failure

_RANGE = re.compile(r"bytes[ \t]*=[ \t]*([0-9]*)-([0-9]*)[ \t]*", re.IGNORECASE)
_DIGITS_MAX = 19  # more of them than any object has bytes: the number is as good as this


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Bytes from ``start`` up to ``stop``, at least one, of an object of ``size``."""

    start: int
    stop: int
    size: int

    @property
    def content_range(self) -> str:
        return f"bytes {self.start}-{self.stop - 1}/{self.size}"


def parse_range(text: str | None, size: int) -> ByteRange | None:
    """What a Range header asks for of ``size`` bytes. None: all of it, also when it is malformed or asks for several parts,
    as HTTP allows. Failure 416 when there is not one byte of it."""
    match = _RANGE.fullmatch(text.strip(" \t")) if text is not None else None
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        start, stop = max(0, size - _number(match[2])), size
    else:
        start = _number(match[1])
        stop = _number(match[2]) + 1 if match[2] else size
        if stop <= start and match[2]:
            return None  # its end stands before its beginning: malformed
        stop = min(stop, size)
    if start >= stop:
        raise Failure(
            416,
            "range_not_satisfiable",
            f"the object has {size} bytes",
            {"Content-Range": f"bytes */{size}"},
        )
    return ByteRange(start, stop, size)


def _number(digits: str) -> int:
    digits = digits.lstrip("0")
    return int(digits or "0") if len(digits) <= _DIGITS_MAX else 10**_DIGITS_MAX
