"""A catalog that cannot be made: an error of ours, and nothing stays behind."""

import os
import shutil
from pathlib import Path

import apsw
import pytest

from ingest.catalog.catalog_changes import Catalog
from ingest.catalog.database import Database, explained, make_file
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
