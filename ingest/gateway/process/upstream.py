"""The connections of a gateway's process to the engine and to the catalog."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from ingest import limits
from ingest.catalog.catalog_client import CatalogClient
from ingest.catalog.catalog_reader import CatalogReader
from ingest.catalog.catalog_socket import catalog_path
from ingest.client.async_client import AsyncClient
from ingest.errors import ConnectionLostError, NoSpaceError, PeerError
from ingest.gateway.process import credentials
from ingest.gateway.process.gateway_config import GatewayConfig
from ingest.gateway.process.signing_keys import SigningKeys, Telling, read_keys
from ingest.objects.binding import bind

log = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def connected(
    config: GatewayConfig, telling: Telling
) -> AsyncIterator[tuple[AsyncClient, CatalogClient, SigningKeys]]:
    """The engine and the catalog, once both can be reached: at the start of a node they may come later than we do. And the
    keys of the engine's client, to be loaded again at SIGHUP. ForeignStoreError when they do not belong together."""
    delay = limits.RETRY_DELAY_MIN_S
    context = credentials.engine_context(config)
    while True:
        try:
            client = await AsyncClient.connect(
                config.connect, config.read_connect, read_keys(config), tls=context
            )
            break
        except ConnectionLostError as error:
            if delay == limits.RETRY_DELAY_MIN_S:
                log.warning("waiting for the engine: %s", error)
        await asyncio.sleep(delay)
        delay = min(2 * delay, limits.RETRY_DELAY_MAX_S)
    keys = SigningKeys(client, telling)
    try:
        keys.load(config)
        catalog = await CatalogClient.connect(config.data_dir)
        try:
            await _bound(config, client, catalog, keys)
            yield client, catalog, keys
        finally:
            await catalog.close()
    finally:
        keys.close()
        await client.close()


async def _bound(
    config: GatewayConfig, client: AsyncClient, catalog: CatalogClient, keys: SigningKeys
) -> None:
    """Back when the engine's store is known to be that of this catalog."""
    delay = limits.RETRY_DELAY_MIN_S
    with CatalogReader(catalog_path(config.data_dir)) as reader:
        while True:
            try:
                return await bind(client, catalog, reader, read_keys(config))
            except (PeerError, NoSpaceError) as error:
                if delay == limits.RETRY_DELAY_MIN_S:
                    log.warning("waiting until the engine says whose its store is: %s", error)
            await asyncio.sleep(delay)
            delay = min(2 * delay, limits.RETRY_DELAY_MAX_S)
            keys.load(config)  # it may be the key that is refused
