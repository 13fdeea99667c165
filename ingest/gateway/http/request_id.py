"""Ids of requests, by which an answer, a log line and what a proxy wrote find each other."""

from __future__ import annotations

import itertools
import re
import secrets

_GIVEN = re.compile(r"[A-Za-z0-9._:-]{1,64}")


class RequestIds:
    """Of one process: a random part of its own, and a number."""

    def __init__(self) -> None:
        self._process = secrets.token_hex(4)
        self._numbers = itertools.count(1)

    def next(self) -> str:
        return f"{self._process}-{next(self._numbers):08x}"

    def of(self, given: str | None) -> str:
        """The id that a proxy gave, if it is one; else a new one."""
        return given if given is not None and _GIVEN.fullmatch(given) else self.next()
