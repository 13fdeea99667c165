"""Which tickets are whose: the part of the catalog that gives them out, and takes them back. `docs/objects.md`.

A ticket is given once, to a lease or to a version that is PENDING, and never again: what is given back, or was with an
upload that failed, is garbage until the collector has deleted it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from ingest.catalog.catalog_reader import CatalogReader, Garbage
from ingest.catalog.catalog_reserve import CatalogReserve
from ingest.catalog.extent import RESERVED, Extent
from ingest.errors import UploadLostError, UsageError

P = ParamSpec("P")
R = TypeVar("R")
A = TypeVar("A", bound="Allocator")


def atomic(call: Callable[Concatenate[A, P], R]) -> Callable[Concatenate[A, P], R]:
    """A call that happens wholly or not at all, within the transaction of its caller."""

    @wraps(call)
    def within(self: A, /, *args: P.args, **kwargs: P.kwargs) -> R:
        assert self._db.in_transaction, f"{call.__name__} outside of change()"
        self._db.run("SAVEPOINT one")
        try:
            result = call(self, *args, **kwargs)
        except BaseException:
            if self._db.in_transaction:  # a full disk makes SQLite roll back by itself
                self._db.run("ROLLBACK TO one; RELEASE one")
            raise
        self._db.run("RELEASE one")
        return result

    return within


class Allocator(CatalogReader):
    """The catalog's transactions and tickets. `Catalog` is made on top of it."""

    @contextmanager
    def change(self) -> Iterator[None]:
        """A transaction. Waits while another process has one; durable at its end."""
        try:
            with self._db.transaction():
                yield
        finally:
            self._made.clear()

    @property
    def in_transaction(self) -> bool:
        return self._db.in_transaction

    # --- the disk

    @property
    def room(self) -> CatalogReserve:
        """What it has taken of the disk in advance."""
        return self._db.reserve

    def fold(self) -> None:
        """SQLite's log begins anew, if no reader needs what is in it. Nothing fails."""
        self._db.fold()

    def close_whole(self) -> None:
        """Closes it with its reserve whole, if there is room: the next start may come on a full disk."""
        self._db.fold()
        self.close()
        self.room.fill()

    # --- the store

    @atomic
    def bound(self) -> None:
        """A store was seen to carry the id of this catalog: one that does not is another one from now on."""
        self._db.run("UPDATE binding SET bound = 1 WHERE bound = 0")

    @atomic
    def adopt(self, id_: bytes) -> None:
        """The catalog is the successor of the one with this id, and bound to its store."""
        self._db.run("UPDATE binding SET id = ?, bound = 1", id_)

    # --- leases

    @atomic
    def lease(self, owner: int | None, count: int, what: str = "") -> Extent:
        """Tickets for objects that are stored in one call, by ``owner``; or (None) for good, for a client of its own."""
        if owner is not None:
            self._check_alive(owner)
        found = self._allocate(count)
        self._add_lease(found, owner, what, self.clock())
        return found

    @atomic
    def give_back(self, owner: int, lease: Extent) -> None:
        """The owner takes no more tickets of a lease: what no version has of it is garbage."""
        self._sweep(
            self._db.all(
                "SELECT first, count FROM leases WHERE owner = ? AND first >= ? AND first < ?",
                owner,
                lease.first,
                lease.stop,
            )
        )

    def _allocate(self, count: int) -> Extent:
        first = self.next_ticket()
        if not 1 <= count <= RESERVED - first:
            raise UsageError(f"a range of {count} tickets: 1 to {RESERVED - first} can be had")
        self._db.run("UPDATE counters SET ticket = ?", first + count)
        return Extent(first, count)

    def _add_lease(self, place: Extent, owner: int | None, what: str, made: float) -> None:
        self._db.run(
            "INSERT INTO leases(first, count, owner, what, time) VALUES (?, ?, ?, ?, ?)",
            *(place.first, place.count, owner, what, made),
        )

    def _carve(self, owner: int, place: Extent) -> list[Extent]:
        """Takes tickets out of the owner's leases, from the first one on. Returns what of them was there."""
        found = []
        while place.count:
            row = self._db.row(
                "SELECT first, count, owner, what, time FROM leases WHERE first <= ? ORDER BY first DESC LIMIT 1",
                place.first,
            )
            if row is None or row[2] != owner or row[0] + row[1] <= place.first:
                break
            here = Extent(place.first, min(place.stop, row[0] + row[1]) - place.first)
            self._cut(here, *row)
            found.append(here)
            place = Extent(here.stop, place.count - here.count)  # it may go on in the next lease
        return found

    def _cut(self, place: Extent, first: int, count: int, owner: int, what: str, made: float) -> None:
        """Leaves of a lease what lies before and behind ``place``."""
        before, after = place.first - first, first + count - place.stop
        if before:
            self._db.run("UPDATE leases SET count = ? WHERE first = ?", before, first)
            if after:
                self._add_lease(Extent(place.stop, after), owner, what, made)
        elif after:
            self._db.run("UPDATE leases SET first = ?, count = ? WHERE first = ?", place.stop, after, first)
        else:
            self._db.run("DELETE FROM leases WHERE first = ?", first)

    def _sweep(self, leases: Iterable[tuple[Any, ...]]) -> None:
        """What is left of a lease is garbage, stored or not."""
        for first, count in leases:
            self._throw_away(None, [Extent(first, count)])
            self._db.run("DELETE FROM leases WHERE first = ?", first)

    # --- owners

    def _check_alive(self, owner: int) -> None:
        self._require(self._db.value("SELECT deadline FROM owners WHERE id = ?", owner))

    def _require(self, deadline: float | None) -> None:
        now, last = self.life()
        if deadline is None or not now < deadline <= last:
            raise UploadLostError(
                "the upload took too long to give a sign of life: its owner's deadline has passed"
            )

    # --- garbage

    @atomic
    def collected(self, garbage: Sequence[Garbage]) -> None:
        """It is deleted: nothing of it is stored."""
        for item in garbage:
            self._db.run("DELETE FROM garbage WHERE id = ?", item.id)

    @atomic
    def throw_away(self, extents: Iterable[Extent]) -> None:
        """Stored tickets that nobody has are garbage from now on."""
        self._throw_away(None, extents)

    def _throw_away(self, version: int | None, extents: Iterable[Extent]) -> None:
        for place in extents:
            self._db.run(
                "INSERT INTO garbage(version, first, count) VALUES (?, ?, ?)",
                *(version, place.first, place.count),
            )
