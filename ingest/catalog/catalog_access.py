"""How the catalog is changed: the interface of everyone who uploads, downloads and collects.

On one machine it is `LocalCatalog` (within the process) or `CatalogClient` (through the process that has the catalog);
a cluster brings another one. What is asked, not changed, is asked of a `CatalogReader`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from ingest.catalog.catalog_reader import Garbage
from ingest.catalog.extent import Extent
from ingest.catalog.version import ANY, Condition, Version
from ingest.limits import HISTORY_KEPT_S, OWNER_DEADLINE_S


class CatalogAccess(Protocol):
    """The calls of `Catalog`, where they are explained, each durable when it returns. They may overlap; those that
    one caller begins first are made first.

    Any of them may raise ConnectionLostError: then it may have been made or not. `commit`, `store`, `fail`, `discard`,
    `forgo`, `conflicted`, `give_back`, `unpin` and `leave` may be called again to find out. Others: DiskError, CatalogError.

    A caller that is cancelled while it waits for `begin`, `lease` or `pin` leaves nothing behind: what it would have
    got is given up again.
    """

    async def close(self) -> None:
        """What waits for an answer fails with ConnectionLostError."""

    async def bound(self) -> None: ...

    async def enter(self, what: str, lasting: float = OWNER_DEADLINE_S) -> int: ...
    async def enter_alone(self, what: str, lasting: float = OWNER_DEADLINE_S) -> int: ...
    async def renew(self, owner: int, lasting: float = OWNER_DEADLINE_S) -> None: ...
    async def leave(self, owner: int) -> None: ...
    async def expire(self) -> int: ...

    async def lease(self, owner: int | None, count: int, what: str = "") -> Extent: ...
    async def discard(self, owner: int, extents: Sequence[Extent]) -> None: ...
    async def forgo(self, owner: int, place: Extent, version: int | None = None) -> None: ...
    async def conflicted(self, owner: int, index: int, version: int | None = None) -> None: ...
    async def give_back(self, owner: int, lease: Extent) -> None: ...

    async def reserve(self, count: int) -> range: ...
    async def begin(
        self,
        owner: int,
        namespace: str,
        name: str,
        headers: Mapping[str, str] = {},
        condition: Condition = ANY,
    ) -> int: ...
    async def extend(self, owner: int, version: int, count: int) -> Extent: ...
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
    ) -> Version: ...
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
    ) -> Version: ...
    async def fail(self, owner: int, version: int, reason: str) -> None: ...
    async def delete(
        self, namespace: str, name: str, condition: Condition = ANY, reason: str = "deleted"
    ) -> Version: ...

    async def pin(self, owner: int, version: int) -> None: ...
    async def unpin(self, owner: int, version: int) -> None: ...

    async def collected(self, garbage: Sequence[Garbage]) -> None: ...
    async def forget(self, kept: float = HISTORY_KEPT_S, limit: int = 1000) -> int: ...
