"""Puts the chunks of uploads under their tickets, and sees to it that the catalog learns which of those are somebody else's.

An upload that breaks keeps its tickets until its frames are answered, or their connection is given up: a CONFLICT may be on
its way, and what it is about must not become garbage. Who uploads waits for that a few seconds; then it goes on without him.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any

from ingest import ticket
from ingest.client import AsyncClient
from ingest.errors import IngestError
from ingest.limits import DATA_SIZE, UPLOAD_SETTLE_S
from ingest.objects.catalog_access import CatalogAccess
from ingest.objects.extent import Extent
from ingest.put_channel import Batch
from ingest.status import Status


class ChunkWriter:
    """Of all uploads of a process."""

    def __init__(self, client: AsyncClient, catalog: CatalogAccess) -> None:
        self._client = client
        self._catalog = catalog
        self._settling: set[asyncio.Task[None]] = set()  # puts that were cancelled, and are not answered yet
        self._ending: set[asyncio.Task[None]] = set()  # of uploads that broke

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
        adding = self._client.add_range(batch, ticket.format(place.first), data)
        await self._finish(batch, adding, owner, refused, version)

    async def put_frames(
        self, owner: int, frames: bytes, refused: dict[str, Status], version: int | None
    ) -> None:
        """The same, with chunks that `seal` made frames of."""
        batch = self._client.new_batch()
        await self._finish(batch, self._client.add_frames(batch, frames), owner, refused, version)

    def seal(self, places: Sequence[Extent], data: bytes | memoryview) -> list[bytes]:
        """The frames that put ``data`` there, of each place."""
        sealed, at = [], 0
        for place in places:
            part = data[at : at + place.count * DATA_SIZE]
            sealed.append(self._client.seal_range(ticket.format(place.first), part))
            at += place.count * DATA_SIZE
        return sealed

    async def _finish(
        self,
        batch: Batch,
        adding: Coroutine[Any, Any, None],
        owner: int,
        refused: dict[str, Status],
        version: int | None,
    ) -> None:
        try:
            await adding
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

    # --- of uploads that broke

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


def _keep(tasks: set[asyncio.Task[None]], task: asyncio.Task[None]) -> None:
    """Among ``tasks`` until it ends."""
    tasks.add(task)
    task.add_done_callback(tasks.discard)
