"""The connections of a gateway's process to the engine and to the catalog."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable

from ingest import limits
from ingest.catalog.catalog_client import CatalogClient
from ingest.catalog.catalog_reader import CatalogReader
from ingest.catalog.catalog_socket import catalog_path
from ingest.client.async_client import AsyncClient
from ingest.errors import (
    BusyError,
    ConnectionLostError,
    ForeignStoreError,
    IngestError,
    KeyFileError,
    NoSpaceError,
    PeerError,
)
from ingest.gateway.process import credentials
from ingest.gateway.process.gateway_config import GatewayConfig
from ingest.gateway.process.signing_keys import SigningKeys, Telling, read_keys
from ingest.objects.binding import bind

log = logging.getLogger(__name__)


class _Wait:
    """For something that comes by itself: with growing pauses, and told only when it lasts."""

    def __init__(self, what: str, told: bool = False) -> None:
        self._what = what
        self._begun = time.monotonic()
        self._delay = limits.RETRY_DELAY_MIN_S
        self._told = told

    async def pause(self, why: Exception) -> None:
        if not self._told and time.monotonic() - self._begun >= limits.WAIT_TOLD_S:
            log.warning("%s: %s", self._what, why)
            self._told = True
        await asyncio.sleep(self._delay)
        self._delay = min(2 * self._delay, limits.RETRY_DELAY_MAX_S)

    def end(self) -> None:
        if self._told:
            log.info("%s is over: goes on", self._what)


class Binding:
    """Of the engine's store to the catalog. A store that is ours by its objects, and only lacks the room for the chunk that
    says so, is read and deleted from meanwhile; nothing is stored or collected there."""

    def __init__(
        self, config: GatewayConfig, client: AsyncClient, catalog: CatalogClient, keys: SigningKeys
    ) -> None:
        self._client = client
        self._catalog = catalog
        self._keys = keys
        self._reader = CatalogReader(catalog_path(config.data_dir))
        self._refusal: NoSpaceError | None = None
        self._pending: asyncio.Task[None] | None = None
        self._key_trouble = ""  # that is in the log

    async def begin(self) -> None:
        """Back when the store is bound, or when all that it lacks is room. ForeignStoreError."""
        waiting = _Wait("waiting until the engine says whose its store is")
        while True:
            try:
                await self._bind()
                break
            except NoSpaceError as error:
                log.warning(
                    "%s; until then objects are read and deleted, uploads are answered 507, and nothing is collected",
                    error,
                )
                self._refusal = error
                self._pending = asyncio.create_task(self._go_on(error))
                break
            except (PeerError, BusyError) as error:
                await waiting.pause(error)
                self._load_keys()
        waiting.end()

    def check(self) -> None:
        """NoSpaceError as long as nothing may be stored."""
        if self._refusal is not None:
            raise NoSpaceError(str(self._refusal))

    def tell(self, failed: Callable[[], None]) -> None:
        """``failed`` is called when the store turns out to be another catalog's; `wait` says so then."""
        if self._pending is not None:
            self._pending.add_done_callback(lambda task: failed() if _failed(task) else None)

    async def wait(self) -> None:
        """Back when it is bound. ForeignStoreError."""
        if self._pending is not None:
            await asyncio.shield(self._pending)

    def raise_failure(self) -> None:
        """ForeignStoreError when it has turned out to be another catalog's."""
        if self._pending is not None and _failed(self._pending):
            self._pending.result()

    async def close(self) -> None:
        if self._pending is not None:
            self._pending.cancel()
            await asyncio.wait([self._pending])
        self._reader.close()

    async def _bind(self) -> None:
        await bind(self._client, self._catalog, self._reader)

    def _load_keys(self) -> None:
        """It may be the key that is refused. A file that can't be read now may be whole the next time."""
        try:
            self._keys.load_changed()
        except KeyFileError as error:
            if str(error) != self._key_trouble:
                log.warning("the keys of before are used: %s", error)
            self._key_trouble = str(error)

    async def _go_on(self, error: IngestError) -> None:
        """``error``: why it is not bound, which is in the log. Whatever comes after it may be over the next time, too: what
        reads and deletes here must not end by it. But for ForeignStoreError."""
        waits = {type(error): _Wait("", told=True)}
        while True:
            wait = waits.setdefault(type(error), _Wait("the store is not bound yet"))
            await wait.pause(error)
            try:
                await self._bind()  # all of it: another server may answer there by now
                break
            except ForeignStoreError:
                raise
            except IngestError as found:
                error = found
                if isinstance(error, PeerError):
                    self._load_keys()
        self._refusal = None
        log.info("there is room again, the store is bound: uploads go on")


def _failed(task: asyncio.Task[None]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is not None


@contextlib.asynccontextmanager
async def connected(
    config: GatewayConfig, telling: Telling
) -> AsyncIterator[tuple[AsyncClient, CatalogClient, SigningKeys, Binding]]:
    """The engine and the catalog, once both can be reached: at the start of a node they may come later than we do. The
    keys of the engine's client, to be loaded again at SIGHUP. And the binding of the two, which may lack room still.
    ForeignStoreError when they do not belong together."""
    context = credentials.engine_context(config)
    waiting = _Wait("waiting for the engine")
    while True:
        try:
            client = await AsyncClient.connect(
                config.connect, config.read_connect, read_keys(config), tls=context
            )
            break
        except ConnectionLostError as error:
            await waiting.pause(error)
    waiting.end()
    keys = SigningKeys(client, telling)
    try:
        keys.load(config)
        catalog = await CatalogClient.connect(config.data_dir)
        try:
            binding = Binding(config, client, catalog, keys)
            try:
                await binding.begin()
                yield client, catalog, keys, binding
            finally:
                await binding.close()
        finally:
            await catalog.close()
    finally:
        keys.close()
        await client.close()
