"""The API `stream`: raw TCP. Bytes until the client closes its sending side, then the reply [8B ObjectID | 1B Status].

Here nobody can tell a connection that was cut politely (a FIN) from the end of what was sent: what came is stored. Who can't
live with that takes HTTP, which says how much there is to come.

Any web page can make a browser connect to it, and choose much of what is sent: HTTP requests, TLS hellos, and STUN, by which
WebRTC finds its way. So what begins like one of these is no object. HTTP is answered 403, TLS with an alert.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ingest import ticket
from ingest.catalog.version import ABSENT
from ingest.errors import BusyError, ConnectionLostError, DataDirLostError, IngestError, RefusedError
from ingest.gateway.http.failures import ClientGoneError
from ingest.gateway.http.incoming import Incoming
from ingest.gateway.http.request_id import RequestIds
from ingest.limits import (
    HTTP_LINGER_S,
    HTTP_RECEIVE_SIZE,
    STREAM_HEAD_MAX,
    TICKET_SIZE,
)
from ingest.objects.object_store import ObjectStore
from ingest.runtime.cache_policy import MARK_LINES
from ingest.runtime.last_answer import TLS_ALERT
from ingest.runtime.wires import Wires
from ingest.status import Status

NAMESPACE = "stream"
log = logging.getLogger(__name__)

_METHOD = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}"
_REQUEST_LINE = re.compile(rb"[\r\n]*" + _METHOD + rb" [^\s]+ HTTP/1\.[01]\r?\n")
_BEGINNING = re.compile(
    rb"[\r\n]*|[\r\n]*" + _METHOD + rb"( [^\s]*( (H(T(T(P(/(1(\.([01]\r?)?)?)?)?)?)?)?)?)?)?"
)
_HTTP_2 = b"PRI * HTTP/2.0\r\n"  # RFC 9113, 3.4
# A record of TLS with a ClientHello (RFC 8446, 4 and 5.1), and a message of STUN (RFC 8489, 5), perhaps behind its length:
# so browsers send it to peers that they reach by TCP (RFC 6544, 3, and RFC 4571).
_CLIENT_HELLO = re.compile(rb"\x16\x03[\x00-\x04][\x00-\x40].\x01\x00", re.S)
_STUN = re.compile(rb"(?:..)?[\x00-\x3f]...\x21\x12\xa4\x42", re.S)
_BINARY_SIZE = 10  # bytes: both are known by then
_REFUSED = (
    b"this port takes raw bytes, and these begin as an HTTP request does: nothing was stored; use HTTP\n"
)
_FORBIDDEN = (
    b"HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\n"
    b"%bConnection: close\r\n\r\n%b" % (len(_REFUSED), MARK_LINES.encode(), _REFUSED)
)


class StreamServer:
    """Stores each connection's bytes as one object, named after the time and an id. ``wires``: counts all connections of
    the process."""

    def __init__(self, store: ObjectStore, ids: RequestIds, wires: Wires) -> None:
        self._store = store
        self._ids = ids
        self._wires = wires
        self._connections: set[asyncio.Task[None]] = set()
        self._waste = memoryview(bytearray(HTTP_RECEIVE_SIZE))

    def connect(self) -> asyncio.BaseProtocol:
        """The protocol of one connection: what `loop.create_server` calls."""
        return _Connection(self._serve, self._waste)

    async def _serve(self, guest: _Connection, transport: asyncio.Transport, incoming: Incoming) -> None:
        try:
            if self._wires.guests.admit(guest, transport.get_extra_info("peername")):
                with self._noted():
                    reply = await self._receive(guest, incoming)
                    await _answer(transport, incoming, reply, lambda: self._wires.guests.idle(guest))
            elif self._wires.may_refuse(guest):
                await _answer(transport, incoming, _reply("", Status.BUSY), lambda: None)
            else:
                transport.abort()
        except (ConnectionError, ClientGoneError) as error:
            log.debug("stream: %s", error)
        finally:
            self._wires.dismissed(guest)
            transport.close()

    @contextmanager
    def _noted(self) -> Iterator[None]:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            yield
        finally:
            self._connections.discard(task)

    async def drain(self, timeout: float) -> None:
        """Waits for the connections that are there; who is not done then is cut off, and its upload fails."""
        if self._connections:
            _, late = await asyncio.wait(self._connections, timeout=timeout)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _receive(self, guest: _Connection, incoming: Incoming) -> bytes:
        """The reply."""
        id_ = self._ids.next()
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        body = _Body(incoming)
        try:
            await body.begin()
            self._wires.guests.busy(guest)
            if (answer := await body.refusal()) is not None:
                if self._wires.may_say("sent HTTP, TLS or STUN to the raw stream"):
                    log.warning("%s: stream: an HTTP request, TLS or STUN was refused", id_)
                return answer
            version = await self._store.put(NAMESPACE, f"{moment} {id_}", body, condition=ABSENT)
        except RefusedError as error:
            log.warning("%s: stream: %s", id_, error)
            return _reply("", error.status)
        except (BusyError, ConnectionLostError, DataDirLostError) as error:
            log.warning("%s: stream: %s", id_, error)
            return _reply("", Status.BUSY)
        except (IngestError, OSError, TimeoutError) as error:
            if isinstance(error, ConnectionError):
                raise
            if str(error):
                log.warning("%s: stream: %s", id_, error)
            elif self._wires.may_say("sent not one byte to the raw stream for too long"):
                log.warning("%s: stream: not one byte came for too long", id_)
            return _reply("", Status.ERROR)
        return _reply(version.object_id, Status.SAVED)


class _Body:
    """What comes of a connection, whose beginning was looked at."""

    def __init__(self, incoming: Incoming) -> None:
        self._incoming = incoming
        self._head = b""

    @property
    def ended(self) -> bool:
        return self._incoming.ended and not self._head

    async def begin(self) -> None:
        """Waits for the first byte."""
        buffer = memoryview(bytearray(1))
        self._head = bytes(buffer[: await self._incoming.fill(buffer)])

    async def refusal(self) -> bytes | None:
        """What a browser that was made to connect here is answered, None for others. Waits for as many bytes as it takes to
        say. Words that are longer than any request line are one."""
        buffer = memoryview(bytearray(STREAM_HEAD_MAX))
        size = len(self._head)
        buffer[:size] = self._head
        while size < len(buffer) and not self._incoming.ended and _undecided(buffer[:size]):
            size += await self._incoming.fill(buffer[size:], some=True)
        self._head = bytes(buffer[:size])
        if _CLIENT_HELLO.match(self._head) is not None:
            return TLS_ALERT
        if _STUN.match(self._head) is not None:
            return b""
        if _REQUEST_LINE.match(self._head) is not None or self._head.startswith(_HTTP_2):
            return _FORBIDDEN
        return _FORBIDDEN if size == len(buffer) and _BEGINNING.fullmatch(self._head) is not None else None

    async def fill(self, buffer: memoryview, patience: float | None = None) -> int:
        here = min(len(self._head), len(buffer))
        buffer[:here] = self._head[:here]
        self._head = self._head[here:]
        return here + await self._incoming.fill(buffer[here:], patience)

    async def close(self) -> None:
        pass


def _undecided(head: memoryview) -> bool:
    """More bytes may make it something that is refused."""
    if len(head) < _BINARY_SIZE or _HTTP_2.startswith(head[: len(_HTTP_2) + 1].tobytes()):
        return True
    return _BEGINNING.fullmatch(head) is not None


class _Connection(asyncio.BufferedProtocol):
    """``serve``: what becomes of it."""

    _incoming: Incoming
    _transport: asyncio.Transport

    def __init__(self, serve: Any, waste: memoryview) -> None:
        self._serve = serve
        self._waste = waste
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: Any) -> None:
        self._incoming = Incoming(transport, None, self._waste)
        self._transport = transport
        self._task = asyncio.create_task(self._serve(self, transport, self._incoming))

    def evict(self) -> None:
        self._transport.abort()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._incoming.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        self._incoming.received(nbytes)

    def eof_received(self) -> bool:
        self._incoming.finish()
        return True  # the reply is still to be sent

    def connection_lost(self, error: Exception | None) -> None:
        self._incoming.finish(str(error or "the connection was lost"))


async def _answer(
    transport: asyncio.Transport, incoming: Incoming, reply: bytes, then: Callable[[], None]
) -> None:
    """Sends it, and calls ``then`` when the system has it. What the client still sends is read for a while: unread, it would
    make a reset that eats the reply."""
    transport.write(reply)
    if incoming.ended:
        return
    transport.write_eof()
    await asyncio.sleep(0)  # uvloop sends at the end of a turn
    then()
    done = asyncio.Event()
    incoming.discard(done.set)
    try:
        async with asyncio.timeout(HTTP_LINGER_S):
            await done.wait()
    except TimeoutError:
        transport.abort()


def _reply(object_id: str, status: Status) -> bytes:
    """9 bytes; without an object the first 8 are NUL."""
    return (ticket.to_wire(object_id) if object_id else bytes(TICKET_SIZE)) + bytes([status])
