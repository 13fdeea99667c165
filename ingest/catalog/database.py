"""The file of the catalog: made whole or not at all, opened, and what SQLite says of it in our words."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw

from ingest.catalog.schema import APPLICATION_ID, FORMAT, FROM_1, ID_SIZE, SET_ID, TABLES
from ingest.errors import BusyError, CatalogError, DiskError, NoSpaceError
from ingest.limits import (
    CATALOG_BUSY_S,
    CATALOG_CACHE_SIZE,
    CATALOG_CHECKPOINT_PAGES,
    CATALOG_WAL_KEPT_SIZE,
)
from ingest.runtime.durable_files import open_new, sync_directory
from ingest.store.data_dir import META
from ingest.store.space import explain
from ingest.store.store_json import read_store_json

REBUILD = "`ingest catalog rebuild` makes one from the packs"


class Database:
    """A connection to a catalog's file, for one thread, opened after a fork.

    All of its methods raise CatalogError for a file that is not what it should be, BusyError when another process
    would not let go of it, DiskError for the rest of what a disk can do.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.exists():
            _make(path)
        with self.explained():
            self.connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
        try:
            with self.explained():
                self._prepare()
        except BaseException:
            self.connection.close()
            raise

    def _prepare(self) -> None:
        db = self.connection
        db.set_busy_timeout(round(CATALOG_BUSY_S * 1000))
        application, found = db.pragma("application_id"), db.pragma("user_version")
        if application != APPLICATION_ID:
            raise CatalogError(f"{self.path}: this SQLite file is not a catalog of ingest; {REBUILD}")
        if found == 1:
            found = self._migrate()
        if found != FORMAT:
            raise CatalogError(
                f"{self.path}: a catalog of format {found}; this program knows format {FORMAT}"
            )
        db.pragma("journal_mode", "wal")
        db.pragma("synchronous", 2)  # FULL: a commit that returned is on stable storage
        db.pragma("wal_autocheckpoint", CATALOG_CHECKPOINT_PAGES)
        db.pragma("journal_size_limit", CATALOG_WAL_KEPT_SIZE)
        db.pragma("cache_size", -(CATALOG_CACHE_SIZE >> 10))

    def _migrate(self) -> int:
        """What a catalog of format 1 lacks is added, unless another process was faster. Returns the format that it has."""
        db = self.connection
        db.pragma("synchronous", 2)
        with self.transaction():
            if db.pragma("user_version") == 1:
                db.execute(FROM_1)
                db.execute(SET_ID, (secrets.token_bytes(ID_SIZE),))
                db.pragma("user_version", FORMAT)
            return int(db.pragma("user_version"))

    def close(self) -> None:
        self.connection.close()

    @property
    def in_transaction(self) -> bool:
        return self.connection.in_transaction

    def run(self, sql: str, *bindings: Any) -> None:
        try:
            self.connection.execute(sql, bindings)
        except apsw.Error as error:
            raise explained(error, self.path) from error

    def row(self, sql: str, *bindings: Any) -> tuple[Any, ...] | None:
        """The first row, None when there is none."""
        try:
            return self.connection.execute(sql, bindings).fetchone()
        except apsw.Error as error:
            raise explained(error, self.path) from error

    def value(self, sql: str, *bindings: Any) -> Any:
        """The first column of the first row, None when there is none."""
        row = self.row(sql, *bindings)
        return None if row is None else row[0]

    def all(self, sql: str, *bindings: Any) -> list[tuple[Any, ...]]:
        try:
            return self.connection.execute(sql, bindings).fetchall()
        except apsw.Error as error:
            raise explained(error, self.path) from error

    def last_id(self) -> int:
        """Of the row that was inserted last."""
        return self.connection.last_insert_rowid()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is done within it is durable at its end, or not done."""
        self.run("BEGIN IMMEDIATE")
        try:
            yield
            self.run("COMMIT")
        except BaseException:
            if self.connection.in_transaction:  # a full disk makes SQLite roll back by itself
                self.run("ROLLBACK")
            raise

    @contextmanager
    def explained(self) -> Iterator[None]:
        try:
            yield
        except apsw.Error as error:
            raise explained(error, self.path) from error


def explained(error: apsw.Error, path: Path) -> DiskError | BusyError:
    """What SQLite says, as one of our errors."""
    if isinstance(error, apsw.BusyError):
        return BusyError(f"{path}: another process has been changing it for {CATALOG_BUSY_S:g} s")
    if isinstance(error, (apsw.NotADBError, apsw.CorruptError)):
        return CatalogError(f"{path}: this file is no whole catalog ({error}); {REBUILD}")
    if isinstance(error, apsw.FullError):
        return NoSpaceError(f"{path}: {error}")
    return DiskError(f"{path}: {error}")


def _make(path: Path) -> None:
    """An empty catalog: under a name of its own until it is whole and durable, so that who comes second finds all of it.

    CatalogError when there was one: its chunks are there, and would be met as conflicts. StoreFormatError for a store
    that can't be judged.
    """
    _refuse_lost(path)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    try:
        make_file(temporary)
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass  # another process was faster
        finally:
            os.unlink(temporary)
        sync_directory(path.parent)
    except OSError as error:
        raise DiskError(explain(error, path.parent)) from error


def make_file(path: Path) -> None:
    """An empty catalog in a file that must not exist; synced, but not its directory. OSError, DiskError."""
    fd = open_new(path)  # SQLite would take the umask
    try:
        db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
        try:
            db.pragma("application_id", APPLICATION_ID)
            db.pragma("user_version", FORMAT)
            db.pragma("journal_mode", "wal")
            db.execute(TABLES)
            db.execute(SET_ID, (secrets.token_bytes(ID_SIZE),))
        except apsw.Error as error:
            raise explained(error, path) from error
        finally:
            db.close()
        os.fsync(fd)
    finally:
        os.close(fd)


def _refuse_lost(path: Path) -> None:
    data_dir = path.parent.parent
    if path.parent.name != META or not (path.parent / "store.json").exists():
        return
    layout = read_store_json(path.parent / "store.json")["layout"]
    first = data_dir / ("00/00/00/obj" if layout == "pack" else "00/00/00/00")  # where the first ticket lies
    if first.exists():
        raise CatalogError(f"{path} is missing, but objects are stored in {data_dir}; {REBUILD}")
