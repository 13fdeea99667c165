"""The API `chunks`: one chunk, at the path that its ticket has in layout tree."""

from __future__ import annotations

from aiohttp import web

from ingest import ticket
from ingest.errors import TicketError
from ingest.gateway.http.exchange import Exchange
from ingest.gateway.http.failures import Failure
from ingest.gateway.http.http_downloads import SANDBOX
from ingest.gateway.http.preconditions import parse_etags
from ingest.gateway.http.ranges import parse_range
from ingest.gateway.http.routes import Route
from ingest.runtime.cache_policy import CACHE_CONTROL, REVALIDATE


def routes() -> list[Route]:
    return [Route("/*", {"GET": _get}, leads=_leads)]


def _leads(path: str) -> bool:
    try:
        ticket.from_tree_path(path)
    except TicketError:
        return False
    return True


async def _get(exchange: Exchange) -> web.StreamResponse:
    name = ticket.from_tree_path(exchange.tail)
    chunk = await exchange.services.read_chunk(name)
    etag = f'"{name}"'  # a ticket never gets other bytes, but it may be deleted
    headers = {"ETag": etag, "Accept-Ranges": "bytes", CACHE_CONTROL: REVALIDATE, **SANDBOX}
    asked = exchange.headers
    if "If-Match" in asked and not any(
        tag in ("*", name) for weak, tag in parse_etags(asked["If-Match"]) if not weak
    ):
        raise Failure(
            412, "precondition_failed", "the chunk is another one than If-Match asks for", {"ETag": etag}
        )
    if "If-None-Match" in asked and any(tag in ("*", name) for _, tag in parse_etags(asked["If-None-Match"])):
        return web.Response(status=304, headers=headers)
    headers["Content-Type"] = "application/octet-stream"
    part = parse_range(asked.get("Range"), len(chunk)) if asked.get("If-Range", etag) == etag else None
    if exchange.is_head or part is None:
        return web.Response(body=chunk, headers=headers)
    headers["Content-Range"] = part.content_range
    return web.Response(status=206, body=chunk[part.start : part.stop], headers=headers)
