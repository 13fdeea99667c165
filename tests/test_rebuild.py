"""A catalog that is lost, and made again from what a real server stored."""

import json
import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3
from node_rig import NodeRig, running_node

from faults.damaged_store import SMALL_SEGMENT, Builder
from ingest import Client, sharding, ticket
from ingest.catalog.catalog_changes import Catalog
from ingest.catalog.catalog_socket import catalog_path
from ingest.catalog.database import make_file
from ingest.catalog.extent import FIRST, Extent, chunks_needed, part, total
from ingest.catalog.version import Version, VersionState, order_at
from ingest.errors import StoreLockedError, UsageError
from ingest.limits import DATA_SIZE, FRAME_SIZE, PACK_SLOTS
from ingest.objects import binding, manifest
from ingest.objects import rebuild as rebuilder
from ingest.objects.manifest import Manifest
from ingest.objects.rebuild import STRAY_GAP_TICKETS, rebuild
from ingest.runtime.key_file import read_keys
from ingest.store.check.pack_check import Resolved


class Uploads:
    """Stores objects through the ports of a server, and says so in its catalog."""

    def __init__(self, node: NodeRig) -> None:
        path = node.data_dir / ".ingest" / "key"
        self.key = manifest.manifest_key(read_keys(path)[0])
        self.client = Client.connect(node.put_address, node.get_address, path)
        self.catalog = Catalog(catalog_path(node.data_dir))
        with self.catalog.change():
            self.owner = self.catalog.enter("test", 1e6)

    def lease(self, count: int) -> Extent:
        with self.catalog.change():
            return self.catalog.lease(self.owner, count)

    def put(self, extents: list[Extent], data: bytes) -> None:
        data = data.ljust(total(extents) * DATA_SIZE, b"\0")
        for one in extents:
            self.client.put_range(ticket.format(one.first), data[: one.count * DATA_SIZE])
            data = data[one.count * DATA_SIZE :]

    def store(
        self,
        name: str,
        data: bytes,
        extents: list[Extent] | None = None,
        commit: bool = True,
        number: int | None = None,
        created: float | None = None,
        order: int | None = None,
    ) -> Version | None:
        """``extents``: for its bytes and the manifest behind them; of leases. ``number``: one that was reserved; ``created``
        grows with the number, unless it is given, and so does ``order``."""
        chunks = chunks_needed(len(data))
        extents = extents or [self.lease(chunks + 1)]
        if number is None:
            with self.catalog.change():
                (number,) = self.catalog.reserve(1)
        one = Manifest(
            version=number,
            namespace="store",
            name=name,
            size=len(data),
            digest=blake3(data).hexdigest(),
            created=created or 1e9 + number,
            order=order_at(created or 1e9 + number) if order is None else order,
            headers={"x-name": name.encode().hex()},
            extents=[(ticket.format(place.first), place.count) for place in extents],
        )
        self.put(list(part(extents, 0, chunks)), data)
        rest = list(part(extents, chunks, total(extents) - chunks))
        assert len(rest) == 1
        self.put(rest, manifest.serialize(one, rest[0], self.key))
        if not commit:
            return None
        digest = bytes.fromhex(one.digest)
        with self.catalog.change():
            return self.catalog.store(
                self.owner, "store", name, len(data), digest, extents, one.headers, number=number
            )

    def listing(self) -> dict[str, tuple]:
        return {version.name: described(version) for version in self.catalog.versions(VersionState.OK)}


def described(version: Version) -> tuple:
    return version.number, version.size, version.digest, version.extents, version.headers


def indices(*extents: Extent) -> list[int]:
    return sorted(index for one in extents for index in range(one.first, one.stop))


def lose(data_dir: Path) -> None:
    for path in data_dir.glob(".ingest/catalog.db*"):
        path.unlink()


def scattered(uploads: Uploads) -> list[Extent]:
    """In so many places that its manifest has several chunks, and lies in two packs."""
    lease = uploads.lease(1296)
    places = [Extent(lease.first + 2 * i, 1) for i in range(200)]
    in_pack = (lease.first - FIRST) % 1296
    border = lease.first + 1296 - in_pack
    uploads.lease(8)
    return [*places, Extent(border - 1, 3)]


def collected_next(data_dir: Path) -> list[int]:
    """The tickets of what the collector would delete."""
    with Catalog(catalog_path(data_dir)) as catalog:
        return indices(*(item.extent for item in catalog.garbage(1000)))


def test_all_objects_are_there_again(tmp_path, layout):
    with running_node(tmp_path / "data", f"--layout={layout}") as node:
        uploads = Uploads(node)
        uploads.store("first", b"x" * 10_000)
        uploads.store("empty", b"")
        uploads.store("any\0name/\N{SNOWMAN}", b"y")
        one, two = uploads.lease(3), uploads.lease(10)
        uploads.store("in two leases", b"z" * 3 * DATA_SIZE, [Extent(one.first, 2), Extent(two.first, 2)])
        uploads.store("replaced", b"old, and not collected")
        uploads.store("replaced", b"new")
        # Numbers are given out in advance, to several processes: they do not tell which version came last.
        with uploads.catalog.change():
            lower, higher = uploads.catalog.reserve(2)
        uploads.store("replaced by a lower number", b"old", number=higher, created=2e9)
        uploads.store("replaced by a lower number", b"new", number=lower, created=2e9 + 1)
        gone = uploads.store("partly collected", b"old" * DATA_SIZE)
        now = uploads.store("partly collected", b"new" * DATA_SIZE)
        uploads.client.delete(gone.object_id, 1)
        uploads.store("scattered", b"s" * 200 * DATA_SIZE, scattered(uploads))
        never = uploads.lease(3)
        uploads.put([never], b"an upload that never was committed")
        with uploads.catalog.change():
            foreign = uploads.catalog.lease(None, 5, "a script")
        uploads.put([Extent(foreign.first + 1, 2)], b"its own")
        uploads.client.put("SHORT", b"no ticket of ours")
        copy = uploads.lease(1)
        raw = uploads.client.get(ticket.format(now.extents[-1].stop - 1))
        uploads.put([copy], raw)  # somebody uploads a manifest's bytes: no manifest
        before = uploads.listing()
        stored_old = uploads.catalog.garbage(100)
        with pytest.raises(StoreLockedError):
            rebuild(node.data_dir, replace=True)
        uploads.client.close()
        uploads.catalog.close()
        node.kill_all()  # much of it is in the log only
        with pytest.raises(UsageError):
            rebuild(node.data_dir)
        lose(node.data_dir)
        result = rebuild(node.data_dir)

        assert (result.objects, result.outdated, result.unsigned) == (len(before), 3, 1)
        assert result.incomplete == result.problems == []
        orphans = {*indices(*(item.extent for item in stored_old)), *indices(never, copy)}
        orphans |= {foreign.first + 1, foreign.first + 2}
        assert indices(*result.orphans) == sorted(orphans - {gone.extents[0].first})
        json.dumps(result.as_json())
        with Catalog(catalog_path(node.data_dir)) as catalog:
            after = {version.name: described(version) for version in catalog.versions(VersionState.OK)}
            assert after == before
            assert catalog.next_ticket() == copy.stop
            assert catalog.garbage(10) == []
            with catalog.change():
                assert catalog.reserve(1)[0] > max(number for number, *_ in before.values())
        assert {path.name for path in node.data_dir.glob(".ingest/catalog.db*")} == {"catalog.db"}

        again = rebuild(node.data_dir, replace=True, discard_orphans=True)
        assert again.orphans == result.orphans
        assert collected_next(node.data_dir) == indices(*result.orphans)
        assert (node.data_dir / ".ingest" / "catalog.db.old").exists()


@pytest.mark.layout("pack")
def test_of_what_is_not_whole_an_older_version_comes_back(tmp_path, layout):
    with running_node(tmp_path / "data") as node:
        uploads = Uploads(node)
        old = uploads.store("a", b"old")
        new = uploads.store("a", b"new" * DATA_SIZE)
        uploads.store("gone", b"gone" * DATA_SIZE)
        lost = uploads.catalog.find("store", "gone")
        uploads.client.delete(ticket.format(new.extents[0].first + 1), 1)
        uploads.client.delete(lost.object_id, 1)
        uploads.store("never committed, and whole", b"u", commit=False)
        uploads.client.close()
        uploads.catalog.close()
        assert node.stop() == 0
        lose(node.data_dir)
        result = rebuild(node.data_dir)
        assert result.objects == 2 and len(result.incomplete) == 2
        with Catalog(catalog_path(node.data_dir)) as catalog:
            assert described(catalog.find("store", "a")) == described(old)
            assert catalog.lookup("store", "gone") is None
            assert catalog.find("store", "never committed, and whole").size == 1


def test_of_a_store_without_objects(tmp_path):
    with running_node(tmp_path / "data") as node:
        with node.connect() as connection:
            connection.put(range(5))
        node.stop()
        result = rebuild(node.data_dir)
        assert (result.objects, result.chunks, result.next_ticket) == (0, 0, "00000000")
        with suppress(FileNotFoundError), Catalog(catalog_path(node.data_dir)) as catalog:
            assert catalog.namespaces() == []


def rebuilt(node: NodeRig, uploads: Uploads, **options):
    uploads.client.close()
    uploads.catalog.close()
    node.kill_all()
    lose(node.data_dir)
    return rebuild(node.data_dir, **options)


@pytest.mark.parametrize("stray", ["ZZZZZZZY", "ZZZZZZZ0", "7K00AB3Q"])
@pytest.mark.parametrize("deleted", [False, True])
def test_a_ticket_far_behind_all_objects_is_somebody_else_s(tmp_path, layout, stray, deleted):
    with running_node(tmp_path / "data", f"--layout={layout}") as node:
        uploads = Uploads(node)
        live = uploads.store("live", b"x" * 10_000)
        broken = uploads.lease(5)
        uploads.put([broken], b"an upload that was under way")
        uploads.client.put(stray, b"mine")
        if deleted:
            uploads.client.delete(stray, 1)
        result = rebuilt(node, uploads, discard_orphans=True)
        assert result.next_ticket == ticket.format(broken.stop)
        (problem,) = result.problems
        assert stray in problem and result.next_ticket in problem
        assert indices(*result.orphans) == [*indices(broken), *([] if deleted else [ticket.parse(stray)])]
        with Catalog(catalog_path(node.data_dir)) as catalog:
            assert [item.extent for item in catalog.garbage(10)] == [broken]
            with catalog.change():
                given = catalog.lease(None, 1000)
            assert given.first == broken.stop
            assert not set(indices(given)) & set(indices(*live.extents))


def test_the_order_decides_and_not_the_clock(tmp_path):
    """The clock went back an hour, and on again."""
    with running_node(tmp_path / "data") as node:
        uploads = Uploads(node)
        uploads.store("a", b"old", created=2e9)
        uploads.store("a", b"new", created=2e9 - 3600, order=order_at(2e9) + 1)
        result = rebuilt(node, uploads)
        with Catalog(catalog_path(node.data_dir)) as catalog:
            found = catalog.find("store", "a")
            assert (result.problems, found.digest) == ([], blake3(b"new").digest())
            assert found.order == catalog.last_order("store", "a") == order_at(2e9) + 1
            assert found.modified == int(2e9)


def test_manifests_without_an_order_that_contradict_each_other_are_reported(tmp_path):
    with running_node(tmp_path / "data") as node:
        uploads = Uploads(node)
        uploads.store("a", b"first", created=2e9, order=0)
        second = uploads.store("a", b"second", created=2e9 - 3600, order=0)
        uploads.store("b", b"first", created=2e9, order=0)
        uploads.store("b", b"second", created=2e9 + 1, order=0)
        result = rebuilt(node, uploads)
        (problem,) = result.problems
        assert "'a'" in problem and second.object_id in problem and result.outdated == 2


@pytest.mark.parametrize("kept", [True, False])
def test_the_store_says_whose_successor_the_catalog_is(tmp_path, layout, kept):
    """Its chunk is no orphan and no stray; where it was lost, the objects say whose the store is."""
    with running_node(tmp_path / "data", f"--layout={layout}") as node:
        uploads = Uploads(node)
        id_ = uploads.catalog.identity().id
        uploads.client.put(binding.TICKET, binding.serialize(id_))
        uploads.store("live", b"x")
        if not kept:
            uploads.client.delete(binding.TICKET)
        result = rebuilt(node, uploads, discard_orphans=True)
        assert (result.orphans, len(result.problems)) == ([], 0 if kept else 1)
        with Catalog(catalog_path(node.data_dir)) as catalog:
            found = catalog.identity()
            assert found.bound and (found.id == id_) == kept and not catalog.garbage(10)


def test_a_gap_that_the_allocator_leaves_is_none(tmp_path):
    """Behind a gap that is large, but not too large: uploads that never were."""
    with running_node(tmp_path / "data") as node:
        uploads = Uploads(node)
        uploads.store("live", b"x")
        uploads.lease(STRAY_GAP_TICKETS - 1)
        last = uploads.lease(1)
        uploads.put([last], b"an upload that was under way")
        result = rebuilt(node, uploads)
        assert (result.next_ticket, result.problems) == (ticket.format(last.stop), [])


@pytest.mark.parametrize("gap", [STRAY_GAP_TICKETS, 10**12])
def test_an_object_behind_a_gap_is_an_object(tmp_path, gap):
    """No range of a live version is ever given again, wherever it lies; neither one of a version that is not whole."""
    with running_node(tmp_path / "data") as node:
        uploads = Uploads(node)
        uploads.store("near", b"x")
        uploads.lease(gap)
        uploads.store("far", b"y" * 10_000)
        uploads.lease(gap)
        lost = uploads.store("far, and not whole", b"z" * 10_000)
        uploads.client.delete(lost.object_id, 1)
        uploads.client.put("ZZZZZZZY", b"mine")
        result = rebuilt(node, uploads)
        assert result.next_ticket == ticket.format(lost.extents[-1].stop)
        assert result.objects == 2 and len(result.incomplete) == len(result.problems) == 1


def test_of_many_strays_the_first_great_gap_is_used(tmp_path):
    with running_node(tmp_path / "data") as node:
        uploads = Uploads(node)
        live = uploads.store("live", b"x")
        near = live.extents[-1].stop + STRAY_GAP_TICKETS // 2
        for index in (near, near + STRAY_GAP_TICKETS, near + 5 * STRAY_GAP_TICKETS):
            uploads.client.put(ticket.format(index), b"mine")
        result = rebuilt(node, uploads)
        # From there to the next one it is one ticket less than a great gap.
        assert result.next_ticket == ticket.format(near + STRAY_GAP_TICKETS + 1)


# --- the catalog that was there


SIDES = ("-wal", "-shm")


def make_catalog(path: Path, name: str, log: bool) -> None:
    """With an object in its file; and another one in its log, which whoever was killed left, or the same."""
    elsewhere = path.with_name("elsewhere")
    elsewhere.mkdir()
    catalog = Catalog(elsewhere / path.name)
    add(catalog, name)
    if log:
        catalog._db.run("PRAGMA wal_checkpoint(TRUNCATE)")
        add(catalog, f"{name}, in its log")
    else:
        catalog.close()
    for side in ("", *SIDES) if log else ("",):
        shutil.copy(elsewhere / f"{path.name}{side}", f"{path}{side}")
    catalog.close()
    shutil.rmtree(elsewhere)


def add(catalog: Catalog, name: str) -> None:
    with catalog.change():
        owner = catalog.enter("test", 1e6)
        catalog.store(owner, "n", name, 1, bytes(32), [catalog.lease(owner, 2)], {})


def names_in(path: Path, elsewhere: Path) -> set[str]:
    """Of the objects in a catalog, which is not touched."""
    elsewhere.mkdir()
    for side in ("", *SIDES):
        with suppress(FileNotFoundError):
            shutil.copy(f"{path}{side}", elsewhere / f"copy{side}")
    with Catalog(elsewhere / "copy") as catalog:
        found = {entry.name for entry in catalog.page("n")}
    shutil.rmtree(elsewhere)
    return found


@contextmanager
def kept_at_each_step(home: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """Copies of what a death leaves before each file that is renamed or removed there, and after the last one."""
    copies: list[Path] = []
    seen: list[dict[str, int]] = []

    def keep() -> None:
        found = {path.name: path.stat().st_size for path in home.glob(".ingest/catalog.db*")}
        if found not in seen:
            seen.append(found)
            copies.append(kept / str(len(copies)))
            shutil.copytree(home, copies[-1])

    with monkeypatch.context() as watched:
        for name in ("rename", "unlink"):
            real = getattr(os, name)
            watched.setattr(os, name, lambda *paths, real=real: (keep(), real(*paths))[1])
        yield copies
    keep()


@pytest.mark.parametrize("former", ["nothing", "a file", "a file and its log"])
@pytest.mark.parametrize("log", [False, True])
def test_the_old_catalog_is_whole_wherever_the_rebuild_dies(tmp_path, monkeypatch, former, log):
    """In its place or as `catalog.db.old`, with all that was acknowledged: its log is a part of it, and that of another one
    is not. ``former``: what is there of one that was replaced before."""
    home = tmp_path / "store"
    Builder(home, "pack", random.Random(1), SMALL_SEGMENT).close()
    target = catalog_path(home)
    old = target.with_name(f"{target.name}.old")
    if former != "nothing":
        make_catalog(old, "former", former == "a file and its log")
    make_catalog(target, "old", log)
    expected = {"old", "old, in its log"} if log else {"old"}
    with kept_at_each_step(home, tmp_path / "kept", monkeypatch) as copies:
        rebuild(home, replace=True, segment_size=SMALL_SEGMENT)
    assert len(copies) >= 4
    for copy in copies:
        here, beside = (copy / path.relative_to(home) for path in (target, old))
        if not here.exists():  # who begins again finds what is left of it
            rebuild(copy, segment_size=SMALL_SEGMENT)
        found = names_in(here, tmp_path / "looked at")
        whole = found or names_in(beside, tmp_path / "looked at")
        assert whole == expected, f"in {copy}"


@pytest.mark.parametrize("there", [set(), {""}, {"", "-wal", "-shm"}, {"-wal"}])
def test_nothing_of_the_old_catalog_is_there_when_a_power_cut_leaves_the_new_one(
    tmp_path, monkeypatch, there
):
    """Whichever renames since the last sync reached the disk: a log of another one would be taken for its own."""
    target, new = tmp_path / "catalog.db", tmp_path / "catalog.db.new"
    for side in there:
        Path(f"{target}{side}").write_text("old")
    new.write_text("new")
    states: list[dict[str, str]] = []  # that a power cut may leave
    durable = {path.name: path.read_text() for path in tmp_path.iterdir()}
    unsynced: list[tuple[str, str]] = []
    synced: set[str] = set()
    rename, fsync = os.rename, os.fsync

    def noted_rename(source: Path, to: Path) -> None:
        rename(source, to)
        unsynced.append((Path(source).name, Path(to).name))
        for which in range(1 << len(unsynced)):
            state = dict(durable)
            for i, (before, after) in enumerate(unsynced):
                if which >> i & 1 and before in state:
                    state[after] = state.pop(before)
            states.append(state)

    def noted_fsync(fd: int) -> None:
        fsync(fd)
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        if path == tmp_path:
            durable.clear()
            durable.update({one.name: one.read_text() for one in tmp_path.iterdir()})
            unsynced.clear()
        synced.add(path.name)

    monkeypatch.setattr(os, "rename", noted_rename)
    monkeypatch.setattr(os, "fsync", noted_fsync)
    rebuilder._put_in_place(new, target)
    assert durable == {"catalog.db": "new"} | {f"catalog.db.old{side}": "old" for side in there}
    assert not unsynced and new.name in synced
    for state in states:
        if state.get("catalog.db") == "new":
            assert not state.keys() & {"catalog.db-wal", "catalog.db-shm"}, state
        assert list(state.values()).count("old") == len(there), f"lost in {state}"


def test_the_log_of_an_older_catalog_is_gone_for_good_before_the_old_one_has_its_name(tmp_path, monkeypatch):
    """After a power cut too, whichever of the names reached the disk."""
    target, new = tmp_path / "catalog.db", tmp_path / "catalog.db.new"
    for path in (target, new, *(Path(f"{target}.old{side}") for side in ("", "-wal", "-shm"))):
        path.touch()
    durable = {path.name for path in tmp_path.iterdir()}
    rename, fsync = os.rename, os.fsync

    def noted_fsync(fd: int) -> None:
        fsync(fd)
        if Path(os.readlink(f"/proc/self/fd/{fd}")) == tmp_path:
            durable.clear()
            durable.update(path.name for path in tmp_path.iterdir())

    def noted_rename(source: Path, to: Path) -> None:
        assert not durable & {"catalog.db.old-wal", "catalog.db.old-shm"}
        rename(source, to)

    monkeypatch.setattr(os, "rename", noted_rename)
    monkeypatch.setattr(os, "fsync", noted_fsync)
    rebuilder._put_in_place(new, target)
    assert durable == {"catalog.db", "catalog.db.old"}


@pytest.mark.parametrize("which", ["present", "deleted", "lost"])
@pytest.mark.parametrize("slot", [0, 5])
def test_no_ticket_is_given_that_was_ever_stored_under(tmp_path, which, slot):
    """Whatever became of its chunk: one that is damaged, or was deleted, may come to light again."""
    base = sharding.slot_ticket(sharding.ticket_pack(FIRST), 0) + PACK_SLOTS
    bits = {name: np.zeros(PACK_SLOTS, bool) for name in ("present", "deleted", "lost")}
    bits[which][slot] = True
    make_file(tmp_path / "catalog.db")
    (tmp_path / "scratch").touch()
    with Catalog(tmp_path / "catalog.db") as catalog:
        work = rebuilder._Rebuild(catalog, tmp_path / "scratch", [], rebuilder.Rebuilt("here"))
        work._note_runs(base, Resolved(frames=np.zeros((PACK_SLOTS, FRAME_SIZE), np.uint8), **bits))
        work.finish()
        assert catalog.next_ticket() == base + slot + 1
