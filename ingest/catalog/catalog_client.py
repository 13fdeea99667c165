"""The catalog changed through its service, by the processes of a gateway."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

from ingest.catalog.catalog_caller import CatalogCaller
from ingest.catalog.catalog_calls import (
    NOT_AGAIN,
    framed,
    outcome_of,
    parse_answer,
    serialize_call,
    unframed,
)
from ingest.catalog.catalog_socket import connect
from ingest.errors import ConnectionLostError, IngestError, ProtocolError, UsageError
from ingest.limits import CATALOG_MESSAGE_MAX, CATALOG_RETRY_S, RETRY_DELAY_MAX_S, RETRY_DELAY_MIN_S
from ingest.runtime.fork_guard import ForkGuard


@dataclass(slots=True)
class _Waiting:
    call: str
    kind: Any
    message: bytes
    answer: asyncio.Future[Any]


class _Link(asyncio.Protocol):
    """One connection."""

    def __init__(self, client: CatalogClient) -> None:
        self.client = client
        self.transport: asyncio.Transport | None = None
        self.received = bytearray()
        self.unsent: list[bytes] = []
        self.ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are none by descent

    def send(self, message: bytes) -> None:
        """Goes out with all others of this turn of the loop."""
        if not self.unsent:
            asyncio.get_running_loop().call_soon(self._flush)
        self.unsent.append(message)

    def _flush(self) -> None:
        assert self.transport is not None
        if not self.transport.is_closing():
            self.transport.write(b"".join(self.unsent))
        self.unsent.clear()

    def data_received(self, data: bytes) -> None:
        self.received += data
        try:
            for message in unframed(self.received):
                self.client.answered(message)
        except ProtocolError:
            assert self.transport is not None
            self.transport.abort()  # the calls are made again over another connection

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended = True
        self.client.lost(self)


class CatalogClient(CatalogCaller):
    """Made by ``await CatalogClient.connect(data_dir)``. `CatalogAccess`.

    When the connection breaks, it is opened again, and what was not answered is asked once more: a service that is
    replaced within ``retry_for`` seconds is not noticed. After that, and for `delete` at once, ConnectionLostError.
    ForkedError in a process that was forked from its own.
    """

    def __init__(self, data_dir: Path, retry_for: float = CATALOG_RETRY_S) -> None:
        super().__init__()
        self._guard = ForkGuard("the connection to a catalog")
        self._data_dir = data_dir
        self._retry_for = retry_for
        self._link: _Link | None = None
        self._waiting: dict[int, _Waiting] = {}
        self._last_id = 0
        self._reconnecting: asyncio.Task[None] | None = None
        self._closed = False

    @classmethod
    async def connect(cls, data_dir: Path, retry_for: float = CATALOG_RETRY_S) -> Self:
        """ConnectionLostError when no service listens within ``retry_for`` seconds."""
        client = cls(data_dir, retry_for)
        error = await client._open()
        if error is not None:
            raise error
        return client

    async def close(self) -> None:
        """Does nothing after a fork."""
        if self._guard.forked:
            return
        self._closed = True
        if self._reconnecting is not None:
            self._reconnecting.cancel()
        if self._link is not None and self._link.transport is not None:
            self._link.transport.abort()
        self._give_up(ConnectionLostError("the connection to the catalog was closed"))

    async def _ask(self, kind: Any, call: str, *arguments: Any) -> Any:
        self._guard.check()
        if self._closed:
            raise ConnectionLostError("the connection to the catalog is closed")
        self._last_id += 1
        message = serialize_call(self._last_id, call, arguments)
        if len(message) > CATALOG_MESSAGE_MAX:
            raise UsageError(f"{call}: {len(message)} bytes, a catalog takes {CATALOG_MESSAGE_MAX} at once")
        id_, answer = self._last_id, asyncio.get_running_loop().create_future()
        self._waiting[id_] = _Waiting(call, kind, framed(message), answer)
        if self._link is not None:
            self._link.send(self._waiting[id_].message)
        else:
            self._reconnect()
        # One that is cancelled stays in the table: it is to be asked again like the others, so that the order stays.
        return await answer

    def answered(self, message: bytes) -> None:
        """ProtocolError."""
        answer = parse_answer(message)
        waiting = self._waiting.pop(answer.id, None)
        if waiting is None:
            raise ProtocolError("an answer to nothing")
        if waiting.answer.done():
            return  # its caller was cancelled
        outcome = outcome_of(answer, waiting.kind)
        if isinstance(outcome, IngestError):
            waiting.answer.set_exception(outcome)
        else:
            waiting.answer.set_result(outcome)

    def lost(self, link: _Link) -> None:
        if self._link is link:
            self._link = None
        for id_ in [id_ for id_, waiting in self._waiting.items() if waiting.call in NOT_AGAIN]:
            self._fail(self._waiting.pop(id_), ConnectionLostError("the catalog's process went away"))
        if self._waiting and not self._closed:
            self._reconnect()

    def _reconnect(self) -> None:
        if self._reconnecting is None:
            self._reconnecting = asyncio.create_task(self._open_again())

    async def _open_again(self) -> None:
        try:
            error = await self._open()
        finally:
            self._reconnecting = None
        if error is not None:
            self._give_up(error)
            return
        assert self._link is not None
        for waiting in self._waiting.values():
            self._link.send(waiting.message)

    async def _open(self) -> ConnectionLostError | None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._retry_for
        delay = RETRY_DELAY_MIN_S
        while True:
            sock: socket.socket | None = None
            try:
                sock = connect(self._data_dir)
                _, link = await loop.create_connection(lambda: _Link(self), sock=sock)
                if not link.ended:
                    self._link = link
                    return None
                error = ConnectionLostError(f"the catalog's process of {self._data_dir} hangs up")
            except ConnectionLostError as refused:
                error = refused
            except OSError as failed:  # no descriptor is to be had for the moment, or the service ended in the middle of it
                if sock is not None:
                    sock.close()
                error = ConnectionLostError(
                    f"the catalog's process of {self._data_dir} can't be reached: {failed.strerror or failed}"
                )
            if loop.time() + delay > deadline:
                return error
            await asyncio.sleep(delay)
            delay = min(2 * delay, RETRY_DELAY_MAX_S)

    def _give_up(self, error: ConnectionLostError) -> None:
        waiting, self._waiting = self._waiting, {}
        for one in waiting.values():
            self._fail(one, error)

    @staticmethod
    def _fail(waiting: _Waiting, error: ConnectionLostError) -> None:
        if not waiting.answer.done():
            waiting.answer.set_exception(type(error)(str(error)))
