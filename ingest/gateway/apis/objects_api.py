"""The API `objects`: PUT creates or replaces, and names can be listed."""

from __future__ import annotations

from aiohttp import web

from ingest.catalog.version import ANY
from ingest.gateway.http.exchange import Exchange, json_response
from ingest.gateway.http.http_downloads import send_object
from ingest.gateway.http.http_uploads import describe, store_body
from ingest.gateway.http.listing import PAGE_QUERY, send_page
from ingest.gateway.http.preconditions import condition_of, format_etag
from ingest.gateway.http.routes import Route

NAMESPACE = "objects"


def routes() -> list[Route]:
    return [
        Route("/", {"GET": send_status}, public=True),
        Route("/objects/", {"GET": _list}, query={"GET": PAGE_QUERY}),
        Route("/objects/*", {"PUT": _put, "GET": _get, "DELETE": _delete}),
    ]


async def send_status(_: Exchange) -> web.StreamResponse:
    return json_response({"status": 1, "version": 1})


async def _list(exchange: Exchange) -> web.StreamResponse:
    return await send_page(exchange, NAMESPACE, exchange.query)


async def _put(exchange: Exchange) -> web.StreamResponse:
    version = await store_body(exchange, NAMESPACE, exchange.name)
    return json_response(describe(version), headers={"ETag": format_etag(version)})


async def _get(exchange: Exchange) -> web.StreamResponse:
    return await send_object(exchange, NAMESPACE, exchange.name)


async def _delete(exchange: Exchange) -> web.StreamResponse:
    version = await exchange.store.delete(NAMESPACE, exchange.name, condition_of(exchange.headers, ANY))
    return json_response(describe(version))
