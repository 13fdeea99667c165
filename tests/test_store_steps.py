"""What a store is made of is there as a whole, in its order, and is one server's: whatever step fails, whoever asks."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from stores import Small, everything_of, template

from ingest.errors import ConfigError, StoreLockedError
from ingest.store.check import export as export_module
from ingest.store.check.export import export
from ingest.store.check.fsck import fsck
from ingest.store.data_dir import DataDir
from ingest.store.store import Store, refuse_locked
from ingest.store.store_json import read_store_json, write_json, write_store_json

RECORD = {"format": 1, "layout": "pack", "store_id": "1" * 32, "log_id": "2" * 32, "keys": ["3" * 16] * 9}


@pytest.mark.parametrize("most", [1, 7, 100, 511])
def test_a_description_is_whole_however_little_a_write_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """Half of it would take the place of the whole one that was there."""
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:most]))
    write_json(tmp_path / "log.json", RECORD)
    write_store_json(tmp_path / "store.json", RECORD)
    monkeypatch.undo()
    assert json.loads((tmp_path / "log.json").read_bytes()) == RECORD
    assert {name: read_store_json(tmp_path / "store.json")[name] for name in RECORD} == RECORD


ASKING: dict[str, Callable[[Path, Path], object]] = {
    "a server": lambda data, _: Store.open(data),
    "a server, before it makes anything": lambda data, _: refuse_locked(data),
    "a check": lambda data, _: fsck(data),
    "a repair": lambda data, _: fsck(data, repair=True),
    "a copy": lambda data, new: export(data, new, "pack"),
}


@pytest.mark.parametrize("lock", ["there", "removed", "another one"])
@pytest.mark.parametrize("asks", ASKING)
def test_a_store_is_held_whatever_became_of_the_name_of_its_lock(
    tmp_path: Path, asks: str, lock: str
) -> None:
    held = Store.open(tmp_path / "data")
    path = DataDir(tmp_path / "data").lock
    if lock != "there":
        path.unlink()
    if lock == "another one":
        path.touch(0o600)
    try:
        with pytest.raises(StoreLockedError):
            ASKING[asks](tmp_path / "data", tmp_path / "new")
    finally:
        held.close()
    refuse_locked(tmp_path / "data")


class Steps:
    """What changes a directory or makes it durable, from the first sync of all on. ``fails``: the number of a step that
    does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, new: Path, fails: int) -> None:
        self.done: list[tuple[str, str]] = []
        self.new = new
        self.fails = fails
        self.began = False
        monkeypatch.setattr(
            export_module, "sync_everything", self.wrap("sync all", export_module.sync_everything)
        )
        for name in ("rename", "unlink", "fsync"):
            monkeypatch.setattr(os, name, self.wrap(name, getattr(os, name)))

    def wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., None]:
        def call(what: Path | int, *rest: Any, **named: Any) -> None:
            path = os.readlink(f"/proc/self/fd/{what}") if isinstance(what, int) else str(what)
            self.began |= name == "sync all"
            if not self.began or not Path(path).is_relative_to(self.new):
                real(what, *rest, **named)
                return
            if len(self.done) == self.fails:
                self.done.append(("failed", ""))
                raise OSError(errno.EIO, os.strerror(errno.EIO), path)
            with suppress(FileNotFoundError):  # of what somebody who died may have left
                self.began = name != "sync all"  # which may sync each file by itself
                real(what, *rest, **named)
                self.done.append((name, Path(path).name))
            self.began = True

        return call


def exported(store: Small, new: Path, fails: int) -> Steps:
    with pytest.MonkeyPatch.context() as patch:
        steps = Steps(patch, new, fails)
        if fails < 0:
            store.export(new)
        else:
            with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                store.export(new)
    return steps


def test_a_copy_is_a_store_when_all_of_it_is_durable_and_not_before(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Its mark goes last, for good: at each step that fails before, no server starts on it, and each failure is told."""
    made = template(tmp_path_factory.getbasetemp(), "clean")
    made.copy(tmp_path / "store")
    store = Small(tmp_path / "store", made)
    done = exported(store, tmp_path / "whole", -1).done
    assert done == [
        ("sync all", "whole"),
        ("fsync", "store.json.new"),
        ("rename", "store.json.new"),
        ("fsync", ".ingest"),
        ("unlink", "export.json"),
        ("fsync", ".ingest"),
    ]
    for fails in range(len(done)):
        new = tmp_path / f"cut {fails}"
        assert exported(store, new, fails).done[:-1] == [
            (name, new.name if path == "whole" else path) for name, path in done[:fails]
        ]
        if ("unlink", "export.json") not in done[:fails]:
            with everything_of(new), pytest.raises(ConfigError, match="cut off"):
                Store.open(new)
            with everything_of(new), pytest.raises(ConfigError, match="cut off"):
                store.export(new)
