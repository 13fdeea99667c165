"""The tables of the catalog, `DATA/.ingest/catalog.db`. `docs/objects.md`, "The catalog"."""

from __future__ import annotations

import apsw

from ingest.errors import CatalogError
from ingest.objects.extent import FIRST

FORMAT = 1  # in the file's user_version
APPLICATION_ID = 0x696E6763  # "ingc": what `file` shows

TABLES = f"""
CREATE TABLE allocator(one INTEGER PRIMARY KEY CHECK (one = 1), next INTEGER NOT NULL);
INSERT INTO allocator VALUES (1, {FIRST});

CREATE TABLE owners(id INTEGER PRIMARY KEY, what TEXT NOT NULL, deadline REAL NOT NULL);

CREATE TABLE namespaces(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);

CREATE TABLE versions(
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    namespace INTEGER NOT NULL,
    name TEXT NOT NULL,
    state INTEGER NOT NULL,
    size INTEGER NOT NULL,
    created REAL NOT NULL,
    first INTEGER,
    owner INTEGER,
    digest BLOB NOT NULL,
    extents BLOB NOT NULL,
    headers TEXT);
CREATE UNIQUE INDEX live ON versions(namespace, name) WHERE state = 1;
CREATE INDEX named ON versions(namespace, name, number);
CREATE INDEX stored ON versions(first);
CREATE INDEX pending ON versions(owner) WHERE state = 0;

CREATE TABLE history(
    version INTEGER NOT NULL, step INTEGER NOT NULL, time REAL NOT NULL, state INTEGER NOT NULL, reason TEXT NOT NULL,
    PRIMARY KEY (version, step)) WITHOUT ROWID;

CREATE TABLE leases(first INTEGER PRIMARY KEY, count INTEGER NOT NULL, owner INTEGER, what TEXT NOT NULL, time REAL NOT NULL);

CREATE TABLE pins(version INTEGER NOT NULL, owner INTEGER NOT NULL, readers INTEGER NOT NULL,
    PRIMARY KEY (version, owner)) WITHOUT ROWID;

CREATE TABLE garbage(id INTEGER PRIMARY KEY, version INTEGER, first INTEGER NOT NULL, count INTEGER NOT NULL);
CREATE INDEX garbage_of ON garbage(version);
"""


def prepare(db: apsw.Connection) -> None:
    """Makes the tables in an empty file, whoever comes first. CatalogError for a file that is no catalog of this format."""
    db.execute("BEGIN IMMEDIATE")
    try:
        found, application = db.pragma("user_version"), db.pragma("application_id")
        if found == 0 and db.execute("SELECT count(*) FROM sqlite_schema").get == 0:
            db.pragma("application_id", APPLICATION_ID)
            db.pragma("user_version", FORMAT)
            db.execute(TABLES)
        elif application != APPLICATION_ID:
            raise CatalogError(f"{db.filename}: this SQLite file is not a catalog of ingest")
        elif found != FORMAT:
            raise CatalogError(f"{db.filename}: a catalog of format {found}; this program knows format {FORMAT}")
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")
