"""What is done below a directory until all of it is durable, and who may do what with a file."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from ingest.errors import ConfigError
from ingest.runtime import file_system
from ingest.runtime.file_system import FileSystem, check_access, refuse_unsuitable, sync_everything

# --- all that is below a directory

FILES = ("one", "A/two", "A/B/three", "C/four")
DIRECTORIES = (".", "A", "A/B", "C", "empty")


class Tree:
    """Files, and what was synced of them, in its order. ``fails``: what cannot be."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, syncs_files: bool) -> None:
        self.root, self.synced, self.fails = root, list[str](), ""
        for name in DIRECTORIES:
            (root / name).mkdir(parents=True, exist_ok=True)
        for name in FILES:
            (root / name).write_bytes(b"x")
        os.mkfifo(root / "A/fifo")  # who opens it waits for ever
        (root / "A/link").symlink_to(root.with_name("elsewhere"))
        (root / "A/linked").symlink_to(root.with_name("others"))
        root.with_name("elsewhere").write_bytes(b"x")
        root.with_name("others").mkdir()
        (root.with_name("others") / "five").write_bytes(b"x")
        monkeypatch.setattr(file_system, "syncfs", lambda _: self._sync("all"))
        for name in ("sync_file", "sync_directory"):
            monkeypatch.setattr(file_system, name, lambda path: self._sync(str(path.relative_to(root))))
        answer = SimpleNamespace(syncs_files=syncs_files)
        monkeypatch.setattr(file_system, "file_system", lambda _: answer)

    def _sync(self, name: str) -> None:
        self.synced.append(name)
        if name == self.fails:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def sync(self) -> None:
        fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            sync_everything(self.root, fd)
        finally:
            os.close(fd)


def test_each_file_and_each_directory_is_synced_where_syncfs_does_not_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, and a directory after what is in it. Nothing is that only a link leads to, and nothing is waited for."""
    tree = Tree(tmp_path / "root", monkeypatch, syncs_files=True)
    tree.sync()
    assert sorted(tree.synced) == sorted(("all", *FILES, *DIRECTORIES))
    for name in FILES:
        assert tree.synced.index(name) < tree.synced.index(os.path.dirname(name) or "."), name


def test_one_sync_does_where_it_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = Tree(tmp_path / "root", monkeypatch, syncs_files=False)
    tree.sync()
    assert tree.synced == ["all"]


@pytest.mark.parametrize("what", ["all", *FILES, *DIRECTORIES])
def test_whatever_is_not_durable_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    tree = Tree(tmp_path / "root", monkeypatch, syncs_files=True)
    tree.fails = what
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        tree.sync()


@pytest.mark.parametrize("what", DIRECTORIES)
def test_a_directory_that_cannot_be_listed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """What is in it may not be durable."""
    tree = Tree(tmp_path / "root", monkeypatch, syncs_files=True)
    real = os.scandir

    def scandir(path: str) -> object:
        if Path(path) == tree.root / what:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        tree.sync()


# --- where files cannot be as we write them


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("volatile", [False, True])
@pytest.mark.parametrize("block_size", [0, 512, 4096, 4097, 8192, 65536])
def test_where_no_server_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_size: int, volatile: bool, durable: bool
) -> None:
    answer = FileSystem("any", "", volatile, block_size)
    monkeypatch.setattr(file_system, "file_system", lambda _: answer)
    before = sorted(os.listdir("/proc/self/fd"))
    if volatile and durable:
        with pytest.raises(ConfigError, match="ignores every sync"):
            refuse_unsuitable(tmp_path, durable=durable)
    elif block_size > 4096:
        with pytest.raises(ConfigError, match=f"blocks of {block_size} bytes; at most 4096 "):
            refuse_unsuitable(tmp_path, durable=durable)
    else:
        refuse_unsuitable(tmp_path, durable=durable)
    assert sorted(os.listdir("/proc/self/fd")) == before


# --- who may do what


@contextmanager
def others(real: int, effective: int) -> Iterator[None]:
    """This process, started by somebody and acting as somebody else."""
    os.setresuid(real, effective, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone acts as others")
@pytest.mark.parametrize("mode", [os.R_OK, os.W_OK, os.X_OK, os.R_OK | os.W_OK])
def test_it_is_asked_for_who_we_are_in_effect(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "file"
    path.touch()
    path.chmod(0o700)
    with others(65534, 0):
        check_access(path, mode)
    with others(0, 65534), pytest.raises(PermissionError) as caught:
        check_access(path, mode)
    assert caught.value.filename == str(path)


def test_why_not_is_told(tmp_path: Path) -> None:
    check_access(tmp_path, os.R_OK | os.W_OK | os.X_OK)
    (tmp_path / "file").touch()
    for path, code in ((tmp_path / "none", errno.ENOENT), (tmp_path / "file/a", errno.ENOTDIR)):
        with pytest.raises(OSError, match=os.strerror(code)) as caught:
            check_access(path, os.R_OK)
        assert (caught.value.errno, caught.value.filename) == (code, str(path))


# --- what the kernel says of a mount and of a disk


@pytest.mark.parametrize(
    ("mount", "expected"), [("36", ["rw", "lower"]), ("3", ["ro", "volatile"]), ("9", [])]
)
def test_the_options_are_those_of_its_own_mount(
    monkeypatch: pytest.MonkeyPatch, mount: str, expected: list[str]
) -> None:
    """Of the mount, and of the file system: proc(5) has them before the dash, and behind all."""
    texts = {
        "/proc/self/fdinfo/7": f"pos:\t0\nflags:\t02\nmnt_id:\t{mount}\nino:\t4\n",
        "/proc/self/mountinfo": "36 35 98:0 / /a rw master:1 - overlay x lower\n3 35 98:0 / /b ro - overlay x volatile\n",
    }
    monkeypatch.setattr(Path, "read_text", lambda path, **_: texts[str(path)])
    assert file_system._mount_options(7) == expected


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({"queue": "4096\n"}, 4096),
        ({"../queue": "512\n"}, 512),  # of the disk that it is a partition of
        ({"queue": "8192\n", "../queue": "512\n"}, 8192),
        ({"queue": "nonsense", "../queue": "512\n"}, 512),
        ({}, 0),
    ],
)
def test_the_blocks_are_those_of_its_disk(
    monkeypatch: pytest.MonkeyPatch, sizes: dict[str, str], expected: int
) -> None:
    device = os.makedev(8, 17)
    files = {f"/sys/dev/block/8:17/{queue}/logical_block_size": size for queue, size in sizes.items()}

    def read_text(path: Path, **_: str) -> str:
        if str(path) not in files:
            raise FileNotFoundError(path)
        return files[str(path)]

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", read_text)
        patch.setattr(os, "fstat", lambda _: SimpleNamespace(st_dev=device))
        found = file_system._block_size(7)
    assert found == expected
