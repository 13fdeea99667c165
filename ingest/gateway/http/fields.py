"""The header fields of a request as RFC 9110 (5.2, 5.3) reads them: several lines of a list are one list. Pure.

Whatever reads a header reads it here, so that no line is lost: not by who takes the first one, nor by who takes the last.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from multidict import CIMultiDictProxy, istr

from ingest.gateway.http.failures import Failure

# Fields that are read here and may stand once only. What stands twice was put together by two hands (a client and a proxy,
# or somebody who wants them to disagree), and it is not ours to say whose word counts.
SINGLE = frozenset(
    {
        "authorization",
        "content-disposition",
        "content-length",
        "content-md5",
        "content-range",
        "content-type",
        "host",
        "if-modified-since",
        "if-range",
        "if-unmodified-since",
        "origin",
        "range",
    }
)


class Fields(Mapping[str, str]):
    """By name, in any case. A field of several lines is one value, joined by commas. Failure 400 for one of SINGLE."""

    __slots__ = ("_lines",)

    def __init__(self, lines: CIMultiDictProxy[str]) -> None:
        self._lines = lines

    def __getitem__(self, name: str) -> str:
        values = self._lines.getall(name)  # KeyError
        if len(values) == 1:
            return values[0]
        if name.lower() in SINGLE:
            raise Failure(
                400, "repeated_header", f"the header {name} may stand once, and stands {len(values)} times"
            )
        return ", ".join(values)

    def __contains__(self, name: object) -> bool:
        return name in self._lines

    def __iter__(self) -> Iterator[str]:
        seen: set[str] = set()
        for name in self._lines:
            small = name.lower()
            if small not in seen:
                seen.add(small)
                yield istr(name)

    def __len__(self) -> int:
        return len({name.lower() for name in self._lines})
