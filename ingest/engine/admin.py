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
import signal
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import uvloop
from aiohttp import web

from ingest import __version__, limits, ticket
from ingest.engine import exposition, readiness, reload
from ingest.errors import DiskError, TicketError
from ingest.runtime import heartbeat, listeners
from ingest.status import Status
from ingest.store.layouts.layout import make_reader

if TYPE_CHECKING:
    from ingest.engine._queue import Queue
    from ingest.engine.node import Node
    from ingest.mac import KeyRing
    from ingest.runtime.heartbeat import Heart

log = logging.getLogger(__name__)

# The frame (1474 bytes) of a ticket, by index, and SAVED; or nothing and why. DiskError when it cannot be read.
ReadChunk = Callable[[int], tuple[Status, bytes]]
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Admin:
    """What the port answers. ``host`` is the address that it is bound to."""

    def __init__(
        self,
        queue: Queue,
        disk: exposition.DiskUse,
        host: str,
        read_chunk: ReadChunk,
        key_names: tuple[str, ...] = (),
        hearts: Mapping[str, Heart] | None = None,
    ) -> None:
        self._queue = queue
        self._hearts = hearts or {}
        self._exposition = exposition.Exposition(queue, disk, key_names, self._hearts)
        self._local = listeners.is_loopback(host)
        self._read_chunk = read_chunk
        # One thread: a slow disk holds up no health check, and the reader is used by one at a time.
        self._disk = ThreadPoolExecutor(1, "disk")
        # statvfs may wait too: the metrics have a thread of their own, beside chunks and health checks.
        self._scraping = ThreadPoolExecutor(1, "metrics")

    def set_keys(self, read_chunk: ReadChunk, key_names: tuple[str, ...]) -> None:
        """From now on chunks are read so, and counters of keys have these names."""
        self._read_chunk, self._exposition.key_names = read_chunk, key_names

    def application(self) -> web.Application:
        app = web.Application(middlewares=[self._refuse_foreign_hosts], client_max_size=0)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/version", self._version)
        app.router.add_get("/{path:.*}", self._chunk)
        return app

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        reasons = readiness.reasons(self._queue, self._hearts)
        return _json(503 if reasons else 200, {"ready": not reasons, "reasons": reasons})

    async def _metrics(self, _: web.Request) -> web.Response:
        body = await asyncio.get_running_loop().run_in_executor(self._scraping, self._exposition.text)
        return web.Response(body=body, headers={"Content-Type": exposition.CONTENT_TYPE})

    async def _version(self, _: web.Request) -> web.Response:
        return _json(200, {"version": __version__, "python": platform.python_version()})

    async def _chunk(self, request: web.Request) -> web.Response:
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
                body=frame[-limits.DATA_SIZE :],
                headers={"Content-Type": "application/octet-stream", "X-Content-Type-Options": "nosniff"},
            )
        code = {Status.MISSING: 404, Status.DELETED: 410}.get(status, 500)
        return _json(code, {"error": status.name, "ticket": name})

    @web.middleware
    async def _refuse_foreign_hosts(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        host = request.headers.get("Host")
        if self._local and host is not None and not _is_local_name(host):
            return _json(403, {"error": "this port serves only its own machine, under its own names"})
        return await handler(request)


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
    """Answers on ``node.admin_socket``, which listens, until SIGTERM. ``reader`` makes what reads chunks, of the keys that
    may have signed them."""
    host, _ = listeners.bound_address(node.admin_socket)
    disk = exposition.DiskUse(
        node.store.data_fd, node.store.wal_dir, node.config.reserve, node.config.wal_size
    )
    admin = Admin(node.queue, disk, host, reader(node.verifying_keys), node.key_names, node.hearts)
    heartbeat.keep_beating()
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    if node.control is not None:
        loop.add_reader(node.control.fileno(), take_settings, node, admin, reader)
    runner = web.AppRunner(
        admin.application(), access_log=None, shutdown_timeout=limits.ADMIN_SHUTDOWN_TIMEOUT_S
    )
    await runner.setup()
    try:
        await web.SockSite(runner, node.admin_socket).start()
        await ended.wait()
    finally:
        await runner.cleanup()


def admin_main(node: Node) -> int:
    """The admin process: answers until SIGTERM. Returns its exit code."""

    def reader(keys: KeyRing) -> ReadChunk:
        return make_reader(node.store, keys.all).read_chunk

    uvloop.run(serve_admin(node, reader))
    return 0
