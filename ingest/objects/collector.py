"""The collector: gives the space of failed, replaced and deleted versions back. `docs/objects.md`.

It deletes what the catalog lists as garbage and nothing else, and tells the catalog when it is done. Whenever it dies,
the rest is listed still; deleting it again changes nothing.

    a delete is answered           then
    DELETED                        the catalog forgets the entry
    BUSY, BAD_CHECKSUM             the node takes none at all for now: the run ends
    anything else                  this entry stays garbage, and is tried again in the next run; the others go on
    nothing (the connection is lost, the catalog does not answer)  the run ends

What it reads of a catalog that is lost may be another one's by now, or of long ago: it looks before each delete.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ingest import ticket
from ingest.catalog.catalog_access import CatalogAccess
from ingest.catalog.catalog_reader import CatalogReader, Garbage
from ingest.catalog.extent import Extent
from ingest.client.chunk_store import ChunkStore
from ingest.errors import BusyError, DataDirLostError, IngestError, RefusedError
from ingest.limits import (
    COLLECT_BATCH,
    COLLECT_INTERVAL_S,
    COLLECT_REFUSED_MAX,
    COLLECT_REFUSED_TOLD,
    OWNER_RENEW_S,
)
from ingest.objects.binding import confirm
from ingest.status import Status
from ingest.store.possession import Possession

log = logging.getLogger(__name__)

OF_THE_NODE = (Status.BUSY, Status.BAD_CHECKSUM)  # what each of its tickets would be answered


@dataclass(frozen=True, slots=True)
class Refusal:
    """An entry that was not deleted, and what the engine answered."""

    garbage: Garbage
    status: Status


@dataclass(slots=True)
class Collected:
    """What a run did, or would do."""

    owners: int = 0  # processes that had died
    entries: int = 0  # of garbage
    tickets: int = 0
    forgotten: int = 0  # versions whose history was old enough
    refused: list[Refusal] = field(default_factory=list)  # garbage still


def waiting(reader: CatalogReader) -> Collected:
    """What a run would try to delete now, but for what processes left that have died since the last one."""
    entries, tickets = reader.garbage_size()
    return Collected(entries=entries, tickets=tickets)


def described(done: Collected) -> dict[str, Any]:
    """As JSON, for the gateway and for the commands."""
    return {
        "tickets": done.tickets,
        "entries": done.entries,
        "processes": done.owners,
        "forgotten": done.forgotten,
        "refused": [
            {
                "entry": one.garbage.id,
                "first": ticket.format(one.garbage.extent.first),
                "count": one.garbage.extent.count,
                "status": one.status.name,
            }
            for one in done.refused
        ],
    }


class Collector:
    """One of them runs per catalog at a time, whatever process it is in. ``possession``: of the catalog that ``reader`` has
    open, where it stays open for long."""

    def __init__(
        self,
        client: ChunkStore,
        catalog: CatalogAccess,
        reader: CatalogReader,
        possession: Possession | None = None,
    ) -> None:
        self._client = client
        self._catalog = catalog
        self._reader = reader
        self._possession = possession
        self._trouble = ""  # that is in the log
        self._told: dict[int, Status] = {}  # refusals that are in the log, by the number of the entry

    async def run_for_ever(self, interval: float = COLLECT_INTERVAL_S) -> None:
        """Every ``interval`` seconds, until cancelled. Trouble is tried again the next time, and is in the log once
        as long as it stays the same."""
        alone = True
        while True:
            try:
                done = await self.run(retry_for=0)  # the next run is the next try
            except IngestError as error:
                if str(error) != self._trouble:
                    lost = isinstance(error, DataDirLostError)
                    what = "nothing is collected" if lost else "not everything was collected"
                    log.log(logging.ERROR if lost else logging.WARNING, "%s: %s", what, error)
                self._trouble = str(error)
            else:
                self._trouble = ""
                if alone and done is None:
                    log.info("nothing is collected here as long as another collector is at work")
                alone = done is not None
                if done is not None and (done.entries or done.owners):
                    log.info(
                        "collected %d tickets of %d extents; %d processes had died",
                        done.tickets,
                        done.entries,
                        done.owners,
                    )
            await asyncio.sleep(interval)

    async def run(self, retry_for: float | None = None) -> Collected | None:
        """Once over all garbage, in the store that belongs to the catalog; None when another collector is at work.

        ``retry_for``: seconds for which ERROR and BUSY are tried again, if it is not the client's. ForeignStoreError before
        anything is deleted, DataDirLostError before more is. RefusedError when the node takes no deletes; what the client
        and the catalog raise. What was deleted until then stays so.
        """
        await self._check_possession()
        try:
            owner = await self._catalog.enter_alone("collector")
        except BusyError:
            return None
        renewing = asyncio.create_task(self._renew(owner))
        try:
            return await self._collect(owner, retry_for)
        finally:
            renewing.cancel()
            await asyncio.wait([renewing])
            with contextlib.suppress(IngestError):  # its deadline ends it as well
                await self._catalog.leave(owner)

    async def _renew(self, owner: int) -> None:
        """A delete may take longer than an owner lives: the client tries for a minute to reach the engine."""
        while True:
            await asyncio.sleep(OWNER_RENEW_S)
            try:
                await self._catalog.renew(owner)
            except IngestError as error:  # the renewal before the next page tells whether that ends the run
                log.debug("the collector gave no sign of life: %s", error)

    async def _collect(self, owner: int, retry_for: float | None) -> Collected:
        done = Collected()
        done.owners = await self._catalog.expire()
        last = 0
        try:
            while found := self._reader.garbage(COLLECT_BATCH, after=last):
                if last == 0:
                    await self._check_possession()  # what is confirmed is its id
                    await confirm(self._client, self._reader)
                last = found[-1].id
                await self._catalog.renew(owner)
                refused = await self._delete(found, retry_for)
                done.refused += refused
                kept = {one.garbage.id for one in refused}
                deleted = [item for item in found if item.id not in kept]
                await (
                    self._check_possession()
                )  # the numbers of entries are those of the catalog that was read
                await self._catalog.collected(deleted)
                done.entries += len(deleted)
                done.tickets += sum(item.extent.count for item in deleted)
                if len(done.refused) > COLLECT_REFUSED_MAX:
                    break
            else:
                refused_now = {one.garbage.id for one in done.refused}
                self._told = {id_: status for id_, status in self._told.items() if id_ in refused_now}
        finally:
            self._tell(done.refused)
        done.forgotten = await self._catalog.forget()
        return done

    async def _check_possession(self) -> None:
        """In a thread: a look may wait for a file system, which the requests of this process must not."""
        if self._possession is not None:
            await asyncio.get_running_loop().run_in_executor(None, self._possession.look)
            self._possession.check()

    async def _delete(self, found: Sequence[Garbage], retry_for: float | None) -> list[Refusal]:
        """Returns which of them were not deleted. RefusedError for what the whole node answers."""
        refused = []
        for place, items in _merged(found):
            status = await self._refusal(place, retry_for)
            for item in items if status is not None else []:
                if len(items) > 1:  # which of them it is; the others need not wait for it
                    status = await self._refusal(item.extent, 0)
                if status is not None:
                    refused.append(Refusal(item, status))
        return refused

    async def _refusal(self, place: Extent, retry_for: float | None) -> Status | None:
        """Deletes it; returns the answer if that is another one."""
        # Last: what came before may have waited long for the engine or the catalog, the delete of another extent too.
        await self._check_possession()
        try:
            await self._client.delete(ticket.format(place.first), place.count, retry_for=retry_for)
        except RefusedError as error:
            if error.status in OF_THE_NODE:
                raise
            return error.status
        return None

    def _tell(self, refused: Sequence[Refusal]) -> None:
        """Once for each of them, as long as it is refused for the same reason."""
        new = [one for one in refused if self._told.get(one.garbage.id) is not one.status]
        for one in new[:COLLECT_REFUSED_TOLD]:
            log.warning(
                "garbage %s can't be deleted, the engine answers %s; each run tries it again",
                one.garbage.extent,
                one.status.name,
            )
        if len(new) > COLLECT_REFUSED_TOLD:
            log.warning("so it is with %d more extents", len(new) - COLLECT_REFUSED_TOLD)
        self._told.update((one.garbage.id, one.status) for one in new)


def _merged(found: Sequence[Garbage]) -> list[tuple[Extent, list[Garbage]]]:
    """The same tickets, in order, with as few extents as possible, each with the entries that are in it."""
    result: list[tuple[Extent, list[Garbage]]] = []
    for item in sorted(found, key=lambda item: item.extent):
        one = item.extent
        if result and one.first <= result[-1][0].stop:
            before, items = result[-1]
            result[-1] = (
                Extent(before.first, max(before.stop, one.stop) - before.first),
                [*items, item],
            )
        else:
            result.append((one, [item]))
    return result
