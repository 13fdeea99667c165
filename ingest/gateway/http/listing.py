"""Lists of names, one page of the catalog after the other, and of what happened to one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from aiohttp import web

from ingest.catalog.catalog_reader import Entry
from ingest.catalog.version import Transition
from ingest.gateway.http.exchange import Exchange, json_response
from ingest.gateway.http.failures import ClientGoneError, Failure
from ingest.gateway.http.http_uploads import format_time
from ingest.limits import LIST_PAGE_MAX

PAGE_QUERY = frozenset(("prefix", "after", "limit"))


async def send_page(exchange: Exchange, namespace: str, query: dict[str, str]) -> web.StreamResponse:
    """`?prefix=&after=&limit=`: a page in the order of names, and after which name the next one begins. Failure 400."""
    limit = _limit(query.get("limit") or str(LIST_PAGE_MAX))
    entries = await exchange.store.page(namespace, query.get("prefix", ""), query.get("after", ""), limit)
    following = entries[-1].name if len(entries) == limit else None
    return json_response({"objects": [_describe(entry) for entry in entries], "next": following})


def _limit(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9 or int(text) < 1:
        raise Failure(
            400,
            "bad_query",
            f"limit is a number from 1 on; more than {LIST_PAGE_MAX} count as {LIST_PAGE_MAX}",
        )
    return min(int(text), LIST_PAGE_MAX)


def _describe(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "size": entry.size,
        "etag": entry.etag,
        "created": format_time(entry.created),
    }


def describe_history(history: Sequence[Transition]) -> list[dict[str, Any]]:
    """The states of all versions of a name, newest first, for the JSON of an answer."""
    return [
        {
            "version": step.version,
            "state": step.state.name.lower(),
            "time": format_time(step.time),
            "reason": step.reason,
            "size": step.size,
        }
        for step in history
    ]


async def stream_names(exchange: Exchange, namespace: str) -> web.StreamResponse:
    """All names as one JSON array, however many there are: a page of them is in memory at a time."""
    page = await exchange.store.page(namespace)
    if len(page) < LIST_PAGE_MAX or exchange.is_head:
        return json_response([entry.name for entry in page])
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    exchange.mark(response.headers)
    try:
        await response.prepare(exchange.request)
        separator = b"["
        while page:
            names = msgspec.json.encode([entry.name for entry in page])
            await response.write(separator + names[1:-1])
            separator = b","
            page = await exchange.store.page(namespace, after=page[-1].name)
        await response.write(b"]")
        await response.write_eof()
    except ConnectionError as error:
        raise ClientGoneError(str(error)) from None
    return response
