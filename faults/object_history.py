"""What clients of a gateway were told of objects: an append-only file, and what each name may therefore have.

The history file has one event a line, `EVENT NAME CONTENT`. CONTENT is `SEED:SIZE` (`content_of` gives its bytes), or `-`
for no object:

    try       a PUT with this content, or a DELETE (`-`), is about to be sent
    done      it was answered that this is so now
    refused   it was answered that nothing was changed
    seen      a GET was answered with this

A try without an answer leaves both open, what was and what was tried, until a GET shows one of them. Then it stays that.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from pathlib import Path

BLOCK = (
    1 << 16
)  # bytes: a content repeats so many, with another number before each, so that it costs little to make


@dataclass(frozen=True)
class Content:
    """What one PUT stores. No two PUTs have the same seed."""

    seed: int
    size: int

    def __str__(self) -> str:
        return f"{self.seed}:{self.size}"


def content_of(content: Content) -> bytes:
    """Its bytes. Blocks of two contents differ everywhere, those of one content in the number before each."""
    block = random.Random(content.seed).randbytes(min(BLOCK, content.size))
    count = -(-content.size // (BLOCK + 8))
    return b"".join(i.to_bytes(8, "big") + block for i in range(count))[: content.size]


def parse(text: str) -> Content | None:
    if text == "-":
        return None
    seed, _, size = text.partition(":")
    return Content(int(seed), int(size))


class Promises:
    """What each name may have, by the events so far. A name without events has nothing."""

    def __init__(self) -> None:
        self._possible: dict[str, list[Content | None]] = {}  # the newest try last
        self._before: dict[str, list[Content | None]] = {}  # the last try

    def possible(self, name: str) -> list[Content | None]:
        return self._possible.get(name, [None])

    def names(self) -> list[str]:
        return sorted(self._possible)

    def event(self, event: str, name: str, content: Content | None) -> None:
        possible = self.possible(name)
        if event == "try":
            self._before[name] = possible
            self._possible[name] = [*(one for one in possible if one != content), content]
        elif event == "refused":
            self._possible[name] = self._before[name]
        else:
            self._possible[name] = [content]


class ObjectHistory:
    """The history of one client: the file and what it comes to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.promises = Promises()
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def append(self, event: str, name: str, content: Content | None) -> None:
        os.write(self._fd, f"{event} {name} {content or '-'}\n".encode())
        self.promises.event(event, name, content)

    def close(self) -> None:
        os.close(self._fd)


def read(path: Path) -> Promises:
    """What a history file comes to, as far as its lines are whole."""
    promises = Promises()
    text = path.read_text()
    for line in text[: text.rfind("\n") + 1].splitlines():
        event, name, content = line.split(" ")
        promises.event(event, name, parse(content))
    return promises
