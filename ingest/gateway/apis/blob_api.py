"""The API `blob`: immutable blobs under ids of a-z and 0-9."""

from __future__ import annotations

import re

from aiohttp import web

from ingest.catalog.version import SAME
from ingest.errors import NotFoundError
from ingest.gateway.apis.own_headers import own_headers, told_headers
from ingest.gateway.http.exchange import Exchange, json_response, text_response
from ingest.gateway.http.failures import Failure
from ingest.gateway.http.http_downloads import send_object
from ingest.gateway.http.http_uploads import store_body
from ingest.gateway.http.listing import stream_names
from ingest.gateway.http.request_target import decode
from ingest.gateway.http.routes import Route
from ingest.limits import NAME_SIZE_MAX

NAMESPACE = "blob"
_ID = re.compile(r"[a-z0-9]+")


def routes() -> list[Route]:
    return [
        Route("/alive", {"GET": _alive}, public=True),
        Route("/blob", {"GET": _names}),
        Route("/blobs", {"GET": _names}),
        Route("/blob/*", {"GET": _get, "POST": _post}, forms=True, leads=_any),
    ]


def _any(_: str) -> bool:
    """Clients know 400 for a path without an id."""
    return True


async def _alive(_: Exchange) -> web.StreamResponse:
    return text_response("alive")


async def _names(exchange: Exchange) -> web.StreamResponse:
    return await stream_names(exchange, NAMESPACE)


async def _get(exchange: Exchange) -> web.StreamResponse:
    try:
        return await send_object(exchange, NAMESPACE, _id(exchange), told_headers)
    except NotFoundError as error:
        raise Failure(404, "not_found", str(error), text="404 page not found") from None


async def _post(exchange: Exchange) -> web.StreamResponse:
    more = own_headers(exchange.headers)
    version = await store_body(exchange, NAMESPACE, _id(exchange), SAME, more=more)
    return json_response({"id": version.name, "size": version.size, "status": "OK"})


def _id(exchange: Exchange) -> str:
    try:
        name = decode(exchange.tail)
    except Failure:
        name = ""
    if not _ID.fullmatch(name):
        raise Failure(400, "bad_id", "alphanumeric IDs only", text="alphanumeric IDs only")
    if len(name) > NAME_SIZE_MAX:
        raise Failure(400, "bad_id", f"an id of {len(name)} characters: {NAME_SIZE_MAX} are possible")
    return name
