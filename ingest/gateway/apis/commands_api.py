"""For the `ingest` commands, on the shared port alone: any version by its ObjectID, and the collector. What else they ask
stands in `ingest.gateway.apis.catalog_api`."""

from __future__ import annotations

from aiohttp import web

from ingest.gateway.http.exchange import Collect, Exchange, json_response, no_route
from ingest.gateway.http.http_downloads import send_version
from ingest.gateway.http.request_target import decode
from ingest.gateway.http.routes import Route
from ingest.objects.collector import described


def routes() -> list[Route]:
    return [
        Route("/id/*", {"GET": _get}),
        Route("/gc", {"GET": _waiting, "POST": _collect}),
    ]


async def _get(exchange: Exchange) -> web.StreamResponse:
    """The bytes of a version, in whatever namespace it is."""
    return await send_version(exchange, decode(exchange.tail))


async def _waiting(exchange: Exchange) -> web.StreamResponse:
    """What the collector would delete now."""
    return json_response(described(await _collector(exchange)(True)))


async def _collect(exchange: Exchange) -> web.StreamResponse:
    """Answered when nothing is left. BusyError while another collector is at work."""
    return json_response(described(await _collector(exchange)(False)))


def _collector(exchange: Exchange) -> Collect:
    collect = exchange.services.collect
    if collect is None:
        raise no_route()
    return collect
