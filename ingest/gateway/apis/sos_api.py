"""The APIs `sos-upload` and `sos-fetch`: content under the SHA-1 of its bytes.

SHA-1 can be made to collide. What is stored is told apart by its BLAKE3 too: of two contents with one SHA-1 the second is
refused.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable

from aiohttp import web

from ingest.catalog.version import SAME
from ingest.gateway.apis.own_headers import own_headers, told_headers
from ingest.gateway.http.exchange import Exchange, json_response
from ingest.gateway.http.failures import Failure
from ingest.gateway.http.http_downloads import send_object
from ingest.gateway.http.http_uploads import store_body
from ingest.gateway.http.request_target import decode
from ingest.gateway.http.routes import Route
from ingest.objects.body import Body

NAMESPACE = "blob"  # with all that lies there: `ingest.objects.shared_namespace`
_ID = re.compile(r"([a-z0-9]+)(\.[^/]*)?")


def upload_routes() -> list[Route]:
    return [Route("/upload", {"POST": _upload}, forms=True)]


def fetch_routes() -> list[Route]:
    return [Route("/fetch/*", {"GET": _fetch})]


async def _upload(exchange: Exchange) -> web.StreamResponse:
    digest = hashlib.sha1(usedforsecurity=False)

    def wrap(body: Body) -> Body:
        return _Hashed(body, digest.update)

    more = own_headers(exchange.headers)
    version = await store_body(exchange, NAMESPACE, digest.hexdigest, SAME, wrap=wrap, more=more)
    return json_response({"id": version.name, "size": version.size, "status": "OK"})


class _Hashed:
    """A body, each byte of which ``update`` gets too."""

    def __init__(self, body: Body, update: Callable[[memoryview], None]) -> None:
        self._body = body
        self._update = update

    @property
    def ended(self) -> bool:
        return self._body.ended

    async def fill(self, buffer: memoryview, patience: float | None = None) -> int:
        size = await self._body.fill(buffer, patience)
        self._update(buffer[:size])
        return size

    async def close(self) -> None:
        await self._body.close()


async def _fetch(exchange: Exchange) -> web.StreamResponse:
    match = _ID.fullmatch(decode(exchange.tail))
    if match is None:
        raise Failure(404, "not_found", "an id has letters a-z and digits")
    return await send_object(exchange, NAMESPACE, match[1], told_headers)
