"""What a repair has done is there after a power cut: each file's bytes before its name, each name before it says so."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from stores import slot_offset
from test_fsck import check_layout

from faults.damaged_store import SMALL_SEGMENT, Builder
from ingest import sharding, ticket
from ingest.store.check.fsck import fsck

FIRST = sharding.slot_ticket(sharding.pack_id("AABBC"), 3)  # its pack lies below directories of its own
STORED = [FIRST, FIRST + 1, sharding.slot_ticket(5, 2), sharding.slot_ticket(5, 3)]
CALLS = ("mkdir", "rename", "unlink", "fsync")


class Disk:
    """Which names changed since their directory was synced, and which files were renamed before they were."""

    def __init__(self) -> None:
        self.unsynced: set[str] = set()
        self.unwritten: list[str] = []
        self._written: set[str] = set()

    def mkdir(self, path: Path, *_: Any, **__: Any) -> None:
        self._changed(path)

    def unlink(self, path: Path, **_: Any) -> None:
        if not self._is_draft(path):
            self._changed(path)

    def rename(self, source: Path, target: Path) -> None:
        if not self._is_draft(source):  # else it is what lay there
            self._changed(source)
        elif str(source) not in self._written:
            self.unwritten.append(str(target))
        self._written.discard(str(source))
        self._changed(target)

    def fsync(self, fd: int) -> None:
        path = os.readlink(f"/proc/self/fd/{fd}")
        self._written.add(path)
        self.unsynced = {name for name in self.unsynced if str(Path(name).parent) != path}

    def _changed(self, path: Path) -> None:
        self.unsynced.add(str(path))

    @staticmethod
    def _is_draft(path: Path) -> bool:
        return Path(path).name == "staged" or str(path).endswith(".new")


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    found = Disk()

    def watch(name: str) -> None:
        real = getattr(os, name)

        def call(*arguments: Any, **named: Any) -> Any:
            result = real(*arguments, **named)
            getattr(found, name)(*arguments, **named)
            return result

        monkeypatch.setattr(os, name, call)

    for name in CALLS:
        watch(name)
    yield found


def path_of(data: Path, index: int) -> Path:
    """The pack or the file of a ticket."""
    in_packs = json.loads((data / ".ingest/store.json").read_text())["layout"] == "pack"
    name = (
        sharding.pack_path(sharding.ticket_pack(index))
        if in_packs
        else ticket.tree_path(ticket.format(index))
    )
    return data / name


def a_directory_that_is_gone(data: Path, builder: Builder) -> None:
    """With all below it: its chunks are in the log."""
    shutil.rmtree(data / "AA")


def a_chunk_that_decayed(data: Path, builder: Builder) -> None:
    path = path_of(data, STORED[2])
    with path.open("r+b") as file:
        file.seek((slot_offset(STORED[2]) if path.stat().st_size > 2000 else 0) + 100)
        file.write(b"decay")


def a_bad_batch(data: Path, builder: Builder) -> None:
    batch = builder.batches[0]
    with (data / batch.segment).open("r+b") as file:
        file.seek(next(iter(batch.frames)) + 100)
        file.write(b"decay")


def names_that_are_no_ticket_s(data: Path, builder: Builder) -> None:
    (data / "ZZ").mkdir(mode=0o700)
    (data / "ZZ/readme").write_text("hello")
    (data / "Q").symlink_to("ZZ")


def descriptions_that_are_cut(data: Path, builder: Builder) -> None:
    for name in ("store.json", "wal/log.json"):
        os.truncate(data / ".ingest" / name, 30)


def descriptions_that_are_gone(data: Path, builder: Builder) -> None:
    for name in ("store.json", "wal/log.json"):
        (data / ".ingest" / name).unlink()


def descriptions_that_are_directories(data: Path, builder: Builder) -> None:
    descriptions_that_are_gone(data, builder)
    for name in ("store.json", "wal/log.json"):
        (data / ".ingest" / name).mkdir(mode=0o700)


@pytest.mark.parametrize(
    "damage",
    [
        a_directory_that_is_gone,
        a_chunk_that_decayed,
        a_bad_batch,
        names_that_are_no_ticket_s,
        descriptions_that_are_cut,
        descriptions_that_are_gone,
        descriptions_that_are_directories,
    ],
)
def test_each_name_and_each_file_is_durable_when_a_repair_ends(
    tmp_path: Path, layout: str, damage: Callable[[Path, Builder], None], request: pytest.FixtureRequest
) -> None:
    check_layout(layout, tmp_path)
    data = tmp_path / "store"
    builder = Builder(data, layout, random.Random(1), SMALL_SEGMENT)
    builder.put(STORED)
    builder.settle()
    builder.append(b"", [])
    builder.close()
    damage(data, builder)
    disk: Disk = request.getfixturevalue("disk")  # from here on
    report = fsck(data, repair=True, segment_size=SMALL_SEGMENT)
    assert report.problems and all(problem.repaired for problem in report.problems)
    assert (disk.unsynced, disk.unwritten) == (set(), [])
    assert fsck(data, segment_size=SMALL_SEGMENT).clean
