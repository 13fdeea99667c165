"""What all who change a catalog have in common, wherever the catalog is: the calls, and what a cancelled one leaves."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from abc import ABC, abstractmethod
from collections import defaultdict, deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

from ingest.catalog.catalog_access import CatalogAccess
from ingest.catalog.catalog_reader import Garbage
from ingest.catalog.extent import Extent
from ingest.catalog.version import ANY, Condition, Version
from ingest.errors import ConnectionLostError, IngestError
from ingest.limits import HISTORY_KEPT_S, OWNER_DEADLINE_S, VERSIONS_RESERVED

T = TypeVar("T")
Pin: TypeAlias = tuple[int, int, int]  # owner, version, reader


class CatalogCaller(CatalogAccess, ABC):
    """`CatalogAccess` over ``_ask``. Belongs to one event loop."""

    def __init__(self) -> None:
        self._numbers: deque[int] = deque()
        self._refill = asyncio.Lock()
        self._readers: defaultdict[tuple[int, int], list[int]] = defaultdict(list)  # numbers of pins
        self._last_reader = 0
        self._unsure: list[
            Pin
        ] = []  # to be unpinned: made or not, its caller was told that the catalog is away
        self._undoing: set[asyncio.Task[None]] = set()

    @abstractmethod
    async def _ask(self, kind: Any, call: str, *arguments: Any) -> Any:
        """Makes a call. Returns what it returns, which is of ``kind``; raises what it raises, and ConnectionLostError."""

    async def bound(self) -> None:
        await self._ask(None, "bound")

    async def enter(self, what: str, lasting: float = OWNER_DEADLINE_S) -> int:
        return int(await self._ask(int, "enter", what, lasting))

    async def enter_alone(self, what: str, lasting: float = OWNER_DEADLINE_S) -> int:
        # Asked once more, it finds its own owner by the token.
        return int(await self._ask(int, "enter_alone", what, lasting, secrets.token_hex(8)))

    async def renew(self, owner: int, lasting: float = OWNER_DEADLINE_S) -> None:
        await self._ask(None, "renew", owner, lasting)
        with contextlib.suppress(IngestError):  # the next sign of life is the next try
            while self._unsure:
                await self._unpin(self._unsure.pop())

    async def leave(self, owner: int) -> None:
        await self._ask(None, "leave", owner)

    async def expire(self) -> int:
        return int(await self._ask(int, "expire"))

    async def lease(self, owner: int | None, count: int, what: str = "") -> Extent:
        async def undo(lease: Extent) -> None:
            if owner is not None:
                await self.give_back(owner, lease)

        return await self._ask_or_undo(undo, Extent, "lease", owner, count, what)

    async def discard(self, owner: int, extents: Sequence[Extent]) -> None:
        await self._ask(None, "discard", owner, extents)

    async def forgo(self, owner: int, place: Extent, version: int | None = None) -> None:
        await self._ask(None, "forgo", owner, place, version)

    async def conflicted(self, owner: int, index: int, version: int | None = None) -> None:
        await self._ask(None, "conflicted", owner, index, version)

    async def give_back(self, owner: int, lease: Extent) -> None:
        await self._ask(None, "give_back", owner, lease)

    async def reserve(self, count: int) -> range:
        numbers: range = await self._ask(range, "reserve", count)
        return numbers

    async def begin(
        self,
        owner: int,
        namespace: str,
        name: str,
        headers: Mapping[str, str] = {},
        condition: Condition = ANY,
    ) -> int:
        async def undo(number: int) -> None:
            await self.fail(owner, number, "given up before its first byte")

        number = await self._number()  # reserved, so that a call that is made twice begins one version
        return await self._ask_or_undo(undo, int, "begin", owner, namespace, name, headers, condition, number)

    async def extend(self, owner: int, version: int, count: int) -> Extent:
        extent: Extent = await self._ask(Extent, "extend", owner, version, count)
        return extent

    async def commit(
        self,
        owner: int,
        version: int,
        size: int,
        digest: bytes,
        extents: Sequence[Extent],
        condition: Condition = ANY,
        name: str | None = None,
        order: int = 0,
    ) -> Version:
        found: Version = await self._ask(
            Version, "commit", owner, version, size, digest, extents, condition, name, order
        )
        return found

    async def store(
        self,
        owner: int,
        namespace: str,
        name: str,
        size: int,
        digest: bytes,
        extents: Sequence[Extent],
        headers: Mapping[str, str] = {},
        condition: Condition = ANY,
        *,
        number: int,
        order: int = 0,
    ) -> Version:
        found: Version = await self._ask(
            Version, "store", owner, namespace, name, size, digest, extents, headers, condition, number, order
        )
        return found

    async def fail(self, owner: int, version: int, reason: str) -> None:
        await self._ask(None, "fail", owner, version, reason)

    async def delete(
        self, namespace: str, name: str, condition: Condition = ANY, reason: str = "deleted"
    ) -> Version:
        found: Version = await self._ask(Version, "delete", namespace, name, condition, reason)
        return found

    async def pin(self, owner: int, version: int) -> None:
        self._last_reader += 1
        pin = (owner, version, self._last_reader)

        async def undo(_: None) -> None:
            await self._unpin(pin)

        try:
            await self._ask_or_undo(undo, None, "pin", *pin)
        except ConnectionLostError:
            self._unsure.append(pin)
            raise
        self._readers[owner, version].append(pin[2])

    async def unpin(self, owner: int, version: int) -> None:
        readers = self._readers[owner, version]
        assert readers, f"version {version} is not pinned"
        reader = readers.pop()
        if not readers:
            del self._readers[owner, version]
        await self._unpin((owner, version, reader))

    async def _unpin(self, pin: Pin) -> None:
        try:
            await self._ask(None, "unpin", *pin)
        except IngestError:
            self._unsure.append(pin)
            raise

    async def collected(self, garbage: Sequence[Garbage]) -> None:
        await self._ask(None, "collected", garbage)

    async def forget(self, kept: float = HISTORY_KEPT_S, limit: int = 1000) -> int:
        return int(await self._ask(int, "forget", kept, limit))

    async def _number(self) -> int:
        async with self._refill:
            if not self._numbers:
                self._numbers.extend(await self.reserve(VERSIONS_RESERVED))
            return self._numbers.popleft()

    async def _ask_or_undo(
        self, undo: Callable[[T], Coroutine[Any, Any, None]], kind: type[T] | None, call: str, *arguments: Any
    ) -> T:
        """As ``_ask``. A caller that is cancelled meanwhile does not learn what it got: it is given up again."""
        asked: asyncio.Task[T] = asyncio.ensure_future(self._ask(kind, call, *arguments))
        try:
            return await asyncio.shield(asked)
        except asyncio.CancelledError:
            task = asyncio.create_task(_undo(asked, undo))
            self._undoing.add(task)
            task.add_done_callback(self._undoing.discard)
            raise


async def _undo(asked: asyncio.Task[T], undo: Callable[[T], Coroutine[Any, Any, None]]) -> None:
    try:
        await undo(await asked)
    except IngestError:
        pass  # it was not made, or the catalog is out of reach: its owner's end takes the rest
