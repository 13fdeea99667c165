"""Bytes that go from a connection into buffers: none is lost, none goes where it does not belong."""

import asyncio

import pytest

from ingest.gateway.apis import stream_api
from ingest.gateway.http.failures import ClientGoneError
from ingest.gateway.http.incoming import Incoming


class Link:
    """A transport and its peer: ``send`` gives bytes to an Incoming as an event loop would, while it reads."""

    def __init__(self, size: int | None, waste: int = 8) -> None:
        self.reading = True
        self.incoming = Incoming(self, size, memoryview(bytearray(waste)))  # type: ignore[arg-type]

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def send(self, data: bytes) -> bytes:
        """Returns what waits in the kernel, because nobody reads."""
        while data and self.reading:
            buffer = self.incoming.buffer()
            size = min(len(buffer), len(data))
            assert size, "a loop takes an empty buffer for an error"
            buffer[:size] = data[:size]
            data = data[size:]
            self.incoming.received(size)
        return data


def run(work) -> None:
    asyncio.run(asyncio.wait_for(work(), 60))


async def filling(link: Link, size: int, **how) -> asyncio.Task[bytes]:
    async def fill() -> bytes:
        buffer = bytearray(size)
        return bytes(buffer[: await link.incoming.fill(memoryview(buffer), **how)])

    task = asyncio.create_task(fill())
    await asyncio.sleep(0)  # it waits now
    return task


def test_a_body_in_two_buffers():
    async def work() -> None:
        link = Link(10)
        assert link.send(b"early") == b"early"  # nobody reads yet
        first = await filling(link, 4)
        assert link.send(b"0123456789next") == b"456789next"
        assert await first == b"0123" and not link.incoming.ended
        assert link.send(b"456789next") == b"456789next"
        second = await filling(link, 100)
        assert link.send(b"456789next") == b"next"  # behind the body
        assert await second == b"456789" and link.incoming.ended
        assert await (await filling(link, 5)) == b""

    run(work)


def test_patience_ends_before_the_buffer_is_full():
    async def work() -> None:
        link = Link(10)
        task = await filling(link, 10, patience=0.01)
        link.send(b"abc")
        assert await task == b"abc" and not link.incoming.ended
        assert link.send(b"d") == b"d"
        task = await filling(link, 10)
        link.send(b"defghij")
        assert await task == b"defghij" and link.incoming.ended

    run(work)


def test_the_end_of_a_connection_is_the_end_of_a_stream():
    async def work() -> None:
        link = Link(None)
        task = await filling(link, 10)
        link.send(b"abc")
        link.incoming.finish()
        assert await task == b"abc" and link.incoming.ended

    run(work)


@pytest.mark.parametrize(("size", "lost"), [(10, None), (10, "reset"), (None, "reset")])
def test_an_early_end_is_told(size, lost):
    async def work() -> None:
        link = Link(size)
        task = await filling(link, 10)
        link.send(b"abc")
        link.incoming.finish(lost)
        with pytest.raises(ClientGoneError):
            await task
        with pytest.raises(ClientGoneError):
            await link.incoming.fill(memoryview(bytearray(1)))
        assert not link.incoming.ended

    run(work)


def test_silence_is_told(monkeypatch):
    monkeypatch.setattr("ingest.gateway.http.incoming.HTTP_STALL_TIMEOUT_S", 0.01)

    async def work() -> None:
        link = Link(10)
        with pytest.raises(TimeoutError):
            await link.incoming.fill(memoryview(bytearray(10)))

    run(work)


def test_what_came_before_anybody_read_is_kept():
    """A loop starts to read a new connection whatever its protocol says."""

    async def work() -> None:
        link = Link(None)
        link.reading = True
        assert link.send(b"0123456789") == b"89"  # the memory for it is 8 bytes
        assert await (await filling(link, 3)) == b"012"
        assert await (await filling(link, 100, some=True)) == b"34567"
        task = await filling(link, 100, some=True)
        assert link.send(b"89") == b""
        assert await task == b"89"

    run(work)


@pytest.mark.parametrize("size", range(1, 9))
@pytest.mark.parametrize("step", [1, 3, 8])
def test_it_has_ended_when_its_last_byte_was_given(size, step):
    """Not when that came: who asks in between would take a part of it for the whole."""

    async def work() -> None:
        for early in range(size + 1):
            link = Link(size)
            link.reading = True
            assert link.send(b"12345678"[:early]) == b""
            given = b""
            while len(given) < size:
                assert not link.incoming.ended, (early, given)
                task = await filling(link, step, some=True)
                if len(given) >= early:
                    link.send(b"12345678"[len(given) : len(given) + min(step, size - len(given))])
                given += await task
            assert (given, link.incoming.ended) == (b"12345678"[:size], True)

    run(work)


@pytest.mark.parametrize("given", [0, 4])
def test_what_nobody_wants_is_received_to_its_end(given):
    async def work() -> None:
        link = Link(20)
        task = await filling(link, given)
        link.send(b"x" * given)
        await task
        ends = []
        link.incoming.discard(lambda: ends.append(1))
        assert link.send(b"y" * (19 - given)) == b"" and not ends
        link.send(b"z")
        assert ends == [1]
        link.incoming.finish("gone")
        assert ends == [1]

    run(work)


def test_a_cancelled_reader_leaves_its_buffer_alone():
    async def work() -> None:
        link = Link(10)
        buffer = bytearray(10)
        task = asyncio.create_task(link.incoming.fill(memoryview(buffer)))
        await asyncio.sleep(0)
        link.send(b"abc")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        link.incoming.discard(lambda: None)
        link.send(b"defghij")
        assert buffer == b"abc" + bytes(7)

    run(work)


BEGINNINGS = (
    b"",
    b"x",
    b"\x16\x03\x01",  # what begins as TLS does, and as HTTP
    b"GET ",
    b"GET / HTTP/1.1 and no line end",
    b"PRI * HTTP/2.0\r",
    b"0123456789",
    bytes(range(256)) * 5,
    b"a" * 40 + b" " + bytes(100),
)


@pytest.mark.parametrize("at_once", [1, 3, 10_000])
@pytest.mark.parametrize("size", [1, 2, 7, 64, 10_000])
@pytest.mark.parametrize("data", BEGINNINGS)
def test_a_raw_stream_is_whole_however_much_of_it_was_looked_at(data: bytes, size: int, at_once: int) -> None:
    """In pieces of any size: what was read ahead comes first, once, and the end behind the last of it."""

    async def read(body: stream_api._Body) -> bytes:
        await body.begin()
        assert await body.refusal() is None
        found, buffer = b"", memoryview(bytearray(size))
        while not body.ended:
            filled = await body.fill(buffer)
            assert filled == size or body.ended
            found += bytes(buffer[:filled])
        return found

    async def work() -> None:
        link, rest = Link(None), data
        reading = asyncio.create_task(read(stream_api._Body(link.incoming)))
        while not reading.done():
            await asyncio.sleep(0)
            if rest:
                left = link.send(rest[:at_once])
                rest = left + rest[at_once:]
            else:
                link.incoming.finish()
        assert await reading == data

    run(work)


@pytest.mark.parametrize("data", BEGINNINGS)
def test_a_raw_stream_that_is_lost_is_not_taken_for_one_that_ended(data: bytes) -> None:
    """Whatever of it was looked at by then."""

    async def work() -> None:
        link = Link(None)
        connection = stream_api._Connection(None, memoryview(bytearray(8)))
        connection._incoming = link.incoming
        body = stream_api._Body(link.incoming)

        async def read() -> bytes:
            await body.begin()
            await body.refusal()
            buffer = memoryview(bytearray(len(data) + 1))
            return bytes(buffer[: await body.fill(buffer)])

        reading, rest = asyncio.create_task(read()), data
        while rest:
            await asyncio.sleep(0)
            rest = link.send(rest)
        await asyncio.sleep(0)
        connection.connection_lost(None)
        with pytest.raises(ClientGoneError):
            await reading

    run(work)
