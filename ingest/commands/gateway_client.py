"""HTTP with a gateway, for the commands: requests, and what is answered as results or as errors of ours. `docs/http.md`."""

from __future__ import annotations

import asyncio
import re
import unicodedata
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlencode, urlsplit

import aiohttp
import msgspec
from yarl import URL

from ingest import __version__, limits
from ingest.commands.object_files import shown
from ingest.errors import (
    AccessError,
    BusyError,
    ConnectionLostError,
    IngestError,
    NameTakenError,
    NoSpaceError,
    NotFoundError,
    PeerError,
    PreconditionError,
    ProtocolError,
    UploadLostError,
    UsageError,
)
from ingest.runtime.fork_guard import ForkGuard
from ingest.tls import client_context

T = TypeVar("T")

# By status. What is not here is a PeerError: the gateway failed, or its engine.
_ERRORS: Mapping[int, type[IngestError]] = {
    400: UsageError,
    401: AccessError,
    403: AccessError,
    404: NotFoundError,
    405: UsageError,
    408: ConnectionLostError,
    409: NameTakenError,
    412: PreconditionError,
    431: UsageError,
    503: BusyError,
    507: NoSpaceError,
}
TYPE = ("Content-Type",)  # what aiohttp would say of our bytes; we don't know


@dataclass(frozen=True)
class GatewayAddress:
    """``url``: of the port that has all APIs, without a slash at its end. ``ca``: PEM; None: what the system trusts."""

    url: str
    token: str | None = field(default=None, repr=False)
    ca: Path | None = None

    def __post_init__(self) -> None:
        """UsageError. What may be a password is in no message: it may have any characters, not encoded as they should be, so
        all that has an @ is refused, wherever that stands."""
        if "@" in unicodedata.normalize("NFKC", self.url):
            raise UsageError("no password goes into the URL of a gateway: a token does into --token-file")
        try:
            parts = urlsplit(self.url)
            fits = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port)
        except ValueError:  # of the port, or of an IPv6 address
            fits = False
        if not fits:
            raise UsageError(
                f"{shown(_bare(self.url))} is no gateway: http://HOST:PORT is, or https://HOST:PORT"
            )
        if parts.query or parts.fragment:
            raise UsageError(f"{shown(_bare(self.url))}: the URL of a gateway ends before a ? or #")
        if self.ca is not None and parts.scheme != "https":
            raise UsageError(f"--tls-ca: {shown(_bare(self.url))} is spoken to without TLS, https:// is with")


def _bare(url: str) -> str:
    """For a message: without a query, in which a token may be."""
    return re.split("[?#]", url)[0]


class _Complaint(msgspec.Struct):
    """The JSON of an answer that is none."""

    code: str
    message: str
    request_id: str = ""


class UploadBody:
    """What is uploaded: its bytes, once, of exactly ``size`` when that is known.

    The last piece is held back until the end has been seen, so that a gateway never has all the bytes of what turns out to
    be longer. ``patience`` runs while the gateway is waited for, and not while the source is.
    """

    def __init__(self, source: AsyncIterable[bytes], size: int | None, patience: asyncio.Timeout) -> None:
        self._source = source
        self._size = size
        self._patience = patience
        self.error: BaseException | None = None  # of the source
        self._taken = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        if self._taken:
            # aiohttp repeats a PUT when a connection that it kept turns out to be closed: with what is left of the bytes.
            raise ConnectionLostError("the connection ended, and what was sent of the bytes is gone")
        self._taken = True
        return self._pieces()

    async def _pieces(self) -> AsyncIterator[bytes]:
        held, size = b"", 0
        try:
            self._patience.reschedule(None)
            async for piece in self._source:
                size += len(piece)
                if self._size is not None and size > self._size:
                    raise UploadLostError(f"more than the {self._size:,} bytes that there were: it grew")
                if held:
                    self._wait()
                    yield held
                    self._patience.reschedule(None)
                held = piece
            if self._size is not None and size < self._size:
                raise UploadLostError(f"{size:,} of {self._size:,} bytes: it was cut")
        except Exception as error:
            self.error = error
            raise
        self._wait()
        if held:
            yield held

    def _wait(self) -> None:
        self._patience.reschedule(asyncio.get_running_loop().time() + limits.GATEWAY_SILENCE_S)


class GatewayClient:
    """An asynchronous context. Its methods raise what `_ERRORS` has, ConnectionLostError, and ProtocolError for what is no
    gateway; ForkedError after a fork. ``path`` is percent-encoded."""

    def __init__(self, address: GatewayAddress) -> None:
        self._guard = ForkGuard("this client of a gateway")
        self._address = address
        self._base = address.url.rstrip("/")
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        headers = {"User-Agent": f"ingest/{__version__}", "Accept-Encoding": "identity"}
        if self._address.token is not None:
            headers["Authorization"] = f"Bearer {self._address.token}"
        tls = client_context(self._address.ca) if self._base.startswith("https:") else True
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=tls),
            headers=headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,  # an object that its uploader compressed stays so
            read_bufsize=limits.HTTP_READ_SIZE,
            max_field_size=2 * limits.KEPT_HEADERS_SIZE_MAX,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None and not self._guard.forked:
            await self._session.close()

    async def ask(
        self,
        kind: type[T],
        path: str,
        query: Mapping[str, str] | None = None,
        *,
        method: str = "GET",
        silence: float | None = None,
    ) -> T:
        """The JSON of an answer. ``silence``: seconds to wait for it, if not the usual ones."""
        async with self._request(method, path, query, silence or limits.GATEWAY_SILENCE_S) as response:
            return await self._parse(kind, response)

    @asynccontextmanager
    async def download(self, path: str) -> AsyncIterator[aiohttp.StreamReader]:
        """The bytes of an object. Reading them raises what `lost` explains."""
        async with self._request("GET", path, None, limits.GATEWAY_SILENCE_S) as response:
            yield response.content

    async def upload(
        self, kind: type[T], method: str, path: str, source: AsyncIterable[bytes], size: int | None
    ) -> T | None:
        """The JSON of the answer, None where there is none. ``size``: None sends chunks.

        The gateway is asked before it gets anything: when it refuses the request, ``source`` is as it was.
        """
        # Of nothing the gateway would have all before we have seen that there is nothing: so nothing is sent as chunks.
        headers = {"Content-Length": str(size)} if size else {}
        try:
            async with asyncio.timeout(limits.GATEWAY_SILENCE_S) as patience:
                body = UploadBody(source, size, patience)
                # The body's own clock: aiohttp's would start when the request may go on, and run on while it does.
                request = self._request(
                    method,
                    path,
                    None,
                    None,
                    data=body,
                    headers=headers,
                    expect100=True,
                    skip_auto_headers=TYPE,
                )
                try:
                    async with request as response:
                        return None if response.status == 204 else await self._parse(kind, response)
                except IngestError:
                    if body.error is not None:
                        raise body.error from None
                    raise
        except TimeoutError as error:
            raise self.lost(error) from None

    @asynccontextmanager
    async def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        silence: float | None,
        **more: Any,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """An answer that is a success."""
        self._guard.check()
        assert self._session is not None
        # Encoded already, and not to be tidied up: `..` may be the name of an object.
        url = URL(f"{self._base}{path}" + (f"?{urlencode(query)}" if query else ""), encoded=True)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=limits.CLIENT_TIMEOUT_S, sock_read=silence)
        try:
            async with self._session.request(
                method, url, allow_redirects=False, timeout=timeout, **more
            ) as response:
                if not 200 <= response.status < 300:
                    raise await self._refusal(response)
                yield response
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self.lost(error) from error

    async def _content(self, response: aiohttp.ClientResponse) -> bytes:
        found = bytearray()
        async for piece in response.content.iter_any():
            found += piece
            if len(found) > limits.GATEWAY_ANSWER_MAX:
                raise self._stranger(f"an answer of more than {limits.GATEWAY_ANSWER_MAX:,} bytes")
        return bytes(found)

    async def _parse(self, kind: type[T], response: aiohttp.ClientResponse) -> T:
        content = await self._content(response)
        try:
            return msgspec.json.decode(content, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError):  # ValidationError is one
            found = response.headers.get("Content-Type", "something")
            raise self._stranger(f"it answers {found}, and not what is expected") from None

    def _stranger(self, what: str) -> ProtocolError:
        return ProtocolError(f"{shown(self._base)} is no gateway of this version: {shown(what)}")

    async def _refusal(self, response: aiohttp.ClientResponse) -> IngestError:
        """What an answer other than success means."""
        status, headers = response.status, response.headers
        if 300 <= status < 400:
            place = shown(headers.get("Location", "nowhere"))
            return ProtocolError(
                f"{shown(self._base)} sends us on to {place}: --gateway names the gateway itself"
            )
        content = await self._content(response)
        kind = headers.get("Content-Type", "")
        try:
            said = msgspec.json.decode(content, type=_Complaint)
        except (msgspec.DecodeError, UnicodeDecodeError):
            if not kind.startswith("text/plain") or "X-Request-Id" not in headers:
                return self._stranger(f"{status} {response.reason or ''}, {kind or 'without content'}")
            said = _Complaint("", content.decode(errors="replace"))  # an API with texts of its own
        message = shown(" ".join(said.message.split()))
        if said.code == "no_such_route":
            return self._stranger(f"it has no {response.url.path}; --gateway is the port that has all APIs")
        if status in (401, 403) and self._address.token is None:
            message += "; --token-file or INGEST_TOKEN gives one"
        if status >= 500 and said.request_id:
            message += f" (request {shown(said.request_id)})"
        return _ERRORS.get(status, PeerError)(message)

    def lost(self, error: Exception) -> IngestError:
        """What became of a connection."""
        gateway = shown(self._base)
        if isinstance(error, (aiohttp.ClientConnectorCertificateError, aiohttp.ClientSSLError)):
            return ConnectionLostError(f"{gateway}: TLS failed: {error}; --tls-ca says whom to trust")
        if isinstance(error, aiohttp.ClientConnectorError):
            return ConnectionLostError(f"{gateway}: no gateway can be reached: {error.strerror or error}")
        if isinstance(error, TimeoutError):
            return ConnectionLostError(f"{gateway}: the gateway was silent for too long")
        if isinstance(error, aiohttp.ClientResponseError):
            return self._stranger(f"what it answers is no HTTP: {error.message}")
        if isinstance(error, aiohttp.ClientPayloadError):
            return ConnectionLostError(f"{gateway}: the answer ended early")
        return ConnectionLostError(f"{gateway}: the connection ended: {shown(str(error))}")
