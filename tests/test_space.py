"""What counts as room, which limit an error has met, and what a start would be told of a disk that is short."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest
from committer_rig import CommitterRig
from test_store import FakeStat

from ingest import limits
from ingest.store import space as space_module
from ingest.store.space import (
    Room,
    Space,
    existing,
    explain,
    inodes_kept_free,
    shortage_at_start,
    takes_no_file,
)

MIB = 1 << 20
SEGMENT = limits.LOG_SEGMENT_SIZE


@pytest.mark.parametrize(
    ("code", "counted", "free", "none"),
    [
        (None, 100, 0, False),
        (errno.ENOSPC, 100, 5, True),
        (errno.EDQUOT, 100, 5, True),  # the quota's
        (errno.ENOSPC, 0, 0, True),
        (errno.EOPNOTSUPP, 100, 0, True),
        (errno.EOPNOTSUPP, 100, 1, False),
        (errno.EOPNOTSUPP, 0, 0, False),  # it counts none
        (errno.EISDIR, 100, 0, True),
        (errno.EACCES, 100, 1, False),
        (errno.EISDIR, None, 0, False),
    ],
)
def test_whether_an_inode_is_to_be_had(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: int | None,
    counted: int | None,
    free: int,
    none: bool,
) -> None:
    """Tried where that can be done, else asked: what is free for root alone is not for us."""
    real = os.open

    def open_(path: Path, flags: int, *rest: int) -> int:
        if code is not None:
            raise OSError(code, os.strerror(code))
        return real(path, flags, *rest)

    def statvfs(_: Path) -> FakeStat:
        if counted is None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return FakeStat(1 << 40, counted, free)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "statvfs", statvfs)
    before = len(os.listdir("/proc/self/fd"))
    assert takes_no_file(tmp_path) is none
    assert len(os.listdir("/proc/self/fd")) == before and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("short", [None, "bytes", "inodes", "both"])
def test_a_room_is_short_of_what_is_below_its_reserve(short: str | None) -> None:
    few_bytes, few_inodes = short in ("bytes", "both"), short in ("inodes", "both")
    room = Room(Path("/d"), 5 * MIB - few_bytes, 5 * MIB, 7 - few_inodes, 7, "--reserve")
    said = room.shortage or ""
    assert bool(said) == (short is not None)
    assert ("4 MiB are free, the reserve (--reserve) is 5 MiB" in said) == few_bytes
    assert ("6 inodes are free, the reserve is 7" in said) == (short == "inodes")


@pytest.mark.parametrize(
    ("lacks", "free", "counted", "short"),
    [
        (0, 0, 100, False),
        (2 * SEGMENT, 2, 100, False),
        (2 * SEGMENT, 1, 100, True),
        (2 * SEGMENT, 0, 0, False),  # it has as many as it has space for
    ],
)
def test_a_log_on_a_disk_of_its_own_needs_an_inode_for_each_segment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacks: int, free: int, counted: int, short: bool
) -> None:
    wal, real = tmp_path / "wal", os.stat
    other = os.stat_result((0, 0, 99, *[0] * 7))
    monkeypatch.setattr(os, "fstatvfs", lambda fd: FakeStat(1 << 40))
    monkeypatch.setattr(os, "statvfs", lambda path: FakeStat(1 << 40, counted, free))
    monkeypatch.setattr(os, "stat", lambda path, **named: other if path == wal else real(path, **named))
    fd = os.open(tmp_path, os.O_RDONLY)
    said = Space(tmp_path, fd, wal, 1 << 30).check(1 << 40, lacks)
    os.close(fd)
    assert bool(said) == short
    assert said is None or said.startswith(f"the file system of {wal}: 1 inodes are free")


@pytest.mark.parametrize("wal", ["store/.ingest/wal", "wal", "not/yet/there"])
@pytest.mark.parametrize(("there", "size"), [(0, 0), (0, 8), (1, 8), (3, 8), (8, 8), (9, 8), (0, 1)])
def test_a_start_is_told_what_its_log_may_still_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, wal: str, there: int, size: int
) -> None:
    """Of a store that need not be there yet: what its segments have taken is not asked for again."""
    asked: list[tuple[int, int]] = []
    spaces: list[Space] = []

    def check(space: Space, growth: int, lacks: int) -> str:
        spaces.append(space)
        asked.append((growth, lacks))
        return "short"

    monkeypatch.setattr(Space, "check", check)
    data, directory = tmp_path / "store", tmp_path / wal
    for i in range(there):
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"{i:04d}.log").touch()
    before = len(os.listdir("/proc/self/fd"))
    assert shortage_at_start(data, directory, layout, 5, size * SEGMENT) == "short"
    assert len(os.listdir("/proc/self/fd")) == before
    least = limits.LOG_SIZE_MIN // SEGMENT
    assert asked == [(max(0, size - there) * SEGMENT, max(0, least - there) * SEGMENT)]
    (space,) = spaces
    inodes = limits.RESERVE_INODES_TREE if layout == "tree" else limits.RESERVE_INODES
    assert (space.data_dir, space.reserve, space.inodes_reserve) == (data, 5, inodes)
    assert space.wal_dir == existing(directory)


@pytest.mark.parametrize("named", [None, "/its/file"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO])
def test_an_error_says_which_file_and_which_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, named: str | None
) -> None:
    """ "No space" may be bytes or inodes; a file may be too large for the process alone."""
    monkeypatch.setattr(os, "statvfs", lambda path: FakeStat(3 << 12, 100, 5))
    monkeypatch.setattr(resource, "getrlimit", lambda which: (4321, 9999))
    said = explain(OSError(code, os.strerror(code), named), tmp_path)
    more = {
        errno.ENOSPC: " (12 KiB and 5 inodes are free)",
        errno.EFBIG: " (the limit of a file's size, ulimit -f, is 4321 bytes)",
    }
    assert said == f"{named or tmp_path}: {os.strerror(code)}{more.get(code, '')}"


def test_a_disk_that_cannot_be_asked_still_has_its_error_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def statvfs(_: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "statvfs", statvfs)
    said = explain(OSError(errno.ENOSPC, "No space left on device"), tmp_path)
    assert said == f"{tmp_path}: No space left on device"


def test_the_nearest_directory_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for path, found in (("a", "a"), ("a/b", "a"), ("a/b/c", "a"), ("b/c", "")):
        assert space_module.existing(tmp_path / path) == tmp_path / found
    assert existing(Path("/")) == Path("/")


def test_a_start_and_a_server_keep_the_same_inodes_free(tmp_path: Path, layout: str) -> None:
    """And the metrics name that number: a check, an alarm and a refusal speak of one bound."""
    with CommitterRig(tmp_path, layout=layout) as rig:
        assert rig.packs.inodes_reserve == inodes_kept_free(layout)
    assert inodes_kept_free("pack") < inodes_kept_free("tree")


@pytest.mark.parametrize("reserve", [0, 1, 5 * SEGMENT, 1 << 40])
@pytest.mark.parametrize("other_disk", [False, True])
def test_the_reserve_of_bytes_is_none_of_inodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other_disk: bool, reserve: int
) -> None:
    """Where the packs lie so many inodes are kept as the layout needs; the log's disk needs one for each segment."""
    wal, real = tmp_path / "wal", os.stat
    wal.mkdir()
    other = os.stat_result((0, 0, 99, *[0] * 7))
    monkeypatch.setattr(os, "fstatvfs", lambda fd: FakeStat(1 << 40))
    monkeypatch.setattr(os, "statvfs", lambda path: FakeStat(1 << 40))
    if other_disk:
        monkeypatch.setattr(os, "stat", lambda path, **named: other if path == wal else real(path, **named))
    fd = os.open(tmp_path, os.O_RDONLY)
    rooms = Space(tmp_path, fd, wal, reserve, 77).rooms(7 * SEGMENT, 2 * SEGMENT)
    os.close(fd)
    assert (rooms[0].reserve_bytes, rooms[0].reserve_inodes) == (reserve + 7 * SEGMENT * (not other_disk), 77)
    least = min(reserve, 2 * SEGMENT)
    assert [(room.reserve_bytes, room.reserve_inodes) for room in rooms[1:]] == (
        [(least, least // SEGMENT)] if other_disk else []
    )
