"""`ingest export`: everything arrives, in either layout, and a half-made copy is never taken for a store."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from node_rig import running_node
from stores import Small, everything_of, read_store, slot_offset, template
from test_cli import complains, run

from faults.damaged_store import LONG_PACK, NEW_PACKS, PACKS, SMALL_SEGMENT, SPAN, Builder
from ingest import sharding, ticket
from ingest.errors import ConfigError, KeyFileError, StoreLockedError
from ingest.limits import DATA_SIZE
from ingest.status import Status
from ingest.store.check import export as export_module
from ingest.store.check.chunk_file import read_tree_file
from ingest.store.check.export import export
from ingest.store.check.fsck import fsck
from ingest.store.layouts import tree_file
from ingest.store.store import Store


@pytest.fixture(params=["clean", "killed", "cut"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Small:
    made = template(tmp_path_factory.mktemp("exported"), request.param)
    made.copy(tmp_path / "store")
    return Small(tmp_path / "store", made)


def needs_attributes(path: Path) -> None:
    try:
        tree_file.check_file_system(path)
    except ConfigError as error:
        pytest.skip(str(error))


def test_to_packs(store, tmp_path):
    with everything_of(store.path):
        result = store.export(tmp_path / "new")
    assert result.problems == []
    assert result.chunks == sum(data is not None for data in store.truth.values())
    assert result.deleted == sum(data is None for data in store.truth.values())
    read = read_store(tmp_path / "new", store.keys)
    assert {index: read[index] for index in store.truth} == store.expected()
    old, new = (json.loads((d / ".ingest/store.json").read_text()) for d in (store.path, tmp_path / "new"))
    assert new["keys"] == old["keys"]
    assert new["store_id"] != old["store_id"] and new["log_id"] != old["log_id"]
    assert fsck(tmp_path / "new").clean


def test_to_a_tree_and_back(store, tmp_path):
    needs_attributes(tmp_path)
    store.export(tmp_path / "tree", "tree")
    for index, data in store.truth.items():
        file = read_tree_file(tmp_path / "tree" / ticket.tree_path(ticket.format(index)))
        assert (file.data, file.deleted) == ((b"", True) if data is None else (data, False))
    assert fsck(tmp_path / "tree").clean
    back = export(tmp_path / "tree", tmp_path / "back", "pack")
    assert back.problems == []
    read = read_store(tmp_path / "back", store.keys)
    assert {index: read[index] for index in store.truth} == store.expected()


STORED, BURIED, NEVER_STORED, BOTH, IN_THE_LOG, EMPTY = (*PACKS, LONG_PACK, *NEW_PACKS[:2])
EDGES = (0, 7, SPAN + 11)  # slots: the first and the last one that is read, and one between


def make_each_kind(path: Path, layout: str) -> Builder:
    """A store with a pack of each kind, also of those that hold nothing to read."""
    builder = Builder(path, layout, random.Random(1), SMALL_SEGMENT)
    for pack in (STORED, BURIED, BOTH):
        builder.put([sharding.slot_ticket(pack, slot) for slot in EDGES])
    for pack in (BURIED, NEVER_STORED):
        for slot in EDGES:
            builder.delete(sharding.slot_ticket(pack, slot), 1)
    builder.delete(sharding.slot_ticket(BOTH, 7), 2)
    builder.settle()
    builder.append(b"", [])
    builder.delete(sharding.slot_ticket(IN_THE_LOG, SPAN), 12, apply=False)
    builder.close()
    if layout == "pack":
        empty = path / sharding.pack_path(
            EMPTY
        )  # as a committer leaves it that dies before the log has its frames
        empty.parent.mkdir(parents=True)
        empty.touch()
    return builder


@pytest.mark.parametrize("target", ["pack", "tree"])
def test_each_kind_of_pack_arrives(tmp_path, layout, target):
    """Those of which only tombstones are left too: else who puts a ticket again that was deleted is not told so."""
    needs_attributes(tmp_path)
    made = make_each_kind(tmp_path / "old", layout)
    result = export(tmp_path / "old", tmp_path / "new", target, segment_size=SMALL_SEGMENT)
    assert (result.chunks, result.deleted, result.problems) == (5, 3 + 3 + 2 + 12, [])
    found = {
        i: at for i, at in read_store(tmp_path / "new", made.keys).items() if at[0] is not Status.MISSING
    }
    assert found == {
        index: (Status.DELETED, b"") if data is None else (Status.SAVED, data)
        for index, data in made.truth.items()
    }
    assert fsck(tmp_path / "new").clean
    again = export(tmp_path / "new", tmp_path / "newer", target)
    assert (again.chunks, again.deleted, again.bytes) == (result.chunks, result.deleted, result.bytes)


def test_the_new_log_says_where_its_store_is(store, tmp_path, monkeypatch):
    """Also when that was given as a path from here: who compares it may stand elsewhere."""
    monkeypatch.chdir(tmp_path)
    store.export(Path("new"))
    made_for = json.loads((tmp_path / "new/.ingest/wal/log.json").read_text())["made_for"]
    assert made_for == str((tmp_path / "new").resolve())


def test_a_bad_slot_is_named_and_left_out(store, tmp_path):
    logged = {i for b in store.template.batches for some in b.frames.values() for i in some}
    index = next(i for i in store.slots() if i not in logged)
    store.patch("4/obj", slot_offset(index) + 50, b"decay")
    (problem,) = store.export(tmp_path / "new").problems
    assert f"ticket {ticket.format(index)}" in problem
    read = read_store(tmp_path / "new", store.keys)
    assert read.pop(index)[0] is Status.MISSING
    assert {i: read[i] for i in store.truth if i != index} == {
        i: expected for i, expected in store.expected().items() if i != index
    }


def test_a_frame_that_is_only_in_the_log_is_a_copy(store, tmp_path):
    index = next(i for b in reversed(store.template.batches) for some in b.frames.values() for i in some)
    assert read_store_after_export(store, tmp_path)[index] == store.expected()[index]


def read_store_after_export(store: Small, tmp_path: Path) -> dict[int, tuple[Status, bytes]]:
    store.export(tmp_path / "new")
    return read_store(tmp_path / "new", store.keys)


def test_a_corrupt_log_is_for_fsck_first(store, tmp_path):
    batch = store.template.batches[0]
    store.patch(batch.segment, 20, b"decay")
    with pytest.raises(ConfigError, match="ingest fsck"):
        store.export(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_directory_with_something_in_it(store, tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "mine").write_text("hello")
    with everything_of(tmp_path / "new"), pytest.raises(ConfigError, match="not empty"):
        store.export(tmp_path / "new")


def test_an_export_that_was_cut_off_is_no_store(store, tmp_path, monkeypatch):
    class Cut(Exception):
        pass

    def cut(*_: object) -> None:
        raise Cut

    monkeypatch.setattr(export_module, "sync_everything", cut)
    with pytest.raises(Cut):
        store.export(tmp_path / "new")
    with pytest.raises(ConfigError, match="cut off"):
        Store.open(tmp_path / "new")
    with pytest.raises(ConfigError, match="remove it"):
        store.export(tmp_path / "new")


def test_the_key_file_is_needed_and_one_that_lies_elsewhere_stays_there(store, tmp_path):
    elsewhere = tmp_path / "key"
    os.rename(store.path / ".ingest/key", elsewhere)
    with pytest.raises(KeyFileError):
        store.export(tmp_path / "new")
    result = store.export(tmp_path / "new", key_file=elsewhere)
    assert not result.key_copied and not (tmp_path / "new/.ingest/key").exists()


class TestCommand:
    def test_a_server_s_store_and_a_server_on_the_copy(self, tmp_path):
        with running_node(tmp_path / "data", "--workers=1", "--reserve=0") as rig:
            with rig.connect() as connection:
                connection.put(range(36, 336))
                connection.delete(40, 3)
            busy = run("export", str(tmp_path / "data"), str(tmp_path / "new"), "--layout", "pack")
            complains(busy, 75, "stop it first")
            rig.kill_all()
        result = run("export", str(tmp_path / "data"), str(tmp_path / "new"), "--layout", "pack", "--json")
        found = json.loads(result.stdout)
        assert (result.returncode, found["chunks"], found["deleted"]) == (0, 297, 3)
        assert found["bytes"] == 297 * DATA_SIZE and found["key_copied"]
        with running_node(tmp_path / "new", "--workers=1", "--reserve=0") as rig:
            answers = rig.get(36, 300)
            rig.stop()
        assert [status for status, _ in answers[3:8]] == [Status.SAVED] + [Status.DELETED] * 3 + [
            Status.SAVED
        ]
        again = run("export", str(tmp_path / "data"), str(tmp_path / "new"), "--layout", "pack")
        complains(again, 78, "not empty")

    def test_usage(self, tmp_path):
        complains(run("export", str(tmp_path), str(tmp_path / "x"), "--layout", "log"), 2, "--layout")
        complains(run("export", str(tmp_path), str(tmp_path / "x"), "--layout", "pack"), 78, "not a store")


def test_to_a_file_system_that_was_just_made(store, tmp_path):
    target = tmp_path / "mount"
    (target / "lost+found").mkdir(parents=True)
    found = target / "lost+found" / "#12"
    found.touch()
    with pytest.raises(ConfigError, match=r"not empty \('lost\+found' is there\)"):
        store.export(target)
    found.unlink()
    assert store.export(target).problems == []
    Store.open(target).close()


@pytest.mark.parametrize("target", ["pack", "tree"])
def test_nobody_else_gets_at_either_store_while_it_is_copied(store, tmp_path, target):
    """From its first pack to its last: neither a server, nor a repair, nor a second copy into the same place."""
    needs_attributes(tmp_path)
    new, size, tried = tmp_path / "new", store.template.segment_size, []

    def meanwhile(_: str, done: int, __: int) -> None:
        for path, layout in ((store.path, "pack"), (new, target)):
            with pytest.raises(StoreLockedError):
                Store.open(path, layout=layout)
            with pytest.raises(StoreLockedError):
                fsck(path, repair=True, segment_size=size)
        with pytest.raises(StoreLockedError):
            export(store.path, tmp_path / "newer", target, segment_size=size)
        tried.append(done)

    export(store.path, new, target, segment_size=size, progress=meanwhile)
    assert len(tried) > 2
    for path, layout in ((store.path, "pack"), (new, target)):
        Store.open(path, layout=layout).close()


def test_what_the_copy_is_synced_with_was_there_before_its_first_byte(store, tmp_path, monkeypatch):
    """A descriptor hears of the write-backs that failed since it was opened: of all that is copied it must hear."""
    order: list[str] = []
    real_open, real_sync = os.open, export_module.sync_everything
    fds: dict[int, int] = {}

    def note_open(path: os.PathLike[str] | str, flags: int, *rest: Any, **named: Any) -> int:
        fd = real_open(path, flags, *rest, **named)
        if tmp_path / "new" in (Path(path), *Path(path).parents):
            order.append("write" if flags & os.O_CREAT and Path(path).name != "lock" else "open")
            fds[fd] = len(order)
        return fd

    def note_sync(path: Path, fd: int) -> Any:
        order.append("sync")
        assert "write" in order and fds[fd] <= order.index("write")
        assert os.path.samestat(os.fstat(fd), path.stat())
        return real_sync(path, fd)

    monkeypatch.setattr(os, "open", note_open)
    monkeypatch.setattr(export_module, "sync_everything", note_sync)
    store.export(tmp_path / "new")
    assert order.count("sync") == 1


@pytest.mark.parametrize("kind", ["file", "link that leads nowhere", "link to a file"])
def test_what_is_no_directory_is_no_target(store, tmp_path, kind):
    (tmp_path / "mine").write_text("hello")
    target = tmp_path / "new"
    if kind == "file":
        target.write_text("hello")
    else:
        target.symlink_to(tmp_path / ("mine" if "file" in kind else "none"))
    with everything_of(tmp_path), pytest.raises(ConfigError, match="is no directory"):
        store.export(target)


@pytest.mark.parametrize("decay", [(50, b"decay"), (0, bytes(8)), (0, bytes(16)), (0, bytes(32))])
@pytest.mark.parametrize("bad", [(), (3,), (3, 40), (0, SPAN + 11)])
def test_under_a_lost_header_what_is_no_frame_is_named_and_what_was_free_is_not(tmp_path, bad, decay):
    """Nothing says which slots were in use: those that hold something."""
    builder = Builder(tmp_path / "store", "pack", random.Random(1), SMALL_SEGMENT)
    stored = [sharding.slot_ticket(BURIED, slot) for slot in (0, 3, 40, SPAN + 11)]
    builder.put(stored)
    builder.put([sharding.slot_ticket(STORED, 1)])
    builder.settle()
    builder.append(b"", [])
    builder.close()
    for path in (tmp_path / "store/.ingest/wal").glob("*.log"):
        path.unlink()  # else it has copies
    path = sharding.pack_path(BURIED)
    store = Small(tmp_path / "store", template(tmp_path, "clean"))
    store.patch(path, 100, b"\xff" * 8)
    lost = [sharding.slot_ticket(BURIED, slot) for slot in bad]
    for index in lost:
        store.patch(path, slot_offset(index) + decay[0], decay[1])
    result = export(store.path, tmp_path / "new", "pack")
    header, *slots = result.problems
    assert header.startswith(f"{path}: its header is lost")
    assert [line.rpartition(", ")[0] for line in slots] == [
        f"{path}, slot {sharding.ticket_slot(index)}, ticket {ticket.format(index)}: no valid frame"
        for index in lost
    ]
    read = read_store(tmp_path / "new", builder.keys)
    for index in stored:
        assert read[index][0] is (Status.MISSING if index in lost else Status.SAVED)


@pytest.mark.parametrize("settled", [False, True])
def test_under_a_lost_header_what_a_note_names_is_named(tmp_path, settled):
    """Nothing lies there any more, and the log says that it did."""
    builder = Builder(tmp_path / "store", "pack", random.Random(1), SMALL_SEGMENT)
    first = sharding.slot_ticket(BURIED, 5)
    builder.note(first, 2)
    if settled:
        builder.settle()
    builder.append(b"", [])
    builder.close()
    path = tmp_path / "store" / sharding.pack_path(BURIED)
    path.write_bytes(bytes(path.stat().st_size))
    _, *slots = export(tmp_path / "store", tmp_path / "new", "pack", segment_size=SMALL_SEGMENT).problems
    assert [line.split()[4] for line in slots] == [f"{ticket.format(first + i)}:" for i in range(2)]


def test_a_header_that_never_reached_the_disk_is_no_loss(tmp_path):
    """The log has all that lies in the pack."""
    builder = Builder(tmp_path / "store", "pack", random.Random(1), SMALL_SEGMENT)
    builder.put([sharding.slot_ticket(BURIED, slot) for slot in (3, 40)])
    builder.close()
    with (tmp_path / "store" / sharding.pack_path(BURIED)).open("r+b") as file:
        file.write(bytes(512))
    result = export(tmp_path / "store", tmp_path / "new", "pack", segment_size=SMALL_SEGMENT)
    assert (result.problems, result.chunks, result.deleted) == ([], 2, 0)
    read = read_store(tmp_path / "new", builder.keys)
    assert {index: read[index][1] for index in builder.truth} == builder.truth
