"""Downloads: the bytes of one version, whatever becomes of its name meanwhile. `docs/objects.md`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Iterator

from ingest import ticket
from ingest.client import AsyncClient
from ingest.errors import CorruptFrameError, IngestError, NotFoundError, RefusedError
from ingest.limits import DATA_SIZE, READ_CHUNKS, READ_CHUNKS_MIN, READERS_AT_FULL_SIZE, SMALL_OBJECT_MAX
from ingest.objects.catalog_access import CatalogAccess
from ingest.objects.extent import Extent, chunks_needed, part
from ingest.objects.membership import Membership
from ingest.objects.version import Version
from ingest.status import Status

GONE = (Status.MISSING, Status.DELETED)
LOOKS_MAX = 100  # at a name that changes: each time somebody has replaced it between the look and the read


class SmallDownload:
    """A version that was read whole: ``data``."""

    def __init__(self, version: Version, data: bytes) -> None:
        self.version = version
        self._data = data

    async def read(self, start: int = 0, stop: int | None = None) -> AsyncGenerator[bytes, None]:
        yield self._data[start:stop]

    async def close(self) -> None:
        pass


class Readers:
    """The downloads that a process has open: the more there are, the less each of them reads ahead."""

    def __init__(self) -> None:
        self.count = 0

    @property
    def chunks(self) -> int:
        """What one of them asks for together."""
        return max(
            READ_CHUNKS_MIN, READ_CHUNKS * READERS_AT_FULL_SIZE // max(self.count, READERS_AT_FULL_SIZE)
        )


class PinnedDownload:
    """A version that the collector leaves alone until ``close``."""

    def __init__(
        self, version: Version, client: AsyncClient, catalog: CatalogAccess, owner: int, readers: Readers
    ) -> None:
        self.version = version
        self._client = client
        self._catalog = catalog
        self._owner: int | None = owner
        self._readers = readers
        readers.count += 1

    async def read(self, start: int = 0, stop: int | None = None) -> AsyncGenerator[bytes, None]:
        stop = self.version.size if stop is None else min(stop, self.version.size)
        if start >= stop:
            return
        first = start // DATA_SIZE
        places = list(
            _parts(part(self.version.extents, first, chunks_needed(stop) - first), self._readers.chunks)
        )
        skipped = first * DATA_SIZE  # bytes of the object before what is read next
        ahead: asyncio.Task[bytearray] | None = None
        try:
            for i, place in enumerate(places):
                ready = ahead or self._fetch(place)
                ahead = self._fetch(places[i + 1]) if i + 1 < len(places) else None
                data = memoryview(await ready)
                yield data[max(0, start - skipped) : stop - skipped]  # type: ignore[misc]  # a view of bytes is as good
                skipped += len(data)
        finally:
            if ahead is not None:
                ahead.cancel()
                with contextlib.suppress(asyncio.CancelledError, IngestError):
                    await ahead

    def _fetch(self, place: Extent) -> asyncio.Task[bytearray]:
        return asyncio.create_task(self._client.read_range(ticket.format(place.first), place.count))

    async def close(self) -> None:
        owner, self._owner = self._owner, None
        if owner is not None:
            self._readers.count -= 1
            with contextlib.suppress(IngestError):  # then the pin ends with its owner
                await self._catalog.unpin(owner, self.version.number)


async def open_version(
    look: Callable[[], Version],
    client: AsyncClient,
    catalog: CatalogAccess,
    membership: Membership,
    readers: Readers,
) -> SmallDownload | PinnedDownload:
    """A download of what ``look`` finds. NotFoundError, and what reading raises."""
    for _ in range(LOOKS_MAX):
        version = look()
        if version.size > SMALL_OBJECT_MAX:
            owner = membership.owner
            try:
                await catalog.pin(owner, version.number)
            except NotFoundError:
                continue  # replaced since the look, or deleted: then the next look says so
            return PinnedDownload(version, client, catalog, owner, readers)
        try:
            return SmallDownload(version, await _read_small(version, client))
        except RefusedError as error:
            if error.status not in GONE:
                raise
            if look().number == version.number:
                raise CorruptFrameError(
                    f"object {version.name!r}: ticket {error.ticket} is {error.status.name}, "
                    "and the catalog says that it is stored"
                ) from None
    raise NotFoundError("the object was replaced again and again while it was read")


async def _read_small(version: Version, client: AsyncClient) -> bytes:
    places = part(version.extents, 0, chunks_needed(version.size))
    pieces = [await client.read_range(ticket.format(place.first), place.count) for place in places]
    return b"".join(pieces)[: version.size]


def _parts(extents: Iterator[Extent], count_max: int) -> Iterator[Extent]:
    """The same tickets in pieces of at most ``count_max``."""
    for extent in extents:
        for at in range(0, extent.count, count_max):
            yield Extent(extent.first + at, min(count_max, extent.count - at))
