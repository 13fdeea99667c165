"""Connections of the HTTP ports, without HTTP: how much of an answer waits in one, and which of them are counted."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
import uvloop
from aiohttp import web

from ingest.limits import (
    HTTP_HEAD_SIZE_OWN,
    HTTP_HEAD_TIMEOUT_S,
    HTTP_LINGER_S,
    HTTP_LINGER_SIZE,
    HTTP_RECEIVE_SIZE,
    HTTP_UNREAD_TIMEOUT_S,
)
from ingest.runtime.tcp_progress import progress_of
from ingest.runtime.wire import Connection, Wire
from ingest.runtime.wires import Wires


class Writer(asyncio.Protocol):
    """What stands behind a wire, as `Connection` does. ``paused``: it was told to write no more."""

    wire: Wire

    def __init__(self) -> None:
        self.paused = False
        self.resumed = asyncio.Event()
        self.transport: Any = None
        self.opened = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.opened.set()

    def pause_writing(self) -> None:
        self.paused = True
        self.resumed.clear()

    def resume_writing(self) -> None:
        self.paused = False
        self.resumed.set()


async def connected(test: Callable[[Writer, socket.socket], Awaitable[None]]) -> None:
    """Calls ``test`` with a writer and the client's end of its connection, which nobody reads."""
    loop = asyncio.get_running_loop()
    wires, writer = Wires(), Writer()
    server = await loop.create_server(lambda: Wire(wires, writer, lambda: "id"), "127.0.0.1", 0)  # type: ignore[arg-type]
    client = socket.create_connection(server.sockets[0].getsockname())
    client.setblocking(False)
    try:
        await writer.opened.wait()
        await test(writer, client)
    finally:
        client.close()
        writer.transport.abort()
        server.close()
        await server.wait_closed()


@pytest.mark.parametrize("size", [1000, 50_000])
def test_who_may_write_on_has_left_nothing_behind(size: int) -> None:
    """``size``: bytes of one write. What asyncio's own limit lets stay keeps the memory of all of a write."""

    async def test(writer: Writer, client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        data = bytes(size)
        while not writer.transport.get_write_buffer_size():
            assert not writer.paused
            writer.transport.write(data)
        left = writer.transport.get_write_buffer_size()
        assert writer.paused, f"{left} bytes are left, and more may be written"
        while not writer.resumed.is_set():
            await asyncio.wait_for(loop.sock_recv(client, 1 << 20), 60)
        assert writer.transport.get_write_buffer_size() == 0

    uvloop.run(connected(test))


@pytest.mark.parametrize("empty", [b"\r\n", b"\n", b"\r\n\r\n"])
def test_an_empty_line_behind_a_request_begins_none(empty: bytes) -> None:
    """Old clients send one. Only the connection's first head is waited for before its first byte."""
    began = []
    request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    alone = asyncio.Event()  # an empty line came by itself

    class Timed(Wire):
        def _expect_head(self) -> None:
            began.append(self)
            super()._expect_head()

        def buffer_updated(self, nbytes: int) -> None:
            super().buffer_updated(nbytes)
            if nbytes == len(empty):
                alone.set()

    async def answer(request: web.BaseRequest) -> web.Response:
        return web.Response(text="here")

    async def test() -> None:
        loop = asyncio.get_running_loop()
        wires, server = Wires(), web.Server(answer)
        port = await loop.create_server(
            lambda: Timed(wires, Connection(server, loop=loop), lambda: "id"), "127.0.0.1", 0
        )
        reader, writer = await asyncio.open_connection(*port.sockets[0].getsockname())
        try:
            writer.write(request + empty)
            await reader.readuntil(b"here")
            writer.write(request)
            await reader.readuntil(b"here")
            writer.write(empty)
            await alone.wait()
            assert len(began) == 1
            for times in (2, 3):  # each later one is from its first byte on, or it could come for ever
                writer.write(request[:-2])
                while not began[0]._head.size:
                    await asyncio.sleep(0)
                assert len(began) == times
                writer.write(request[-2:])
                await reader.readuntil(b"here")
        finally:
            writer.close()
            port.close()
            await server.shutdown()

    uvloop.run(test())


# --- what a connection has of its process, wherever it is when it ends

LONG = (b"X-Long: " + b"x" * HTTP_HEAD_SIZE_OWN + b"\r\n") * 2
STATES = {
    "nothing came": b"",
    "a head has come in part": b"GET /waits HTTP/1.1\r\nHost: a\r\n" + LONG,
    "a request is under way": b"GET /waits HTTP/1.1\r\nHost: a\r\n" + LONG + b"\r\n",
    "another one waits behind it": (b"GET /waits HTTP/1.1\r\nHost: a\r\n" + LONG + b"\r\n") * 2,
    "its body comes": b"PUT /reads HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n" + LONG + b"\r\nbody",
    "its body comes in chunks": b"PUT /reads HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n" + LONG + b"\r\n4\r\nbo",
    "it is answered before its body": b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n" + LONG + b"\r\nbody",
    "it is answered": b"GET / HTTP/1.1\r\nHost: a\r\n" + LONG + b"\r\n",
    "the next head has come in part": b"GET / HTTP/1.1\r\nHost: a\r\n" + LONG + b"\r\nGET / HTTP/1.1\r\n" + LONG,
}  # fmt: skip
HOLDS = frozenset(STATES) - {"nothing came", "it is answered"}  # memory for a head
GIVES_WAY = {"a head has come in part", "the next head has come in part"}  # no request is under way


def end_connection(end: str, client: socket.socket, wires: Wires, wire: Wire) -> None:
    if end == "reset":
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if end in ("reset", "close"):
        client.close()
    elif end == "half close":
        client.shutdown(socket.SHUT_WR)
    elif end == "gave way":
        wires.dismissed(wire)
        wire.evict()
    elif wire._transport is not None:
        wire._transport.abort()


@pytest.mark.parametrize("end", ["close", "half close", "reset", "aborted here", "gave way"])
@pytest.mark.parametrize("state", STATES)
def test_what_a_connection_had_is_given_back_however_it_ends(state: str, end: str) -> None:
    made: list[Wire] = []
    came, goes_on = asyncio.Event(), asyncio.Event()

    class Kept(Wire):
        def buffer_updated(self, nbytes: int) -> None:
            super().buffer_updated(nbytes)
            received[0] += nbytes
            if received[0] == len(STATES[state]):
                came.set()

    received = [0]

    async def answer(request: web.BaseRequest) -> web.Response:
        if request.path == "/waits":
            await goes_on.wait()
        if request.path == "/reads":
            await request.read()
        return web.Response(text="here")

    async def test() -> None:
        loop = asyncio.get_running_loop()
        wires, server = Wires(), web.Server(answer)

        def accept() -> Wire:
            made.append(Kept(wires, Connection(server, loop=loop), lambda: "id"))
            return made[-1]

        port = await loop.create_server(accept, "127.0.0.1", 0)
        client = socket.create_connection(port.sockets[0].getsockname())
        client.setblocking(False)
        await loop.sock_sendall(client, STATES[state])
        async with asyncio.timeout(60):
            if STATES[state]:
                await came.wait()
            while not wires.open:
                await asyncio.sleep(0)
            if "answered" in state or state == "the next head has come in part":
                while b"HTTP/1.1" not in await loop.sock_recv(client, 1 << 16):
                    pass
            assert (wires.heads > 0) == (state in HOLDS), "it is not in this state"
            assert {*wires.unfinished} == ({made[0]} if state in GIVES_WAY else set())
            end_connection(end, client, wires, made[0])
            if "close" in end or "behind it" in state:
                goes_on.set()  # who sends no more may wait for an answer, and nobody reads beside one
            while wires.open:
                await asyncio.sleep(0.001)
        assert (wires.heads, wires.unfinished, len(wires.guests)) == (0, {}, 0)
        client.close()
        goes_on.set()
        port.close()
        await server.shutdown(1)
        assert (wires.heads, wires.unfinished, len(wires.guests), wires.guests._idle) == (0, {}, 0, {})

    uvloop.run(test())


# --- what a connection has time for


class ClockLoop(asyncio.SelectorEventLoop):
    """Its clock stands still until it is moved."""

    now = 1000.0

    def time(self) -> float:
        return self.now


class Counted(Wire):
    received = 0  # bytes

    def buffer_updated(self, nbytes: int) -> None:
        super().buffer_updated(nbytes)
        self.received += nbytes


class Timing:
    """A connection to a server, and its client's end; `go` moves the clock."""

    def __init__(self, loop: ClockLoop, client: socket.socket, wire: Counted) -> None:
        self.loop, self.client, self.wire = loop, client, wire
        self.goes_on = asyncio.Event()  # answers come
        self.goes_on.set()

    async def send(self, data: bytes) -> None:
        """Until it was received."""
        before = self.wire.received
        await self.loop.sock_sendall(self.client, data)
        while self.wire.received < before + len(data):
            await asyncio.sleep(0)

    async def answered(self, count: int = 1) -> None:
        got = b""
        while got.count(b"here") < count:
            got += (more := await self.loop.sock_recv(self.client, 1 << 16))
            assert more
        for _ in range(20):  # aiohttp goes on to what is left of the body
            await asyncio.sleep(0)

    async def go(self, seconds: float) -> bool:
        """Whether the connection is there afterwards."""
        self.loop.now += seconds
        for _ in range(20):
            await asyncio.sleep(0)
        return self.wire._transport is not None and not self.wire._transport.is_closing()


def timed(test: Callable[[Timing], Awaitable[None]]) -> None:
    """Calls ``test`` with a connection of a server that answers at once, whatever is to come of the body."""

    its: list[Timing] = []

    async def answer(request: web.BaseRequest) -> web.Response:
        await its[0].goes_on.wait()
        return web.Response(text="here")

    async def run() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, ClockLoop)
        wires, server, made = Wires(), web.Server(answer), []

        def accept() -> Wire:
            handler = Connection(server, loop=loop, lingering_time=1e6, keepalive_timeout=1e6)
            made.append(Counted(wires, handler, lambda: "id"))
            return made[-1]

        port = await loop.create_server(accept, "127.0.0.1", 0)
        client = socket.create_connection(port.sockets[0].getsockname())
        client.setblocking(False)
        try:
            while not made:
                await asyncio.sleep(0)
            its.append(Timing(loop, client, made[0]))
            await test(its[0])
        finally:
            client.close()
            made[0].evict()
            its[0].goes_on.set()
            port.close()
            await server.shutdown(1)

    with asyncio.Runner(loop_factory=ClockLoop) as runner:
        runner.run(run())


HEAD = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.mark.parametrize("rest", [5, HTTP_LINGER_SIZE])
def test_who_still_sends_what_nobody_wants_is_not_silent(rest: int) -> None:
    """However slowly: only when nothing came for a while the connection ends, as its client looks for no answer."""

    async def test(it: Timing) -> None:
        for _ in range(2):  # the second one's time has nothing of the first one's
            await it.send(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % rest)
            await it.answered()
            for sent in range(3):
                assert await it.go(HTTP_LINGER_S * 0.9), f"it ended after {sent} bytes"
                await it.send(b"x")
            assert await it.go(HTTP_LINGER_S * 0.9)
            await it.send(bytes(rest - 3))
            assert await it.go(HTTP_LINGER_S * 3), "all of it has come: it waits for another request"
        await it.send(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\nx" % rest)
        await it.answered()
        assert await it.go(HTTP_LINGER_S * 0.9)
        await it.send(b"x")
        assert await it.go(HTTP_LINGER_S * 0.9)
        assert not await it.go(HTTP_LINGER_S * 0.2), "nothing came for so long"

    timed(test)


@pytest.mark.parametrize("first", [HEAD, HEAD[:9]])
def test_the_time_of_a_head_ends_with_it(first: bytes) -> None:
    """What is left of it is nothing to a connection that waits for its next request, nor to that one's head."""

    async def test(it: Timing) -> None:
        for _ in range(3):
            await it.send(first)
            assert await it.go(HTTP_HEAD_TIMEOUT_S * 0.6)
            await it.send(HEAD[len(first) :])
            await it.answered()
            assert await it.go(HTTP_HEAD_TIMEOUT_S * 0.6), "it waits for another request"
        assert await it.go(HTTP_HEAD_TIMEOUT_S * 2)
        await it.send(HEAD[:9])
        assert await it.go(HTTP_HEAD_TIMEOUT_S * 0.9)
        await it.send(HEAD[9:10])
        assert not (await it.go(HTTP_HEAD_TIMEOUT_S * 0.2) and not it.wire._over), "this one is late"

    timed(test)


def test_who_takes_a_little_now_and_then_is_not_late() -> None:
    """However slow, and however much waits: what counts is when its machine last took something, not when that began."""

    async def test(writer: Writer, client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        wire = writer.transport.get_protocol()

        def look(now: float) -> bool:
            wire.check(now)
            return not writer.transport.is_closing()

        writer.transport.write(bytes(32 << 20))  # more than the kernel has room for
        now = 0.0
        assert look(now)
        for times in range(4):
            now += HTTP_UNREAD_TIMEOUT_S * 0.9
            assert look(now), f"it took something {times} times"
            before = progress_of(writer.transport)[1]
            async with asyncio.timeout(60):
                while progress_of(writer.transport)[1] == before:
                    await loop.sock_recv(client, 1 << 18)
            assert look(now)
        assert writer.transport.get_write_buffer_size(), "nothing waits any more"
        assert look(now + HTTP_UNREAD_TIMEOUT_S * 0.9)
        assert not look(now + HTTP_UNREAD_TIMEOUT_S * 1.1)

    asyncio.run(connected(test))


@pytest.mark.parametrize("rest", [5, HTTP_LINGER_SIZE])
def test_a_connection_that_ends_before_an_unwanted_rest_leaves_no_task(rest: int) -> None:
    """aiohttp waits for that rest in one, with all that the request had."""

    async def test(it: Timing) -> None:
        await it.send(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\nx" % rest)
        await it.answered()
        assert len(asyncio.all_tasks()) == 2
        it.client.close()
        while await it.go(0):
            pass
        assert asyncio.all_tasks() == {asyncio.current_task()}

    timed(test)


@pytest.mark.parametrize("before", [0, 2])
def test_what_comes_behind_a_request_under_way_is_held_at_one_receive(before: int) -> None:
    """The rest waits in the kernel and at the client, however much it sends."""

    async def test(it: Timing) -> None:
        for _ in range(before):
            await it.send(HEAD)
            await it.answered()
        it.goes_on.clear()
        it.client.send(HEAD)
        sent = 0
        for _ in range(50):
            await asyncio.sleep(0)
            with suppress(BlockingIOError):
                sent += it.client.send(HEAD * 1000)
        held = len(it.wire._rest)
        assert 0 < held <= HTTP_RECEIVE_SIZE < sent

    timed(test)


@pytest.mark.parametrize("size", [None, 1, len(HEAD), 9999999])
@pytest.mark.parametrize("pieces", [1, 3])
def test_nothing_is_read_of_what_follows_connect(size: int | None, pieces: int) -> None:
    """It is no body, whatever its head says: parsed, it would be requests, which nobody answers and which stay in memory."""

    async def test(it: Timing) -> None:
        handler: Any = it.wire._handler
        it.goes_on.clear()
        more = b"" if size is None else b"Content-Length: %d\r\n" % size
        behind = HEAD * 30
        await it.send(
            b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n" + more + b"\r\n" + behind[: len(behind) // pieces]
        )
        it.client.send(behind[len(behind) // pieces :])
        assert await it.go(0)
        assert handler._current_request is not None, "it is under way"
        assert (len(handler._messages), it.wire._end) == (0, None)

    timed(test)
