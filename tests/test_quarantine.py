"""What a repair puts aside is all that was there: it is the only copy from then on, and what a repair is undone from."""

from __future__ import annotations

import errno
import json
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from stores import kept_of

from faults.damaged_store import SMALL_SEGMENT, Builder
from ingest import sharding, ticket
from ingest.errors import ConfigError, DiskError
from ingest.store.check.fsck import fsck
from ingest.store.check.quarantine import Piece, Quarantine, attributes_of, replace_file, write_sparse
from ingest.store.layouts import tree_file
from ingest.store.layouts.tree_file import CHECKSUM, DELETED

ATTRIBUTES = {"user.note": b"\0\xff", "user.empty": b"", CHECKSUM: b"checksum", DELETED: b""}


def describe(data: Path, copy: str) -> tuple[Path, dict[str, Any]]:
    path = data / copy
    return path, json.loads(path.with_suffix(".json").read_bytes())


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data/.ingest").mkdir(parents=True)
    try:
        tree_file.check_file_system(tmp_path)
    except ConfigError as error:
        pytest.skip(str(error))
    return tmp_path / "data"


@pytest.fixture
def elsewhere(data: Path) -> Iterator[Path]:
    """A directory of another file system."""
    shared = Path("/dev/shm")
    if not shared.is_dir() or shared.stat().st_dev == data.stat().st_dev:
        pytest.skip("no second file system here")
    with tempfile.TemporaryDirectory(dir=shared) as directory:
        yield Path(directory)


def make_file(path: Path, content: bytes = b"its bytes", attributes: dict[str, bytes] = ATTRIBUTES) -> Path:
    path.write_bytes(content)
    try:
        for name, value in attributes.items():
            os.setxattr(path, name, value)
    except OSError as error:
        pytest.skip(f"no extended attributes in {path.parent}: {error}")
    os.chmod(path, 0o640)
    os.utime(path, ns=(1, 123_456_789))
    return path


def in_hex(attributes: dict[str, bytes]) -> dict[str, str]:
    return {name: value.hex() for name, value in attributes.items()}


@pytest.mark.parametrize(
    "names", [(), (CHECKSUM,), (DELETED,), (CHECKSUM, DELETED), ("user.note",), tuple(ATTRIBUTES)]
)
@pytest.mark.parametrize("content", [b"cut", bytes(1458)])
def test_a_chunk_s_copy_has_each_attribute(
    data: Path, content: bytes, names: tuple[str, ...], tmp_path: Path
) -> None:
    """They say what the file was: its checksum is one of them, and that it was deleted another."""
    store, index = tmp_path / "store", sharding.slot_ticket(5, 1)
    builder = Builder(store, "tree", random.Random(1), SMALL_SEGMENT)
    builder.put([index])
    builder.settle()
    builder.append(b"", [])
    builder.close()
    path = store / ticket.tree_path(ticket.format(index))
    for name in os.listxattr(path):
        os.removexattr(path, name)
    attributes = {name: ATTRIBUTES[name] for name in names}
    make_file(path, content, attributes)
    os.chmod(path, 0o600)
    report = fsck(store, repair=True, segment_size=SMALL_SEGMENT)
    copies = {problem.copy for problem in report.problems if problem.copy is not None}
    assert len(copies) == 1
    copy, about = describe(store, copies.pop())
    assert about["attributes"] == in_hex(attributes)
    assert copy.read_bytes() == content
    assert about["path"] == str(path.relative_to(store)) and len(about["pieces"]) == 1


def make_directory(path: Path) -> Path:
    path.mkdir()
    (path / "below").mkdir()
    make_file(path / "below/file")
    return path


def make_link(path: Path) -> Path:
    path.symlink_to("nowhere/at all")
    return path


@pytest.mark.parametrize("make", [make_file, make_directory, make_link])
def test_what_is_moved_is_the_thing_itself(data: Path, make: Callable[[Path], Path]) -> None:
    path = make(data / "4")
    before = path.lstat()
    quarantine = Quarantine(data)
    copy, about = describe(data, quarantine.take("4", path, "unexpected", "why"))
    after = copy.lstat()
    assert not os.path.lexists(path)
    assert (after.st_ino, after.st_mode, after.st_mtime_ns) == (
        before.st_ino,
        before.st_mode,
        before.st_mtime_ns,
    )
    assert about == {
        "path": "4", "pieces": [], "moved": True, "kind": "unexpected", "detail": "why",
    } | ({"link_to": "nowhere/at all"} if make is make_link else {})  # fmt: skip


@pytest.mark.parametrize("size", [0, 1, 4096, (4 << 20) - 1, (4 << 20) + 1, (8 << 20) + 4097])
def test_a_file_of_another_file_system_is_copied_whole(data: Path, elsewhere: Path, size: int) -> None:
    path = make_file(elsewhere / "0000.log", random.Random(size).randbytes(size))
    before = kept_of(path)
    copy, about = describe(data, Quarantine(data).take(str(path), path, "log", "why"))
    assert not path.exists()
    assert copy.read_bytes() == before.content
    assert about["attributes"] == before.attributes == in_hex(ATTRIBUTES)
    piece = {"offset": 0, "kind": "log", "detail": "why", "size": size, "at": 0}
    assert (about["path"], about["pieces"]) == (str(path), [piece])


def test_a_file_stays_until_its_copy_is_durable(
    data: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each sync that fails, one after the other."""
    path = make_file(elsewhere / "0000.log")
    before, real, tries = kept_of(path), os.fsync, 0
    while path.exists():
        tries += 1
        left = [tries]

        def fsync(fd: int, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] == 0:
                raise OSError(5, "Input/output error")
            real(fd)

        monkeypatch.setattr(os, "fsync", fsync)
        try:
            Quarantine(data).take(str(path), path, "log", "why")
        except OSError:
            if path.exists():
                assert kept_of(path) == before
    assert tries >= 5  # the quarantine, the directory, the copy, its description, their names


@pytest.fixture
def calls(data: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What changes a disk, in order: (call, name of the file that it is about)."""
    made: list[tuple[str, str]] = []

    def guard(name: str) -> None:
        real = getattr(os, name)

        def call(what: int | Path, *more: Any) -> Any:
            path = os.readlink(f"/proc/self/fd/{what}") if isinstance(what, int) else str(what)
            made.append((name, Path(path).name))
            return real(what, *more)

        monkeypatch.setattr(os, name, call)

    for name in ("fsync", "rename", "unlink"):
        guard(name)
    return made


DESCRIBED = [("fsync", "0001.json.new"), ("rename", "0001.json.new"), ("fsync", "repair")]


def test_what_is_moved_is_described_first_and_gone_last(
    data: Path, calls: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Durably, each step: after a power cut it is in one of two places, and described where it was moved to."""
    monkeypatch.setattr("time.strftime", lambda *_: "repair")
    path = make_directory(data / "4")
    quarantine = Quarantine(data)
    quarantine.directory  # noqa: B018
    calls.clear()
    quarantine.take("4", path, "unexpected", "why")
    moved = [("rename", "4"), ("fsync", "repair"), ("fsync", "data")]
    assert [call for call in calls if call[0] != "unlink"] == DESCRIBED + moved


def test_what_is_copied_is_removed_last_and_durably(
    data: Path, elsewhere: Path, calls: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged segment that came back with a power cut would keep the server from starting."""
    monkeypatch.setattr("time.strftime", lambda *_: "repair")
    path = make_file(elsewhere / "0000.log")
    quarantine = Quarantine(data)
    quarantine.directory  # noqa: B018
    calls.clear()
    quarantine.take(str(path), path, "log", "why")
    removed = [("unlink", "0000.log"), ("fsync", elsewhere.name)]
    assert [call for call in calls if call != ("unlink", "0001.json.new")] == [
        ("fsync", "0001.copy"), *DESCRIBED, *removed,
    ]  # fmt: skip


def test_pieces_say_where_each_was(data: Path) -> None:
    """Also of the first byte and the first slot, and where one is empty."""
    pieces = [
        Piece(0, b"one", "header", "why"),
        Piece(4096, b"", "slot", "why", 0, "0"),
        Piece(512, b"three", "slot", "why", 3, "3"),
    ]
    copy, about = describe(data, Quarantine(data).keep("obj", pieces, attributes={"user.x": "00"}))
    assert copy.read_bytes() == b"onethree"
    assert about == {
        "path": "obj",
        "pieces": [
            {"offset": 0, "kind": "header", "detail": "why", "size": 3, "at": 0},
            {"offset": 4096, "kind": "slot", "detail": "why", "slot": 0, "ticket": "0", "size": 0, "at": 3},
            {"offset": 512, "kind": "slot", "detail": "why", "slot": 3, "ticket": "3", "size": 5, "at": 3},
        ],
        "attributes": {"user.x": "00"},
    }


def test_no_copy_takes_the_place_of_another(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever repair made it, also within one second."""
    monkeypatch.setattr("time.strftime", lambda *_: "2026-11-21T15-02-11Z")
    copies = {}
    for repair in range(3):
        quarantine = Quarantine(data)
        for n in range(3):
            content = b"%d %d" % (repair, n)
            copies[quarantine.keep("obj", [Piece(0, content, "slot", "why")])] = content
    assert len(copies) == 9
    assert all((data / copy).read_bytes() == content for copy, content in copies.items())
    assert sorted(path.name for path in (data / ".ingest/quarantine").iterdir()) == [
        "2026-11-21T15-02-11Z", "2026-11-21T15-02-11Z-2", "2026-11-21T15-02-11Z-3",
    ]  # fmt: skip


@pytest.mark.parametrize("most", [1 << 16, 50_000])  # that one write takes
@pytest.mark.parametrize("last", [b"", b"\0", bytes(4096), bytes(1 << 16), b"z", bytes((1 << 16) - 1) + b"z"])
def test_what_takes_the_place_of_a_file_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: bytes, most: int
) -> None:
    """Blocks of zeros are holes, at the end too, and a write may be short."""
    block = 1 << 16
    content = bytes(block) + b"x".ljust(block - 1, b"\0") + b"y" + bytes(2 * block) + last
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, part, at: real(fd, part[:most], at))
    with open(tmp_path / "file", "w+b") as file:
        write_sparse(file.fileno(), content)
        assert os.pread(file.fileno(), len(content) + 1, 0) == content


@pytest.mark.parametrize("leads", ["to a directory", "nowhere"])
def test_a_link_in_its_place_is_not_followed(data: Path, tmp_path: Path, leads: str) -> None:
    """What a repair puts aside must not get where others may read it, or throw it away."""
    outside = tmp_path / "outside"
    if leads == "to a directory":
        outside.mkdir()
    (data / ".ingest/quarantine").symlink_to(outside)
    path = make_file(data / "4")
    quarantine = Quarantine(data)
    for use in (
        lambda: quarantine.take("4", path, "unexpected", "why"),
        lambda: quarantine.keep_file("4", path, "unexpected", "why"),
        lambda: quarantine.keep("4", [Piece(0, b"x", "slot", "why")]),
        quarantine.staging,
    ):
        with pytest.raises(DiskError, match="symbolic link"):
            use()
    assert path.exists() and not (outside.exists() and any(outside.iterdir()))


@pytest.mark.parametrize("to", ["a file", "a directory", "nothing"])
def test_a_link_to_another_file_system_is_moved_itself(data: Path, elsewhere: Path, to: str) -> None:
    """What it leads to is somebody's: it is neither copied nor removed."""
    target = elsewhere / "theirs"
    if to == "a file":
        make_file(target)
    elif to == "a directory":
        make_directory(target)
    path = data / "4"
    path.symlink_to(target)
    copy, about = describe(data, Quarantine(data).take("4", path, "unexpected", "why"))
    assert not os.path.lexists(path)
    assert copy.is_symlink() and os.readlink(copy) == about["link_to"] == str(target)
    assert target.exists() == (to != "nothing")


@pytest.mark.parametrize("code", [errno.ENOTSUP, errno.EIO, errno.EACCES])
@pytest.mark.parametrize("call", ["listxattr", "getxattr"])
def test_only_a_file_system_without_attributes_has_none(
    data: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    """A disk that fails to say them must not be taken for one: the checksum of a chunk would be thrown away."""
    path = make_file(data / "4")

    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, fail)
    if code == errno.ENOTSUP:
        assert attributes_of(path) == {}
    else:
        with pytest.raises(OSError, match=os.strerror(code)):
            attributes_of(path)


@pytest.mark.parametrize("code", [errno.ENODATA, errno.EACCES, errno.EPERM, errno.ENOTSUP, errno.EIO])
@pytest.mark.parametrize("name", ["security.selinux", "trusted.overlay.opaque", "user.ingest.checksum"])
def test_attributes_that_are_not_for_us_stop_no_repair(
    data: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: int
) -> None:
    """Nor one that is removed meanwhile. Of our own it is an error that they can't be read."""
    path = make_file(data / "4")

    def asked(_: Path | int, which: str) -> bytes:
        if which == name:
            raise OSError(code, os.strerror(code))
        return b"1"

    monkeypatch.setattr(os, "listxattr", lambda _: ["user.one", name, "user.two"])
    monkeypatch.setattr(os, "getxattr", asked)
    if code == errno.ENODATA or (code != errno.EIO and not name.startswith("user.")):
        assert attributes_of(path) == {"user.one": "31", "user.two": "31"}
    elif code == errno.ENOTSUP:
        assert attributes_of(path) == {"user.one": "31"}  # the file system has none
    else:
        with pytest.raises(OSError, match=os.strerror(code)):
            attributes_of(path)


def test_what_lies_on_another_file_system_is_taken_or_named(data: Path, tmp_path: Path) -> None:
    """A log may lie on one. Of a directory there nothing is copied, and nothing is described."""
    if os.stat("/dev/shm").st_dev == os.stat(data).st_dev:
        pytest.skip("/dev/shm is on the same file system")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
        directory, link = Path(place) / "directory", Path(place) / "link"
        directory.mkdir()
        link.symlink_to("/nowhere/else")
        fifo = Path(place) / "fifo"
        os.mkfifo(fifo)
        quarantine = Quarantine(data)
        for other in (directory, fifo):
            with pytest.raises(DiskError, match="move it away"):
                quarantine.take("log.json", other, "log_json", "no file")
        assert directory.is_dir() and fifo.is_fifo() and not list(quarantine.directory.iterdir())
        copy = data / quarantine.take("log.json", link, "log_json", "a link")
        assert not os.path.lexists(link) and os.readlink(copy) == "/nowhere/else"


def test_a_mended_pack_takes_no_more_room_than_it_holds(tmp_path: Path) -> None:
    """Nearly empty packs are holes for the most part: a repair that fills them may fill the disk."""
    content = b"x" * 4096 + bytes(2 << 20) + b"y" * 4096
    replace_file(tmp_path / "4/obj", content, tmp_path / "staged")
    status = (tmp_path / "4/obj").stat()
    assert status.st_size == len(content) and (tmp_path / "4/obj").read_bytes() == content
    probe = tmp_path / "probe"
    with probe.open("wb") as file:
        file.truncate(len(content))
    if probe.stat().st_blocks:
        pytest.skip("this file system has no holes")
    assert status.st_blocks * 512 < len(content) // 4
