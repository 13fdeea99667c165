"""The API `store`: objects that are made, replaced and deleted by explicit methods, with their history."""

from __future__ import annotations

import time
from contextlib import suppress

from aiohttp import web

from ingest.catalog.version import ABSENT, ANY, PRESENT
from ingest.errors import PeerError
from ingest.gateway.http.exchange import Exchange, json_response, text_response
from ingest.gateway.http.failures import RETRY, Failure
from ingest.gateway.http.http_downloads import send_object
from ingest.gateway.http.http_uploads import describe, store_body
from ingest.gateway.http.listing import describe_history
from ingest.gateway.http.preconditions import condition_of, format_etag
from ingest.gateway.http.routes import Route

NAMESPACE = "store"


def routes() -> list[Route]:
    return [
        Route(
            "/store/*",
            {"POST": _post, "PUT": _put, "GET": _get, "DELETE": _delete},
            query={"GET": frozenset(("history",))},
            forms=True,
        ),
        Route("/healthz", {"GET": _healthz}, public=True),
    ]


async def _healthz(exchange: Exchange) -> web.StreamResponse:
    """Whether requests should be sent here: of those to come, this process gets some, and its siblings the others."""
    services, now = exchange.services, time.monotonic_ns()
    if services.possession is not None:
        services.possession.check()
    hearts = (pair for pair in services.hearts.items() if pair[0] != "collector")
    if troubles := [trouble for name, heart in hearts if (trouble := heart.trouble(name, now))]:
        raise Failure(503, "not_ready", f"{'; '.join(troubles)}: requests may find nobody", RETRY)
    if services.check_ready is not None:
        services.check_ready()
    if services.prove is not None:
        with suppress(PeerError):  # an engine that is away comes back: uploads wait for it
            await services.prove()
    return text_response("Ok!")


async def _post(exchange: Exchange) -> web.StreamResponse:
    version = await store_body(exchange, NAMESPACE, exchange.name, ABSENT)
    return web.Response(status=204, headers={"ETag": format_etag(version)})


async def _put(exchange: Exchange) -> web.StreamResponse:
    version = await store_body(exchange, NAMESPACE, exchange.name, PRESENT)
    return json_response(describe(version), headers={"ETag": format_etag(version)})


async def _get(exchange: Exchange) -> web.StreamResponse:
    if "history" in exchange.query:
        return json_response(describe_history(await exchange.store.history(NAMESPACE, exchange.name)))
    return await send_object(exchange, NAMESPACE, exchange.name)


async def _delete(exchange: Exchange) -> web.StreamResponse:
    version = await exchange.store.delete(NAMESPACE, exchange.name, condition_of(exchange.headers, ANY))
    return json_response(describe(version))
