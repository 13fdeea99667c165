"""Paths that lead elsewhere than to what was opened there, and back."""

import os
import shutil

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


@pytest.mark.parametrize("where", ["opened", "named", "changing"])
@pytest.mark.parametrize("differs", ["st_dev", "st_ino"])
def test_device_and_inode_both_count(tmp_path, monkeypatch, where, differs):
    """A mount hides the directory with one that was made the same way, and has its inode's number."""
    path = tmp_path / "directory"
    path.mkdir()
    fd = os.open(path, os.O_RDONLY)
    was = fd if where != "named" else identity_of(os.stat(path))
    possession = Possession({} if where == "changing" else {path: was})
    possession.add_changing(lambda: {path: was} if where == "changing" else {})
    assert possession.look() == ""
    real = os.stat

    def stat(name, **named):
        found = real(name, **named)
        values = list(found[:10])
        values[{"st_ino": 1, "st_dev": 2}[differs]] += 1
        return os.stat_result(values)

    monkeypatch.setattr(os, "stat", stat)
    assert possession.look() == f"{path} is not the one that was opened here"
    monkeypatch.undo()
    assert possession.look() == ""
    os.close(fd)


def test_a_look_is_not_older_than_its_interval(tmp_path, monkeypatch):
    """A loss is seen, and its end, at the first question after that; until then the disk is not asked again."""
    now, path = [1000.0], tmp_path / "file"
    path.touch()
    monkeypatch.setattr("ingest.store.possession.time.monotonic", lambda: now[0])
    monkeypatch.setattr("ingest.store.possession.POSSESSION_INTERVAL_S", 8.0)
    possession = Possession({}, [path])
    assert possession.look_again() == ""
    path.unlink()
    now[0] += 7
    assert possession.look_again() == ""
    now[0] += 1
    lost = f"{path} is gone"
    assert possession.look_again() == lost
    path.touch()
    now[0] += 7
    assert possession.look_again() == lost
    now[0] += 1
    assert possession.look_again() == ""
    path.unlink()
    assert possession.look() == lost, "who looks at once does not wait"
    now[0] += 7
    path.touch()
    assert possession.look_again() == lost, "the interval is from the last look of either kind"


@pytest.mark.parametrize("first", ["opened", "present", "changing"])
def test_whichever_of_them_is_lost_it_is_told(tmp_path, first):
    paths = {name: tmp_path / name for name in ("opened", "present", "changing")}
    for path in paths.values():
        path.touch()
    ids = {path: identity_of(os.stat(path)) for path in paths.values()}
    possession = Possession({paths["opened"]: ids[paths["opened"]]}, [paths["present"]])
    possession.add_changing(lambda: {paths["changing"]: ids[paths["changing"]]})
    assert possession.look() == ""
    path = paths[first]
    path.rename(tmp_path / "kept")  # so that its inode is not used again
    assert possession.look() == f"{path} is gone"
    path.touch()
    assert possession.look() == ("" if first == "present" else f"{path} is not the one that was opened here")


def test_a_file_where_a_directory_was_is_a_loss(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/b").touch()
    possession = Possession({}, [tmp_path / "a/b"])
    remove(tmp_path / "a")
    (tmp_path / "a").touch()
    assert possession.look() == f"{tmp_path / 'a/b'} is gone"
