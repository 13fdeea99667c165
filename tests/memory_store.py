"""An `ObjectStore` in memory, with the semantics of the real one: versions, conditions, histories, whole downloads.

It says what the gateway may rely on, and lets its tests see every state; the same tests run against a node.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Mapping

from blake3 import blake3
from msgspec.structs import replace

from ingest import ticket
from ingest.catalog.catalog_reader import Entry
from ingest.catalog.extent import FIRST, Extent, chunks_needed
from ingest.catalog.version import (
    ANY,
    SAME,
    Condition,
    Transition,
    Version,
    VersionState,
    check_name,
    check_namespace,
)
from ingest.errors import IngestError, NotFoundError, UploadLostError
from ingest.limits import DATA_SIZE, LIST_PAGE_MAX
from ingest.objects.body import Body, as_body

PIECE = 64 << 10  # bytes that a download gives at a time


class MemoryDownload:
    def __init__(self, store: MemoryStore, version: Version, data: bytes) -> None:
        self.version = version
        self._store = store
        self._data = data
        self._open = True
        self._taken = 0
        self._piece = bytearray()
        store.open_downloads += 1

    async def read(self, start: int = 0, stop: int | None = None) -> AsyncGenerator[bytes, None]:
        assert self._open
        stop = self.version.size if stop is None else min(stop, self.version.size)
        at = start
        while at < stop:
            if self._store.broken_from is not None and at >= self._store.broken_from:
                raise self._store.error
            self._piece = bytearray(self._data[at : min(at + PIECE, stop)])
            self._taken = len(self._piece)
            yield memoryview(self._piece)  # type: ignore[misc]  # as a `PinnedDownload` does
            at += self._taken

    def took(self, count: int) -> None:
        self._taken = count
        self._piece.clear()  # BufferError when somebody has a view of it

    async def close(self) -> None:
        assert self._open
        self._open = False
        self._store.open_downloads -= 1


class MemoryStore:
    """``error``: raised by downloads from byte ``broken_from`` on, and by uploads when ``full`` is set (a disk that is)."""

    def __init__(self) -> None:
        self.live: dict[tuple[str, str], tuple[Version, bytes]] = {}
        self.transitions: dict[tuple[str, str], list[Transition]] = {}
        self.error: IngestError = UploadLostError("")
        self.broken_from: int | None = None
        self.full = False
        self.open_downloads = 0
        self._number = 0
        self._next = FIRST

    async def put(
        self,
        namespace: str,
        name: str | Callable[[], str],
        body: Body | AsyncIterable[bytes],
        *,
        size: int | None = None,
        headers: Mapping[str, str] | None = None,
        condition: Condition = ANY,
    ) -> Version:
        if isinstance(name, str):
            await self.check(namespace, name, condition)
        self._number += 1
        number = self._number
        steps = [(VersionState.PENDING, "upload began")]
        try:
            data = await self._gather(as_body(body), size)
        except BaseException as error:
            if isinstance(name, str):
                steps.append((VersionState.FAILED, f"upload broke: {error}"))
                self._note(namespace, name, number, steps, 0)
            raise
        if not isinstance(name, str):
            name = name()
        key = check_namespace(namespace), check_name(name)
        digest = blake3(data).digest()
        present = self.live.get(key)
        if condition == SAME and present is not None and present[0].digest == digest:
            self._note(
                namespace, name, number, [*steps, (VersionState.FAILED, "these bytes were stored already")], 0
            )
            return present[0]
        try:
            condition.check(name, present and present[0], digest)
        except IngestError as error:
            self._note(namespace, name, number, [*steps, (VersionState.FAILED, str(error))], 0)
            raise
        if present is not None:
            self._end(present[0], f"replaced by version {number}")
        count = chunks_needed(len(data)) + 1
        now = time.time()  # its history says the same second as itself
        extents = (Extent(self._next, count),)
        self._next += count
        version = Version(
            number,
            namespace,
            name,
            VersionState.OK,
            len(data),
            digest,
            now,
            extents,
            dict(headers or {}),
        )
        self.live[key] = version, bytes(data)
        self._note(namespace, name, number, [*steps, (VersionState.OK, "all chunks saved")], len(data), now)
        return version

    async def _gather(self, source: Body, size: int | None) -> bytearray:
        data, piece = bytearray(), bytearray(PIECE)
        while not source.ended:
            data += piece[: await source.fill(memoryview(piece))]
            if self.full:
                raise self.error
        if size is not None and len(data) != size:
            raise UploadLostError(f"the body ended after {len(data)} of {size} bytes")
        return data

    async def check(self, namespace: str, name: str, condition: Condition) -> None:
        present = self.live.get((check_namespace(namespace), check_name(name)))
        condition.check(name, present and present[0])

    async def open(self, namespace: str, name: str) -> MemoryDownload:
        return MemoryDownload(self, *self._find(namespace, name))

    async def open_object(self, object_id: str) -> MemoryDownload:
        return MemoryDownload(self, *self._find_object(object_id))

    async def stat(self, namespace: str, name: str) -> Version:
        return self._find(namespace, name)[0]

    async def stat_object(self, object_id: str) -> Version:
        return self._find_object(object_id)[0]

    async def delete(self, namespace: str, name: str, condition: Condition = ANY) -> Version:
        present = self.live.get((namespace, name))
        condition.check(name, present and present[0])
        version, _ = self._find(namespace, name)
        self._end(version, "deleted")
        del self.live[namespace, name]
        return replace(version, state=VersionState.DELETED)

    async def page(
        self, namespace: str, prefix: str = "", after: str = "", limit: int = LIST_PAGE_MAX
    ) -> list[Entry]:
        names = sorted(
            (n for s, n in self.live if s == namespace and n.startswith(prefix) and n > after),
            key=str.encode,
        )
        found = [self.live[namespace, n][0] for n in names[: min(limit, LIST_PAGE_MAX)]]
        return [Entry(v.name, v.size, v.etag, v.created) for v in found]

    async def namespaces(self) -> list[str]:
        return sorted({namespace for namespace, _ in self.transitions})

    async def history(self, namespace: str, name: str) -> list[Transition]:
        found = self.transitions.get((namespace, name))
        if not found:
            raise NotFoundError(f"there is no object {name!r}, and none is known to have been")
        return found[::-1]

    async def shares_second(self, version: Version) -> bool:
        return any(
            step.state is VersionState.OK
            and step.version != version.number
            and int(step.time) == version.modified
            for step in self.transitions.get((version.namespace, version.name), [])
        )

    async def read_chunk(self, name: str) -> bytes:
        """What the engine has under a ticket: the chunks of live objects, and zeros where a manifest would be."""
        index = ticket.parse(name)
        for version, data in self.live.values():
            (extent,) = version.extents
            if extent.first <= index < extent.stop:
                at = (index - extent.first) * DATA_SIZE
                return data[at : at + DATA_SIZE].ljust(DATA_SIZE, b"\0")
        raise NotFoundError("nothing is stored there")

    def _find(self, namespace: str, name: str) -> tuple[Version, bytes]:
        try:
            return self.live[namespace, name]
        except KeyError:
            raise NotFoundError(f"there is no object {name!r}") from None

    def _find_object(self, object_id: str) -> tuple[Version, bytes]:
        ticket.parse(object_id)
        for version, data in self.live.values():
            if version.object_id == object_id:
                return version, data
        raise NotFoundError(f"there is no object with the id {object_id}")

    def _end(self, version: Version, reason: str) -> None:
        self._note(
            version.namespace, version.name, version.number, [(VersionState.DELETED, reason)], version.size
        )

    def _note(
        self,
        namespace: str,
        name: str,
        number: int,
        steps: list[tuple[VersionState, str]],
        size: int,
        now: float | None = None,
    ) -> None:
        now = time.time() if now is None else now
        kept = self.transitions.setdefault((namespace, name), [])
        kept += [Transition(number, now, state, reason, size) for state, reason in steps]
