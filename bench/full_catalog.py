"""A catalog of many objects, made at once: what millions of uploads would leave in it, without their chunks."""

from __future__ import annotations

from pathlib import Path

import apsw

from ingest.catalog import extent
from ingest.catalog.catalog_reader import CatalogReader
from ingest.catalog.catalog_socket import catalog_path
from ingest.catalog.database import make_file
from ingest.catalog.version import VersionState
from ingest.client.blocking_client import Client
from ingest.objects import binding
from ingest.store.data_dir import DataDir

NAMESPACE = "objects"
CHUNKS = 2  # of each: its bytes, and its manifest
SIZE = 1024  # bytes that each is said to have
CREATED = (
    1_795_219_200.0  # seconds since 1970, of the first one; each is a millisecond younger than the one before
)
NAME_SQL = "printf('photos/%04d/%08d.jpg', number / 1000, number)"

# In the order of their names, as their numbers are: `live` is then written from its beginning to its end.
FILL = f"""
INSERT INTO versions(number, namespace, name, state, size, created, saved, first, digest, extents)
WITH RECURSIVE of(number) AS (SELECT 1 UNION ALL SELECT number + 1 FROM of WHERE number < :count)
SELECT number, :namespace, {NAME_SQL}, {VersionState.OK:d}, {SIZE}, {CREATED} + number / 1000.0, {CREATED} + number / 1000.0,
    {extent.FIRST} + {CHUNKS} * (number - 1), randomblob(32),
    unhex(printf('%016x%016x', {extent.FIRST} + {CHUNKS} * (number - 1), {CHUNKS}))
FROM of
"""


def name(number: int) -> str:
    """Of the object with this number, from 1 on."""
    return f"photos/{number // 1000:04}/{number:08}.jpg"


def make(data_dir: Path, count: int) -> None:
    """Makes the catalog of a store that has none, with ``count`` live objects in it, and syncs it.

    Its tables and indexes are those of the program; only the way in is shorter: rows first, then the indexes over them."""
    path = catalog_path(data_dir)
    make_file(path)
    db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        db.pragma("journal_mode", "off")
        db.pragma("synchronous", 0)
        indexes: list[tuple[str, str]] = db.execute(  # type: ignore[assignment]
            "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND tbl_name = 'versions' AND sql IS NOT NULL"
        ).fetchall()
        for index, _ in indexes:
            db.execute(f"DROP INDEX {index}")
        db.execute("INSERT INTO namespaces(name) VALUES (?)", (NAMESPACE,))
        db.execute(FILL, {"count": count, "namespace": db.last_insert_rowid()})
        db.execute("UPDATE counters SET ticket = ticket + ?, version = version + ?", (CHUNKS * count, count))
        for _, sql in indexes:
            db.execute(sql)
        db.pragma("synchronous", 2)
        db.pragma("journal_mode", "wal")
    finally:
        db.close()


def bind(data_dir: Path, put_address: tuple[str, int]) -> None:
    """Has the server that runs on the data directory say that its store is that of the catalog: no object's chunks do."""
    with (
        CatalogReader(catalog_path(data_dir)) as reader,
        Client.connect(put_address, None, DataDir(data_dir).key) as client,
    ):
        client.put(binding.TICKET, binding.serialize(reader.identity().id))
