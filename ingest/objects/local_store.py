"""Objects of one node: its catalog beside its engine. Implements `ObjectStore`."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Mapping
from functools import partial
from typing import Self

from ingest.catalog.catalog_access import CatalogAccess
from ingest.catalog.catalog_reader import CatalogReader, Entry
from ingest.catalog.version import ANY, Condition, Transition, Version, check_name, check_namespace
from ingest.client.chunk_store import ChunkStore
from ingest.limits import LEASE_TICKETS
from ingest.objects.body import Body
from ingest.objects.download import PinnedDownload, SmallDownload, open_version
from ingest.objects.manifest import manifest_key
from ingest.objects.membership import Membership
from ingest.objects.memory_budget import Budget
from ingest.objects.receiver import Receiver
from ingest.objects.upload import Upload
from ingest.store.possession import Possession


class LocalStore:
    """Made by ``await LocalStore.enter(...)``, ended by ``await leave()``: the client and the catalog stay the caller's.
    ``budget``: of its transfers."""

    def __init__(
        self,
        client: ChunkStore,
        catalog: CatalogAccess,
        reader: CatalogReader,
        membership: Membership,
        key: bytes,
        possession: Possession | None = None,
        admit: Callable[[], None] | None = None,
        admit_reads: Callable[[], None] | None = None,
    ) -> None:
        self._client = client
        self._catalog = catalog
        self._reader = reader
        self._membership = membership
        self._possession = possession
        self._admit = admit
        self._admit_reads = admit_reads
        self.budget = Budget()
        self._receiver = Receiver(client, catalog, membership, manifest_key(key), self.budget)

    @classmethod
    async def enter(
        cls,
        client: ChunkStore,
        catalog: CatalogAccess,
        reader: CatalogReader,
        key: bytes,
        what: str,
        lease_tickets: int = LEASE_TICKETS,
        possession: Possession | None = None,
        admit: Callable[[], None] | None = None,
        admit_reads: Callable[[], None] | None = None,
    ) -> Self:
        """``key``: the first shared key of the node. ``what`` names this process to people. ``lease_tickets``: that it takes
        in advance for small objects. ``possession``: of the data directory, which somebody looks at; while it is lost, `put`
        and `delete` raise DataDirLostError at once. ``admit``: raises while nothing may be stored; `put` and `check` do.
        ``admit_reads``: the same of `open` and `open_object`."""
        membership = await Membership.enter(catalog, what, lease_tickets)
        return cls(client, catalog, reader, membership, key, possession, admit, admit_reads)

    async def leave(self) -> None:
        """To be called when nobody uploads any more."""
        await self._receiver.writer.close()
        await self._membership.leave()

    async def put(
        self,
        namespace: str,
        name: str | Callable[[], str],
        body: Body | AsyncIterable[bytes],
        *,
        size: int | None = None,
        headers: Mapping[str, str] | None = None,
        condition: Condition = ANY,
    ) -> Version:
        self._membership.check()
        self._check_possession()
        self._check_admission()
        if isinstance(name, str):
            await self.check(namespace, name, condition)
        return await self._receiver.receive(
            Upload(
                namespace,
                name,
                size,
                headers or {},
                condition,
                partial(self._reader.lookup, namespace),
                partial(self._reader.last_order, namespace),
            ),
            body,
        )

    def _check_possession(self) -> None:
        if self._possession is not None:
            self._possession.check()

    def _check_admission(self) -> None:
        if self._admit is not None:
            self._admit()

    async def check(self, namespace: str, name: str, condition: Condition) -> None:
        check_namespace(namespace)
        check_name(name)
        self._membership.check()
        self._check_admission()
        if condition != ANY:
            condition.check(name, self._reader.lookup(namespace, name))

    def _check_reads(self) -> None:
        if self._admit_reads is not None:
            self._admit_reads()

    async def open(self, namespace: str, name: str) -> SmallDownload | PinnedDownload:
        self._check_reads()
        return await open_version(
            lambda: self._reader.find(namespace, name),
            self._client,
            self._catalog,
            self._membership,
            self.budget,
        )

    async def open_object(self, object_id: str) -> SmallDownload | PinnedDownload:
        self._check_reads()
        return await open_version(
            lambda: self._reader.find_object(object_id),
            self._client,
            self._catalog,
            self._membership,
            self.budget,
        )

    async def stat(self, namespace: str, name: str) -> Version:
        return self._reader.find(namespace, name)

    async def stat_object(self, object_id: str) -> Version:
        return self._reader.find_object(object_id)

    async def delete(self, namespace: str, name: str, condition: Condition = ANY) -> Version:
        self._check_possession()
        return await self._catalog.delete(namespace, name, condition)

    async def page(self, namespace: str, prefix: str = "", after: str = "", limit: int = 1000) -> list[Entry]:
        return self._reader.page(namespace, prefix, after, limit)

    async def namespaces(self) -> list[str]:
        return self._reader.namespaces()

    async def history(self, namespace: str, name: str) -> list[Transition]:
        return self._reader.history(namespace, name)

    async def shares_second(self, version: Version) -> bool:
        return self._reader.shares_second(version)
