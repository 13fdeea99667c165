"""What keeps objects of a node from being stored, deleted or read: each call that it is about asks, and no other one."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from reference_server import ReferenceServer

from ingest.catalog.catalog_reader import CatalogReader
from ingest.catalog.local_catalog import LocalCatalog
from ingest.catalog.version import ANY, Version
from ingest.client.async_client import AsyncClient
from ingest.errors import ConnectionLostError, DataDirLostError, NoSpaceError, ReadOnlyError
from ingest.objects.local_store import LocalStore
from ingest.objects.object_store import ObjectStore
from ingest.store.possession import Possession, identity_of

KEY = bytes(range(32))


async def bytes_of(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def opened(opening: Coroutine[Any, Any, Any]) -> None:
    await (await opening).close()


Call = Callable[[LocalStore, Version], Coroutine[Any, Any, Any]]
CALLS: dict[str, Call] = {
    "put": lambda store, _: store.put("n", "new", bytes_of(b"new")),
    "check": lambda store, _: store.check("n", "new", ANY),
    "open": lambda store, _: opened(store.open("n", "old")),
    "open_object": lambda store, old: opened(store.open_object(old.object_id)),
    "stat": lambda store, _: store.stat("n", "old"),
    "stat_object": lambda store, old: store.stat_object(old.object_id),
    "delete": lambda store, _: store.delete("n", "old"),
    "page": lambda store, _: store.page("n"),
    "namespaces": lambda store, _: store.namespaces(),
    "history": lambda store, _: store.history("n", "old"),
    "shares_second": lambda store, old: store.shares_second(old),
}
# The error of each reason, and the calls that it keeps from being made. What the catalog knows is told always.
REFUSED: dict[str, tuple[type[Exception], set[str]]] = {
    "nothing may be stored": (NoSpaceError, {"put", "check"}),
    "nothing may be read": (ConnectionLostError, {"open", "open_object"}),
    "the disk takes no change": (ReadOnlyError, {"put", "check"}),
    "the data directory is lost": (DataDirLostError, {"put", "delete"}),
}


def test_each_call_is_among_those_that_are_tried() -> None:
    assert CALLS.keys() == {name for name in vars(ObjectStore) if not name.startswith("_")}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_keeps_calls_from_being_made_keeps_those_that_it_is_about(tmp_path: Path, reason: str) -> None:
    error, refused = REFUSED[reason]
    holds: set[str] = set()
    lost = tmp_path / "there"
    lost.touch()

    def gate(what: str, error: Exception) -> Callable[[], None]:
        def check() -> None:
            if what in holds:
                raise error

        return check

    async def main(server: ReferenceServer, reader: CatalogReader) -> None:
        catalog = await LocalCatalog.open(tmp_path / "catalog.db")
        possession = Possession({lost: identity_of(os.stat(lost))})
        async with await AsyncClient.connect(server.put_address, server.get_address, KEY) as client:
            store = await LocalStore.enter(
                client, catalog, reader, KEY, "test", possession=possession,
                admit=gate("nothing may be stored", NoSpaceError("full")),
                admit_reads=gate("nothing may be read", ConnectionLostError("away")),
            )  # fmt: skip
            old = await store.put("n", "old", bytes_of(b"old"))
            before = dict(server.model.frames)
            holds.add(reason)
            if reason == "the disk takes no change":
                store._membership._refused(ReadOnlyError("read only"))
            elif reason == "the data directory is lost":
                lost.unlink()
                possession.look()
            for name in refused:
                with pytest.raises(error):
                    await CALLS[name](store, old)
            assert server.model.frames == before and reader.find("n", "old") == old
            assert [one.name for one in reader.page("n")] == ["old"]
            for name in sorted(CALLS.keys() - refused, key=lambda name: name == "delete"):
                await CALLS[name](store, old)
            await store.leave()
        await catalog.close()

    with ReferenceServer([KEY]) as server, CatalogReader(tmp_path / "catalog.db") as reader:
        asyncio.run(main(server, reader))
