"""The connections of a gateway's process to the engine and to the catalog, and the keys that it signs with."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence

from ingest import limits
from ingest.client import AsyncClient
from ingest.errors import ConnectionLostError
from ingest.gateway import settings
from ingest.gateway.config import GatewayConfig
from ingest.key import shared_keys
from ingest.objects.catalog_client import CatalogClient
from ingest.store.store import META

log = logging.getLogger(__name__)


def read_keys(config: GatewayConfig) -> list[bytes]:
    """KeyFileError."""
    return shared_keys(config.key_file or config.data_dir / META / "key")


def signing_order(keys: Sequence[bytes]) -> list[bytes]:
    """The second key first, if there is one: it is accepted as the first one is, and stays so when the file is rotated."""
    return [*keys[1:2], *keys[:1], *keys[2:]]


def use_keys_later(client: AsyncClient, config: GatewayConfig) -> None:
    """After SIGHUP: the second key may be new, and accepted only when the server has read the file too. Until then the one
    that was second stays good: it is the first one now. KeyFileError."""
    keys = signing_order(read_keys(config))
    asyncio.get_running_loop().call_later(limits.KEY_SWITCH_DELAY_S, client.use_keys, keys)


@contextlib.asynccontextmanager
async def connected(config: GatewayConfig) -> AsyncIterator[tuple[AsyncClient, CatalogClient]]:
    """The engine and the catalog, once both can be reached: at the start of a node they may come later than we do."""
    delay = limits.RETRY_DELAY_MIN_S
    context = settings.engine_context(config)
    while True:
        try:
            keys = signing_order(read_keys(config))
            client = await AsyncClient.connect(config.connect, config.read_connect, keys, tls=context)
            break
        except ConnectionLostError as error:
            if delay == limits.RETRY_DELAY_MIN_S:
                log.warning("waiting for the engine: %s", error)
        await asyncio.sleep(delay)
        delay = min(2 * delay, limits.RETRY_DELAY_MAX_S)
    try:
        catalog = await CatalogClient.connect(config.data_dir)
        try:
            yield client, catalog
        finally:
            await catalog.close()
    finally:
        await client.close()
