"""Paths that lead elsewhere than to what was opened there, and back."""

import os
import shutil
from types import SimpleNamespace

import pytest

from ingest.errors import DataDirLostError
from ingest.store.possession import Possession, identity_of
from ingest.store.store import Store


@pytest.fixture
def store(tmp_path):
    opened = Store.open(tmp_path / "data", wal_dir=tmp_path / "wal")
    yield opened
    opened.close()


def replace(path):
    """As whoever restores a copy does it: same bytes, another inode."""
    copy = path.with_name("copy")
    shutil.copytree(path, copy) if path.is_dir() else shutil.copy(path, copy)
    path.rename(path.with_name("moved"))
    copy.rename(path)


def remove(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


PLACES = ["data", "data/.ingest", "data/.ingest/lock", "wal"]


@pytest.mark.parametrize("place", PLACES)
def test_what_is_gone(store, tmp_path, place):
    possession = store.possession()
    assert possession.look() == ""
    possession.check()
    remove(tmp_path / place)
    assert possession.look() == f"{tmp_path / place} is gone"
    with pytest.raises(DataDirLostError, match="is gone: nothing is saved here any more"):
        possession.check()


@pytest.mark.parametrize("place", PLACES)
def test_what_is_another_one_and_comes_back(store, tmp_path, place):
    possession = store.possession()
    replace(tmp_path / place)
    assert "is not the one that was opened here" in possession.look()
    moved = (tmp_path / place).with_name("moved")
    remove(tmp_path / place)
    moved.rename(tmp_path / place)
    assert possession.look() == ""


def test_another_store_in_its_place(store, tmp_path):
    (tmp_path / "data").rename(tmp_path / "moved")
    other = Store.open(tmp_path / "data")
    assert "is not the one" in store.possession().look()
    assert other.possession().look() == ""
    other.close()


def test_a_link_to_the_same_is_the_same(store, tmp_path):
    (tmp_path / "wal").rename(tmp_path / "elsewhere")
    (tmp_path / "wal").symlink_to(tmp_path / "elsewhere")
    assert store.possession().look() == ""


def test_what_cannot_be_looked_at_is_not_taken_for_ours(store, tmp_path):
    (tmp_path / "wal").rename(tmp_path / "elsewhere")
    (tmp_path / "wal").symlink_to("wal")
    assert "can't be looked at: Too many levels of symbolic links" in store.possession().look()


def test_a_file_that_is_not_opened_a_second_time(tmp_path):
    path, lock = tmp_path / "catalog", tmp_path / "lock"
    path.touch()
    lock.touch()
    possession = Possession({}, [lock])
    possession.add(path, identity_of(os.stat(path)))
    assert possession.look() == ""
    path.rename(tmp_path / "kept")
    path.touch()
    assert possession.look() == f"{path} is not the one that was opened here"
    (tmp_path / "kept").rename(path)
    lock.unlink()
    assert possession.look() == f"{lock} is gone"
    lock.touch()  # of a server that was started anew
    assert possession.look() == ""


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("field", ["st_dev", "st_ino"])
def test_the_same_number_on_another_file_system_is_another_one(store, tmp_path, monkeypatch, place, field):
    """A mount hides a directory by one that was made the same way, and has the same inode."""
    possession = store.possession()
    assert possession.look() == ""
    real = os.stat

    def stat(path, **named):
        found = real(path, **named)
        if os.fspath(path) != str(tmp_path / place):
            return found
        names = {name: getattr(found, name) for name in ("st_dev", "st_ino")}
        return SimpleNamespace(**names | {field: names[field] + 1})

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", stat)
        assert possession.look() == f"{tmp_path / place} is not the one that was opened here"
    assert possession.look() == ""
