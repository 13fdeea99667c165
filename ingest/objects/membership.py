"""One process among those that share a catalog: its owner row, and the tickets and numbers that it has in advance."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from ingest.errors import IngestError, UploadLostError
from ingest.limits import LEASE_TICKETS, OWNER_RENEW_S, VERSIONS_RESERVED
from ingest.objects.catalog_access import CatalogAccess
from ingest.objects.extent import Extent

log = logging.getLogger(__name__)


class _Lease:
    """Tickets of this process, given out from the first one on."""

    def __init__(self, owner: int, extent: Extent) -> None:
        self.owner = owner
        self.extent = extent
        self.left = extent
        self.unsettled = 0  # uploads that have a part of it and are not decided
        self.closed = False  # nothing more is given out

    def take(self, count: int) -> Extent:
        place = Extent(self.left.first, count)
        self.left = Extent(place.stop, self.left.count - count)
        self.unsettled += 1
        return place


class Membership:
    """Made by ``await Membership.enter(...)``, ended by ``await leave()``: what it had in advance goes back then.

    ``owner`` changes when its deadline passed unnoticed (a machine that slept): uploads of the old one have failed.
    """

    def __init__(self, catalog: CatalogAccess, what: str) -> None:
        self._catalog = catalog
        self._what = what
        self.owner = 0
        self._lease: _Lease | None = None
        self._numbers = range(0)
        self._lock = asyncio.Lock()
        self._renewing: asyncio.Task[None] | None = None

    @classmethod
    async def enter(cls, catalog: CatalogAccess, what: str) -> Membership:
        """``what`` names the process to people, as in "gateway 1234"."""
        self = cls(catalog, what)
        self.owner = await catalog.enter(what)
        self._renewing = asyncio.create_task(self._renew())
        return self

    async def leave(self) -> None:
        """Its uploads that are still under way have failed, its pins are gone."""
        if self._renewing is None:
            return
        self._renewing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._renewing
        self._renewing = None
        await self._catalog.leave(self.owner)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(OWNER_RENEW_S)
            try:
                await self._catalog.renew(self.owner)
            except UploadLostError:
                log.warning(
                    "no sign of life reached the catalog in time: uploads of this process have failed"
                )
                async with self._lock:
                    self._lease, self._numbers = None, range(0)
                    self.owner = await self._catalog.enter(self._what)
            except IngestError as error:
                log.warning("the catalog did not take a sign of life: %s", error)

    @contextlib.asynccontextmanager
    async def tickets(self, count: int) -> AsyncIterator[tuple[int, Extent]]:
        """The owner, and ``count`` tickets of its lease, for an upload that is decided when the context ends."""
        async with self._lock:
            lease = self._lease
            if lease is None or lease.left.count < count:
                await self._close(lease)
                extent = await self._catalog.lease(self.owner, max(count, LEASE_TICKETS), self._what)
                lease = self._lease = _Lease(self.owner, extent)
            place = lease.take(count)
        try:
            yield lease.owner, place
        finally:
            lease.unsettled -= 1
            if lease.closed and not lease.unsettled:
                await self._catalog.give_back(lease.owner, lease.extent)

    async def _close(self, lease: _Lease | None) -> None:
        """Nothing more is taken from a lease. Its tickets that were never given out stay unused: they are no garbage."""
        if lease is None:
            return
        lease.closed = True
        if lease.left.count:
            await self._catalog.forgo(lease.owner, lease.left)
        if not lease.unsettled:
            await self._catalog.give_back(lease.owner, lease.extent)

    async def number(self) -> int:
        """The number of a version that is stored in one call."""
        async with self._lock:
            if not self._numbers:
                self._numbers = await self._catalog.reserve(VERSIONS_RESERVED)
            number, self._numbers = self._numbers[0], self._numbers[1:]
            return number
