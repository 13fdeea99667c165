"""The connections of a gateway's process to the engine and to the catalog."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from ingest import limits
from ingest.catalog.catalog_client import CatalogClient
from ingest.client.async_client import AsyncClient
from ingest.client.chunk_store import ChunkStore
from ingest.errors import ConnectionLostError
from ingest.gateway.process import credentials
from ingest.gateway.process.gateway_config import GatewayConfig
from ingest.gateway.process.signing_keys import SigningKeys, Telling, read_keys

log = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def connected(
    config: GatewayConfig, telling: Telling
) -> AsyncIterator[tuple[ChunkStore, CatalogClient, SigningKeys]]:
    """The engine and the catalog, once both can be reached: at the start of a node they may come later than we do. And the
    keys of the engine's client, to be loaded again at SIGHUP."""
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
            yield client, catalog, keys
        finally:
            await catalog.close()
    finally:
        keys.close()
        await client.close()
