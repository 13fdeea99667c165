"""The page that a browser gets at `GET /` of the shared port, and the files it is made of (`static/`).

It is public, as it has nothing of the store in it: what it shows it asks the APIs for, with a token where one is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources

from aiohttp import web
from blake3 import blake3

from ingest.gateway.apis.objects_api import send_status
from ingest.gateway.http.exchange import Exchange, json_response
from ingest.gateway.http.preconditions import parse_etags
from ingest.gateway.http.routes import Route
from ingest.runtime.cache_policy import CACHE_CONTROL, REVALIDATE

ROOT = "/"
INDEX = "index.html"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Nothing but its own files, nothing inline; no string becomes markup or a script; in nobody's frame.
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_HEADERS = {
    CACHE_CONTROL: REVALIDATE,  # an upgrade is seen at once
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}


@dataclass(frozen=True, slots=True)
class StaticFile:
    content: bytes
    type: str
    etag: str  # BLAKE3 of the content


@cache
def static_files() -> dict[str, StaticFile]:
    """By their names, read once."""
    found = {}
    for entry in (resources.files("ingest.gateway.page") / "static").iterdir():
        kind = _TYPES.get(entry.name[entry.name.rfind(".") :])
        if kind is not None:
            content = entry.read_bytes()
            found[entry.name] = StaticFile(content, kind, blake3(content).hexdigest())
    return found


def routes() -> list[Route]:
    return [
        Route(ROOT, {"GET": _root}, public=True),
        Route("/page/*", {"GET": _file}, public=True, leads=_leads),
        Route("/node", {"GET": _node}),
    ]


async def _root(exchange: Exchange) -> web.StreamResponse:
    """The page to who accepts HTML; to programs what the API `objects` says here."""
    response = _send(exchange, INDEX) if exchange.accepts_html() else await send_status(exchange)
    response.headers["Vary"] = "Accept"
    return response


def _leads(name: str) -> bool:
    return name != INDEX and name in static_files()


async def _file(exchange: Exchange) -> web.StreamResponse:
    return _send(exchange, exchange.tail)


async def _node(exchange: Exchange) -> web.StreamResponse:
    """The figures that the page draws."""
    return json_response(await exchange.services.figures.read())


def _send(exchange: Exchange, name: str) -> web.StreamResponse:
    file = static_files()[name]
    headers = {**_HEADERS, "ETag": f'"{file.etag}"'}
    known = exchange.headers.get("If-None-Match")
    if known is not None and any(tag in ("*", file.etag) for _, tag in parse_etags(known)):
        return web.Response(status=304, headers=headers)
    return web.Response(body=file.content, headers={**headers, "Content-Type": file.type})
