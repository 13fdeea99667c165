"""A catalog that cannot be made: an error of ours, and nothing stays behind."""

import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import apsw
import pytest
from test_binding import of_format_1

from ingest.catalog.catalog_changes import Catalog
from ingest.catalog.catalog_reader import CatalogReader
from ingest.catalog.database import Database, explained, make_file, migrate
from ingest.errors import CatalogError, ConfigError, DiskError
from ingest.objects.binding import ADVICE


@pytest.mark.parametrize(
    ("name", "error"),
    [("n" * 200, DiskError), (os.fsdecode(b"\xff"), ConfigError)],
    ids=["long", "not-utf-8"],
)
def test_a_catalog_that_cannot_be_made_leaves_nothing(tmp_path, name, error):
    data = tmp_path
    for _ in range(1 if name[0] != "n" else 15):
        data = data / name
    data.mkdir(parents=True)
    with pytest.raises(error):
        Database(data / "catalog.db")
    assert list(data.iterdir()) == []


def test_a_catalog_in_no_directory_is_an_error_of_the_disk(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match="Not a directory"):
        Database(tmp_path / "file" / "catalog.db")


@pytest.mark.parametrize("sides", [["-wal"], ["-wal", "-shm"]])
def test_a_log_without_its_catalog_is_not_taken_for_that_of_a_new_one(tmp_path, sides):
    """As a death during a rebuild leaves it: half of the old catalog would be in the new one."""
    path = tmp_path / "data" / "catalog.db"
    path.parent.mkdir()
    with Catalog(tmp_path / "catalog.db") as old:
        with old.change():
            old.enter("test")
        for side in sides:
            shutil.copy(f"{old._db.path}{side}", f"{path}{side}")
    before = {one: one.read_bytes() for one in path.parent.iterdir()}
    with pytest.raises(CatalogError, match="catalog rebuild"):
        Database(path)
    assert {one: one.read_bytes() for one in path.parent.iterdir()} == before
    Path(f"{path}-wal").write_bytes(b"")  # nothing is in it
    Catalog(path).close()


@pytest.mark.parametrize(
    "text",
    [ADVICE, str(explained(apsw.NotADBError("x"), Path("catalog.db")))],
    ids=["another-store", "no-catalog"],
)
def test_advice_about_a_catalog_that_is_there_names_what_replaces_it(text):
    assert "rebuild --replace`" in text


@pytest.mark.parametrize("first", [True, False], ids=["alone", "another process was faster"])
def test_a_catalog_has_its_name_when_it_is_whole_and_keeps_it(tmp_path, monkeypatch, first):
    """Whatever a power cut leaves: a name has all of its catalog, and what is saved in it does not go with the name."""
    path = tmp_path / "catalog.db"
    link, fsync = os.link, os.fsync
    steps: list[tuple[str, int]] = []  # what was done, and to which inode

    def noted_link(source: Path, target: Path) -> None:
        steps.append(("link", os.stat(source).st_ino))
        if not first:
            made = tmp_path / "of another process"
            make_file(made)
            link(made, target)
            steps.clear()
        link(source, target)

    def noted_fsync(fd: int) -> None:
        fsync(fd)
        steps.append(("sync", os.fstat(fd).st_ino))

    monkeypatch.setattr(os, "link", noted_link)
    monkeypatch.setattr(os, "fsync", noted_fsync)
    Database(path).close()
    file, directory = path.stat().st_ino, tmp_path.stat().st_ino
    expected = [("sync", file), ("link", file), ("sync", directory)] if first else [("sync", directory)]
    assert steps == expected


@pytest.mark.parametrize("store", [False, True], ids=["", "in a store that has chunks by then"])
def test_a_catalog_that_another_process_makes_meanwhile_is_taken(tmp_path, monkeypatch, store):
    """Whichever look at the file or its log it comes before: it is in use then, and has a log."""
    looks, stat = [0], Path.stat

    def attempt(data: Path, before: int) -> bool:
        """Whether there were so many looks at all."""
        path = data / ".ingest" / "catalog.db"
        path.parent.mkdir(parents=True)
        if store:
            record = f'{{"format": 1, "layout": "pack", "store_id": "{32 * "0"}", "log_id": "{32 * "0"}", "keys": []}}'
            (path.parent / "store.json").write_text(record)
        others: list[Catalog] = []

        def looked(self: Path, **options: bool) -> os.stat_result:
            if self in (path, path.with_name("catalog.db-wal"), data / "00/00/00/obj"):
                looks[0] += 1
                if looks[0] == before:
                    monkeypatch.setattr(Path, "stat", stat)
                    others.append(Catalog(path))
                    with others[0].change():
                        others[0].enter("the other")
                    if store:
                        (data / "00/00/00").mkdir(parents=True)
                        (data / "00/00/00/obj").touch()
                    monkeypatch.setattr(Path, "stat", looked)
            return stat(self, **options)

        looks[0] = 0
        monkeypatch.setattr(Path, "stat", looked)
        with CatalogReader(path) as reader:
            monkeypatch.setattr(Path, "stat", stat)
            for other in others:
                assert reader.identity() == other.identity()
                other.close()
        return bool(others)

    made = [attempt(tmp_path / str(before), before) for before in range(1, 9)]
    assert sum(made) >= 2 and made == sorted(made, reverse=True)


def made_new(path: Path) -> None:
    Catalog(path).close()


def migrated(path: Path) -> None:
    make_file(path)
    of_format_1(path)
    migrate(path)


@pytest.mark.parametrize("make", [made_new, make_file, migrated])
def test_each_catalog_has_an_id_that_no_other_one_has(tmp_path, monkeypatch, make: Callable[[Path], None]):
    """Else two take one store for theirs, and delete each other's objects: also two that were made at one place, in one
    moment, by processes of one number, and from copies of one file."""
    monkeypatch.setattr(time, "time", lambda: 1e9)
    monkeypatch.setattr(time, "time_ns", lambda: 10**18)
    monkeypatch.setattr(os, "getpid", lambda: 4711)
    path, ids = tmp_path / "catalog.db", []
    for _ in range(8):
        random.seed(1)
        make(path)
        with CatalogReader(path) as reader:
            ids.append(reader.identity().id)
        path.unlink()
    assert len(set(ids)) == len(ids) and {len(one) for one in ids} == {16}
    assert all(len({one[at] for one in ids}) > 1 for at in range(16)), "a byte that all of them have"


def no_catalog(path: Path) -> None:
    path.write_bytes(b"no database at all " * 100)


def of_another_program(path: Path) -> None:
    apsw.Connection(str(path)).execute("CREATE TABLE t(x)")


def of_before(path: Path) -> None:
    make_file(path)
    of_format_1(path)


def of_later(path: Path) -> None:
    make_file(path)
    apsw.Connection(str(path)).pragma("user_version", 99)


@pytest.mark.parametrize("make", [no_catalog, of_another_program, of_before, of_later])
def test_what_is_refused_is_not_kept_open(tmp_path, make: Callable[[Path], None]):
    """A gateway's start looks again and again; and it is to be repaired or replaced."""
    make(tmp_path / "catalog.db")
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(CatalogError) as kept:
        Database(tmp_path / "catalog.db")
    assert sorted(os.listdir("/proc/self/fd")) == before, kept.value
