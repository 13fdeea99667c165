"""One namespace under two names: `blob` and `sos` are the same, as in the system that their APIs come from.

New objects go to `blob`. What lies in `sos`, where earlier versions of ingest put content, is found under both names, and
never again beside another object of its name: the same bytes are the ones that are there, other bytes are refused.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial

from blake3 import blake3

from ingest.catalog.catalog_reader import Entry
from ingest.catalog.version import ANY, SAME, Condition, Transition, Version
from ingest.errors import NotFoundError
from ingest.limits import LIST_PAGE_MAX
from ingest.objects.body import Body, as_body
from ingest.objects.object_store import ObjectStore, StoredDownload

NEW = "blob"
OLD = "sos"
_NAMES = (NEW, OLD)


class SharedNamespace:
    """An `ObjectStore` over another one, in which both names mean both namespaces. All others are as they are there."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

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
        store = self._store
        if namespace in _NAMES:
            namespace = NEW
            if isinstance(name, str):
                old = await self._old(name)
                if old is not None:
                    condition.check(
                        name, old
                    )  # what it says of this one is done with, and there is none of the other
                    body = _Compared(as_body(body), partial(self._old, name), condition)
                    condition = SAME if condition.same else ANY
            elif await store.page(OLD, limit=1):
                body = _Compared(as_body(body), lambda: self._old(name()), condition)
        try:
            return await store.put(namespace, name, body, size=size, headers=headers, condition=condition)
        except _StoredAlready as found:
            return found.version

    async def _old(self, name: str) -> Version | None:
        """The old version of a name that has no new one."""
        if await _find(self._store, NEW, name) is not None:
            return None
        return await _find(self._store, OLD, name)

    async def check(self, namespace: str, name: str, condition: Condition) -> None:
        if namespace in _NAMES:
            namespace = NEW
            old = await self._old(name)
            if old is not None:
                condition.check(name, old)
                return
        await self._store.check(namespace, name, condition)

    async def open(self, namespace: str, name: str) -> StoredDownload:
        if namespace not in _NAMES:
            return await self._store.open(namespace, name)
        try:
            return await self._store.open(NEW, name)
        except NotFoundError:
            return await self._store.open(OLD, name)

    async def open_object(self, object_id: str) -> StoredDownload:
        return await self._store.open_object(object_id)

    async def stat(self, namespace: str, name: str) -> Version:
        if namespace not in _NAMES:
            return await self._store.stat(namespace, name)
        try:
            return await self._store.stat(NEW, name)
        except NotFoundError:
            return await self._store.stat(OLD, name)

    async def stat_object(self, object_id: str) -> Version:
        return await self._store.stat_object(object_id)

    async def delete(self, namespace: str, name: str, condition: Condition = ANY) -> Version:
        """Both, when the command line has made two of one name: the old one first, so that it does not come to light."""
        if namespace not in _NAMES:
            return await self._store.delete(namespace, name, condition)
        new, old = await _find(self._store, NEW, name), await _find(self._store, OLD, name)
        if new is not None and old is not None:
            condition.check(name, new)
            await self._store.delete(OLD, name)
        return await self._store.delete(OLD if new is None and old is not None else NEW, name, condition)

    async def page(
        self, namespace: str, prefix: str = "", after: str = "", limit: int = LIST_PAGE_MAX
    ) -> list[Entry]:
        if namespace not in _NAMES:
            return await self._store.page(namespace, prefix, after, limit)
        new = await self._store.page(NEW, prefix, after, limit)
        old = await self._store.page(OLD, prefix, after, limit)
        if not old:
            return new
        found = {entry.name: entry for entry in (*old, *new)}
        return [found[name] for name in sorted(found, key=str.encode)][: min(limit, LIST_PAGE_MAX)]

    async def namespaces(self) -> list[str]:
        return await self._store.namespaces()

    async def history(self, namespace: str, name: str) -> list[Transition]:
        if namespace not in _NAMES:
            return await self._store.history(namespace, name)
        found: list[Transition] = []
        for one in _NAMES:
            try:
                found += await self._store.history(one, name)
            except NotFoundError:
                if one == OLD and not found:
                    raise
        return sorted(found, key=lambda step: -step.time)  # stable: of one moment the newest stays first

    async def shares_second(self, version: Version) -> bool:
        namespaces = _NAMES if version.namespace in _NAMES else (version.namespace,)
        return any([await self._store.shares_second(replace(version, namespace=one)) for one in namespaces])


class _StoredAlready(Exception):
    """These bytes are there under this name: no version is made of them."""

    def __init__(self, version: Version) -> None:
        super().__init__("these bytes were stored already")
        self.version = version


class _Compared:
    """A body that may be that of a version which lies elsewhere; ``find`` says of which, when all of it came. With its last
    byte `fill` raises what ``condition`` does, and _StoredAlready when they are the same bytes, and that is all it asks."""

    def __init__(
        self, body: Body, find: Callable[[], Awaitable[Version | None]], condition: Condition
    ) -> None:
        self._body = body
        self._find = find
        self._condition = condition
        self._hash = blake3()

    @property
    def ended(self) -> bool:
        return self._body.ended

    async def fill(self, buffer: memoryview, patience: float | None = None) -> int:
        size = await self._body.fill(buffer, patience)
        self._hash.update(buffer[:size])
        if self._body.ended:
            version = await self._find()
            if version is not None:
                self._condition.check(version.name, version, self._hash.digest())
                if self._condition.same:
                    raise _StoredAlready(version)
        return size

    async def close(self) -> None:
        await self._body.close()


async def _find(store: ObjectStore, namespace: str, name: str) -> Version | None:
    try:
        return await store.stat(namespace, name)
    except NotFoundError:
        return None
