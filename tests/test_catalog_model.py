"""The catalog against a plain model: where every ticket that was ever given is, whatever happens in whatever order."""

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from ingest.catalog import extent
from ingest.catalog.catalog_changes import Catalog
from ingest.catalog.extent import FIRST, Extent
from ingest.catalog.version import VersionState
from ingest.errors import NotFoundError, UploadLostError

DIGEST = bytes(32)
NAMES = st.sampled_from(["a", "b", "c"])
COUNTS = st.integers(2, 5)


class Crash(Exception):
    pass


def runs(tickets) -> list[Extent]:
    return list(extent.joined(Extent(one, 1) for one in sorted(tickets)))


class CatalogMachine(RuleBasedStateMachine):
    """``place``: ticket → the lease's owner, the version, or the garbage that it is in; nowhere: collected, conflicted."""

    owners = Bundle("owners")
    uploads = Bundle("uploads")
    pinned = Bundle("pinned")

    @initialize()
    def start(self):
        self.directory = Path(tempfile.mkdtemp(prefix="catalog"))
        self.now = 1000.0
        self.catalog = self.open()
        self.deadlines: dict[int, float] = {}
        self.place: dict[int, tuple] = {}
        self.live: dict[str, int] = {}
        self.pending: dict[int, tuple[int, str]] = {}
        self.pins: set[tuple[int, int, int]] = set()
        self.next = FIRST

    def open(self) -> Catalog:
        return Catalog(self.directory / "catalog.db", lambda: self.now, lambda: self.now)

    def teardown(self):
        if hasattr(self, "catalog"):
            self.catalog.close()
            shutil.rmtree(self.directory)

    def make(self, call, *arguments, **more):
        with self.catalog.change():
            return getattr(self.catalog, call)(*arguments, **more)

    def alive(self, owner: int) -> bool:
        return self.deadlines.get(owner, 0) > self.now

    def tickets(self, *place) -> list[int]:
        return sorted(index for index, found in self.place.items() if found == place)

    def move(self, tickets, *place):
        for index in tickets:
            self.place[index] = place

    def give(self, found: Extent, *place):
        assert found.first == self.next
        self.next = found.stop
        self.move(range(found.first, found.stop), *place)

    def end(self, owner: int):
        for number in [number for number, (of, _) in self.pending.items() if of == owner]:
            del self.pending[number]
            self.move(self.tickets("version", number), "garbage", number)
        self.move(self.tickets("lease", owner), "garbage", None)
        self.pins = {pin for pin in self.pins if pin[0] != owner}
        self.deadlines.pop(owner, None)

    # --- owners and time

    @rule(target=owners, lasting=st.integers(1, 100))
    def enter(self, lasting):
        owner = self.make("enter", "x", lasting)
        assert owner not in self.deadlines
        self.deadlines[owner] = self.now + lasting
        return owner

    @rule(seconds=st.integers(1, 60))
    def wait(self, seconds):
        self.now += seconds

    @rule(owner=owners)
    def renew(self, owner):
        if self.alive(owner):
            self.make("renew", owner, 30)
            self.deadlines[owner] = self.now + 30
        else:
            with pytest.raises(UploadLostError):
                self.make("renew", owner, 30)

    @rule(owner=consumes(owners))
    def leave(self, owner):
        self.make("leave", owner)
        self.end(owner)

    @rule()
    def expire(self):
        late = [owner for owner, deadline in self.deadlines.items() if deadline <= self.now]
        assert self.make("expire") == len(late)
        for owner in late:
            self.end(owner)

    # --- tickets

    @rule(owner=owners, count=COUNTS)
    def lease(self, owner, count):
        if self.alive(owner):
            self.give(self.make("lease", owner, count), "lease", owner)
        else:
            with pytest.raises(UploadLostError):
                self.make("lease", owner, count)

    @rule(count=COUNTS)
    def lease_for_good(self, count):
        self.give(self.make("lease", None, count, "foreign"), "lease", None)

    @rule(owner=owners, data=st.data())
    def discard(self, owner, data):
        held = self.tickets("lease", owner)
        gone = data.draw(st.sets(st.sampled_from(held), max_size=3)) if held else set()
        self.make("discard", owner, [Extent(one, 1) for one in sorted(gone)])
        self.move(gone, "garbage", None)

    @rule(owner=owners, data=st.data())
    def conflict_in_lease(self, owner, data):
        held = self.tickets("lease", owner)
        if held:
            index = data.draw(st.sampled_from(held))
            self.make("conflicted", owner, index)
            del self.place[index]

    @rule(owner=owners, data=st.data())
    def give_back(self, owner, data):
        held = runs(self.tickets("lease", owner))
        if held:
            lease = data.draw(st.sampled_from(held))
            self.make("give_back", owner, lease)
            self.move(range(lease.first, lease.stop), "garbage", None)

    # --- uploads

    @rule(target=uploads, owner=owners, name=NAMES)
    def begin(self, owner, name):
        if not self.alive(owner):
            with pytest.raises(UploadLostError):
                self.make("begin", owner, "n", name)
            return multiple()
        number = self.make("begin", owner, "n", name)
        self.pending[number] = (owner, name)
        return number, owner

    @rule(upload=uploads, count=COUNTS)
    def extend(self, upload, count):
        number, owner = upload
        if number in self.pending and self.alive(owner):
            self.give(self.make("extend", owner, number, count), "version", number)
        else:
            with pytest.raises(UploadLostError):
                self.make("extend", owner, number, count)

    @rule(upload=uploads, data=st.data())
    def conflict_in_upload(self, upload, data):
        number, owner = upload
        held = self.tickets("version", number) if number in self.pending else self.tickets("garbage", number)
        if held and number not in self.live.values():
            index = data.draw(st.sampled_from(held))
            self.make("conflicted", owner, index, number)
            del self.place[index]

    @rule(upload=uploads, data=st.data())
    def commit(self, upload, data):
        number, owner = upload
        held = self.tickets("version", number)
        if number not in self.pending or not self.alive(owner) or len(held) < 2:
            return
        kept = data.draw(st.lists(st.sampled_from(held), min_size=2, unique=True))
        _, name = self.pending.pop(number)
        self.make("commit", owner, number, 1458 * (len(kept) - 1), DIGEST, runs(kept))
        self.replaced(name, number)
        self.move(set(held) - set(kept), "garbage", None)

    @rule(owner=owners, name=NAMES, data=st.data())
    def store(self, owner, name, data):
        held = self.tickets("lease", owner)
        if len(held) < 2:
            return
        kept = data.draw(st.lists(st.sampled_from(held), min_size=2, max_size=4, unique=True))
        call = ("store", owner, "n", name, 1, DIGEST, [Extent(one, 1) for one in kept])
        if not self.alive(owner):
            with pytest.raises(UploadLostError):
                self.make(*call)
            return
        number = self.make(*call).number
        self.replaced(name, number)
        self.move(kept, "version", number)

    def replaced(self, name: str, number: int | None):
        before = self.live.pop(name, None)
        if before is not None:
            self.move(self.tickets("version", before), "garbage", before)
        if number is not None:
            self.live[name] = number

    @rule(upload=uploads)
    def fail(self, upload):
        number, owner = upload
        self.make("fail", owner, number, "broke")
        if self.pending.pop(number, None):
            self.move(self.tickets("version", number), "garbage", number)

    @rule(name=NAMES)
    def delete(self, name):
        if name in self.live:
            assert self.make("delete", "n", name).number == self.live[name]
            self.replaced(name, None)
        else:
            with pytest.raises(NotFoundError):
                self.make("delete", "n", name)

    # --- downloads and garbage

    @rule(target=pinned, owner=owners, name=NAMES, reader=st.integers(0, 1))
    def pin(self, owner, name, reader):
        if name not in self.live or not self.alive(owner):
            return multiple()
        pin = (owner, self.live[name], reader)
        self.make("pin", *pin)
        self.pins.add(pin)
        return pin

    @rule(pin=consumes(pinned))
    def unpin(self, pin):
        self.make("unpin", *pin)
        self.pins.discard(pin)

    def collectable(self) -> set[int]:
        read = {version for owner, version, _ in self.pins if self.alive(owner)}
        return {
            index for index, found in self.place.items() if found[0] == "garbage" and found[1] not in read
        }

    @rule(limit=st.integers(1, 5))
    def collect(self, limit):
        some = self.catalog.garbage(limit)
        for item in some:
            for index in range(item.extent.first, item.extent.stop):
                assert index in self.collectable()
                del self.place[index]
        self.make("collected", some)

    @rule()
    def forget(self):
        self.make("forget", 50)

    # --- crashes

    @rule(owner=owners, name=NAMES)
    def crash_within_a_transaction(self, owner, name):
        with pytest.raises(Crash), self.catalog.change():
            other = self.catalog.enter("other")
            found = self.catalog.lease(other, 4)
            self.catalog.store(other, "never", name, 1, DIGEST, [Extent(found.first, 2)])
            self.catalog.store(other, "n", name, 1, DIGEST, [Extent(found.first + 2, 2)])
            self.catalog.leave(owner)
            self.catalog.expire()
            raise Crash

    @rule(owner=owners)
    def connection_dropped_within_a_transaction(self, owner):
        other = self.open()
        other._db.run("BEGIN IMMEDIATE")
        found = other.lease(None, 2)
        assert found.first == self.next
        other.leave(owner)
        other.close()

    @rule()
    def open_again(self):
        self.catalog.close()
        self.catalog = self.open()

    # --- what is always true

    @invariant()
    def every_ticket_is_where_it_should_be(self):
        found: dict[int, tuple] = {}

        def note(one: Extent, *place):
            for index in range(one.first, one.stop):
                assert index not in found, f"{index} is in {found[index]} and in {place}"
                found[index] = place

        for lease in self.catalog.leases():
            note(lease.extent, "lease", lease.owner)
        for state in (VersionState.PENDING, VersionState.OK):
            for version in self.catalog.versions(state):
                for one in version.extents:
                    note(one, "version", version.number)
        for version, first, count in self.catalog._db.all("SELECT version, first, count FROM garbage"):
            note(Extent(first, count), "garbage", version)
        assert found == self.place
        assert self.catalog.next_ticket() == self.next

    @invariant()
    def what_may_be_deleted_is_what_nobody_reads(self):
        found = {
            index
            for item in self.catalog.garbage(10_000)
            for index in range(item.extent.first, item.extent.stop)
        }
        assert found == self.collectable()

    @invariant()
    def names_are_as_they_should_be(self):
        assert [entry.name for entry in self.catalog.page("n")] == sorted(self.live)
        for name, number in self.live.items():
            assert self.catalog.find("n", name).number == number
            assert [s.state for s in self.catalog.history("n", name) if s.version == number] == [
                VersionState.OK,
                VersionState.PENDING,
            ]
        assert {version.number for version in self.catalog.versions(VersionState.PENDING)} == set(
            self.pending
        )


CatalogMachine.TestCase.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestCatalogMachine = CatalogMachine.TestCase
