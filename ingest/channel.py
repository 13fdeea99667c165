"""One connection of the client that outlives its sockets: it connects, sends, watches for silence, connects again.

What is sent and what comes back is the business of the two kinds: `put_channel` and `get_channel`. Both keep what was
not answered, and send it again on the next connection: all requests of the protocol may be repeated.

    state        leaves it when
    idle         something is to be sent                                 → connecting
    connecting   the server takes the connection                         → talking
                 it does not: wait (back-off), try again; after ``retry_for`` give everything up → idle
    talking      the connection ends, or stays silent for ``timeout`` with something unanswered  → connecting or idle
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import ssl
import time
from abc import ABC, abstractmethod

from ingest import limits
from ingest.errors import ConnectionLostError, IngestError, PeerError, ProtocolError

Address = tuple[str, int]


class Channel(ABC):
    """``timeout``: seconds for connecting and for silence; ``retry_for``: seconds without any answer after which
    what is not answered fails with ConnectionLostError; ``tls``: None for a server that speaks plainly."""

    def __init__(
        self, address: Address, timeout: float, retry_for: float, tls: ssl.SSLContext | None = None
    ) -> None:
        self.address = address
        self._tls = tls
        self.timeout = timeout
        self.retry_for = retry_for
        self._answered_at = time.monotonic()  # or when waiting for an answer began
        self._progress = False  # something was answered on this connection
        self._wake = asyncio.Event()  # something may be sent
        self._closed = False
        self._task: asyncio.Task[None] | None = None
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
    def take(self) -> bytes:
        """The next bytes to send; none when there are none."""

    @abstractmethod
    def received(self, data: bytes) -> None:
        """Bytes that came. ProtocolError for such that must not come."""

    @abstractmethod
    def disconnected(self) -> None:
        """The connection is gone: what was sent on it has to be sent again."""

    @abstractmethod
    def give_up(self, error: IngestError) -> None:
        """Everything that is not answered fails with ``error``."""

    # --- for the owner ---------------------------------------------------------------------------

    async def open(self) -> None:
        """Connects for the first time. ConnectionLostError when that fails within the time-out."""
        reader, writer = await self._connect()
        self._task = asyncio.create_task(self._run(reader, writer))

    async def close(self) -> None:
        """Ends the connection; what is not answered fails with ConnectionLostError."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self.give_up(ConnectionLostError(f"{self._name}: the client was closed"))

    def wake(self) -> None:
        """Something may be sent."""
        self._wake.set()

    def answered(self) -> None:
        """Something was answered: there is no outage."""
        self._progress = True
        self._answered_at = time.monotonic()

    def check_open(self) -> None:
        if self._closed or self._task is None:
            raise ConnectionLostError(f"{self._name}: the client is closed")

    # --- the loop --------------------------------------------------------------------------------

    @property
    def _name(self) -> str:
        return f"{self.address[0]}:{self.address[1]}"

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            async with asyncio.timeout(self.timeout):
                reader, writer = await asyncio.open_connection(*self.address, limit=1 << 20, ssl=self._tls)
        except TimeoutError:
            raise ConnectionLostError(f"{self._name}: no connection within {self.timeout:g} s") from None
        except OSError as error:
            raise ConnectionLostError(f"{self._name}: {error.strerror or error}") from error
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return reader, writer

    async def _run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._serve(reader, writer)
        except Exception as error:  # a fault of ours: nobody shall wait for ever for what it lost
            self._closed = True
            self.give_up(ConnectionLostError(f"{self._name}: the client failed: {error!r}"))
            raise

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            self._progress = False
            self._answered_at = time.monotonic()
            error = await self._talk(reader, writer)
            self.disconnected()
            if self._progress:
                self._outage_since = None
                self._delay = 0.0
            if isinstance(error, ProtocolError):
                self.give_up(error)
            reader, writer = await self._connect_again(error)

    async def _connect_again(self, error: PeerError) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
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
                return await self._connect()
            except ConnectionLostError as failed:
                error = failed

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> PeerError:
        """Until the connection ends: why it did."""
        sender = asyncio.create_task(self._send(writer))
        try:
            return await self._receive(reader)
        except PeerError as error:
            return error
        except OSError as error:
            return ConnectionLostError(f"{self._name}: {error.strerror or error}")
        finally:
            writer.transport.abort()
            sender.cancel()
            await asyncio.wait([sender])  # not `await sender`: its cancellation must not be taken for ours

    async def _receive(self, reader: asyncio.StreamReader) -> PeerError:
        while True:
            try:
                async with asyncio.timeout(self.timeout / 4):
                    data = await reader.read(1 << 18)
            except TimeoutError:
                if self.in_flight() and time.monotonic() - self._answered_at > self.timeout:
                    return ConnectionLostError(f"{self._name}: no answer for {self.timeout:g} s")
                continue
            if not data:
                return ConnectionLostError(f"{self._name}: the server closed the connection")
            self.received(data)

    async def _send(self, writer: asyncio.StreamWriter) -> None:
        # An error here is left to the receiver: what the server said before it closed is still to be read.
        with contextlib.suppress(OSError):
            while True:
                self._wake.clear()
                if not self.in_flight():
                    self._answered_at = time.monotonic()
                while data := self.take():
                    writer.write(data)
                    await writer.drain()
                await self._wake.wait()
