"""The APIs `sos-upload` and `sos-fetch`: content under the SHA-1 of its bytes.

SHA-1 can be made to collide. What is stored is told apart by its BLAKE3 too: of two contents with one SHA-1 the second is
refused.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping

from aiohttp import web

from ingest.catalog.version import SAME
from ingest.gateway.http.exchange import Exchange, json_response
from ingest.gateway.http.failures import Failure
from ingest.gateway.http.http_downloads import send_object
from ingest.gateway.http.http_uploads import kept_headers, store_body
from ingest.gateway.http.request_target import decode
from ingest.gateway.http.routes import Route
from ingest.objects.body import Body

NAMESPACE = "sos"
_ID = re.compile(r"([0-9a-f]{40})(\.[^/]*)?")

# Headers that do not come back, by who would act on them. Ends of names with a * stand for all that begin so. The table of
# docs/http.md is this one.
NOT_KEPT = {
    # An answer's orders to the proxies, caches and application servers that it passes: files to send in its place (nginx,
    # Apache, lighttpd, LiteSpeed, Perlbal, App Engine), archives to make of what it lists (mod_zip), ESI to run on its
    # body (Traffic Server), caches to purge, hosts to take out of use (Envoy).
    "proxies": (
        "x-accel-*", "x-archive-*", "x-sendfile*", "x-lighttpd-*", "x-litespeed-*", "x-lscache*", "x-reproxy-*",
        "x-appengine-*", "x-esi*", "x-envoy-*", "x-middleware-*", "x-reverse-proxy-*", "x-varnish*", "x-cache*",
    ),
    "browsers": (
        "x-frame-options", "x-content-type-options", "x-content-security-policy*", "x-webkit-*", "x-xss-protection",
        "x-dns-prefetch-control", "x-permitted-cross-domain-policies", "x-download-options", "x-ua-compatible",
        "x-sourcemap", "x-chrome*", "x-json",
    ),
    "crawlers": ("x-robots-tag", "x-pingback", "x-xrds-location"),
    # Of the upload and its sender, not of the content: addresses, credentials, what a proxy noted on its way.
    "the request": (
        "x-forwarded*", "x-real-ip", "x-client-ip", "x-cluster-client-ip", "x-remote-*", "x-ssl-*", "x-original-*",
        "x-rewrite-url", "x-http-method*", "x-method-override", "x-requested-with", "x-request-id", "x-correlation-id",
        "x-amzn-trace-id", "x-cloud-trace-context", "x-b3-*", "x-csrf*", "x-xsrf*", "x-auth-*", "x-api-key",
        "x-access-token", "x-powered-by",
    ),
}  # fmt: skip
_NOT_KEPT = [name for names in NOT_KEPT.values() for name in names]
_EXACT = frozenset(name for name in _NOT_KEPT if not name.endswith("*"))
_PREFIXES = tuple(name[:-1] for name in _NOT_KEPT if name.endswith("*"))


def upload_routes() -> list[Route]:
    return [Route("/upload", {"POST": _upload})]


def fetch_routes() -> list[Route]:
    return [Route("/fetch/*", {"GET": _fetch})]


async def _upload(exchange: Exchange) -> web.StreamResponse:
    digest = hashlib.sha1(usedforsecurity=False)
    body = _Hashed(exchange.body(), digest.update)
    headers = kept_headers(exchange) | own_headers(exchange.headers)
    version = await store_body(exchange, NAMESPACE, digest.hexdigest, SAME, body=body, headers=headers)
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
        raise Failure(404, "not_found", "an id has 40 hexadecimal digits, 0-9 and a-f")
    version = await exchange.store.stat(NAMESPACE, match[1])
    extra = own_headers(version.headers)
    if "X-Mime-Type" in extra:
        extra["Content-Type"] = extra["X-Mime-Type"]
    return await send_object(exchange, NAMESPACE, match[1], extra)


def own_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """What the uploader says of the content in headers of his own, `X-…`, several of one name joined as HTTP does."""
    own: dict[str, str] = {}
    for name, value in headers.items():
        small = name.lower()
        if small.startswith("x-") and small not in _EXACT and not small.startswith(_PREFIXES):
            name = "-".join(part.capitalize() for part in small.split("-"))
            own[name] = f"{own[name]}, {value}" if name in own else value
    return own
