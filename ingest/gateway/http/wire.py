"""One connection of an HTTP port: what comes is aiohttp's, until the rest of a large body is received where it is wanted.

aiohttp reads HTTP from bytes objects, and a body is copied four times on its way through it. The rest of a large body of
known length is bytes and nothing else, and goes by it. aiohttp never sees its end, so the connection ends with the answer.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import socket
import struct
import sys
import termios
from collections.abc import Callable
from typing import Any

import msgspec
from aiohttp import web

from ingest.gateway.http.cache_policy import MARK_LINES
from ingest.gateway.http.incoming import Incoming
from ingest.limits import (
    HTTP_CONNECTIONS_MAX,
    HTTP_LINGER_S,
    HTTP_RECEIVE_SIZE,
    HTTP_RECEIVE_SIZE_MIN,
    HTTP_RECEIVED_MAX,
    HTTP_REFUSED_MAX,
    HTTP_UNREAD_TIMEOUT_S,
    RETRY_AFTER_S,
)

log = logging.getLogger(__name__)

TCP_INFO_SIZE = 128  # bytes of linux/tcp.h's struct tcp_info that are asked for
BYTES_ACKED = slice(120, 128)  # its tcpi_bytes_acked


class Wires:
    """All connections of the HTTP ports of a process. Ends those whose clients take nothing: see `watch`. ``others``: how
    many there are beside ``open``, in their handshake, or raw streams."""

    def __init__(self) -> None:
        self.open: set[Wire] = set()
        self.others = 0
        self.refused: set[object] = set()  # who is told that there are too many
        self._memory = memoryview(bytearray(HTTP_RECEIVE_SIZE))
        # For one receive, which is copied out of it at once: the more connections there are, the less each may have waiting.
        self.scratch = self._memory

    def count(self) -> None:
        """To be called when there are more connections, or fewer."""
        fair = HTTP_RECEIVED_MAX // max(1, len(self.open))
        self.scratch = self._memory[: max(HTTP_RECEIVE_SIZE_MIN, min(fair, HTTP_RECEIVE_SIZE))]

    @property
    def full(self) -> bool:
        """One more is too many."""
        return len(self.open) + self.others >= HTTP_CONNECTIONS_MAX

    @property
    def refuses(self) -> bool:
        """One more that is too many is told so."""
        return len(self.refused) < HTTP_REFUSED_MAX

    @property
    def has_room(self) -> bool:
        """For one more, if only to be told that there are too many."""
        here = len(self.open) + self.others + len(self.refused)
        return here < HTTP_CONNECTIONS_MAX + HTTP_REFUSED_MAX

    def connect(self, handler: Connection, next_id: Callable[[], str]) -> asyncio.BaseProtocol:
        """What a new connection speaks with: ``handler``, unless there are too many of them."""
        return Refusal(self, next_id()) if self.full else Wire(self, handler)

    async def watch(self) -> None:
        """Ends the connections of clients that took not one byte for too long: what they were sent would stay in memory, and
        the version that they download pinned, for ever.

        What counts is what the client's machine has acknowledged. The kernel takes megabytes more, and lets us write again
        only when a third of them are gone, which takes a slow client longer than any patience.
        """
        while True:
            await asyncio.sleep(HTTP_UNREAD_TIMEOUT_S / 4)
            now = asyncio.get_running_loop().time()
            for wire in list(self.open):
                wire.check(now)


class Connection(web.RequestHandler):
    """aiohttp's part of a connection. ``wire``: the other one, once it is open; ``busy``: has a request that is not
    answered."""

    __slots__ = ("busy", "wire")

    def __init__(self, server: web.Server, **settings: Any) -> None:
        super().__init__(server, **settings)
        self.busy = False
        self.wire: Wire | None = None


class Wire(asyncio.BufferedProtocol):
    """``handler``: aiohttp's part."""

    def __init__(self, wires: Wires, handler: Connection) -> None:
        self._wires = wires
        self._handler = handler
        handler.wire = self
        self._transport: asyncio.Transport | None = None
        self._is_tls = False
        self._body: Incoming | None = None  # since it does not go through aiohttp
        self._acked = 0  # bytes that the client's machine had acknowledged at the last look
        self._acked_at: float | None = None  # when that was first seen, while there was more for it

    def take_body(self, size: int) -> Incoming:
        """The next ``size`` bytes, the last ones that are received of this connection. aiohttp must have nothing of them."""
        assert self._transport is not None and self._body is None
        self._body = Incoming(self._transport, size, self._wires.scratch)
        return self._body

    def end_body(self, content: asyncio.StreamReader | Any) -> bool:
        """Whether a body was taken: then what is left of it goes nowhere, and ``content``, aiohttp's view of it, ends with
        it."""
        if self._body is None:
            return False
        self._body.discard(content.feed_eof)
        return True

    def send_now(self, data: memoryview) -> int:
        """How many bytes of ``data`` the system took at once: none while what was written before waits here, none with TLS.

        An error of the connection is left to the next write to find.
        """
        transport = self._transport
        if transport is None or transport.is_closing() or transport.get_write_buffer_size() or self._is_tls:
            return 0
        try:
            return os.write(transport.get_extra_info("socket").fileno(), data)
        except OSError:
            return 0

    def check(self, now: float) -> None:
        """Ends the connection if the client took nothing for too long."""
        transport = self._transport
        if transport is None:
            return
        waiting, acked = _progress(transport)
        if not waiting:
            self._acked_at = None
        elif self._acked_at is None or acked != self._acked:
            self._acked, self._acked_at = acked, now
        elif now - self._acked_at >= HTTP_UNREAD_TIMEOUT_S:
            peer = transport.get_extra_info("peername")
            log.info("%s took nothing for %.1f s: closed", peer, now - self._acked_at)
            # With a reset: otherwise the kernel would keep for the client what it has for it.
            sock = transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            transport.abort()

    # --- asyncio

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        # Who may write on then knows that nothing is left here: uvloop keeps all of what was written until its last byte is
        # gone. TLS pauses at its limit, the others beyond it.
        self._is_tls = transport.get_extra_info("ssl_object") is not None
        transport.set_write_buffer_limits(1 if self._is_tls else 0)
        self._wires.open.add(self)
        self._wires.count()
        self._handler.connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._wires.open.discard(self)
        self._wires.count()
        self._transport = None
        if self._body is not None:
            self._body.finish(str(error or "the connection ended"))
        self._handler.connection_lost(error)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._wires.scratch if self._body is None else self._body.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        if self._body is None:
            self._handler.data_received(bytes(self._wires.scratch[:nbytes]))
        else:
            self._body.received(nbytes)

    def eof_received(self) -> None:
        if self._body is not None:
            self._body.finish("the client closed its side")
        self._handler.eof_received()

    def pause_writing(self) -> None:
        self._handler.pause_writing()

    def resume_writing(self) -> None:
        self._handler.resume_writing()


class Refusal(asyncio.BufferedProtocol):
    """A connection beyond the limit: it is told so, and what it sends goes nowhere."""

    def __init__(self, wires: Wires, request_id: str) -> None:
        self._wires = wires
        self._id = request_id
        self._end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        if not self._wires.refuses:
            transport.abort()
            return
        self._wires.refused.add(self)
        transport.write(self._answer())
        if transport.can_write_eof():
            transport.write_eof()
        # Closed at once, with its request unread, it would get a reset that eats the answer.
        self._end = asyncio.get_running_loop().call_later(HTTP_LINGER_S, transport.abort)

    def _answer(self) -> bytes:
        message = f"{HTTP_CONNECTIONS_MAX} connections are open here: try again"
        body = msgspec.json.encode({"code": "busy", "message": message, "request_id": self._id})
        head = (
            f"HTTP/1.1 503 Service Unavailable\r\nRetry-After: {RETRY_AFTER_S}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nX-Request-Id: {self._id}\r\n{MARK_LINES}Connection: close\r\n\r\n"
        )
        return head.encode() + body

    def connection_lost(self, error: Exception | None) -> None:
        self._wires.refused.discard(self)
        if self._end is not None:
            self._end.cancel()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._wires.scratch

    def buffer_updated(self, nbytes: int) -> None:
        pass


def _progress(transport: asyncio.Transport) -> tuple[int, int]:
    """Bytes that wait for the client, here or in the kernel, and bytes that its machine has acknowledged in all."""
    sock = transport.get_extra_info("socket")
    try:
        unacked = int.from_bytes(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_SIZE)
    except OSError:  # closed meanwhile
        return 0, 0
    return transport.get_write_buffer_size() + unacked, int.from_bytes(info[BYTES_ACKED], sys.byteorder)
