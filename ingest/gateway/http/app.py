"""The application: one for each port, of the APIs that it speaks. What every request goes through stands here.

aiohttp reads and writes HTTP; its routing is left out, because it decodes and tidies up paths before anybody sees them, and
names of objects must come as they were sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import Any, cast

from aiohttp import HttpVersion11, web
from aiohttp.http_exceptions import LineTooLong

from ingest import limits
from ingest.gateway.http.access import Access
from ingest.gateway.http.exchange import Exchange, Services, mark
from ingest.gateway.http.failures import ClientGoneError, Failure, failure_of
from ingest.gateway.http.fields import Fields
from ingest.gateway.http.request_id import RequestIds
from ingest.gateway.http.request_target import parse_target, without_query
from ingest.gateway.http.routes import CHANGING, Route, Routes
from ingest.gateway.http.s3_refusal import S3Failure, refuse_s3
from ingest.runtime.http_connection import Connection
from ingest.runtime.wire import Wire
from ingest.runtime.wires import Wires

log = logging.getLogger(__name__)


def make_app(
    routes: Sequence[Route], services: Services, access: Access, ids: RequestIds, wires: Wires
) -> App:
    """The application of one port, for `aiohttp.web.ServerRunner`. To be called within the event loop that serves it.
    ``wires``: those of the whole process."""
    return App(
        Gate(Routes(routes), services, access, ids, wires),
        wires,
        access_log=None,
        auto_decompress=False,  # the bytes of an object are those that the client sent
        max_line_size=limits.HTTP_LINE_SIZE_MAX,
        max_field_size=limits.HTTP_FIELD_SIZE_MAX,
        max_headers=limits.HTTP_FIELDS_MAX,
        keepalive_timeout=limits.HTTP_IDLE_TIMEOUT_S,
        lingering_time=limits.HTTP_LINGER_MAX_S,
    )


class Gate:
    """What every request goes through, from its target to its answer."""

    def __init__(
        self, routes: Routes, services: Services, access: Access, ids: RequestIds, wires: Wires
    ) -> None:
        self._routes = routes
        self._services = services
        self.access = access
        self.ids = ids
        self._wires = wires
        self._under_way = 0
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._draining = False

    @property
    def _guards(self) -> bool:
        """Tokens decide about all that is not public."""
        return self.access.tokens is not None

    async def drain(self, timeout: float) -> None:
        """Waits, ``timeout`` seconds at most, for the requests that are under way. Each is the last of its connection."""
        self._draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._quiet.wait()

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """ClientGoneError when there is nobody to answer, or the answer broke off."""
        connection = request.protocol
        assert isinstance(connection, Connection) and connection.wire is not None
        self._under_way += 1
        connection.busy = True
        self._quiet.clear()
        try:
            response = await self._answer(request)
        finally:
            body_was_taken = connection.wire.end_body(request.content)
            connection.busy = False
            self._under_way -= 1
            if not self._under_way:
                self._quiet.set()
        if self._draining or body_was_taken or connection.wire.much_to_come:
            response.force_close()
        return response

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        headers = Fields(request.headers)
        id_ = self.ids.of(headers.get("X-Request-Id"))
        exchange: Exchange | None = None
        # HTTP/1.0 knows no chunks: whoever stands between may see another end of this request (RFC 9112, 6.1).
        misframed = request.version < HttpVersion11 and "Transfer-Encoding" in headers
        try:
            if misframed:
                raise Failure(400, "bad_http", "HTTP/1.0 has no Transfer-Encoding")
            target = parse_target(request.raw_path)
            exchange = Exchange(request, headers, id_, target, "", self._services, guarded=self._guards)
            response = await self._handle(exchange)
        except (asyncio.CancelledError, ClientGoneError):
            raise
        except Exception as error:
            response = self._fail(request, id_, error, exchange)
        if not response.prepared:
            mark(response.headers, id_, self._guards if exchange is None else exchange.guarded)
        if misframed or ("Expect" in headers and not (exchange and exchange.continued)):
            response.force_close()  # the client will not send the body: what it sends next cannot be told from one
        if log.isEnabledFor(logging.DEBUG):
            path = without_query(request.raw_path)
            log.debug("%s: %s %s: %d", id_, request.method, path, response.status)
        return response

    async def _handle(self, exchange: Exchange) -> web.StreamResponse:
        unreadable: Failure | None = None
        try:
            refuse_s3(exchange)
        except S3Failure:
            raise
        except Failure as error:  # of its query: whether there is such a path goes first
            unreadable = error
        try:
            route, exchange.tail = self._routes.find(exchange.target.path)
        except Failure:
            self._check(exchange, public=False)  # strangers do not learn what is not there
            raise
        exchange.guarded = self._guards and not route.public
        self._check(exchange, public=route.public)
        method = exchange.request.method
        handler = route.handler(method)
        if unreadable is not None:
            raise unreadable
        route.check_form(method, exchange.headers.get("Content-Type"))
        route.check_query(method, exchange.query)
        route.check_part(method, exchange.headers.get("Content-Range"))
        return await handler(exchange)

    def _check(self, exchange: Exchange, *, public: bool) -> None:
        """Failure 401, 403."""
        headers, authority = exchange.headers, exchange.target.authority
        host = headers.get("Host")
        for named in (host,) if authority is None else (authority, host):
            self.access.check(
                named,
                headers.get("Origin"),
                headers.get("Authorization"),
                changes=exchange.request.method in CHANGING,
                public=public,
            )

    def _fail(
        self, request: web.BaseRequest, id_: str, error: Exception, exchange: Exchange | None
    ) -> web.StreamResponse:
        failure = failure_of(error)
        what = f"{request.method} {without_query(request.raw_path)[:200]}"
        # Not implemented: that is told to the client alone.
        if failure.status >= 500 and failure.status != 501 and self._may_say(failure, exchange):
            if failure.code == "internal":
                log.error("%s: %s", id_, what, exc_info=error)
            else:
                log.warning("%s: %s: %s", id_, what, error)
        if request.writer.output_size:
            log.warning("%s: %s: the answer broke off: %s", id_, what, error)
            raise ClientGoneError("the answer broke off") from error
        return failure.response(id_)

    def _may_say(self, failure: Failure, exchange: Exchange | None) -> bool:
        """Where no token is asked for, strangers could fill the log: one line in a while says of each failure that it is."""
        try:
            public = exchange is not None and self._routes.find(exchange.target.path)[0].public
        except Failure:
            return True
        return not public or self._wires.may_say(f"were answered {failure.status} {failure.code}")


class App(web.Server):
    """aiohttp's server, with answers of our own to what is no HTTP."""

    def __init__(self, gate: Gate, wires: Wires, **settings: Any) -> None:
        super().__init__(gate.answer, **settings)
        self.gate = gate
        self._wires = wires
        self._settings = settings

    async def drain(self, timeout: float) -> None:
        """To be called when nothing listens any more: ends idle connections, and waits for the others. aiohttp's own way is
        deaf to what comes of a body from then on."""
        for connection in self.connections:
            if not cast(_Connection, connection).busy:
                connection.force_close()
        await self.gate.drain(timeout)

    def __call__(self) -> Wire:  # type: ignore[override]  # what asyncio connects, not what aiohttp does
        read_size = min(limits.HTTP_READ_SIZE, len(self._wires.scratch))
        handler = _Connection(self, loop=asyncio.get_running_loop(), read_bufsize=read_size, **self._settings)
        return Wire(self._wires, handler, self.gate.ids.next)


class _Connection(Connection):
    __slots__ = ("_ids",)

    def __init__(self, app: App, **settings: Any) -> None:
        super().__init__(app, **settings)
        self._ids = app.gate.ids

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Called for what the parser cannot read, and for what `Gate.answer` raises: then there is nobody to answer."""
        if isinstance(exc, (ClientGoneError, ConnectionError)) or request.writer.output_size:
            log.debug("%s", exc)
            raise ConnectionResetError(str(exc))
        id_ = self._ids.next()
        if status != 400:
            log.error("%s: unexpected", id_, exc_info=exc)
            failure = failure_of(exc or RuntimeError(message))
        elif isinstance(exc, LineTooLong):
            failure = Failure(431, "headers_too_large", "the request line, or a header of it, is too long")
        else:
            failure = Failure(400, "bad_http", " ".join((message or "this is no HTTP").split())[:200])
        response = failure.response(id_)
        mark(response.headers, id_, False)
        response.force_close()
        return response
