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
    ConnectionLostError,
    ForeignStoreError,
    IngestError,
    KeyFileError,
    NoSpaceError,
    PeerError,
    ReadOnlyError,
)
from ingest.gateway.process import credentials
from ingest.gateway.process.gateway_config import GatewayConfig
from ingest.gateway.process.signing_keys import SigningKeys, Telling, read_keys
from ingest.objects.binding import bind

log = logging.getLogger(__name__)


class Binding:
    """Of the engine's store to the catalog. Until it is bound nothing is stored or collected there. What is read from it
    waits for less: that the store has shown itself to be ours, by its chunk or by its objects.

    why it is not bound                                what is answered meanwhile, once that has lasted `WAIT_TOLD_S`
    there is no room for the chunk that says so        507 to uploads; told at once
    no engine, or none that answers, or takes the key  503 to uploads, and to reads unless the store has shown itself
    the catalog may only be read                       503 to uploads
    it is another catalog's                            nothing: the gateway ends
    """

    def __init__(
        self, config: GatewayConfig, client: AsyncClient, catalog: CatalogClient, keys: SigningKeys
    ) -> None:
        self._client = client
        self._catalog = catalog
        self._keys = keys
        self._reader = CatalogReader(catalog_path(config.data_dir))
        self._refusal: IngestError | None = ConnectionLostError("the engine has not said whose its store is")
        self._shown = False  # the store has shown that it is ours
        self._shows = False  # … in the present try
        self._told = False  # that it lasts
        self._told_of: set[type] = set()  # kinds of why
        self._answers = asyncio.Event()  # bound, or what it lacks may last
        self._settling: asyncio.Task[None] | None = None
        self._key_trouble = ""  # that is in the log

    async def begin(self) -> None:
        """Back when the store is bound, or when it is time to answer without that. ForeignStoreError."""
        self._settling = asyncio.create_task(self._settle())
        self._settling.add_done_callback(lambda _: self._answers.set())
        try:
            async with asyncio.timeout(limits.WAIT_TOLD_S):
                await self._answers.wait()
        except TimeoutError:
            self._told = True
            self._told_of.add(type(self._refusal))
            log.warning("waiting for the engine: %s; until then what needs it is answered 503", self._refusal)
        self.raise_failure()

    def check(self) -> None:
        """As long as nothing may be stored: NoSpaceError, ReadOnlyError, or ConnectionLostError for all that the engine
        can lack."""
        if isinstance(self._refusal, (NoSpaceError, ReadOnlyError)):
            raise type(self._refusal)(str(self._refusal))
        if self._refusal is not None:
            raise ConnectionLostError(f"waiting for the engine: {self._refusal}")

    def check_shown(self) -> None:
        """The same, as long as nothing may be read."""
        if not self._shown:
            self.check()

    def tell(self, failed: Callable[[], None]) -> None:
        """``failed`` is called when the store turns out to be another catalog's; `raise_failure` says so then."""
        assert self._settling is not None
        self._settling.add_done_callback(lambda task: failed() if _failed(task) else None)

    async def wait(self) -> None:
        """Back when it is bound. ForeignStoreError."""
        assert self._settling is not None
        await asyncio.shield(self._settling)

    def raise_failure(self) -> None:
        """ForeignStoreError when it has turned out to be another catalog's."""
        if self._settling is not None and _failed(self._settling):
            self._settling.result()

    async def close(self) -> None:
        if self._settling is not None:
            self._settling.cancel()
            await asyncio.wait([self._settling])
        self._reader.close()

    async def _settle(self) -> None:
        """Whatever keeps the store from being bound may be over the next time: what reads and deletes here must not end by
        it. But for ForeignStoreError."""
        delay, told_of_room = limits.RETRY_DELAY_MIN_S, False
        since: dict[type, float] = {}
        while True:
            self._shows = False
            try:
                await self._client.open()
                await self._bind()  # all of it: another server may answer there by now
                break
            except ForeignStoreError:
                raise
            except NoSpaceError as error:
                self._refuse(error)
                if not told_of_room:
                    log.warning(
                        "%s; until then objects are read and deleted, uploads are answered 507, and nothing is collected",
                        error,
                    )
                told_of_room = True
                self._told_of.add(NoSpaceError)
                self._answers.set()
            except IngestError as error:
                self._refuse(error)
                self._tell_what_lasts(error, since)
                if isinstance(error, PeerError):
                    self._load_keys()
            await asyncio.sleep(delay)
            delay = min(2 * delay, limits.RETRY_DELAY_MAX_S)
        self._refusal = None
        if self._told:
            log.info("waiting for the engine is over: goes on")
        if told_of_room:
            log.info("there is room again, the store is bound: uploads go on")

    async def _bind(self) -> None:
        await bind(self._client, self._catalog, self._reader, self._show)

    def _load_keys(self) -> None:
        """It may be the key that is refused. A file that can't be read now may be whole the next time."""
        try:
            self._keys.load_changed()
        except KeyFileError as error:
            if str(error) != self._key_trouble:
                log.warning("the keys of before are used: %s", error)
            self._key_trouble = str(error)

    def _tell_what_lasts(self, error: IngestError, since: dict[type, float]) -> None:
        """Each kind of why once. ``since``: when each was first met."""
        now = time.monotonic()
        if (
            type(error) not in self._told_of
            and now - since.setdefault(type(error), now) >= limits.WAIT_TOLD_S
        ):
            log.warning("the store is not bound yet: %s", error)
            self._told_of.add(type(error))

    def _show(self) -> None:
        self._shows = self._shown = True

    def _refuse(self, error: IngestError) -> None:
        self._refusal, self._shown = error, self._shows


def _failed(task: asyncio.Task[None]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is not None


@contextlib.asynccontextmanager
async def connected(
    config: GatewayConfig, telling: Telling
) -> AsyncIterator[tuple[AsyncClient, CatalogClient, SigningKeys, Binding]]:
    """The engine's client, and the catalog, once that can be reached. The keys of the client, to be loaded again at SIGHUP.
    And the binding of the two, which may be under way still: at the start of a node the engine may come later than we do.
    ForeignStoreError when they do not belong together."""
    context = credentials.engine_context(config)
    client = AsyncClient(config.connect, config.read_connect, read_keys(config), tls=context)
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
