"""The tables of the catalog, `DATA/.ingest/catalog.db`. `docs/objects.md`, "The catalog"."""

from __future__ import annotations

from ingest.catalog.extent import FIRST

FORMAT = 2  # in the file's user_version
APPLICATION_ID = 0x696E6763  # "ingc": what `file` shows

# A version tells its own history: when it was begun, saved and ended, and why it ended. The indexes of what is live and
# of what is not are two, so that an upload pays for one; that of what is live has all that a listing shows, so that a
# page of it is read from one place. `others` finds the last uploads of a name that began or failed, and the versions that
# it came to point to within a second. Numbers of owners and of garbage are never given twice: a
# process that slept past its deadline must not meet its number again as somebody else's.
# `binding`: the random id of the catalog, which its store carries, and whether a store was seen to. `rank`: the order of a
# version among those of its name, as its manifest says it; NULL in what was stored before there was one.
ADDED_IN_2 = """
CREATE TABLE binding(one INTEGER PRIMARY KEY CHECK (one = 1), id BLOB NOT NULL, bound INTEGER NOT NULL);
CREATE INDEX ranked ON versions(namespace, name, rank) WHERE state = 3;
CREATE INDEX others ON versions(namespace, name, saved, coalesce(ended, created)) WHERE state <> 1;
"""
TABLES = f"""
CREATE TABLE counters(one INTEGER PRIMARY KEY CHECK (one = 1), ticket INTEGER NOT NULL, version INTEGER NOT NULL);
INSERT INTO counters VALUES (1, {FIRST}, 1);

CREATE TABLE owners(id INTEGER PRIMARY KEY AUTOINCREMENT, what TEXT NOT NULL, deadline REAL NOT NULL);

CREATE TABLE namespaces(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);

CREATE TABLE versions(
    number INTEGER PRIMARY KEY,
    namespace INTEGER NOT NULL,
    name TEXT NOT NULL,
    state INTEGER NOT NULL,
    size INTEGER NOT NULL,
    created REAL NOT NULL,
    saved REAL,
    ended REAL,
    reason TEXT,
    owner INTEGER,
    first INTEGER,
    digest BLOB NOT NULL,
    extents BLOB NOT NULL,
    headers TEXT,
    rank INTEGER);
CREATE INDEX live ON versions(namespace, name, size, digest, created) WHERE state = 1;
CREATE INDEX placed ON versions(first) WHERE state = 1;
CREATE INDEX pending ON versions(owner) WHERE state = 0;
CREATE INDEX past ON versions(ended) WHERE ended IS NOT NULL;

CREATE TABLE leases(
    first INTEGER PRIMARY KEY, count INTEGER NOT NULL, owner INTEGER, what TEXT NOT NULL, time REAL NOT NULL);

CREATE TABLE pins(version INTEGER NOT NULL, owner INTEGER NOT NULL, reader INTEGER NOT NULL,
    PRIMARY KEY (version, owner, reader)) WITHOUT ROWID;
CREATE INDEX pins_of ON pins(owner);

CREATE TABLE garbage(id INTEGER PRIMARY KEY AUTOINCREMENT, version INTEGER, first INTEGER NOT NULL, count INTEGER NOT NULL);
CREATE INDEX garbage_of ON garbage(version) WHERE version IS NOT NULL;
{ADDED_IN_2}"""

# Of a catalog of format 1. Where a version ended and its chunks may be there still, its rank is told by its times.
FROM_1 = f"""
ALTER TABLE versions ADD COLUMN rank INTEGER;
DROP INDEX others;
{ADDED_IN_2}
UPDATE versions SET rank = CAST(max(created, coalesce(saved, created)) * 1000000 AS INTEGER) + 1
    WHERE state = 3 AND number IN (SELECT version FROM garbage WHERE version IS NOT NULL);
"""
SET_ID = "INSERT INTO binding VALUES (1, ?, 0)"
ID_SIZE = 16  # bytes
