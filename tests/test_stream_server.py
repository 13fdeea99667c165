"""What the raw stream replies to whatever becomes of an upload, and what is left of it then."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import uvloop
from memory_store import MemoryStore

from ingest import errors, ticket
from ingest.errors import IngestError, RefusedError
from ingest.gateway.apis.stream_api import NAMESPACE, StreamServer
from ingest.gateway.http.failures import ClientGoneError
from ingest.gateway.http.request_id import RequestIds
from ingest.limits import TICKET_SIZE
from ingest.objects.object_store import ObjectStore
from ingest.runtime.wires import Wires
from ingest.status import Status

NONE = bytes(TICKET_SIZE)  # no ObjectID


class FailingStore(MemoryStore):
    """``reads``: what `put` does with the body before it raises ``failure``, if there is one."""

    failure: BaseException | None = None
    reads = True

    async def put(self, namespace: str, name: Any, body: Any, **more: Any) -> Any:
        if self.failure is None:
            return await super().put(namespace, name, body, **more)
        if self.reads:
            await self._gather(body, None)
        raise self.failure


class SlowToFail(MemoryStore):
    """Whose uploads take some steps to their end when they are cut off, as the catalog learns of it."""

    cut_off = 0

    async def _gather(self, source: Any, size: int | None) -> bytearray:
        try:
            return await super()._gather(source, size)
        except asyncio.CancelledError:
            for _ in range(10):
                await asyncio.sleep(0)
            self.cut_off += 1
            raise


@asynccontextmanager
async def serving(store: MemoryStore) -> AsyncIterator[tuple[StreamServer, Callable[[], Any]]]:
    """The server, and how to connect to it. In the end nobody has a place."""
    wires = Wires()
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, what: told.append(what))
    server = StreamServer(cast(ObjectStore, store), RequestIds(), wires)
    port = await asyncio.get_running_loop().create_server(server.connect, "127.0.0.1", 0)
    address = port.sockets[0].getsockname()
    yield server, lambda: asyncio.open_connection(*address)
    port.close()
    while len(wires.guests) or wires.refused or server._connections:
        await asyncio.sleep(0)
    gc.collect()
    assert not told, "a task failed, and nobody looked at it: each client could fill the log so"


async def sent(connect: Callable[[], Any], data: bytes) -> bytes:
    """The reply."""
    reader, writer = await connect()
    writer.write(data)
    writer.write_eof()
    try:
        reply: bytes = await reader.read()
        return reply
    except ConnectionError:
        return b""
    finally:
        writer.close()


def run(work: Callable[[], Any]) -> None:
    uvloop.run(asyncio.wait_for(work(), 60))


def all_errors() -> list[type[IngestError]]:
    found = [IngestError]
    for kind in found:
        found += [one for one in kind.__subclasses__() if one.__module__ == errors.__name__]
    return found


BUSY = (errors.BusyError, errors.ConnectionLostError, errors.DataDirLostError)  # what passes: try again
FAILURES: list[tuple[BaseException, Status | None]] = [
    *((RefusedError("0", status), status) for status in Status if status is not Status.SAVED),
    *(
        (kind("why"), Status.BUSY if issubclass(kind, BUSY) else Status.ERROR)
        for kind in all_errors()
        if kind is not RefusedError
    ),
    (OSError(5, "why"), Status.ERROR),
    (TimeoutError(), Status.ERROR),
    (TimeoutError("why"), Status.ERROR),
    (ConnectionResetError(104, "why"), None),
    (BrokenPipeError(32, "why"), None),
    (ClientGoneError("why"), None),
]


@pytest.mark.parametrize("reads", [True, False])
def test_each_failure_has_its_reply(reads: bool) -> None:
    """And none of them SAVED, and none an id. Who went away is told nothing. The next upload is as good as any."""

    async def work() -> None:
        store = FailingStore()
        store.reads = reads
        async with serving(store) as (_, connect):
            for failure, status in FAILURES:
                store.failure = failure
                reply = await sent(connect, b"bytes")
                failure.__traceback__ = None  # it holds what the task that failed with it had
                assert reply == (b"" if status is None else NONE + bytes([status])), failure
                store.failure = None
                reply = await sent(connect, b"bytes")
                assert (len(reply), reply[8]) == (9, Status.SAVED)
                version = await store.stat_object(ticket.from_wire(reply[:8]))
                assert (version.namespace, version.size) == (NAMESPACE, 5)
        assert len({name for _, name in store.live}) == len(FAILURES)

    run(work)


@pytest.mark.parametrize("late", [[], [0], [1], [2], [0, 2], [0, 1, 2]])
def test_a_drain_waits_for_those_that_end_and_cuts_off_the_others(late: list[int]) -> None:
    """What is cut off is not stored, though it came to no end of its own; who ended in time has the reply."""

    async def work() -> None:
        store = SlowToFail()
        async with serving(store) as (server, connect):
            peers = [await connect() for _ in range(3)]
            for number, (_, writer) in enumerate(peers):
                writer.write(b"%d bytes, and more than are looked at" % number)
            while store._number < len(peers):  # uploads that have begun
                await asyncio.sleep(0)
            draining = asyncio.create_task(server.drain(0.05 if late else 3600))
            await asyncio.sleep(0)
            for number, (reader, writer) in enumerate(peers):
                if number not in late:
                    assert not draining.done()
                    writer.write_eof()
                    assert (await reader.read())[8:] == bytes([Status.SAVED])
            await draining
            assert (store.cut_off, server._connections) == (len(late), set())
            for number in late:
                reader, writer = peers[number]
                writer.write_eof()
                assert await reader.read() == b""
            for _, writer in peers:
                writer.close()
            await server.drain(3600)  # nobody is left to wait for
        stored = {data[:1] for _, data in store.live.values()}
        assert stored == {b"%d" % number for number in range(3) if number not in late}

    run(work)


def test_names_of_streams_are_never_the_same() -> None:
    """However many come within a second."""

    async def work() -> None:
        store = MemoryStore()
        async with serving(store) as (_, connect):
            replies = await asyncio.gather(*(sent(connect, b"%d" % number) for number in range(20)))
        assert len({reply[:8] for reply in replies}) == len(store.live) == 20
        assert {data for _, data in store.live.values()} == {b"%d" % number for number in range(20)}

    run(work)
