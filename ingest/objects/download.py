"""Downloads: the bytes of one version, whatever becomes of its name meanwhile. `docs/objects.md`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass

from ingest import ticket
from ingest.catalog.catalog_access import CatalogAccess
from ingest.catalog.extent import Extent, chunks_needed, part
from ingest.catalog.version import Version
from ingest.client.chunk_store import ChunkStore
from ingest.errors import (
    CorruptFrameError,
    DiskError,
    IngestError,
    NotFoundError,
    RefusedError,
    UploadLostError,
)
from ingest.limits import (
    DATA_SIZE,
    PIECE_CHUNKS,
    PIECE_PATIENCE_S,
    PIECES_READ_AHEAD,
    SMALL_OBJECT_MAX,
    TRANSFER_ALLOWANCE_CHUNKS,
)
from ingest.objects.membership import Membership
from ingest.objects.memory_budget import ALLOWANCE_SIZE, Budget, Transfer
from ingest.status import Status

log = logging.getLogger(__name__)

GONE = (Status.MISSING, Status.DELETED)
LOOKS_MAX = 100  # at a name that changes: each time somebody has replaced it between the look and the read


class SmallDownload:
    """A version that was read whole: ``data``. ``transfer``: of what was borrowed for it.

    ``pin``: makes a `PinnedDownload` of it, for a client that does not take it: NotFoundError when it was replaced.
    """

    def __init__(
        self,
        version: Version,
        data: bytearray,
        transfer: Transfer,
        pin: Callable[[Version], Awaitable[PinnedDownload]],
    ) -> None:
        self.version = version
        self._data = data
        self._transfer = transfer
        self._pin = pin
        self._taken: int | None = None  # of what was given last
        self._pinning: asyncio.Task[PinnedDownload | None] | None = None
        self._pinned: PinnedDownload | None = None

    async def read(self, start: int = 0, stop: int | None = None) -> AsyncGenerator[bytes, None]:
        """See `StoredDownload.read`."""
        stop = self.version.size if stop is None else min(stop, self.version.size)
        at = start
        # What is within the allowance is nobody else's, however long it takes.
        late = self._transfer.borrowed and asyncio.get_running_loop().call_later(
            PIECE_PATIENCE_S, self._let_go
        )
        try:
            while at < stop and self._pinned is None:
                self._taken = None
                yield memoryview(self._data)[at:stop]  # type: ignore[misc]  # a view of bytes is as good
                at = stop if self._taken is None else at + self._taken
                if self._pinning is not None:
                    self._pinned, self._pinning = await self._pinning, None
        finally:
            if late:
                late.cancel()
        if at < stop:
            assert self._pinned is not None
            async with contextlib.aclosing(self._pinned.read(at, stop)) as pieces:
                async for piece in pieces:
                    yield piece

    def took(self, count: int) -> None:
        """See `StoredDownload.took`."""
        if self._pinned is not None:
            self._pinned.took(count)
        self._taken = count

    def _let_go(self) -> None:
        """The client takes its time: what it has not taken is read again when it has come so far."""
        if self._taken is not None and self._transfer.borrowed:
            self._pinning = asyncio.create_task(self._read_again())

    async def _read_again(self) -> PinnedDownload | None:
        try:
            pinned = await self._pin(self.version)
        except IngestError:
            return None  # replaced, so it can't be read again, or nobody can tell
        self._data = bytearray()
        self._transfer.give_back(self._transfer.borrowed)
        return pinned

    async def close(self) -> None:
        if self._pinning is not None:
            self._pinned = await self._pinning
        if self._pinned is not None:
            await self._pinned.close()
        self._transfer.leave()


@dataclass(frozen=True, slots=True)
class _Piece:
    """Chunks of a download that are read or being read, from ``first`` on. ``borrowed``: bytes of the budget."""

    first: int
    count: int
    borrowed: int
    task: asyncio.Task[bytearray]


class PinnedDownload:
    """A version that the collector leaves alone until ``close``.

    ``owner`` None: the catalog could not be changed, and took no pin. Then a delete meanwhile ends the download with an
    error: its chunks are gone, and their tickets are never given to others.
    """

    def __init__(
        self,
        version: Version,
        client: ChunkStore,
        catalog: CatalogAccess,
        owner: int | None,
        transfer: Transfer,
    ) -> None:
        self.version = version
        self._client = client
        self._catalog = catalog
        self._owner = owner
        self._closed = False
        self._transfer = transfer
        self._at = 0  # byte that is given next
        self._next = 0  # chunk that is read next
        self._end = 0  # chunk that is not read any more
        self._pace = PIECE_CHUNKS // 4  # chunks that the client takes while we are patient
        self._allowance_is_free = True
        self._ahead: deque[_Piece] = deque()
        self._piece: _Piece | None = None  # the one that the client takes
        self._data = memoryview(b"")  # its bytes
        # Bytes of what was given last. None: all of it, and somebody may still have a view.
        self._taken: int | None = None
        self._late: asyncio.TimerHandle | None = None  # for the piece that the client takes, all of it

    async def read(self, start: int = 0, stop: int | None = None) -> AsyncGenerator[bytes, None]:
        """See `StoredDownload.read`. One reader at a time."""
        stop = self.version.size if stop is None else min(stop, self.version.size)
        if start >= stop:
            return
        self._at = start
        self._next, self._end = start // DATA_SIZE, chunks_needed(stop)
        before: _Piece | None = None  # a part of it may still be on its way to the client
        try:
            self._read_ahead()
            while True:
                first = self._piece.first if self._piece else await self._next_piece()
                skipped, most = self._at - first * DATA_SIZE, stop - first * DATA_SIZE
                size = min(len(self._data), most) - skipped
                self._taken = None
                # No variable here refers to the piece meanwhile: it may be let go of.
                yield self._data[skipped:most]  # type: ignore[misc]  # a view of bytes is as good
                if self._taken is None:
                    self._at += size
                    before = self._let_go(before, self._piece)
                    self._forget_piece()
                elif self._taken == size:
                    self._let_go_of_piece()
                if self._at >= stop:
                    break
                self._read_ahead()
                if not self._ahead and self._piece is None:
                    before = self._let_go(before)
                    self._read_ahead()
        finally:
            await self._drop_ahead()
            self._let_go_of_piece()
            self._let_go(before)

    def took(self, count: int) -> None:
        """See `StoredDownload.took`."""
        self._taken = count
        self._at += count

    async def _next_piece(self) -> int:
        """Makes it the one that the client takes. Returns its first chunk."""
        piece = self._ahead.popleft()
        self._piece = piece
        self._data = memoryview(await piece.task)
        self._read_ahead()
        self._late = asyncio.get_running_loop().call_later(PIECE_PATIENCE_S, self._let_go_of_late)
        self._pace = min(2 * self._pace, PIECE_CHUNKS)
        return piece.first

    def _forget_piece(self) -> None:
        self._piece, self._data = None, memoryview(b"")
        if self._late is not None:
            self._late.cancel()

    def _let_go_of_piece(self) -> None:
        """Nobody has a view of it."""
        self._let_go(self._piece)
        self._forget_piece()

    def _let_go_of_late(self) -> None:
        """The client takes its time: what it has not taken is read again when it has come so far."""
        self._forget_ahead()
        if self._taken is not None and self._piece is not None:
            self._let_go_of_piece()
            self._next = self._at // DATA_SIZE

    def _read_ahead(self) -> None:
        """Asks for the next pieces, as many as there is memory for. The allowance is good for one of them."""
        while self._next < self._end and len(self._ahead) < PIECES_READ_AHEAD:
            left = self._end - self._next
            borrowed = 0
            if self._pace > TRANSFER_ALLOWANCE_CHUNKS or not self._allowance_is_free:
                # Beside them there are the one that the client takes, and the one before.
                fair = self._transfer.share // DATA_SIZE // (PIECES_READ_AHEAD + 2)
                most = min(left, max(TRANSFER_ALLOWANCE_CHUNKS, min(self._pace, fair)))
                borrowed = self._transfer.borrow(
                    min(most, TRANSFER_ALLOWANCE_CHUNKS) * DATA_SIZE, most * DATA_SIZE
                )
            if not borrowed:
                if not self._allowance_is_free:
                    return
                self._allowance_is_free = False
            count = borrowed // DATA_SIZE or min(left, TRANSFER_ALLOWANCE_CHUNKS)
            places = list(part(self.version.extents, self._next, count))
            self._ahead.append(
                _Piece(self._next, count, borrowed, asyncio.create_task(_read(self._client, places)))
            )
            self._next += count

    def _let_go(self, piece: _Piece | None, now: _Piece | None = None) -> _Piece | None:
        """Returns ``now``, which takes its place."""
        if piece is not None and piece.borrowed:
            self._transfer.give_back(piece.borrowed)
        elif piece is not None:
            self._allowance_is_free = True
        return now

    def _forget_ahead(self) -> None:
        self._pace = TRANSFER_ALLOWANCE_CHUNKS
        while self._ahead:
            piece = self._ahead.pop()
            if piece.task.done() and not piece.task.cancelled():
                piece.task.exception()  # told to nobody: it will come again
            piece.task.cancel()
            self._let_go(piece)
            self._next -= piece.count

    async def _drop_ahead(self) -> None:
        tasks = [piece.task for piece in self._ahead]
        self._forget_ahead()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._transfer.leave()
        if self._owner is not None:
            with contextlib.suppress(IngestError):  # then the pin ends with its owner
                await self._catalog.unpin(self._owner, self.version.number)


async def open_version(
    look: Callable[[], Version],
    client: ChunkStore,
    catalog: CatalogAccess,
    membership: Membership,
    budget: Budget,
) -> SmallDownload | PinnedDownload:
    """A download of what ``look`` finds. NotFoundError, and what reading raises."""
    transfer = budget.enter()
    try:
        return await _open(look, client, catalog, membership, transfer)
    except BaseException:
        transfer.leave()
        raise


async def _open(
    look: Callable[[], Version],
    client: ChunkStore,
    catalog: CatalogAccess,
    membership: Membership,
    transfer: Transfer,
) -> SmallDownload | PinnedDownload:
    async def pin(version: Version) -> PinnedDownload:
        owner = await _pinned(version, catalog, membership)
        return PinnedDownload(version, client, catalog, owner, transfer)

    for _ in range(LOOKS_MAX):
        version = look()
        if not _fits(version.size, transfer):
            try:
                return await pin(version)
            except NotFoundError:
                continue  # replaced since the look, or deleted: then the next look says so
        try:
            data = await _read(client, list(part(version.extents, 0, chunks_needed(version.size))))
            del data[version.size :]
            return SmallDownload(version, data, transfer, pin)
        except RefusedError as error:
            if error.status not in GONE:
                raise
            if look().number == version.number:
                raise CorruptFrameError(
                    f"object {version.name!r}: ticket {error.ticket} is {error.status.name}, and the catalog says that it "
                    "is stored"
                ) from None
    raise NotFoundError("the object was replaced again and again while it was read")


async def _pinned(version: Version, catalog: CatalogAccess, membership: Membership) -> int | None:
    """The owner of a pin on it; None when the disk takes no change: what it holds can be read all the same.
    NotFoundError, and what the catalog raises."""
    for last in (False, True):
        owner = membership.owner
        try:
            await catalog.pin(owner, version.number)
            return owner
        except DiskError as error:
            log.debug("object %r is read without a pin: %s", version.name, error)
            return None
        except UploadLostError:  # of this process nothing was heard for too long
            if last or not await membership.entered_again(owner):
                return None
    raise AssertionError


def _fits(size: int, transfer: Transfer) -> bool:
    """Whether an object of ``size`` bytes may be read whole; what it needs is borrowed then."""
    transfer.give_back(transfer.borrowed)  # for a version that has been replaced
    if size <= ALLOWANCE_SIZE:
        return True
    memory = chunks_needed(size) * DATA_SIZE
    return size <= SMALL_OBJECT_MAX and bool(transfer.borrow(memory, memory))


async def _read(client: ChunkStore, places: list[Extent]) -> bytearray:
    """The data of these chunks, one after the other."""
    if len(places) == 1:
        return await client.read_range(ticket.format(places[0].first), places[0].count)
    pieces = [await client.read_range(ticket.format(place.first), place.count) for place in places]
    return bytearray().join(pieces)
