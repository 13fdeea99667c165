"""The client: puts and gets chunks. ``AsyncClient`` is for code with an event loop, `blocking_client` for code without one.

    async with await AsyncClient.connect("127.0.0.1:5000", "127.0.0.1:5005", key="DATA/.ingest/key") as client:
        await client.put("AB12", b"...")
        await client.get("AB12")

It keeps one connection to each port, opens it again when it breaks, and sends again what was not answered. A call
fails with ConnectionLostError when nothing was answered for ``retry_for`` seconds; the outcome of what it put is then
unknown, and putting the same again is safe. ERROR and BUSY are tried again with back-off for as long; other statuses
are answers. A client belongs to the event loop that made it, and to its process: after a fork all calls raise ForkedError.
Its calls may overlap.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Self, TypeAlias

from ingest import _hmac, frame, limits, mac, record, ticket
from ingest.client._seal import seal
from ingest.client.get_channel import GetChannel
from ingest.client.key import Key, shared_keys
from ingest.client.proof import Expected, get_proof, put_proof
from ingest.client.put_channel import Batch, PutChannel
from ingest.client.range_reader import RangeSource
from ingest.client.read_ahead import ahead, pieces_of
from ingest.errors import RefusedError, UsageError
from ingest.runtime import listeners
from ingest.runtime.fork_guard import ForkGuard
from ingest.status import Status
from ingest.ticket import TicketRange

if TYPE_CHECKING:
    from typing_extensions import Buffer

Address: TypeAlias = str | tuple[str, int]  # "host:port", "[v6]:port" or (host, port)
Item: TypeAlias = "tuple[str, Buffer]"  # ticket, data of at most 1458 bytes
Chunk: TypeAlias = tuple[
    str, Status, bytes
]  # ticket, what is stored under it, its 1458 bytes, or its record (none unless SAVED)

WINDOW_DEFAULT = 4096  # frames in flight of one call: 6 MB
RANGE_WINDOW_DEFAULT = (
    16_384  # of one range, 24 MB: while a commit of the server is under way its next one fills up
)
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
        self._guard = ForkGuard("this client")
        self._retry_for = retry_for
        self._puts = PutChannel(_address(put), timeout, retry_for, tls) if put is not None else None
        self._gets = GetChannel(_address(get), timeout, retry_for, tls) if get is not None else None
        self._ranges: RangeSource | None = None
        self._timeout = timeout
        self.use_keys(key)

    def use_keys(self, key: Key) -> None:
        """Calls that come from now on sign and verify with these. KeyFileError, UsageError."""
        self.keys = tuple(shared_keys(key))  # 32 bytes each, the first one signs
        self._keys = mac.KeyRing(self.keys)
        self._put_keys = tuple(keys.put for keys in self._keys.all)  # any may have signed what is stored
        if self._gets is not None:
            self._ranges = RangeSource(self._gets, self._keys, self._retry_for)

    def use_tls(self, tls: ssl.SSLContext | None) -> None:
        """Connections that are opened from now on have this context. Whether TLS is spoken at all stays as it was."""
        for channel in self._channels:
            channel.tls = channel.tls and (tls or channel.tls)

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
        """A client of the put port and the get port (either may be None). ``key``: see `ingest.client.key.Key`.

        ``timeout``: seconds for a connection to open, and of silence with something unanswered; ``retry_for``: above.
        ``tls``: what `ingest.tls.client_context` makes, or another context, when the server speaks TLS.
        ConnectionLostError when a port cannot be reached, KeyFileError, UsageError.
        """
        client = cls(put, get, key, timeout=timeout, retry_for=retry_for, tls=tls)
        try:
            await client.open()
        except BaseException:
            await client.close()
            raise
        return client

    async def open(self) -> None:
        """Connects for the first time, what is not connected yet: until then calls raise ConnectionLostError. What `connect`
        raises; then it may be called again."""
        for channel in self._channels:
            if not channel.is_open:
                await channel.open()

    @property
    def puts(self) -> bool:
        """Whether it knows the put port."""
        return self._puts is not None

    @property
    def gets(self) -> bool:
        """Whether it knows the get port."""
        return self._gets is not None

    def require(self, expected: Expected) -> None:
        """Each connection that is opened from now on has to prove this of its server before anything else is sent
        (`proof`). While it is another server, calls fail with ForeignStoreError."""
        if self._gets is not None:
            self._gets.proof = get_proof(expected, lambda: self._keys)
        if self._puts is not None:
            self._puts.proof = put_proof(expected, lambda: self._keys, self.prove)

    @property
    def met_foreign(self) -> bool:
        """The last server that one of its ports was connected to is not the one that is required."""
        return any(channel.met_foreign for channel in self._channels)

    async def prove(self) -> None:
        """Looks whether the server at the get port is the one that is required, over a connection of its own.
        ForeignStoreError, RefusedError, ConnectionLostError, ProtocolError."""
        if self._gets is None or self._gets.proof is None:
            return
        looking = GetChannel(self._gets.address, self._timeout, 0.0, self._gets.tls)
        looking.proof = self._gets.proof
        try:
            await looking.open()
        finally:
            await looking.close()

    async def unproven(self) -> AsyncClient:
        """Another client, of the get port alone, with the present keys, of which nothing is required. What `connect`
        raises."""
        get, tls = (None, None) if self._gets is None else (self._gets.address, self._gets.tls)
        return await AsyncClient.connect(None, get, self.keys, retry_for=0.0, tls=tls)

    @property
    def _channels(self) -> list[PutChannel | GetChannel]:
        return [channel for channel in (self._puts, self._gets) if channel is not None]

    async def close(self) -> None:
        """What still waits for an answer fails with ConnectionLostError. Does nothing after a fork: the loop of the other
        process watches the sockets."""
        if self._guard.forked:
            return
        for channel in self._channels:
            await channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # --- put and delete --------------------------------------------------------------------------

    async def put(self, name: str, data: Buffer) -> None:
        """Stores at most 1458 bytes under a ticket, padded with zeros; back when they are SAVED.

        RefusedError (its ``status`` says why) when the server answers anything else, TicketError, UsageError,
        ConnectionLostError.
        """
        view = memoryview(data).cast("B")
        if len(view) > limits.DATA_SIZE:
            raise UsageError(f"ticket {name}: a chunk has at most {limits.DATA_SIZE} bytes, not {len(view)}")
        index = ticket.parse(name)
        frames = seal(self._keys.signing.put, index, view if len(view) else b"\0")
        batch = Batch(limits.IN_FLIGHT_MAX)
        await self._put_channel.add(index, frames, batch)
        await batch.wait()
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
                await self.add(batch, [item])
        else:
            source = iter(items)
            while pack := list(islice(source, SIGN_FRAMES)):
                await self.add(batch, pack)
        return await self.finish(batch)

    async def put_record(self, name: str, data: Buffer) -> None:
        """Stores 0 to 1456 bytes under a ticket, with their length; back when they are SAVED. Raises like ``put``."""
        await self.put(name, record.serialize(data))

    async def put_records(
        self, first: str, records: Iterable[Buffer], window: int = WINDOW_DEFAULT
    ) -> dict[str, Status]:
        """Stores each as ``put_record`` does, under consecutive tickets from ``first`` on.

        Returns and raises what ``put_many`` does.
        """
        return await self.put_many(record.chunks(first, records), window)

    async def put_range(
        self, first: str, data: Buffer, window: int = RANGE_WINDOW_DEFAULT
    ) -> dict[str, Status]:
        """Stores a buffer of any size in pieces of 1458 bytes under consecutive tickets, the last one padded.

        Returns what ``put_many`` returns. The quickest way to put much: ``add_range``, where it comes in parts.
        """
        batch = self.new_batch(window)
        await self.add_range(batch, first, data)
        return await self.finish(batch)

    def new_batch(self, window: int = RANGE_WINDOW_DEFAULT) -> Batch:
        """For those who put piece by piece: ``add`` and ``add_range`` as often as wanted, then ``finish``.

        Its ``refused`` tells at any time which tickets were answered with anything but SAVED so far.
        """
        if not 1 <= window <= limits.IN_FLIGHT_MAX:
            raise UsageError(f"a window of {window} frames: 1 to {limits.IN_FLIGHT_MAX} are possible")
        return Batch(window)

    async def add(self, batch: Batch, items: list[Item]) -> None:
        """Puts a few more; back when they are within the batch's window, not when they are saved."""
        frames = memoryview(_signed(self._keys.signing.put, items))
        for at, count, first in frame.runs(frames):
            await self._put_channel.add(
                first, frames[at * limits.FRAME_SIZE : (at + count) * limits.FRAME_SIZE], batch
            )

    async def add_range(self, batch: Batch, first: str, data: Buffer) -> None:
        """Puts a buffer of any size as ``put_range`` does; back when all of it is within the batch's window.

        ``data`` may be used again then. Only a last part should not be a multiple of 1458 bytes: it is padded. TicketError
        before anything is put; ConnectionLostError and ProtocolError as soon as the batch has failed.
        """
        view = memoryview(data).cast("B")
        if not len(view):
            return
        index = TicketRange(first, frame.frames_needed(len(view))).indices.start
        for at in range(0, len(view), limits.SEAL_FRAMES * limits.DATA_SIZE):
            part = view[at : at + limits.SEAL_FRAMES * limits.DATA_SIZE]
            frames = seal(self._keys.signing.put, index + at // limits.DATA_SIZE, part)
            await self._put_channel.add(index + at // limits.DATA_SIZE, frames, batch)
            if batch.left >= limits.SEAL_FRAMES:
                await asyncio.sleep(0)  # also within a wide window others have their turn, and these are sent

    def seal_range(self, first: str, data: Buffer) -> bytes:
        """The signed frames that ``add_range`` would send, for ``add_frames``. TicketError."""
        return seal(self._keys.signing.put, ticket.parse(first), memoryview(data).cast("B"))

    async def add_frames(self, batch: Batch, frames: bytes) -> None:
        """Puts what ``seal_range`` made of a byte or more, as ``add_range`` does, but in no more memory."""
        await self._put_channel.add(ticket.index_from_wire(frames[: limits.TICKET_SIZE]), frames, batch)

    async def finish(self, batch: Batch) -> dict[str, Status]:
        """Waits for all that was added. Returns what ``put_many`` returns."""
        self._guard.check()
        await batch.wait()
        return batch.refused

    async def delete(self, first: str, count: int = 1, *, retry_for: float | None = None) -> None:
        """Deletes ``count`` tickets from ``first`` on for good, whether anything is stored there or not.

        ``retry_for``: seconds for which ERROR and BUSY are tried again, if it is not the client's. RefusedError,
        TicketError, ConnectionLostError; what comes before the refused part is then deleted.
        """
        for part in pieces_of(first, count, limits.RANGE_COUNT_MAX):
            message = mac.build_delete(self._keys.signing.delete, ticket.index_to_wire(part.start), len(part))
            batch = Batch(limits.IN_FLIGHT_MAX, Status.DELETED, retry_for)
            await self._put_channel.add(part.start, message, batch)
            await batch.wait()
            _raise_refused(batch)

    @property
    def _put_channel(self) -> PutChannel:
        self._guard.check()
        if self._puts is None:
            raise UsageError("this client was made without the address of the put port")
        return self._puts

    # --- get and inventory -----------------------------------------------------------------------

    async def get(self, name: str) -> bytes:
        """The 1458 bytes under a ticket, checked end to end.

        RefusedError with status MISSING or DELETED (or ERROR, when that lasts), CorruptFrameError for a frame that was
        bad twice, TicketError, ConnectionLostError.
        """
        index = ticket.parse(name)
        data = bytearray(limits.DATA_SIZE)
        await self._source.read_saved(range(index, index + 1), memoryview(data))
        return bytes(data)

    async def get_record(self, name: str) -> bytes:
        """What ``put_record`` stored under a ticket. RecordError for a chunk that holds no record; raises like ``get``."""
        return record.parse(await self.get(name), name)

    async def get_records(self, first: str, count: int) -> AsyncIterator[Chunk]:
        """What ``get_range`` gives, with the record (0 to 1456 bytes) of each ticket that is SAVED in place of its data.

        RecordError ends the iteration at the first chunk that holds none.
        """
        async for name, status, data in self.get_range(first, count):
            yield name, status, record.parse(data, name) if status is Status.SAVED else data

    async def get_range(self, first: str, count: int) -> AsyncIterator[Chunk]:
        """All of ``count`` tickets from ``first`` on, in order: (ticket, status, data).

        ``data`` is empty unless the status is SAVED. CorruptFrameError ends the iteration at the piece with that frame.
        """
        async for piece in self.get_pieces(first, count):
            for chunk in piece:
                yield chunk

    def get_pieces(self, first: str, count: int) -> AsyncGenerator[list[Chunk], None]:
        """What ``get_range`` gives, in lists of up to 512. The next ones are read while the caller works on one."""
        return ahead(pieces_of(first, count, limits.GET_FRAMES), self._chunks)

    async def read_range(self, first: str, count: int) -> bytearray:
        """The data of ``count`` tickets from ``first`` on, 1458 bytes each, one after the other, checked end to end.

        For what was put by ``put_range``, and much quicker than ``get_range``. RefusedError with the first ticket that is
        not SAVED and its status, CorruptFrameError for a frame that was bad twice, TicketError, ConnectionLostError.
        """
        tickets = TicketRange(first, count).indices
        data = bytearray(len(tickets) * limits.DATA_SIZE)
        view = memoryview(data)
        if count <= limits.GET_FRAMES:  # nothing to read ahead, and most objects are of a chunk or two
            await self._source.read_saved(tickets, view)
            return data

        async def read(part: range) -> None:
            at = (part.start - tickets.start) * limits.DATA_SIZE
            await self._source.read_saved(part, view[at : at + len(part) * limits.DATA_SIZE])

        async for _ in ahead(pieces_of(first, count, limits.GET_FRAMES), read):
            pass
        return data

    def read_pieces(self, first: str, count: int) -> AsyncGenerator[bytearray, None]:
        """What ``read_range`` gives, in pieces of up to 512 tickets, for ranges of any size.

        The next two pieces are read while the caller works on one. Raises like ``read_range``, at the piece concerned.
        """

        async def read(part: range) -> bytearray:
            data = bytearray(len(part) * limits.DATA_SIZE)
            await self._source.read_saved(part, memoryview(data))
            return data

        return ahead(pieces_of(first, count, limits.GET_FRAMES), read)

    async def inventory(self, first: str, count: int) -> list[Run]:
        """What is stored under ``count`` tickets from ``first`` on, without the data: runs that cover them in order,
        neighbours of the same status joined."""
        runs: list[Run] = []
        for part in pieces_of(first, count, limits.RANGE_COUNT_MAX):
            for run in await self._source.runs(part):
                if runs and runs[-1].status is run.status:
                    runs[-1] = Run(runs[-1].first, run.status, runs[-1].count + run.count)
                else:
                    runs.append(Run(ticket.format(run.first), run.status, run.count))
        return runs

    @property
    def _source(self) -> RangeSource:
        self._guard.check()
        if self._ranges is None:
            raise UsageError("this client was made without the address of the get port")
        return self._ranges

    async def _chunks(self, tickets: range) -> list[Chunk]:
        data = memoryview(bytearray(len(tickets) * limits.DATA_SIZE))
        others = await self._source.read(tickets, data)
        chunks: list[Chunk] = [
            (ticket.format(index), Status.SAVED, bytes(data[at : at + limits.DATA_SIZE]))
            for index, at in zip(tickets, range(0, len(data), limits.DATA_SIZE), strict=True)
        ]
        for run in others:
            for i in range(run.first - tickets.start, run.first - tickets.start + run.count):
                chunks[i] = (chunks[i][0], run.status, b"")
        return chunks


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


def _raise_refused(batch: Batch) -> None:
    for name, status in batch.refused.items():
        raise RefusedError(name, status)
