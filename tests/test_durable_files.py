"""What survives a power cut is synced in the right order, and nothing half made gets a name."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from ingest.runtime.durable_files import (
    make_directory,
    new_file,
    open_new,
    rename_durably,
    replacing,
    sync_file,
    write_all,
)


@pytest.fixture
def steps(monkeypatch) -> list[tuple[str, str]]:
    """Each sync and rename from now on, with the name of what it was done to."""
    found = []

    def watch(name, subject):
        real = getattr(os, name)

        def call(*arguments):
            result = real(*arguments)
            found.append((name, subject(*arguments)))
            return result

        monkeypatch.setattr(os, name, call)

    watch("fsync", lambda fd: Path(os.readlink(f"/proc/self/fd/{fd}")).name)
    watch("rename", lambda _, target: Path(target).name)
    return found


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_file_is_replaced_durably(tmp_path, steps):
    path = tmp_path / "file"
    path.write_bytes(b"old, and longer")
    (tmp_path / "file.new").write_bytes(b"of a start that was cut short")
    with replacing(path) as fd:
        os.write(fd, b"new")
        assert path.read_bytes() == b"old, and longer"
    assert steps == [("fsync", "file.new"), ("rename", "file"), ("fsync", tmp_path.name)]
    assert (path.read_bytes(), mode(path), os.listdir(tmp_path)) == (b"new", 0o600, ["file"])


def test_a_file_that_may_be_lost_is_not_synced(tmp_path, steps):
    with replacing(tmp_path / "file", tmp_path / "staged", sync=False) as fd:
        os.write(fd, b"new")
    assert steps == [("rename", "file")]


def test_what_fails_on_the_way_replaces_nothing(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"), replacing(path) as fd:
        os.write(fd, b"new")
    assert path.read_bytes() == b"old"
    with pytest.raises(ZeroDivisionError), replacing(path) as fd:
        os.write(fd, b"half of" + bytes(1 // 0))
    assert path.read_bytes() == b"old"


def test_no_link_is_followed(tmp_path):
    other = tmp_path / "other"
    other.write_bytes(b"somebody's")
    (tmp_path / "file.new").symlink_to(other)
    with replacing(tmp_path / "file") as fd:
        os.write(fd, b"new")
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    with pytest.raises(FileExistsError):
        open_new(tmp_path / "link")
    assert other.read_bytes() == b"somebody's"
    assert not (tmp_path / "nothing").exists()


def test_a_new_file_is_nobody_s_yet_and_durable(tmp_path, steps):
    path = tmp_path / "file"
    with new_file(path) as fd:
        os.write(fd, b"first")
    assert steps == [("fsync", "file")]
    with pytest.raises(FileExistsError), new_file(path):
        pass
    assert (path.read_bytes(), mode(path)) == (b"first", 0o600)


def test_directories_are_made_from_above(tmp_path, steps):
    make_directory(tmp_path / "a" / "b")
    assert steps == [("fsync", tmp_path.name), ("fsync", "a")]
    make_directory(tmp_path / "a" / "b")
    assert len(steps) == 2
    assert mode(tmp_path / "a" / "b") == 0o700


def test_the_directory_of_the_new_name_is_synced(tmp_path, steps):
    (tmp_path / "above").mkdir()
    (tmp_path / "file").touch()
    sync_file(tmp_path / "file")
    rename_durably(tmp_path / "file", tmp_path / "above" / "file")
    assert steps == [("fsync", "file"), ("rename", "file"), ("fsync", "above")]


def test_what_a_short_write_leaves_is_written(monkeypatch):
    written = []

    def short(_, data, offset):
        written.append((bytes(data[:3]), offset))
        return min(3, len(data))

    monkeypatch.setattr(os, "pwrite", short)
    write_all(0, memoryview(b"01234567"), 100)
    assert written == [(b"012", 100), (b"345", 103), (b"67", 106)]
    monkeypatch.setattr(os, "pwrite", lambda *_: 0)
    with pytest.raises(OSError, match="wrote nothing"):
        write_all(0, memoryview(b"0"), 0)
