"""The receiver: turns a stream of bytes into chunks, has them stored, and gives them a name. `docs/objects.md`.

Two ways. An object that fits into memory is put as one run of a lease that this process has, and takes one transaction.
A larger one is a PENDING version whose ranges are in the catalog before their first frame is sent; it is put in pieces, a
few of which are in flight. A piece that meets a ticket of somebody else's moves to another range as a whole. A small one
goes that way too when its bytes come too slowly to keep them, or when other transfers have the memory (`budget`).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterable, Mapping, Sequence
from dataclasses import dataclass, field

from blake3 import blake3

from ingest.catalog.catalog_access import CatalogAccess
from ingest.catalog.extent import Extent, chunks_needed, joined
from ingest.catalog.version import ANY, Version
from ingest.client.chunk_store import ChunkStore
from ingest.errors import IngestError, UploadLostError
from ingest.limits import (
    DATA_SIZE,
    FRAME_SIZE,
    PIECE_CHUNKS,
    PIECE_PATIENCE_S,
    PIECES_IN_FLIGHT,
    RANGE_TICKETS_MAX,
    RANGE_TICKETS_MIN,
    RELOCATIONS_MAX,
    SMALL_OBJECT_MAX,
    TRANSFER_ALLOWANCE_CHUNKS,
)
from ingest.objects import manifest
from ingest.objects.body import Body, as_body
from ingest.objects.budget import ALLOWANCE_SIZE, SEALED_SIZE, Budget, Transfer
from ingest.objects.chunk_writer import ChunkWriter
from ingest.objects.manifest import Manifest
from ingest.objects.membership import Membership
from ingest.objects.upload import (
    NAMELESS,
    Upload,
    check_size,
    data_of,
    ours,
    raise_unless_foreign,
    sealed_manifest,
)
from ingest.status import Status

PIECE_SIZE = PIECE_CHUNKS * DATA_SIZE
SPARE_BUFFERS = 4  # of a process: an upload has one at a time, until it is signed


class Receiver:
    """``key``: of manifests. Any number of uploads may run at a time."""

    def __init__(
        self, client: ChunkStore, catalog: CatalogAccess, membership: Membership, key: bytes, budget: Budget
    ) -> None:
        self._catalog = catalog
        self._membership = membership
        self._key = key
        self._budget = budget
        self._spare: list[bytearray] = []  # buffers of whole pieces: their memory is there already
        self.writer = ChunkWriter(client, catalog)

    async def receive(self, upload: Upload, source: Body | AsyncIterable[bytes]) -> Version:
        """See `ObjectStore.put`."""
        body = as_body(source)
        transfer = self._budget.enter()
        try:
            data = bytearray()
            if upload.size is None or upload.size <= SMALL_OBJECT_MAX:
                data = await self._gather(upload, body, transfer)
                if body.ended:
                    return await self._store(upload, data)
            return await _Stream(self, upload, body, transfer).run(data)
        finally:
            transfer.leave()
            await body.close()

    async def _gather(self, upload: Upload, body: Body, transfer: Transfer) -> bytearray:
        """All of a small object, and then the body has ended; or what there is of it."""
        # One byte more than there should be: it would be seen.
        most = 1 + (SMALL_OBJECT_MAX if upload.size is None else upload.size)
        data = bytearray(min(most, ALLOWANCE_SIZE))
        size = await body.fill(memoryview(data))
        if size == len(data) < most:
            memory = chunks_needed(most) * SEALED_SIZE
            if transfer.borrow(memory, memory):
                data += bytes(most - size)
                size += await body.fill(memoryview(data)[size:], PIECE_PATIENCE_S)
        del data[size:]
        return data

    def take_buffer(self, size: int) -> bytearray:
        """Of ``size`` bytes, whatever is in them."""
        return self._spare.pop() if size == PIECE_SIZE and self._spare else bytearray(size)

    def give_buffer(self, buffer: bytearray) -> None:
        """Nobody has a view of it any more."""
        if len(buffer) == PIECE_SIZE and len(self._spare) < SPARE_BUFFERS:
            self._spare.append(buffer)

    # --- in one call

    async def _store(self, upload: Upload, data: bytearray) -> Version:
        check_size(upload.size, len(data))
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
                    text = sealed_manifest(about, [place], Extent(place.first + chunks, more), self._key)
                    await self.writer.put_chunks(owner, place, data + text, refused)
                    if not refused:
                        return await self._catalog.store(
                            owner, upload.namespace, name, about.size, digest, [place],
                            upload.headers, upload.condition, number=number,
                        )  # fmt: skip
                except BaseException:
                    await self.writer.end(self._discard(lease.pop_all(), owner, place, refused))
                    raise
                await self._catalog.discard(owner, ours([place], refused))
                raise_unless_foreign(refused)
        raise UploadLostError(
            f"{RELOCATIONS_MAX} ranges in a row hold tickets of somebody else: none is left to try"
        )

    async def _discard(
        self, lease: contextlib.AsyncExitStack, owner: int, place: Extent, refused: Mapping[str, Status]
    ) -> None:
        async with lease:  # not given back before
            await self.writer.settled()
            with contextlib.suppress(IngestError):  # then it is swept with the lease
                await self._catalog.discard(owner, ours([place], refused))


# --- in pieces


@dataclass(slots=True)
class _Piece:
    """Chunks on their way, and where they are put: both change when they move. ``data``: of ``size`` bytes, in a buffer that
    may be longer, until frames are made of it. ``borrowed``: bytes of the budget; none for a piece of the allowance."""

    data: bytearray
    borrowed: int
    size: int = 0
    places: Sequence[Extent] = ()
    task: asyncio.Task[None] | None = field(init=False, default=None)

    @property
    def done(self) -> bool:
        return self.task is not None and self.task.done()


class _Stream:
    """One upload that is larger than fits into one call."""

    def __init__(self, receiver: Receiver, upload: Upload, body: Body, transfer: Transfer) -> None:
        self._catalog = receiver._catalog
        self._receiver = receiver
        self._upload = upload
        self._body = body
        self._transfer = transfer
        self._owner = receiver._membership.owner
        self._key = receiver._key
        self._version = 0
        self._range = Extent(0, 0)  # tickets that the version has and nothing is put under
        self._next_range = RANGE_TICKETS_MIN
        self._size = 0
        self._hash = blake3()
        self._allowance_is_free = True
        self._pace = PIECE_CHUNKS // 4  # chunks that the client sends while we are patient
        self._in_flight: deque[_Piece] = deque()
        self._extents: list[Extent] = []  # of the pieces that are saved, in order

    async def run(self, start: bytearray) -> Version:
        """``start``: what came already, and was borrowed for as much as it is beyond the allowance."""
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
            await self._put_all(start)
            check_size(upload.size, self._size)
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
            await self._receiver.writer.end(self._fail(error))
            raise

    async def _fail(self, error: BaseException) -> None:
        tasks = [piece.task for piece in self._in_flight if piece.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._receiver.writer.settled()
        reason = str(error) or type(error).__name__
        with contextlib.suppress(IngestError):  # it was given up before, or will be when the deadline passes
            await self._forgo_rest()
            await self._catalog.fail(self._owner, self._version, f"upload broke: {reason}")

    async def _put_all(self, start: bytearray) -> None:
        piece = self._first_piece(start)
        rest = await self._put_whole(piece)
        while not self._body.ended or rest:
            piece = await self._room()
            piece.data[: len(rest)] = rest
            piece.size = len(rest) + await self._fill(piece, len(rest))
            rest = await self._put_whole(piece)
        while self._in_flight:
            await self._take_first()

    def _first_piece(self, start: bytearray) -> _Piece:
        """Of what there is already: the part of it that is borrowed becomes that of the piece."""
        borrowed = self._transfer.borrowed
        self._allowance_is_free = borrowed > 0
        return _Piece(start, borrowed, len(start))

    async def _fill(self, piece: _Piece, at: int) -> int:
        """Receives into ``piece`` from byte ``at`` on. What is borrowed waits for the client only for a while; the next
        piece is as large as what came meanwhile."""
        clock = asyncio.get_running_loop().time
        began = clock()
        view = memoryview(piece.data)[at:]
        size = await self._body.fill(view, PIECE_PATIENCE_S if piece.borrowed else None)
        in_time = size == len(view) and clock() - began < PIECE_PATIENCE_S
        here = 2 * self._pace if in_time else max(TRANSFER_ALLOWANCE_CHUNKS, size // DATA_SIZE)
        self._pace = min(here, PIECE_CHUNKS)
        return size

    async def _room(self) -> _Piece:
        """For the next piece; waits for older ones when there is none."""
        while True:
            while self._in_flight and (self._in_flight[0].done or len(self._in_flight) == PIECES_IN_FLIGHT):
                await self._take_first()
            if self._pace > TRANSFER_ALLOWANCE_CHUNKS or not self._allowance_is_free:
                # A few of them at a time: some are stored while the next one comes.
                most = min(self._pace, self._transfer.share // SEALED_SIZE // 4)
                least = TRANSFER_ALLOWANCE_CHUNKS
                borrowed = self._transfer.borrow(least * SEALED_SIZE, max(least, most) * SEALED_SIZE)
                if borrowed:
                    buffer = self._receiver.take_buffer(borrowed // SEALED_SIZE * DATA_SIZE)
                    return _Piece(buffer, borrowed)
            if self._allowance_is_free:
                self._allowance_is_free = False
                return _Piece(bytearray(ALLOWANCE_SIZE), 0)
            await self._take_first()

    def _let_go_of_data(self, piece: _Piece, rest: int) -> None:
        """Only ``rest`` bytes of what belongs to the piece are still needed: its frames."""
        buffer, piece.data = piece.data, bytearray()
        self._receiver.give_buffer(buffer)
        if piece.borrowed:
            self._transfer.give_back(piece.borrowed - rest)
            piece.borrowed = rest

    def _let_go(self, piece: _Piece) -> None:
        """Nothing of the piece is in memory any more."""
        if piece.borrowed:
            self._transfer.give_back(piece.borrowed)
        else:
            self._allowance_is_free = True

    async def _put_whole(self, piece: _Piece) -> bytes:
        """Starts to put its whole chunks. Returns what is left: less than a chunk, and nothing at the end of the body."""
        over = 0 if self._body.ended else piece.size % DATA_SIZE
        piece.size -= over
        rest = bytes(memoryview(piece.data)[piece.size : piece.size + over])
        if not piece.size:
            self._let_go(piece)
            return rest
        self._hash.update(memoryview(piece.data)[: piece.size])
        self._size += piece.size
        piece.places = await self._places(chunks_needed(piece.size))
        piece.task = asyncio.create_task(self._store_and_let_go(piece))
        self._in_flight.append(piece)
        return rest

    async def _take_first(self) -> None:
        piece = self._in_flight[0]
        assert piece.task is not None, "only what is on its way is in flight"
        await piece.task
        self._in_flight.popleft()
        self._extents[-1:] = joined([*self._extents[-1:], *piece.places])

    async def _store_and_let_go(self, piece: _Piece) -> None:
        try:
            await self._store_piece(piece)
        finally:
            self._let_go(piece)

    async def _store_piece(self, piece: _Piece) -> None:
        """Until all of it is saved: what meets foreign tickets is put again elsewhere, whole."""
        chunks = chunks_needed(piece.size)
        sealed = self._receiver.writer.seal(piece.places, memoryview(piece.data)[: piece.size])
        self._let_go_of_data(piece, chunks * FRAME_SIZE)
        for _ in range(RELOCATIONS_MAX):
            refused: dict[str, Status] = {}
            for frames in sealed:
                await self._receiver.writer.put_frames(self._owner, frames, refused, self._version)
            if not refused:
                return
            raise_unless_foreign(refused)
            data = b"".join(map(data_of, sealed))
            piece.places = [await self._catalog.extend(self._owner, self._version, chunks)]
            sealed = self._receiver.writer.seal(piece.places, data)
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
            text = sealed_manifest(about, extents, place, self._key)
            refused: dict[str, Status] = {}
            await self._receiver.writer.put_chunks(self._owner, place, text, refused, self._version)
            if not refused:
                self._extents = list(extents)
                return
            raise_unless_foreign(refused)
        raise UploadLostError(
            f"{RELOCATIONS_MAX} ranges in a row hold tickets of somebody else: none is left to try"
        )
