"""Uploads through a real engine: what they leave in the store, whatever happens to them.

After each test the collector runs, and then what the engine has under every ticket that was ever given must be exactly the
live versions' and those of others.
"""

import asyncio
import contextlib
import os
import threading
import time
import tracemalloc
from collections.abc import AsyncGenerator, AsyncIterator, Iterator

import pytest
from blake3 import blake3
from node_rig import NodeRig, running_node
from reference_server import Faults, ReferenceServer, build_frame

from ingest import ticket
from ingest.catalog.catalog_reader import CatalogReader
from ingest.catalog.catalog_socket import catalog_path
from ingest.catalog.extent import FIRST, RESERVED, Extent, chunks_needed, total
from ingest.catalog.local_catalog import LocalCatalog
from ingest.catalog.version import ABSENT, ANY, SAME, Condition, Version, VersionState
from ingest.client.async_client import AsyncClient
from ingest.errors import (
    BusyError,
    NameTakenError,
    NotFoundError,
    PreconditionError,
    UploadLostError,
)
from ingest.limits import DATA_SIZE, PIECE_CHUNKS, SMALL_OBJECT_MAX
from ingest.objects import manifest, streamed_upload
from ingest.objects.collector import Collector
from ingest.objects.local_store import LocalStore
from ingest.objects.manifest import Manifest
from ingest.objects.memory_budget import ALLOWANCE_SIZE, Budget
from ingest.objects.object_store import StoredDownload
from ingest.runtime.key_file import read_keys
from ingest.status import Status

PIECE = PIECE_CHUNKS * DATA_SIZE
LEASE = 1000  # small objects here take at most 181 tickets of it


class Rig:
    """A store, as a process of its own would have it."""

    def __init__(
        self, client: AsyncClient, catalog: LocalCatalog, reader: CatalogReader, store: LocalStore
    ) -> None:
        self.client = client
        self.catalog = catalog
        self.reader = reader
        self.store = store

    async def put(self, name: str, data: bytes, **options) -> Version:
        return await self.store.put("test", name, body_of(data), **options)

    async def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        download = await self.store.open("test", name)
        try:
            return b"".join([bytes(part) async for part in download.read(start, stop)])
        finally:
            await download.close()

    async def foreign(self, index: int) -> None:
        """Somebody else's chunk, where the allocator will come by."""
        await self.client.put(ticket.format(index), b"foreign")

    async def saved(self) -> set[int]:
        """The index of every ticket ever given that is SAVED."""
        found: set[int] = set()
        runs = await self.client.inventory(ticket.format(FIRST), max(1, self.reader.next_ticket() - FIRST))
        for run in runs:
            if run.status is Status.SAVED:
                first = ticket.parse(run.first)
                found.update(range(first, first + run.count))
        return found

    async def behind_the_last_byte(self, version: Version, key: bytes) -> None:
        """There are zeros, and the manifest with zeros behind it: who reads chunks sees bytes of no other upload."""
        chunks = chunks_needed(version.size)
        indices = [index for one in version.extents for index in range(one.first, one.stop)]
        if over := version.size % DATA_SIZE:
            last = await self.client.get(ticket.format(indices[chunks - 1]))
            assert last[over:] == bytes(DATA_SIZE - over), version.name
        place = Extent(indices[chunks], total(version.extents) - chunks)
        data = bytes(await self.client.read_range(ticket.format(place.first), place.count))
        assert data == manifest.serialize(manifest.parse(data, place.first, [key]), place, key), version.name

    def live(self) -> set[int]:
        return {
            index
            for version in self.reader.versions(VersionState.OK)
            for place in version.extents
            for index in range(place.first, place.stop)
        }


async def body_of(data: bytes, step: int = 100_000) -> AsyncIterator[bytes]:
    for at in range(0, len(data), step):
        yield data[at : at + step]


def bytes_of(size: int, seed: int = 0) -> bytes:
    return blake3(seed.to_bytes(8, "big")).digest(size)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeRig]:
    with running_node(tmp_path_factory.mktemp("receiver") / "data", "--workers=1", "--sync=os") as rig:
        yield rig


@pytest.fixture
def run(node: NodeRig):
    """Runs what gets a Rig and returns the foreign tickets that it made; then nothing else may be stored than it should."""
    key_file = node.data_dir / ".ingest" / "key"

    async def work_and_check(work) -> None:
        path = catalog_path(node.data_dir)
        async with await AsyncClient.connect(node.put_address, node.get_address, key_file) as client:
            catalog = await LocalCatalog.open(path)
            with CatalogReader(path) as reader:
                store = await LocalStore.enter(
                    client, catalog, reader, read_keys(key_file)[0], f"test {os.getpid()}", LEASE
                )
                rig = Rig(client, catalog, reader, store)
                before = await rig.saved() - rig.live()
                known = {version.number for version in reader.versions(VersionState.OK)}
                foreign = await work(rig) or set()
                await store.leave()
                await Collector(client, catalog, reader).run()
                assert await rig.saved() - before == (rig.live() | foreign) - before
                assert before <= await rig.saved()  # nothing that belongs to the tests before was touched
                assert not reader.garbage(10) and not reader.leases()
                assert not list(reader.versions(VersionState.PENDING))
                key = manifest.manifest_key(read_keys(key_file)[0])
                for version in list(reader.versions(VersionState.OK)):
                    if version.number not in known:
                        await rig.behind_the_last_byte(version, key)
            await catalog.close()

    return lambda work: asyncio.run(work_and_check(work))


SIZES = [
    0, 1, DATA_SIZE - 1, DATA_SIZE, DATA_SIZE + 1, SMALL_OBJECT_MAX - 1, SMALL_OBJECT_MAX, SMALL_OBJECT_MAX + 1,
    PIECE - 1, PIECE, PIECE + 1, PIECE + DATA_SIZE, 4 * PIECE, 4 * PIECE + 1, 12 * PIECE + 777,
]  # fmt: skip


@pytest.mark.parametrize("known", [True, False], ids=["size known", "size unknown"])
def test_sizes(run, known):
    async def work(rig: Rig) -> None:
        for size in SIZES:
            data = bytes_of(size, size)
            version = await rig.put(f"size {size}", data, size=size if known else None)
            assert (version.size, version.digest) == (size, blake3(data).digest())
            assert total(version.extents) >= chunks_needed(size) + 1
            assert len(version.extents) == 1  # alone, all of its ranges are neighbours
            assert await rig.read(f"size {size}") == data
            for at in {0, 1, DATA_SIZE, size // 2, max(0, size - 1)}:
                assert await rig.read(f"size {size}", at, at + 1500) == data[at : at + 1500]

    run(work)


def test_one_name_many_versions(run):
    async def work(rig: Rig) -> None:
        for i, size in enumerate([10, SMALL_OBJECT_MAX + 10, 20, 2 * PIECE]):
            await rig.put("again", bytes_of(size, i))
            assert await rig.read("again") == bytes_of(size, i)
        states = [step.state for step in await rig.store.history("test", "again")]
        assert states.count(VersionState.OK) == 4 and states.count(VersionState.DELETED) == 3

    run(work)


def test_many_at_a_time(run):
    async def work(rig: Rig) -> None:
        sizes = [0, 5000, SMALL_OBJECT_MAX + 1, 100, 3 * PIECE, 2 * PIECE + 9] * 3
        await asyncio.gather(*(rig.put(f"at once {i}", bytes_of(size, i)) for i, size in enumerate(sizes)))
        for i, size in enumerate(sizes):
            assert await rig.read(f"at once {i}") == bytes_of(size, i)

    run(work)


@pytest.mark.parametrize("tickets", [1, 7, 100, PIECE_CHUNKS - 1, PIECE_CHUNKS + 1])
def test_pieces_that_lie_in_several_ranges(run, monkeypatch, tickets):
    """Two uploads take their ranges in turn, so that what one takes next is not behind what it had."""
    monkeypatch.setattr(streamed_upload, "RANGE_TICKETS_MIN", tickets)

    async def work(rig: Rig) -> None:
        size = 2 * PIECE + 5000
        names = ["in turn 0", "in turn 1"]
        versions = await asyncio.gather(*(rig.put(name, bytes_of(size, i)) for i, name in enumerate(names)))
        assert any(len(version.extents) > 1 for version in versions)
        for i, name in enumerate(names):
            assert await rig.read(name) == bytes_of(size, i)

    run(work)


SMALL = 10 * DATA_SIZE - 3
LARGE = 3 * PIECE + 5000


@pytest.mark.parametrize("gone", [False, True], ids=["CONFLICT", "DELETED"])
@pytest.mark.parametrize(
    ("size", "places"),
    [
        (SMALL, [0]),
        (SMALL, [5]),
        (SMALL, [9]),
        (SMALL, [10]),  # the manifest
        (SMALL, [0, 3, 10]),
        (SMALL, range(11)),
        (SMALL, [2, 11, 24]),  # in the second try as well
        (LARGE, [0]),
        (LARGE, [700]),
        (LARGE, [PIECE_CHUNKS - 1, PIECE_CHUNKS]),
        (LARGE, [chunks_needed(LARGE)]),  # the manifest
        (LARGE, [0, 600, 1100, chunks_needed(LARGE) - 1, chunks_needed(LARGE)]),
        (LARGE, range(0, 1500, 7)),
    ],
)
def test_tickets_of_others_are_passed_by(run, size, places, gone):
    async def work(rig: Rig) -> set[int]:
        first = rig.reader.next_ticket()
        for place in places:
            await rig.foreign(first + place)
            if gone:
                await rig.client.delete(ticket.format(first + place))
        data = bytes_of(size, 1)
        version = await rig.put("passed by", data, size=size)
        assert await rig.read("passed by") == data
        foreign = {first + place for place in places}
        held = {index for one in version.extents for index in range(one.first, one.stop)}
        assert not held & foreign
        return set() if gone else foreign

    run(work)


class BodyBroke(Exception):
    pass


@pytest.mark.parametrize("place", [None, 0, 100])
@pytest.mark.parametrize("size", [0, 1, SMALL, SMALL_OBJECT_MAX + 1, PIECE, LARGE])
def test_a_body_that_raises(run, size, place):
    async def broken() -> AsyncIterator[bytes]:
        async for part in body_of(bytes_of(size, 2)):
            yield part
        raise BodyBroke

    async def work(rig: Rig) -> set[int]:
        foreign = set()
        if place is not None and size > PIECE:
            foreign = {rig.reader.next_ticket() + place}
            await rig.foreign(*foreign)
        with pytest.raises(BodyBroke):
            await rig.store.put("test", "broken", broken())
        with pytest.raises(NotFoundError):
            await rig.store.stat("test", "broken")
        return foreign

    run(work)


@pytest.mark.parametrize("size", [2 * SMALL_OBJECT_MAX, LARGE])
@pytest.mark.parametrize("how", ["stored", "breaks", "cancelled", "too short", "no name", "kept", "refused"])
def test_what_an_upload_never_put_is_not_deleted_however_it_ends(run, how, size):
    """The rest of its range may be somebody else's, from its first ticket to its last one."""
    data = bytes_of(size, 8)
    name = f"ends: {how} {size}"
    foreign: set[int] = set()

    async def work(rig: Rig) -> set[int]:
        async def body() -> AsyncIterator[bytes]:
            first = rig.reader.next_ticket()
            async for part in body_of(data[:-1]):
                yield part
            while rig.reader.next_ticket() == first:  # its range is not begun
                await asyncio.sleep(0.01)
            foreign.update({first + chunks_needed(size), rig.reader.next_ticket() - 1})
            for index in foreign:
                await rig.foreign(index)
            if how == "breaks":
                raise BodyBroke
            if how == "cancelled":
                upload.cancel()
                await asyncio.Event().wait()
            yield data[-1:]

        def no_name() -> str:
            raise BodyBroke

        if how in ("kept", "refused"):
            await rig.put(name, data)
        upload = asyncio.create_task(
            rig.store.put(
                "test",
                {"no name": no_name, "kept": lambda: name, "refused": lambda: name}.get(how, name),
                body(),
                size=size + 1 if how == "too short" else None,
                condition={"kept": SAME, "refused": ABSENT}.get(how, ANY),
            )
        )
        ends = {"cancelled": asyncio.CancelledError, "too short": UploadLostError, "refused": NameTakenError}
        if how in ("kept", "stored"):
            assert await upload == await rig.store.stat("test", name)
        else:
            with pytest.raises(ends.get(how, BodyBroke)):
                await upload
        assert len(foreign) == 2
        return foreign

    run(work)


@pytest.mark.parametrize("given", [0, 1, SMALL, SMALL_OBJECT_MAX + 1, LARGE])
@pytest.mark.parametrize("off", [-1, 1])
def test_a_body_of_another_size(run, given, off):
    async def work(rig: Rig) -> None:
        if given + off < 0:
            return
        with pytest.raises(UploadLostError, match=f"ended after {given} of {given + off} bytes"):
            await rig.put("short", bytes_of(given), size=given + off)

    run(work)


@pytest.mark.parametrize("place", [None, 0, PIECE_CHUNKS + 3])
@pytest.mark.parametrize("size", [SMALL, SMALL_OBJECT_MAX + 1, LARGE])
def test_a_cancelled_upload(run, size, place):
    async def work(rig: Rig) -> set[int]:
        foreign = set()
        if place is not None and size > PIECE:
            foreign = {rig.reader.next_ticket() + place}
            await rig.foreign(*foreign)
        stuck = asyncio.Event()

        async def endless() -> AsyncIterator[bytes]:
            yield bytes_of(size, 3)
            stuck.set()
            await asyncio.Event().wait()

        upload = asyncio.create_task(rig.store.put("test", "cancelled", endless()))
        await stuck.wait()
        if foreign:  # met, and known to the catalog
            while await _holds(rig, *foreign):
                await asyncio.sleep(0.01)
        upload.cancel()
        with pytest.raises(asyncio.CancelledError):
            await upload
        with pytest.raises(NotFoundError):
            await rig.store.stat("test", "cancelled")
        return foreign

    run(work)


async def _holds(rig: Rig, index: int) -> bool:
    """Whether a version that is under way still has a ticket."""
    places = [one for version in rig.reader.versions(VersionState.PENDING) for one in version.extents]
    return any(one.first <= index < one.stop for one in places)


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8, 13, 21, 34])
@pytest.mark.parametrize("size", [SMALL, PIECE + 1])
def test_a_cancel_at_any_time(run, size, turns):
    """Whole or not at all, wherever in its way it is cancelled."""

    async def work(rig: Rig) -> None:
        name = f"any time {size} {turns}"
        upload = asyncio.create_task(rig.put(name, bytes_of(size, 4)))
        for _ in range(turns):
            await asyncio.sleep(0)
        upload.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await upload
        with contextlib.suppress(NotFoundError):
            assert await rig.read(name) == bytes_of(size, 4)

    run(work)


@pytest.mark.parametrize("size", [SMALL, SMALL_OBJECT_MAX + 1, LARGE])
def test_a_condition_that_fails_at_the_commit(run, size):
    async def work(rig: Rig) -> None:
        name = f"contended {size}"

        async def overtaken() -> AsyncIterator[bytes]:
            yield bytes_of(size, 5)
            await rig.put(name, b"the first")

        with pytest.raises(NameTakenError):
            await rig.store.put("test", name, overtaken(), condition=ABSENT)
        assert await rig.read(name) == b"the first"
        etag = (await rig.store.stat("test", name)).etag

        async def changed() -> AsyncIterator[bytes]:
            yield bytes_of(size, 6)
            await rig.put(name, b"the second")

        with pytest.raises(PreconditionError):
            await rig.store.put("test", name, changed(), condition=Condition(etags=frozenset([etag])))
        assert await rig.read(name) == b"the second"

    run(work)


def test_a_name_that_the_bytes_say(run):
    async def work(rig: Rig) -> None:
        for size in (SMALL, LARGE):
            data = bytes_of(size, 7)
            version = await rig.store.put("test", lambda data=data: blake3(data).hexdigest(), body_of(data))
            assert version.name == blake3(data).hexdigest()
            assert await rig.read(version.name) == data

    run(work)


def test_a_process_of_many_small_objects_takes_one_lease_after_the_other(run):
    """What it took in advance and never used costs no deletes."""

    async def work(rig: Rig) -> None:
        count = LEASE // (chunks_needed(SMALL) + 1) + 3
        for i in range(count):
            await rig.put(f"lease {i}", bytes_of(SMALL, i))
        (left,) = rig.reader.leases()
        await rig.store.leave()
        assert not rig.reader.garbage(10)
        assert left.extent.stop == rig.reader.next_ticket()
        assert await rig.read("lease 0") == bytes_of(SMALL, 0)

    run(work)


@pytest.mark.parametrize("size", [1000, 2 * SMALL_OBJECT_MAX])
def test_a_process_that_was_given_up_goes_on_with_its_next_request(run, size):
    """It stood still for longer than its deadline."""
    data = bytes_of(size)

    async def given_up(rig: Rig) -> None:
        await rig.catalog.leave(rig.store._membership.owner)  # as the collector's `expire` does it

    async def work(rig: Rig) -> None:
        await rig.put("before", data)
        await given_up(rig)
        version = await rig.put("after", data)
        await given_up(rig)
        download = await rig.store.open("test", "after")
        await rig.store.delete("test", "after")
        if size > SMALL_OBJECT_MAX:
            garbage = rig.reader.garbage(100)
            assert all(item.version != version.number for item in garbage), "it is pinned"
        assert b"".join([bytes(part) async for part in download.read()]) == data
        await download.close()

    run(work)


def test_a_reader_sees_one_version_while_it_is_replaced(run):
    async def work(rig: Rig) -> None:
        await rig.put("read", bytes_of(LARGE, 1))
        download = await rig.store.open("test", "read")
        await rig.put("read", bytes_of(LARGE, 2))
        await Collector(rig.client, rig.catalog, rig.reader).run()
        assert b"".join([bytes(part) async for part in download.read()]) == bytes_of(LARGE, 1)
        await download.close()
        old = [Extent(one.first, one.count) for one in download.version.extents]
        await Collector(rig.client, rig.catalog, rig.reader).run()
        assert not {index for one in old for index in range(one.first, one.stop)} & await rig.saved()

    run(work)


KEY = bytes(range(32))


@pytest.mark.parametrize("again", [False, True], ids=["", "cancelled twice"])
@pytest.mark.parametrize("size", [SMALL, SMALL_OBJECT_MAX + 1, LARGE])
def test_a_conflict_that_is_answered_late(tmp_path, monkeypatch, size, again):
    """An upload is cancelled, and its request over, before the engine answers: until then nothing of it is garbage."""
    monkeypatch.setattr("ingest.objects.chunk_writer.UPLOAD_SETTLE_S", 0.01)
    gate = threading.Event()
    foreign = FIRST + 3
    path = tmp_path / "catalog.db"

    async def main(server: ReferenceServer) -> None:
        server.model.frame(build_frame(KEY, foreign, b"foreign"))
        put, get = server.put_address, server.get_address
        async with await AsyncClient.connect(put, get, KEY) as client:
            catalog = await LocalCatalog.open(path)
            with CatalogReader(path) as reader:
                store = await LocalStore.enter(client, catalog, reader, KEY, "test", LEASE)
                upload = asyncio.create_task(store.put("test", "a", body_of(bytes_of(size))))
                await asyncio.to_thread(server.stalled.wait)
                upload.cancel()
                if again:
                    await asyncio.sleep(0)
                    upload.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await upload
                assert not reader.garbage(10)
                gate.set()
                while not reader.garbage(10):
                    await asyncio.sleep(0.01)
                await Collector(client, catalog, reader).run()
                assert set(server.model.frames) == {foreign, RESERVED}
                assert foreign not in server.model.deleted
                assert not list(reader.versions(VersionState.PENDING))
                with pytest.raises(NotFoundError):
                    await store.stat("test", "a")
                await store.leave()
            await catalog.close()

    with ReferenceServer([KEY], Faults(gate=gate)) as server:
        asyncio.run(main(server))


class CatalogThatIsAway(LocalCatalog):
    """Learns of no conflict while ``away``."""

    away = True
    refused = 0  # times

    async def conflicted(self, owner: int, index: int, version: int | None = None) -> None:
        if self.away:
            self.refused += 1
            raise BusyError("another process has the catalog")
        await super().conflicted(owner, index, version)


@pytest.mark.parametrize("cancelled", [False, True], ids=["broken", "cancelled"])
@pytest.mark.parametrize("refusals", [1, 4])
@pytest.mark.parametrize("size", [SMALL, SMALL_OBJECT_MAX + 1, LARGE])
def test_a_conflict_that_the_catalog_does_not_take_at_once(tmp_path, monkeypatch, size, refusals, cancelled):
    """The tickets of the upload stay its own until the catalog knows which one is somebody else's."""
    monkeypatch.setattr("ingest.objects.chunk_writer.UPLOAD_SETTLE_S", 0.01)
    gate = threading.Event()
    foreign = FIRST + 3
    path = tmp_path / "catalog.db"

    async def main(server: ReferenceServer) -> None:
        server.model.frame(build_frame(KEY, foreign, b"foreign"))
        async with await AsyncClient.connect(server.put_address, server.get_address, KEY) as client:
            catalog = await CatalogThatIsAway.open(path)
            with CatalogReader(path) as reader:
                store = await LocalStore.enter(client, catalog, reader, KEY, "test", LEASE)
                upload = asyncio.create_task(store.put("test", "a", body_of(bytes_of(size))))
                await asyncio.to_thread(server.stalled.wait)
                if cancelled:
                    upload.cancel()
                gate.set()
                with pytest.raises(asyncio.CancelledError if cancelled else BusyError):
                    await upload
                while catalog.refused < refusals:
                    await asyncio.sleep(0.01)
                assert not reader.garbage(10)
                catalog.away = False
                while not reader.garbage(10):
                    await asyncio.sleep(0.01)
                await store.leave()
                await Collector(client, catalog, reader).run()
                assert set(server.model.frames) == {foreign, RESERVED}
                assert foreign not in server.model.deleted
                assert not list(reader.versions(VersionState.PENDING)) and not reader.leases()
            await catalog.close()

    with ReferenceServer([KEY], Faults(gate=gate)) as server:
        asyncio.run(main(server))


def test_a_process_that_ends_settles_what_broke(tmp_path, monkeypatch):
    """It gets the answers before it goes."""
    monkeypatch.setattr("ingest.objects.chunk_writer.UPLOAD_SETTLE_S", 0.01)
    gate = threading.Event()
    foreign = FIRST + 3
    path = tmp_path / "catalog.db"

    async def main(server: ReferenceServer) -> None:
        server.model.frame(build_frame(KEY, foreign, b"foreign"))
        async with await AsyncClient.connect(server.put_address, server.get_address, KEY) as client:
            catalog = await LocalCatalog.open(path)
            with CatalogReader(path) as reader:
                store = await LocalStore.enter(client, catalog, reader, KEY, "test", LEASE)
                upload = asyncio.create_task(store.put("test", "a", body_of(bytes_of(LARGE))))
                await asyncio.to_thread(server.stalled.wait)
                upload.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await upload
                monkeypatch.setattr("ingest.objects.chunk_writer.UPLOAD_SETTLE_S", 60)
                leaving = asyncio.create_task(store.leave())
                await asyncio.sleep(0)
                gate.set()
                await leaving
                garbage = [item.extent for item in reader.garbage(100)]
                assert garbage and not any(one.first <= foreign < one.stop for one in garbage)
            await catalog.close()

    with ReferenceServer([KEY], Faults(gate=gate)) as server:
        asyncio.run(main(server))


# --- memory


class WatchedBudget(Budget):
    """Knows the most that was ever lent."""

    def __init__(self, size: int) -> None:
        self.most = 0
        self._lent = 0
        super().__init__(size)

    @property
    def lent(self) -> int:
        return self._lent

    @lent.setter
    def lent(self, lent: int) -> None:
        self._lent = lent
        self.most = max(self.most, lent)


@pytest.fixture
def budget(monkeypatch: pytest.MonkeyPatch) -> WatchedBudget:
    """Of the stores that are made from now on."""
    made = WatchedBudget(20 * PIECE)
    monkeypatch.setattr("ingest.objects.local_store.Budget", lambda: made)
    return made


@pytest.mark.parametrize("size", [0, 40_000, 20 * PIECE])
def test_transfers_stay_within_the_memory_that_there_is(run, budget, size):
    budget.size = size
    sizes = [
        0,
        5000,
        ALLOWANCE_SIZE,
        ALLOWANCE_SIZE + 1,
        SMALL_OBJECT_MAX,
        SMALL_OBJECT_MAX + 1,
        3 * PIECE + 9,
    ] * 5

    async def work(rig: Rig) -> None:
        await asyncio.gather(
            *(
                rig.put(f"memory {i}", bytes_of(size, i), size=size if i % 2 else None)
                for i, size in enumerate(sizes)
            )
        )
        assert (budget.lent, budget.transfers) == (0, 0)
        read = await asyncio.gather(*(rig.read(f"memory {i}") for i in range(len(sizes))))
        assert [blake3(data).digest() for data in read] == [
            blake3(bytes_of(size, i)).digest() for i, size in enumerate(sizes)
        ]
        assert (budget.lent, budget.transfers) == (0, 0)
        assert (budget.most > 0) == (size > 0)
        assert budget.most <= size

    run(work)


@pytest.mark.parametrize("given", [1000, ALLOWANCE_SIZE + 1, SMALL_OBJECT_MAX, LARGE - 1])
def test_an_upload_that_stalls_keeps_no_memory_of_others(run, budget, monkeypatch, given):
    monkeypatch.setattr("ingest.objects.receiver.PIECE_PATIENCE_S", 0.05)
    monkeypatch.setattr("ingest.objects.streamed_upload.PIECE_PATIENCE_S", 0.05)
    size = LARGE
    whole = asyncio.Event()

    async def stalling(seed: int) -> AsyncIterator[bytes]:
        yield bytes_of(size, seed)[:given]
        await whole.wait()
        yield bytes_of(size, seed)[given:]

    async def work(rig: Rig) -> None:
        uploads = [
            asyncio.create_task(rig.store.put("test", f"stalls {i}", stalling(i), size=size))
            for i in range(40)
        ]
        while budget.transfers < len(uploads) or budget.lent:
            await asyncio.sleep(0.01)
        await rig.put("beside", bytes_of(size, 100))  # nobody is in its way
        whole.set()
        await asyncio.gather(*uploads)
        for i in range(len(uploads)):
            assert await rig.read(f"stalls {i}") == bytes_of(size, i)
        assert budget.most <= budget.size and not budget.lent

    run(work)


def test_a_small_object_that_comes_slowly_is_whole(run, budget, monkeypatch):
    """It waits for its bytes in the engine, not here."""
    monkeypatch.setattr("ingest.objects.receiver.PIECE_PATIENCE_S", 0.01)
    monkeypatch.setattr("ingest.objects.streamed_upload.PIECE_PATIENCE_S", 0.01)
    data = bytes_of(SMALL_OBJECT_MAX, 1)

    async def slowly() -> AsyncIterator[bytes]:
        for at in range(0, len(data), 30_000):
            yield data[at : at + 30_000]
            while budget.lent:
                await asyncio.sleep(0.001)

    async def work(rig: Rig) -> None:
        version = await rig.store.put("test", "slow", slowly(), size=len(data))
        assert version.digest == blake3(data).digest()
        assert await rig.read("slow") == data

    run(work)


def test_a_download_that_nobody_takes_keeps_no_memory_but_its_piece(run, budget, monkeypatch):
    monkeypatch.setattr("ingest.objects.download.PIECE_PATIENCE_S", 0.05)
    data = bytes_of(12 * PIECE, 1)

    async def work(rig: Rig) -> None:
        await rig.put("taken slowly", data)
        download = await rig.store.open("test", "taken slowly")
        pieces = download.read()
        taken = [bytes(await anext(pieces)) for _ in range(4)]
        ahead = budget.lent
        held = len(taken[-1]) + len(taken[-2])  # the one before may still be on its way
        while budget.lent > held:
            await asyncio.sleep(0.01)
        assert ahead > budget.lent
        assert await rig.read("taken slowly") == data  # nobody is in its way
        taken += [bytes(piece) async for piece in pieces]
        assert b"".join(taken) == data
        await download.close()
        assert not budget.lent and budget.most <= budget.size

    run(work)


@pytest.mark.parametrize("size", [SMALL_OBJECT_MAX, 12 * PIECE])
def test_downloads_that_nobody_takes_leave_all_memory_to_others(run, budget, monkeypatch, size):
    """Else a hundred clients that read nothing have all of it, and every upload beside them goes by its allowance."""
    monkeypatch.setattr("ingest.objects.download.PIECE_PATIENCE_S", 0.05)
    data = bytes_of(size, 1)

    async def begin(rig: Rig) -> tuple[StoredDownload, AsyncGenerator[bytes, None], list[bytes]]:
        download = await rig.store.open("test", "not taken")
        pieces = download.read(1, size - 1)
        piece = memoryview(await anext(pieces))
        taken = [bytes(piece[:1000])]
        del piece
        download.took(1000)
        return download, pieces, taken

    async def work(rig: Rig) -> None:
        await rig.put("not taken", data)
        tracemalloc.start()
        begun = [await begin(rig) for _ in range(30)]
        while budget.lent or budget.borrowers:
            await asyncio.sleep(0.01)
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert held < 30 * 2 * ALLOWANCE_SIZE
        assert budget.enter().share == budget.size
        for download, pieces, taken in begun:  # and all of them get what they asked for
            taken += [bytes(piece) async for piece in pieces]
            assert b"".join(taken) == data[1:-1]
            await download.close()
        assert not budget.lent

    run(work)


@pytest.mark.parametrize("size", [SMALL_OBJECT_MAX, 12 * PIECE])
def test_a_client_that_takes_a_little_now_and_then_is_no_quick_one(run, budget, monkeypatch, size):
    """It is waited for once for each piece, not again for each of the bytes that it takes."""
    monkeypatch.setattr("ingest.objects.download.PIECE_PATIENCE_S", 0.05)
    data = bytes_of(size, 1)

    async def work(rig: Rig) -> None:
        await rig.put("trickles", data)
        download = await rig.store.open("test", "trickles")
        pieces = download.read()
        taken = []
        while budget.lent or not taken:
            piece = memoryview(await anext(pieces))
            taken.append(bytes(piece[:10]))
            del piece
            download.took(10)
            await asyncio.sleep(0.001)  # much sooner than the patience ends
        taken += [bytes(piece) async for piece in pieces]
        assert b"".join(taken) == data
        await download.close()
        assert (budget.lent, budget.transfers) == (0, 0)

    run(work)


def test_a_small_object_that_was_replaced_is_kept_for_who_takes_it_slowly(run, budget, monkeypatch):
    """Its chunks may be gone: they can't be read again."""
    monkeypatch.setattr("ingest.objects.download.PIECE_PATIENCE_S", 0.01)
    data = bytes_of(SMALL_OBJECT_MAX, 1)

    async def work(rig: Rig) -> None:
        await rig.put("replaced", data)
        download = await rig.store.open("test", "replaced")
        await rig.put("replaced", b"by this")
        taken = []
        async for piece in download.read():
            taken.append(bytes(piece[:100_000]))
            del piece
            download.took(len(taken[-1]))
            await asyncio.sleep(0.05)  # longer than it is waited for
        assert b"".join(taken) == data
        await download.close()
        assert (budget.lent, budget.transfers) == (0, 0)

    run(work)


def test_a_small_object_is_read_in_pieces_when_there_is_no_memory(run, budget):
    data = bytes_of(SMALL_OBJECT_MAX, 1)

    async def work(rig: Rig) -> None:
        await rig.put("small", data)
        budget.size = 0
        download = await rig.store.open("test", "small")
        pieces = [bytes(piece) async for piece in download.read()]
        await download.close()
        assert b"".join(pieces) == data and max(map(len, pieces)) <= ALLOWANCE_SIZE

    run(work)


# --- the order of versions


async def manifest_of(rig: Rig, version: Version, key: bytes) -> Manifest:
    chunks = total(version.extents) - chunks_needed(version.size)
    place = Extent(version.extents[-1].stop - chunks, chunks)
    data = await rig.client.read_range(ticket.format(place.first), chunks)
    return manifest.parse(bytes(data), place.first, [key])


@pytest.mark.parametrize("size", [SMALL, SMALL_OBJECT_MAX + 1, PIECE + 1, LARGE])
def test_a_manifest_says_that_it_is_newer_while_the_clock_is_behind(run, node, monkeypatch, size):
    """The clock of the process that uploads goes back by an hour. What the run checks: nothing is left but what is live."""
    key = manifest.manifest_key(read_keys(node.data_dir / ".ingest" / "key")[0])
    behind = [0.0]
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - behind[0])

    async def work(rig: Rig) -> None:
        name = f"ordered {size}"
        found = []
        for round_, seconds in enumerate((0.0, 3600.0, 7200.0, 0.0)):
            behind[0] = seconds
            data = bytes_of(size, 70 + round_)
            version = await rig.store.put("test", name, body_of(data))
            assert await rig.read(name) == data
            about = await manifest_of(rig, version, key)
            assert about.order == version.order and about.digest == version.etag
            assert about.places == version.extents
            found.append(about.order)
        assert found == sorted(set(found))

    run(work)


def test_uploads_of_one_name_at_once_agree_on_an_order(run):
    async def work(rig: Rig) -> None:
        puts = [
            rig.store.put("test", "contended order", body_of(bytes_of(size, 80 + i)))
            for i, size in enumerate([SMALL, PIECE + 1] * 8)
        ]
        versions = await asyncio.gather(*puts)
        assert len({version.order for version in versions}) == len(versions)
        live = await rig.store.stat("test", "contended order")
        assert live.order == max(version.order for version in versions)

    run(work)
