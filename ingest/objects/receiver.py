"""The receiver: turns a stream of bytes into chunks, has them stored, and gives them a name. `docs/objects.md`.

Two ways. An object that fits into memory is put as one run of a lease that this process has, and takes one transaction.
A larger one is a PENDING version whose ranges are in the catalog before their first frame is sent; it is put in pieces, a
few of which are in flight. A piece that meets a ticket of somebody else's moves to another range as a whole.

An upload that breaks keeps its tickets until its frames are answered, or their connection is given up: a CONFLICT may be on
its way, and what it is about must not become garbage. Who uploads waits for that a few seconds; then it goes on without him.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from blake3 import blake3

from ingest import ticket
from ingest.client import AsyncClient
from ingest.errors import IngestError, RefusedError, UploadLostError
from ingest.limits import (
    DATA_SIZE,
    PIECE_CHUNKS,
    PIECES_IN_FLIGHT,
    PIECES_OF_PROCESS,
    RANGE_TICKETS_MAX,
    RANGE_TICKETS_MIN,
    RELOCATIONS_MAX,
    SMALL_OBJECT_MAX,
    UPLOAD_SETTLE_S,
)
from ingest.objects import manifest
from ingest.objects.catalog_access import CatalogAccess
from ingest.objects.extent import Extent, chunks_needed, joined, without
from ingest.objects.manifest import Manifest
from ingest.objects.membership import Membership
from ingest.objects.version import ANY, SAME, Condition, Version
from ingest.put_channel import Batch
from ingest.status import Status

PIECE_SIZE = PIECE_CHUNKS * DATA_SIZE
NAMELESS = "(not known yet)"  # the name of an upload whose bytes will say it
FOREIGN = (Status.CONFLICT, Status.DELETED)  # somebody else has, or had, such a ticket: another one will do


@dataclass(frozen=True, slots=True)
class Upload:
    """What is uploaded, but for its bytes. ``name``: or a function that knows it once they have ended. ``present``: the
    version that a name of this namespace has now."""

    namespace: str
    name: str | Callable[[], str]
    size: int | None
    headers: Mapping[str, str]
    condition: Condition
    present: Callable[[str], Version | None]

    def kept(self, name: str, digest: bytes) -> Version | None:
        """The version that stays, where the same bytes are to be stored once: it has them already."""
        found = self.present(name) if self.condition == SAME else None
        return found if found is not None and found.digest == digest else None

    def final_name(self) -> str:
        return self.name if isinstance(self.name, str) else self.name()


class Receiver:
    """``key``: of manifests. Any number of uploads may run at a time."""

    def __init__(
        self, client: AsyncClient, catalog: CatalogAccess, membership: Membership, key: bytes
    ) -> None:
        self._client = client
        self._catalog = catalog
        self._membership = membership
        self._key = key
        self.slots = asyncio.Semaphore(PIECES_OF_PROCESS)
        self._settling: set[asyncio.Task[None]] = set()  # puts that were cancelled, and are not answered yet
        self._ending: set[asyncio.Task[None]] = set()  # of uploads that broke

    async def receive(self, upload: Upload, body: AsyncIterable[bytes]) -> Version:
        """See `ObjectStore.put`."""
        source = aiter(body)
        start = bytearray()
        while len(start) <= SMALL_OBJECT_MAX:
            try:
                start += await anext(source)
            except StopAsyncIteration:
                return await self._store(upload, start)
        return await _Stream(self, upload).run(start, source)

    async def end(self, work: Coroutine[Any, Any, None]) -> None:
        """Does what an upload that broke leaves to be done. Back when that is done, or takes long: then it goes on."""
        task = asyncio.create_task(work)
        _keep(self._ending, task)
        await asyncio.wait([task], timeout=UPLOAD_SETTLE_S)

    async def settled(self) -> None:
        """When the frames are answered that were sent for uploads which have broken by now."""
        if self._settling:
            await asyncio.wait(self._settling)

    async def close(self) -> None:
        """Uploads that broke have a few seconds to be settled. No other one may be under way."""
        if self._ending:
            await asyncio.wait(self._ending, timeout=UPLOAD_SETTLE_S)

    # --- in one call

    async def _store(self, upload: Upload, data: bytearray) -> Version:
        _check_size(upload.size, len(data))
        name = upload.final_name()
        digest = blake3(data).digest()
        kept = upload.kept(name, digest)
        if kept is not None:
            return kept
        number = await self._membership.number()
        chunks = chunks_needed(len(data))
        about = Manifest(
            version=number,
            namespace=upload.namespace,
            name=name,
            size=len(data),
            digest=digest.hex(),
            created=time.time(),
            headers=dict(upload.headers),
        )
        more = manifest.size_max(about, 1)
        data += bytes(chunks * DATA_SIZE - len(data))
        for _ in range(RELOCATIONS_MAX):
            async with contextlib.AsyncExitStack() as lease:
                owner, place = await lease.enter_async_context(self._membership.tickets(chunks + more))
                refused: dict[str, Status] = {}
                try:
                    text = _manifest(about, [place], Extent(place.first + chunks, more), self._key)
                    await self.put_chunks(owner, place, data + text, refused)
                    if not refused:
                        return await self._catalog.store(
                            owner, upload.namespace, name, about.size, digest, [place],
                            upload.headers, upload.condition, number=number,
                        )  # fmt: skip
                except BaseException:
                    await self.end(self._discard(lease.pop_all(), owner, place, refused))
                    raise
                await self._catalog.discard(owner, _ours([place], refused))
                raise_unless_foreign(refused)
        raise UploadLostError(
            f"{RELOCATIONS_MAX} ranges in a row hold tickets of somebody else: none is left to try"
        )

    async def _discard(
        self, lease: contextlib.AsyncExitStack, owner: int, place: Extent, refused: Mapping[str, Status]
    ) -> None:
        async with lease:  # not given back before
            await self.settled()
            with contextlib.suppress(IngestError):  # then it is swept with the lease
                await self._catalog.discard(owner, _ours([place], refused))

    async def put_chunks(
        self,
        owner: int,
        place: Extent,
        data: bytes | bytearray | memoryview,
        refused: dict[str, Status],
        version: int | None = None,
    ) -> None:
        """Puts ``place.count`` chunks; adds what is refused to ``refused``.

        When it raises what the client does, the catalog knows the tickets that answered CONFLICT: they must not become
        garbage with the rest of the upload. When it is cancelled, the catalog knows them after `settled`.
        """
        batch = self._client.new_batch()
        try:
            await self._client.add_range(batch, ticket.format(place.first), data)
            await self._client.finish(batch)
        except asyncio.CancelledError:  # its frames are out: their answers say what is ours
            _keep(self._settling, asyncio.create_task(self._settle(batch, owner, refused, version)))
            raise
        except Exception:
            await self._take_refused(batch, owner, refused, version)
            raise
        await self._take_refused(batch, owner, refused, version)

    async def _settle(
        self, batch: Batch, owner: int, refused: dict[str, Status], version: int | None
    ) -> None:
        with contextlib.suppress(IngestError):  # the connection was given up, or the catalog is out of reach
            try:
                await self._client.finish(batch)
            finally:
                await self._take_refused(batch, owner, refused, version)

    async def _take_refused(
        self, batch: Batch, owner: int, refused: dict[str, Status], version: int | None
    ) -> None:
        if batch.refused:
            refused |= batch.refused
            noted = asyncio.create_task(self._note_conflicts(owner, batch.refused, version))
            _keep(self._settling, noted)
            await asyncio.shield(noted)

    async def _note_conflicts(self, owner: int, refused: Mapping[str, Status], version: int | None) -> None:
        for name, status in refused.items():
            if status is Status.CONFLICT:
                await self._catalog.conflicted(owner, ticket.parse(name), version)


# --- in pieces


@dataclass(slots=True)
class _Piece:
    """Chunks on their way, and where they are put: both change when they move."""

    places: Sequence[Extent]
    task: asyncio.Task[None] = field(init=False)


class _Stream:
    """One upload that is larger than fits into one call."""

    def __init__(self, receiver: Receiver, upload: Upload) -> None:
        self._catalog = receiver._catalog
        self._receiver = receiver
        self._upload = upload
        self._owner = receiver._membership.owner
        self._key = receiver._key
        self._version = 0
        self._range = Extent(0, 0)  # tickets that the version has and nothing is put under
        self._next_range = RANGE_TICKETS_MIN
        self._size = 0
        self._hash = blake3()
        self._in_flight: deque[_Piece] = deque()
        self._extents: list[Extent] = []  # of the pieces that are saved, in order

    async def run(self, start: bytearray, rest: AsyncIterator[bytes]) -> Version:
        upload = self._upload
        known = isinstance(upload.name, str)
        self._version = await self._catalog.begin(
            self._owner,
            upload.namespace,
            upload.final_name() if known else NAMELESS,
            upload.headers,
            upload.condition if known else ANY,
        )
        try:
            await self._put_all(start, rest)
            _check_size(upload.size, self._size)
            name = upload.final_name()
            digest = self._hash.digest()
            kept = upload.kept(name, digest)
            if kept is not None:
                await self._catalog.fail(self._owner, self._version, "these bytes were stored already")
                return kept
            await self._put_manifest(name, digest)
            await self._forgo_rest()
            return await self._catalog.commit(
                self._owner, self._version, self._size, digest, self._extents, upload.condition,
                None if known else name,
            )  # fmt: skip
        except BaseException as error:
            await self._receiver.end(self._fail(error))
            raise

    async def _fail(self, error: BaseException) -> None:
        for piece in self._in_flight:
            piece.task.cancel()
        await asyncio.gather(*(piece.task for piece in self._in_flight), return_exceptions=True)
        await self._receiver.settled()
        reason = str(error) or type(error).__name__
        with contextlib.suppress(IngestError):  # it was given up before, or will be when the deadline passes
            await self._forgo_rest()
            await self._catalog.fail(self._owner, self._version, f"upload broke: {reason}")

    async def _put_all(self, start: bytearray, rest: AsyncIterator[bytes]) -> None:
        gathered = start
        while True:
            while len(gathered) >= PIECE_SIZE:
                await self._put_piece(gathered[:PIECE_SIZE])
                del gathered[:PIECE_SIZE]
            try:
                gathered += await anext(rest)
            except StopAsyncIteration:
                break
        if gathered:
            await self._put_piece(gathered)
        while self._in_flight:
            await self._take_first()

    async def _put_piece(self, data: bytearray) -> None:
        """Starts one more; waits for the oldest one when there are enough of them in flight."""
        self._size += len(data)
        self._hash.update(data)
        places = await self._places(chunks_needed(len(data)))
        while len(self._in_flight) >= PIECES_IN_FLIGHT:
            await self._take_first()
        slots = self._receiver.slots
        await slots.acquire()
        piece = _Piece(places)
        piece.task = asyncio.create_task(self._store_piece(piece, data))
        piece.task.add_done_callback(lambda _: slots.release())
        self._in_flight.append(piece)

    async def _take_first(self) -> None:
        piece = self._in_flight[0]
        await piece.task
        self._in_flight.popleft()
        self._extents += piece.places

    async def _store_piece(self, piece: _Piece, data: bytearray) -> None:
        """Until all of it is saved: what meets foreign tickets is put again elsewhere, whole."""
        view = memoryview(data)
        for _ in range(RELOCATIONS_MAX):
            refused: dict[str, Status] = {}
            at = 0
            for place in piece.places:
                part = view[at : at + place.count * DATA_SIZE]
                await self._receiver.put_chunks(self._owner, place, part, refused, self._version)
                at += place.count * DATA_SIZE
            if not refused:
                return
            raise_unless_foreign(refused)
            piece.places = [await self._catalog.extend(self._owner, self._version, chunks_needed(len(data)))]
        raise UploadLostError(
            f"{RELOCATIONS_MAX} ranges in a row hold tickets of somebody else: none is left to try"
        )

    async def _places(self, count: int) -> list[Extent]:
        """The next ``count`` tickets of the version: of its range, and of more ranges when that is used up."""
        places = []
        while count:
            if not self._range.count:
                self._range = await self._catalog.extend(self._owner, self._version, self._range_size())
            places.append(self._take(min(count, self._range.count)))
            count -= places[-1].count
        return list(joined(places))

    def _take(self, count: int) -> Extent:
        place = Extent(self._range.first, count)
        self._range = Extent(place.stop, self._range.count - count)
        return place

    async def _forgo_rest(self) -> None:
        """Nothing was put under what is left of the range: deleting it would be work, and not ours if it is somebody's."""
        rest, self._range = self._range, Extent(0, 0)
        if rest.count:
            await self._catalog.forgo(self._owner, rest, self._version)

    def _range_size(self) -> int:
        """All that is still to come, if that is known, with room for the manifest; else twice as much as the last time."""
        if self._upload.size is not None:
            left = chunks_needed(max(1, self._upload.size - self._size)) + PIECE_CHUNKS + 1
            return min(left, RANGE_TICKETS_MAX)
        size = self._next_range
        self._next_range = min(2 * size, RANGE_TICKETS_MAX)
        return size

    async def _put_manifest(self, name: str, digest: bytes) -> None:
        """Behind the last chunk when the range has room there, else in a range of its own, which is the last extent then."""
        about = Manifest(
            version=self._version,
            namespace=self._upload.namespace,
            name=name,
            size=self._size,
            digest=digest.hex(),
            created=time.time(),  # of the manifest: a rebuild takes the one that was ready last
            headers=dict(self._upload.headers),
        )
        chunks = manifest.size_max(about, len(joined(self._extents)) + 1)
        behind = self._range.first == self._extents[-1].stop and self._range.count >= chunks
        for _ in range(RELOCATIONS_MAX):
            if behind:
                place = self._take(chunks)
                behind = False
            else:
                place = await self._catalog.extend(self._owner, self._version, chunks)
            extents = joined([*self._extents, place])
            text = _manifest(about, extents, place, self._key)
            refused: dict[str, Status] = {}
            await self._receiver.put_chunks(self._owner, place, text, refused, self._version)
            if not refused:
                self._extents = list(extents)
                return
            raise_unless_foreign(refused)
        raise UploadLostError(
            f"{RELOCATIONS_MAX} ranges in a row hold tickets of somebody else: none is left to try"
        )


def _keep(tasks: set[asyncio.Task[None]], task: asyncio.Task[None]) -> None:
    """Among ``tasks`` until it ends."""
    tasks.add(task)
    task.add_done_callback(tasks.discard)


def _manifest(about: Manifest, extents: Sequence[Extent], place: Extent, key: bytes) -> bytes:
    """Exactly ``place.count`` chunks."""
    named = msgspec.structs.replace(about, extents=[(ticket.format(one.first), one.count) for one in extents])
    return manifest.serialize(named, place, key)


def _ours(places: Sequence[Extent], refused: Mapping[str, Status]) -> list[Extent]:
    """What of these tickets is not somebody else's."""
    rest: Sequence[Extent] = places
    for name, status in refused.items():
        if status is Status.CONFLICT:
            rest = without(rest, ticket.parse(name))
    return list(rest)


def raise_unless_foreign(refused: Mapping[str, Status]) -> None:
    """RefusedError for a status that another ticket would get as well."""
    for name, status in refused.items():
        if status not in FOREIGN:
            raise RefusedError(name, status)


def _check_size(expected: int | None, size: int) -> None:
    if expected is not None and size != expected:
        raise UploadLostError(f"the body ended after {size} of {expected} bytes")
