"""The header fields of a request as RFC 9110 (5.2, 5.3) reads them: several lines of a list are one list. Pure.

Whatever reads a header reads it here, so that no line is lost: not by who takes the first one, nor by who takes the last.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeVar, overload

from multidict import CIMultiDictProxy, istr

from ingest.gateway.http.failures import Failure

T = TypeVar("T")

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
        return self._joined(name, self._lines.getall(name))  # KeyError

    @overload
    def get(self, name: str) -> str | None: ...
    @overload
    def get(self, name: str, default: T) -> str | T: ...
    def get(self, name: str, default: object = None) -> object:
        """As of any mapping. Most of what is asked for is not there: without an exception that takes a fifth of the time."""
        values = self._lines.getall(name, None)
        return default if values is None else self._joined(name, values)

    def _joined(self, name: str, values: list[str]) -> str:
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
