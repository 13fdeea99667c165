"""Copies of a catalog that is being changed."""

import os
import shutil
from pathlib import Path

import apsw
import pytest
from small_disk import fill as fill_disk
from small_disk import small_disk

from ingest.catalog import backup as module
from ingest.catalog.backup import backup
from ingest.catalog.catalog_changes import Catalog
from ingest.catalog.extent import Extent
from ingest.catalog.version import VersionState
from ingest.errors import DiskError, NoSpaceError, UsageError

DIGEST = bytes(32)


def fill(catalog: Catalog, owner: int, names: range) -> None:
    with catalog.change():
        for i in names:
            lease = catalog.lease(owner, 2)
            catalog.store(owner, "store", f"{i:06}", 1, DIGEST, [Extent(lease.first, 2)])


@pytest.fixture
def source(tmp_path):
    with Catalog(tmp_path / "catalog.db") as catalog:
        with catalog.change():
            owner = catalog.enter("x")
        fill(catalog, owner, range(1000))
        yield tmp_path / "catalog.db"


def names(path) -> list[str]:
    with Catalog(path) as catalog:
        return [entry.name for entry in catalog.page("store")]


def test_is_the_catalog(source, tmp_path):
    size = backup(source, tmp_path / "copy")
    assert size == (tmp_path / "copy").stat().st_size
    assert (tmp_path / "copy").stat().st_mode & 0o777 == 0o600
    assert names(tmp_path / "copy") == names(source)


def test_is_of_one_moment_while_others_change_the_catalog(source, tmp_path, monkeypatch):
    """Every step of the copy, of one page here, is followed by a change."""
    monkeypatch.setattr(module, "STEP_PAGES", 1)
    with Catalog(source) as catalog:
        with catalog.change():
            owner = catalog.enter("y")
        steps = []

        def change(_, done, total):
            steps.append((done, total))
            with catalog.change():
                catalog.delete("store", f"{len(steps):06}")
                fill_in = catalog.lease(owner, 2)
                catalog.store(owner, "store", f"z{len(steps)}", 1, DIGEST, [fill_in])

        expected = names(source)
        backup(source, tmp_path / "copy", change)
        assert len(steps) > 20
        assert names(tmp_path / "copy") == expected != names(source)


def test_what_was_under_way_is_no_garbage_when_the_copy_is_put_back(source, tmp_path):
    """It may have been finished after the copy was made: its chunks are then objects that somebody was told of."""
    with Catalog(source) as catalog, catalog.change():
        owner = catalog.enter("y")
        catalog.lease(owner, 100)
        upload = catalog.begin(owner, "store", "large")
        catalog.extend(owner, upload, 100)
        reader = catalog.enter("z")
        catalog.pin(reader, catalog.find("store", "000001").number)
    backup(source, tmp_path / "copy")
    with Catalog(tmp_path / "copy", uptime=lambda: 1e12) as copy:
        with copy.change():
            assert copy.expire() == 0
        assert copy.garbage(10) == []
        (failed,) = copy.history("store", "large")[:1]
        assert (failed.state, failed.reason) == (
            VersionState.FAILED,
            "was under way when the catalog was copied",
        )
    with Catalog(source) as catalog, catalog.change():
        catalog.extend(owner, upload, 1)  # the live one is as it was


def test_has_all_rows_but_those_of_processes(source, tmp_path):
    """Each table as it is, what foreign clients have for good too; of uploads under way only that they were."""
    with Catalog(source) as catalog, catalog.change():
        owner, reader = catalog.enter("y"), catalog.enter("z")
        catalog.lease(None, 7, "a script")
        catalog.lease(owner, 100)
        uploads = [catalog.begin(owner, "store", name) for name in ("large", "broken", "000002")]
        for upload in uploads:
            catalog.extend(owner, upload, 3)
        catalog.fail(owner, uploads[1], "broke")
        catalog.delete("store", "000001")
        catalog.pin(reader, catalog.find("store", "000003").number)
        catalog.adopt(bytes(range(16)))
    backup(source, tmp_path / "copy")
    found = []
    for path in (source, tmp_path / "copy"):
        db = apsw.Connection(str(path))
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        rows = {name: db.execute(f"SELECT * FROM {name}").fetchall() for name in tables}
        columns = [column[1] for column in db.execute("PRAGMA table_info(versions)")]
        rows["versions"] = [dict(zip(columns, row, strict=True)) for row in rows["versions"]]
        rows["schema"] = [(sql,) for (sql,) in db.execute("SELECT sql FROM sqlite_master")]
        rows["format"] = [(db.pragma("application_id"), db.pragma("user_version"))]
        found.append(rows)
        db.close()
    expected, copied = found
    assert expected["owners"] and expected["pins"] and len(expected["leases"]) == 2
    expected["owners"] = expected["pins"] = []
    expected["leases"] = [row for row in expected["leases"] if row[2] is None]
    for row in expected["versions"]:
        if row["number"] in (uploads[0], uploads[2]):
            ended = {"state": 2, "owner": None, "ended": row["created"]}
            row |= ended | {"reason": "was under way when the catalog was copied"}
    assert copied == expected


def test_replaces_one_before_whole_or_not_at_all(source, tmp_path):
    target = tmp_path / "copy"
    backup(source, target)
    before = target.read_bytes()

    class Broken(Exception):
        pass

    def fail(*_):
        raise Broken

    with pytest.raises(Broken):
        backup(source, target, fail)
    assert target.read_bytes() == before
    assert not (tmp_path / "copy.new").exists()
    with Catalog(source) as catalog, catalog.change():
        catalog.delete("store", "000000")
    backup(source, target)
    assert names(target) == names(source)


def spilled(path) -> None:
    """A file that SQLite was about to change, and its journal, which undoes that: what a death leaves of them."""
    db = apsw.Connection(str(path.with_name("dying")))
    db.execute("CREATE TABLE t(a); INSERT INTO t VALUES (randomblob(100000)); PRAGMA cache_size = 1")
    db.execute("BEGIN; UPDATE t SET a = randomblob(200000)")
    for side in ("", "-journal"):
        assert path.with_name(f"dying{side}").stat().st_size > 0
        shutil.copy(path.with_name(f"dying{side}"), f"{path}{side}")
    db.close()
    path.with_name("dying").unlink()


def half(path) -> None:
    path.write_bytes(b"SQLite format 3\0" + bytes(5000))


@pytest.mark.parametrize("left", [Path.touch, half, spilled])
@pytest.mark.parametrize("before", [False, True])
def test_a_copy_that_died_is_no_hindrance(source, tmp_path, left, before):
    """Wherever that was: the next one is whole, and nothing of it stays."""
    if before:
        backup(source, tmp_path / "copy")
    left(tmp_path / "copy.new")
    backup(source, tmp_path / "copy")
    assert sorted(path.name for path in tmp_path.glob("copy*")) == ["copy"]
    assert names(tmp_path / "copy") == names(source)


@pytest.mark.parametrize("kept", ["-wal", "-wal and -shm"])
@pytest.mark.parametrize("gone", [False, True])
def test_a_copy_that_somebody_changed_and_left_is_replaced_whole(source, tmp_path, kept, gone):
    """As a gateway of a standby that was killed leaves it: its log would be taken for that of the new copy."""
    target = tmp_path / "copy"
    backup(source, tmp_path / "used")
    with Catalog(tmp_path / "used") as used:
        with used.change():
            owner = used.enter("standby")
        fill(used, owner, range(2000, 2100))
        for side in ("", *kept.split(" and ")):
            shutil.copy(f"{used._db.path}{side}", f"{target}{side}")
    with Catalog(source) as catalog, catalog.change():
        catalog.delete("store", "000000")
    if gone:
        target.unlink()
    backup(source, target)
    assert names(target) == names(source)


@pytest.mark.parametrize(
    ("gone", "beside"),
    [
        *((gone, beside) for gone in (False, True) for beside in (set(), {"-wal"}, {"-wal", "-shm"})),
        (True, {"-journal"}),
    ],
)
def test_what_made_way_is_gone_for_good_before_the_copy_comes(source, tmp_path, monkeypatch, beside, gone):
    """After a power cut too, whichever of the names reached the disk: a log would be taken for that of the copy."""
    target = tmp_path / "copies" / "copy"
    target.parent.mkdir()
    backup(source, target)
    with Catalog(
        target
    ) as used:  # SQLite takes its files away at the end of this: those are of one that was killed
        with used.change():
            used.enter("standby")
        for side in beside - {"-journal"}:
            shutil.copy(f"{target}{side}", tmp_path / f"kept{side}")
    for side in beside:
        kept = tmp_path / f"kept{side}"
        kept.touch()
        shutil.copy(kept, f"{target}{side}")
    if gone:
        target.unlink()
    durable = {path.name for path in target.parent.iterdir()}
    steps: list[str] = []
    synced: list[bytes] = []  # of the copy
    fsync, rename = os.fsync, os.rename

    def noted_fsync(fd: int) -> None:
        fsync(fd)
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        if path == target.parent:
            durable.clear()
            durable.update(one.name for one in path.iterdir())
        else:
            synced.append(path.read_bytes())
        steps.append(path.name)

    def noted_rename(before: Path, after: Path) -> None:
        assert durable <= {"copy.new", "copy"}, "a power cut may leave it beside the copy"
        assert synced[-1:] == [before.read_bytes()], "a power cut may leave a part of it under its name"
        rename(before, after)
        steps.append("renamed")

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "rename", noted_rename)
    backup(source, target)
    assert steps[-2:] == ["renamed", "copies"] and "copy.new" in steps[:-2]
    assert durable == {"copy"}


def test_a_copy_that_somebody_has_open_is_not_replaced(source, tmp_path):
    target = tmp_path / "copy"
    backup(source, target)
    with Catalog(source) as catalog, catalog.change():
        catalog.delete("store", "000000")
    with Catalog(target) as used:
        with pytest.raises(UsageError, match="has it open"):
            backup(source, target)
        assert "000000" in [entry.name for entry in used.page("store")]
    assert not (tmp_path / "copy.new").exists()
    backup(source, target)
    assert names(target) == names(source)


def test_what_is_in_the_way_of_a_copy_is_named(source, tmp_path):
    """No advice for a catalog that is lost: it is well."""
    target = tmp_path / "copy"
    target.write_bytes(b"no database" * 100)
    Path(f"{target}-wal").write_bytes(b"of what?")
    backup(source, target)  # as without that
    assert names(target) == names(source) and [path.name for path in tmp_path.glob("copy*")] == ["copy"]
    Path(f"{target}-journal").write_bytes(bytes(512))  # of one that undid nothing: SQLite leaves it
    with pytest.raises(UsageError, match="has it open, or has left copy-journal there"):
        backup(source, target)
    (tmp_path / "directory").mkdir()
    with pytest.raises(UsageError, match="directory is a directory"):
        backup(source, tmp_path / "directory")
    assert not list(tmp_path.glob("*.new"))


def test_what_can_not_be_copied(source, tmp_path):
    with pytest.raises(UsageError):
        backup(tmp_path / "missing", tmp_path / "copy")
    with pytest.raises(UsageError):
        backup(source, source)
    os.symlink(source, tmp_path / "link")
    with pytest.raises(UsageError):
        backup(source, tmp_path / "link")
    with pytest.raises(DiskError):
        backup(source, tmp_path / "missing" / "copy")


@pytest.mark.parametrize("broken", ["not", "its progress", "its target", "its rename"])
def test_nothing_of_a_copy_stays_open(source, tmp_path, monkeypatch, broken):
    """A gateway makes one each night: neither a descriptor nor a reader, who would keep SQLite's log from beginning anew."""
    target = tmp_path / "copy"
    backup(source, target)

    class Broken(Exception):
        pass

    def fail(*_):
        raise Broken if broken == "its progress" else OSError(5, "a bad disk")

    if broken == "its rename":
        monkeypatch.setattr(module, "rename_durably", fail)
    elif broken == "its target":
        Path(f"{target}-journal").write_bytes(bytes(512))
    before = sorted(os.listdir("/proc/self/fd"))
    try:
        backup(source, target, *([fail] if broken == "its progress" else []))
        assert broken == "not"
    except (Broken, DiskError, UsageError):
        assert broken != "not"
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_a_full_disk_is_said_in_words_of_ours(source, tmp_path):
    with small_disk(tmp_path, "full", 16) as disk:
        fill_disk(disk, leave=64 << 10)
        with pytest.raises(NoSpaceError, match=r"copy.new: the disk is full( \(\D*full\))?$"):
            backup(source, disk / "copy")
        assert not list(disk.glob("copy*"))
