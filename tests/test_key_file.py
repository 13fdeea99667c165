"""The key file: who may read it, what stands in it, and how it comes into being."""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ingest.errors import KeyFileError
from ingest.limits import KEY_FILE_SIZE_MAX
from ingest.runtime.key_file import make_key_file, read_keys, rotate_key_file

KEY = bytes(range(32))


def key_file(path: Path, content: bytes | None = None, mode: int = 0o600) -> Path:
    path.write_bytes(KEY.hex().encode() + b"\n" if content is None else content)
    path.chmod(mode)
    return path


def refused(match: str, path: Path, **options: Path) -> None:
    with pytest.raises(KeyFileError, match=match) as caught:
        read_keys(path, **options)
    assert str(path) in str(caught.value)
    assert KEY.hex()[:16] not in str(caught.value)
    assert caught.value.exit_code == 78


def test_made_and_read(tmp_path: Path) -> None:
    path = tmp_path / "key"
    old = os.umask(0o777)
    try:
        key = make_key_file(path)
    finally:
        os.umask(old)
    assert len(key) == 32
    assert read_keys(path) == [key]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_bytes() == key.hex().encode() + b"\n"
    assert os.listdir(tmp_path) == ["key"]


def test_two_files_have_two_keys(tmp_path: Path) -> None:
    assert make_key_file(tmp_path / "a") != make_key_file(tmp_path / "b")


@pytest.mark.parametrize("kind", ["file", "link", "dangling", "directory"])
def test_nothing_is_overwritten(tmp_path: Path, kind: str) -> None:
    path, target = tmp_path / "key", tmp_path / "target"
    if kind == "file":
        path.write_bytes(b"mine")
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(target)
        if kind == "link":
            target.write_bytes(b"mine")
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(KeyFileError, match="exists already"):
        make_key_file(path)
    assert sorted(os.listdir(tmp_path)) == before
    if kind in ("file", "link"):
        assert path.read_bytes() == b"mine"


def test_it_is_not_made_where_there_is_no_directory(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="no such file"):
        make_key_file(tmp_path / "absent" / "key")


def test_it_is_durable_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, steps = tmp_path / "key", []
    sync = os.fsync

    def watched(fd: int) -> None:
        steps.append((stat.S_ISDIR(os.fstat(fd).st_mode), path.exists()))
        sync(fd)

    monkeypatch.setattr(os, "fsync", watched)
    make_key_file(path)
    assert steps == [(False, False), (True, True)]


def test_a_failing_sync_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(fd: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(KeyFileError, match="Input/output error"):
        make_key_file(tmp_path / "key")
    assert os.listdir(tmp_path) == []


def test_several_keys_in_order(tmp_path: Path) -> None:
    keys = [bytes([i]) * 32 for i in range(171, 174)]
    content = "\n".join(key.hex().upper() if key[0] % 2 else key.hex() for key in keys).encode()
    assert read_keys(key_file(tmp_path / "key", content)) == keys


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o620, 0o610, 0o660, 0o666, 0o777])
def test_open_to_others(tmp_path: Path, mode: int) -> None:
    refused(f"mode 0{mode:o} opens it to others", key_file(tmp_path / "key", mode=mode))


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700, 0o640, 0o440])
def test_only_the_owners_and_a_group_of_ours_may_read(tmp_path: Path, mode: int) -> None:
    assert read_keys(key_file(tmp_path / "key", mode=mode)) == [KEY]


def test_missing(tmp_path: Path) -> None:
    refused("there is no such file", tmp_path / "key")


def test_not_a_regular_file(tmp_path: Path) -> None:
    refused("not a regular file", tmp_path)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo, 0o600)
    refused("not a regular file", fifo)
    refused("not a regular file", Path("/dev/zero"))


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "no key"),
        (b"\n", "no key"),
        (KEY.hex().encode()[:-1], "line 1"),
        (KEY.hex().encode() + b"0", "line 1"),
        (KEY.hex().encode() + b"\n" + KEY.hex().encode()[:62], "line 2"),
        (b"g" * 64, "line 1"),
        (b"# a comment\n" + KEY.hex().encode(), "line 1"),
        (b"0x" + KEY.hex().encode()[2:], "line 1"),
        (KEY.hex().encode() + b" " + KEY.hex().encode(), "line 1"),
        (KEY.hex().encode() + b"\n" + KEY.hex().upper().encode(), "line 2"),
        (KEY, "not text|line 1"),
        (b"\xff" * 64, "not text"),
        ("\N{ARABIC-INDIC DIGIT THREE}".encode() * 64, "not text"),
    ],
)
def test_malformed(tmp_path: Path, content: bytes, match: str) -> None:
    refused(match, key_file(tmp_path / "key", content))


def test_too_large(tmp_path: Path) -> None:
    refused("more than", key_file(tmp_path / "key", b"\n" * (KEY_FILE_SIZE_MAX + 1)))


def test_links_are_followed_outside_of_data_only(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / ".ingest").mkdir(parents=True)
    target = key_file(tmp_path / "secret")
    inside, outside = data / ".ingest" / "key", tmp_path / "link"
    inside.symlink_to(target)
    outside.symlink_to(target)
    assert read_keys(outside, data_dir=data) == [KEY]
    refused("symbolic link", inside, data_dir=data)
    refused("symbolic link", data / "x" / ".." / ".ingest" / "key", data_dir=data)


def test_a_linked_directory_inside_data_is_not_followed(tmp_path: Path) -> None:
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    data.mkdir()
    elsewhere.mkdir()
    key_file(elsewhere / "key")
    (data / ".ingest").symlink_to(elsewhere)
    refused("directory|symbolic", data / ".ingest" / "key", data_dir=data)


def test_data_itself_may_be_a_link(tmp_path: Path) -> None:
    real, data = tmp_path / "real", tmp_path / "data"
    (real / ".ingest").mkdir(parents=True)
    data.symlink_to(real)
    key_file(real / ".ingest" / "key")
    assert read_keys(data / ".ingest" / "key", data_dir=data) == [KEY]


def test_data_named_relatively(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".ingest").mkdir()
    (tmp_path / ".ingest" / "key").symlink_to(key_file(tmp_path / "secret"))
    refused("symbolic link", Path(".ingest/key"), data_dir=Path())


def test_a_rotation_moves_the_keys_up_and_adds_one(tmp_path: Path) -> None:
    path = tmp_path / "key"
    first = make_key_file(path)
    _, second = rotate_key_file(path)
    assert read_keys(path) == [first, second]  # the new one is accepted before anybody signs with it
    assert rotate_key_file(path)[::2] == [second, first]
    _, third, _ = read_keys(path)
    assert rotate_key_file(path) == read_keys(path)
    assert read_keys(path)[0::2] == [third, second]
    assert read_keys(path)[3] == first
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["key"]


def test_a_rotation_keeps_a_link_and_the_mode(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    real, link = tmp_path / "secrets" / "key", tmp_path / "key"
    make_key_file(real)
    real.chmod(0o400)
    link.symlink_to(real)
    rotate_key_file(link)
    assert link.is_symlink() and len(read_keys(link)) == 2
    assert stat.S_IMODE(real.stat().st_mode) == 0o400


@pytest.mark.parametrize("mode", [0o400, 0o600])
@pytest.mark.parametrize("owned", ["by us", "by others"])
def test_a_rotation_that_is_cut_short_leaves_a_file_for_the_same_people(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, owned: str
) -> None:
    """Around each step the name leads to a whole file, old or new, with the owner, group and mode of before: a server that
    may not read it would not start."""
    path = tmp_path / "key"
    make_key_file(path)
    if owned == "by others":
        if os.geteuid() != 0:
            pytest.skip("only root may give files away")
        os.chown(path, 12345, os.getegid())
    path.chmod(mode)
    states = []

    def look() -> None:
        found = path.stat()
        states.append((path.read_bytes(), found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)))

    def watched(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            look()
            result = real(*arguments, **more)
            look()
            return result

        return call

    with monkeypatch.context() as patch:
        for name in ("chmod", "fchmod", "chown", "fchown", "rename", "link", "unlink", "fsync"):
            patch.setattr(os, name, watched(getattr(os, name)))
        look()
        rotate_key_file(path)
        look()
    assert {state[1:] for state in states} == {states[0][1:]}
    assert {state[0] for state in states} == {states[0][0], states[-1][0]}
    assert len(states) > 6 and states[0][3] == mode


def test_a_rotation_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = key_file(tmp_path / "key")

    def failing(fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        with pytest.raises(KeyFileError, match="No space left"):
            rotate_key_file(path)
    assert read_keys(path) == [KEY]
    assert os.listdir(tmp_path) == ["key"]
    key_file(path, b"nothing\n")
    with pytest.raises(KeyFileError, match="line 1"):
        rotate_key_file(path)
    with pytest.raises(KeyFileError, match="no such file"):
        rotate_key_file(tmp_path / "absent")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize(("uid", "gid"), [(0, 0), (0, 4711), (4711, 0), (4711, 4712)])
def test_a_rotation_keeps_its_owner_and_its_group(tmp_path: Path, uid: int, gid: int) -> None:
    """The group is the service's, where root has installed the file: it could not start any more."""
    path = tmp_path / "key"
    make_key_file(path)
    os.chown(path, uid, gid)
    rotate_key_file(path)
    status = path.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (uid, gid, 0o600)


def test_a_file_that_comes_in_pieces_is_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As network file systems give it."""
    path = tmp_path / "key"
    make_key_file(path)
    keys = [*rotate_key_file(path)]
    real = os.read
    monkeypatch.setattr(os, "read", lambda fd, size: real(fd, min(size, 7)))
    assert read_keys(path) == keys
    path.write_bytes(b"\n" * (KEY_FILE_SIZE_MAX + 1))
    with pytest.raises(KeyFileError, match="more than"):
        read_keys(path)
