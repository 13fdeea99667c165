"""A sync that fails is told to whoever asked for what it was to make durable, whichever of all syncs it is.

What is told as done though it is in the page cache alone is gone after the next power cut, and nobody looks for a copy.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from pathlib import Path

import durable_commands
import pytest
from stores import Small, template
from test_faults_name_order import damage

from ingest.errors import IngestError
from ingest.runtime import durable_files
from ingest.runtime.file_system import sync_everything

COMMANDS = [
    *(
        "make_key",
        "rotate_key",
        "make_store",
        "make_store_with_a_log_elsewhere",
        "describe_store",
        "make_segments",
    ),
    *("copy_catalog", "rebuild_catalog", "export_store", "keep_copies", "write_an_object"),
    *(f"repair {kind}" for kind in ("slot", "log", "store.json", "log.json", "stray", "chunk")),
]


class Syncs:
    """All syncs of this process from now on; ``fails``: the number of the one that does, 0 for none."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.count = self.fails = 0
        self._syncfs: Callable[[int], int] = durable_files._libc.syncfs
        for name in ("fsync", "fdatasync"):
            patch.setattr(os, name, self._watched(getattr(os, name)))
        patch.setattr(durable_files, "_libc", self)

    def _strikes(self) -> bool:
        self.count += 1
        return self.count == self.fails

    def _watched(self, real: Callable[[int], None]) -> Callable[[int], None]:
        def call(fd: int) -> None:
            if self._strikes():
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            real(fd)

        return call

    def syncfs(self, fd: int) -> int:
        if self._strikes():
            ctypes.set_errno(errno.EIO)
            return -1
        return self._syncfs(fd)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_failure_is_told(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    command, _, kind = name.partition(" ")
    made = template(tmp_path_factory.getbasetemp(), "killed", "tree" if kind == "chunk" else "pack")
    monkeypatch.setattr(os, "sync", lambda: None)
    syncs = Syncs(monkeypatch)

    def run(fails: int) -> None:
        home = tmp_path / str(fails)
        home.mkdir()
        made.copy(home / "store")
        if kind:
            damage(Small(home / "store", made), kind)
        syncs.count, syncs.fails = 0, fails
        durable_commands.COMMANDS[command](home)

    run(0)
    there_are = syncs.count
    assert there_are
    passed_over = []
    for fails in range(1, there_are + 1):
        try:
            run(fails)
            passed_over.append(fails)
        except (OSError, IngestError):
            assert syncs.count >= fails
    assert passed_over == [], f"of {there_are}"


@pytest.mark.parametrize("reporting", [(), ("ext4", "xfs", "btrfs", "tmpfs", "overlayfs")])
def test_all_below_a_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reporting: tuple[str, ...]
) -> None:
    """By one sync, or each file and each directory by itself."""
    (tmp_path / "a/b").mkdir(parents=True)
    for name in ("one", "a/one", "a/two", "a/b/one"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "a/link").symlink_to("nowhere")
    monkeypatch.setattr("ingest.runtime.file_system._REPORTING", reporting)
    syncs = Syncs(monkeypatch)
    fd = os.open(tmp_path, os.O_RDONLY)
    sync_everything(tmp_path, fd)
    assert syncs.count == (1 if reporting else 1 + 4 + 3)
    for number in range(1, syncs.count + 1):
        syncs.count, syncs.fails = 0, number
        with pytest.raises(OSError, match="Input/output"):
            sync_everything(tmp_path, fd)
    if not reporting:
        real, syncs.fails = os.scandir, 0
        for lost in (tmp_path, tmp_path / "a", tmp_path / "a/b"):  # of what can't be read nothing is synced
            monkeypatch.setattr(
                os, "scandir", lambda path, lost=lost: real(path if path != str(lost) else lost / "none")
            )
            with pytest.raises(FileNotFoundError):
                sync_everything(tmp_path, fd)
    os.close(fd)


@pytest.mark.parametrize(
    "code", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EBADF, errno.ESTALE]
)
def test_whatever_a_syncfs_fails_with(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """But for a signal, after which it is made again."""
    answers = [errno.EINTR, errno.EINTR, code]

    class Libc:
        def syncfs(self, _: int) -> int:
            ctypes.set_errno(answers.pop(0))
            return -1

    monkeypatch.setattr(durable_files, "_libc", Libc())
    with pytest.raises(OSError, match=os.strerror(code)) as caught:
        durable_files.syncfs(0)
    assert (caught.value.errno, answers) == (code, [])
