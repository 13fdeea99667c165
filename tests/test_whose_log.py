"""Whoever names a log directory (`--wal-dir`) that is another store's is refused, and changes nothing: else one store goes
on with the log of the other, and what was acknowledged from its own is gone."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from stores import everything_of

from faults.damaged_store import SMALL_SEGMENT, Builder
from ingest import sharding
from ingest.errors import ConfigError, StoreFormatError
from ingest.objects.rebuild import rebuild
from ingest.store.check.export import export
from ingest.store.check.fsck import fsck
from ingest.store.store import Store

OWN, OTHER = "own", "other"


def make(directory: Path, wal: Path, seed: int) -> None:
    """A store whose packs lack the end of its log, which lies in ``wal``. Both have one key, as the nodes of one site do."""
    builder = Builder(directory, "pack", random.Random(1), SMALL_SEGMENT)
    builder.random = random.Random(seed)
    builder.put([sharding.slot_ticket(5, slot) for slot in (1, 2)])
    builder.settle()
    builder.put([sharding.slot_ticket(5, 3)], apply=False)
    builder.close()
    (directory / ".ingest/wal").rename(wal)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stores; their logs say that they were made for `…/own` and `…/other`."""
    root = tmp_path_factory.mktemp("made")
    for seed, name in enumerate((OWN, OTHER)):
        make(root / name, root / f"{name}-wal", seed)
    return root


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    for name in (OWN, OTHER):
        shutil.copytree(made / name, tmp_path / name)
        wal = shutil.copytree(made / f"{name}-wal", tmp_path / f"{name}-wal")
        record = json.loads((wal / "log.json").read_text())
        (wal / "log.json").write_text(json.dumps(record | {"made_for": str(tmp_path / name)}))
    return tmp_path


def look(data: Path, wal: Path) -> object:
    return fsck(data, wal_dir=wal, segment_size=SMALL_SEGMENT)


def repair(data: Path, wal: Path) -> object:
    return fsck(data, wal_dir=wal, repair=True, segment_size=SMALL_SEGMENT)


def copy(data: Path, wal: Path) -> object:
    return export(data, data.with_name("new"), "pack", wal_dir=wal, segment_size=SMALL_SEGMENT)


def find_objects(data: Path, wal: Path) -> object:
    return rebuild(data, wal_dir=wal, segment_size=SMALL_SEGMENT)


def read(data: Path, wal: Path) -> object:
    return Store.read(data, wal_dir=wal)


def start(data: Path, wal: Path) -> object:
    return Store.open(data, wal_dir=wal)


def whole(_: Path) -> None:
    pass


def decayed(path: Path) -> None:
    """A digit of the log's id: the check shows it, and then no member is more than a hint."""
    text = path.read_text()
    at = text.index('"log_id": "') + len('"log_id": "')
    path.write_text(text[:at] + ("0" if text[at] != "0" else "1") + text[at + 1 :])


def of_before(path: Path) -> None:
    """One without a check, as an earlier version wrote it."""
    record = json.loads(path.read_text())
    del record["check"]
    path.write_text(json.dumps(record))


def lost(path: Path) -> None:
    path.unlink()


def used(_: Path) -> None:
    pass


def not_used_yet(wal: Path) -> None:
    for path in wal.glob("*.log"):
        path.unlink()


def undescribed(wal: Path) -> None:
    (wal / "log.json").unlink()


def misdescribed(wal: Path) -> None:
    (wal / "log.json").write_text("{}")


def misdescribed_and_not_used_yet(wal: Path) -> None:
    misdescribed(wal)
    not_used_yet(wal)


@pytest.mark.parametrize("command", [look, repair, copy, find_objects, read, start])
@pytest.mark.parametrize(
    "log", [used, not_used_yet, undescribed, misdescribed, misdescribed_and_not_used_yet]
)
@pytest.mark.parametrize("description", [whole, of_before, decayed])
def test_the_log_of_another_store_is_refused(
    place: Path,
    description: Callable[[Path], None],
    log: Callable[[Path], None],
    command: Callable[[Path, Path], object],
) -> None:
    description(place / OWN / ".ingest/store.json")
    log(place / "other-wal")
    with everything_of(place), pytest.raises((ConfigError, StoreFormatError)):
        command(place / OWN, place / "other-wal")
    assert not (place / "new").exists()


def another_digit(wal: Path) -> None:
    """And nothing else that says what its id is."""
    not_used_yet(wal)
    record = json.loads((wal / "log.json").read_text())
    other = "0" if record["log_id"][0] != "0" else "1"
    (wal / "log.json").write_text(json.dumps(record | {"log_id": other + record["log_id"][1:]}))


@pytest.mark.parametrize("command", [look, repair, copy, find_objects])
@pytest.mark.parametrize("log", [used, not_used_yet, another_digit])
def test_also_by_a_store_that_has_lost_its_description(
    place: Path, log: Callable[[Path], None], command: Callable[[Path, Path], object]
) -> None:
    """It can't say what its log was; the log says whose it is, and that one is there."""
    lost(place / OWN / ".ingest/store.json")
    log(place / "other-wal")
    with everything_of(place), pytest.raises(ConfigError):
        command(place / OWN, place / "other-wal")


@pytest.mark.parametrize("theirs", [whole, lost])
def test_of_two_copies_the_operator_says_whose_log_it_is(place: Path, theirs: Callable[[Path], None]) -> None:
    """A store and its log were copied, and the copy has lost its description, perhaps as the original had."""
    data, wal = (shutil.copytree(place / name, place / f"copied-{name}") for name in (OWN, f"{OWN}-wal"))
    lost(data / ".ingest/store.json")
    theirs(place / OWN / ".ingest/store.json")
    with everything_of(place), pytest.raises(ConfigError, match="as made_for into"):
        repair(data, wal)
    record = json.loads((wal / "log.json").read_text())
    (wal / "log.json").write_text(json.dumps(record | {"made_for": str(data.resolve())}))
    repair(data, wal)
    assert fsck(data, wal_dir=wal, segment_size=SMALL_SEGMENT).clean


def test_a_log_is_not_that_of_whoever_stands_where_its_store_was(place: Path) -> None:
    """As on a host whose containers all call their stores /data."""
    lost(place / OWN / ".ingest/store.json")
    (place / OWN).rename(place / "moved")
    (place / OTHER).rename(place / OWN)
    repair(place / "moved", place / "own-wal")
    assert fsck(place / "moved", wal_dir=place / "own-wal", segment_size=SMALL_SEGMENT).clean


@pytest.mark.parametrize("description", [whole, of_before, decayed, lost])
@pytest.mark.parametrize("log", [used, not_used_yet, undescribed, misdescribed])
def test_its_own_log_is_taken(
    place: Path, description: Callable[[Path], None], log: Callable[[Path], None]
) -> None:
    """Also by a store that has moved since its log was made, if one of the two still says that they belong together."""
    before = (place / OWN / ".ingest/store.json").read_bytes()
    description(place / OWN / ".ingest/store.json")
    log(place / "own-wal")
    known = description in (whole, of_before)
    if description is decayed and log in (undescribed, misdescribed):
        pytest.skip("nothing says any more whose log it is")
    if known and log in (undescribed, misdescribed):
        (place / OWN).rename(place / "moved")
    data = next(path for path in (place / "moved", place / OWN) if path.exists())
    repair(data, place / "own-wal")
    assert fsck(data, wal_dir=place / "own-wal", segment_size=SMALL_SEGMENT).clean
    after = json.loads((data / ".ingest/store.json").read_text())
    either = {"check": "", "log_id": ""} if (description, log) == (decayed, not_used_yet) else {"check": ""}
    assert after | either == json.loads(before) | either
    Store.open(data, wal_dir=place / "own-wal").close()
