"""Connections of the HTTP ports, without HTTP: how much of an answer waits in one, and which of them are counted."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvloop
from aiohttp import web

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
        finally:
            writer.close()
            port.close()
            await server.shutdown()

    uvloop.run(test())
