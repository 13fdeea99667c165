"""The admin port: HTTP for people and their machines, in a process of its own. `docs/operations.md`.

It answers before the store has recovered, and as long as anything of the server runs. It is neither authenticated nor
encrypted: chunks are shown on loopback addresses only, and there requests made in the name of another host
(DNS rebinding: a web page that has its own name resolve to 127.0.0.1) are refused.
"""

from __future__ import annotations

import asyncio
import json
import logging
import platform
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import uvloop
from aiohttp import HttpVersion11, web
from aiohttp.http_exceptions import LineTooLong

from ingest import __version__, limits, ticket
from ingest.engine import exposition, readiness, reload
from ingest.errors import DiskError, TicketError
from ingest.runtime import heartbeat, listeners, signals
from ingest.runtime.cache_policy import CACHE_CONTROL, FENCE, NO_STORE
from ingest.runtime.http_connection import Connection
from ingest.runtime.wire import Wire
from ingest.runtime.wires import Wires
from ingest.status import Status
from ingest.store.layouts.layout import make_reader
from ingest.store.space import inodes_kept_free

if TYPE_CHECKING:
    from ingest.engine._queue import Queue
    from ingest.engine.node import Node
    from ingest.mac import KeyRing
    from ingest.runtime.heartbeat import Heart

log = logging.getLogger(__name__)

# The frame (1474 bytes) of a ticket, by index, and SAVED; or nothing and why. DiskError when it cannot be read.
ReadChunk = Callable[[int], tuple[Status, bytes]]
_Handler = Callable[[web.BaseRequest], Awaitable[web.Response]]

# Of every answer: what stands here now says nothing of later, and is no part of another site's page.
_HEADERS = {CACHE_CONTROL: NO_STORE, **FENCE}


class Admin:
    """What the port answers. ``hosts`` are the addresses that it is bound to."""

    def __init__(
        self,
        queue: Queue,
        disk: exposition.DiskUse,
        hosts: Sequence[str],
        read_chunk: ReadChunk,
        key_names: tuple[str, ...] = (),
        hearts: Mapping[str, Heart] | None = None,
    ) -> None:
        self._queue = queue
        self._hearts = hearts or {}
        self._exposition = exposition.Exposition(queue, disk, key_names, self._hearts)
        self._local = all(listeners.is_loopback(host) for host in hosts)
        self._read_chunk = read_chunk
        # One thread: a slow disk holds up no health check, and the reader is used by one at a time.
        self._disk = ThreadPoolExecutor(1, "disk")
        # statvfs may wait too: the metrics have a thread of their own, beside chunks and health checks.
        self._scraping = ThreadPoolExecutor(1, "metrics")
        self._paths: dict[str, _Handler] = {
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            "/metrics": self._metrics,
            "/version": self._version,
        }

    def set_keys(self, read_chunk: ReadChunk, key_names: tuple[str, ...]) -> None:
        """From now on chunks are read so, and counters of keys have these names."""
        self._read_chunk, self._exposition.key_names = read_chunk, key_names

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        response = await self._answer(request)
        response.headers.update(_HEADERS)
        return response

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        host = request.headers.get("Host")
        if request.version < HttpVersion11 and "Transfer-Encoding" in request.headers:
            # HTTP/1.0 knows no chunks: whoever stands between may see another end of this request (RFC 9112, 6.1).
            refusal = _json(400, {"error": "HTTP/1.0 has no Transfer-Encoding"})
            refusal.force_close()
            return refusal
        if self._local and host is not None and not _is_local_name(host):
            return _json(403, {"error": "this port serves only its own machine, under its own names"})
        if request.method not in ("GET", "HEAD"):
            refusal = _json(405, {"error": "nothing can be changed here"})
            refusal.headers["Allow"] = "GET, HEAD"
            return refusal
        return await self._paths.get(request.rel_url.raw_path, self._chunk)(request)

    async def _healthz(self, _: web.BaseRequest) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.BaseRequest) -> web.Response:
        reasons = readiness.reasons(self._queue, self._hearts)
        return _json(503 if reasons else 200, {"ready": not reasons, "reasons": reasons})

    async def _metrics(self, _: web.BaseRequest) -> web.Response:
        body = await asyncio.get_running_loop().run_in_executor(self._scraping, self._exposition.text)
        return web.Response(body=body, headers={"Content-Type": exposition.CONTENT_TYPE})

    async def _version(self, _: web.BaseRequest) -> web.Response:
        return _json(200, {"version": __version__, "python": platform.python_version()})

    async def _chunk(self, request: web.BaseRequest) -> web.Response:
        # The path as it was sent: one path for each ticket, none of its other spellings.
        path = request.raw_path.partition("?")[0].removeprefix("/")
        try:
            if not self._local:
                raise TicketError("chunks are shown on loopback addresses only")
            name = ticket.from_tree_path(path)
        except TicketError:
            return _json(404, {"error": "there is nothing under this path"})
        try:
            reading = asyncio.get_running_loop().run_in_executor(
                self._disk, self._read_chunk, ticket.parse(name)
            )
            status, frame = await reading
        except (DiskError, OSError) as error:
            log.error("ticket %s: %s", name, error)
            status, frame = Status.ERROR, b""
        if status is Status.SAVED:
            assert len(frame) == limits.FRAME_SIZE, len(frame)
            return web.Response(
                body=frame[-limits.DATA_SIZE :], headers={"Content-Type": "application/octet-stream"}
            )
        code = {Status.MISSING: 404, Status.DELETED: 410}.get(status, 500)
        return _json(code, {"error": status.name, "ticket": name})


class _Connection(Connection):
    """What is no HTTP is the client's trouble, and nothing for the log."""

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if status != 400:
            response = super().handle_error(request, status, exc, message)
            response.headers.update(_HEADERS)
            return response
        too_long = isinstance(exc, LineTooLong)
        error = "the request line, or a header, is too long" if too_long else "this is no HTTP"
        response = _json(431 if too_long else 400, {"error": error})
        response.headers.update(_HEADERS)
        response.force_close()
        return response


def _is_local_name(host: str) -> bool:
    """Whether a Host header (`NAME`, `NAME:PORT`, `[V6]:PORT`) names this machine itself."""
    name = host if host.endswith("]") else host.rpartition(":")[0] or host
    if name.startswith("[") and name.endswith("]"):
        name = name[1:-1]
    return name.lower().rstrip(".") == "localhost" or listeners.is_loopback(name)


def _json(code: int, content: dict[str, Any]) -> web.Response:
    return web.Response(status=code, text=json.dumps(content) + "\n", content_type="application/json")


def take_settings(node: Node, admin: Admin, reader: Callable[[KeyRing], ReadChunk]) -> None:
    """What the parent has reloaded."""
    settings = reload.receive(node)
    if settings is not None:
        admin.set_keys(reader(settings.keys), settings.key_names)
        reload.use_log_level(settings.log_level)
        reload.confirm(node)


async def serve_admin(node: Node, reader: Callable[[KeyRing], ReadChunk]) -> None:
    """Answers on ``node.admin_sockets``, which listen, until it is told to end. ``reader`` makes what reads chunks, of
    the keys that may have signed them."""
    hosts = [listeners.bound_address(sock)[0] for sock in node.admin_sockets]
    disk = exposition.DiskUse(
        node.store.data_fd,
        node.store.wal_dir,
        node.config.reserve,
        node.config.wal_size,
        inodes_kept_free(node.store.layout),
    )
    admin = Admin(node.queue, disk, hosts, reader(node.verifying_keys), node.key_names, node.hearts)
    heartbeat.keep_beating()
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signals.end(), ended.set)
    if node.control is not None:
        loop.add_reader(node.control.fileno(), take_settings, node, admin, reader)
    runner = web.ServerRunner(web.Server(admin.answer), shutdown_timeout=limits.ADMIN_SHUTDOWN_TIMEOUT_S)
    await runner.setup()
    wires = Wires()

    def connect() -> asyncio.BaseProtocol:
        assert runner.server is not None
        connection = _Connection(
            runner.server,
            loop=loop,
            access_log=None,
            max_line_size=limits.HTTP_LINE_SIZE_MAX,
            max_field_size=limits.HTTP_FIELD_SIZE_MAX,
            max_headers=limits.HTTP_FIELDS_MAX,
            keepalive_timeout=limits.HTTP_IDLE_TIMEOUT_S,
            lingering_time=limits.HTTP_LINGER_S,
            read_bufsize=min(limits.HTTP_READ_SIZE, len(wires.scratch)),
        )
        return Wire(wires, connection, lambda: secrets.token_hex(8))

    watching = asyncio.create_task(wires.watch())
    servers = [await loop.create_server(connect, sock=sock) for sock in node.admin_sockets]
    try:
        await ended.wait()
    finally:
        for server in servers:
            server.close()
        await runner.cleanup()
        watching.cancel()


def admin_main(node: Node) -> int:
    """The admin process: answers until it is told to end. Returns its exit code."""

    def reader(keys: KeyRing) -> ReadChunk:
        return make_reader(node.store, keys.all).read_chunk

    uvloop.run(serve_admin(node, reader))
    return 0
