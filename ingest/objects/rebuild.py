"""A lost catalog, made again from the manifests in a store at rest. `docs/objects.md`, "The manifest".

    every chunk with a ticket of eight characters → which are stored, and which of them are manifests
    of each name the version with the highest order that is whole → the new catalog
    everything else → orphans: uploads that were under way, garbage, and what foreign clients stored

Nothing in the store is changed, and the new catalog takes its place when it is whole.
"""

from __future__ import annotations

import os
from array import array
from bisect import bisect_right
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ingest import sharding, ticket
from ingest.catalog import extent
from ingest.catalog.catalog_changes import Catalog
from ingest.catalog.catalog_socket import catalog_path, service_lock
from ingest.catalog.database import make_file
from ingest.catalog.extent import FIRST, RESERVED, Extent
from ingest.errors import CatalogError, ForeignStoreError, UsageError
from ingest.limits import CHECKSUM_SIZE, DATA_SIZE, LOG_SEGMENT_SIZE, TICKET_SIZE
from ingest.objects import binding, manifest
from ingest.objects.manifest import Manifest
from ingest.runtime.durable_files import open_new, rename_durably, sync_directory, sync_file
from ingest.runtime.key_file import read_keys
from ingest.store.check.contents import Contents, opened_at_rest
from ingest.store.check.findings import Progress, no_progress
from ingest.store.check.pack_check import Resolved
from ingest.store.data_dir import DataDir

SIDES = ("", "-wal", "-shm")  # the files of an SQLite database in WAL mode
NAMES_TOGETHER = 1000  # restored in one transaction
USED_TOGETHER = 100_000  # extents read at a time: neighbours become one at once
HEAD = TICKET_SIZE + CHECKSUM_SIZE
# The allocator leaves gaps: what was given and never put. They are of uploads that died (64 packs at most, each) and of
# leases of foreign clients. One that is larger, 2.4 GB, has something foreign behind it; if it was a lease after all, the
# uploads that come there find its tickets taken and pass them by.
STRAY_GAP_TICKETS = 36**4

SCRATCH = """
CREATE TABLE scratch.found(
    place INTEGER PRIMARY KEY, version INTEGER, rank INTEGER, namespace TEXT, name TEXT, manifest BLOB);
CREATE INDEX scratch.named ON found(namespace, name, rank DESC, version DESC);
CREATE TABLE scratch.used(first INTEGER PRIMARY KEY, count INTEGER);
"""


@dataclass
class Rebuilt:
    """What came of it. ``objects`` of ``bytes`` together are in the new catalog; ``outdated`` manifests were of versions
    before them. ``incomplete``: names whose newest versions were not whole, with what they lack. ``unsigned``: chunks
    that look like a manifest and are none of ours. ``orphans``: stored tickets that no object has. ``next_ticket``: that the
    allocator gives first."""

    data_dir: str
    chunks: int = 0
    objects: int = 0
    bytes: int = 0
    outdated: int = 0
    unsigned: int = 0
    incomplete: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    orphans: list[Extent] = field(default_factory=list)
    next_ticket: str = ""

    def as_json(self) -> dict[str, Any]:
        return vars(self) | {"orphans": [(ticket.format(one.first), one.count) for one in self.orphans]}


def rebuild(
    data_dir: Path,
    *,
    key_file: Path | None = None,
    wal_dir: Path | None = None,
    replace: bool = False,
    discard_orphans: bool = False,
    progress: Progress = no_progress,
    segment_size: int = LOG_SEGMENT_SIZE,
) -> Rebuilt:
    """Makes `DATA/.ingest/catalog.db`. With ``replace`` in the place of one that is there, which stays beside it as
    `catalog.db.old`. ``discard_orphans`` makes garbage of them: only when no foreign client has tickets of eight characters.

    UsageError (there is a catalog), StoreLockedError (a server or gateway runs), ConfigError and KeyFileError as
    `ingest export`, CatalogError, DiskError, OSError.
    """
    target = catalog_path(data_dir)
    if target.exists() and not replace:
        raise UsageError(f"{target}: there is a catalog already")
    new = target.with_name(f"{target.name}.new")
    scratch = target.with_name(f"{target.name}.scratch")
    with opened_at_rest(data_dir, key_file, wal_dir, segment_size) as contents, service_lock(data_dir):
        made = DataDir(data_dir).key
        path = key_file or made
        keys = [manifest.manifest_key(key) for key in read_keys(path, own=path == made)]
        _remove(new, scratch)
        make_file(new)
        os.close(open_new(scratch))
        try:
            with Catalog(new) as catalog:
                found = _Rebuild(catalog, scratch, keys, Rebuilt(str(data_dir)))
                found.look(contents, progress)
                found.restore(progress)
                found.count_orphans(discard_orphans)
                found.finish()
            _put_in_place(new, target)
        finally:
            _remove(new, scratch)
    return found.result


class _Rebuild:
    def __init__(self, catalog: Catalog, scratch: Path, keys: list[bytes], result: Rebuilt) -> None:
        self.catalog = catalog
        self.db = catalog._db
        self.keys = keys
        self.result = result
        self.starts, self.stops = array("q"), array("q")  # of the runs of stored tickets, in their order
        self.used_to = FIRST  # behind every ticket that was ever stored
        self._gaps: list[Extent] = []  # between those, as the allocator does not leave them
        self._placed_to = FIRST  # behind every extent of a manifest, whole or not
        self._begun: tuple[int, int, bytes] | None = None  # a manifest that goes on in the next pack
        self.db.run("PRAGMA synchronous = OFF")  # the file is synced when it is whole
        self.db.run("ATTACH ? AS scratch", str(scratch))
        self.db.run("PRAGMA scratch.synchronous = OFF")
        self.db.run(SCRATCH)

    # --- what is there

    def look(self, contents: Contents, progress: Progress) -> None:
        packs = sorted(pack for pack in contents.packs if pack >= sharding.ticket_pack(FIRST))
        with self.catalog.change():
            for done, pack in enumerate(packs):
                progress("looking", done, len(packs))
                base = sharding.slot_ticket(pack, 0)
                found = contents.read(pack)
                self.result.problems += contents.losses()
                if base <= RESERVED < base + len(found.present):
                    self._note_binding(found, RESERVED - base)
                self._note_runs(base, found)
                self._find_manifests(base, found)
        progress("looking", len(packs), len(packs))

    def _note_binding(self, found: Resolved, slot: int) -> None:
        """The catalog is the successor of the one that the store names. That chunk is nobody's otherwise: it is no orphan,
        and no gap is looked for before it."""
        if found.present[slot]:
            try:
                self.catalog.adopt(binding.parse(found.frames[slot, HEAD:].tobytes()))
            except ForeignStoreError as error:
                self.result.problems.append(f"no gateway will start here: {error}")
        elif found.deleted[slot] or found.lost[slot]:
            self.catalog.bound()  # by its objects
            self.result.problems.append(
                f"ticket {binding.TICKET} was deleted or lost: the store no longer says which catalog is its own"
            )
        for bits in (found.present, found.deleted, found.lost):
            bits[slot] = False

    def _note_runs(self, base: int, found: Resolved) -> None:
        used = np.flatnonzero(found.present | found.deleted | found.lost)
        if len(used):
            first = base + int(used[0])
            if first - self.used_to >= STRAY_GAP_TICKETS:
                self._gaps.append(Extent(self.used_to, first - self.used_to))
            self.used_to = base + int(used[-1]) + 1
        slots = np.flatnonzero(found.present)
        self.result.chunks += len(slots)
        for run in np.split(slots, np.flatnonzero(np.diff(slots) != 1) + 1):
            if not len(run):
                continue
            first, stop = base + int(run[0]), base + int(run[-1]) + 1
            if self.stops and self.stops[-1] == first:
                self.stops[-1] = stop
            else:
                self.starts.append(first)
                self.stops.append(stop)

    def _find_manifests(self, base: int, found: Resolved) -> None:
        data = found.frames[:, HEAD:]
        if self._begun is not None:
            self._go_on(base, found)
        magic = np.frombuffer(manifest.MAGIC, np.uint8)
        for slot in np.flatnonzero((data[:, : len(magic)] == magic).all(axis=1) & found.present):
            self._take(base + int(slot), manifest.begins(data[slot].tobytes()), b"", base, found)

    def _go_on(self, base: int, found: Resolved) -> None:
        assert self._begun is not None
        (place, chunks, begun), self._begun = self._begun, None
        if place + len(begun) // DATA_SIZE == base:
            self._take(place, chunks, begun, base, found)

    def _take(self, place: int, chunks: int, begun: bytes, base: int, found: Resolved) -> None:
        """A manifest of ``chunks`` chunks from ``place`` on, of which ``begun`` came in the packs before."""
        start = place + len(begun) // DATA_SIZE - base
        stop = min(place + chunks - base, len(found.present))
        if chunks == 0 or not found.present[start:stop].all():
            return
        data = begun + found.frames[start:stop, HEAD:].tobytes()
        if len(data) < chunks * DATA_SIZE:
            self._begun = (place, chunks, data)
            return
        try:
            one = manifest.parse(data, place, self.keys)
        except CatalogError:
            self.result.unsigned += 1
            return
        self._placed_to = max(self._placed_to, *(place.stop for place in one.places))
        self.db.run(
            "INSERT INTO scratch.found VALUES (?, ?, ?, ?, ?, ?)",
            *(place, one.version, one.rank, one.namespace, one.name, msgspec.msgpack.encode(one)),
        )

    # --- the new catalog

    def restore(self, progress: Progress) -> None:
        """Of each name the newest version that is whole."""
        count, done = self.db.value("SELECT count(*) FROM scratch.found"), 0
        highest = self.db.value("SELECT max(version) FROM scratch.found") or 0
        with self.catalog.change():
            self.db.run("UPDATE counters SET version = ?", highest + 1)
        last = ("", "")
        while names := self.db.all(
            "SELECT DISTINCT namespace, name FROM scratch.found WHERE (namespace, name) > (?, ?)"
            " ORDER BY namespace, name LIMIT ?",
            *(*last, NAMES_TOGETHER),
        ):
            with self.catalog.change():
                for namespace, name in names:
                    done += self._restore_name(namespace, name)
            last = names[-1][:2]
            progress("restoring", done, count)

    def _restore_name(self, namespace: str, name: str) -> int:
        """Returns how many manifests there are of it."""
        rows = self.db.all(
            "SELECT manifest FROM scratch.found WHERE namespace = ? AND name = ?"
            " ORDER BY rank DESC, version DESC, place DESC",
            *(namespace, name),
        )
        lacking = ""
        found = [msgspec.msgpack.decode(raw, type=Manifest) for (raw,) in rows]
        for number, one in enumerate(found):
            lacks = self._lacks(one)
            if not lacks:
                self._restore(one)
                self.result.outdated += len(rows) - number - 1
                self._doubt(one, found[number + 1 :])
                break
            lacking = lacking or f"{namespace} {name!r}, version {one.version}: {lacks}"
        if lacking:
            self.result.incomplete.append(lacking)
        return len(rows)

    def _doubt(self, taken: Manifest, others: list[Manifest]) -> None:
        """Reports what may be newer than what was taken: manifests of before there was an order know the clock alone."""
        for one in others:
            if (
                not taken.order
                and not one.order
                and one.version > taken.version
                and one.digest != taken.digest
            ):
                self.result.problems.append(
                    f"{taken.namespace} {taken.name!r}: version {taken.version} was taken, which is newer by its clock;"
                    f" version {one.version}, at {ticket.format(one.places[0].first)}, is by its number"
                )

    def _lacks(self, one: Manifest) -> str:
        """Why a version can't be restored; empty when it is whole."""
        for place in one.places:
            run = bisect_right(self.starts, place.first) - 1
            if run < 0 or self.stops[run] < place.stop:
                return f"not all chunks of {place} are stored"
            before = self.db.row(
                "SELECT first + count FROM scratch.used WHERE first < ? ORDER BY first DESC LIMIT 1",
                place.stop,
            )
            if before is not None and before[0] > place.first:
                return f"{place} has chunks of another object"
        return ""

    def _restore(self, one: Manifest) -> None:
        self.catalog.restore(
            one.version, one.namespace, one.name, one.size, bytes.fromhex(one.digest), one.places,
            one.headers, one.created, one.rank,
        )  # fmt: skip
        for place in one.places:
            self.db.run("INSERT INTO scratch.used VALUES (?, ?)", place.first, place.count)
        self.result.objects += 1
        self.result.bytes += one.size

    def count_orphans(self, discard: bool) -> None:
        live: list[Extent] = []
        after = 0
        while rows := self.db.all(
            "SELECT first, count FROM scratch.used WHERE first > ? ORDER BY first LIMIT ?",
            after,
            USED_TOGETHER,
        ):
            after = rows[-1][0]
            live[-1:] = extent.joined([*live[-1:], *(Extent(first, count) for first, count in rows)])
        stored = [Extent(start, stop - start) for start, stop in zip(self.starts, self.stops, strict=True)]
        self.result.orphans = extent.difference(stored, live)
        if discard:
            # What lies behind the allocator's next ticket may be an upload's one day: it must not be garbage then.
            rest = Extent(self._next_ticket(), ticket.COUNT - self._next_ticket())
            with self.catalog.change():
                self.catalog.throw_away(extent.difference(self.result.orphans, [rest]))

    def _next_ticket(self) -> int:
        """Behind all that the allocator can have given: every object, and what is used without a great gap from there on.

        What lies further behind was put without a lease; behind all of that there may be no ticket left.
        """
        for gap in self._gaps:
            start = max(gap.first, self._placed_to)
            if gap.stop - start >= STRAY_GAP_TICKETS:
                return start
        return max(self.used_to, self._placed_to)

    def finish(self) -> None:
        following = self._next_ticket()
        with self.catalog.change():
            self.db.run("UPDATE counters SET ticket = ?", following)
        self.result.next_ticket = ticket.format(following) if following < RESERVED else ""
        if following < self.used_to:
            stray = next(gap.stop for gap in self._gaps if gap.stop > following)
            self.result.problems.append(
                f"tickets from {ticket.format(stray)} on are used, {stray - following:,} behind the last one that an upload"
                " can have got: somebody stores without a lease. Uploads go on at"
                f" {ticket.format(following)}; those that come there one day pass such tickets by"
            )
        elif not self.result.next_ticket:
            self.result.problems.append(
                "there are no tickets left for uploads: all up to the last one are used"
            )
        self.db.run("DETACH scratch")
        self.db.run("PRAGMA wal_checkpoint(TRUNCATE)")


def _put_in_place(new: Path, target: Path) -> None:
    sync_file(new)
    if target.exists():  # else somebody died who had moved it, and the rest of it follows
        # A log that stayed would be taken for that of the one which comes there.
        _remove(Path(f"{target}.old"))
        sync_directory(target.parent)  # else a power cut may leave it beside the file that is moved next
    for side in SIDES:  # the file before its log: SQLite throws a log without a file away
        old = Path(f"{target}{side}")
        if old.exists():
            os.rename(old, f"{target}.old{side}")
    sync_directory(target.parent)
    rename_durably(new, target)


def _remove(*paths: Path) -> None:
    for path in paths:
        for side in (*SIDES, "-journal"):
            Path(f"{path}{side}").unlink(missing_ok=True)
