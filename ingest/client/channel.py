"""One connection of the client that outlives its sockets: it connects, sends, watches for silence, connects again.

What is sent and what comes back is the business of the two kinds: `put_channel` and `get_channel`. Both keep what was
not answered, and send it again on the next connection: all requests of the protocol may be repeated.

    state        leaves it when
    idle         something is to be sent                                 → connecting
    connecting   the server takes the connection, and proves that it is the one that is meant, if it has to  → talking
                 it proves to be another one: everything is given up → idle
                 it does not: wait (back-off), try again; after ``retry_for`` give everything up → idle
    talking      the connection ends, or stays silent for ``timeout`` with something unanswered  → connecting or idle
                 a fault of ours, which is logged: the connection is ended, and what was not answered sent again as above

Bytes are received into one buffer that is used again and again, and the kinds take what they need out of it at once:
between the kernel and what the caller gets a byte is copied once, and while it is in the processor's cache.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import ssl
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from ingest import limits
from ingest.errors import (
    ConnectionLostError,
    ForeignStoreError,
    IngestError,
    PeerError,
    ProtocolError,
    RefusedError,
)
from ingest.runtime import listeners

Address = tuple[str, int]
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Proof:
    """What is exchanged on each new connection before anything else.

    ``before``: awaited first. ``message``: what is sent, made anew each time. ``size``: bytes of the answer, told by those
    that came. ``judge``: raises ForeignStoreError, RefusedError or ConnectionLostError for an answer that proves nothing.
    """

    before: Callable[[], Awaitable[None]]
    message: Callable[[], bytes]
    size: Callable[[memoryview], int]
    judge: Callable[[bytes], None]


HTTP_ANSWER = b"HTTP/"
TLS_ALERT = b"\x15\x03"  # RFC 8446, 5.1


class Channel(ABC):
    """``timeout``: seconds for connecting and for silence; ``retry_for``: seconds without any answer after which
    what is not answered fails with ConnectionLostError; ``tls``: None for a server that speaks plainly."""

    receive_size: ClassVar[int]  # bytes that are received at once; more than any record
    port: ClassVar[str]  # of the server, which it talks to: put or get

    def __init__(
        self, address: Address, timeout: float, retry_for: float, tls: ssl.SSLContext | None = None
    ) -> None:
        self.address = address
        self.tls = tls  # for connections that are opened from now on
        self.proof: Proof | None = None  # for connections that are opened from now on
        self.timeout = timeout
        self.retry_for = retry_for
        self._answered_at = time.monotonic()  # or when waiting for an answer began
        self._progress = False  # something was answered on this connection
        self._wake = asyncio.Event()  # something may be sent
        self._connection: _Connection | None = None  # while talking
        self._sends_soon = False  # `_send` is scheduled
        self._closed = False
        self._task: asyncio.Task[None] | None = None
        self.met_foreign = False  # the last server that was connected to is not the one that is required
        self._outage_since: float | None = None
        self._delay = 0.0  # before the next attempt to connect

    # --- what the kinds do -----------------------------------------------------------------------

    @abstractmethod
    def has_work(self) -> bool:
        """Something is not answered yet (what waits for its back-off does not count)."""

    @abstractmethod
    def in_flight(self) -> bool:
        """Something was sent on this connection and is not answered yet."""

    @abstractmethod
    def take(self) -> bytes | memoryview:
        """The next bytes to send, which stay as they are; none when there are none."""

    @abstractmethod
    def received(self, data: memoryview) -> int:
        """Bytes that came and were not taken yet. Returns how many of them are taken now; ``data`` is valid until then.
        ProtocolError for such that must not come."""

    @abstractmethod
    def disconnected(self) -> None:
        """The connection is gone: what was sent on it has to be sent again."""

    @abstractmethod
    def give_up(self, error: IngestError) -> None:
        """Everything that is not answered fails with ``error``."""

    # --- for the owner ---------------------------------------------------------------------------

    async def open(self) -> None:
        """Connects for the first time. ConnectionLostError when that fails within the time-out; what a proof raises."""
        self._connection = await self._connect()
        self._task = asyncio.create_task(self._run(self._connection))

    async def close(self) -> None:
        """Ends the connection; what is not answered fails with ConnectionLostError."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._connection is not None:  # the task was cancelled before it ran for the first time
            self._connection.transport.abort()
        self.give_up(ConnectionLostError(f"{self._name}: the client was closed"))

    def wake(self) -> None:
        """Something may be sent: soon, together with what else this turn of the loop brings."""
        self._wake.set()
        if self._connection is not None and not self._sends_soon:
            self._sends_soon = True
            asyncio.get_running_loop().call_soon(self._send)

    def answered(self) -> None:
        """Something was answered: there is no outage."""
        self._progress = True
        self._answered_at = time.monotonic()

    @property
    def is_open(self) -> bool:
        """Whether it has connected for the first time."""
        return self._task is not None

    def check_open(self) -> None:
        if self._closed or self._task is None:
            raise ConnectionLostError(
                f"{self._name}: the client is {'closed' if self._closed else 'not connected yet'}"
            )

    # --- the loop --------------------------------------------------------------------------------

    @property
    def _name(self) -> str:
        return f"{self.address[0]}:{self.address[1]}"

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.timeout):
                _, connection = await loop.create_connection(
                    lambda: _Connection(self), *self.address, ssl=self.tls
                )
        except TimeoutError:
            raise ConnectionLostError(f"{self._name}: no connection within {self.timeout:g} s") from None
        except OSError as error:
            raise ConnectionLostError(f"{self._name}: {error.strerror or error}") from error
        if self.proof is not None:
            try:
                await self._prove(connection, self.proof)
            except BaseException:
                connection.transport.abort()
                raise
        return connection

    async def _prove(self, connection: _Connection, proof: Proof) -> None:
        await proof.before()
        try:
            async with asyncio.timeout(self.timeout):
                answer = await connection.ask(proof.message(), proof.size)
        except TimeoutError:
            raise self._silence(connection) from None
        except OSError as error:
            raise ConnectionLostError(f"{self._name}: {error.strerror or error}") from error
        proof.judge(answer)

    async def _run(self, connection: _Connection) -> None:
        try:
            await self._serve(connection)
        except (
            Exception
        ) as error:  # the tables of what is not answered can't be trusted: nobody shall wait for ever
            self._closed = True
            self.give_up(self._fault(error))
            raise

    def _fault(self, error: Exception) -> ConnectionLostError:
        """Of ours, told in the log: what it was about has the same outcome as when the connection had broken."""
        log.error("%s: the client failed", self._name, exc_info=error)
        return ConnectionLostError(f"{self._name}: the client failed: {error!r}")

    async def _serve(self, connection: _Connection) -> None:
        while True:
            self._progress = False
            self._answered_at = began = time.monotonic()
            ended = await self._talk(connection)
            error = ended if isinstance(ended, PeerError) else self._fault(ended)
            self.disconnected()
            # A fault that comes again with each connection is an outage, whatever was answered before it.
            lasted = error is ended or time.monotonic() - began >= self.retry_for
            if self._progress and lasted:
                self._outage_since = None
                self._delay = 0.0
            if isinstance(error, ProtocolError):
                self.give_up(error)
            connection = await self._connect_again(error)

    async def _connect_again(self, error: PeerError) -> _Connection:
        while True:
            while not self.has_work():
                self._outage_since = None
                self._wake.clear()
                await self._wake.wait()
            now = time.monotonic()
            self._outage_since = now if self._outage_since is None else self._outage_since
            if now - self._outage_since >= self.retry_for:
                self.give_up(error)
                continue
            await asyncio.sleep(
                self._delay * random.uniform(0.5, 1)
            )  # not all clients of a dead server at once
            self._delay = min(max(2 * self._delay, limits.RETRY_DELAY_MIN_S), limits.RETRY_DELAY_MAX_S)
            try:
                connection = await self._connect()
                self.met_foreign = False
                return connection
            except (ForeignStoreError, RefusedError) as failed:
                self.met_foreign = isinstance(failed, ForeignStoreError)
                self.give_up(failed)  # the next try may meet another server
            except PeerError as failed:
                error = failed
            except Exception as failed:
                error = self._fault(failed)

    async def _talk(self, connection: _Connection) -> Exception:
        """Until the connection ends: why it did, a PeerError unless it is a fault of ours."""
        self._connection = connection
        try:
            self._send()
            while not connection.ended.done():
                await asyncio.wait([connection.ended], timeout=self.timeout / 4)
                if self.in_flight() and time.monotonic() - self._answered_at > self.timeout:
                    connection.end(self._silence(connection))
            error = connection.ended.result()
            if isinstance(error, OSError):
                return ConnectionLostError(f"{self._name}: {error.strerror or error}")
            return error
        finally:
            self._connection = None
            connection.end(ConnectionLostError(f"{self._name}: the client was closed"))
            connection.transport.abort()

    def _silence(self, connection: _Connection) -> ConnectionLostError:
        """Another port of the server waits for the rest of what it takes for its own."""
        hint = "" if connection.greeting else f" (is this the {self.port} port?)"
        return ConnectionLostError(f"{self._name}: no answer for {self.timeout:g} s{hint}")

    def _send(self) -> None:
        """Sends what there is, as far as the connection takes it."""
        self._sends_soon = False
        connection = self._connection
        if connection is None or connection.ended.done():
            return
        if not self.in_flight():
            self._answered_at = time.monotonic()
        try:
            while connection.writable and (data := self.take()):
                connection.transport.write(data)
        except Exception as error:
            connection.end(error)

    def writable_again(self, connection: _Connection) -> None:
        """The connection takes more than it did."""
        if connection is self._connection:
            self._send()


class _Connection(asyncio.BufferedProtocol):
    """One socket of a channel. ``ended`` gets the error that ended it: one of the peer, the socket, or a fault of ours."""

    transport: asyncio.Transport

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._buffer = memoryview(bytearray(channel.receive_size))
        self._held = 0  # bytes of the buffer that were not taken yet
        self.greeting = b""  # the first bytes that came, as many as tell who answers
        self.writable = True
        self.ended: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        self._asked: tuple[Callable[[memoryview], int], asyncio.Future[bytes]] | None = None

    async def ask(self, message: bytes, size: Callable[[memoryview], int]) -> bytes:
        """Sends one message, before the channel sends any. Returns the answer, of as many bytes as ``size`` says when some
        have come. Raises what ended the connection."""
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._asked = size, answer
        waiting: list[asyncio.Future[Any]] = [answer, self.ended]
        try:
            self.transport.write(message)
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._asked = None
        if not answer.done():
            raise self.ended.result()
        return answer.result()

    def _check_greeting(self) -> None:
        """ProtocolError for the answers of other servers. No record begins as they do: all begin with a ticket."""
        name = self._channel._name
        if self.greeting == HTTP_ANSWER:
            raise ProtocolError(
                f"{name} answers with HTTP: this is not the {self._channel.port} port of a server"
            )
        if self.greeting.startswith(TLS_ALERT):
            raise ProtocolError(f"{name} answers with an alert of TLS: it does not speak plainly (tls=)")

    def _take(self) -> int:
        if self._asked is None:
            return self._channel.received(self._buffer[: self._held])
        size, answer = self._asked
        needed = size(self._buffer[: self._held])
        if self._held < needed:
            return 0
        if self._held > needed or answer.done():
            raise ProtocolError(f"{self._channel._name} sent bytes that nobody asked for")
        answer.set_result(bytes(self._buffer[:needed]))
        return needed

    def end(self, error: Exception) -> None:
        if not self.ended.done():
            self.ended.set_result(error)

    # --- asyncio ---------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listeners.unpace(sock, transport.get_extra_info("peername")[0])

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer[self._held :]

    def buffer_updated(self, nbytes: int) -> None:
        if self.ended.done():
            return  # the channel is done with this connection
        self._held += nbytes
        if len(self.greeting) < len(HTTP_ANSWER):
            # What was taken of the buffer before was whole records: those are longer.
            self.greeting = bytes(self._buffer[: min(self._held, len(HTTP_ANSWER))])
        try:
            self._check_greeting()
            taken = self._take()
        except Exception as error:
            self.end(error)
            return
        if taken < self._held:
            self._buffer[: self._held - taken] = self._buffer[taken : self._held]
        self._held -= taken

    def eof_received(self) -> None:
        self.end(ConnectionLostError(f"{self._channel._name}: the server closed the connection"))

    def connection_lost(self, error: Exception | None) -> None:
        self.end(error or ConnectionLostError(f"{self._channel._name}: the server closed the connection"))

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        self._channel.writable_again(self)
