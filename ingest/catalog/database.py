"""The file of the catalog: made whole or not at all, opened, and what SQLite says of it in our words."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import apsw

from ingest.catalog.catalog_reserve import CatalogReserve
from ingest.catalog.schema import APPLICATION_ID, FORMAT, FROM_1, ID_SIZE, SET_ID, TABLES
from ingest.errors import BusyError, CatalogError, ConfigError, DiskError, NoSpaceError, ReadOnlyError
from ingest.limits import (
    CATALOG_BUSY_S,
    CATALOG_CACHE_SIZE,
    CATALOG_CHECKPOINT_PAGES,
    CATALOG_WAL_KEPT_SIZE,
)
from ingest.runtime.durable_files import open_new, sync_directory
from ingest.store.data_dir import META
from ingest.store.possession import Identity, identity_of
from ingest.store.space import OUT_OF_SPACE, explain, takes_no_file
from ingest.store.store_json import read_store_json

T = TypeVar("T")
BESIDE = ("-wal", "-shm")  # what SQLite adds to the name: its log, and the index of that
OUTDATED = (1,)  # formats that `migrate` knows
SPOILING = (
    apsw.ReadOnlyError,
    apsw.PermissionsError,
    apsw.CantOpenError,
    apsw.IOError,
    apsw.NotADBError,
    apsw.CorruptError,  # a disk may read wrongly once
)
REBUILD = "`ingest catalog rebuild` makes one from the packs"
REPLACE = "`ingest catalog rebuild --replace` makes another one from the packs"  # where there is a file


class Database:
    """A connection to a catalog's file, for one thread, opened after a fork.

    All of its methods raise CatalogError for a file that is not what it should be, BusyError when another process
    would not let go of it, NoSpaceError and DiskError for the rest of what a disk can do.

    A connection that met a disk which could not be read or written stays as it then was: SQLite never looks again whether
    the file may be written. So the next statement outside of a transaction gets a connection of its own.

    ``formats``: those that its user can read. None is changed here: `migrate`.
    """

    def __init__(self, path: Path, formats: tuple[int, ...] = (FORMAT,)) -> None:
        self.path = path
        self._formats = formats
        self.reserve = CatalogReserve(path.with_suffix(".reserve"))
        self._spoilt = False  # the connection, by an error of the disk
        self._closed = True
        self.beside: dict[Path, Identity] = {}  # SQLite's own files, of the present connection
        if not path.exists():
            _make(path)
        self._open()

    def _open(self) -> None:
        while True:
            try:
                self._connect()
                return
            except NoSpaceError:  # for the files that SQLite has beside it while it is open
                if not self.reserve.give():
                    raise

    def _connect(self) -> None:
        with self.explained():
            self.connection = apsw.Connection(str(self.path), flags=apsw.SQLITE_OPEN_READWRITE)
        self._closed = False
        try:
            with self.explained():
                self._prepare()
        except BaseException:
            self.close()
            raise
        self.beside = self._identities()
        self._spoilt = False

    def _identities(self) -> dict[Path, Identity]:
        found = {}
        for side in BESIDE:
            path = self.path.with_name(self.path.name + side)
            with suppress(FileNotFoundError):
                found[path] = identity_of(os.stat(path))
        return found

    def _prepare(self) -> None:
        db = self.connection
        db.set_busy_timeout(round(CATALOG_BUSY_S * 1000))
        # Its plans go by the indexes, never by what is bound: otherwise it parses some statements anew at each call.
        db.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)
        application, found = db.pragma("application_id"), db.pragma("user_version")
        if application != APPLICATION_ID:
            raise CatalogError(f"{self.path}: this SQLite file is not a catalog of ingest; {REPLACE}")
        if found in OUTDATED and found not in self._formats:
            raise CatalogError(
                f"{self.path}: a catalog of format {found}, which a start of `ingest gateway` or `ingest serve` makes one of"
                f" format {FORMAT}: end those of before, and start one of this version once"
            )
        if found not in self._formats:
            raise CatalogError(
                f"{self.path}: a catalog of format {found}; this program knows format {FORMAT}"
            )
        db.pragma("journal_mode", "wal")
        db.pragma("synchronous", 2)  # FULL: a commit that returned is on stable storage
        db.pragma("wal_autocheckpoint", CATALOG_CHECKPOINT_PAGES)
        db.pragma("journal_size_limit", CATALOG_WAL_KEPT_SIZE)
        db.pragma("cache_size", -(CATALOG_CACHE_SIZE >> 10))
        db.pragma("user_version")  # a read: SQLite has its own files from then on

    @property
    def is_outdated(self) -> bool:
        return int(self.value("PRAGMA user_version")) in OUTDATED

    def add_missing(self) -> None:
        """What a catalog of format 1 lacks is added, unless another process was faster. One that lacks nothing is only read:
        whoever changes it meanwhile may take long."""
        if not self.is_outdated:
            return
        with self.transaction():
            if self.is_outdated:
                self.run(FROM_1)
                self.run(SET_ID, secrets.token_bytes(ID_SIZE))
                self.run(f"PRAGMA user_version = {FORMAT}")

    def close(self) -> None:
        self._closed = True
        self.connection.close()

    @property
    def in_transaction(self) -> bool:
        return not self._closed and self.connection.in_transaction

    def run(self, sql: str, *bindings: Any) -> None:
        self._asked(sql, bindings, lambda cursor: None)

    def row(self, sql: str, *bindings: Any) -> tuple[Any, ...] | None:
        """The first row, None when there is none."""
        return self._asked(sql, bindings, lambda cursor: cursor.fetchone())

    def value(self, sql: str, *bindings: Any) -> Any:
        """The first column of the first row, None when there is none."""
        row = self.row(sql, *bindings)
        return None if row is None else row[0]

    def all(self, sql: str, *bindings: Any) -> list[tuple[Any, ...]]:
        return self._asked(sql, bindings, lambda cursor: cursor.fetchall())

    def _asked(self, sql: str, bindings: tuple[Any, ...], take: Callable[[apsw.Cursor], T]) -> T:
        for last in (False, True):
            if self._spoilt and not self.in_transaction:
                self.close()
                self._open()
            within = self.in_transaction
            try:
                return take(self.connection.execute(sql, bindings))
            except apsw.Error as error:
                found = self._explained(error)
                # What begins or stands alone here changes nothing, so it may be asked again: BEGIN, and what reads.
                if last or within or not self._spoilt:
                    raise found from error
        raise AssertionError

    def _explained(self, error: apsw.Error) -> DiskError | BusyError:
        found = explained(error, self.path, 0 if self._closed else self.connection.system_errno)
        if isinstance(error, SPOILING) and not isinstance(found, NoSpaceError):
            self._spoilt = True
        return found

    def last_id(self) -> int:
        """Of the row that was inserted last."""
        return self.connection.last_insert_rowid()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is done within it is durable at its end, or not done."""
        if not self._closed and self.connection.readonly("main"):
            self._spoilt = True  # opened on a disk that could not be written; it would begin, and fail later
        self.run("BEGIN IMMEDIATE")
        try:
            yield
            self.run("COMMIT")
        except BaseException:
            if self.in_transaction:  # a full disk makes SQLite roll back by itself
                self.run("ROLLBACK")
            raise

    def fold(self) -> None:
        """Takes what is in SQLite's log into the file, as far as no reader needs it: the log begins anew then, and needs no
        more room. On a full disk the file gets its room from the reserve, and without any the log keeps all of it."""
        while True:
            try:
                self.connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
                return
            except apsw.Error as error:
                if not (isinstance(self._explained(error), NoSpaceError) and self.reserve.give()):
                    return

    @contextmanager
    def explained(self) -> Iterator[None]:
        try:
            yield
        except apsw.Error as error:
            raise self._explained(error) from error


def _said(error: apsw.Error) -> str:
    """In brackets, what SQLite says; but "not an error" is what it says of a copy that found no room."""
    text = str(error)
    return "" if text.endswith("not an error") else f" ({text})"


def explained(error: apsw.Error, path: Path, number: int = 0) -> DiskError | BusyError:
    """What SQLite says, as one of our errors. ``number``: the errno of the call of the system that failed last."""
    if isinstance(error, apsw.BusyError):
        return BusyError(f"{path}: another process has been changing it for {CATALOG_BUSY_S:g} s")
    if isinstance(error, (apsw.NotADBError, apsw.CorruptError)):
        return CatalogError(f"{path}: this file is no whole catalog ({error}); {REPLACE}")
    # A file beside it that finds no room is an error like any other to SQLite, and so is a quota.
    no_room = isinstance(error, (apsw.IOError, apsw.CantOpenError)) and number in OUT_OF_SPACE
    # Without an inode it looks whether the file is there then, so that ENOENT is what failed last.
    no_inode = isinstance(error, apsw.CantOpenError) and number == errno.ENOENT and takes_no_file(path.parent)
    if (
        isinstance(error, apsw.FullError)
        or no_room
        or no_inode
        or getattr(error, "extendedresult", 0) == apsw.SQLITE_IOERR_SHMSIZE
    ):
        return NoSpaceError(f"{path}: the disk is full{_said(error)}")
    if isinstance(error, (apsw.ReadOnlyError, apsw.PermissionsError)) or number == errno.EROFS:
        return ReadOnlyError(f"{path}: it may only be read for now{_said(error)}")
    return DiskError(f"{path}: {error}")


def is_outdated(path: Path) -> bool:
    """Whether the catalog at ``path`` has to be migrated before this program can use it; none is made. CatalogError,
    DiskError."""
    if not path.exists():
        return False
    database = Database(path, (*OUTDATED, FORMAT))
    try:
        return database.is_outdated
    finally:
        database.close()


def migrate(path: Path) -> None:
    """The catalog at ``path``, made if there never was one, gets the format of this program.

    By who holds `service_lock`: programs of before, which know the old format alone, may be at work without it.
    CatalogError, BusyError, DiskError.
    """
    database = Database(path, (*OUTDATED, FORMAT))
    try:
        database.add_missing()
    finally:
        database.close()


def _make(path: Path) -> None:
    """An empty catalog: under a name of its own until it is whole and durable, so that who comes second finds all of it.

    CatalogError when there was one: its chunks are there, and would be met as conflicts. StoreFormatError for a store
    that can't be judged.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    try:
        _refuse_lost(path)
        try:
            make_file(temporary)
            os.link(temporary, path)
        except FileExistsError:
            pass  # another process was faster
        finally:
            for left in ("", "-journal", "-wal", "-shm"):  # a full disk keeps SQLite from removing its own
                temporary.with_name(temporary.name + left).unlink(missing_ok=True)
        sync_directory(path.parent)
    except OSError as error:
        raise DiskError(explain(error, path.parent)) from error


def make_file(path: Path) -> None:
    """An empty catalog in a file that must not exist; synced, but not its directory. OSError, DiskError."""
    fd = open_new(path)  # SQLite would take the umask
    try:
        try:
            db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
        except apsw.Error as error:  # a name that is too long for it
            raise explained(error, path) from error
        except UnicodeEncodeError as error:
            raise ConfigError(f"{str(path)!r}: SQLite opens only files whose names are UTF-8") from error
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
    log = path.with_name(f"{path.name}-wal")
    with suppress(FileNotFoundError):  # looked at first: whoever is faster makes the catalog before its log
        if log.stat().st_size and not path.exists():
            raise CatalogError(f"{path} is missing, and {log.name} would be taken for its log; {REBUILD}")
    data_dir = path.parent.parent
    if path.parent.name != META or not (path.parent / "store.json").exists():
        return
    layout = read_store_json(path.parent / "store.json")["layout"]
    first = data_dir / ("00/00/00/obj" if layout == "pack" else "00/00/00/00")  # where the first ticket lies
    if first.exists() and not path.exists():
        raise CatalogError(f"{path} is missing, but objects are stored in {data_dir}; {REBUILD}")
