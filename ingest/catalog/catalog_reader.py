"""What the catalog can be asked. Any process may have such a reader, beside the one that writes: SQLite's WAL."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, Self

import msgspec

from ingest import ticket
from ingest.catalog import extent
from ingest.catalog.database import REPLACE, Database
from ingest.catalog.extent import Extent
from ingest.catalog.version import Transition, Version, VersionState, check_name, check_text, order_at
from ingest.errors import CatalogError, NotFoundError, UsageError
from ingest.limits import HISTORY_VERSIONS_MAX, LIST_PAGE_MAX, OWNER_LIFE_MAX_S
from ingest.store import possession

# Of an owner; `CatalogReader.life` says what to bind. A deadline that is far away was written before the machine started
# anew, when its clock was further on: whoever wrote it is gone.
ALIVE = "deadline > ? AND deadline <= ?"
# Of garbage: no live process has a pin on its version.
_UNREAD = (
    "(version IS NULL OR NOT EXISTS"
    f" (SELECT 1 FROM pins p JOIN owners o ON o.id = p.owner WHERE p.version = g.version AND {ALIVE}))"
)
_TOLD = (
    "SELECT number, size, state, created, saved, ended, reason, rank FROM versions"
    " WHERE namespace = ? AND name = ? AND"
)
COLUMNS = "SELECT number, namespace, name, state, size, digest, created, extents, headers, saved, rank FROM versions "


@dataclass(frozen=True, slots=True)
class Identity:
    """``id``: random, 16 bytes, of the catalog. ``bound``: a store has been seen to carry it."""

    id: bytes
    bound: bool


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a listing. ``created``: seconds since 1970."""

    name: str
    size: int
    etag: str
    created: float


@dataclass(frozen=True, slots=True)
class Garbage:
    """Tickets that belong to nobody any more; ``version`` had them, if one ever did."""

    id: int
    version: int | None
    extent: Extent


@dataclass(frozen=True, slots=True)
class Lease:
    """Tickets of a process (``owner``) or of a foreign client (None). ``time``: when, seconds since 1970."""

    extent: Extent
    owner: int | None
    what: str
    time: float


class CatalogReader:
    """A connection to the catalog at ``path``, made if there never was one. Opened after a fork, used by one thread.

    ``clock``: seconds since 1970, for what people are told. ``uptime``: seconds of a clock that nobody sets, for the
    deadlines of owners; the processes of one machine share it. Every method may raise CatalogError and DiskError.
    """

    def __init__(
        self,
        path: Path,
        clock: Callable[[], float] = time.time,
        uptime: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = path
        self.clock = clock
        self.uptime = uptime
        self._db = Database(path)
        self._namespaces: dict[str, int] = {}
        self._namespace_names: dict[int, str] = {}
        self._made: set[str] = set()  # namespaces that this transaction has made, and may unmake

    def close(self) -> None:
        self._db.close()

    @property
    def beside(self) -> dict[Path, possession.Identity]:
        """SQLite's log, in which a commit is durable first, and the index that processes share of it. SQLite removes the two
        when the last connection closes: while this one is open they are the same."""
        return self._db.beside

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def identity(self) -> Identity:
        row = self._db.row("SELECT id, bound FROM binding")
        if row is None:
            raise CatalogError(f"{self.path}: this catalog has no id; {REPLACE}")
        return Identity(row[0], bool(row[1]))

    # --- one version

    def find(self, namespace: str, name: str) -> Version:
        """The version that the name points to. NotFoundError, UsageError."""
        version = self.lookup(namespace, name)
        if version is None:
            raise NotFoundError(f"there is no object {name!r}")
        return version

    def lookup(self, namespace: str, name: str) -> Version | None:
        """The version that the name points to, if there is one. UsageError for what can't be a name."""
        number = self._namespace(namespace)
        if number is None:
            check_name(name)
            return None
        return self._one("WHERE namespace = ? AND name = ? AND state = 1", number, check_name(name))

    def last_order(self, namespace: str, name: str) -> int:
        """The highest order of the versions that the name has or had; 0 when there is none. A version that replaces them,
        or comes after their end, has a higher one."""
        return self._last_order(namespace, name, self.lookup(namespace, name))

    def _last_order(self, namespace: str, name: str, present: Version | None) -> int:
        ended = self._db.value(
            "SELECT rank FROM versions WHERE namespace = ? AND name = ? AND state = 3 ORDER BY rank DESC LIMIT 1",
            *(self._namespace(namespace), name),
        )
        return max(0 if present is None else present.order, ended or 0)

    def find_object(self, object_id: str) -> Version:
        """The live version whose ObjectID this is. NotFoundError, TicketError."""
        version = self._one("WHERE first = ? AND state = 1", ticket.parse(object_id))
        if version is None:
            raise NotFoundError(f"there is no object with the id {object_id}")
        return version

    def version(self, number: int) -> Version:
        """Any version, in any state. NotFoundError."""
        version = self._one("WHERE number = ?", number)
        if version is None:
            raise NotFoundError(f"there is no version {number}")
        return version

    # --- many

    def namespaces(self) -> list[str]:
        return [name for (name,) in self._db.all("SELECT name FROM namespaces ORDER BY name")]

    def page(
        self, namespace: str, prefix: str = "", after: str = "", limit: int = LIST_PAGE_MAX
    ) -> list[Entry]:
        """The names that begin with ``prefix`` and come after ``after``, in order of their UTF-8, ``limit`` at most
        (and never more than 1000). UsageError."""
        if limit < 1:
            raise UsageError(f"a page of {limit} names: at least one is needed")
        number = self._namespace(namespace)
        start, from_prefix = check_text(after, "name"), check_text(prefix, "prefix")
        if number is None:
            return []
        # One bound on each side, so that SQLite seeks to the first name, however far away it is.
        where, bindings = "name > ?", [number, after]
        if start < from_prefix:
            where, bindings = "name >= ?", [number, prefix]
        end = _successor(prefix)
        if end is not None:
            where += " AND name < ?"
            bindings.append(end)
        rows = self._db.all(
            "SELECT name, size, digest, created FROM versions INDEXED BY live"
            f" WHERE namespace = ? AND state = 1 AND {where} ORDER BY name LIMIT ?",
            *bindings,
            min(limit, LIST_PAGE_MAX),
        )
        return [Entry(name, size, digest.hex(), created) for name, size, digest, created in rows]

    def history(self, namespace: str, name: str) -> list[Transition]:
        """What happened to the versions of a name, newest first: to its present one, and to the 1000 that began or ended
        last. NotFoundError when nothing is known of any.

        Numbers tell nothing of time: each process has taken some in advance.
        """
        check_name(name)
        number = self._namespace(namespace)
        live = self._db.all(f"{_TOLD} state = 1", number, name)
        # Two seeks: of those that a name pointed to the order is known, of the others the time.
        others = self._db.all(
            f"SELECT * FROM ({_TOLD} state = 3 ORDER BY rank DESC, saved DESC LIMIT ?) UNION ALL SELECT * FROM"
            f" ({_TOLD} state <> 1 AND saved IS NULL ORDER BY coalesce(ended, created) DESC LIMIT ?)",
            *(number, name, HISTORY_VERSIONS_MAX, number, name, HISTORY_VERSIONS_MAX),
        )
        if not live and not others:
            raise NotFoundError(f"there is no object {name!r}, and none is known to have been")
        found: list[tuple[tuple[float, int, int], Transition]] = []
        for version, size, state, created, saved, ended, reason, rank in live + _last(others):
            steps = [(created, VersionState.PENDING, "upload began")]
            if saved is not None:
                steps.append((saved, VersionState.OK, "all chunks saved"))
            if ended is not None:
                steps.append((ended, VersionState(state), reason))
            order = _order(rank, created, saved)
            found += [
                ((at, order, what), Transition(version, at, what, why, size)) for at, what, why in steps
            ]
        return [step for _, step in sorted(found, key=itemgetter(0), reverse=True)]

    def shares_second(self, version: Version) -> bool:
        """Whether the name has pointed to another version too since the second of `Version.modified` began, before that
        second's end. Then that date does not tell one from the other."""
        other = "SELECT 1 FROM versions WHERE namespace = ? AND name = ? AND number <> ? AND saved >= ? AND saved < ?"
        second = version.modified
        asked = (
            *(self._namespace(version.namespace), version.name, version.number),
            *(second, second + 1),
        )
        # One question for each index.
        return any(
            self._db.row(f"{other} AND {state} LIMIT 1", *asked) for state in ("state <> 1", "state = 1")
        )

    def versions(self, state: VersionState) -> Iterator[Version]:
        """All in a state, in the order of their numbers. Those that change meanwhile may be among them or not."""
        last = 0
        while rows := self._db.all(
            f"{COLUMNS} WHERE state = ? AND number > ? ORDER BY number LIMIT 1000", state, last
        ):
            last = rows[-1][0]
            for row in rows:
                yield self._version(row)

    def newest(self, limit: int) -> list[Version]:
        """The live versions with the highest tickets. Their index has nothing else: of versions that have ended there may be
        a million."""
        rows = self._db.all(f"{COLUMNS} INDEXED BY placed WHERE state = 1 ORDER BY first DESC LIMIT ?", limit)
        return [self._version(row) for row in rows]

    # --- tickets that no version has

    def leases(self) -> list[Lease]:
        rows = self._db.all("SELECT first, count, owner, what, time FROM leases ORDER BY first")
        return [Lease(Extent(first, count), owner, what, time_) for first, count, owner, what, time_ in rows]

    def garbage(self, limit: int, after: int = 0) -> list[Garbage]:
        """What may be deleted now: nobody reads it. The oldest first, of those with numbers above ``after``."""
        rows = self._db.all(
            f"SELECT id, version, first, count FROM garbage g WHERE id > ? AND {_UNREAD} ORDER BY id LIMIT ?",
            *(after, *self.life(), limit),
        )
        return [Garbage(id_, version, Extent(first, count)) for id_, version, first, count in rows]

    def garbage_size(self) -> tuple[int, int]:
        """How many entries `garbage` has in all, and how many tickets they are."""
        row = self._db.row(
            f"SELECT count(*), coalesce(sum(count), 0) FROM garbage g WHERE {_UNREAD}", *self.life()
        )
        assert row is not None
        return row[0], row[1]

    def next_ticket(self) -> int:
        """The index of the ticket that is given next: none from there on was ever given."""
        return int(self._db.value("SELECT ticket FROM counters"))

    # ---

    def life(self) -> tuple[float, float]:
        """Between which deadlines an owner is alive now."""
        now = self.uptime()
        return now, now + OWNER_LIFE_MAX_S

    def _one(self, where: str, *bindings: Any) -> Version | None:
        row = self._db.row(COLUMNS + where, *bindings)
        return None if row is None else self._version(row)

    def _version(self, row: tuple[Any, ...]) -> Version:
        number, namespace, name, state, size, digest, created, extents, headers, saved, rank = row
        return Version(
            number,
            self._namespace_name(namespace),
            name,
            VersionState(state),
            size,
            digest,
            created,
            extent.parse(extents),
            msgspec.json.decode(headers) if headers else {},
            saved,
            _order(rank, created, saved),
        )

    def _namespace(self, name: str) -> int | None:
        """Its number, which never changes."""
        number = self._namespaces.get(name)
        if number is None:
            check_text(name, "namespace")
            number = self._db.value("SELECT id FROM namespaces WHERE name = ?", name)
            if number is not None and name not in self._made:
                self._namespaces[name] = number
        return number

    def _namespace_name(self, number: int) -> str:
        name = self._namespace_names.get(number)
        if name is None:
            name = str(self._db.value("SELECT name FROM namespaces WHERE id = ?", number))
            if name not in self._made:
                self._namespace_names[number] = name
        return name


def _order(rank: int | None, created: float, saved: float | None) -> int:
    """Of a version. Where none is kept, its times tell it."""
    return order_at(max(created, saved or created)) + 1 if rank is None else rank


def _last(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Of rows as `_TOLD` gives them, the 1000 that began or ended last."""

    def key(row: tuple[Any, ...]) -> int:
        _, _, _, created, saved, ended, _, rank = row
        # Where the clock had gone back only the order says so.
        return max(_order(rank, created, saved), order_at(created if ended is None else ended))

    return sorted(rows, key=key)[-HISTORY_VERSIONS_MAX:]


def _successor(prefix: str) -> str | None:
    """The first text, in the order of UTF-8, behind all that begin with ``prefix``; None when there is none."""
    while prefix:
        last = ord(prefix[-1])
        if last < 0x10FFFF:
            return prefix[:-1] + chr(0xE000 if last == 0xD7FF else last + 1)  # surrogates are no characters
        prefix = prefix[:-1]
    return None
