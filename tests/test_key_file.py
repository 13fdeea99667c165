"""The key file: who may read it, what stands in it, and how it comes into being."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ingest.errors import KeyFileError
from ingest.limits import KEY_FILE_SIZE_MAX
from ingest.runtime.key_file import close_key, make_key_file, read_keys, rotate_key_file

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


@pytest.mark.parametrize("piece", [1000, 4096, KEY_FILE_SIZE_MAX])
@pytest.mark.parametrize("over", [0, 1])
def test_a_file_of_the_largest_size_is_read_and_one_byte_more_is_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int, over: int
) -> None:
    """However it comes: network file systems give it in pieces."""
    keys = [number.to_bytes(32, "big") for number in range(1, KEY_FILE_SIZE_MAX // 65 + 1)]
    content = "".join(f"{key.hex()}\n" for key in keys).encode().ljust(KEY_FILE_SIZE_MAX + over, b"\n")
    path, real = key_file(tmp_path / "key", content), os.read
    monkeypatch.setattr(os, "read", lambda fd, size: real(fd, min(size, piece)))
    if over:
        refused("more than", path)
    else:
        assert read_keys(path) == keys


def test_a_rotation_never_makes_a_file_that_is_too_large(tmp_path: Path) -> None:
    """With it no server would start again."""
    keys = [number.to_bytes(32, "big") for number in range(1, KEY_FILE_SIZE_MAX // 65)]
    path = key_file(tmp_path / "key", "".join(f"{key.hex()}\n" for key in keys).encode())
    assert rotate_key_file(path) == read_keys(path)
    full = path.read_bytes()
    with pytest.raises(KeyFileError, match="with one more key"):
        rotate_key_file(path)
    assert path.read_bytes() == full and os.listdir(tmp_path) == ["key"]


def fails(*_: Any, **__: Any) -> None:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


CHANGES = ("open", "fchmod", "fsync", "link", "chown", "chmod", "rename", "unlink")


@pytest.mark.parametrize("call", CHANGES)
@pytest.mark.parametrize("rotated", [False, True])
def test_each_step_that_fails_is_told_and_leaves_a_whole_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rotated: bool, call: str
) -> None:
    """The one of before, or the new one; each time that the step is done. What is not known to be durable is told so: else
    clients would be given a key that a power cut takes away."""
    real, told = getattr(os, call), 0
    for number in range(1, 10):
        home, counted = tmp_path / str(number), 0
        home.mkdir()
        if rotated:
            key_file(home / "key")

        def step(*arguments: Any, number: int = number, **more: Any) -> Any:
            nonlocal counted
            counted += 1
            return fails() if counted == number else real(*arguments, **more)

        before = os.listdir("/proc/self/fd")
        with monkeypatch.context() as patch:
            patch.setattr(os, call, step)
            try:
                rotate_key_file(home / "key") if rotated else make_key_file(home / "key")
            except KeyFileError as error:
                assert "Read-only file system" in str(error)
                told += 1
        assert os.listdir("/proc/self/fd") == before
        assert (told == number) == (counted >= number), "it was not told"
        if rotated or (home / "key").exists():
            assert (read_keys(home / "key")[0] == KEY) == rotated
        if counted < number:
            return
    pytest.fail("it has no end")


@pytest.mark.parametrize("kind", ["a link", "a FIFO", "a link to nowhere", "nothing"])
def test_only_a_store_s_own_key_is_taken_away_from_its_group(tmp_path: Path, kind: str) -> None:
    path, other = tmp_path / "key", tmp_path / "other"
    key_file(other, mode=0o660)
    if kind == "a link":
        path.symlink_to(other)
    elif kind == "a link to nowhere":
        path.symlink_to(tmp_path / "nowhere")
    elif kind == "a FIFO":
        os.mkfifo(path)
        path.chmod(0o660)
    close_key(path)
    if kind in ("a link", "a FIFO"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert os.path.lexists(path) == (kind != "nothing")
    close_key(other)
    assert stat.S_IMODE(other.stat().st_mode) == 0o600


@pytest.mark.parametrize("call", ["open", "fstat", "fchmod"])
def test_a_key_that_cannot_be_taken_away_from_its_group_is_left_to_who_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """A volume that is mounted read-only: `fsGroup` gave the file to a group of ours, and it is read all the same."""
    path = key_file(tmp_path / "key", mode=0o660)
    before = os.listdir("/proc/self/fd")
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fails)
        close_key(path)
    assert os.listdir("/proc/self/fd") == before
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert read_keys(path, own=True) == [KEY]
    refused("opens it to others", path)


@pytest.mark.parametrize(
    "state", ["good", "open to others", "no key", "a link", "a linked directory", "a directory", "nothing"]
)
def test_who_reads_it_again_and_again_keeps_nothing_open(tmp_path: Path, state: str) -> None:
    """A server does, at each HUP, and a gateway while it waits for its engine."""
    path = tmp_path / "a" / "b" / "key"
    path.parent.mkdir(parents=True)
    if state == "a directory":
        path.mkdir()
    elif state != "nothing":
        key_file(
            path, b"no key" if state == "no key" else None, 0o604 if state == "open to others" else 0o600
        )
    if state == "a link":
        path.rename(path.with_name("real"))
        path.symlink_to("real")
    elif state == "a linked directory":
        path.parent.rename(tmp_path / "real")
        path.parent.symlink_to(tmp_path / "real")
    before = os.listdir("/proc/self/fd")
    for data_dir in (None, tmp_path):
        try:
            assert read_keys(path, data_dir=data_dir) == [KEY]
        except KeyFileError:
            assert state != "good"
        assert os.listdir("/proc/self/fd") == before
