"""Small stores at rest for the tests of the tools: built once a session by `faults.damaged_store`, copied for each test."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faults.damaged_store import SMALL_SEGMENT, Template, build, read_all, started
from ingest import sharding
from ingest.errors import IngestError
from ingest.limits import FRAME_SIZE
from ingest.mac import KeyRing, SubKeys
from ingest.runtime.key_file import read_keys
from ingest.status import Status
from ingest.store.check.export import Exported, export
from ingest.store.check.findings import Problem, Report
from ingest.store.check.fsck import fsck

_built: dict[tuple[str, str], Template] = {}


def template(root: Path, end: str, layout: str = "pack") -> Template:
    if (layout, end) not in _built:
        _built[layout, end] = build(root / f"{layout}-{end}", layout, end, seed=1)
    return _built[layout, end]


@dataclass
class Kept:
    """What a file is, but for its name. `attributes`: the extended ones, in hex."""

    content: bytes
    attributes: dict[str, str]
    mode: int
    owner: tuple[int, int]
    modified: int  # ns


def kept_of(path: Path) -> Kept:
    status = path.lstat()
    attributes = {
        name: os.getxattr(path, name).hex() for name in os.listxattr(path) if name.startswith("user.")
    }
    return Kept(
        path.read_bytes(), attributes, status.st_mode, (status.st_uid, status.st_gid), status.st_mtime_ns
    )


@dataclass
class Small:
    """A copy of a template. `truth`: {index: data, or None for deleted}."""

    path: Path
    template: Template

    @property
    def truth(self) -> dict[int, bytes | None]:
        return self.template.truth

    @property
    def keys(self) -> SubKeys:
        return KeyRing(read_keys(self.template.directory / ".ingest" / "key")).signing

    def fsck(self, repair: bool = False, **options: Any) -> Report:
        """Whatever a repair has copied is what was there before it."""
        before = self._files() if repair else {}
        report = fsck(self.path, repair=repair, segment_size=self.template.segment_size, **options)
        for copy in {problem.copy for problem in report.problems if problem.repaired and problem.copy}:
            self._check_copy(self.path / copy, before)
        return report

    def _files(self) -> dict[str, Kept]:
        found = (path for path in self.path.rglob("*") if path.is_file() and not path.is_symlink())
        return {str(path.relative_to(self.path)): kept_of(path) for path in found}

    def _check_copy(self, copy: Path, before: dict[str, Kept]) -> None:
        about = json.loads(copy.with_suffix(".json").read_text())
        was = before.get(about["path"])
        if was is None or not copy.is_file():
            return  # a directory or a link, or the log, which may lie elsewhere
        kept = kept_of(copy)
        if about.get("moved"):
            assert kept == was, about
            return
        for piece in about["pieces"]:
            at, offset, size = piece["at"], piece["offset"], piece["size"]
            assert kept.content[at : at + size] == was.content[offset : offset + size], about
        assert about.get("attributes", {}) == was.attributes, about

    def export(self, target: Path, layout: str = "pack", **options: Any) -> Exported:
        return export(self.path, target, layout, segment_size=self.template.segment_size, **options)

    def kinds(self) -> list[str]:
        return [problem.kind for problem in self.fsck().problems]

    def only(self, repair: bool = False) -> Problem:
        (problem,) = self.fsck(repair).problems
        return problem

    def patch(self, path: Path | str, offset: int, data: bytes) -> None:
        with (self.path / path).open("r+b") as file:
            file.seek(offset)
            file.write(data)

    def read(self) -> dict[int, tuple[Status, bytes]]:
        """What a server that starts on it shows."""
        return read_store(self.path, self.keys)

    def expected(self, lost: set[int] = frozenset()) -> dict[int, tuple[Status, bytes]]:  # type: ignore[assignment]
        """What it should show; `lost` tickets are deleted."""
        found = {}
        for index, data in self.truth.items():
            gone = data is None or index in lost
            found[index] = (Status.DELETED, b"") if gone else (Status.SAVED, data)
        return found

    def shows_all(self, lost: set[int] = frozenset()) -> bool:  # type: ignore[assignment]
        read = self.read()
        return {index: read[index] for index in self.truth} == self.expected(lost)

    def slots(self, alive: bool = True, settled: bool = True) -> list[int]:
        """Tickets of the pack `4/obj` that are stored or deleted; settled: those that the log is not still to bring."""
        pending = {
            index
            for batch in self.template.batches
            if batch.number > self.template.settled
            for indices in batch.frames.values()
            for index in indices
        }
        return [
            index
            for index, data in sorted(self.truth.items())
            if sharding.ticket_pack(index) == 5
            and (data is not None) == alive
            and not (settled and index in pending)
        ]


def read_store(path: Path, keys: SubKeys) -> dict[int, tuple[Status, bytes]]:
    with started(path, SMALL_SEGMENT) as reader:
        return read_all(reader, keys)


def starts(path: Path) -> bool:
    try:
        with started(path, SMALL_SEGMENT):
            return True
    except IngestError:
        return False


@contextmanager
def everything_of(path: Path) -> Iterator[None]:
    """Asserts that nothing below `path` changes."""

    def look() -> dict[str, tuple[int, int, bytes]]:
        found = {}
        for child in sorted(path.rglob("*")):
            status = child.lstat()
            content = child.read_bytes() if child.is_file() and not child.is_symlink() else b""
            found[str(child)] = (status.st_mode, status.st_ino, content)
        return found

    before = look()
    yield
    assert look() == before


def slot_offset(index: int) -> int:
    return sharding.slot_offset(sharding.ticket_slot(index))


assert FRAME_SIZE == 1474
