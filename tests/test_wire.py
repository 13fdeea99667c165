"""Connections of the HTTP ports, without HTTP: how much of an answer waits in one, and which of them are counted."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvloop

from ingest.runtime.wire import Wire
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
