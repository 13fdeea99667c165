"""The catalog: which bytes belong to which name, who is uploading, and what may be deleted. `docs/objects.md`.

All changes are made in a transaction (``with catalog.change():``), in which any number of calls may stand: either all of
them are durable when it ends, or none. A call that fails raises and leaves nothing of itself behind, so that others in
the same transaction are not touched by it.

Every ticket that was ever given is in exactly one place: in a lease, in one version that is PENDING or OK, or in the
garbage; or in none, when the collector has deleted it, it answered CONFLICT, or it was forgone.

Calls may be made again when their answer was lost. Those that would do harm the second time (`begin`, `store`, `commit`,
`fail`, `discard`, `conflicted`, `give_back`, `enter_alone`, `pin`, `unpin`, `leave`, `collected`) find that they were made
and change nothing; what `extend`, `lease`, `reserve` and `enter` give twice is garbage sooner or later. `delete` can't know.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from ingest.catalog import extent
from ingest.catalog.allocator import Allocator, atomic
from ingest.catalog.catalog_reader import ALIVE
from ingest.catalog.extent import Extent
from ingest.catalog.version import (
    ANY,
    Condition,
    Version,
    VersionState,
    check_name,
    check_namespace,
    order_at,
)
from ingest.errors import BusyError, NotFoundError, OrderError, UploadLostError, UsageError
from ingest.limits import HISTORY_KEPT_S, OWNER_DEADLINE_S, OWNER_LIFE_MAX_S

DIGEST_SIZE = 32  # bytes: BLAKE3


class Catalog(Allocator):
    """The catalog, to be changed. Every call may raise CatalogError, BusyError and DiskError, after which the
    transaction is over and nothing of it has happened."""

    # --- owners: processes that upload or download

    @atomic
    def enter(self, what: str, lasting: float = OWNER_DEADLINE_S) -> int:
        """A new owner, alive for ``lasting`` seconds from now, OWNER_LIFE_MAX_S at most. ``what`` names its process to
        people."""
        self._db.run("INSERT INTO owners(what, deadline) VALUES (?, ?)", what, self._deadline(lasting))
        return self._db.last_id()

    @atomic
    def enter_alone(self, what: str, lasting: float = OWNER_DEADLINE_S, token: str = "") -> int:
        """Like ``enter``. BusyError while another owner of that kind is alive; the one that entered with the same ``token``
        is the same."""
        kind, mine = f"{what}/", f"{what}/{token}"
        for owner, other in self._db.all(f"SELECT id, what FROM owners WHERE {ALIVE}", *self.life()):
            if token and other == mine:
                return int(owner)
            if other == what or other.startswith(kind):
                raise BusyError(f"another {what} is at work")
        return self.enter(mine if token else what, lasting)

    @atomic
    def renew(self, owner: int, lasting: float = OWNER_DEADLINE_S) -> None:
        """UploadLostError when its deadline has passed: its uploads may be given up already."""
        self._check_alive(owner)
        self._db.run("UPDATE owners SET deadline = ? WHERE id = ?", self._deadline(lasting), owner)

    @atomic
    def leave(self, owner: int) -> None:
        """The owner ends: its uploads have failed, its leases are given back, its pins are gone."""
        self._end_owner(owner, "its process ended")

    @atomic
    def expire(self) -> int:
        """Ends all owners whose deadline has passed. Returns how many."""
        late = self._db.all(f"SELECT id FROM owners WHERE NOT ({ALIVE})", *self.life())
        for (owner,) in late:
            self._end_owner(owner, "its process died")
        return len(late)

    def _deadline(self, lasting: float) -> float:
        return self.uptime() + min(lasting, OWNER_LIFE_MAX_S)

    def _end_owner(self, owner: int, reason: str) -> None:
        for number, raw in self._db.all(
            "SELECT number, extents FROM versions WHERE owner = ? AND state = 0", owner
        ):
            self._fail(number, extent.parse(raw), reason)
        self._sweep(self._db.all("SELECT first, count FROM leases WHERE owner = ?", owner))
        self._db.run("DELETE FROM pins WHERE owner = ?", owner)
        self._db.run("DELETE FROM owners WHERE id = ?", owner)

    # --- tickets

    @atomic
    def discard(self, owner: int, extents: Sequence[Extent]) -> None:
        """Tickets of the owner's leases that an upload which failed has used: they are garbage at once. So is what is no
        part of its leases any more."""
        for place in extents:
            self._throw_away(None, self._carve(owner, place))

    @atomic
    def forgo(self, owner: int, place: Extent, version: int | None = None) -> None:
        """Tickets of the owner's lease, or of its upload, that nothing was put under: they stay unused, and need no
        delete. Nothing happens when the upload has ended already."""
        if version is None:
            self._carve(owner, place)
            return
        raw = self._db.value(
            "SELECT extents FROM versions WHERE number = ? AND owner = ? AND state = 0", version, owner
        )
        if raw is not None:
            self._set_extents(version, extent.difference(extent.parse(raw), [place]))

    @atomic
    def conflicted(self, owner: int, index: int, version: int | None = None) -> None:
        """A ticket of the owner's lease, or of its upload, answered CONFLICT: it is somebody else's, and never deleted,
        also when the owner has been given up meanwhile."""
        if version is not None:
            raw = self._db.value(
                "SELECT extents FROM versions WHERE number = ? AND owner = ? AND state = 0", version, owner
            )
            if raw is not None:
                self._set_extents(version, extent.without(extent.parse(raw), index))
                return
        elif self._carve(owner, Extent(index, 1)):
            return
        for item, of, first, count in self._db.all(
            "SELECT id, version, first, count FROM garbage WHERE first <= ? AND first + count > ?",
            index,
            index,
        ):
            self._db.run("DELETE FROM garbage WHERE id = ?", item)
            self._throw_away(of, extent.without([Extent(first, count)], index))

    # --- uploads

    @atomic
    def reserve(self, count: int) -> range:
        """Numbers for ``count`` versions, for `begin` and `store`: nobody else gets them."""
        if count < 1:
            raise UsageError(f"{count} numbers of versions: at least one is needed")
        first = self._db.value("SELECT version FROM counters")
        self._db.run("UPDATE counters SET version = ?", first + count)
        return range(first, first + count)

    @atomic
    def begin(
        self,
        owner: int,
        namespace: str,
        name: str,
        headers: Mapping[str, str] = {},
        condition: Condition = ANY,
        number: int | None = None,
    ) -> int:
        """A new version, PENDING, of ``owner``. Returns its number, which is ``number`` if that was reserved for it.

        Raises what the condition does: for nothing, the same may be true or not when it is committed.
        """
        self._check_alive(owner)
        number = self._own_number(number, self._db.value("SELECT version FROM counters"))
        if self._state(number) is not None:
            return number
        present = self.lookup(check_namespace(namespace), check_name(name))
        condition.check(name, present)
        self._insert(
            number, namespace, name, VersionState.PENDING, headers, self._moment(present), owner=owner
        )
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
        self,
        owner: int,
        version: int,
        size: int,
        digest: bytes,
        extents: Sequence[Extent],
        condition: Condition = ANY,
        name: str | None = None,
        order: int = 0,
    ) -> Version:
        """All chunks and the manifest are SAVED in ``extents``: the name points to this version from now on, and the one
        before is DELETED. Other tickets of the upload are garbage. Raises what the condition does (the version stays
        PENDING then), and UploadLostError. Once more, it answers as the first time, whatever became of the name since.

        ``name``: the version's from now on, where its bytes say it: it began under another one. ``order``: what its
        manifest says of it; 0 for any that fits. OrderError unless it is above `last_order`: nothing has happened then."""
        if self._state(version) in (VersionState.OK, VersionState.DELETED):
            return self._committed(version, digest)
        held = self._held(owner, version)
        _check_stored(size, digest, extents)
        rest = extent.difference(held, extents)
        if extent.total(held) - extent.total(rest) != extent.total(extents):
            raise UsageError(
                f"version {version} does not have all of the tickets that it is to be committed with"
            )
        if name is not None:
            self._db.run("UPDATE versions SET name = ? WHERE number = ?", check_name(name), version)
        row = self._db.row("SELECT namespace, name FROM versions WHERE number = ?", version)
        assert row is not None
        now, order = self._replace(self._namespace_name(row[0]), row[1], version, condition, digest, order)
        self._throw_away(None, rest)
        self._db.run(
            "UPDATE versions SET state = 1, size = ?, digest = ?, extents = ?, first = ?, owner = NULL,"
            " saved = max(created, ?), rank = ? WHERE number = ?",
            *(size, digest, extent.serialize(extents), extents[0].first, now, order, version),
        )
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
        order: int = 0,
    ) -> Version:
        """A small upload from its beginning to its end: all of it is SAVED already, in leases of the owner's.

        ``number``: of the version, when it was reserved: its manifest names it. ``order``: as with `commit`. Raises what
        the condition does, OrderError and UploadLostError. Once more, with a number, it answers as the first time.
        """
        row = self._db.row(
            "SELECT (SELECT version FROM counters), (SELECT deadline FROM owners WHERE id = ?),"
            " (SELECT state FROM versions WHERE number = ?)",
            *(owner, number),
        )
        assert row is not None
        following, deadline, state = row
        number = self._own_number(number, following)
        if state is not None:
            return self._committed(number, digest)
        self._require(deadline)
        _check_stored(size, digest, extents)
        for place in extents:
            if extent.total(self._carve(owner, place)) < place.count:
                raise UploadLostError(f"{place} is no part of a lease of this process")
        now, order = self._replace(
            check_namespace(namespace), check_name(name), number, condition, digest, order
        )
        return self._insert(
            number, namespace, name, VersionState.OK, headers, now, order, size, digest, tuple(extents)
        )

    @atomic
    def fail(self, owner: int, version: int, reason: str) -> None:
        """An upload broke. All its tickets are garbage, stored or not. Nothing happens when it has ended already."""
        raw = self._db.value(
            "SELECT extents FROM versions WHERE number = ? AND owner = ? AND state = 0", version, owner
        )
        if raw is not None:
            self._fail(version, extent.parse(raw), reason)

    @atomic
    def delete(
        self, namespace: str, name: str, condition: Condition = ANY, reason: str = "deleted"
    ) -> Version:
        """The name has no version any more. Returns the one it had. NotFoundError, and what the condition raises."""
        present = self.lookup(namespace, name)
        condition.check(name, present)
        if present is None:
            raise NotFoundError(f"there is no object {name!r}")
        self._end(present, reason, max(self.clock(), present.saved or 0.0))
        return present

    @atomic
    def restore(
        self,
        number: int,
        namespace: str,
        name: str,
        size: int,
        digest: bytes,
        extents: Sequence[Extent],
        headers: Mapping[str, str],
        created: float,
        order: int,
    ) -> Version:
        """What a manifest says, in a catalog that is made again. Another number when that one has been taken."""
        following = self._db.value("SELECT version FROM counters")
        taken = not 1 <= number < following or self._state(number) is not None
        number = self._own_number(None if taken else number, following)
        # Where the clock had gone back, its dates come behind those of what it replaced all the same.
        saved = max(created, float(order // 1_000_000))
        return self._insert(
            number, namespace, name, VersionState.OK, headers, saved, order, size, digest, tuple(extents)
        )

    def _own_number(self, number: int | None, following: int) -> int:
        if number is None:
            self._db.run("UPDATE counters SET version = ?", following + 1)
            return following
        if not 1 <= number < following:
            raise UsageError(f"version {number} has not been reserved")
        return number

    def _state(self, version: int) -> int | None:
        state: int | None = self._db.value("SELECT state FROM versions WHERE number = ?", version)
        return state

    def _committed(self, number: int, digest: bytes) -> Version:
        """A version whose `commit` or `store` is asked for once more."""
        version = self.version(number)
        if version.state not in (VersionState.OK, VersionState.DELETED) or version.digest != digest:
            raise UploadLostError(f"version {number} is another upload, or was given up")
        return version

    def _held(self, owner: int, version: int) -> tuple[Extent, ...]:
        """The tickets of an upload under way, of an owner that is alive."""
        self._check_alive(owner)
        raw = self._db.value(
            "SELECT extents FROM versions WHERE number = ? AND owner = ? AND state = 0", version, owner
        )
        if raw is None:
            raise UploadLostError(
                "the upload was given up: it failed, or its process gave no sign of life for too long"
            )
        return extent.parse(raw)

    def _set_extents(self, version: int, extents: Sequence[Extent]) -> None:
        self._db.run("UPDATE versions SET extents = ? WHERE number = ?", extent.serialize(extents), version)

    def _insert(
        self,
        number: int,
        namespace: str,
        name: str,
        state: VersionState,
        headers: Mapping[str, str],
        now: float,
        order: int | None = None,
        size: int = 0,
        digest: bytes = b"",
        extents: tuple[Extent, ...] = (),
        owner: int | None = None,
    ) -> Version:
        place = self._namespace(namespace)
        if place is None:
            self._db.run("INSERT INTO namespaces(name) VALUES (?)", namespace)
            place = self._db.last_id()
            self._made.add(namespace)
        saved = now if state is VersionState.OK else None
        self._db.run(
            "INSERT INTO versions(number, namespace, name, state, size, created, saved, owner, first, digest, extents,"
            " headers, rank) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            *(number, place, name, state, size, now, saved, owner),
            *(extents[0].first if extents else None, digest, extent.serialize(extents)),
            msgspec.json.encode(headers).decode() if headers else None,
            order,
        )
        return Version(number, namespace, name, state, size, digest, now, extents, headers, saved, order or 0)

    def _replace(
        self, namespace: str, name: str, version: int, condition: Condition, digest: bytes, order: int
    ) -> tuple[float, int]:
        """The name's version ends. Returns when, and the order of the next one."""
        present = self.lookup(namespace, name)
        condition.check(name, present, digest)
        last, now = self._last_order(namespace, name, present), self._moment(present)
        if order and order <= last:
            raise OrderError(f"version {version} of {name!r} has the order {order}, and {last} is taken")
        if present is not None:
            self._end(present, f"replaced by version {version}", now)
        return now, order or max(order_at(now), last + 1)

    def _moment(self, present: Version | None) -> float:
        """Now. Where the clock is behind what a name has already: the second after that. Else who goes by the dates of HTTP
        would take the old version for the newer one, or both for the same."""
        now = self.clock()
        if present is None or present.saved is None or now >= present.saved:
            return now
        return float(int(present.saved) + 1)

    def _fail(self, version: int, held: Iterable[Extent], reason: str) -> None:
        self._db.run(
            "UPDATE versions SET state = 2, owner = NULL, ended = max(created, ?), reason = ? WHERE number = ?",
            *(self.clock(), reason, version),
        )
        self._throw_away(version, held)

    def _end(self, version: Version, reason: str, now: float) -> None:
        self._db.run(
            "UPDATE versions SET state = 3, ended = ?, reason = ?, rank = ? WHERE number = ?",
            *(now, reason, version.order, version.number),
        )
        self._throw_away(version.number, version.extents)

    # --- downloads

    @atomic
    def pin(self, owner: int, version: int, reader: int = 0) -> None:
        """Keeps the chunks of a version while ``owner`` is alive, until each ``reader`` (a number that the owner gives
        its downloads) was unpinned. NotFoundError when it is not the name's any more, UploadLostError. Once more, it
        answers as the first time, whatever became of the version since."""
        self._check_alive(owner)
        pin = (version, owner, reader)
        if self._db.row("SELECT 1 FROM pins WHERE version = ? AND owner = ? AND reader = ?", *pin):
            return
        if self._state(version) != VersionState.OK:
            raise NotFoundError(f"version {version} has been replaced or deleted")
        self._db.run("INSERT INTO pins VALUES (?, ?, ?)", *pin)

    @atomic
    def unpin(self, owner: int, version: int, reader: int = 0) -> None:
        self._db.run(
            "DELETE FROM pins WHERE version = ? AND owner = ? AND reader = ?", version, owner, reader
        )

    # --- history

    @atomic
    def forget(self, kept: float = HISTORY_KEPT_S, limit: int = 1000) -> int:
        """Drops up to ``limit`` versions that ended more than ``kept`` seconds ago. Returns how many."""
        rows = self._db.all(
            "SELECT number FROM versions v WHERE ended < ? AND NOT EXISTS"
            " (SELECT 1 FROM garbage WHERE version = v.number) ORDER BY ended LIMIT ?",
            self.clock() - kept,
            limit,
        )
        for (number,) in rows:
            self._db.run("DELETE FROM versions WHERE number = ?", number)
        return len(rows)


def _check_stored(size: int, digest: bytes, extents: Sequence[Extent]) -> None:
    """UsageError unless they can be an object's: all of its chunks, and one more at least for its manifest."""
    if size < 0 or len(digest) != DIGEST_SIZE:
        raise UsageError(f"an object of {size} bytes with a digest of {len(digest)}")
    needed = extent.chunks_needed(size) + 1
    if extent.total(extents) < needed:
        raise UsageError(f"an object of {size} bytes takes {needed} tickets or more with its manifest")
