"""One HTTP process of a gateway: its store, its ports, and their end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import uvloop
from aiohttp import web

from ingest import limits
from ingest.catalog.catalog_access import CatalogAccess
from ingest.catalog.catalog_reader import CatalogReader
from ingest.catalog.catalog_socket import catalog_path
from ingest.client.async_client import AsyncClient
from ingest.client.chunk_store import ChunkStore
from ingest.engine.reload import use_log_level
from ingest.errors import BusyError, IngestError
from ingest.gateway.apis.stream_api import StreamServer
from ingest.gateway.http.app import App, make_app
from ingest.gateway.http.download_links import DownloadLinks
from ingest.gateway.http.exchange import Collect, ReadChunk, Services
from ingest.gateway.http.node_figures import NodeFigures
from ingest.gateway.http.request_id import RequestIds
from ingest.gateway.http.shared_look import SharedLook
from ingest.gateway.http.tls_port import TlsPort
from ingest.gateway.process import credentials
from ingest.gateway.process.api_table import APIS, shared_routes
from ingest.gateway.process.gateway_config import GatewayConfig
from ingest.gateway.process.node_address import admin_address
from ingest.gateway.process.signing_keys import SigningKeys, Telling, read_keys
from ingest.gateway.process.upstream import Binding, connected
from ingest.objects.collector import Collected, Collector, waiting
from ingest.objects.local_store import LocalStore
from ingest.objects.shared_namespace import SharedNamespace
from ingest.runtime import heap, heartbeat, listeners, signals
from ingest.runtime.heartbeat import Heart
from ingest.runtime.wires import Wires
from ingest.store.possession import Possession

log = logging.getLogger(__name__)

SHARED = "http"  # the name of the port that has all APIs
Sockets = Mapping[str, socket.socket]  # the bound one of each port, by name
ReadConfig = Callable[[], GatewayConfig]  # reads the configuration once more


class GatewayServer:
    """Serves ``sockets`` until `ended` is set. ``tells``: it is this process of the gateway that says so in the log."""

    def __init__(
        self, config: GatewayConfig, sockets: Sockets, read_config: ReadConfig, tells: bool = False
    ) -> None:
        self._tells = tells
        self._config = config
        self._sockets = sockets
        self._read_config = read_config
        self._access = credentials.read_access(config)
        self._context: ssl.SSLContext | None = credentials.http_context(config)
        self._apps: list[App] = []
        self.ended = asyncio.Event()

    async def serve(self, services: Services) -> None:
        ids = RequestIds()
        # Then requests are cut off, and their uploads have time to fail.
        patience = 0.8 * self._config.drain_timeout
        runners: list[web.ServerRunner] = []
        tls_ports: list[TlsPort] = []
        wires = Wires()
        stream, listening = StreamServer(services.store, ids, wires), None
        watching = asyncio.create_task(wires.watch())
        try:
            for port, sock in self._sockets.items():
                name = port.split()[0]
                listeners.listen(sock, limits.LISTEN_BACKLOG)
                if name == "stream":
                    loop = asyncio.get_running_loop()
                    listening = await loop.create_server(stream.connect, sock=sock)
                    continue
                routes = shared_routes() if name == SHARED else APIS[name]()
                app = make_app(routes, services, self._access, ids, wires)
                self._apps.append(app)  # before anything is waited for: a reload may come
                runner = web.ServerRunner(app, shutdown_timeout=0.05 * self._config.drain_timeout)
                await runner.setup()
                runners.append(runner)
                if self._context is None:
                    await web.SockSite(runner, sock, backlog=limits.LISTEN_BACKLOG).start()
                else:
                    tls_ports.append(TlsPort(sock, self._context, app, wires))
            if self._tells:
                log.info("serving on %s", ", ".join(self._urls()))
            await self.ended.wait()
        finally:
            if listening is not None:
                listening.close()
            for runner in runners:
                for site in runner.sites:
                    await site.stop()
            for tls_port in tls_ports:
                await tls_port.close()
            await asyncio.gather(stream.drain(patience), *(app.drain(patience) for app in self._apps))
            await asyncio.gather(*(runner.cleanup() for runner in runners))
            watching.cancel()

    def _urls(self) -> Iterator[str]:
        """Of the ports that speak HTTP, with the API of each one that has one alone."""
        scheme = "http" if self._context is None else "https"
        for port, sock in self._sockets.items():
            name = port.split()[0]
            if name != "stream":
                url = f"{scheme}://{listeners.format_address(listeners.bound_address(sock))}"
                yield url if name == SHARED else f"{url} ({name})"

    def reload(self, client: AsyncClient, keys: SigningKeys) -> None:
        """SIGHUP: tokens, certificates, keys and the log level are read again. What cannot be used leaves all as it was."""
        try:
            config = self._read_config()
            access = credentials.read_access(config)
            context = self._context if config.tls_cert is not None else None
            if context is not None:
                credentials.http_context(
                    config
                )  # tried first: what fails leaves half a chain in the one in use
            engine = credentials.engine_context(config)
            keys.load(config)
            client.use_tls(engine)
            if context is not None:
                credentials.load_chain(context, config)
        except IngestError as error:
            log.error("nothing was reloaded: %s", error)
            return
        self._access = access
        for app in self._apps:
            app.gate.access = access
        use_log_level(config.log_level)


@dataclass(frozen=True)
class HttpRole:
    """What an HTTP process has of its parent. ``link_key``: with which all of them sign links. ``possession``: of the data
    directory that the gateway was started on. ``hearts``: of its processes. ``tells``: see `GatewayServer`."""

    config: GatewayConfig
    sockets: Sockets
    read_config: ReadConfig
    telling: Telling
    link_key: bytes
    possession: Possession
    hearts: Mapping[str, Heart]
    tells: bool


def http_main(role: HttpRole) -> int:
    """An HTTP process, until it is told to end. Returns its exit code."""
    with contextlib.suppress(asyncio.CancelledError):  # told to end before it served anything
        gc.freeze()  # what is there stays to the end: cycles are looked for among the rest
        gc.set_threshold(limits.CYCLES_THRESHOLD)
        heap.keep(limits.HTTP_HEAP_KEPT, 2 * limits.PIECE_CHUNKS * limits.DATA_SIZE)
        uvloop.run(_serve(role))
    return 0


async def _serve(role: HttpRole) -> None:
    config, possession = role.config, role.possession
    server = GatewayServer(config, role.sockets, role.read_config, role.tells)
    loop = asyncio.get_running_loop()
    _cancel_at_end()
    async with (
        connected(config, role.telling) as (client, catalog, keys, binding),
        NodeFigures(partial(admin_address, config), client.prove) as figures,
    ):
        with CatalogReader(catalog_path(config.data_dir)) as reader:
            possession.add_changing(lambda: reader.beside)
            store = await LocalStore.enter(
                client,
                catalog,
                reader,
                read_keys(config)[0],
                f"gateway {os.getpid()}",
                possession=possession,
                admit=binding.check,
                admit_reads=binding.check_shown,
            )
            binding.tell(server.ended.set)
            loop.add_signal_handler(signals.end(), server.ended.set)
            loop.add_signal_handler(signal.SIGHUP, server.reload, client, keys)
            signals.take_reloads()
            looking = asyncio.create_task(_look_at(possession))
            heartbeat.keep_beating()
            try:
                collect = _collect_once(client, catalog, reader, binding, possession)
                links = DownloadLinks(role.link_key)
                shared = SharedNamespace(store)
                services = Services(
                    shared,
                    _read_chunk(client, binding),
                    figures,
                    links,
                    collect,
                    possession,
                    role.hearts,
                    check_ready=partial(_check_ready, reader, binding),
                    prove=_proving(client),
                )
                await server.serve(services)
                binding.raise_failure()
            finally:
                looking.cancel()
                await store.leave()


def _proving(client: AsyncClient) -> Callable[[], Awaitable[None]]:
    """Looks, when another engine was met, whether it is still there: once for all who ask, whom no token keeps out."""
    look = SharedLook(client.prove, limits.FIGURES_KEPT_S)

    async def prove() -> None:
        if client.met_foreign:
            await look.read()

    return prove


def _check_ready(reader: CatalogReader, binding: Binding) -> None:
    """What `Binding` raises when there is nothing to read and nothing can be stored. With a bound store the catalog is not
    asked."""
    binding.check_shown()
    try:
        binding.check()
    except IngestError:
        if not reader.newest(1):
            raise


async def _look_at(possession: Possession) -> None:
    """Again and again, in a thread: a look may wait for a file system, requests may not."""
    loop = asyncio.get_running_loop()
    while True:
        await loop.run_in_executor(None, possession.look)
        await asyncio.sleep(limits.POSSESSION_IDLE_INTERVAL_S)


def _read_chunk(client: ChunkStore, binding: Binding) -> ReadChunk:
    async def read(name: str) -> bytes:
        binding.check_shown()
        return await client.get(name)

    return read


def _collect_once(
    client: ChunkStore,
    catalog: CatalogAccess,
    reader: CatalogReader,
    binding: Binding,
    possession: Possession,
) -> Collect:
    """For who does not want to wait for the collector's next turn."""

    async def collect(dry_run: bool) -> Collected:
        if dry_run:
            return waiting(reader)
        binding.check()  # nothing is put or deleted in a store that may be another catalog's
        if (done := await Collector(client, catalog, reader, possession).run()) is None:
            raise BusyError("another collector is at work")
        return done

    return collect


def collector_main(
    config: GatewayConfig, read_config: ReadConfig, telling: Telling, possession: Possession
) -> int:
    """The collector, until it is told to end. Returns its exit code. ``possession``: as `HttpRole` has it."""
    with contextlib.suppress(
        asyncio.CancelledError
    ):  # whatever it was at: what is left is collected the next time
        uvloop.run(_collect(config, read_config, telling, possession))
    return 0


async def _collect(
    config: GatewayConfig, read_config: ReadConfig, telling: Telling, possession: Possession
) -> None:
    _cancel_at_end()
    async with connected(config, telling) as (client, catalog, keys, binding):

        def reload() -> None:
            try:
                config = read_config()
                engine = credentials.engine_context(config)
                keys.load(config)
                client.use_tls(engine)
                use_log_level(config.log_level)
            except IngestError as error:
                log.error("nothing was reloaded: %s", error)

        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)
        signals.take_reloads()
        await binding.wait()
        with CatalogReader(catalog_path(config.data_dir)) as reader:
            possession.add_changing(lambda: reader.beside)
            heartbeat.keep_beating()
            await Collector(client, catalog, reader, possession).run_for_ever(config.collect_interval)


def _cancel_at_end() -> None:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signals.end(), task.cancel)
