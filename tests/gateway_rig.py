"""A running gateway, and HTTP as its tests speak it: plain sockets, so that every byte is the test's."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import select
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import log_lines
import psutil
import uvloop
from aiohttp import web
from memory_store import MemoryStore

from ingest.gateway.apis.stream_api import StreamServer
from ingest.gateway.http.access import Access, Hosts
from ingest.gateway.http.app import make_app
from ingest.gateway.http.download_links import DownloadLinks
from ingest.gateway.http.exchange import Services
from ingest.gateway.http.node_figures import NodeFigures
from ingest.gateway.http.request_id import RequestIds
from ingest.gateway.http.tls_port import TlsPort
from ingest.gateway.process.api_table import APIS, shared_routes
from ingest.gateway.process.gateway_config import API_NAMES
from ingest.objects.shared_namespace import SharedNamespace
from ingest.runtime.listeners import Address
from ingest.runtime.wires import Wires

TIMEOUT_S = 60.0


@dataclass
class Answer:
    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes
    interim: list[int] = field(default_factory=list)  # 1xx before it

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        return self.json["code"]


class Broken(Exception):
    """The connection ended before its answer did. ``head``: what there was of it."""


class Connection:
    """One connection to a gateway."""

    def __init__(self, address: tuple[str, int], context: ssl.SSLContext | None = None) -> None:
        self.sock = socket.create_connection(address, TIMEOUT_S)
        if context is not None:
            self.sock = context.wrap_socket(self.sock, server_hostname=address[0])
        self.file = self.sock.makefile("rb")
        self.address = address

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.file.close()
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def head(self, method: str, path: str | bytes, headers: Mapping[str, str] = {}) -> bytes:
        """Request line and headers. ``Host`` is put in unless it is there; "" leaves it out."""
        raw = path.encode() if isinstance(path, str) else path
        fields = {"Host": f"{self.address[0]}:{self.address[1]}"} | dict(headers)
        lines = [f"{name}: {value}".encode() for name, value in fields.items() if value != ""]
        return b"\r\n".join([method.encode() + b" " + raw + b" HTTP/1.1", *lines, b"", b""])

    def request(
        self,
        method: str,
        path: str | bytes,
        body: bytes | Iterable[bytes] | None = None,
        headers: Mapping[str, str] = {},
    ) -> Answer:
        """``body``: bytes with their Content-Length, or pieces, which are sent chunked."""
        if isinstance(body, bytes):
            self.send(self.head(method, path, {"Content-Length": str(len(body))} | dict(headers)) + body)
        elif body is not None:
            self.send(self.head(method, path, {"Transfer-Encoding": "chunked"} | dict(headers)))
            for piece in body:
                self.send(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.send(b"0\r\n\r\n")
        else:
            self.send(self.head(method, path, headers))
        return self.answer(method)

    def answer(self, method: str = "GET") -> Answer:
        interim = []
        while True:
            status, headers = self.answer_head()
            if status >= 200:
                break
            interim.append(status)
        if method == "HEAD" or status in (204, 304):
            return Answer(status, headers, b"", interim)
        if headers.get("transfer-encoding") == "chunked":
            return Answer(status, headers, self._chunked(), interim)
        size = int(headers["content-length"])
        return Answer(status, headers, self.exactly(size), interim)

    def answer_head(self) -> tuple[int, dict[str, str]]:
        line = self.file.readline()
        if not line.endswith(b"\r\n"):
            raise Broken(f"the connection ended in the status line: {line!r}")
        status = int(line.split()[1])
        headers = {}
        while (line := self.file.readline()) != b"\r\n":
            if not line.endswith(b"\r\n"):
                raise Broken("the connection ended in the headers")
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        return status, headers

    def exactly(self, size: int) -> bytes:
        try:
            data = self.file.read(size)
        except ConnectionError as error:
            raise Broken(str(error)) from None
        if len(data) != size:
            raise Broken(f"the connection ended after {len(data)} of {size} bytes")
        return data

    def _chunked(self) -> bytes:
        body = b""
        while size := int(self.file.readline().split(b";")[0] or b"x", 16):
            body += self.exactly(size)
            assert self.exactly(2) == b"\r\n"
        assert self.file.readline() == b"\r\n"
        return body

    def ended(self) -> bool:
        """Waits for the end of the connection; False when something else comes."""
        try:
            return self.file.read(1) == b""
        except ConnectionError:
            return True

    def ended_unread(self) -> bool:
        """Waits for a reset by the other side, without reading what it sent."""
        poll = select.poll()
        poll.register(self.sock, 0)  # POLLHUP and POLLERR come always
        return bool(poll.poll(TIMEOUT_S * 1000))


@dataclass
class Gateway:
    """Where one listens: the shared port, and the ports of single APIs by name. ``store``: when it is in this process."""

    address: tuple[str, int]
    alone: dict[str, tuple[str, int]]
    store: MemoryStore | None = None
    run: Callable[[Callable[[], Any]], Any] | None = None  # calls something in the thread of the gateway
    admin: Address = ("", 0)  # where that one asks for figures
    wires: Wires | None = None  # all of its connections

    def connect(self, api: str | None = None) -> Connection:
        return Connection(self.address if api is None else self.alone[api])

    def request(
        self, method: str, path: str | bytes, *args: Any, api: str | None = None, **kwargs: Any
    ) -> Answer:
        with self.connect(api) as connection:
            return connection.request(method, path, *args, **kwargs)


class NodeGateway:
    """`ingest serve` (or another command) on free ports, with every API on a port of its own."""

    def __init__(
        self, data_dir: Path, *flags: str, command: str = "serve", wrapper: Iterable[str] = ()
    ) -> None:
        self.data_dir = data_dir
        self.command = command
        self.wrapper = list(wrapper)  # a program that runs what follows it
        self.flags = flags
        self.log_path = data_dir.parent / f"{data_dir.name}.{command}.log"
        self.announcement = data_dir / ".ingest" / "gateway.json"
        self.process: subprocess.Popen[bytes] | None = None
        self.gateway = Gateway(("", 0), {})

    def start(self, wait: bool = True) -> None:
        self.announcement.unlink(missing_ok=True)  # so that what is read there is this one's
        ports = ["--http-listen=127.0.0.1:0"]
        if self.command == "serve":
            ports += [f"--{name}=127.0.0.1:0" for name in ("listen", "read-listen", "admin-listen")]
        ports += [f"--api={name}=127.0.0.1:0" for name in API_NAMES]
        command = [*self.wrapper, sys.executable, "-m", "ingest", self.command, f"--data-dir={self.data_dir}"]
        clean = {name: text for name, text in os.environ.items() if not name.startswith("INGEST_")}
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *ports, *self.flags], stdout=log, stderr=log, env=clean
            )
        if wait:
            self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """Until every port is known and takes connections."""
        assert self.process is not None
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"{self.command} ended with {self.process.returncode}:\n{self.log()}")
            try:
                found = json.loads(self.announcement.read_bytes())
                addresses = {
                    name: (text.rsplit(":", 1)[0], int(text.rsplit(":", 1)[1]))
                    for name, text in found.items()
                    if name != "pid"
                }
                for name, address in addresses.items():
                    if name != "stream":  # where a connection is an upload
                        socket.create_connection(address, TIMEOUT_S).close()
            except (OSError, ValueError):
                time.sleep(0.01)
                continue
            self.gateway.address = addresses.pop("http")
            self.gateway.alone = addresses
            return
        raise AssertionError(f"{self.command} is not ready after {TIMEOUT_S} s:\n{self.log()}")

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")[-6000:]

    def says(self, text: str) -> bool:
        return log_lines.says(self.log, text)

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(TIMEOUT_S)

    def family(self) -> list[psutil.Process]:
        """Its process and all below it."""
        assert self.process is not None
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def kill(self) -> None:
        """SIGKILL to all of them."""
        family = self.family()
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        assert self.process is not None
        self.process.wait(TIMEOUT_S)
        _, alive = psutil.wait_procs(family[1:], TIMEOUT_S)
        assert not alive

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()


@contextmanager
def node_gateway(
    data_dir: Path, *flags: str, command: str = "serve", wrapper: Iterable[str] = ()
) -> Iterator[NodeGateway]:
    node = NodeGateway(data_dir, *flags, command=command, wrapper=wrapper)
    try:
        node.start()
        yield node
    finally:
        node.close()


@contextmanager
def running_gateway(kind: str, tmp_path_factory: Any) -> Iterator[Gateway]:
    """``kind``: `memory`, or `node`: a server and a gateway in processes of their own."""
    if kind == "memory":
        with memory_gateway() as gateway:
            yield gateway
        assert gateway.store is not None and gateway.store.open_downloads == 0
        return
    with node_gateway(tmp_path_factory.mktemp("node") / "data") as node:
        yield node.gateway
        assert node.stop() == 0, node.log()


async def _answer(
    services: Services, access: Access | None, tls: ssl.SSLContext | None, listening: Callable[..., None]
) -> None:
    """Serves all APIs, each on a port of its own, from when it calls ``listening`` until the event that it gave there."""
    loop = asyncio.get_running_loop()
    allowed = access or Access(Hosts.of([("127.0.0.1", 0)]))
    ids = RequestIds()
    wires = Wires()
    watching = asyncio.create_task(wires.watch())
    ports = {None: shared_routes()} | {name: routes() for name, routes in APIS.items()}
    runners = []
    tls_ports: list[TlsPort] = []
    addresses = {}
    for name, routes in ports.items():
        app = make_app(routes, services, allowed, ids, wires)
        runner = web.ServerRunner(app, shutdown_timeout=1)
        await runner.setup()
        sock = socket.create_server(("127.0.0.1", 0))
        if tls is None:
            await web.SockSite(runner, sock).start()
        else:
            tls_ports.append(TlsPort(sock, tls, app, wires))
        addresses[name] = sock.getsockname()[:2]
        runners.append(runner)
    stream = StreamServer(services.store, ids, wires)
    server = await loop.create_server(stream.connect, "127.0.0.1", 0)
    addresses["stream"] = server.sockets[0].getsockname()[:2]
    end = asyncio.Event()
    listening(addresses=addresses, loop=loop, end=end, wires=wires)
    await end.wait()
    server.close()
    for tls_port in tls_ports:
        await tls_port.close()
    await stream.drain(1)
    for runner in runners:
        await runner.cleanup()
    watching.cancel()
    with suppress(TimeoutError):
        async with asyncio.timeout(TIMEOUT_S):
            while taken(wires):
                await asyncio.sleep(0.001)


def taken(wires: Wires) -> int:
    """How many connections have a place, or are being told that there is none."""
    return len(wires.open) + len(wires.guests) + len(wires.refused)


@contextmanager
def memory_gateway(
    access: Access | None = None,
    tls: ssl.SSLContext | None = None,
    admin: Address | None = None,
    clock: Callable[[], float] = time.time,
    **services: Any,
) -> Iterator[Gateway]:
    """The whole HTTP of a gateway over a store in memory, in a thread of this process. ``admin``: where the figures of a
    node are asked for; None: at a port where nobody listens. ``clock``: of links. ``services``: more of `Services`."""
    store = MemoryStore()
    silent = socket.socket()  # bound, so that nobody else listens there meanwhile
    silent.bind(("127.0.0.1", 0))
    admin = admin or silent.getsockname()
    started = threading.Event()
    result: dict[str, Any] = {}

    async def serve() -> None:
        async with NodeFigures(lambda: admin) as figures:
            links = DownloadLinks(secrets.token_bytes(32), clock)
            known = Services(SharedNamespace(store), store.read_chunk, figures, links, **services)
            await _answer(known, access, tls, listening)

    def listening(**found: Any) -> None:
        result.update(found)
        started.set()

    def main() -> None:
        try:
            uvloop.run(serve())
        finally:
            started.set()

    thread = threading.Thread(target=main)
    thread.start()
    started.wait(TIMEOUT_S)
    loop = result["loop"]

    def run(call: Callable[[], Any]) -> Any:
        async def within() -> Any:
            return call()

        return asyncio.run_coroutine_threadsafe(within(), loop).result(TIMEOUT_S)

    addresses = result["addresses"]
    shared = addresses.pop(None)
    try:
        yield Gateway(shared, addresses, store, run, admin, result["wires"])
    finally:
        silent.close()
        loop.call_soon_threadsafe(result["end"].set)
        thread.join(2 * TIMEOUT_S)
        assert not thread.is_alive()
    assert not taken(result["wires"]), "a connection that has ended keeps its place"
