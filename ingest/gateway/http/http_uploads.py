"""Uploads, as all APIs take them: which headers are kept, and the body on its way into the store."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from ingest.catalog.version import ANY, Condition, Version
from ingest.gateway.http.body_digests import REPR_DIGEST, CheckedBody, digests_of, repr_digest
from ingest.gateway.http.cache_policy import CACHE_CONTROL, of_an_answer
from ingest.gateway.http.exchange import Exchange
from ingest.gateway.http.failures import Failure
from ingest.gateway.http.preconditions import condition_of
from ingest.limits import KEPT_HEADERS_SIZE_MAX
from ingest.objects.body import Body

# What a client says of its bytes: it comes back with them.
KEPT = ("Content-Type", "Content-Encoding", "Content-Language", "Content-Disposition", CACHE_CONTROL)


async def store_body(
    exchange: Exchange,
    namespace: str,
    name: str | Callable[[], str],
    base: Condition = ANY,
    *,
    body: Body | None = None,
    headers: dict[str, str] | None = None,
) -> Version:
    """Stores the body of a request. ``base``: what the API asks of the name; what the client asks comes on top of it.
    ``body`` and ``headers``: other ones than the request's own."""
    digests = digests_of(exchange.headers)
    kept = kept_headers(exchange) if headers is None else headers
    body = exchange.body() if body is None else body
    if digests:
        body = CheckedBody(body, digests)
        sound = repr_digest(digests)
        kept |= {} if sound is None else {REPR_DIGEST: sound}
    return await exchange.store.put(
        namespace,
        name,
        body,
        size=exchange.size,
        headers=check_headers(kept),
        condition=condition_of(exchange.headers, base),
    )


def kept_headers(exchange: Exchange) -> dict[str, str]:
    given = exchange.headers
    kept = {name: given[name] for name in KEPT if name in given}
    return kept | of_an_answer(kept.pop(CACHE_CONTROL, ""))


def check_headers(headers: dict[str, str]) -> dict[str, str]:
    """Failure 400, 431."""
    size = 0
    for name, value in headers.items():
        try:
            size += len(name) + len(value.encode())
        except UnicodeEncodeError:
            raise Failure(400, "bad_header", f"the header {name} is not UTF-8") from None
    if size > KEPT_HEADERS_SIZE_MAX:
        message = (
            f"headers of {size} bytes would be kept with the object: {KEPT_HEADERS_SIZE_MAX} are possible"
        )
        raise Failure(431, "headers_too_large", message)
    return headers


def describe(version: Version) -> dict[str, Any]:
    """A version, for the JSON of an answer."""
    return {
        "name": version.name,
        "size": version.size,
        "etag": version.etag,
        "id": version.object_id,
        "version": version.number,
        "created": format_time(version.created),
    }


def format_time(seconds: float) -> str:
    """RFC 3339, in UTC: `2026-11-21T12:00:00.123Z`."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
