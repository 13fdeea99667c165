"""Downloads, as all APIs give them: conditions, ranges, and the bytes on their way to the client.

What fails before the first byte gets an answer of its own. What fails later ends the connection before Content-Length is
reached: no client takes a part for the whole.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from email.utils import formatdate
from functools import lru_cache, partial
from typing import NamedTuple

from aiohttp import web

from ingest.catalog.version import Version
from ingest.gateway.http.body_digests import REPR_DIGEST
from ingest.gateway.http.exchange import Exchange
from ingest.gateway.http.failures import ClientGoneError
from ingest.gateway.http.http_uploads import KEPT
from ingest.gateway.http.preconditions import check_read, format_etag, is_conditional, range_date, range_holds
from ingest.gateway.http.ranges import parse_range
from ingest.limits import HTTP_TLS_WRITE_SIZE
from ingest.objects.memory_budget import ALLOWANCE_SIZE
from ingest.objects.object_store import StoredDownload
from ingest.runtime.cache_policy import CACHE_CONTROL, REVALIDATE
from ingest.runtime.http_connection import Connection

# An object is somebody's bytes: in a browser it runs no scripts here.
SANDBOX = {"Content-Security-Policy": "sandbox"}

Extra = Callable[[Version], dict[str, str]]


def nothing_more(_: Version) -> dict[str, str]:
    return {}


async def send_object(
    exchange: Exchange, namespace: str, name: str, extra: Extra = nothing_more
) -> web.StreamResponse:
    """Answers GET and HEAD. ``extra``: headers of the API for a version. NotFoundError, Failure 412, 416."""
    store = exchange.store
    return await _answer(
        exchange, partial(store.stat, namespace, name), partial(store.open, namespace, name), extra
    )


async def send_version(exchange: Exchange, object_id: str) -> web.StreamResponse:
    """The same, of a version by its ObjectID. TicketError too."""
    store = exchange.store
    return await _answer(
        exchange, partial(store.stat_object, object_id), partial(store.open_object, object_id), nothing_more
    )


async def _answer(
    exchange: Exchange,
    stat: Callable[[], Awaitable[Version]],
    open_: Callable[[], Awaitable[StoredDownload]],
    extra: Extra,
) -> web.StreamResponse:
    asked = exchange.headers
    if exchange.is_head or is_conditional(asked):  # what needs no bytes reads none
        version = await stat()
        if check_read(asked, version):
            return web.Response(status=304, headers=_validators(version, extra))
        if exchange.is_head:
            return web.Response(headers=_headers(version, extra) | {"Content-Length": str(version.size)})
    download = await open_()
    try:
        return await _send(exchange, download, extra)
    finally:
        await download.close()


async def _send(exchange: Exchange, download: StoredDownload, extra: Extra) -> web.StreamResponse:
    version = download.version
    asked = exchange.headers
    if check_read(asked, version):
        return web.Response(status=304, headers=_validators(version, extra))
    headers = _headers(version, extra)
    whole = "Range" not in asked or not await _range_holds(exchange, version)
    part = None if whole else parse_range(asked.get("Range"), version.size)
    status, start, stop = 200, 0, version.size
    if part is not None:
        status, start, stop = 206, part.start, part.stop
        headers["Content-Range"] = part.content_range
    headers["Content-Length"] = str(stop - start)
    async with aclosing(download.read(start, stop)) as pieces:
        if stop - start <= ALLOWANCE_SIZE:
            body = b"".join([piece async for piece in pieces])
            assert len(body) == stop - start, f"{len(body)} of {stop - start} bytes"
            return web.Response(status=status, body=body, headers=headers)
        # What takes memory of others is open until the client has it.
        response = web.StreamResponse(status=status, headers=headers)
        return await _stream(exchange, response, download, pieces, stop - start)


async def _range_holds(exchange: Exchange, version: Version) -> bool:
    """Whether what the client has is a part of this version."""
    if range_holds(exchange.headers, version):
        return True
    return range_date(exchange.headers, version) and not await exchange.store.shares_second(version)


async def _stream(
    exchange: Exchange,
    response: web.StreamResponse,
    download: StoredDownload,
    pieces: AsyncIterator[bytes],
    size: int,
) -> web.StreamResponse:
    piece = memoryview(await anext(pieces))  # what fails here has an answer
    exchange.mark(response.headers)
    sent = 0
    try:
        await response.prepare(exchange.request)
        while True:
            part = _send_some(exchange, piece, begun=sent > 0)
            del piece  # a client that takes nothing keeps no more than the copy
            download.took(part.size)
            sent += part.size
            if part.rest:
                await response.write(part.rest)
                await exchange.request.writer.drain()
            try:
                piece = memoryview(await anext(pieces))
            except StopAsyncIteration:
                break
        assert sent == size, f"{sent} of {size} bytes"
        await response.write_eof()
    except ConnectionError as error:
        raise ClientGoneError(f"the client went away after {sent} of {size} bytes: {error}") from None
    return response


class _Part(NamedTuple):
    """``size`` bytes of a piece, of which the last ones, ``rest``, still have to be written."""

    size: int
    rest: bytes


def _send_some(exchange: Exchange, piece: memoryview, begun: bool) -> _Part:
    """What the system takes at once goes by aiohttp, which keeps what it is given until the last byte is gone. It gets
    a copy of the next few bytes, and says when those are gone. ``begun``: the headers are written."""
    connection = exchange.request.protocol
    assert isinstance(connection, Connection) and connection.wire is not None
    now = connection.wire.send_now(piece) if begun else 0
    exchange.request.writer.output_size += now
    most = HTTP_TLS_WRITE_SIZE if exchange.request.secure else ALLOWANCE_SIZE
    rest = bytes(piece[now : now + most])
    return _Part(now + len(rest), rest)


def _validators(version: Version, extra: Extra) -> dict[str, str]:
    """What a 304 says as well: what is kept of the answer, and how long, is renewed."""
    return {
        "ETag": format_etag(version),
        "Last-Modified": _http_date(version.modified),
        CACHE_CONTROL: extra(version).get(CACHE_CONTROL) or version.headers.get(CACHE_CONTROL, REVALIDATE),
    }


@lru_cache(1024)  # many objects are of one second, and the calendar is slow
def _http_date(seconds: int) -> str:
    return formatdate(seconds, usegmt=True)


def _headers(version: Version, extra: Extra) -> dict[str, str]:
    kept = {name: version.headers[name] for name in (*KEPT, REPR_DIGEST) if name in version.headers}
    return {
        "Content-Type": "application/octet-stream",
        **kept,
        **extra(version),
        **_validators(version, extra),
        "Accept-Ranges": "bytes",
        **SANDBOX,
    }
