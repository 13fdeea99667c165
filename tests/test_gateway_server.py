"""One HTTP process of a gateway: what SIGHUP changes in it, and that it changes all of that or nothing."""

from __future__ import annotations

import asyncio
import itertools
import logging
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest
import trustme
import uvloop
from aiohttp import web
from gateway_rig import Connection
from memory_store import MemoryStore
from tls_rig import meet

from ingest.client.async_client import AsyncClient
from ingest.errors import ConfigError, UsageError
from ingest.gateway.apis.stream_api import StreamServer
from ingest.gateway.http.access import Access, Hosts
from ingest.gateway.http.app import App, make_app
from ingest.gateway.http.download_links import DownloadLinks
from ingest.gateway.http.exchange import Exchange, Services
from ingest.gateway.http.failures import ClientGoneError
from ingest.gateway.http.node_figures import NodeFigures
from ingest.gateway.http.request_id import RequestIds
from ingest.gateway.http.routes import Route
from ingest.gateway.process import http_process
from ingest.gateway.process.api_table import APIS
from ingest.gateway.process.credentials import engine_context
from ingest.gateway.process.gateway_config import GatewayConfig, load_config
from ingest.gateway.process.http_process import GatewayServer
from ingest.gateway.process.signing_keys import SigningKeys, Telling
from ingest.mac import KeyRing
from ingest.runtime.wires import Wires
from ingest.store.possession import Possession


@dataclass
class Settings:
    """What is in the files: of these, the present ones can be told apart."""

    token: str
    keys: tuple[bytes, ...]
    authority: trustme.CA = field(default_factory=trustme.CA)

    def engine_context(self) -> ssl.SSLContext:
        """Of an engine's port, with a certificate of this authority."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.authority.issue_cert("127.0.0.1").configure_cert(context)
        return context

    @property
    def key_ids(self) -> tuple[str, ...]:
        return KeyRing(self.keys).ids


OLD = Settings("first-0123456789", (b"\1" * 32,))
NEW = Settings("second-0123456789", (b"\1" * 32, b"\2" * 32))


class Files:
    def __init__(self, directory: Path, tls: bool = True) -> None:
        self.tokens, self.key_file = directory / "tokens", directory / "keys"
        self.chain, self.tls_key, self.ca = directory / "chain", directory / "tls key", directory / "ca"
        flags = {"tls_cert": self.chain, "tls_key": self.tls_key, "connect_tls_ca": self.ca} if tls else {}
        flags |= {"key_file": self.key_file, "token_file": self.tokens, "data_dir": directory}
        self.config = load_config({name: str(path) for name, path in flags.items()}, {})

    def write(self, settings: Settings) -> None:
        self.tokens.write_text(f"read-only {settings.token}\n")
        self.key_file.write_text("".join(f"{key.hex()}\n" for key in settings.keys))
        for path in (self.tokens, self.key_file):
            path.chmod(0o600)
        issued = settings.authority.issue_cert("127.0.0.1")
        issued.cert_chain_pems[0].write_to_path(self.chain)
        issued.private_key_pem.write_to_path(self.tls_key)
        settings.authority.cert_pem.write_to_path(self.ca)


class Server:
    """With the ``files`` as they were when it started."""

    def __init__(self, files: Files, ports: Sequence[str] = ("http",)) -> None:
        self.log_level = files.config.log_level
        sockets = {}
        for port in ports:
            sockets[port] = socket.socket()
            sockets[port].bind(("127.0.0.1", 0))
        self._addresses = [sock.getsockname() for port, sock in sockets.items() if port != "stream"]
        self._is_tls = files.config.tls_cert is not None
        nobody = ("127.0.0.1", 1)
        self._client = AsyncClient(nobody, nobody, OLD.keys[0], tls=engine_context(files.config))
        self._keys = SigningKeys(self._client, Telling())
        self._keys.load(files.config)
        self._server = GatewayServer(
            files.config, sockets, lambda: replace(files.config, log_level=self.log_level)
        )

    async def run(self, work: Callable[[Server], None], steps: int | None = None) -> int:
        """``work`` in a thread of its own, while it serves. With ``steps``, the signal comes so many turns of the loop after
        it began to. Returns how many ports it had made then."""
        store = MemoryStore()
        figures = NodeFigures(lambda: ("127.0.0.1", 1))
        services = Services(store, store.read_chunk, figures, DownloadLinks(bytes(32)))
        serving = asyncio.create_task(self._server.serve(services))
        self._loop = asyncio.get_running_loop()
        for _ in range(steps or 0):
            await asyncio.sleep(0)
        made = len(self._server._apps)
        if steps is not None:
            self._server.reload(self._client, self._keys)
        while not self._server.ended._waiters and not serving.done():  # type: ignore[attr-defined]
            await asyncio.sleep(0)  # until it has made all of its ports
        try:
            await asyncio.to_thread(work, self)
        finally:
            self._server.ended.set()
            await serving
            self._keys.close()
        return made

    def hup(self) -> None:
        async def reload() -> None:
            self._server.reload(self._client, self._keys)

        asyncio.run_coroutine_threadsafe(reload(), self._loop).result()

    def has(self, settings: Settings) -> bool:
        """All of them, or (False) none."""
        found = {self._client._keys.ids == settings.key_ids}
        engine = settings.engine_context()
        for context in [channel.tls for channel in self._client._channels]:
            assert (context is not None) == self._is_tls
            if context is not None:  # of the next connection to the engine
                found.add(meet(context, engine))
        for address in self._addresses:
            found.add(self._takes(address, settings.token))
            if self._is_tls:
                found.add(self._shows(address, settings.authority))
        assert len(found) == 1, "some of them, and others not"
        return found.pop()

    def _shows(self, address: tuple[str, int], authority: trustme.CA) -> bool:
        context = ssl.create_default_context()
        authority.configure_trust(context)
        try:
            Connection(address, context).close()
        except ssl.SSLCertVerificationError:
            return False
        return True

    def _takes(self, address: tuple[str, int], token: str) -> bool:
        context = ssl._create_unverified_context() if self._is_tls else None
        with Connection(address, context) as connection:
            headers = {"Authorization": f"Bearer {token}"}
            return connection.request("GET", "/no-such-path", headers=headers).status != 401


@pytest.fixture
def files(tmp_path: Path) -> Files:
    made = Files(tmp_path)
    made.write(OLD)
    return made


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    """That of all: its level is as before in the end."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.INFO)
    yield root
    root.setLevel(before)


def test_hup_takes_all_of_it_over(files: Files, log: logging.Logger) -> None:
    def work(server: Server) -> None:
        assert server.has(OLD) and not server.has(NEW)
        files.write(NEW)
        server.log_level = "debug"
        server.hup()
        assert server.has(NEW) and not server.has(OLD)
        assert log.level == logging.DEBUG

    async def main() -> None:
        await Server(files).run(work)

    asyncio.run(main())


@pytest.mark.parametrize("spoilt", ["tokens", "key_file", "chain", "tls_key", "ca"])
@pytest.mark.parametrize(
    "how", [Path.unlink, lambda path: path.write_text("nonsense")], ids=["gone", "nonsense"]
)
def test_hup_takes_nothing_over_when_some_of_it_cannot_be_used(
    files: Files,
    caplog: pytest.LogCaptureFixture,
    log: logging.Logger,
    spoilt: str,
    how: Callable[[Path], object],
) -> None:
    def work(server: Server) -> None:
        files.write(NEW)
        how(getattr(files, spoilt))
        server.log_level = "debug"
        server.hup()
        assert "nothing was reloaded" in caplog.text
        assert server.has(OLD) and not server.has(NEW)
        assert log.level == logging.INFO

    async def main() -> None:
        await Server(files).run(work)

    asyncio.run(main())


@pytest.mark.parametrize("spoilt", [None, "key_file", "ca", "configuration"])
def test_hup_takes_all_of_it_over_in_the_collector_too(
    files: Files,
    caplog: pytest.LogCaptureFixture,
    log: logging.Logger,
    monkeypatch: pytest.MonkeyPatch,
    spoilt: str | None,
) -> None:
    """Or nothing; and the next one all the same. It has no ports, and waits for its engine here."""
    nobody = ("127.0.0.1", 1)
    waits: list[int] = []

    @asynccontextmanager
    async def connected(config: GatewayConfig, telling: Telling) -> AsyncIterator[Any]:
        client = AsyncClient(nobody, nobody, OLD.keys[0], tls=engine_context(config))
        keys = SigningKeys(client, telling)
        keys.load(config)
        hup = loop()._signal_handlers  # type: ignore[attr-defined]

        def has(settings: Settings) -> bool:
            found = {meet(channel.tls, settings.engine_context()) for channel in client._channels}
            found.add(client._keys.ids == settings.key_ids)
            assert len(found) == 1, "some of them, and others not"
            return found.pop()

        async def wait() -> None:
            assert has(OLD)
            files.write(NEW)
            if spoilt is not None:
                if spoilt != "configuration":
                    getattr(files, spoilt).write_text("nonsense")
                hup[signal.SIGHUP]._run()
                assert has(OLD) and log.level == logging.INFO and "nothing was reloaded" in caplog.text
                files.write(NEW)
            waits.append(1)
            hup[signal.SIGHUP]._run()
            assert has(NEW) and log.level == logging.DEBUG
            keys.close()
            raise asyncio.CancelledError

        yield client, None, keys, SimpleNamespace(wait=wait)

    def read_config() -> GatewayConfig:
        if spoilt == "configuration" and not waits:
            raise ConfigError("nonsense")
        return replace(files.config, log_level="debug")

    loop = asyncio.get_running_loop
    monkeypatch.setattr(http_process, "connected", connected)
    with asyncio.Runner() as runner, pytest.raises(asyncio.CancelledError):
        runner.run(http_process._collect(files.config, read_config, Telling(), cast(Possession, None)))
    assert waits


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("tls", [True, False], ids=["TLS", "plain"])
def test_hup_comes_at_any_step_of_the_start(tmp_path: Path, tls: bool, loop: Callable[[], Any]) -> None:
    """A process has many ports, and makes one after the other: all of them take over what the files say."""

    def work(server: Server) -> None:
        assert server.has(NEW) and not server.has(OLD)

    ports = ("http", "stream", *(name for name in APIS if name != "stream"))
    made: list[int] = []
    with asyncio.Runner(loop_factory=loop) as runner:
        while not made or made[-1] < len(ports) - 1:
            directory = tmp_path / str(len(made))
            directory.mkdir()
            files = Files(directory, tls)
            files.write(OLD)
            server = Server(files, ports)
            files.write(NEW)
            made.append(runner.run(server.run(work, steps=len(made))))
    # uvloop makes a port without a turn, and so does asyncio where TLS is not its own.
    assert made[0] == 0 and (tls or loop is uvloop.new_event_loop or set(made) == set(range(len(ports))))


# --- the end of a port


@pytest.mark.parametrize("tls", [True, False], ids=["TLS", "plain"])
@pytest.mark.parametrize("ports", [("http",), ("http", "stream", "blob", "store"), ("stream", "http")])
def test_all_ports_refuse_before_what_is_under_way_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tls: bool, ports: tuple[str, ...]
) -> None:
    """On each of them, within one time; and then nothing of it goes on."""
    files, drained = Files(tmp_path, tls), []
    files.write(OLD)
    files.config = replace(files.config, drain_timeout=10)
    server = Server(files, ports)

    async def drain(one: object, patience: float) -> None:
        for sock in addresses:
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(sock).close()
        drained.append((type(one), patience))

    def work(_: Server) -> None:
        for address in addresses:
            socket.create_connection(address).close()

    async def main() -> None:
        await server.run(work)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    addresses = [sock.getsockname() for sock in server._server._sockets.values()]
    for kind in (App, StreamServer):
        monkeypatch.setattr(kind, "drain", drain)
    uvloop.run(main())
    http = [(App, 8.0)] * len([port for port in ports if port != "stream"])
    assert sorted(drained, key=str) == sorted([*http, (StreamServer, 8.0)], key=str)


REQUESTS = 3


@pytest.mark.parametrize("order", [*itertools.permutations(range(REQUESTS))])
@pytest.mark.parametrize("before", [0, 1])
def test_a_drain_waits_for_each_request_that_is_under_way(order: Sequence[int], before: int) -> None:
    """Whichever ends last, whatever their connections had ``before``. Those that have none end at once."""
    goes_on = [asyncio.Event() for _ in range(REQUESTS)]
    came: list[int] = []

    async def waits(exchange: Exchange) -> web.StreamResponse:
        number = int(exchange.tail)
        came.append(number)
        await goes_on[number].wait()
        return web.Response(text="here")

    async def at_once(exchange: Exchange) -> web.StreamResponse:
        return web.Response(text="at once")

    async def test() -> None:
        loop = asyncio.get_running_loop()
        routes = [Route("/waits/*", {"GET": waits}), Route("/", {"GET": at_once})]
        app = make_app(routes, cast(Services, None), Access(Hosts(frozenset())), RequestIds(), Wires())
        port = await loop.create_server(app, "127.0.0.1", 0)
        address = port.sockets[0].getsockname()
        peers = [await asyncio.open_connection(*address) for _ in range(REQUESTS + 1)]
        head = "GET {} HTTP/1.1\r\nHost: localhost\r\n\r\n"
        for number, (reader, writer) in enumerate(peers):
            for _ in range(before):
                writer.write(head.format("/").encode())
                await reader.readuntil(b"at once")
            if number < REQUESTS:
                writer.write(head.format(f"/waits/{number}").encode())
        while len(came) < REQUESTS or len(app.connections) <= REQUESTS:
            await asyncio.sleep(0)
        port.close()
        draining = asyncio.create_task(app.drain(3600))
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(app.connections) == REQUESTS, "who has no request is ended at once, and nobody else"
        assert await peers[-1][0].read() == b""
        for number in order:
            assert not draining.done()
            goes_on[number].set()
            answer = await peers[number][0].read()  # to the end of the connection
            assert answer.endswith(b"here") and b"Connection: close" in answer
        await draining
        for _, writer in peers:
            writer.close()
        await app.shutdown(1)

    uvloop.run(asyncio.wait_for(test(), 60))


@pytest.mark.parametrize("loop", [asyncio, uvloop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize(
    "end", ["answered", "raises", "refused", "client gone", "client reset", "half closed"]
)
def test_however_a_request_ends_a_drain_does_not_wait_for_it(loop: ModuleType, end: str) -> None:
    under_way, goes_on = asyncio.Event(), asyncio.Event()

    async def waits(exchange: Exchange) -> web.StreamResponse:
        under_way.set()
        await goes_on.wait()
        if end == "raises":
            raise RuntimeError("as nobody expects it")
        if end == "refused":
            raise UsageError("no")
        if end.startswith("client"):
            raise ClientGoneError  # as who writes an answer does
        return web.Response(text="here")

    async def test() -> None:
        routes = [Route("/", {"GET": waits})]
        app = make_app(routes, cast(Services, None), Access(Hosts(frozenset())), RequestIds(), Wires())
        port = await asyncio.get_running_loop().create_server(app, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*port.sockets[0].getsockname())
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await under_way.wait()
        if end == "client gone":
            writer.close()
        elif end == "client reset":
            writer.transport.abort()
        elif end == "half closed":
            writer.write_eof()
        for _ in range(20):
            await asyncio.sleep(0)
        goes_on.set()
        if not end.startswith("client"):
            await reader.readuntil(b"HTTP/1.1")
        port.close()
        await app.drain(3600)
        writer.close()
        await app.shutdown(1)

    loop.run(asyncio.wait_for(test(), 60))
