"""One namespace under two names: `blob` and `sos` are the same, as in the system that their APIs come from.

New objects go to `blob`. What lies in `sos`, where earlier versions of ingest put content, is found under both names, and
never again beside another object of its name: the same bytes are the ones that are there, other bytes are refused.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable, Mapping

from blake3 import blake3
from msgspec.structs import replace

from ingest.catalog.catalog_reader import Entry
from ingest.catalog.version import ABSENT, ANY, SAME, Condition, Transition, Version
from ingest.errors import NameTakenError, NotFoundError, PreconditionError
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
        last = condition  # of the new name, when its version is committed
        if namespace in _NAMES:
            namespace = NEW
            if isinstance(name, str):
                old = await self._old(name)
                if old is not None:
                    condition.check(
                        name, old
                    )  # here and with the last byte: the new name knows nothing of it
                    body = _Compared(as_body(body), lambda: name, self._present, condition)
                    last = _beside_old(condition)
            elif await store.page(OLD, limit=1):
                body = _Compared(as_body(body), name, self._present, condition)
        try:
            return await store.put(namespace, name, body, size=size, headers=headers, condition=last)
        except _StoredAlready as found:
            return found.version
        except NameTakenError as error:
            if (
                last is ABSENT and condition is not ABSENT
            ):  # another one was faster than this condition allows
                raise PreconditionError(f"object {name!r} has changed: it was replaced meanwhile") from error
            raise

    async def _present(self, name: str) -> Version | None:
        """What the name shows."""
        return await _find(self._store, NEW, name) or await _find(self._store, OLD, name)

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
    """A body that may be that of a version which lies elsewhere; ``find`` says which one a name shows, when all of it came.
    With its last byte `fill` raises what ``condition`` does, and _StoredAlready when an old version has the same bytes, and
    that is all it asks."""

    def __init__(
        self,
        body: Body,
        name: Callable[[], str],
        find: Callable[[str], Awaitable[Version | None]],
        condition: Condition,
    ) -> None:
        self._body = body
        self._name = name
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
            name = self._name()
            version = await self._find(name)
            self._condition.check(name, version, self._hash.digest())
            if version is not None and version.namespace == OLD and self._condition.same:
                raise _StoredAlready(version)
        return size

    async def close(self) -> None:
        await self._body.close()


def _beside_old(condition: Condition) -> Condition:
    """What must be true of the new name, where a version of the old one is what ``condition`` is about: that nobody has
    replaced it meanwhile, when it asks for that version and not just for any."""
    if condition.same:
        return SAME
    asked = (condition.etags, condition.none_of, condition.unmodified_since)
    return ANY if all(one is None for one in asked) else ABSENT


async def _find(store: ObjectStore, namespace: str, name: str) -> Version | None:
    try:
        return await store.stat(namespace, name)
    except NotFoundError:
        return None
