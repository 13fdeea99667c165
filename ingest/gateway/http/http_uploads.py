"""Uploads, as all APIs take them: which headers are kept, and the body on its way into the store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from ingest.catalog.version import ANY, Condition, Version
from ingest.gateway.http.body_digests import REPR_DIGEST, CheckedBody, digests_of, repr_digest
from ingest.gateway.http.exchange import Exchange
from ingest.gateway.http.failures import Failure
from ingest.gateway.http.form_file import FormFile
from ingest.gateway.http.form_part import boundary_of, is_form
from ingest.gateway.http.preconditions import condition_of
from ingest.limits import KEPT_HEADERS_SIZE_MAX
from ingest.objects.body import Body
from ingest.runtime.cache_policy import CACHE_CONTROL, of_an_answer

# What a client says of its bytes: it comes back with them.
KEPT = ("Content-Type", "Content-Encoding", "Content-Language", "Content-Disposition", CACHE_CONTROL)


async def store_body(
    exchange: Exchange,
    namespace: str,
    name: str | Callable[[], str],
    base: Condition = ANY,
    *,
    wrap: Callable[[Body], Body] | None = None,
    more: Mapping[str, str] | None = None,
) -> Version:
    """Stores the body of a request, or the file of the form that it is. ``base``: what the API asks of the name; what the
    client asks comes on top of it. ``wrap``: what the API makes of the body. ``more``: headers that it keeps, too.
    Failure 400, 415."""
    condition = condition_of(exchange.headers, base)
    content_type = exchange.headers.get("Content-Type")
    if content_type is not None and is_form(content_type):
        if isinstance(name, str):
            await exchange.store.check(namespace, name, condition)  # before the client is asked for the form
        body, kept = await _form_file(exchange, boundary_of(content_type))
        size = None
    else:
        kept, size = kept_headers(exchange), exchange.size
        body = _checked(exchange.body(), digests_of(exchange.headers), kept)
    return await exchange.store.put(
        namespace,
        name,
        body if wrap is None else wrap(body),
        size=size,
        headers=check_headers(kept | dict(more or {})),
        condition=condition,
    )


async def _form_file(exchange: Exchange, boundary: bytes) -> tuple[Body, dict[str, str]]:
    """The file of a form, and what is kept with it. What the request says of its bytes is true of the form, what the
    file's head says is true of the file (RFC 9110, 8.1; RFC 9530; RFC 1864)."""
    asked = exchange.headers
    if "Content-Encoding" in asked:
        raise Failure(
            415, "form", "a form that is encoded as a whole is not read: send it without Content-Encoding"
        )
    form = FormFile(_checked(exchange.body(), digests_of(asked), {}), boundary)
    part = await form.begin()
    kept = part.kept_headers() | {
        name: text for name, text in kept_headers(exchange).items() if name != "Content-Type"
    }
    return _checked(form, digests_of(part.headers), kept), kept


def _checked(body: Body, digests: list[tuple[str, bytes]], kept: dict[str, str]) -> Body:
    """``body``, if it has no other digests. Of those that are sound, ``kept`` says so."""
    if not digests:
        return body
    sound = repr_digest(digests)
    if sound is not None:
        kept[REPR_DIGEST] = sound
    return CheckedBody(body, digests)


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
    whole, micro = divmod(round(seconds * 1_000_000), 1_000_000)
    return f"{_to_the_second(whole)}.{micro // 1000:03d}Z"


@lru_cache(16)  # what is stored now is stored within the same few seconds
def _to_the_second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
