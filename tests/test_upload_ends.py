"""How an upload ends while its process goes on: all that it had is garbage at once, but for what others have there.

A process that ends gives everything back; one that stays for months must not need its end for that.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from reference_server import Faults, ReferenceServer, build_frame

from ingest.catalog.catalog_reader import CatalogReader
from ingest.catalog.extent import FIRST, RESERVED, chunks_needed
from ingest.catalog.local_catalog import LocalCatalog
from ingest.catalog.version import ABSENT, SAME, VersionState
from ingest.client.async_client import AsyncClient
from ingest.errors import BusyError, NameTakenError, RefusedError, UploadLostError
from ingest.limits import DATA_SIZE, SMALL_OBJECT_MAX
from ingest.objects.local_store import LocalStore
from ingest.objects.memory_budget import ALLOWANCE_SIZE
from ingest.status import Status

KEY = bytes(range(32))
SMALL, LARGE = 10 * DATA_SIZE - 3, 2 * SMALL_OBJECT_MAX  # the second one goes in several pieces
LAST = chunks_needed(LARGE) - 1
PATIENCE_S = 60.0


@dataclass
class Rig:
    server: ReferenceServer
    reader: CatalogReader
    store: LocalStore

    async def ended(self) -> None:
        """Nothing of any upload is left but what is live: the process goes on, and its lease is still its own."""
        await self.store._receiver.writer.close()
        assert not list(self.reader.versions(VersionState.PENDING))
        garbage = {
            index
            for item in self.reader.garbage(1000)
            for index in range(item.extent.first, item.extent.stop)
        }
        live = {
            index
            for version in self.reader.versions(VersionState.OK)
            for place in version.extents
            for index in range(place.first, place.stop)
        }
        assert self.server.model.frames.keys() - {RESERVED} - live <= garbage and not garbage & live
        budget = self.store.budget
        assert (budget.lent, budget.transfers, budget.borrowers) == (0, 0, 0)


def run(
    tmp_path: Path,
    work: Callable[[Rig], Coroutine[Any, Any, None]],
    faults: Faults | None = None,
    kind: type[LocalCatalog] = LocalCatalog,
) -> None:
    async def main(server: ReferenceServer, reader: CatalogReader) -> None:
        catalog = await kind.open(reader.path)
        put, get = server.put_address, server.get_address
        async with await AsyncClient.connect(put, get, KEY, retry_for=0) as client:
            store = await LocalStore.enter(client, catalog, reader, KEY, "test", 1000)
            await work(Rig(server, reader, store))
            await store.leave()
        await catalog.close()

    with ReferenceServer([KEY], faults) as server, CatalogReader(tmp_path / "catalog.db") as reader:
        asyncio.run(main(server, reader))


class BodyBroke(Exception):
    pass


def bytes_of(size: int) -> bytes:
    return blake3(b"upload").digest(size)


async def body_of(
    data: bytes, then: Callable[[], Coroutine[Any, Any, None]] | None = None
) -> AsyncIterator[bytes]:
    for at in range(0, len(data), 50_000):
        yield data[at : at + 50_000]
    if then is not None:
        await then()


@pytest.mark.parametrize(
    ("status", "known"), [(Status.NO_SPACE, True), (Status.BUSY, False), (Status.BAD_CHECKSUM, False)]
)
@pytest.mark.parametrize(
    ("size", "places"),
    [
        (SMALL, [3]),
        (SMALL, [chunks_needed(SMALL)]),  # the manifest
        (LARGE, [0]),
        (LARGE, [LAST]),
        (LARGE, [0, LAST]),  # of two pieces
        (LARGE, [LAST + 1]),  # the manifest
    ],
)
def test_what_every_ticket_would_be_answered_ends_the_upload(
    tmp_path: Path, size: int, places: list[int], status: Status, known: bool
) -> None:
    """It is told as what it is, and not tried under other tickets: a full disk is no stranger's chunk."""

    def answer(index: int, seen: int) -> int | None:
        return status if index - FIRST in places else None

    async def work(rig: Rig) -> None:
        with pytest.raises(RefusedError) as caught:
            await rig.store.put("n", "a", body_of(bytes_of(size)), size=size if known else None)
        assert caught.value.status is status
        await rig.ended()
        assert rig.reader.garbage(10) and not rig.reader.page("n")

    run(tmp_path, work, Faults(answer=answer))


HOW = ["kept", "name taken", "too short", "breaks", "no name", "cancelled"]


@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("how", HOW)
def test_however_it_ends_it_keeps_nothing(tmp_path: Path, how: str, size: int) -> None:
    data = bytes_of(size)

    def name() -> str:
        if how == "no name":
            raise BodyBroke
        return "a"

    async def work(rig: Rig) -> None:
        async def then() -> None:
            if how == "breaks":
                raise BodyBroke
            if how == "cancelled":
                upload.cancel()
                await asyncio.Event().wait()
            if how in ("kept", "name taken"):  # meanwhile
                await rig.store.put("n", "a", body_of(data))

        upload = asyncio.create_task(
            rig.store.put(
                "n", name, body_of(data, then),
                size=size + 1 if how == "too short" else None,
                condition=SAME if how == "kept" else ABSENT,
            )
        )  # fmt: skip
        if how == "kept":
            assert await upload == await rig.store.stat("n", "a")
        else:
            errors = {
                "name taken": NameTakenError,
                "too short": UploadLostError,
                "cancelled": asyncio.CancelledError,
            }
            with pytest.raises(errors.get(how, BodyBroke)):
                await upload
        await rig.ended()
        assert len(rig.reader.page("n")) == (how in ("kept", "name taken"))

    run(tmp_path, work)


@pytest.mark.parametrize("size", [None, SMALL_OBJECT_MAX, LARGE])
def test_who_may_borrow_nothing_has_one_allowance_at_a_time(tmp_path: Path, size: int | None) -> None:
    """Nothing more is read of it until what came is stored: a thousand of them have a thousand allowances, no more."""
    gate, taken = threading.Event(), 0
    data = bytes_of(size or LARGE)

    async def counted() -> AsyncIterator[bytes]:
        nonlocal taken
        for at in range(0, len(data), DATA_SIZE):
            taken += len(data[at : at + DATA_SIZE])
            yield data[at : at + DATA_SIZE]

    async def work(rig: Rig) -> None:
        rig.store.budget.size = 0
        upload = asyncio.create_task(rig.store.put("n", "a", counted(), size=size))
        await asyncio.to_thread(rig.server.stalled.wait)
        for _ in range(100):
            await asyncio.sleep(0)
        before, _ = taken, gate.set()
        assert (await upload).digest == blake3(data).digest()
        assert before <= ALLOWANCE_SIZE + 1
        await rig.ended()

    run(tmp_path, work, Faults(gate=gate))


class NeverLearns(LocalCatalog):
    """Of no conflict; ``asked`` how often."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.asked = itertools.count(1)
        self.again = asyncio.Event()

    async def conflicted(self, owner: int, index: int, version: int | None = None) -> None:
        if next(self.asked) > 1:
            self.again.set()
        raise BusyError("another process has the catalog")


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_a_process_ends_though_the_catalog_learns_of_no_conflict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Neither who uploads nor the end waits for it for ever; until then it is tried again, and nothing is garbage."""
    monkeypatch.setattr("ingest.objects.chunk_writer.UPLOAD_SETTLE_S", 0.01)

    async def work(rig: Rig) -> None:
        rig.server.model.frame(build_frame(KEY, FIRST + 3, b"foreign"))
        async with asyncio.timeout(PATIENCE_S):
            with pytest.raises(BusyError):
                await rig.store.put("n", "a", body_of(bytes_of(size)))
            await rig.store._receiver.writer.close()
            assert not rig.reader.garbage(10)
            catalog = rig.store._catalog
            assert isinstance(catalog, NeverLearns)
            await catalog.again.wait()
            assert not rig.reader.garbage(10)

    run(tmp_path, work, kind=NeverLearns)
