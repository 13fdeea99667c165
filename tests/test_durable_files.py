"""What survives a power cut is synced in the right order, and nothing half made gets a name."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from ingest.runtime import durable_files
from ingest.runtime.durable_files import (
    make_directory,
    new_file,
    open_new,
    rename_durably,
    replacing,
    sync_directory,
    sync_file,
    syncfs,
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


def writes(context) -> None:
    with context as fd:
        os.write(fd, b"new")


WORK: dict[str, Callable[[Path], None]] = {
    "sync_directory": sync_directory,
    "sync_file": lambda at: sync_file(at / "file"),
    "make_directory": lambda at: make_directory(at / "a" / "b" / "c"),
    "rename_durably": lambda at: rename_durably(at / "file", at / "above" / "file"),
    "new_file": lambda at: writes(new_file(at / "new")),
    "replacing": lambda at: writes(replacing(at / "file")),
    "replacing elsewhere": lambda at: writes(replacing(at / "file", at / "above" / "staged")),
}


@pytest.mark.parametrize("name", WORK)
def test_each_step_that_fails_is_the_last_one_and_is_told(tmp_path, monkeypatch, name):
    """Whatever it is: opened, written back, renamed. Nothing gets a name for which that was to be done before, no step is
    tried again, and no descriptor stays open."""
    counted = 0

    def step(real):
        def call(*arguments, **more):
            nonlocal counted
            counted += 1
            assert counted <= fails, "it goes on"
            if counted == fails:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(*arguments, **more)

        return call

    for fails in range(1, 20):
        at, counted = tmp_path / str(fails), 0
        (at / "above").mkdir(parents=True)
        (at / "file").write_bytes(b"old")
        before = os.listdir("/proc/self/fd")
        with monkeypatch.context() as patch:
            for call in ("open", "fsync", "rename", "mkdir"):
                patch.setattr(os, call, step(getattr(os, call)))
            try:
                WORK[name](at)
            except OSError as error:
                assert error.errno == errno.EIO
            else:
                assert counted < fails, "it was not told"
        assert os.listdir("/proc/self/fd") == before
        if counted < fails:
            break
    else:
        pytest.fail("it has no end")
    assert fails > 2, "it opened and synced nothing"


@pytest.mark.parametrize("interrupted", [0, 1, 3])
@pytest.mark.parametrize("code", [0, errno.EIO, errno.ENOSPC])
def test_a_file_system_is_synced_until_it_says_how_that_went(monkeypatch, interrupted, code):
    """A signal says nothing of it. What failed is told, and not asked for again: the next time it would be called well."""
    answers = [errno.EINTR] * interrupted + [code]

    class Kernel:
        def syncfs(self, fd):
            assert fd == 4711
            ctypes.set_errno(answers.pop(0))
            return -1 if ctypes.get_errno() else 0

    monkeypatch.setattr(durable_files, "_libc", Kernel())
    if code:
        with pytest.raises(OSError, match=os.strerror(code)) as caught:
            syncfs(4711)
        assert caught.value.errno == code
    else:
        syncfs(4711)
    assert not answers


def test_a_directory_that_somebody_else_makes_meanwhile_is_durable_too(tmp_path, monkeypatch, steps):
    real = os.mkdir

    def mkdir(path, mode):
        real(path, mode)  # the other one was first
        real(path, mode)

    monkeypatch.setattr(os, "mkdir", mkdir)
    make_directory(tmp_path / "a" / "b")
    assert steps == [("fsync", tmp_path.name), ("fsync", "a")]
