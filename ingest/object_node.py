"""Where the object commands work: a data directory and the ports of its server. And how: in a loop that signals end."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as Bars

from ingest import limits
from ingest.errors import ConfigError, ConnectionLostError
from ingest.listeners import Address
from ingest.object_files import shown
from ingest.store.store import META

if TYPE_CHECKING:
    from ingest.client import AsyncClient
    from ingest.objects.catalog_access import CatalogAccess
    from ingest.objects.catalog_reader import CatalogReader
    from ingest.objects.local_store import LocalStore

Progress = Callable[[int], None]  # told of so many bytes more


@dataclass(frozen=True, kw_only=True)
class Node:
    """Where the objects are: a data directory and the ports of its server."""

    data_dir: Path
    connect: Address = ("", 0)
    read_connect: Address = ("", 0)
    key_file: Path | None = None
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None

    def keys(self) -> list[bytes]:
        from ingest.key import shared_keys

        return shared_keys(self.key_file or self.data_dir / META / "key")

    @contextmanager
    def reader(self) -> Iterator[CatalogReader]:
        from ingest.objects.catalog_reader import CatalogReader
        from ingest.objects.catalog_socket import catalog_path

        if not (self.data_dir / META).is_dir():
            raise ConfigError(f"{shown(str(self.data_dir))} is no data directory of a server")
        with CatalogReader(catalog_path(self.data_dir)) as reader:
            yield reader

    @asynccontextmanager
    async def catalog(self) -> AsyncIterator[CatalogAccess]:
        """The catalog, to be changed: through its service, or without it when none runs."""
        from ingest.objects.catalog_client import CatalogClient
        from ingest.objects.catalog_socket import catalog_path, connect
        from ingest.objects.local_catalog import LocalCatalog

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
        from ingest.client import AsyncClient
        from ingest.tls import client_context

        files = (self.tls_ca, self.tls_cert, self.tls_key)
        context = client_context(*files) if any(files) else None
        async with await AsyncClient.connect(
            self.connect if put else None, self.read_connect if get else None, self.keys(), tls=context
        ) as client:
            yield client

    @asynccontextmanager
    async def store(self, what: str, *, put: bool = False, get: bool = False) -> AsyncIterator[LocalStore]:
        from ingest.objects.local_store import LocalStore

        with self.reader() as reader:
            async with self.client(put=put, get=get) as client, self.catalog() as catalog:
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


def run_loop(work: Coroutine[Any, Any, Any]) -> Any:
    """An event loop for one command. TERM ends it as INT does: what was begun is undone."""

    async def until_done() -> Any:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await work

    try:
        return asyncio.run(until_done())
    except asyncio.CancelledError:
        sys.exit(128 + signal.SIGTERM)


@contextmanager
def transfer_bar(what: str, total: int | None) -> Iterator[Progress]:
    """Yields what is told of each piece: a bar with rate and time left on stderr when that is a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=console, transient=True) as bars:
        task = bars.add_task(shown(what), total=total)
        yield lambda size: bars.advance(task, size)
