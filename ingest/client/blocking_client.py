"""The client of code without an event loop.

    with Client.connect("127.0.0.1:5000", "127.0.0.1:5005", key="DATA/.ingest/key") as client:
        client.put("AB12", b"...")
        client.get("AB12")

What its calls promise is said where they are done: `async_client`. A ``Client`` belongs to the process that made it: in one
that was forked from that its calls raise ForkedError. They may overlap.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Iterable, Iterator
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from ingest import limits, record
from ingest.client.async_client import (
    RANGE_WINDOW_DEFAULT,
    SIGN_FRAMES,
    WINDOW_DEFAULT,
    Address,
    AsyncClient,
    Chunk,
    Item,
    Run,
)
from ingest.client.key import Key
from ingest.client.loop_thread import LoopThread
from ingest.status import Status

if TYPE_CHECKING:
    from typing_extensions import Buffer

T = TypeVar("T")


class Client:
    """``AsyncClient`` for code without an event loop: the same calls, each of which blocks until it is done.

    Runs an event loop in a thread of its own. May be used from several threads, not after a fork (ForkedError).
    """

    def __init__(self, client: AsyncClient, loop: LoopThread) -> None:
        self._client = client
        self._loop = loop

    @classmethod
    def connect(
        cls,
        put: Address | None,
        get: Address | None,
        key: Key,
        *,
        timeout: float = limits.CLIENT_TIMEOUT_S,
        retry_for: float = limits.CLIENT_RETRY_S,
        tls: ssl.SSLContext | None = None,
    ) -> Self:
        """See ``AsyncClient.connect``."""
        loop = LoopThread()
        try:
            client = loop.run(
                AsyncClient.connect(put, get, key, timeout=timeout, retry_for=retry_for, tls=tls)
            )
        except BaseException:
            loop.stop()
            raise
        return cls(client, loop)

    def close(self) -> None:
        """What still waits for an answer, in other threads, fails with ConnectionLostError. May be called twice, and
        does nothing after a fork."""
        self._loop.stop(self._client.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def put(self, name: str, data: Buffer) -> None:
        """See ``AsyncClient.put``."""
        self._loop.run(self._client.put(name, data))

    def put_many(self, items: Iterable[Item], window: int = WINDOW_DEFAULT) -> dict[str, Status]:
        """See ``AsyncClient.put_many``. ``items`` is iterated in the calling thread, so it may use this client."""
        batch = self._client.new_batch(window)
        source = iter(items)
        while pack := list(islice(source, 8 * SIGN_FRAMES)):
            self._loop.run(self._client.add(batch, pack))
        return self._loop.run(self._client.finish(batch))

    def put_record(self, name: str, data: Buffer) -> None:
        """See ``AsyncClient.put_record``."""
        self._loop.run(self._client.put_record(name, data))

    def put_records(
        self, first: str, records: Iterable[Buffer], window: int = WINDOW_DEFAULT
    ) -> dict[str, Status]:
        """See ``AsyncClient.put_records``. ``records`` is iterated in the calling thread, so it may use this client."""
        return self.put_many(record.chunks(first, records), window)

    def put_range(self, first: str, data: Buffer, window: int = RANGE_WINDOW_DEFAULT) -> dict[str, Status]:
        """See ``AsyncClient.put_range``."""
        return self._loop.run(self._client.put_range(first, data, window))

    def delete(self, first: str, count: int = 1) -> None:
        """See ``AsyncClient.delete``."""
        self._loop.run(self._client.delete(first, count))

    def get(self, name: str) -> bytes:
        """See ``AsyncClient.get``."""
        return self._loop.run(self._client.get(name))

    def get_record(self, name: str) -> bytes:
        """See ``AsyncClient.get_record``."""
        return self._loop.run(self._client.get_record(name))

    def get_records(self, first: str, count: int) -> Iterator[Chunk]:
        """See ``AsyncClient.get_records``."""
        for name, status, data in self.get_range(first, count):
            yield name, status, record.parse(data, name) if status is Status.SAVED else data

    def get_range(self, first: str, count: int) -> Iterator[Chunk]:
        """See ``AsyncClient.get_range``."""
        for piece in self._pieces(self._client.get_pieces(first, count)):
            yield from piece

    def _pieces(self, pieces: AsyncGenerator[T, None]) -> Iterator[T]:
        try:
            while (piece := self._loop.run(_next(pieces))) is not None:
                yield piece
        finally:
            if self._loop.running:
                self._loop.run(_close(pieces))

    def read_range(self, first: str, count: int) -> bytearray:
        """See ``AsyncClient.read_range``."""
        return self._loop.run(self._client.read_range(first, count))

    def read_pieces(self, first: str, count: int) -> Iterator[bytearray]:
        """See ``AsyncClient.read_pieces``."""
        return self._pieces(self._client.read_pieces(first, count))

    def inventory(self, first: str, count: int) -> list[Run]:
        """See ``AsyncClient.inventory``."""
        return self._loop.run(self._client.inventory(first, count))


async def _next(pieces: AsyncGenerator[T, None]) -> T | None:
    return await anext(pieces, None)


async def _close(pieces: AsyncGenerator[Any, None]) -> None:
    await pieces.aclose()
