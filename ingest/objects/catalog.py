"""The catalog: which bytes belong to which name, who is uploading, and what may be deleted. `docs/objects.md`.

All changes are made in a transaction (``with catalog.change():``), in which any number of calls may stand: either all of
them are durable when it ends, or none. A call that fails raises and leaves nothing of itself behind, so that others in the same
transaction are not touched by it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import msgspec

from ingest import ticket
from ingest.errors import BusyError, NotFoundError, UploadLostError, UsageError
from ingest.limits import HISTORY_KEPT_S, OWNER_DEADLINE_S
from ingest.objects import extent
from ingest.objects.catalog_reader import CatalogReader
from ingest.objects.extent import Extent
from ingest.objects.version import ANY, Condition, State, Version, check_name, check_namespace

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Garbage:
    """Tickets that belong to nobody any more; ``version`` had them, if one ever did."""

    id: int
    version: int | None
    extent: Extent


def atomic(call: Callable[Concatenate[Catalog, P], R]) -> Callable[Concatenate[Catalog, P], R]:
    """A call that happens wholly or not at all, within the transaction of its caller."""

    @wraps(call)
    def within(self: Catalog, *args: P.args, **kwargs: P.kwargs) -> R:
        assert self._db.in_transaction, f"{call.__name__} outside of change()"
        self._db.execute("SAVEPOINT one")
        try:
            result = call(self, *args, **kwargs)
        except BaseException:
            self._db.execute("ROLLBACK TO one; RELEASE one")
            raise
        self._db.execute("RELEASE one")
        return result

    return within


class Catalog(CatalogReader):
    """The catalog, to be changed. ``clock``: seconds since 1970; the processes of one machine share it."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        super().__init__(path)
        self.clock = clock

    @contextmanager
    def change(self) -> Iterator[None]:
        """A transaction. Waits while another process has one; durable at its end."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    # --- owners: processes that upload or download

    @atomic
    def enter(self, what: str, lasting: float = OWNER_DEADLINE_S) -> int:
        """A new owner, alive for ``lasting`` seconds from now. ``what`` names the process to people."""
        self._db.execute("INSERT INTO owners(what, deadline) VALUES (?, ?)", (what, self.clock() + lasting))
        return self._db.last_insert_rowid()

    @atomic
    def enter_alone(self, what: str, lasting: float = OWNER_DEADLINE_S) -> int:
        """Like ``enter``. BusyError while another owner of that kind is alive."""
        if self._db.execute("SELECT 1 FROM owners WHERE what = ? AND deadline > ?", (what, self.clock())).get:
            raise BusyError(f"another {what} is at work")
        return self.enter(what, lasting)

    @atomic
    def renew(self, owner: int, lasting: float = OWNER_DEADLINE_S) -> None:
        """UploadLostError when its deadline has passed: its uploads may be given up already."""
        self._check_alive(owner)
        self._db.execute("UPDATE owners SET deadline = ? WHERE id = ?", (self.clock() + lasting, owner))

    @atomic
    def leave(self, owner: int) -> None:
        """The owner ends: its uploads have failed, its leases are given back, its pins are gone."""
        self._end_owner(owner, "its process ended")

    @atomic
    def expire(self) -> int:
        """Ends all owners whose deadline has passed. Returns how many."""
        late = [row[0] for row in self._db.execute("SELECT id FROM owners WHERE deadline <= ?", (self.clock(),))]
        for owner in late:
            self._end_owner(owner, "its process died")
        return len(late)

    def _check_alive(self, owner: int) -> None:
        deadline = self._db.execute("SELECT deadline FROM owners WHERE id = ?", (owner,)).get
        if deadline is None or deadline <= self.clock():
            raise UploadLostError("the upload took too long to give a sign of life: its owner's deadline has passed")

    def _end_owner(self, owner: int, reason: str) -> None:
        for (number,) in self._db.execute("SELECT number FROM versions WHERE owner = ? AND state = 0", (owner,)).fetchall():
            self._fail(number, reason)
        for first, count in self._db.execute("SELECT first, count FROM leases WHERE owner = ?", (owner,)).fetchall():
            self._sweep(Extent(first, count))
        self._db.execute("DELETE FROM leases WHERE owner = ?", (owner,))
        self._db.execute("DELETE FROM pins WHERE owner = ?", (owner,))
        self._db.execute("DELETE FROM owners WHERE id = ?", (owner,))

    # --- tickets

    @atomic
    def lease(self, owner: int | None, count: int, what: str = "") -> Extent:
        """Tickets for objects that are stored in one call, by ``owner``; or (None) for good, for a client of its own."""
        if owner is not None:
            self._check_alive(owner)
        found = self._allocate(count)
        self._db.execute(
            "INSERT INTO leases(first, count, owner, what, time) VALUES (?, ?, ?, ?, ?)",
            (found.first, found.count, owner, what, self.clock()),
        )
        return found

    def _allocate(self, count: int) -> Extent:
        if count < 1:
            raise UsageError(f"a range of {count} tickets: at least one is needed")
        first = self._db.execute("SELECT next FROM allocator").get
        if first + count > ticket.COUNT:
            raise UsageError(f"{count} tickets: only {ticket.COUNT - first} are left")
        self._db.execute("UPDATE allocator SET next = ?", (first + count,))
        return Extent(first, count)

    @atomic
    def discard(self, owner: int, extents: Iterable[Extent]) -> None:
        """Tickets of the owner's leases that an upload which failed has used: they are garbage at once."""
        for place in extents:
            self._carve(owner, place)
            self._throw_away(None, [place])

    @atomic
    def forgo(self, owner: int, place: Extent) -> None:
        """Tickets of the owner's lease that nothing was put under: they stay unused, and need no delete."""
        self._carve(owner, place)

    @atomic
    def conflicted(self, owner: int, index: int, version: int | None = None) -> None:
        """A ticket of the owner's lease, or of its upload, answered CONFLICT: it is somebody else's, and never deleted."""
        if version is None:
            self._carve(owner, Extent(index, 1))
            return
        held = self._held(owner, version)
        self._set_extents(version, extent.without(held, index))

    @atomic
    def give_back(self, owner: int, lease: Extent) -> None:
        """The owner takes no more tickets of a lease: what no version has of it is garbage."""
        rows = self._db.execute(
            "SELECT first, count FROM leases WHERE owner = ? AND first >= ? AND first < ?", (owner, lease.first, lease.stop)
        ).fetchall()
        for first, count in rows:
            self._sweep(Extent(first, count))
            self._db.execute("DELETE FROM leases WHERE first = ?", (first,))

    def _carve(self, owner: int, place: Extent) -> None:
        row = self._db.execute(
            "SELECT first, count, what, time FROM leases WHERE owner = ? AND first <= ? ORDER BY first DESC LIMIT 1",
            (owner, place.first),
        ).fetchone()
        if row is None or row[0] + row[1] < place.stop:
            raise UploadLostError(f"{place} is no part of a lease of this process any more")
        first, count, what, made = row
        self._db.execute("DELETE FROM leases WHERE first = ?", (first,))
        for rest in (Extent(first, place.first - first), Extent(place.stop, first + count - place.stop)):
            if rest.count:
                self._db.execute(
                    "INSERT INTO leases(first, count, owner, what, time) VALUES (?, ?, ?, ?, ?)",
                    (rest.first, rest.count, owner, what, made),
                )

    def _sweep(self, lease: Extent) -> None:
        """What no version has of a lease is garbage, stored or not. What a version has, or had, is its own to give up."""
        at = lease.first
        rows = self._db.execute(
            "SELECT extents FROM versions INDEXED BY stored WHERE first >= ? AND first < ? ORDER BY first",
            (lease.first, lease.stop),
        ).fetchall()
        for (raw,) in rows:
            for place in extent.parse(raw):
                if lease.first <= place.first < lease.stop:
                    self._throw_away(None, [Extent(at, place.first - at)])
                    at = place.stop
        self._throw_away(None, [Extent(at, lease.stop - at)])

    # --- uploads

    @atomic
    def begin(self, owner: int, namespace: str, name: str, headers: Mapping[str, str] = {}, condition: Condition = ANY) -> int:
        """A new version, PENDING, of ``owner``. Returns its number. Raises what the condition does: for nothing, the same
        may be true or not when it is committed."""
        self._check_alive(owner)
        condition.check(name, self.lookup(check_namespace(namespace), check_name(name)))
        number = self._insert(namespace, name, State.PENDING, headers, owner=owner)
        self._note(number, State.PENDING, "upload began")
        return number

    @atomic
    def extend(self, owner: int, version: int, count: int) -> Extent:
        """More tickets for an upload: they are in the catalog before the first frame is sent."""
        held = self._held(owner, version)
        found = self._allocate(count)
        self._set_extents(version, extent.joined([*held, found]))
        return found

    @atomic
    def commit(
        self, owner: int, version: int, size: int, digest: bytes, extents: Sequence[Extent], condition: Condition = ANY
    ) -> Version:
        """All chunks and the manifest are SAVED in ``extents``: the name points to this version from now on, and the one
        before is DELETED. Other tickets of the upload are garbage. Raises what the condition does, and UploadLostError."""
        held = self._held(owner, version)
        row = self._db.execute(
            "SELECT n.name, v.name FROM versions v JOIN namespaces n ON n.id = v.namespace WHERE number = ?", (version,)
        ).fetchone()
        self._replace(*row, version, condition, digest)
        self._throw_away(version, _difference(held, extents))
        self._db.execute(
            "UPDATE versions SET state = 1, size = ?, digest = ?, extents = ?, first = ?, owner = NULL WHERE number = ?",
            (size, digest, extent.serialize(extents), extents[0].first, version),
        )
        self._note(version, State.OK, "all chunks saved")
        return self.version(version)

    @atomic
    def store(
        self,
        owner: int,
        namespace: str,
        name: str,
        size: int,
        digest: bytes,
        extents: Sequence[Extent],
        headers: Mapping[str, str] = {},
        condition: Condition = ANY,
        number: int | None = None,
    ) -> Version:
        """A small upload from its beginning to its end: all of it is SAVED already, in a lease of the owner's.

        ``number``: of the version, when it was reserved: its manifest names it.
        """
        self._check_alive(owner)
        self._replace(check_namespace(namespace), check_name(name), number or 0, condition, digest)
        number = self._insert(namespace, name, State.OK, headers, size, digest, extents, number=number)
        self._note(number, State.PENDING, "upload began")
        self._note(number, State.OK, "all chunks saved")
        return self.version(number)

    @atomic
    def reserve(self, count: int) -> range:
        """Numbers for ``count`` versions, for `store`: nobody else gets them."""
        row = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'versions'").get
        first = (row or 0) + 1
        if row is None:
            self._db.execute("INSERT INTO sqlite_sequence(name, seq) VALUES ('versions', ?)", (first + count - 1,))
        else:
            self._db.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = 'versions'", (first + count - 1,))
        return range(first, first + count)

    @atomic
    def fail(self, owner: int, version: int, reason: str) -> None:
        """An upload broke. All its tickets are garbage, stored or not. UploadLostError when it was given up before."""
        self._held(owner, version)
        self._fail(version, reason)

    @atomic
    def delete(self, namespace: str, name: str, condition: Condition = ANY, reason: str = "deleted") -> Version:
        """The name has no version any more. Returns the one it had. NotFoundError, and what the condition raises."""
        present = self.lookup(namespace, name)
        condition.check(name, present)
        if present is None:
            raise NotFoundError(f"there is no object {name!r}")
        self._end(present, reason)
        return present

    def _held(self, owner: int, version: int) -> tuple[Extent, ...]:
        """The tickets of an upload under way, of an owner that is alive."""
        self._check_alive(owner)
        row = self._db.execute("SELECT extents FROM versions WHERE number = ? AND owner = ? AND state = 0", (version, owner))
        raw = row.get
        if raw is None:
            raise UploadLostError("the upload was given up: its process gave no sign of life for too long")
        return extent.parse(raw)

    def _set_extents(self, version: int, extents: Sequence[Extent]) -> None:
        first = extents[0].first if extents else None
        self._db.execute(
            "UPDATE versions SET extents = ?, first = ? WHERE number = ?", (extent.serialize(extents), first, version)
        )

    def _insert(
        self,
        namespace: str,
        name: str,
        state: State,
        headers: Mapping[str, str],
        size: int = 0,
        digest: bytes = b"",
        extents: Sequence[Extent] = (),
        owner: int | None = None,
        number: int | None = None,
    ) -> int:
        place = self._namespace(namespace)
        if place is None:
            self._db.execute("INSERT INTO namespaces(name) VALUES (?)", (namespace,))
            place = self._db.last_insert_rowid()
        first = extents[0].first if extents else None
        self._db.execute(
            "INSERT INTO versions(number, namespace, name, state, size, created, first, owner, digest, extents, headers)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                number, place, name, state, size, self.clock(), first, owner, digest, extent.serialize(extents),
                msgspec.json.encode(headers).decode() if headers else None,
            ),
        )  # fmt: skip
        return self._db.last_insert_rowid()

    def _replace(self, namespace: str, name: str, version: int, condition: Condition, digest: bytes) -> None:
        present = self.lookup(namespace, name)
        condition.check(name, present, digest)
        if present is not None:
            self._end(present, f"replaced by version {version}")

    def _fail(self, version: int, reason: str) -> None:
        held = extent.parse(self._db.execute("SELECT extents FROM versions WHERE number = ?", (version,)).get)
        self._db.execute("UPDATE versions SET state = 2, owner = NULL WHERE number = ?", (version,))
        self._throw_away(version, held)
        self._note(version, State.FAILED, reason)

    def _end(self, version: Version, reason: str) -> None:
        self._db.execute("UPDATE versions SET state = 3 WHERE number = ?", (version.number,))
        self._throw_away(version.number, version.extents)
        self._note(version.number, State.DELETED, reason)

    def _note(self, version: int, state: State, reason: str) -> None:
        self._db.execute(
            "INSERT INTO history SELECT ?, ifnull(max(step), 0) + 1, ?, ?, ? FROM history WHERE version = ?",
            (version, self.clock(), state, reason, version),
        )

    # --- downloads

    @atomic
    def pin(self, owner: int, version: int) -> None:
        """Keeps the chunks of a version while ``owner`` is alive. NotFoundError when it is not the name's any more."""
        self._check_alive(owner)
        if self._db.execute("SELECT state FROM versions WHERE number = ?", (version,)).get != State.OK:
            raise NotFoundError(f"version {version} has been replaced or deleted")
        self._db.execute(
            "INSERT INTO pins VALUES (?, ?, 1) ON CONFLICT DO UPDATE SET readers = readers + 1", (version, owner)
        )

    @atomic
    def unpin(self, owner: int, version: int) -> None:
        self._db.execute("UPDATE pins SET readers = readers - 1 WHERE version = ? AND owner = ?", (version, owner))
        self._db.execute("DELETE FROM pins WHERE version = ? AND owner = ? AND readers <= 0", (version, owner))

    # --- garbage

    def garbage(self, limit: int) -> list[Garbage]:
        """What may be deleted now: nobody reads it. The oldest first."""
        rows = self._db.execute(
            "SELECT id, version, first, count FROM garbage g WHERE NOT EXISTS (SELECT 1 FROM pins p JOIN owners o ON o.id = p.owner"
            " WHERE p.version = g.version AND o.deadline > ?) ORDER BY id LIMIT ?",
            (self.clock(), limit),
        )
        return [Garbage(id_, version, Extent(first, count)) for id_, version, first, count in rows]

    @atomic
    def collected(self, garbage: Iterable[Garbage]) -> None:
        """It is deleted: nothing of it is stored."""
        for item in garbage:
            self._db.execute("DELETE FROM garbage WHERE id = ?", (item.id,))

    @atomic
    def forget(self, kept: float = HISTORY_KEPT_S, limit: int = 1000) -> int:
        """Drops up to ``limit`` versions that ended more than ``kept`` seconds ago, and their history. Returns how many."""
        rows = self._db.execute(
            "SELECT number FROM versions v WHERE state >= 2 AND created < ? AND NOT EXISTS"
            " (SELECT 1 FROM garbage WHERE version = v.number) AND (SELECT max(time) FROM history WHERE version = v.number) < ?"
            " LIMIT ?",
            (self.clock() - kept, self.clock() - kept, limit),
        ).fetchall()
        for (number,) in rows:
            self._db.execute("DELETE FROM history WHERE version = ?", (number,))
            self._db.execute("DELETE FROM versions WHERE number = ?", (number,))
        return len(rows)

    def _throw_away(self, version: int | None, extents: Iterable[Extent]) -> None:
        for place in extents:
            if place.count:
                self._db.execute(
                    "INSERT INTO garbage(version, first, count) VALUES (?, ?, ?)", (version, place.first, place.count)
                )


def _difference(held: Iterable[Extent], kept: Iterable[Extent]) -> list[Extent]:
    """What of ``held`` is not in ``kept``."""
    rest = sorted(held)
    for place in sorted(kept):
        parts = []
        for one in rest:
            if place.first >= one.stop or place.stop <= one.first:
                parts.append(one)
                continue
            parts += [Extent(one.first, place.first - one.first), Extent(place.stop, one.stop - place.stop)]
        rest = [one for one in parts if one.count > 0]
    return rest
