"""What is put may be any buffer, of items and of dimensions: what counts are its bytes, and how many there are of them."""

import asyncio
from array import array
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import numpy as np
import pytest
from reference_server import ReferenceServer

from ingest import AsyncClient, Client, frame, record
from ingest.errors import UsageError
from ingest.limits import DATA_SIZE, FRAME_SIZE

KEY = bytes(range(32))
KINDS: dict[str, Callable[[bytes], Any]] = {
    "bytes": bytes,
    "bytearray": bytearray,
    "numbers of 4 bytes": lambda data: array("I", data),
    "characters": lambda data: memoryview(data).cast("c"),
    "rows": lambda data: np.frombuffer(data, np.uint16).reshape(2, -1),
}
WHOLE = bytes(i % 251 + 1 for i in range(1200))
LARGE = bytes(i % 251 + 1 for i in range(4400))  # of 3 chunks and a part; of one, if items were counted


@pytest.fixture(scope="module")
def server() -> Iterator[ReferenceServer]:
    with ReferenceServer([KEY]) as running:
        yield running


@pytest.fixture
def kind(request: pytest.FixtureRequest, server: ReferenceServer) -> Callable[[bytes], Any]:
    server.model.frames.clear()
    return KINDS[request.param]


def chunks(data: bytes) -> bytes:
    return data.ljust(frame.frames_needed(len(data)) * DATA_SIZE, b"\0")


@pytest.mark.parametrize("kind", KINDS, indirect=True)
def test_each_call_that_puts_one(server: ReferenceServer, kind: Callable[[bytes], Any]) -> None:
    given = kind(WHOLE)
    with Client.connect(server.put_address, server.get_address, KEY) as client:
        client.put("A", given)
        assert client.put_many([("B", given), ("C", b"")]) == {}
        client.put_record("D", given)
        assert client.put_records("E", [given, given]) == {}
        assert client.put_range("AA", given) == {}
        assert client.get("A") == client.get("B") == client.read_range("AA", 1) == chunks(WHOLE)
        assert client.get("C") == bytes(DATA_SIZE)
        assert [client.get_record(name) for name in "DEF"] == [WHOLE] * 3


@pytest.mark.parametrize("kind", KINDS, indirect=True)
def test_what_is_of_several_chunks(server: ReferenceServer, kind: Callable[[bytes], Any]) -> None:
    given = kind(LARGE)

    async def put_all() -> None:
        async with await AsyncClient.connect(server.put_address, server.get_address, KEY) as client:
            assert await client.put_range("AA", given) == {}
            batch = client.new_batch()
            await client.add_range(batch, "BA", given)
            sealed = client.seal_range("CA", given)
            assert len(sealed) == 4 * FRAME_SIZE
            await client.add_frames(batch, sealed)
            assert await client.finish(batch) == {}
            for first in ("AA", "BA", "CA"):
                assert await client.read_range(first, 4) == chunks(LARGE)

    asyncio.run(put_all())


@pytest.mark.parametrize("kind", KINDS, indirect=True)
def test_what_is_too_long(server: ReferenceServer, kind: Callable[[bytes], Any]) -> None:
    """Too long in bytes: it would be cut, or stand where the next frame begins."""
    given = kind(bytes(1460))
    with Client.connect(server.put_address, server.get_address, KEY) as client:
        for put in (
            lambda: client.put("A", given),
            lambda: client.put_many([("A", given)]),
            lambda: client.put_record("A", given),
            lambda: client.put_records("A", [given]),
        ):
            with pytest.raises(UsageError, match="bytes, not 1460"):
                put()
    assert not server.model.frames


@pytest.mark.parametrize("kind", KINDS, indirect=True)
def test_records_and_streams(kind: Callable[[bytes], Any]) -> None:
    assert record.serialize(kind(WHOLE)) == record.serialize(WHOLE)
    splitter = frame.RecordSplitter(100)
    assert b"".join(map(bytes, splitter.feed(kind(WHOLE)))) == WHOLE
    splitter.feed(b"1" * 40)
    assert b"".join(map(bytes, splitter.feed(kind(WHOLE)))) == (b"1" * 40 + WHOLE)[:1200]
    assert splitter.partial_size == 40


def test_a_buffer_with_gaps_is_refused_before_anything_is_sent(server: ReferenceServer) -> None:
    server.model.frames.clear()
    gaps = memoryview(WHOLE)[::2]

    async def calls() -> None:
        async with await AsyncClient.connect(server.put_address, None, KEY) as client:
            work: list[Callable[[], Coroutine[Any, Any, Any]]] = [
                lambda: client.put("A", gaps),
                lambda: client.put_many([("A", gaps)]),
                lambda: client.put_record("A", gaps),
                lambda: client.put_range("A", gaps),
            ]
            for call in work:
                with pytest.raises(TypeError):
                    await call()

    asyncio.run(calls())
    assert not server.model.frames
