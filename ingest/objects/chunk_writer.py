"""Puts the chunks of uploads under their tickets, and sees to it that the catalog learns which of those are somebody else's.

An upload that breaks keeps its tickets until its frames are answered, or their connection is given up: a CONFLICT may be on
its way, and what it is about must not become garbage. So it does until the catalog has taken each CONFLICT, however often
that has to be tried. Who uploads waits for that a few seconds; then it goes on without him.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Coroutine, Mapping, Sequence
from typing import Any

from ingest import ticket
from ingest.catalog.catalog_access import CatalogAccess
from ingest.catalog.extent import Extent
from ingest.client.chunk_store import ChunkStore
from ingest.client.put_channel import Batch
from ingest.errors import IngestError
from ingest.limits import DATA_SIZE, RETRY_DELAY_MAX_S, RETRY_DELAY_MIN_S, UPLOAD_SETTLE_S
from ingest.status import Status

log = logging.getLogger(__name__)


class ChunkWriter:
    """Of all uploads of a process."""

    def __init__(self, client: ChunkStore, catalog: CatalogAccess) -> None:
        self._client = client
        self._catalog = catalog
        self._settling: set[asyncio.Task[None]] = set()  # until what was refused is known, and noted
        self._ending: set[asyncio.Task[None]] = set()  # of uploads that broke

    async def put_chunks(
        self,
        owner: int,
        place: Extent,
        data: bytes | bytearray | memoryview,
        refused: dict[str, Status],
        version: int | None = None,
    ) -> None:
        """Puts ``place.count`` chunks; adds what is refused to ``refused``. Raises what the client and the catalog do.

        When it returns, the catalog knows the tickets that answered CONFLICT: they must not become garbage with the rest of
        the upload. When it raises or is cancelled, the catalog knows them after `settled`.
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
        with contextlib.suppress(
            IngestError
        ):  # the connection was given up: what it answered before is known
            try:
                await self._client.finish(batch)
            finally:
                refused |= batch.refused
                conflicts = _conflicts(batch.refused)
                await self._note_until_taken(self._note(owner, conflicts, version), owner, conflicts, version)

    async def _take_refused(
        self, batch: Batch, owner: int, refused: dict[str, Status], version: int | None
    ) -> None:
        """Raises what the catalog does the first time that it is told of a conflict."""
        refused |= batch.refused
        conflicts = _conflicts(batch.refused)
        if conflicts:
            first = asyncio.create_task(self._note(owner, conflicts, version))
            noting = self._note_until_taken(first, owner, conflicts, version)
            _keep(self._settling, asyncio.create_task(noting))
            await asyncio.shield(first)

    async def _note(self, owner: int, conflicts: deque[int], version: int | None) -> None:
        """Takes out of ``conflicts`` what the catalog has taken."""
        while conflicts:
            await self._catalog.conflicted(owner, conflicts[0], version)
            conflicts.popleft()

    async def _note_until_taken(
        self, first: Awaitable[None], owner: int, conflicts: deque[int], version: int | None
    ) -> None:
        """``first``: the first `_note` of these."""
        noting, delay = first, RETRY_DELAY_MIN_S
        while True:
            try:
                return await noting
            except IngestError as error:
                if noting is first:
                    log.warning("the catalog does not know yet what an upload has met of others: %s", error)
            await asyncio.sleep(delay)
            delay = min(2 * delay, RETRY_DELAY_MAX_S)
            noting = self._note(owner, conflicts, version)

    # --- of uploads that broke

    async def end(self, work: Coroutine[Any, Any, None]) -> None:
        """Does what an upload that broke leaves to be done. Back when that is done, or takes long: then it goes on."""
        task = asyncio.create_task(work)
        _keep(self._ending, task)
        await asyncio.wait([task], timeout=UPLOAD_SETTLE_S)

    async def settled(self) -> None:
        """When the frames are answered that were sent for uploads which have broken by now, and the catalog knows the
        conflicts among them."""
        if self._settling:
            await asyncio.wait(self._settling)

    async def close(self) -> None:
        """Uploads that broke have a few seconds to be settled. No other one may be under way."""
        if self._ending:
            await asyncio.wait(self._ending, timeout=UPLOAD_SETTLE_S)


def _conflicts(refused: Mapping[str, Status]) -> deque[int]:
    return deque(ticket.parse(name) for name, status in refused.items() if status is Status.CONFLICT)


def _keep(tasks: set[asyncio.Task[None]], task: asyncio.Task[None]) -> None:
    """Among ``tasks`` until it ends."""
    tasks.add(task)
    task.add_done_callback(tasks.discard)
