"""Downloads: what becomes of one when its chunks answer something else than data, and what came to the name meanwhile."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest
from blake3 import blake3

from ingest import ticket
from ingest.catalog.catalog_changes import Catalog
from ingest.catalog.catalog_reader import CatalogReader
from ingest.catalog.extent import Extent, chunks_needed
from ingest.catalog.local_catalog import LocalCatalog
from ingest.errors import CorruptFrameError, IngestError, NotFoundError, RefusedError
from ingest.limits import DATA_SIZE, PIECE_CHUNKS, SMALL_OBJECT_MAX
from ingest.objects.download import LOOKS_MAX, PinnedDownload, SmallDownload, open_version
from ingest.objects.membership import Membership
from ingest.objects.memory_budget import ALLOWANCE_SIZE, Budget
from ingest.status import Status

GONE = (Status.MISSING, Status.DELETED)  # what the collector leaves, and what was never there
SMALL, LARGE = 3 * DATA_SIZE, SMALL_OBJECT_MAX + DATA_SIZE


class Chunks:
    """What is read of a `ChunkStore`: ``answers`` has the tickets under which there is no data. ``event`` is awaited before
    the next read is answered."""

    def __init__(self) -> None:
        self.data: dict[int, bytes] = {}
        self.answers: dict[int, Status] = {}
        self.event: Callable[[], Awaitable[None]] | None = None

    async def read_range(self, first: str, count: int) -> bytearray:
        event, self.event = self.event, None
        if event is not None:
            await event()
        begin, found = ticket.parse(first), bytearray()
        for index in range(begin, begin + count):
            if index in self.answers:
                raise RefusedError(ticket.format(index), self.answers[index])
            found += self.data[index]
        return found


class SlowCatalog(LocalCatalog):
    """``event`` is awaited before the next pin."""

    event: Callable[[], Awaitable[None]] | None = None

    async def pin(self, owner: int, version: int) -> None:
        event, self.event = self.event, None
        if event is not None:
            await event()
        await super().pin(owner, version)


class Node:
    """A catalog, and a store of chunks."""

    def __init__(self, catalog: SlowCatalog, reader: CatalogReader, membership: Membership) -> None:
        self.catalog, self.reader, self.membership = catalog, reader, membership
        self.chunks = Chunks()
        self.budget = Budget()

    @classmethod
    async def run(cls, path: Path, work: Callable[[Node], Awaitable[None]]) -> None:
        catalog = await SlowCatalog.open(path)
        with CatalogReader(path) as reader:
            node = cls(catalog, reader, await Membership.enter(catalog, "test", 0))
            await work(node)
            assert (node.budget.lent, node.budget.transfers) == (0, 0)
            await node.membership.leave()
        await catalog.close()

    async def put(self, data: bytes) -> Extent:
        """Under the one name that there is."""
        count = chunks_needed(len(data))
        place = await self.catalog.lease(self.membership.owner, count + 1)
        for i in range(count):
            self.chunks.data[place.first + i] = data[i * DATA_SIZE : (i + 1) * DATA_SIZE].ljust(
                DATA_SIZE, b"\0"
            )
        (number,) = await self.catalog.reserve(1)
        await self.catalog.store(
            self.membership.owner, "n", "name", len(data), blake3(data).digest(), [place], number=number
        )
        return place

    async def put_scattered(self, data: bytes, counts: Sequence[int]) -> None:
        """Its chunks lie in extents of so many, the last of which has the rest, with gaps between them."""
        left, chunk, places = chunks_needed(len(data)), 0, []
        for count in (*counts, left):
            here = min(count, left)
            left -= here
            places.append(await self.catalog.lease(self.membership.owner, here + (not left)))
            await self.catalog.lease(None, 1)
            for index in range(places[-1].first, places[-1].first + here):
                self.chunks.data[index] = data[chunk * DATA_SIZE : (chunk + 1) * DATA_SIZE].ljust(
                    DATA_SIZE, b"\0"
                )
                chunk += 1
            if not left:
                break
        (number,) = await self.catalog.reserve(1)
        digest = blake3(data).digest()
        await self.catalog.store(self.membership.owner, "n", "name", len(data), digest, places, number=number)

    def answer(self, place: Extent, status: Status) -> None:
        self.chunks.answers |= dict.fromkeys(range(place.first, place.stop), status)

    async def open(self) -> SmallDownload | PinnedDownload:
        return await open_version(
            lambda: self.reader.find("n", "name"),
            self.chunks,  # type: ignore[arg-type]
            self.catalog,
            self.membership,
            self.budget,
        )

    async def read(self) -> bytes:
        download = await self.open()
        try:
            return b"".join([bytes(piece) async for piece in download.read()])
        finally:
            await download.close()


async def outcome(reading: Awaitable[bytes]) -> bytes | type[Exception]:
    try:
        return await reading
    except IngestError as error:
        return type(error)


@pytest.mark.parametrize("size", [SMALL, ALLOWANCE_SIZE + DATA_SIZE])
@pytest.mark.parametrize("meanwhile", ["nothing", "replaced", "replaced twice", "deleted"])
@pytest.mark.parametrize("status", [status for status in Status if status is not Status.SAVED])
def test_a_chunk_that_is_not_there_when_all_is_read_at_once(
    tmp_path: Path, status: Status, meanwhile: str, size: int
) -> None:
    """A version that is gone was replaced, and then the next one is read; or else something is wrong."""
    new = b"n" * (size + 1)

    async def work(node: Node) -> None:
        old = await node.put(b"o" * size)

        async def event() -> None:
            node.answer(old, status)
            if meanwhile.startswith("replaced"):
                middle = await node.put(b"m" * size)
                if meanwhile == "replaced twice":
                    node.answer(middle, status)
                    await node.put(new)
            elif meanwhile == "deleted":
                await node.catalog.delete("n", "name")

        node.chunks.event = event
        if status not in GONE:
            expected: object = RefusedError
        elif meanwhile == "nothing":
            expected = CorruptFrameError
        elif meanwhile == "deleted":
            expected = NotFoundError
        else:
            expected = new if meanwhile == "replaced twice" else b"m" * size
        assert await outcome(node.read()) == expected

    asyncio.run(Node.run(tmp_path / "catalog.db", work))


MIDDLE = ALLOWANCE_SIZE + 5 * DATA_SIZE  # is borrowed for, and read whole
SIZES = (0, SMALL, ALLOWANCE_SIZE, MIDDLE, SMALL_OBJECT_MAX, LARGE)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("before", SIZES)
def test_what_was_borrowed_for_a_version_that_is_gone_is_given_back(
    tmp_path: Path, before: int, size: int
) -> None:
    """While the new one is read nothing is borrowed but for that."""
    needed = chunks_needed(size) * DATA_SIZE if ALLOWANCE_SIZE < size <= SMALL_OBJECT_MAX else 0

    async def work(node: Node) -> None:
        old = await node.put(b"o" * before)
        data = b"n" * size

        async def event() -> None:
            node.answer(old, Status.DELETED)
            await node.put(data)

        if before > SMALL_OBJECT_MAX:
            node.catalog.event = event
        else:
            node.chunks.event = event
        download = await node.open()
        assert (node.budget.lent, node.budget.borrowers) == (needed, needed > 0)
        assert b"".join([bytes(piece) async for piece in download.read()]) == data
        await download.close()

    asyncio.run(Node.run(tmp_path / "catalog.db", work))


@pytest.mark.parametrize("status", GONE)
def test_a_name_that_never_stays(tmp_path: Path, status: Status) -> None:
    """Between each look and its read the version is replaced and collected: in the end that is said."""

    async def work(node: Node) -> None:
        places = [await node.put(b"0")]

        async def event() -> None:
            node.answer(places[-1], status)
            places.append(await node.put(b"%d" % len(places)))
            node.chunks.event = event

        node.chunks.event = event
        with pytest.raises(NotFoundError, match="again and again"):
            await node.read()
        assert len(places) == 1 + LOOKS_MAX

    asyncio.run(Node.run(tmp_path / "catalog.db", work))


@pytest.mark.parametrize("meanwhile", ["nothing", "replaced", "deleted"])
@pytest.mark.parametrize("status", [None, *(status for status in Status if status is not Status.SAVED)])
def test_a_version_that_is_pinned(tmp_path: Path, status: Status | None, meanwhile: str) -> None:
    """Its chunks stay, whatever comes to its name; what one of them answers ends the download."""

    async def work(node: Node) -> None:
        data = b"o" * LARGE
        old = await node.put(data)
        download = await node.open()
        assert isinstance(download, PinnedDownload)
        if meanwhile == "replaced":
            await node.put(b"new")
        elif meanwhile == "deleted":
            await node.catalog.delete("n", "name")
        assert not node.reader.garbage(10)
        if status is not None:
            node.answer(Extent(old.stop - 3, 2), status)
        found = bytearray()
        try:
            async for piece in download.read():
                found += piece
            assert status is None and found == data
        except RefusedError as error:
            assert error.status is status
            assert found == data[: len(found)]
        await download.close()
        assert [item.extent for item in node.reader.garbage(10)] == [old] * (meanwhile != "nothing")

    asyncio.run(Node.run(tmp_path / "catalog.db", work))


@pytest.mark.parametrize("meanwhile", ["replaced", "replaced by a small one", "deleted"])
def test_a_version_that_goes_before_its_pin(tmp_path: Path, meanwhile: str) -> None:
    async def work(node: Node) -> None:
        await node.put(b"o" * LARGE)
        new = b"n" * (LARGE if meanwhile == "replaced" else 5)

        async def event() -> None:
            if meanwhile == "deleted":
                await node.catalog.delete("n", "name")
            else:
                await node.put(new)

        node.catalog.event = event
        assert await outcome(node.read()) == (NotFoundError if meanwhile == "deleted" else new)

    asyncio.run(Node.run(tmp_path / "catalog.db", work))


@pytest.mark.parametrize("expired", [False, True])
def test_a_process_that_was_given_up_pins_what_it_reads_as_another_owner(
    tmp_path: Path, expired: bool
) -> None:
    """It stood still for too long: its next download is as safe from the collector as those before."""

    async def work(node: Node) -> None:
        data = b"o" * LARGE
        place = await node.put(data)
        first = node.membership.owner
        with Catalog(tmp_path / "catalog.db") as catalog, catalog.change():
            catalog._db.run("UPDATE owners SET deadline = 0 WHERE id = ?", first)
            if expired:
                assert catalog.expire() == 1
        download = await node.open()
        assert isinstance(download, PinnedDownload)
        assert download._owner == node.membership.owner != first
        await node.catalog.delete("n", "name")
        assert not node.reader.garbage(10)
        assert b"".join([bytes(piece) async for piece in download.read()]) == data
        await download.close()
        assert [item.extent for item in node.reader.garbage(10)] == [place]

    asyncio.run(Node.run(tmp_path / "catalog.db", work))


@pytest.mark.parametrize("size", [ALLOWANCE_SIZE + DATA_SIZE, LARGE])
@pytest.mark.parametrize("goes", ["before its pin", "while it is pinned", "when it is pinned", "after more"])
def test_a_slow_client_that_goes_leaves_no_pin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, goes: str, size: int
) -> None:
    """What was small is pinned late, for who does not take it. When the object is replaced, its chunks are garbage."""
    monkeypatch.setattr("ingest.objects.download.PIECE_PATIENCE_S", 60 if goes == "before its pin" else 0.01)

    async def work(node: Node) -> None:
        place = await node.put(b"o" * size)
        pinning, let = asyncio.Event(), asyncio.Event()

        async def event() -> None:
            pinning.set()
            await let.wait()

        if size < LARGE:  # a large one has its pin before its first byte
            node.catalog.event = event
        download = await node.open()
        pieces = download.read()
        piece = memoryview(await anext(pieces))
        del piece
        download.took(10)
        if size < LARGE and goes != "before its pin":
            await pinning.wait()
        if goes in ("when it is pinned", "after more"):
            let.set()
            await asyncio.sleep(0.05)
        if goes == "after more":
            await anext(pieces)
        asyncio.get_running_loop().call_later(0.02, let.set)
        await pieces.aclose()
        await download.close()
        await node.put(b"new")
        assert [item.extent for item in node.reader.garbage(10)] == [place]

    asyncio.run(Node.run(tmp_path / "catalog.db", work))


@pytest.mark.parametrize("meanwhile", ["nothing", "replaced"])
@pytest.mark.parametrize("taken", [0, 1, DATA_SIZE, MIDDLE - 1])
def test_what_a_slow_client_has_not_taken_is_in_no_memory_that_others_could_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: int, meanwhile: str
) -> None:
    """It is read again when the client goes on; but what was replaced can't be, and is kept. All of it comes."""
    monkeypatch.setattr("ingest.objects.download.PIECE_PATIENCE_S", 0.01)
    data = random.Random(MIDDLE).randbytes(MIDDLE)

    async def work(node: Node) -> None:
        await node.put(data)
        download = await node.open()
        assert isinstance(download, SmallDownload) and node.budget.lent
        if meanwhile == "replaced":
            await node.put(b"new")
        pieces = download.read()
        piece = memoryview(await anext(pieces))
        found = bytearray(piece[:taken])
        del piece
        download.took(taken)
        while download._pinning is None:
            await asyncio.sleep(0.001)
        await asyncio.wait([download._pinning])
        assert bool(node.budget.lent) == bool(download._data) == (meanwhile == "replaced")
        async for piece in pieces:
            found += piece
        assert found == data
        await download.close()

    asyncio.run(Node.run(tmp_path / "catalog.db", work))


@pytest.mark.parametrize("counts", [(), (1,), (1, 2, 3), (127, 129, 1), (1000, 1)])
@pytest.mark.parametrize("size", [7 * DATA_SIZE + 5, LARGE + 1, 1500 * DATA_SIZE - 7])
def test_any_part_is_what_was_stored_there_however_many_extents_it_has(
    tmp_path: Path, size: int, counts: Sequence[int]
) -> None:
    """Read whole or in pieces, from and to each boundary of its extents and of its pieces, and one byte beside it."""
    data = random.Random(size).randbytes(size)
    edges = {0, 1, size - 1, size, DATA_SIZE, (size - 1) // DATA_SIZE * DATA_SIZE}
    for chunk in (*itertools.accumulate(counts), *(PIECE_CHUNKS // 4 * count for count in (1, 2, 3, 7))):
        edges |= {chunk * DATA_SIZE + beside for beside in (-1, 0, 1)}
    ordered = sorted(edge for edge in edges if 0 <= edge <= size)
    spans = [
        *itertools.pairwise(ordered),
        *((edge, size) for edge in ordered),
        *((0, edge) for edge in ordered),
    ]

    async def work(node: Node) -> None:
        await node.put_scattered(data, counts)
        for start, stop in [*spans, (size, size), (1, 1), (0, size + 1)]:
            download = await node.open()
            found = b"".join([bytes(piece) async for piece in download.read(start, stop)])
            await download.close()
            assert found == data[start:stop], (start, stop)

    asyncio.run(Node.run(tmp_path / "catalog.db", work))
