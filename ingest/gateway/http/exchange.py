"""One request and what belongs to its answer, as the APIs see it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from aiohttp import HttpVersion11, web

from ingest import __version__
from ingest.gateway.http.download_links import DownloadLinks
from ingest.gateway.http.failures import ClientGoneError, Failure
from ingest.gateway.http.fields import Fields
from ingest.gateway.http.node_figures import NodeFigures
from ingest.gateway.http.request_body import RequestBody
from ingest.gateway.http.request_target import Target, decode_name, parse_query
from ingest.objects.collector import Collected
from ingest.objects.object_store import ObjectStore
from ingest.runtime.cache_policy import CACHE_CONTROL, FENCE, NO_STORE
from ingest.runtime.heartbeat import Heart
from ingest.store.possession import Possession

_ALWAYS = {"Server": f"ingest/{__version__}", **FENCE}

Handler = Callable[["Exchange"], Awaitable[web.StreamResponse]]
Collect = Callable[[bool], Awaitable[Collected]]  # True: only says what it would delete; `Collector.run`
ReadChunk = Callable[[str], Awaitable[bytes]]  # the 1458 bytes of a ticket; errors of `ChunkStore.get`


@dataclass(frozen=True, slots=True)
class Services:
    """What the APIs work with. ``collect``: None where there is nothing to collect."""

    store: ObjectStore
    read_chunk: ReadChunk
    figures: NodeFigures
    links: DownloadLinks
    collect: Collect | None = None
    possession: Possession | None = None  # of the data directory, which the process looks at
    hearts: Mapping[str, Heart] = field(default_factory=dict)  # of the gateway's processes, by name
    check_ready: Callable[[], None] | None = None  # raises what keeps this process from being of any use
    prove: Callable[[], Awaitable[None]] | None = (
        None  # ForeignStoreError when the engine is known not to be the right one
    )


@dataclass(slots=True)
class Exchange:
    """``tail``: what the route leaves of the path, undecoded. ``continued``: 100 Continue was sent. ``guarded``: a token
    decides about the answer."""

    request: web.BaseRequest
    headers: Fields
    id: str
    target: Target
    tail: str
    services: Services
    continued: bool = False
    guarded: bool = False

    @property
    def store(self) -> ObjectStore:
        return self.services.store

    @property
    def is_head(self) -> bool:
        return self.request.method == "HEAD"

    @property
    def name(self) -> str:
        """The name of an object that the tail is. Failure 400; 404 when there is none."""
        if not self.tail:
            raise no_route()
        return decode_name(self.tail)

    @property
    def query(self) -> dict[str, str]:
        return parse_query(self.target.query)

    def mark(self, headers: MutableMapping[str, str]) -> None:
        """To be called with the headers of an answer by who prepares it himself."""
        mark(headers, self.id, self.guarded)

    def accepts_html(self) -> bool:
        return "text/html" in self.headers.get("Accept", "").lower()

    # --- the body of the request

    @property
    def size(self) -> int | None:
        """Of the body, when it is known before it comes. Failure 411, 501."""
        headers = self.headers
        if "Transfer-Encoding" in headers:
            if headers["Transfer-Encoding"].strip().lower() != "chunked":
                raise Failure(
                    501, "transfer_encoding", "the only transfer encoding that is known here is chunked"
                )
            return None
        if "Content-Length" not in headers and self.request.version < HttpVersion11:
            raise Failure(411, "length_required", "over HTTP/1.0 a body needs its Content-Length")
        return int(headers.get("Content-Length", 0))

    def body(self) -> RequestBody:
        """To be read once. Failure 411, 417, 501."""
        return RequestBody(self.request, self.size, self._say_continue if self.expects_continue else None)

    @property
    def expects_continue(self) -> bool:
        """Failure 417 for an expectation that nobody knows."""
        expected = self.headers.get("Expect")
        if expected is None or self.request.version < HttpVersion11:
            return False
        if expected.lower() != "100-continue":
            raise Failure(
                417, "expectation_failed", "the only expectation that is known here is 100-continue"
            )
        return True

    async def _say_continue(self) -> None:
        """ClientGoneError."""
        self.continued = True
        writer = self.request.writer
        try:
            await writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        except ConnectionError as error:
            raise ClientGoneError(str(error)) from None
        writer.output_size = 0  # the answer itself has not begun


def mark(headers: MutableMapping[str, str], id_: str, guarded: bool) -> None:
    """Completes the headers of an answer: what every answer has, and who may keep it when it does not say so itself.
    ``guarded``: a token decides about it. Who prepares an answer himself calls this; all others get it on the way out."""
    headers["X-Request-Id"] = id_
    headers.update(_ALWAYS)
    headers.setdefault(CACHE_CONTROL, NO_STORE)
    if guarded:
        headers["Vary"] = f"{headers['Vary']}, Authorization" if "Vary" in headers else "Authorization"


def no_route() -> Failure:
    return Failure(404, "no_such_route", "there is nothing under this path")


def text_response(text: str) -> web.Response:
    return web.Response(body=text.encode(), headers={"Content-Type": "text/plain; charset=utf-8"})


def json_response(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        status=status,
        body=msgspec.json.encode(content),
        headers={"Content-Type": "application/json", **(headers or {})},
    )
