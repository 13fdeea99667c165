"""What the catalog can be asked. Any process may have such a reader, beside the one that writes: SQLite's WAL."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import apsw
import msgspec

from ingest import ticket
from ingest.errors import CatalogError, NotFoundError
from ingest.limits import CATALOG_BUSY_S, LIST_PAGE_MAX
from ingest.objects import extent
from ingest.objects.schema import prepare
from ingest.objects.version import State, Transition, Version

COLUMNS = (
    "v.number, n.name, v.name, v.state, v.size, v.digest, v.created, v.extents, v.headers"
    " FROM versions v JOIN namespaces n ON n.id = v.namespace"
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a listing."""

    name: str
    size: int
    etag: str
    created: float


class CatalogReader:
    """A connection to the catalog at ``path``, made if it is not there. Opened after a fork, used by one thread.

    CatalogError when it is no catalog; what SQLite says of the disk comes as apsw.Error.
    """

    def __init__(self, path: Path) -> None:
        made = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)  # SQLite would take the umask
        os.close(made)
        self.path = path
        self._db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
        self._namespaces: dict[str, int] = {}
        try:
            self._db.set_busy_timeout(round(CATALOG_BUSY_S * 1000))
            self._db.pragma("journal_mode", "wal")
            self._db.pragma("synchronous", 2)
            prepare(self._db)
        except apsw.NotADBError:
            self._db.close()
            raise CatalogError(f"{path}: this file is not a catalog; `ingest catalog rebuild` makes one from the packs") from None
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- one version

    def find(self, namespace: str, name: str) -> Version:
        """The version that the name points to. NotFoundError."""
        version = self.lookup(namespace, name)
        if version is None:
            raise NotFoundError(f"there is no object {name!r}")
        return version

    def lookup(self, namespace: str, name: str) -> Version | None:
        number = self._namespace(namespace)
        if number is None:
            return None
        return self._one("WHERE v.namespace = ? AND v.name = ? AND v.state = 1", number, name)

    def find_object(self, object_id: str) -> Version:
        """The live version whose ObjectID this is. NotFoundError, TicketError."""
        version = self._one("WHERE v.first = ? AND v.state = 1", ticket.parse(object_id))
        if version is None:
            raise NotFoundError(f"there is no object with the id {object_id}")
        return version

    def version(self, number: int) -> Version:
        """Any version, in any state. NotFoundError."""
        version = self._one("WHERE v.number = ?", number)
        if version is None:
            raise NotFoundError(f"there is no version {number}")
        return version

    # --- many

    def namespaces(self) -> list[str]:
        return [name for (name,) in self._db.execute("SELECT name FROM namespaces ORDER BY name")]

    def page(self, namespace: str, prefix: str = "", after: str = "", limit: int = LIST_PAGE_MAX) -> list[Entry]:
        """The names that begin with ``prefix`` and come after ``after``, in order of their UTF-8, ``limit`` at most."""
        number = self._namespace(namespace)
        if number is None:
            return []
        bindings: list[Any] = [number, after]
        where = "namespace = ? AND state = 1 AND name > ?"
        if prefix:
            where += " AND name >= ?"
            bindings.append(prefix)
            end = _successor(prefix)
            if end is not None:
                where += " AND name < ?"
                bindings.append(end)
        rows = self._db.execute(
            f"SELECT name, size, digest, created FROM versions INDEXED BY live WHERE {where} ORDER BY name LIMIT ?",
            (*bindings, min(limit, LIST_PAGE_MAX)),
        )
        return [Entry(name, size, digest.hex(), created) for name, size, digest, created in rows]

    def history(self, namespace: str, name: str) -> list[Transition]:
        """What happened to all versions of a name, newest first. NotFoundError when nothing ever did."""
        number = self._namespace(namespace)
        rows = self._db.execute(
            "SELECT h.version, h.time, h.state, h.reason, v.size FROM versions v JOIN history h ON h.version = v.number"
            " WHERE v.namespace = ? AND v.name = ? ORDER BY h.time DESC, h.version DESC, h.step DESC",
            (number, name),
        )
        found = [Transition(version, time, State(state), reason, size) for version, time, state, reason, size in rows]
        if not found:
            raise NotFoundError(f"there is no object {name!r}, and none is known to have been")
        return found

    def versions(self, state: State) -> Iterator[Version]:
        """All in a state, in the order of their numbers."""
        for row in self._db.execute(f"SELECT {COLUMNS} WHERE v.state = ? ORDER BY v.number", (state,)):
            yield _version(row)

    def _one(self, where: str, *bindings: Any) -> Version | None:
        row = self._db.execute(f"SELECT {COLUMNS} {where}", bindings).fetchone()
        return None if row is None else _version(row)

    def _namespace(self, name: str) -> int | None:
        """Its number, which never changes."""
        number = self._namespaces.get(name)
        if number is None:
            number = self._db.execute("SELECT id FROM namespaces WHERE name = ?", (name,)).get
            if number is not None and not self._db.in_transaction:  # one that is made in it may not stay
                self._namespaces[name] = number
        return number


def _successor(prefix: str) -> str | None:
    """The first text, in the order of UTF-8, behind all that begin with ``prefix``; None when there is none."""
    while prefix:
        last = ord(prefix[-1])
        if last < 0x10FFFF:
            return prefix[:-1] + chr(0xE000 if last == 0xD7FF else last + 1)  # surrogates are no characters
        prefix = prefix[:-1]
    return None


def _version(row: tuple[Any, ...]) -> Version:
    number, namespace, name, state, size, digest, created, extents, headers = row
    return Version(
        number,
        namespace,
        name,
        State(state),
        size,
        digest,
        created,
        extent.parse(extents),
        msgspec.json.decode(headers) if headers else {},
    )
