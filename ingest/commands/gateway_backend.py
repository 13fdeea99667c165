"""Objects of a gateway, over HTTP: a `Backend` for the object commands. Its routes: `docs/http.md`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Sequence
from contextlib import AsyncExitStack
from datetime import datetime
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import quote

import aiohttp
import msgspec

from ingest import limits, ticket
from ingest.catalog.catalog_reader import Entry, Garbage
from ingest.catalog.extent import Extent
from ingest.catalog.version import Transition, Version, VersionState, check_name, check_namespace, check_text
from ingest.commands.backend import Facts
from ingest.commands.gateway_client import GatewayAddress, GatewayClient
from ingest.errors import NotFoundError, ProtocolError, TicketError, UsageError
from ingest.objects.collector import Collected, Refusal
from ingest.status import Status

T = TypeVar("T")

# How the API of a namespace takes an object: methods that are tried until one is not refused with 404, and where.
_PUTS: dict[str, tuple[tuple[str, ...], str]] = {
    "objects": (("PUT",), "/objects/"),
    "store": (("PUT", "POST"), "/store/"),  # the one replaces, the other makes
    "files": (("POST",), "/files/"),
    "blob": (("POST",), "/blob/"),
    "sos": (("POST",), "/upload"),
}
_DELETES = {"objects": "/objects/", "store": "/store/"}
_CONTENT = "sos"  # its names are the SHA-1 of the bytes
_LOOKS_MAX = 100  # at a name that changes, as downloads of a node have


class _Step(msgspec.Struct):
    version: int
    state: str
    time: datetime
    reason: str
    size: int


class _Version(msgspec.Struct):
    """What `GET /catalog/version` answers."""

    name: str
    namespace: str
    size: int
    etag: str
    id: str
    version: int
    created: datetime
    headers: dict[str, str]
    extents: list[tuple[str, int]]
    history: list[_Step]

    def parse(self) -> tuple[Version, list[Transition]]:
        """ValueError."""
        digest = bytes.fromhex(self.etag)
        extents = tuple(Extent(ticket.parse(first), count) for first, count in self.extents)
        if len(digest) != 32 or not extents or ticket.format(extents[0].first) != self.id:
            raise ValueError("no digest, or no place")
        version = Version(
            self.version,
            self.namespace,
            self.name,
            VersionState.OK,
            self.size,
            digest,
            self.created.timestamp(),
            extents,
            self.headers,
        )
        return version, [
            Transition(step.version, step.time.timestamp(), _state(step.state), step.reason, step.size)
            for step in self.history
        ]


class _Stored(msgspec.Struct):
    """What an upload answers: all of it, or what the API calls its id (the name), or nothing."""

    id: str | None = None
    name: str | None = None
    size: int = 0
    etag: str | None = None
    version: int | None = None


class _Entry(msgspec.Struct):
    name: str
    size: int
    etag: str
    created: datetime


class _Page(msgspec.Struct):
    objects: list[_Entry]
    next: str | None


class _Refusal(msgspec.Struct):
    entry: int
    first: str
    count: int
    status: str


class _Collected(msgspec.Struct):
    tickets: int
    entries: int
    processes: int
    forgotten: int
    refused: list[_Refusal]

    def parse(self) -> Collected:
        """ValueError."""
        refused = [
            Refusal(Garbage(one.entry, None, Extent(ticket.parse(one.first), one.count)), Status[one.status])
            for one in self.refused
        ]
        return Collected(self.processes, self.entries, self.tickets, self.forgotten, refused)


def _state(name: str) -> VersionState:
    """ValueError."""
    try:
        return VersionState[name.upper()]
    except KeyError:
        raise ValueError(f"no state: {name}") from None


class GatewayDownload:
    """Implements `Download`; it is read once, from its beginning."""

    def __init__(
        self, version: Version, content: aiohttp.StreamReader, client: GatewayClient, stack: AsyncExitStack
    ) -> None:
        self.version = version
        self._content = content
        self._client = client
        self._stack = stack

    async def read(self, start: int = 0, stop: int | None = None) -> AsyncGenerator[bytes, None]:
        assert start == 0 and stop is None, "parts are not asked for"
        size = 0
        try:
            async for piece in self._content.iter_any():
                size += len(piece)
                if size > self.version.size:  # of one that never ends the disk would be full
                    raise ProtocolError(
                        f"object {self.version.name!r}: more than its {self.version.size:,} bytes came"
                    )
                yield piece
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self._client.lost(error) from error

    async def close(self) -> None:
        await self._stack.aclose()


class GatewayBackend:
    """Implements `Backend`."""

    def __init__(self, address: GatewayAddress) -> None:
        self._client = GatewayClient(address)

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.__aexit__(kind, error, trace)

    def names_content(self, namespace: str) -> bool:
        _served(namespace, _PUTS)
        return namespace == _CONTENT

    async def put(
        self, namespace: str, name: str, body: AsyncIterable[bytes], *, size: int | None = None
    ) -> Facts:
        methods, path = _served(namespace, _PUTS)
        if namespace != _CONTENT:
            path += _quoted(name)
        one = await self._upload(methods, path, body, size) or _Stored()
        if one.id is not None and one.name is not None and one.etag is not None and one.version is not None:
            return Facts(one.name, namespace, one.id, one.size, one.etag, one.version)
        # This API says less. When somebody has replaced what we stored since, the caller sees it by the digest.
        version, _ = await self.describe(namespace, one.id or name)
        return Facts.of(version)

    async def _upload(
        self, methods: Sequence[str], path: str, body: AsyncIterable[bytes], size: int | None
    ) -> _Stored | None:
        *others, last = methods
        for method in others:
            try:
                return await self._client.upload(_Stored, method, path, body, size)
            except NotFoundError:
                pass
        return await self._client.upload(_Stored, last, path, body, size)

    async def open(self, namespace: str, name: str) -> GatewayDownload:
        for _ in range(_LOOKS_MAX - 1):
            version, _ = await self.describe(namespace, name)
            try:
                return await self._open(version)
            except NotFoundError:
                continue  # replaced since the look, or deleted: then the next look says so
        return await self._open(version)

    async def open_object(self, object_id: str) -> GatewayDownload:
        ticket.parse(object_id)
        return await self._open((await self._describe({"id": object_id}))[0])

    async def _open(self, version: Version) -> GatewayDownload:
        async with AsyncExitStack() as stack:
            content = await stack.enter_async_context(self._client.download(f"/id/{version.object_id}"))
            return GatewayDownload(version, content, self._client, stack.pop_all())

    async def page(self, namespace: str, prefix: str, after: str) -> list[Entry]:
        check_text(prefix, "prefix")
        query = {"namespace": check_namespace(namespace), "prefix": prefix, "after": after}
        found = await self._client.ask(_Page, "/catalog/objects", query)
        if found.objects and found.objects[-1].name.encode() <= after.encode():
            raise ProtocolError(
                "the gateway lists names again that it has listed: there would be no end of it"
            )
        return [Entry(one.name, one.size, one.etag, one.created.timestamp()) for one in found.objects]

    async def describe(self, namespace: str, name: str) -> tuple[Version, list[Transition]]:
        return await self._describe({"namespace": check_namespace(namespace), "name": check_name(name)})

    async def _describe(self, query: dict[str, str]) -> tuple[Version, list[Transition]]:
        found = await self._client.ask(_Version, "/catalog/version", query)
        try:
            return found.parse()
        except ValueError as error:
            raise ProtocolError(f"the gateway describes an object wrongly: {error}") from None

    async def delete(self, namespace: str, name: str) -> None:
        path = _served(namespace, _DELETES) + _quoted(name)
        await self._client.ask(_Stored, path, method="DELETE")

    async def collect(self, dry_run: bool) -> Collected:
        method = "GET" if dry_run else "POST"
        done = await self._client.ask(
            _Collected, "/gc", method=method, silence=limits.GATEWAY_COLLECT_SILENCE_S
        )
        try:
            return done.parse()
        except (KeyError, ValueError, TicketError) as error:
            raise ProtocolError(f"the gateway says wrongly what it collected: {error}") from None


def _served(namespace: str, table: dict[str, T]) -> T:
    """UsageError when the gateway has no such route for a namespace."""
    try:
        return table[namespace]
    except KeyError:
        pass
    if namespace in _PUTS:
        raise UsageError(f"in the namespace {namespace!r} of a gateway objects are never deleted")
    names = ", ".join(table)
    raise UsageError(f"no API of a gateway is for the namespace {namespace!r}: {names} are, see docs/http.md")


def _quoted(name: str) -> str:
    """One segment of a path. UsageError."""
    return quote(check_name(name), safe="")
