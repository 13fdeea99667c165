"""One HTTP process of a gateway: its store, its ports, and their end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Mapping

import uvloop
from aiohttp import web

from ingest import limits, listeners
from ingest.client import AsyncClient
from ingest.errors import ConnectionLostError, IngestError
from ingest.gateway import settings
from ingest.gateway.app import APIS, App, make_app, shared_routes
from ingest.gateway.config import GatewayConfig
from ingest.gateway.exchange import Services
from ingest.gateway.request_id import RequestIds
from ingest.gateway.stream import StreamServer
from ingest.key import shared_keys
from ingest.objects.catalog_client import CatalogClient
from ingest.objects.catalog_reader import CatalogReader
from ingest.objects.catalog_socket import catalog_path
from ingest.objects.collector import Collector
from ingest.objects.local_store import LocalStore
from ingest.reload import use_log_level
from ingest.store.store import META

log = logging.getLogger(__name__)

SHARED = "http"  # the name of the port that has all APIs
Sockets = Mapping[str, socket.socket]  # the bound one of each port, by name


def read_keys(config: GatewayConfig) -> list[bytes]:
    """KeyFileError."""
    return shared_keys(config.key_file or config.data_dir / META / "key")


@contextlib.asynccontextmanager
async def connected(config: GatewayConfig) -> AsyncIterator[tuple[AsyncClient, CatalogClient]]:
    """The engine and the catalog, once both can be reached: at the start of a node they may come later than we do."""
    delay = limits.RETRY_DELAY_MIN_S
    context = settings.engine_context(config)
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
    try:
        catalog = await CatalogClient.connect(config.data_dir)
        try:
            yield client, catalog
        finally:
            await catalog.close()
    finally:
        await client.close()


class GatewayServer:
    """Serves ``sockets`` until `ended` is set."""

    def __init__(
        self, config: GatewayConfig, sockets: Sockets, read_config: Callable[[], GatewayConfig]
    ) -> None:
        self._config = config
        self._sockets = sockets
        self._read_config = read_config
        self._context: ssl.SSLContext | None = settings.http_context(config)
        self._apps: list[App] = []
        self.ended = asyncio.Event()

    async def serve(self, services: Services) -> None:
        access, ids = settings.read_access(self._config), RequestIds()
        patience = (
            0.4 * self._config.drain_timeout
        )  # aiohttp waits so long twice: for a handler, and for its end
        runners: list[web.ServerRunner] = []
        stream, listening = StreamServer(services.store, ids), None
        try:
            for port, sock in self._sockets.items():
                name = port.split()[0]
                listeners.listen(sock, limits.LISTEN_BACKLOG)
                if name == "stream":
                    listening = await asyncio.start_server(
                        stream.serve, sock=sock, limit=limits.STREAM_READ_SIZE
                    )
                    continue
                app = make_app(shared_routes() if name == SHARED else APIS[name](), services, access, ids)
                runner = web.ServerRunner(app, shutdown_timeout=patience)
                await runner.setup()
                runners.append(runner)
                await web.SockSite(
                    runner, sock, ssl_context=self._context, backlog=limits.LISTEN_BACKLOG
                ).start()
                self._apps.append(app)
            await self.ended.wait()
        finally:
            if listening is not None:
                listening.close()
            await asyncio.gather(stream.drain(patience), *(runner.cleanup() for runner in runners))

    def reload(self) -> None:
        """SIGHUP: tokens, certificates and the log level are read again. What cannot be used leaves all as it was."""
        try:
            config = self._read_config()
            access = settings.read_access(config)
            if self._context is not None and config.tls_cert is not None:
                settings.load_chain(self._context, config)
        except IngestError as error:
            log.error("nothing was reloaded: %s", error)
            return
        for app in self._apps:
            app.gate.access = access
        use_log_level(config.log_level)


def http_main(config: GatewayConfig, sockets: Sockets, read_config: Callable[[], GatewayConfig]) -> int:
    """An HTTP process, until TERM. Returns its exit code."""
    with contextlib.suppress(asyncio.CancelledError):  # told to end before it served anything
        uvloop.run(_serve(config, sockets, read_config))
    return 0


async def _serve(config: GatewayConfig, sockets: Sockets, read_config: Callable[[], GatewayConfig]) -> None:
    server = GatewayServer(config, sockets, read_config)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, server.reload)
    _cancel_at_term()
    async with connected(config) as (client, catalog):
        with CatalogReader(catalog_path(config.data_dir)) as reader:
            store = await LocalStore.enter(
                client, catalog, reader, read_keys(config)[0], f"gateway {os.getpid()}"
            )
            loop.add_signal_handler(signal.SIGTERM, server.ended.set)
            try:
                await server.serve(Services(store, client.get))
            finally:
                await store.leave()


def collector_main(config: GatewayConfig) -> int:
    """The collector, until TERM. Returns its exit code."""
    with contextlib.suppress(
        asyncio.CancelledError
    ):  # whatever it was at: what is left is collected the next time
        uvloop.run(_collect(config))
    return 0


async def _collect(config: GatewayConfig) -> None:
    _cancel_at_term()
    async with connected(config) as (client, catalog):
        with CatalogReader(catalog_path(config.data_dir)) as reader:
            await Collector(client, catalog, reader).run_for_ever(config.collect_interval)


def _cancel_at_term() -> None:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
