"""A repair that dies at any of its steps: of the bytes that it was to replace none is lost, and another one ends it."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from faults.damaged_store import SMALL_SEGMENT, Builder
from ingest import sharding, ticket
from ingest.errors import DiskError
from ingest.store.check import log_repair
from ingest.store.check.export import export
from ingest.store.check.fsck import fsck

FIRST = sharding.slot_ticket(5, 7)
OTHER = sharding.slot_ticket(6, 7)  # in another pack
MARK = b"what was here before it was mended"
STEPS = ("open", "mkdir", "rename", "replace", "unlink", "ftruncate", "chmod")


class CutOffError(BaseException):
    """The process ends here."""


@contextmanager
def cut_off(monkeypatch: pytest.MonkeyPatch, at: int) -> Iterator[list[str]]:
    """Ends it before the step number ``at``."""
    made: list[str] = []

    def step(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: Any, **named: Any) -> object:
            if name == "open" and not arguments[1] & os.O_CREAT:
                return real(*arguments, **named)
            if len(made) == at:
                raise CutOffError
            made.append(name)
            return real(*arguments, **named)

        return call

    with monkeypatch.context() as patch:
        for name in STEPS:
            patch.setattr(os, name, step(name, getattr(os, name)))
        yield made


def patched(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(MARK)


def in_a_slot(builder: Builder) -> None:
    pack = builder.directory / sharding.pack_path(5)
    if pack.exists():
        patched(pack, sharding.slot_offset(7) + 200)
    else:
        patched(builder.directory / ticket.tree_path(ticket.format(FIRST)), 200)


def in_a_header(builder: Builder) -> None:
    patched(builder.directory / sharding.pack_path(5), 100)


def behind_a_pack(builder: Builder) -> None:
    path = builder.directory / sharding.pack_path(5)
    with path.open("r+b") as file:
        file.truncate(sharding.slot_offset(sharding.pack_slots(5)))
    patched(path, path.stat().st_size)


def in_the_log(builder: Builder) -> None:
    (place,) = builder.batches[1].frames
    patched(builder.directory / builder.batches[1].segment, place + 100)


def in_store_json(builder: Builder) -> None:
    patched(builder.directory / ".ingest/store.json", 10)


def in_log_json(builder: Builder) -> None:
    patched(builder.directory / ".ingest/wal/log.json", 2)


def beside_the_packs(builder: Builder) -> None:
    (builder.directory / "AA").mkdir(mode=0o700)
    (builder.directory / "AA/note").write_bytes(MARK)


DAMAGES = (
    in_a_slot,
    in_a_header,
    behind_a_pack,
    in_the_log,
    in_store_json,
    in_log_json,
    beside_the_packs,
)


def kept_somewhere(directory: Path) -> bool:
    return any(MARK in path.read_bytes() for path in directory.rglob("*") if path.is_file())


def damaged(directory: Path, layout: str, damage: Callable[[Builder], None]) -> Builder:
    builder = Builder(directory, layout, random.Random(1), SMALL_SEGMENT)
    for index in (FIRST, FIRST + 1, OTHER):
        builder.put([index], apply=damage is not in_the_log)
    builder.settle() if damage is not in_the_log else None
    builder.append(b"", [])
    builder.close()
    damage(builder)
    return builder


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_what_is_mended_is_kept_wherever_the_repair_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, damage: Callable[[Builder], None]
) -> None:
    if layout == "tree" and damage in (in_a_header, behind_a_pack):
        pytest.skip("there are no packs")
    builder = damaged(tmp_path / "made", layout, damage)
    for at in range(80):
        copy = tmp_path / "store"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(builder.directory, copy)
        try:
            with cut_off(monkeypatch, at):
                fsck(copy, repair=True, segment_size=SMALL_SEGMENT)
            ended = True
        except CutOffError:
            ended = False
        assert kept_somewhere(copy), f"gone before step {at}"
        if ended:
            break
    assert ended and at > 0
    assert fsck(copy, segment_size=SMALL_SEGMENT).clean


@pytest.mark.parametrize("bad", [0, 1, 2])
@pytest.mark.parametrize("settled", [False, True], ids=["pending", "settled"])
def test_a_log_stays_until_the_packs_are_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settled: bool, bad: int
) -> None:
    """Whichever batches are damaged, and whether any other is still to be brought in."""
    builder = Builder(tmp_path / "store", "pack", random.Random(1), SMALL_SEGMENT)
    for index in (FIRST, FIRST + 1, OTHER):
        builder.put([index], apply=settled)
    if settled:
        builder.settle()
    builder.append(b"", [])
    builder.close()
    segment = builder.directory / builder.batches[bad].segment
    (place,) = builder.batches[bad].frames
    patched(segment, place + 100)

    def refuse(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(log_repair, "sync_everything", refuse)
        try:
            fsck(builder.directory, repair=True, segment_size=SMALL_SEGMENT)
        except DiskError:
            pass
        else:
            assert fsck(builder.directory, segment_size=SMALL_SEGMENT).clean, "it was no damage"
    assert segment.exists()


def test_a_delete_in_the_log_is_seen_in_each_of_its_packs(tmp_path: Path, layout: str) -> None:
    """By each program that brings a store together from packs and log."""
    builder = Builder(tmp_path / "store", layout, random.Random(1), SMALL_SEGMENT)
    tickets = [sharding.slot_ticket(pack, 7) for pack in (5, 6, 7)]
    for index in tickets:
        builder.put([index])
    builder.settle()
    count = tickets[-1] - tickets[0] + 1
    builder.delete(tickets[0], count, apply=False)
    builder.append(b"", [])
    builder.close()
    assert fsck(builder.directory, segment_size=SMALL_SEGMENT).clean
    done = export(builder.directory, tmp_path / "new", "pack", segment_size=SMALL_SEGMENT)
    assert (done.chunks, done.deleted, done.problems) == (0, count, [])
