"""Uploads in pieces: of objects that do not fit into memory, or whose bytes come too slowly to keep them.

Such a one is a PENDING version whose ranges are in the catalog before their first frame is sent; it is put in pieces, a few
of which are in flight. A piece that meets a ticket of somebody else's moves to another range as a whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from blake3 import blake3

from ingest.catalog.catalog_access import CatalogAccess
from ingest.catalog.extent import Extent, chunks_needed, joined
from ingest.catalog.version import ANY, Version, order_at
from ingest.errors import IngestError, OrderError, UploadLostError
from ingest.limits import (
    DATA_SIZE,
    FRAME_SIZE,
    PIECE_CHUNKS,
    PIECE_PATIENCE_S,
    PIECES_IN_FLIGHT,
    RANGE_TICKETS_MAX,
    RANGE_TICKETS_MIN,
    RELOCATIONS_MAX,
    TRANSFER_ALLOWANCE_CHUNKS,
)
from ingest.objects import manifest
from ingest.objects.body import Body
from ingest.objects.chunk_writer import ChunkWriter
from ingest.objects.manifest import Manifest
from ingest.objects.membership import Membership
from ingest.objects.memory_budget import ALLOWANCE_SIZE, SEALED_SIZE, Transfer
from ingest.objects.upload import (
    NAMELESS,
    Upload,
    check_size,
    data_of,
    raise_unless_foreign,
    sealed_manifest,
)
from ingest.status import Status

PIECE_SIZE = PIECE_CHUNKS * DATA_SIZE
SPARE_BUFFERS = 4  # of a process: an upload has one at a time, until it is signed


class Buffers:
    """Some of whole pieces are kept: their memory is there already."""

    def __init__(self) -> None:
        self._spare: list[bytearray] = []

    def take(self, size: int) -> bytearray:
        """Of ``size`` bytes, whatever is in them."""
        return self._spare.pop() if size == PIECE_SIZE and self._spare else bytearray(size)

    def give(self, buffer: bytearray) -> None:
        """Nobody has a view of it any more."""
        if len(buffer) == PIECE_SIZE and len(self._spare) < SPARE_BUFFERS:
            self._spare.append(buffer)


@dataclass(frozen=True, slots=True)
class Shared:
    """What all uploads of a process work with. ``key``: of manifests."""

    catalog: CatalogAccess
    membership: Membership
    writer: ChunkWriter
    key: bytes = field(repr=False)
    buffers: Buffers = field(default_factory=Buffers)


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


class StreamedUpload:
    """One upload that is larger than fits into one call, or comes too slowly for it."""

    def __init__(self, shared: Shared, upload: Upload, body: Body, transfer: Transfer) -> None:
        self._catalog = shared.catalog
        self._writer = shared.writer
        self._buffers = shared.buffers
        self._upload = upload
        self._body = body
        self._transfer = transfer
        self._membership = shared.membership
        self._owner = shared.membership.owner
        self._key = shared.key
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
        try:
            await self._begin(known)
        except UploadLostError:
            if not await self._membership.entered_again(self._owner):
                raise
            self._owner = self._membership.owner
            await self._begin(known)
        try:
            await self._put_all(start)
            check_size(upload.size, self._size)
            name = upload.final_name()
            digest = self._hash.digest()
            kept = upload.kept(name, digest)
            if kept is not None:
                await self._forgo_rest()
                await self._catalog.fail(self._owner, self._version, "these bytes were stored already")
                return kept
            return await self._commit(name, digest)
        except BaseException as error:
            await self._writer.end(self._fail(error))
            raise

    async def _begin(self, known: bool) -> None:
        upload = self._upload
        self._version = await self._catalog.begin(
            self._owner,
            upload.namespace,
            upload.final_name() if known else NAMELESS,
            upload.headers,
            upload.condition if known else ANY,
        )

    async def _commit(self, name: str, digest: bytes) -> Version:
        now = time.time()
        about = Manifest(
            version=self._version,
            namespace=self._upload.namespace,
            name=name,
            size=self._size,
            digest=digest.hex(),
            created=now,
            order=order_at(now),
            headers=dict(self._upload.headers),
        )
        renamed = None if isinstance(self._upload.name, str) else name
        for _ in range(RELOCATIONS_MAX):
            extents = await self._put_manifest(about)
            await self._forgo_rest()
            try:
                return await self._catalog.commit(
                    self._owner, self._version, self._size, digest, extents, self._upload.condition,
                    renamed, order=about.order,
                )  # fmt: skip
            except OrderError:
                about = self._upload.later(about)  # the manifest before becomes garbage with the commit
        raise UploadLostError(f"{name!r} got another version {RELOCATIONS_MAX} times in a row")

    async def _fail(self, error: BaseException) -> None:
        tasks = [piece.task for piece in self._in_flight if piece.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._writer.settled()
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
                    buffer = self._buffers.take(borrowed // SEALED_SIZE * DATA_SIZE)
                    return _Piece(buffer, borrowed)
            if self._allowance_is_free:
                self._allowance_is_free = False
                return _Piece(bytearray(ALLOWANCE_SIZE), 0)
            await self._take_first()

    def _let_go_of_data(self, piece: _Piece, rest: int) -> None:
        """Only ``rest`` bytes of what belongs to the piece are still needed: its frames."""
        buffer, piece.data = piece.data, bytearray()
        self._buffers.give(buffer)
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
        sealed = self._writer.seal(piece.places, memoryview(piece.data)[: piece.size])
        self._let_go_of_data(piece, chunks * FRAME_SIZE)
        for _ in range(RELOCATIONS_MAX):
            refused: dict[str, Status] = {}
            for frames in sealed:
                await self._writer.put_frames(self._owner, frames, refused, self._version)
            if not refused:
                return
            raise_unless_foreign(refused)
            data = b"".join(map(data_of, sealed))
            piece.places = [await self._catalog.extend(self._owner, self._version, chunks)]
            sealed = self._writer.seal(piece.places, data)
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

    async def _put_manifest(self, about: Manifest) -> tuple[Extent, ...]:
        """Behind the last chunk when the range has room there, else in a range of its own, which is the last extent then.
        Returns the extents of the object."""
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
            await self._writer.put_chunks(self._owner, place, text, refused, self._version)
            if not refused:
                return extents
            raise_unless_foreign(refused)
        raise UploadLostError(
            f"{RELOCATIONS_MAX} ranges in a row hold tickets of somebody else: none is left to try"
        )
