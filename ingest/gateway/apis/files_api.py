"""The API `files`: files under references of several segments, each written once."""

from __future__ import annotations

from aiohttp import web

from ingest.catalog.version import ABSENT
from ingest.gateway.http.exchange import Exchange, json_response
from ingest.gateway.http.http_downloads import send_object
from ingest.gateway.http.http_uploads import describe, store_body
from ingest.gateway.http.preconditions import format_etag
from ingest.gateway.http.routes import Route

NAMESPACE = "files"


def routes(root: str) -> list[Route]:
    """``root``: `/` on a port of its own, `/files/` on the shared one."""
    return [Route(f"{root}*", {"POST": _post, "GET": _get}, forms=True)]


async def _post(exchange: Exchange) -> web.StreamResponse:
    version = await store_body(exchange, NAMESPACE, exchange.name, ABSENT)
    return json_response(describe(version), 200, {"ETag": format_etag(version)})


async def _get(exchange: Exchange) -> web.StreamResponse:
    return await send_object(exchange, NAMESPACE, exchange.name)
