"""One process among those that share a catalog: its owner row, and the tickets and numbers that it has in advance."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from ingest.catalog.catalog_access import CatalogAccess
from ingest.catalog.extent import Extent
from ingest.errors import DiskError, IngestError, UploadLostError
from ingest.limits import LEASE_TICKETS, OWNER_ENTER_RETRY_S, OWNER_RENEW_S, VERSIONS_RESERVED

NOBODY = 0  # no owner has this number
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


class Taken:
    """Tickets ``place`` of a lease, for one upload. ``owner``: whose the lease is."""

    __slots__ = ("lease", "owner", "place")

    def __init__(self, lease: _Lease, place: Extent) -> None:
        self.lease = lease
        self.owner = lease.owner
        self.place = place


class Membership:
    """Made by ``await Membership.enter(...)``, ended by ``await leave()``: what it had in advance goes back then.

    ``owner`` changes when its deadline passed unnoticed (a process that was stopped): uploads of the old one have failed.
    It is 0, which nobody is, as long as the disk does not let the catalog take this process: then others are read.
    """

    def __init__(self, catalog: CatalogAccess, what: str, lease_tickets: int = LEASE_TICKETS) -> None:
        self._catalog = catalog
        self._what = what
        self._lease_tickets = lease_tickets
        self.owner = NOBODY
        self._refusal: DiskError | None = None  # of the last sign of life
        self._lease: _Lease | None = None
        self._numbers = range(0)
        self._lock = asyncio.Lock()
        self._renewing: asyncio.Task[None] | None = None

    @classmethod
    async def enter(cls, catalog: CatalogAccess, what: str, lease_tickets: int = LEASE_TICKETS) -> Membership:
        """``what`` names the process to people, as in "gateway 1234". ``lease_tickets``: that it takes in advance.

        A disk that takes no change keeps nobody from reading: the process enters when it can. What else the catalog raises.
        """
        self = cls(catalog, what, lease_tickets)
        try:
            self.owner = await catalog.enter(what)
        except DiskError as error:
            self._refused(error)
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
        async with self._lock:
            with contextlib.suppress(IngestError):  # then all of it is garbage, which costs deletes
                await self._close_lease()
        if self.owner == NOBODY:
            return
        try:
            await self._catalog.leave(self.owner)
        except IngestError as error:  # its deadline ends it as well
            log.warning("the catalog did not take leave of this process: %s", error)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(OWNER_RENEW_S if self._refusal is None else OWNER_ENTER_RETRY_S)
            await self.entered_again(self.owner)

    async def entered_again(self, lost: int) -> bool:
        """Whether this process has another owner than ``lost``: a new one, if the catalog has given that one up."""
        async with self._lock:
            return await self._enter_again(lost)

    async def _enter_again(self, lost: int) -> bool:
        if self.owner != lost:
            return True  # somebody else was here first
        try:
            entered = not await self._is_alive(lost)
            if entered:
                self.owner, self._lease = await self._catalog.enter(self._what), None
        except IngestError as error:  # the next renewal finds the same, and comes here again
            self._refused(error)
            return False
        if self._refusal is not None:
            log.info("the catalog can be changed again")
            self._refusal = None
        if entered and lost != NOBODY:
            log.warning("no sign of life reached the catalog in time: uploads of this process have failed")
        return entered

    async def _is_alive(self, owner: int) -> bool:
        try:
            await self._catalog.renew(owner)
        except UploadLostError:
            return False
        return True

    def _refused(self, error: IngestError) -> None:
        if self._refusal is None:
            log.warning("the catalog did not take a sign of life of this process: %s", error)
        if isinstance(error, DiskError):
            self._refusal = error

    def check(self) -> None:
        """Raises what the disk last kept the catalog from taking a sign of life with: nothing can be stored now. Without
        that an upload would wait in vain for an engine on the same disk."""
        if self._refusal is not None:
            raise type(self._refusal)(str(self._refusal))

    async def take(self, count: int) -> Taken:
        """``count`` tickets of its lease, for an upload that ends with `settle`, whatever becomes of it."""
        lease = self._lease
        if lease is not None and lease.left.count >= count:
            return Taken(lease, lease.take(count))
        return await self._take_of_next(count)

    async def settle(self, taken: Taken) -> None:
        """To be called once, when the upload that took them is decided."""
        lease = taken.lease
        lease.unsettled -= 1
        if lease.closed and not lease.unsettled:
            with contextlib.suppress(IngestError):  # the upload is decided: the rest goes with the owner
                await self._catalog.give_back(lease.owner, lease.extent)

    async def _take_of_next(self, count: int) -> Taken:
        """Of a new lease, which one of those who wait for it has got when it is their turn."""
        async with self._lock:
            lease = self._lease
            if lease is None or lease.left.count < count:
                await self._close_lease()
                wanted = max(count, self._lease_tickets)
                lease = self._lease = await self._next_lease(wanted)
            return Taken(lease, lease.take(count))

    async def _next_lease(self, wanted: int) -> _Lease:
        owner = self.owner
        try:
            extent = await self._catalog.lease(owner, wanted, self._what)
        except UploadLostError:
            if not await self._enter_again(owner):
                raise
            owner = self.owner
            extent = await self._catalog.lease(owner, wanted, self._what)
        return _Lease(owner, extent)

    async def _close_lease(self) -> None:
        """Nothing more is taken from the lease. Its tickets that were never given out stay unused: they are no garbage."""
        lease, self._lease = self._lease, None  # before anything can fail: it must not be taken from again
        if lease is None:
            return
        lease.closed = True
        if lease.left.count:
            await self._catalog.forgo(lease.owner, lease.left)
        if not lease.unsettled:
            await self._catalog.give_back(lease.owner, lease.extent)

    async def number(self) -> int:
        """The number of a version that is stored in one call."""
        while not self._numbers:
            async with self._lock:
                if not self._numbers:
                    self._numbers = await self._catalog.reserve(VERSIONS_RESERVED)
        number, self._numbers = self._numbers[0], self._numbers[1:]
        return number
