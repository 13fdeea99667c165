"""Whose store it is: a store takes one catalog, a catalog one store, however they meet another one."""

import asyncio
import contextlib
import logging
import struct
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import apsw
import pytest
from reference_server import Model, ReferenceServer, build_frame

from ingest import ticket
from ingest.catalog.backup import backup
from ingest.catalog.catalog_changes import Catalog
from ingest.catalog.catalog_reader import CatalogReader
from ingest.catalog.database import migrate
from ingest.catalog.extent import FIRST, RESERVED, Extent
from ingest.catalog.local_catalog import LocalCatalog
from ingest.client.async_client import AsyncClient
from ingest.client.channel import _Connection
from ingest.client.get_channel import GetChannel
from ingest.client.proof import Expected, get_proof, put_proof
from ingest.client.put_channel import PutChannel
from ingest.errors import (
    ConnectionLostError,
    ForeignStoreError,
    IngestError,
    NoSpaceError,
    ProtocolError,
    RefusedError,
    UsageError,
)
from ingest.limits import DATA_SIZE
from ingest.mac import KeyRing
from ingest.objects import binding
from ingest.objects.binding import bind
from ingest.objects.collector import Collector
from ingest.objects.local_store import LocalStore
from ingest.status import Status

KEY = bytes(range(32))
ID = bytes(range(0x10, 0x20))


class Rig:
    """One catalog and a client of its own, at a server."""

    def __init__(self, client: AsyncClient, catalog: LocalCatalog, reader: CatalogReader) -> None:
        self.client, self.catalog, self.reader = client, catalog, reader

    async def bind(self) -> None:
        await bind(self.client, self.catalog, self.reader)

    async def put(self, name: str, data: bytes, key: bytes = KEY) -> None:
        """``key``: of the manifest."""

        async def body():
            yield data

        store = await LocalStore.enter(self.client, self.catalog, self.reader, key, "test")
        try:
            await store.put("test", name, body())
        finally:
            await store.leave()

    async def collect(self) -> Any:
        return await Collector(self.client, self.catalog, self.reader).run(retry_for=0)

    @property
    def bound(self) -> bool:
        return self.reader.identity().bound

    @property
    def chunk(self) -> bytes:
        return binding.serialize(self.reader.identity().id)


Work = Callable[..., Coroutine[Any, Any, Any]]


@pytest.fixture
def run(tmp_path: Path):
    """Runs ``work(server, rig, …)`` with a rig for each name of a catalog."""

    def run(work: Work, *names: str, server: ReferenceServer | None = None, get: bool = True) -> Any:
        async def enter(names: tuple[str, ...], server: ReferenceServer, *rigs: Rig) -> Any:
            if not names:
                return await work(server, *rigs)
            path = tmp_path / names[0]
            catalog = await LocalCatalog.open(path)
            address = server.get_address if get else None
            async with await AsyncClient.connect(
                server.put_address, address, KEY, timeout=5, retry_for=5
            ) as client:
                try:
                    with CatalogReader(path) as reader:
                        return await enter(names[1:], server, *rigs, Rig(client, catalog, reader))
                finally:
                    await catalog.close()

        if server is not None:
            return asyncio.run(enter(names, server))
        with ReferenceServer([KEY]) as server:
            return asyncio.run(enter(names, server))

    return run


def stored(server: ReferenceServer, index: int = RESERVED) -> bytes | None:
    """The data under a ticket."""
    frame = server.model.frames.get(index)
    return None if frame is None else frame[16:]


def meet(server: ReferenceServer, model: Model) -> None:
    """Another server answers at the address from now on."""
    server.model = model
    server.drop_connections()


# --- who is first


def test_the_first_catalog_has_the_store_and_every_other_one_is_refused(run):
    async def work(server: ReferenceServer, mine: Rig, other: Rig) -> None:
        await mine.bind()
        assert mine.bound and stored(server) == mine.chunk
        await mine.bind()
        await mine.put("a", b"x")
        before = dict(server.model.frames)
        with pytest.raises(ForeignStoreError, match=mine.reader.identity().id.hex()) as caught:
            await other.bind()
        assert caught.value.exit_code == 78 and "ingest catalog rebuild" in str(caught.value)
        assert not other.bound and server.model.frames == before

    run(work, "mine", "other")


def test_of_two_at_once_one_is_first(run):
    async def work(server: ReferenceServer, *rigs: Rig) -> None:
        outcomes = await asyncio.gather(*(rig.bind() for rig in rigs), return_exceptions=True)
        assert sorted(type(one) for one in outcomes if one is not None) == [ForeignStoreError]
        (first,) = [rig for rig, outcome in zip(rigs, outcomes, strict=True) if outcome is None]
        assert stored(server) == first.chunk and [rig.bound for rig in rigs] == [rig is first for rig in rigs]

    run(work, "one", "other")


def test_processes_of_one_catalog_do_not_refuse_each_other(run):
    async def work(server: ReferenceServer, *rigs: Rig) -> None:
        await asyncio.gather(*(rig.bind() for rig in rigs))
        assert stored(server) == rigs[0].chunk

    run(work, "one", "one", "one")


def test_a_process_that_died_before_it_noted_that_the_store_is_bound(run):
    async def work(server: ReferenceServer, mine: Rig) -> None:
        server.model.frame(build_frame(KEY, RESERVED, mine.chunk))
        await mine.bind()
        assert mine.bound

    run(work, "mine")


def test_no_answer_is_no_answer(run):
    """Nothing is said of whose the store is: it is asked again."""

    async def work(server: ReferenceServer, mine: Rig) -> None:
        for status, error in ((Status.NO_SPACE, NoSpaceError), (Status.BAD_CHECKSUM, RefusedError)):
            server.faults.answer = lambda index, seen, status=status: int(status)
            with pytest.raises(error):
                await mine.bind()
            assert not mine.bound
        server.faults.answer = None
        await mine.bind()

    run(work, "mine")


@pytest.mark.parametrize("status", Status)
@pytest.mark.parametrize("data", [b"x" * DATA_SIZE, None])
def test_what_each_answer_of_a_server_proves(status, data):
    """Only one that tells what the ticket holds says that the store is another one."""
    expected = Expected("AAAA", data, "another store")
    wanted = Status.DELETED if data is None else Status.SAVED
    if status is wanted:
        expected.prove(status, data)
        with pytest.raises(ForeignStoreError):
            expected.prove(status, b"y" * DATA_SIZE)
        return
    told = {
        Status.ERROR: ConnectionLostError,
        Status.BUSY: ConnectionLostError,
        Status.BAD_CHECKSUM: RefusedError,
        Status.BAD_TICKET: RefusedError,
        Status.NO_SPACE: RefusedError,
    }
    with pytest.raises(told.get(status, ForeignStoreError)):
        expected.prove(status, None)


def test_a_full_disk_under_a_store_that_is_bound(run):
    """A server may answer NO_SPACE whatever it has. What it says of room for the binding is for stores without one."""

    async def work(server: ReferenceServer, mine: Rig) -> None:
        await mine.bind()
        server.faults.answer = lambda index, seen: int(Status.NO_SPACE)
        with pytest.raises(NoSpaceError, match="until there is room"):
            await mine.bind()
        server.drop_connections()
        with pytest.raises(RefusedError, match="NO_SPACE"):
            await mine.put("a", b"x" * 5000)
        assert not mine.client.met_foreign  # a gateway would say that its engine is another one
        server.faults.answer = None
        await mine.put("a", b"x" * 5000)

    run(work, "mine")


def test_a_client_of_the_put_port_alone(run):
    async def work(server: ReferenceServer, mine: Rig, other: Rig) -> None:
        await mine.bind()
        await mine.bind()
        with pytest.raises(ForeignStoreError):
            await other.bind()
        assert stored(server) == mine.chunk

    run(work, "mine", "other", get=False)


def use_keys(server: ReferenceServer, mine: Rig, *keys: bytes) -> None:
    """As after a rotation: what is stored stays, and the keys of before are accepted no more."""
    model = Model(list(keys))
    model.frames, model.deleted = server.model.frames, server.model.deleted
    server.model = model
    mine.client.use_keys([*keys, KEY])


@pytest.mark.parametrize("rotated", ["never", "before the object", "after the object"])
def test_the_ticket_is_deleted_while_a_client_is_there(run, rotated):
    """By accident, in a range: the store is known by its objects as soon as the client connects again, with the keys that
    it has by then. All of them: the objects of before a rotation are signed with the one of before."""

    async def work(server: ReferenceServer, mine: Rig) -> None:
        await mine.bind()
        key = KEY if rotated == "never" else ID * 2
        if rotated == "after the object":
            await mine.put("a", b"x" * 5000, KEY)
        if rotated != "never":
            use_keys(server, mine, key)
        if rotated != "after the object":
            await mine.put("a", b"x" * 5000, key)
        await mine.client.delete(binding.TICKET)
        server.drop_connections()
        for _ in range(2000):
            try:
                await mine.put("b", b"y" * 5000)
                break
            except ForeignStoreError:
                await asyncio.sleep(0.005)
        await mine.put("c", b"z" * 5000)
        own, foreign = server.model, Model([key])
        foreign.frame(build_frame(key, FIRST, b"theirs"))
        meet(server, foreign)
        with pytest.raises(ForeignStoreError):
            await mine.put("d", b"y" * 5000)
        meet(server, own)
        await mine.put("d", b"y" * 5000)

    run(work, "mine")


@pytest.mark.parametrize("get", [True, False])
def test_what_is_proven_after_a_rotation_is_asked_for_with_the_new_key(run, get):
    """On each port: the server accepts none of the keys that were there when the client was made."""

    async def work(server: ReferenceServer, mine: Rig) -> None:
        await mine.bind()
        key = ID * 2
        use_keys(server, mine, key)
        server.drop_connections()
        await mine.put("a", b"x" * 5000, key)
        if get:
            assert await mine.client.get(binding.TICKET) == mine.chunk
        assert not mine.client.met_foreign

    run(work, "mine", get=get)


MINE = Expected(binding.TICKET, binding.serialize(ID), "another catalog's")
GONE = Expected(binding.TICKET, None, "another catalog's")
HEADER = struct.Struct(">8sB3xI")  # of a run


def acked(index: int, status: int) -> bytes:
    return ticket.index_to_wire(index) + bytes([status])


def told(index: int, status: int, count: int = 1, frame: bytes = b"") -> bytes:
    return HEADER.pack(ticket.index_to_wire(index), status, count) + frame


OWN = binding.serialize(ID)
BESIDE = RESERVED - 1
FRAMES = {
    "own": build_frame(KEY, RESERVED, OWN),
    "of another ticket": build_frame(KEY, BESIDE, OWN),
    "of another key": build_frame(bytes(32), RESERVED, OWN),
    "of another catalog": build_frame(KEY, RESERVED, binding.serialize(ID[::-1])),
    "that differs in its last byte": build_frame(KEY, RESERVED, OWN[:-1] + b"\1"),
    "spoilt in its last byte": build_frame(KEY, RESERVED, OWN)[:-1] + b"\1",
}


@pytest.mark.parametrize(
    ("port", "expected", "answer", "error"),
    [
        ("put", MINE, acked(RESERVED, Status.SAVED), None),
        ("put", MINE, acked(BESIDE, Status.SAVED), ProtocolError),
        ("put", MINE, acked(RESERVED, Status.DELETED), ForeignStoreError),
        ("put", MINE, acked(RESERVED, 77), ProtocolError),
        ("put", GONE, acked(RESERVED, Status.DELETED), None),
        ("put", GONE, acked(BESIDE, Status.DELETED), ProtocolError),
        ("put", GONE, acked(RESERVED, Status.SAVED), ForeignStoreError),
        ("get", MINE, told(RESERVED, Status.SAVED, 1, FRAMES["own"]), None),
        ("get", MINE, told(BESIDE, Status.SAVED, 1, FRAMES["own"]), ProtocolError),
        ("get", MINE, told(RESERVED, Status.SAVED, 1, FRAMES["of another ticket"]), ConnectionLostError),
        ("get", MINE, told(RESERVED, Status.SAVED, 1, FRAMES["of another key"]), ConnectionLostError),
        ("get", MINE, told(RESERVED, Status.SAVED, 1, FRAMES["of another catalog"]), ForeignStoreError),
        (
            "get",
            MINE,
            told(RESERVED, Status.SAVED, 1, FRAMES["that differs in its last byte"]),
            ForeignStoreError,
        ),
        (
            "get",
            MINE,
            told(RESERVED, Status.SAVED, 1, FRAMES["spoilt in its last byte"]),
            ConnectionLostError,
        ),
        ("get", MINE, told(RESERVED, Status.SAVED, 0), ForeignStoreError),
        ("get", MINE, told(RESERVED, Status.DELETED), ForeignStoreError),
        ("get", MINE, told(RESERVED, 77), ProtocolError),
        ("get", GONE, told(RESERVED, Status.DELETED), None),
        ("get", GONE, told(BESIDE, Status.DELETED), ProtocolError),
        ("get", GONE, told(RESERVED, Status.MISSING), ForeignStoreError),
        ("get", GONE, told(RESERVED, Status.SAVED, 1, FRAMES["own"]), ForeignStoreError),
    ],
)
def test_only_the_answer_for_this_ticket_proves_anything(port, expected, answer, error):
    """Not one for its neighbour, nor a frame that lies in the wrong slot or was spoilt."""
    ring = KeyRing([bytes(range(32, 64)), KEY])  # any of them may have signed what is stored
    if port == "put":
        proof = put_proof(expected, lambda: ring, lambda: asyncio.sleep(0))
    else:
        proof = get_proof(expected, lambda: ring)
    with pytest.raises(error) if error else contextlib.nullcontext():
        for came in range(HEADER.size, len(answer)):
            assert proof.size(memoryview(answer[:came])) == len(answer)
        assert proof.size(memoryview(answer)) == len(answer)
        proof.judge(answer)


class Deaf:
    """A transport that takes what is sent and answers nothing."""

    def write(self, data: bytes) -> None:
        pass


@pytest.mark.parametrize("pieces", [(5,), (8,), (3, 2), (4, 4), (1, 3, 5)], ids=str)
@pytest.mark.parametrize("kind", [PutChannel, GetChannel])
def test_bytes_behind_the_answer_end_the_connection(kind, pieces):
    """With it or as a second one: they would be taken for the beginning of the first answer to something else."""

    async def work() -> None:
        connection = _Connection(kind(("127.0.0.1", 1), 5, 0))
        connection.transport = Deaf()
        asking = asyncio.create_task(connection.ask(b"a question", lambda came: 4))
        await asyncio.sleep(0)
        for size in pieces:
            connection.get_buffer(-1)[:size] = b"A" * size
            connection.buffer_updated(size)
        with pytest.raises(ProtocolError, match="bytes that nobody asked for"):
            raise connection.ended.result()
        await asyncio.wait([asking])
        assert (asking.exception() is None) == (sum(pieces[:-1]) == 4)  # it had been whole

    asyncio.run(work())


# --- another server behind the address


@pytest.mark.parametrize("whose", ["another catalog's", "nobody's"])
def test_a_server_that_comes_into_the_place_of_another_one(run, whose):
    """Nothing is stored or deleted there, not even what was on its way; and it goes on when the right one is back."""

    async def work(server: ReferenceServer, mine: Rig) -> None:
        await mine.bind()
        await mine.put("a", b"x" * 5000)
        own, foreign = server.model, Model([KEY])
        if whose != "nobody's":
            foreign.frame(build_frame(KEY, RESERVED, binding.serialize(ID)))
            foreign.frame(build_frame(KEY, FIRST, b"theirs"))
        frames = dict(foreign.frames)
        await mine.catalog.delete("test", "a")
        meet(server, foreign)
        with pytest.raises(ForeignStoreError):
            await mine.put("b", b"y" * 5000)
        with pytest.raises(ForeignStoreError):
            await mine.collect()
        with pytest.raises(ForeignStoreError):
            await mine.client.get("00000000")
        assert mine.client.met_foreign
        with pytest.raises(ForeignStoreError):
            await mine.client.prove()
        with pytest.raises(ForeignStoreError):
            await mine.bind()
        assert foreign.frames == frames and not foreign.deleted
        meet(server, own)
        await mine.put("b", b"y" * 5000)
        assert (await mine.collect()).tickets > 0 and own.deleted
        assert await mine.client.get(binding.TICKET) == mine.chunk
        assert not mine.client.met_foreign

    run(work, "mine")


@pytest.mark.parametrize("port", ["put", "get"])
def test_a_connection_that_proved_nothing_is_ended(run, port):
    """Each call is another try: all of them together would take the places of that server's own clients."""

    async def work(server: ReferenceServer, mine: Rig) -> None:
        await mine.bind()
        meet(server, Model([KEY]))
        for _ in range(5):
            with pytest.raises(ForeignStoreError):
                await (mine.client.get("00000000") if port == "get" else mine.client.put("00000000", b"x"))
            assert mine.client.met_foreign  # though the other port has not looked yet
        async with asyncio.timeout(20):
            while server._writers:
                await asyncio.sleep(0)
        assert server.get_connections > 5

    run(work, "mine")


def test_frames_that_were_on_their_way_do_not_go_to_another_server(run):
    async def work(server: ReferenceServer, mine: Rig) -> None:
        await mine.bind()
        server.faults.silent = True
        putting = asyncio.create_task(mine.client.put("00000000", b"x"))
        while FIRST not in server.model.frames:
            await asyncio.sleep(0)
        foreign = Model([KEY])
        server.faults.silent = False
        meet(server, foreign)
        with pytest.raises(ForeignStoreError):
            await putting
        assert not foreign.frames

    run(work, "mine")


def test_a_collector_that_was_never_told_looks_for_itself(run):
    """It has no proof with its connection, and asks before it deletes."""

    async def work(server: ReferenceServer, mine: Rig) -> None:
        server.model.frame(build_frame(KEY, RESERVED, binding.serialize(ID)))
        lease = await mine.catalog.lease(None, 5)
        with Catalog(mine.reader.path) as catalog, catalog.change():
            catalog.throw_away([lease])
        with pytest.raises(ForeignStoreError):
            await mine.collect()
        assert not server.model.deleted and len(mine.reader.garbage(10)) == 1

    run(work, "mine")


# --- stores and catalogs that come from elsewhere


def of_format_1(path: Path) -> None:
    """Makes a catalog what it was before there was a binding."""
    db = apsw.Connection(str(path))
    db.execute("DROP INDEX ranked; DROP TABLE binding; ALTER TABLE versions DROP COLUMN rank")
    db.pragma("user_version", 1)
    db.close()


@pytest.mark.parametrize("theirs", ["chunks", "other bytes", "other names", "other sizes"])
def test_a_catalog_of_before_is_bound_to_the_store_that_has_its_objects(run, tmp_path, theirs):
    """Another catalog may have given the same tickets to objects of its own, under the same key."""
    size, letter = (2999 if theirs == "other sizes" else 3000), (b"z" if theirs == "other bytes" else b"y")

    async def fill(server: ReferenceServer, mine: Rig) -> None:
        await mine.put("a", b"x" * 3000)
        await mine.put("b", b"y" * 3000)

    async def fill_theirs(server: ReferenceServer, other: Rig) -> None:
        await other.put("a", b"x" * 3000)
        await other.put("c" if theirs == "other names" else "b", letter * size)

    async def work(server: ReferenceServer, mine: Rig) -> None:
        assert not mine.bound
        own = server.model
        meet(server, foreign)
        reader, newest = mine.reader, mine.reader.newest
        reader.newest = lambda limit: newest(1)  # "b" alone: what the two have alike is theirs as well
        with pytest.raises(ForeignStoreError, match="'b'"):
            await mine.bind()
        assert RESERVED not in foreign.frames
        reader.newest = newest
        meet(server, own)
        await mine.bind()
        assert mine.bound and stored(server) == mine.chunk

    foreign = Model([KEY])
    for index in range(FIRST, FIRST + 20):
        foreign.frame(build_frame(KEY, index, b"theirs"))
    if theirs != "chunks":
        with ReferenceServer([KEY]) as server:
            run(fill_theirs, "other", server=server)
            foreign = server.model
    with ReferenceServer([KEY]) as server:
        run(fill, "mine", server=server)
        of_format_1(tmp_path / "mine")
        migrate(tmp_path / "mine")
        run(work, "mine", server=server)


@pytest.mark.parametrize("deleted", [False, True])
def test_a_new_catalog_is_not_bound_to_a_store_that_has_objects(run, deleted):
    """Its own one is of before, and its gateway has not started since."""

    async def work(server: ReferenceServer, new: Rig, used: Rig) -> None:
        await new.client.put("00000000", b"theirs")
        if deleted:
            await new.client.delete("00000000")
        with pytest.raises(ForeignStoreError, match="this catalog is new"):
            await new.bind()
        assert RESERVED not in server.model.frames
        await used.catalog.lease(None, 1)
        await used.bind()  # its own objects may all be deleted

    run(work, "new", "used")


def test_a_copy_of_a_catalog_is_the_catalog_and_no_two_new_ones_are_one(run, tmp_path):
    async def work(server: ReferenceServer, mine: Rig) -> None:
        await mine.bind()
        backup(mine.reader.path, tmp_path / "copy")
        with CatalogReader(tmp_path / "copy") as copy:
            assert copy.identity() == mine.reader.identity()
        with CatalogReader(tmp_path / "new") as new:
            assert new.identity().id != mine.reader.identity().id

    run(work, "mine")


def test_a_store_that_lost_its_chunk_is_known_by_its_objects(run, caplog):
    """A repair has marked it deleted. Nobody else gets that store."""

    async def work(server: ReferenceServer, mine: Rig, other: Rig) -> None:
        await mine.bind()
        await mine.put("a", b"x" * 3000)
        await mine.client.delete(binding.TICKET)
        with caplog.at_level(logging.WARNING):
            await mine.bind()
        assert binding.TICKET in caplog.text
        with pytest.raises(ForeignStoreError, match="deleted"):
            await other.bind()
        own = server.model
        meet(server, Model([KEY]))
        with pytest.raises(ForeignStoreError):
            await mine.put("b", b"y")
        meet(server, own)
        await mine.put("b", b"y")
        await mine.catalog.delete("test", "a")
        assert (await mine.collect()).tickets > 0

    run(work, "mine", "other")


def test_a_chunk_of_a_client_s_own_is_named(run):
    async def work(server: ReferenceServer, mine: Rig) -> None:
        await mine.client.put(binding.TICKET, b"mine")
        with pytest.raises(ForeignStoreError, match="a chunk of its own under ZZZZZZZZ"):
            await mine.bind()

    run(work, "mine")


# --- the ticket and the chunk


def test_the_ticket_is_given_to_nobody(tmp_path):
    with Catalog(tmp_path / "catalog.db") as catalog, catalog.change():
        for beyond in (1, 2, 1296):
            with pytest.raises(UsageError):
                catalog.lease(None, RESERVED - FIRST + beyond)
        last = catalog.lease(None, RESERVED - FIRST)
        assert last == Extent(FIRST, RESERVED - FIRST) and ticket.format(RESERVED) == "ZZZZZZZZ"
        with pytest.raises(UsageError):
            catalog.lease(None, 1)


def test_the_chunk_as_docs_objects_has_it():
    data = binding.serialize(ID)
    assert data == b"ingestB1" + bytes.fromhex("00000001 00000000") + ID + bytes(DATA_SIZE - 32)
    assert binding.parse(data) == ID


@pytest.mark.parametrize(
    "data",
    [
        bytes(DATA_SIZE),
        b"ingestB1" + bytes.fromhex("00000002 00000000") + ID + bytes(DATA_SIZE - 32),
        binding.serialize(ID)[:-1] + b"x",
    ],
)
def test_what_is_no_such_chunk(data):
    with pytest.raises(IngestError):
        binding.parse(data)


def test_each_byte_of_the_chunk_counts():
    """Who changes one names another catalog, another format, or none: never this catalog."""
    whole = binding.serialize(ID)
    for at in range(DATA_SIZE):
        data = bytearray(whole)
        data[at] ^= 1 << at % 8
        if 16 <= at < 32:
            assert binding.parse(bytes(data)) != ID
            continue
        with pytest.raises(ForeignStoreError, match="knows format 1" if 8 <= at < 12 else "chunk of its own"):
            binding.parse(bytes(data))
