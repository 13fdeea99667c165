"""The client: puts and gets chunks, asynchronously (``AsyncClient``) or plainly (``Client``).

    with Client.connect("127.0.0.1:5000", "127.0.0.1:5005", key="DATA/.ingest/key") as client:
        client.put("AB12", b"...")
        client.get("AB12")

Both keep one connection to each port, open it again when it breaks, and send again what was not answered. A call
fails with ConnectionLostError when nothing was answered for ``retry_for`` seconds; the outcome of what it put is then
unknown, and putting the same again is safe. ERROR and BUSY are tried again with back-off for as long; other statuses
are answers. A client belongs to the event loop (a ``Client``: to the process) that made it; its calls may overlap.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Coroutine, Iterable, Iterator
from concurrent.futures import CancelledError
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeAlias, TypeVar

from ingest import _hmac, frame, limits, listeners, mac, ticket
from ingest.errors import ConnectionLostError, CorruptFrameError, RefusedError, UsageError
from ingest.get_channel import GetChannel, Reply
from ingest.key import Key, shared_keys
from ingest.put_channel import RETRIED, Batch, PutChannel
from ingest.status import Status
from ingest.ticket import TicketRange

if TYPE_CHECKING:
    from typing_extensions import Buffer

T = TypeVar("T")
Address: TypeAlias = str | tuple[str, int]  # "host:port", "[v6]:port" or (host, port)
Item: TypeAlias = "tuple[str, Buffer]"  # ticket, data of at most 1458 bytes
Chunk: TypeAlias = tuple[
    str, Status, bytes
]  # ticket, what is stored under it, its 1458 bytes (none unless SAVED)

WINDOW_DEFAULT = 4096  # frames in flight of one call: 6 MB, enough to keep a server busy
SIGN_FRAMES = 64  # frames that put_many collects and signs together


@dataclass(frozen=True, slots=True)
class Run:
    """``count`` tickets from ``first`` on that share a status."""

    first: str
    status: Status
    count: int


class AsyncClient:
    """Made by ``await AsyncClient.connect(...)``, ended by ``await close()`` or ``async with``."""

    def __init__(
        self,
        put: Address | None,
        get: Address | None,
        key: Key,
        *,
        timeout: float = limits.CLIENT_TIMEOUT_S,
        retry_for: float = limits.CLIENT_RETRY_S,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        if put is None and get is None:
            raise UsageError("a client needs the address of the put port, of the get port, or both")
        if timeout <= 0 or retry_for < 0:
            raise UsageError(f"time-outs of {timeout:g} and {retry_for:g} s: more is needed")
        self._keys = mac.KeyRing(shared_keys(key))
        self._retry_for = retry_for
        self._puts = PutChannel(_address(put), timeout, retry_for, tls) if put is not None else None
        self._gets = GetChannel(_address(get), timeout, retry_for, tls) if get is not None else None

    @classmethod
    async def connect(
        cls,
        put: Address | None,
        get: Address | None,
        key: Key,
        *,
        timeout: float = limits.CLIENT_TIMEOUT_S,
        retry_for: float = limits.CLIENT_RETRY_S,
        tls: ssl.SSLContext | None = None,
    ) -> Self:
        """A client of the put port and the get port (either may be None). ``key``: see `ingest.key.Key`.

        ``timeout``: seconds for a connection to open, and of silence with something unanswered; ``retry_for``: above.
        ``tls``: what `ingest.tls.client_context` makes, or another context, when the server speaks TLS.
        ConnectionLostError when a port cannot be reached, KeyFileError, UsageError.
        """
        client = cls(put, get, key, timeout=timeout, retry_for=retry_for, tls=tls)
        try:
            for channel in client._channels:
                await channel.open()
        except BaseException:
            await client.close()
            raise
        return client

    @property
    def _channels(self) -> list[PutChannel | GetChannel]:
        return [channel for channel in (self._puts, self._gets) if channel is not None]

    async def close(self) -> None:
        """What still waits for an answer fails with ConnectionLostError."""
        for channel in self._channels:
            await channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # --- put and delete --------------------------------------------------------------------------

    async def put(self, name: str, data: Buffer) -> None:
        """Stores at most 1458 bytes under a ticket, padded with zeros; back when they are SAVED.

        RefusedError (its ``status`` says why) when the server answers anything else, TicketError, UsageError,
        ConnectionLostError.
        """
        batch = await self._send(_signed(self._keys.signing.put, [(name, data)]), Status.SAVED)
        _raise_refused(batch)

    async def put_many(
        self, items: Iterable[Item] | AsyncIterable[Item], window: int = WINDOW_DEFAULT
    ) -> dict[str, Status]:
        """Stores many, each as ``put`` does, with at most ``window`` (1 to 65,536) of them in flight at a time.

        Returns the status of each ticket that is not SAVED (an empty dict: all are). A ticket that comes twice is put
        twice, one after the other. Raises like ``put``, but not RefusedError; frames put before stay put.
        """
        batch = self.new_batch(window)
        if isinstance(items, AsyncIterable):
            async for item in items:
                await self.add(batch, [item], window)
        else:
            source = iter(items)
            while pack := list(islice(source, SIGN_FRAMES)):
                await self.add(batch, pack, window)
        return await self.finish(batch)

    async def put_range(self, first: str, data: Buffer, window: int = WINDOW_DEFAULT) -> dict[str, Status]:
        """Stores a buffer of any size in pieces of 1458 bytes under consecutive tickets, the last one padded.

        Returns what ``put_many`` returns.
        """
        view = memoryview(data).cast("B")
        if not len(view):
            return await self.put_many([])
        tickets = TicketRange(first, frame.frames_needed(len(view)))
        batch = self.new_batch(window)
        step = SIGN_FRAMES * limits.DATA_SIZE
        for at in range(0, len(view), step):
            piece = view[at : at + step]
            frames = bytearray(frame.frames_needed(len(piece)) * limits.FRAME_SIZE)
            frame.build(tickets.indices[at // limits.DATA_SIZE], piece, frames)
            _hmac.sign(self._keys.signing.put, frames)
            await self._put_channel.add(frames, batch, window)
        return await self.finish(batch)

    def new_batch(self, window: int = WINDOW_DEFAULT) -> Batch:
        """For those who put piece by piece: ``add`` as often as wanted, then ``finish``."""
        if not 1 <= window <= limits.IN_FLIGHT_MAX:
            raise UsageError(f"a window of {window} frames: 1 to {limits.IN_FLIGHT_MAX} are possible")
        return Batch()

    async def add(self, batch: Batch, items: list[Item], window: int = WINDOW_DEFAULT) -> None:
        """Puts a few more; back when they are within the window, not when they are saved."""
        await self._put_channel.add(_signed(self._keys.signing.put, items), batch, window)

    async def finish(self, batch: Batch) -> dict[str, Status]:
        """Waits for all that was added. Returns what ``put_many`` returns."""
        await batch.wait()
        return batch.refused

    async def delete(self, first: str, count: int = 1) -> None:
        """Deletes ``count`` tickets from ``first`` on for good, whether anything is stored there or not.

        RefusedError, TicketError, ConnectionLostError; what comes before the refused part is then deleted.
        """
        for part in _pieces(TicketRange(first, count), limits.RANGE_COUNT_MAX):
            message = mac.build_delete(self._keys.signing.delete, ticket.to_wire(part.first), part.count)
            _raise_refused(await self._send(message, Status.DELETED))

    @property
    def _put_channel(self) -> PutChannel:
        if self._puts is None:
            raise UsageError("this client was made without the address of the put port")
        return self._puts

    async def _send(self, frames: bytes | bytearray, expected: Status) -> Batch:
        batch = Batch(expected)
        await self._put_channel.add(frames, batch, limits.IN_FLIGHT_MAX)
        await batch.wait()
        return batch

    # --- get and inventory -----------------------------------------------------------------------

    async def get(self, name: str) -> bytes:
        """The 1458 bytes under a ticket, checked end to end.

        RefusedError with status MISSING or DELETED (or ERROR, when that lasts), CorruptFrameError for a frame that was
        bad twice, TicketError, ConnectionLostError.
        """
        ((_, status, data),) = await self._chunks(TicketRange(name, 1))
        if status is not Status.SAVED:
            raise RefusedError(name, status)
        return data

    async def get_range(self, first: str, count: int) -> AsyncIterator[Chunk]:
        """All of ``count`` tickets from ``first`` on, in order: (ticket, status, data).

        ``data`` is empty unless the status is SAVED. CorruptFrameError ends the iteration at the piece with that frame.
        """
        async for piece in self.get_pieces(first, count):
            for chunk in piece:
                yield chunk

    async def get_pieces(self, first: str, count: int) -> AsyncGenerator[list[Chunk], None]:
        """What ``get_range`` gives, in lists of up to 512. The next one is read while the caller works on one."""
        ahead: asyncio.Task[list[Chunk]] | None = None
        try:
            for part in _pieces(TicketRange(first, count), limits.GET_FRAMES):
                coming = asyncio.create_task(self._chunks(part))
                if ahead is not None:
                    ready, ahead = ahead, coming
                    yield await ready
                ahead = coming
            if ahead is not None:
                yield await ahead
        finally:
            if ahead is not None and not ahead.done():
                ahead.cancel()  # the caller stopped early

    async def inventory(self, first: str, count: int) -> list[Run]:
        """What is stored under ``count`` tickets from ``first`` on, without the data: runs that cover them in order,
        neighbours of the same status joined."""
        runs: list[Run] = []
        for part in _pieces(TicketRange(first, count), limits.RANGE_COUNT_MAX):
            message = mac.build_request(self._keys.signing.inventory, ticket.to_wire(part.first), part.count)
            for reply in await self._get_channel.fetch(message, part, with_frames=False):
                if runs and runs[-1].status is reply.status:
                    runs[-1] = Run(runs[-1].first, reply.status, runs[-1].count + reply.count)
                elif reply.count:
                    runs.append(Run(ticket.format(reply.first), reply.status, reply.count))
        return runs

    @property
    def _get_channel(self) -> GetChannel:
        if self._gets is None:
            raise UsageError("this client was made without the address of the get port")
        return self._gets

    async def _chunks(self, tickets: TicketRange) -> list[Chunk]:
        """What is stored under up to 65,536 tickets. Bad frames are asked for once more, ERROR and BUSY for a while."""
        start = tickets.indices.start
        chunks: dict[int, tuple[Status, bytes]] = {}
        doubted: set[int] = set()
        deadline = asyncio.get_running_loop().time() + self._retry_for
        delay = limits.RETRY_DELAY_MIN_S
        asked = [tickets]
        while asked:
            again: list[TicketRange] = []
            wait = False
            for replies in await asyncio.gather(*(self._fetch(part) for part in asked)):
                for reply in replies:
                    late = asyncio.get_running_loop().time() + delay > deadline
                    if reply.status is Status.SAVED:
                        bad = self._take(reply, chunks)
                        if doubted.intersection(bad):
                            raise CorruptFrameError(
                                f"ticket {ticket.format(min(doubted.intersection(bad)))}: the frame that the server "
                                "sent fails its checksum, also the second time"
                            )
                        doubted.update(bad)
                        again += [TicketRange.of_indices(index, 1) for index in bad]
                    elif reply.status in RETRIED and not late:
                        again.append(TicketRange.of_indices(reply.first, reply.count))
                        wait = True
                    else:
                        for index in range(reply.first, reply.first + reply.count):
                            chunks[index] = (reply.status, b"")
            if wait:
                await asyncio.sleep(delay)
                delay = min(2 * delay, limits.RETRY_DELAY_MAX_S)
            asked = again
        return [(ticket.format(index), *chunks[index]) for index in range(start, start + tickets.count)]

    async def _fetch(self, tickets: TicketRange) -> list[Reply]:
        message = mac.build_request(self._keys.signing.get, ticket.to_wire(tickets.first), tickets.count)
        return await self._get_channel.fetch(message, tickets, with_frames=True)

    def _take(self, reply: Reply, chunks: dict[int, tuple[Status, bytes]]) -> list[int]:
        """Puts the good frames of a run into ``chunks``; returns the indices of the bad ones."""
        good = _verified(self._keys, reply.frames)
        here = frame.indices(reply.frames)
        bad = []
        for i in range(reply.count):
            index = reply.first + i
            if good[i] and here[i] == index:
                at = i * limits.FRAME_SIZE
                data = reply.frames[at + limits.FRAME_SIZE - limits.DATA_SIZE : at + limits.FRAME_SIZE]
                chunks[index] = (Status.SAVED, data)
            else:
                bad.append(index)
        return bad


class Client:
    """``AsyncClient`` for code without an event loop: the same calls, each of which blocks until it is done.

    Runs an event loop in a thread of its own. May be used from several threads, not after a fork.
    """

    def __init__(self, client: AsyncClient, loop: _LoopThread) -> None:
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
        loop = _LoopThread()
        try:
            client = loop.run(
                AsyncClient.connect(put, get, key, timeout=timeout, retry_for=retry_for, tls=tls)
            )
        except BaseException:
            loop.stop()
            raise
        return cls(client, loop)

    def close(self) -> None:
        """What still waits for an answer, in other threads, fails with ConnectionLostError. May be called twice."""
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
            self._loop.run(self._client.add(batch, pack, window))
        return self._loop.run(self._client.finish(batch))

    def put_range(self, first: str, data: Buffer, window: int = WINDOW_DEFAULT) -> dict[str, Status]:
        """See ``AsyncClient.put_range``."""
        return self._loop.run(self._client.put_range(first, data, window))

    def delete(self, first: str, count: int = 1) -> None:
        """See ``AsyncClient.delete``."""
        self._loop.run(self._client.delete(first, count))

    def get(self, name: str) -> bytes:
        """See ``AsyncClient.get``."""
        return self._loop.run(self._client.get(name))

    def get_range(self, first: str, count: int) -> Iterator[Chunk]:
        """See ``AsyncClient.get_range``."""
        pieces = self._client.get_pieces(first, count)
        try:
            while (piece := self._loop.run(_next(pieces))) is not None:
                yield from piece
        finally:
            if self._loop.running:
                self._loop.run(_close(pieces))

    def inventory(self, first: str, count: int) -> list[Run]:
        """See ``AsyncClient.inventory``."""
        return self._loop.run(self._client.inventory(first, count))


class _LoopThread:
    """An event loop that runs in a daemon thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._lock = threading.Lock()  # nothing is given to the loop once it was told to stop
        self._stopped = False
        self._thread = threading.Thread(target=self._loop.run_forever, name="ingest client", daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        return not self._stopped

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What ``work`` returns. An interrupt of the caller cancels it."""
        with self._lock:
            if self._stopped:
                work.close()
                raise ConnectionLostError("the client is closed")
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except CancelledError:
            raise ConnectionLostError("the client was closed") from None
        finally:
            future.cancel()

    def stop(self, last: Coroutine[Any, Any, None] | None = None) -> None:
        """Runs ``last``, cancels what is left, ends the thread. Does nothing the second time."""
        with self._lock:
            if self._stopped:
                if last is not None:
                    last.close()
                return
            self._stopped = True
        asyncio.run_coroutine_threadsafe(self._end(last), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self, last: Coroutine[Any, Any, None] | None) -> None:
        if last is not None:
            await last
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


async def _next(pieces: AsyncGenerator[list[Chunk], None]) -> list[Chunk] | None:
    return await anext(pieces, None)


async def _close(pieces: AsyncGenerator[list[Chunk], None]) -> None:
    await pieces.aclose()


def _address(address: Address) -> tuple[str, int]:
    if not isinstance(address, str):
        return address[0], address[1]
    try:
        return listeners.parse_address(address)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _signed(put_key: bytes, items: list[Item]) -> bytearray:
    """The frames of ``items``. TicketError or UsageError for one that cannot be a frame."""
    frames = bytearray(len(items) * limits.FRAME_SIZE)
    for i, (name, data) in enumerate(items):
        view = memoryview(data).cast("B")
        if len(view) > limits.DATA_SIZE:
            raise UsageError(f"ticket {name}: a chunk has at most {limits.DATA_SIZE} bytes, not {len(view)}")
        at = i * limits.FRAME_SIZE
        start = at + limits.TICKET_SIZE + limits.CHECKSUM_SIZE
        frames[at : at + limits.TICKET_SIZE] = ticket.to_wire(name)
        frames[start : start + len(view)] = view
    _hmac.sign(put_key, frames)
    return frames


def _verified(keys: mac.KeyRing, frames: bytes) -> bytes:
    """One byte for each frame, 1 when one of the keys signed it."""
    good = bytearray(len(frames) // limits.FRAME_SIZE)
    for key in keys.all:
        for i, flag in enumerate(_hmac.verify(key.put, frames)):
            good[i] |= flag
        if 0 not in good:
            break
    return bytes(good)


def _pieces(tickets: TicketRange, count_max: int) -> Iterator[TicketRange]:
    for start in range(tickets.indices.start, tickets.indices.stop, count_max):
        yield TicketRange.of_indices(start, min(count_max, tickets.indices.stop - start))


def _raise_refused(batch: Batch) -> None:
    for name, status in batch.refused.items():
        raise RefusedError(name, status)
