"""The collector: gives the space of failed, replaced and deleted versions back. `docs/objects.md`.

It deletes what the catalog lists as garbage and nothing else, and tells the catalog when it is done. Whenever it dies, the
rest is listed still; deleting it again changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from ingest import ticket
from ingest.client import AsyncClient
from ingest.errors import BusyError, IngestError
from ingest.limits import COLLECT_BATCH, COLLECT_INTERVAL_S
from ingest.objects.catalog_access import CatalogAccess
from ingest.objects.catalog_reader import CatalogReader, Garbage
from ingest.objects.extent import Extent

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Collected:
    """What a run did, or (dry) would do."""

    owners: int = 0  # processes that had died
    entries: int = 0  # of garbage
    tickets: int = 0
    forgotten: int = 0  # versions whose history was old enough


class Collector:
    """One of them runs per catalog at a time, whatever process it is in."""

    def __init__(self, client: AsyncClient, catalog: CatalogAccess, reader: CatalogReader) -> None:
        self._client = client
        self._catalog = catalog
        self._reader = reader

    async def run_for_ever(self, interval: float = COLLECT_INTERVAL_S) -> None:
        """Every ``interval`` seconds, until cancelled. Trouble is logged, and tried again the next time."""
        while True:
            try:
                done = await self.run()
            except BusyError:
                pass  # somebody collects by hand
            except IngestError as error:
                log.warning("nothing was collected: %s", error)
            else:
                if done.entries or done.owners:
                    log.info(
                        "collected %d tickets of %d extents; %d processes had died",
                        done.tickets,
                        done.entries,
                        done.owners,
                    )
            await asyncio.sleep(interval)

    async def run(self, dry: bool = False) -> Collected:
        """Once, until nothing is left. BusyError when another collector runs."""
        done = Collected()
        if dry:
            for item in self._reader.garbage(1 << 30):
                done.entries += 1
                done.tickets += item.extent.count
            return done
        owner = await self._catalog.enter_alone("collector")
        try:
            done.owners = await self._catalog.expire()
            while found := self._reader.garbage(COLLECT_BATCH):
                await self._catalog.renew(owner)
                await self._delete(found)
                await self._catalog.collected(found)
                done.entries += len(found)
                done.tickets += sum(item.extent.count for item in found)
            done.forgotten = await self._catalog.forget()
        finally:
            await self._catalog.leave(owner)
        return done

    async def _delete(self, found: Sequence[Garbage]) -> None:
        for place in _merged([item.extent for item in found]):
            await self._client.delete(ticket.format(place.first), place.count)


def _merged(extents: Sequence[Extent]) -> list[Extent]:
    """The same tickets, in order, with as few extents as possible."""
    result: list[Extent] = []
    for one in sorted(extents):
        if result and one.first <= result[-1].stop:
            result[-1] = Extent(result[-1].first, max(result[-1].stop, one.stop) - result[-1].first)
        else:
            result.append(one)
    return result
