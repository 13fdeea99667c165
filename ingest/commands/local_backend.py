"""Objects of a data directory beside its server: a `Backend` for the object commands."""

from __future__ import annotations

import os
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from ingest import limits
from ingest.commands.backend import Facts
from ingest.commands.object_files import shown
from ingest.errors import BusyError, ConfigError, ConnectionLostError
from ingest.runtime.listeners import Address
from ingest.store.data_dir import DataDir

if TYPE_CHECKING:
    from ingest.catalog.catalog_access import CatalogAccess
    from ingest.catalog.catalog_reader import CatalogReader, Entry
    from ingest.catalog.version import Transition, Version
    from ingest.client.async_client import AsyncClient
    from ingest.objects.collector import Collected
    from ingest.objects.local_store import LocalStore
    from ingest.objects.object_store import Download


@dataclass(frozen=True, kw_only=True)
class LocalNode:
    """Where the objects are: a data directory and the ports of its server: those that it says, unless others are given."""

    data_dir: Path
    connect: Address | None = None
    read_connect: Address | None = None
    key_file: Path | None = None
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None

    def keys(self) -> list[bytes]:
        from ingest.client.key import shared_keys

        return shared_keys(self.key_file or DataDir(self.data_dir).key)

    @contextmanager
    def reader(self, *, changing: bool = False) -> Iterator[CatalogReader]:
        """``changing``: for who changes the catalog too, so one of before is migrated, if no gateway runs."""
        from ingest.catalog.catalog_reader import CatalogReader
        from ingest.catalog.catalog_socket import catalog_path, service_lock
        from ingest.catalog.database import is_outdated, migrate

        path = catalog_path(self.data_dir)
        if not DataDir(self.data_dir).meta.is_dir():
            raise ConfigError(f"{shown(str(self.data_dir))} is no data directory of a server")
        if changing and is_outdated(path):
            with service_lock(self.data_dir):
                migrate(path)
        with CatalogReader(path) as reader:
            yield reader

    @asynccontextmanager
    async def catalog(self) -> AsyncIterator[CatalogAccess]:
        """The catalog, to be changed: through its service, or without it when none runs."""
        from ingest.catalog.catalog_client import CatalogClient
        from ingest.catalog.catalog_socket import catalog_path, connect
        from ingest.catalog.local_catalog import LocalCatalog

        catalog: CatalogAccess
        try:
            connect(self.data_dir).close()
        except ConnectionLostError:
            catalog = await LocalCatalog.open(catalog_path(self.data_dir))
        else:
            catalog = await CatalogClient.connect(self.data_dir)
        try:
            yield catalog
        finally:
            await catalog.close()

    @asynccontextmanager
    async def client(self, *, put: bool = False, get: bool = False) -> AsyncIterator[AsyncClient]:
        from ingest.client.async_client import AsyncClient
        from ingest.tls import client_context

        files = (self.tls_ca, self.tls_cert, self.tls_key)
        context = client_context(*files) if any(files) else None
        looks = get or (put and self._reads_beside_puts())
        async with await AsyncClient.connect(
            self._port("put", self.connect) if put else None,
            self._port("get", self.read_connect) if looks else None,
            self.keys(),
            tls=context,
        ) as client:
            yield client

    def _reads_beside_puts(self) -> bool:
        """Whether the get port that is known is one of the server that is put into: it tells whose store it has."""
        return self.read_connect is not None or self.connect is None

    def _port(self, name: str, given: Address | None) -> Address:
        from ingest.engine.announcement import reachable, running

        if given is not None:
            return given
        try:
            return reachable((running(self.data_dir) or {})[name])
        except (KeyError, TypeError, AttributeError, ValueError):  # nothing there, or no address
            flag = {"put": "--connect", "get": "--read-connect"}[name]
            where = shown(str(self.data_dir))
            raise ConnectionLostError(
                f"no server that runs on {where} says where it listens: {flag} is for one that is reached otherwise"
            ) from None

    @asynccontextmanager
    async def engine(
        self, reader: CatalogReader, *, put: bool = False, get: bool = False
    ) -> AsyncIterator[tuple[AsyncClient, CatalogAccess]]:
        """The engine and the catalog, which belong together. ForeignStoreError."""
        from ingest.objects.binding import bind

        async with self.client(put=put, get=get) as client, self.catalog() as catalog:
            await bind(client, catalog, reader)
            yield client, catalog

    @asynccontextmanager
    async def store(
        self, reader: CatalogReader, what: str, *, put: bool = False, get: bool = False
    ) -> AsyncIterator[LocalStore]:
        from ingest.objects.local_store import LocalStore

        async with self.engine(reader, put=put, get=get) as (client, catalog):
            store = await LocalStore.enter(
                client,
                catalog,
                reader,
                self.keys()[0],
                f"{what} {os.getpid()}",
                limits.LEASE_TICKETS_COMMAND,
            )
            try:
                yield store
            finally:
                await store.leave()


class LocalBackend:
    """Implements `Backend`. Changes go through the catalog's service when a gateway runs, and are made here when none does:
    SQLite's lock keeps them apart. What needs the catalog alone needs no server."""

    def __init__(self, node: LocalNode) -> None:
        self._node = node
        self._stack = AsyncExitStack()
        self._opened: CatalogReader | None = None
        self._putting: LocalStore | None = None
        self._getting: LocalStore | None = None
        self._changing: CatalogAccess | None = None

    async def __aenter__(self) -> Self:
        return self

    def _reader(self, *, changing: bool = False) -> CatalogReader:
        if self._opened is None:
            self._opened = self._stack.enter_context(self._node.reader(changing=changing))
        return self._opened

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(kind, error, trace)

    def names_content(self, namespace: str) -> bool:
        return False

    async def put(
        self, namespace: str, name: str, body: AsyncIterable[bytes], *, size: int | None = None
    ) -> Facts:
        if self._putting is None:
            store = self._node.store(self._reader(changing=True), "put", put=True)
            self._putting = await self._stack.enter_async_context(store)
        return Facts.of(await self._putting.put(namespace, name, body, size=size))

    async def open(self, namespace: str, name: str) -> Download:
        return await (await self._get()).open(namespace, name)

    async def open_object(self, object_id: str) -> Download:
        return await (await self._get()).open_object(object_id)

    async def _get(self) -> LocalStore:
        if self._getting is None:
            store = self._node.store(self._reader(changing=True), "get", get=True)
            self._getting = await self._stack.enter_async_context(store)
        return self._getting

    async def page(self, namespace: str, prefix: str, after: str) -> list[Entry]:
        return self._reader().page(namespace, prefix, after)

    async def describe(self, namespace: str, name: str) -> tuple[Version, list[Transition]]:
        return self._reader().find(namespace, name), self._reader().history(namespace, name)

    async def delete(self, namespace: str, name: str) -> None:
        await (await self._catalog()).delete(namespace, name)

    async def _catalog(self) -> CatalogAccess:
        if self._changing is None:
            self._reader(changing=True)
            self._changing = await self._stack.enter_async_context(self._node.catalog())
        return self._changing

    async def collect(self, dry_run: bool) -> Collected:
        from ingest.objects.collector import Collector, waiting

        if dry_run:
            return waiting(self._reader())
        reader = self._reader(changing=True)
        async with self._node.engine(reader, put=True) as (client, catalog):
            done = await Collector(client, catalog, reader).run()
        if done is None:
            raise BusyError("another collector is at work")
        return done
