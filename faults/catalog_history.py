"""What the objects of one catalog may be: an append-only file of what its clients were told, and what follows from it.

One event a line, in the file before it counts. `now` is what each name may be: versions, `ABSENT`, or `BROKEN` (there, but
its chunks may be gone).

    put NAME VERSION SIZE    was sent: from now on it may be there
    ok NAME VERSION          was acknowledged: the name is that and nothing else
    no NAME VERSION          was refused with a word that says that nothing was stored
    del NAME, gone NAME      a delete was sent; was acknowledged
    seen NAME VERSION        was read, when nothing was under way: it stays so
    quiet                    the processes of the gateway are gone, and with them all that was under way
    mark, marked             a copy of the catalog begins, and ends: it has what each name was at some time between
    stale                    that copy is the catalog now, the store is as it was
    rebuilt                  the catalog was made from the store
    save, restored           the store and its catalog were copied at rest; the copies are in their places again

Of a name that changed behind a copy, its version in the copy may be collected by now. A rebuild finds the newest version
that is whole: also one that was never acknowledged, or was deleted and not collected yet (`docs/objects.md`).
"""

from __future__ import annotations

import copy
import os
import threading
from dataclasses import dataclass, field
from pathlib import Path

from blake3 import blake3

ABSENT, BROKEN = 0, -1  # versions count from 1
May = dict[str, set[int]]


def bytes_of(catalog: str, name: str, version: int, size: int) -> bytes:
    """What a version of a name holds: no other one holds the same, whatever catalog it is in."""
    return blake3(f"{catalog} {name} {version}".encode()).digest(length=size)


@dataclass
class Known:
    """What the events so far say."""

    now: May = field(default_factory=dict)
    sizes: dict[tuple[str, int], int] = field(default_factory=dict)  # of all versions that were ever sent
    open: set[str] = field(default_factory=set)  # names with something sent that was not answered
    marked: May | None = None  # what a name may be in the copy
    touched: set[str] = field(default_factory=set)  # names with something sent since the copy began
    marking: bool = False
    saved: May = field(default_factory=dict)

    def may(self, name: str) -> set[int]:
        return self.now.setdefault(name, {ABSENT})

    def apply(self, line: str) -> None:
        event, *words = line.split()
        name, version = words[0] if words else "", int(words[1]) if len(words) > 1 else ABSENT
        match event:
            case "put":
                self.sizes[name, version] = int(words[2])
                self._sent(name, version)
            case "del":
                self._sent(name, ABSENT)
            case "ok" | "gone":
                self.now[name] = {version}
                self.open.discard(name)
            case "no":
                self.may(name).discard(version)
                self.open.discard(name)
            case "seen":
                self.now[name] = {version}
            case "quiet":
                self.open.clear()
            case "mark":
                self.marked, self.touched, self.marking = copy.deepcopy(self.now), set(self.open), True
            case "marked":
                self.marking = False
            case "stale":
                self._put_back()
            case "rebuilt":
                self._rebuilt()
            case "save":
                self.saved = copy.deepcopy(self.now)
            case "restored":
                self.now = {name: {ABSENT} for name in self.now} | copy.deepcopy(self.saved)
                self.marked = None
            case _:
                raise ValueError(f"no event: {line!r}")

    def _sent(self, name: str, becomes: int) -> None:
        self.may(name).add(becomes)
        self.open.add(name)
        self.touched.add(name)
        if self.marking and self.marked is not None:
            self.marked.setdefault(name, {ABSENT}).add(becomes)

    def _put_back(self) -> None:
        assert self.marked is not None
        for name in self.now:
            self.now[name] = set(self.marked.get(name, {ABSENT}))
            if name in self.touched and self.now[name] != {ABSENT}:
                self.now[name].add(BROKEN)
        self.marked = None

    def _rebuilt(self) -> None:
        for name, may in self.now.items():
            oldest = min(may)
            surely = len(may) == 1 and oldest > ABSENT
            sent = {version for known, version in self.sizes if known == name}
            self.now[name] = may - {BROKEN} | {one for one in sent if not surely or one > oldest}
            if not surely:
                self.now[name].add(ABSENT)
        self.marked = None

    def identify(self, catalog: str, name: str, found: bytes) -> int | None:
        """Which version of the name these bytes are."""
        for (known, version), size in self.sizes.items():
            if known == name and size == len(found) and found == bytes_of(catalog, name, version, size):
                return version
        return None


class CatalogHistory:
    """The file of one catalog, whose name in the test is `catalog`, and what it says. Events come from any thread."""

    def __init__(self, path: Path, catalog: str) -> None:
        self.path = path
        self.catalog = catalog
        self.known = Known()
        self.acks = 0
        self._versions = 0
        self._lock = threading.Lock()
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def append(self, line: str) -> None:
        with self._lock:
            os.write(self._fd, f"{line}\n".encode())
            self.known.apply(line)
            self.acks += line.startswith(("ok ", "gone "))

    def put(self, name: str, size: int) -> tuple[int, bytes]:
        """A new version that is about to be sent: its number and its bytes."""
        self._versions += 1
        self.append(f"put {name} {self._versions} {size}")
        return self._versions, bytes_of(self.catalog, name, self._versions, size)

    def close(self) -> None:
        os.close(self._fd)


def read(path: Path) -> Known:
    """What a file says, read from its start as far as its lines are whole."""
    known = Known()
    content = path.read_text()
    for line in content[: content.rfind("\n") + 1].splitlines():
        known.apply(line)
    return known
