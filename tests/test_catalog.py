"""The catalog: each rule by an example, and all of them against a plain model."""

import contextlib
import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import apsw
import pytest

from ingest.catalog import extent
from ingest.catalog.allocator import atomic
from ingest.catalog.catalog_changes import Catalog
from ingest.catalog.catalog_reader import CatalogReader
from ingest.catalog.extent import FIRST, Extent
from ingest.catalog.version import ABSENT, PRESENT, SAME, Condition, VersionState
from ingest.errors import (
    BusyError,
    CatalogError,
    DiskError,
    NameTakenError,
    NoSpaceError,
    NotFoundError,
    PreconditionError,
    UploadLostError,
    UsageError,
)
from ingest.limits import (
    CATALOG_CHECKPOINT_PAGES,
    CATALOG_RESERVE_SIZE,
    CATALOG_WAL_KEPT_SIZE,
    DATA_SIZE,
)

HERE = Path(__file__).parent
OLD, NEW = bytes([1]) * 32, bytes([2]) * 32


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Rig:
    """A catalog, one transaction for each call."""

    def __init__(self, path: Path) -> None:
        self.clock = Clock()
        self.catalog = Catalog(path, self.clock, self.clock)

    def __call__(self, call: str, *arguments, **more):
        with self.catalog.change():
            return getattr(self.catalog, call)(*arguments, **more)

    def small(self, owner: int, name: str, digest: bytes = OLD, **more):
        """An object of one chunk and its manifest, in a lease of its own."""
        lease = self("lease", owner, 2)
        return self("store", owner, "store", name, 1, digest, [lease], **more)

    def garbage(self) -> list[int]:
        found = [item.extent for item in self.catalog.garbage(1000)]
        return sorted(index for one in found for index in range(one.first, one.stop))


@pytest.fixture
def rig(tmp_path):
    made = Rig(tmp_path / "catalog.db")
    yield made
    made.catalog.close()


@pytest.fixture
def owner(rig):
    return rig("enter", "test")


def indices(*extents: Extent) -> list[int]:
    return sorted(index for one in extents for index in range(one.first, one.stop))


def history(rig: Rig, name: str) -> list[tuple[VersionState, str]]:
    return [(step.state, step.reason) for step in rig.catalog.history("store", name)]


class TestUpload:
    def test_from_its_beginning_to_its_end(self, rig, owner):
        number = rig("begin", owner, "store", "a", {"content-type": "text/plain"})
        assert rig.catalog.lookup("store", "a") is None
        assert rig.catalog.version(number).state is VersionState.PENDING
        held = rig("extend", owner, number, 4)
        assert held == Extent(FIRST, 4)
        rig.clock.now += 1
        done = rig("commit", owner, number, 3000, OLD, [held])
        assert done == rig.catalog.find("store", "a") == rig.catalog.find_object("00000000")
        assert (done.size, done.digest, done.extents) == (3000, OLD, (held,))
        assert done.headers == {"content-type": "text/plain"}
        assert history(rig, "a") == [
            (VersionState.OK, "all chunks saved"),
            (VersionState.PENDING, "upload began"),
        ]
        assert rig.garbage() == []

    def test_ranges_taken_alone_are_one_extent(self, rig, owner):
        number = rig("begin", owner, "store", "a")
        for _ in range(5):
            rig("extend", owner, number, 10)
        assert rig.catalog.version(number).extents == (Extent(FIRST, 50),)

    def test_what_it_took_too_much_is_garbage(self, rig, owner):
        number = rig("begin", owner, "store", "a")
        rig("extend", owner, number, 10)
        rig("commit", owner, number, 1, OLD, [Extent(FIRST + 3, 2)])
        assert rig.garbage() == [*range(FIRST, FIRST + 3), *range(FIRST + 5, FIRST + 10)]

    def test_that_is_not_all_its_own_is_refused(self, rig, owner):
        number = rig("begin", owner, "store", "a")
        held = rig("extend", owner, number, 4)
        other = rig("lease", owner, 4)
        for extents in ([Extent(held.first, 5)], [other], [held, held], [Extent(held.first, 1)]):
            with pytest.raises(UsageError):
                rig("commit", owner, number, 1, OLD, extents)
        with pytest.raises(UsageError):
            rig("commit", owner, number, 1, b"short", [held])
        rig("commit", owner, number, 1, OLD, [held])

    def test_replaces_the_version_before(self, rig, owner):
        before = rig.small(owner, "a")
        number = rig("begin", owner, "store", "a")
        held = rig("extend", owner, number, 2)
        rig.clock.now += 1
        rig("commit", owner, number, 1, NEW, [held])
        assert rig.catalog.find("store", "a").number == number
        assert rig.catalog.version(before.number).state is VersionState.DELETED
        assert rig.garbage() == indices(*before.extents)
        assert history(rig, "a") == [
            (VersionState.OK, "all chunks saved"),
            (VersionState.DELETED, f"replaced by version {number}"),
            (VersionState.PENDING, "upload began"),
            (VersionState.OK, "all chunks saved"),
            (VersionState.PENDING, "upload began"),
        ]

    def test_that_broke(self, rig, owner):
        number = rig("begin", owner, "store", "a")
        held = rig("extend", owner, number, 3)
        rig("fail", owner, number, "the body ended early")
        assert history(rig, "a")[0] == (VersionState.FAILED, "the body ended early")
        assert rig.garbage() == indices(held)
        with pytest.raises(UploadLostError):
            rig("commit", owner, number, 1, OLD, [held])
        with pytest.raises(UploadLostError):
            rig("extend", owner, number, 1)

    def test_is_committed_once_however_often_it_is_asked_for(self, rig, owner):
        number = rig("begin", owner, "store", "a")
        held = rig("extend", owner, number, 2)
        first = rig("commit", owner, number, 1, OLD, [held])
        assert rig("commit", owner, number, 1, OLD, [held]) == first
        rig.small(owner, "a", NEW)
        assert rig("commit", owner, number, 1, OLD, [held]).state is VersionState.DELETED
        with pytest.raises(UploadLostError):
            rig("commit", owner, number, 1, NEW, [held])
        rig("fail", owner, number, "too late")
        assert rig.catalog.version(number).state is VersionState.DELETED

    def test_may_learn_its_name_at_its_end(self, rig, owner):
        before = rig.small(owner, "digest")
        number = rig("begin", owner, "store", "not known yet")
        held = rig("extend", owner, number, 2)
        rig.clock.now += 1
        with pytest.raises(NameTakenError):
            rig("commit", owner, number, 1, NEW, [held], ABSENT, "digest")
        assert rig.catalog.version(number).name == "not known yet"
        with pytest.raises(UsageError):
            rig("commit", owner, number, 1, NEW, [held], ABSENT, "")
        assert rig("commit", owner, number, 1, NEW, [held], name="digest").name == "digest"
        assert rig.catalog.find("store", "digest").number == number
        assert rig.catalog.version(before.number).state is VersionState.DELETED
        assert rig.catalog.lookup("store", "not known yet") is None
        with pytest.raises(NotFoundError):
            rig.catalog.history("store", "not known yet")

    def test_with_a_reserved_number_begins_once(self, rig, owner):
        numbers = rig("reserve", 3)
        assert rig("begin", owner, "store", "a", {}, ABSENT, numbers[1]) == numbers[1]
        assert rig("begin", owner, "store", "a", {}, ABSENT, numbers[1]) == numbers[1]
        assert rig("begin", owner, "store", "b") == numbers[-1] + 1
        with pytest.raises(UsageError):
            rig("begin", owner, "store", "c", number=numbers[-1] + 2)

    def test_conditions_hold_when_it_is_committed_not_when_it_began(self, rig, owner):
        number = rig("begin", owner, "store", "a", condition=ABSENT)
        held = rig("extend", owner, number, 2)
        rig.small(owner, "a")
        with pytest.raises(NameTakenError):
            rig("commit", owner, number, 1, NEW, [held], ABSENT)
        assert rig.catalog.version(number).state is VersionState.PENDING
        assert rig.catalog.find("store", "a").digest == OLD
        rig("fail", owner, number, "there was one already")
        with pytest.raises(NameTakenError):
            rig("begin", owner, "store", "a", condition=ABSENT)
        with pytest.raises(NotFoundError):
            rig("begin", owner, "store", "b", condition=PRESENT)


class TestRestore:
    """What a manifest says, in a catalog that is made again: manifests of one store may contradict each other."""

    def restore(self, rig: Rig, number: int, name: str, created: float = 5.0, order: int = 7):
        place = rig("lease", None, 2)
        return rig("restore", number, "store", name, 1, OLD, [place], {"a": "b"}, created, order)

    def test_under_its_number_or_where_that_is_taken_under_another_one(self, rig):
        numbers = rig("reserve", 5)
        asked = [numbers[1], numbers[3], numbers[1], numbers[-1], numbers[3], 8, 8, 0, -1, 1 << 61]
        restored = [self.restore(rig, number, f"{at}") for at, number in enumerate(asked)]
        found = [version.number for version in restored]
        assert found == [numbers[1], numbers[3], 6, numbers[-1], 7, 8, 9, 10, 11, 12]
        for at, version in enumerate(restored):
            assert rig.catalog.find("store", f"{at}") == rig.catalog.version(version.number) == version
        assert rig("reserve", 1)[0] == 13

    @pytest.mark.parametrize(
        ("created", "order", "saved"),
        [
            (100.5, 100_500_000, 100.5),
            (100.5, 99_000_000, 100.5),
            (100.5, 100_999_999, 100.5),
            (100.5, 101_000_000, 101.0),
            (100.5, 200_700_000, 200.0),
        ],
    )
    def test_its_date_is_not_before_what_it_replaced(self, rig, created, order, saved):
        """Where the clock had gone back its order alone says so."""
        (number,) = rig("reserve", 1)
        version = self.restore(rig, number, "a", created, order)
        assert (version.saved, version.order) == (saved, order)
        assert rig.catalog.last_order("store", "a") == order


@pytest.mark.parametrize("call", ["store", "commit"])
class TestSize:
    """An object has all of its chunks, and one ticket at least for its manifest: else others would be read behind it."""

    def save(self, rig: Rig, call: str, owner: int, size: int, digest: bytes, counts: list[int]):
        number = rig("begin", owner, "store", "a")
        places = []
        for count in counts:
            places.append(
                rig("lease", owner, count) if call == "store" else rig("extend", owner, number, count)
            )
            rig("lease", None, 1)
        if call == "store":
            return rig("store", owner, "store", "a", size, digest, places)
        return rig("commit", owner, number, size, digest, places)

    @pytest.mark.parametrize(
        ("size", "counts"),
        [
            *((0, [2]), (0, [1, 1]), (1, [2]), (DATA_SIZE, [2]), (DATA_SIZE, [3])),
            *(
                (DATA_SIZE + 1, [3]),
                (2 * DATA_SIZE, [1, 1, 1]),
                (2 * DATA_SIZE + 1, [2, 2]),
                (9 * DATA_SIZE, [10]),
            ),
        ],
    )
    def test_that_its_tickets_suffice_for(self, rig, owner, call, size, counts):
        version = self.save(rig, call, owner, size, OLD, counts)
        assert (version.size, [one.count for one in version.extents]) == (size, counts)
        less = [*counts[:-1], counts[-1] - 1] if counts[-1] > 1 else counts[:-1]
        if sum(counts) == extent.chunks_needed(size) + 1:
            with pytest.raises(UsageError):
                self.save(rig, call, owner, size, NEW, less)
        for digest in (b"", NEW[:-1], NEW + b"\0"):
            with pytest.raises(UsageError):
                self.save(rig, call, owner, size, digest, counts)
        for wrong in (-1, -DATA_SIZE, sum(counts) * DATA_SIZE):
            with pytest.raises(UsageError):
                self.save(rig, call, owner, wrong, NEW, counts)
        with pytest.raises(UsageError):
            self.save(rig, call, owner, 0, NEW, [])
        assert rig.catalog.find("store", "a") == version


class TestSmallUpload:
    def test_is_stored_in_one_call(self, rig, owner):
        lease = rig("lease", owner, 10)
        done = rig("store", owner, "store", "a", 1000, OLD, [Extent(lease.first, 2)], {"x-a": "b"})
        assert done == rig.catalog.find("store", "a")
        assert [state for state, _ in history(rig, "a")] == [VersionState.OK, VersionState.PENDING]
        assert [one.extent for one in rig.catalog.leases()] == [Extent(lease.first + 2, 8)]

    def test_takes_tickets_from_anywhere_in_its_leases(self, rig, owner):
        one, two = rig("lease", owner, 4), rig("lease", owner, 4)
        rig("store", owner, "store", "a", 1, OLD, [Extent(one.first + 1, 1), Extent(two.stop - 1, 1)])
        assert [lease.extent for lease in rig.catalog.leases()] == [
            Extent(one.first, 1),
            Extent(one.first + 2, 2),
            Extent(two.first, 3),
        ]
        rig("leave", owner)
        assert rig.garbage() == sorted({*indices(one, two)} - {one.first + 1, two.stop - 1})

    def test_may_go_on_in_the_next_lease(self, rig, owner):
        one, two = rig("lease", owner, 4), rig("lease", owner, 4)
        done = rig("store", owner, "store", "a", 1, OLD, [Extent(one.stop - 1, 2)])
        assert [lease.extent for lease in rig.catalog.leases()] == [
            Extent(one.first, 3),
            Extent(two.first + 1, 3),
        ]
        rig("discard", owner, [Extent(one.first + 2, 1), Extent(two.first + 1, 1)])
        rig("leave", owner)
        assert rig.garbage() == [one for one in indices(one, two) if one not in indices(*done.extents)]

    def test_takes_no_ticket_twice_and_none_of_others(self, rig, owner):
        lease = rig("lease", owner, 4)
        rig("store", owner, "store", "a", 1, OLD, [Extent(lease.first, 2)])
        other = rig("lease", rig("enter", "other"), 4)
        for place in (Extent(lease.first + 1, 2), Extent(lease.first + 3, 2), other, Extent(other.stop, 2)):
            with pytest.raises(UploadLostError):
                rig("store", owner, "store", "b", 1, OLD, [place])
        assert rig.catalog.lookup("store", "b") is None

    def test_is_stored_once_however_often_it_is_asked_for(self, rig, owner):
        lease, (number,) = rig("lease", owner, 2), rig("reserve", 1)
        arguments = ("store", owner, "store", "a", 1, OLD, [lease])
        first = rig(*arguments, number=number)
        assert rig(*arguments, number=number) == first
        rig.small(owner, "a", NEW)
        assert rig(*arguments, number=number).state is VersionState.DELETED
        assert rig.catalog.find("store", "a").digest == NEW

    def test_a_refused_one_leaves_nothing_behind(self, rig, owner):
        rig.small(owner, "a")
        lease = rig("lease", owner, 2)
        with pytest.raises(NameTakenError):
            rig("store", owner, "store", "a", 1, NEW, [lease], condition=SAME)
        assert lease in [one.extent for one in rig.catalog.leases()]
        assert rig.garbage() == []
        rig("store", owner, "store", "a", 1, OLD, [lease], condition=SAME)
        with pytest.raises(PreconditionError):
            rig.small(owner, "a", NEW, condition=Condition(etags=frozenset([NEW.hex()])))

    def test_others_in_its_transaction_are_not_touched_by_a_refused_one(self, rig, owner):
        one, two = rig("lease", owner, 2), rig("lease", owner, 2)
        with rig.catalog.change():
            rig.catalog.store(owner, "new", "a", 1, OLD, [one])
            with pytest.raises(NotFoundError):
                rig.catalog.store(owner, "newer", "b", 1, OLD, [two], condition=PRESENT)
        assert rig.catalog.namespaces() == ["new"]
        assert rig.catalog.find("new", "a").extents == (one,)
        rig("store", owner, "newer", "b", 1, OLD, [two])
        assert rig.catalog.find("newer", "b").namespace == "newer"

    @pytest.mark.parametrize("makes", ["begin", "store", "restore"])
    @pytest.mark.parametrize("undone", ["its transaction", "its call"])
    def test_a_namespace_that_was_unmade_is_forgotten(self, rig, owner, makes, undone):
        """Its number is another one's then: whoever looked at it meanwhile must not have kept it."""

        class Undone(Exception):
            pass

        def make(catalog: Catalog, namespace: str, looks: tuple[str, ...]) -> None:
            place = catalog.lease(owner, 2)
            (number,) = catalog.reserve(1)
            if makes == "begin":
                number = catalog.begin(owner, namespace, "a")
            elif makes == "store":
                catalog.store(owner, namespace, "a", 1, OLD, [place], number=number)
            else:
                catalog.restore(number, namespace, "a", 1, OLD, [place], {}, 1.0, 1)
            for look in looks:
                with contextlib.suppress(NotFoundError):
                    if look == "version":
                        catalog.version(number)
                    elif look == "page":
                        catalog.page(namespace)
                    elif look == "begin":
                        catalog.begin(owner, namespace, "b")
                    else:
                        getattr(catalog, look)(namespace, "a")
            raise Undone

        made: set[str] = set()
        looks = [
            (),
            *((one,) for one in ("lookup", "find", "version", "page", "begin")),
            ("delete", "lookup"),
        ]
        for (number, some), other_first in itertools.product(enumerate(looks), (False, True)):
            unmade = f"unmade {number} {other_first}"
            if undone == "its transaction":
                with pytest.raises(Undone), rig.catalog.change():
                    make(rig.catalog, unmade, some)
            else:
                with rig.catalog.change(), pytest.raises(Undone):
                    atomic(make)(rig.catalog, unmade, some)
            assert set(rig.catalog.namespaces()) == made
            assert rig.catalog.lookup(unmade, "a") is None
            names = [f"other {number}", unmade] if other_first else [unmade]
            for name in names:
                rig("store", owner, name, "a", 1, NEW, [rig("lease", owner, 2)])
            made.update(names)
            with CatalogReader(rig.catalog.path) as fresh:
                for one, name in itertools.product((rig.catalog, fresh), names):
                    found = one.find(name, "a")
                    assert found.namespace == one.version(found.number).namespace == name
                    assert [entry.name for entry in one.page(name)] == ["a"]
                    assert {step.version for step in one.history(name, "a")} == {found.number}

    def test_discarded_tickets_are_garbage_at_once(self, rig, owner):
        lease = rig("lease", owner, 6)
        rig("discard", owner, [Extent(lease.first, 1), Extent(lease.first + 3, 2)])
        gone = [lease.first, lease.first + 3, lease.first + 4]
        assert rig.garbage() == gone
        rig("discard", owner, [Extent(lease.first, 1), Extent(lease.first + 3, 2)])
        assert rig.garbage() == gone

    def test_forgone_tickets_are_nowhere(self, rig, owner):
        lease = rig("lease", owner, 6)
        rig("forgo", owner, Extent(lease.first + 2, 4))
        rig("leave", owner)
        assert rig.garbage() == [lease.first, lease.first + 1]

    def test_forgone_tickets_of_an_upload_are_nowhere(self, rig, owner):
        version = rig("begin", owner, "store", "a")
        held = rig("extend", owner, version, 6)
        for _ in range(2):
            rig("forgo", owner, Extent(held.first + 2, 4), version)
        with pytest.raises(UsageError):
            rig("commit", owner, version, 1, OLD, [Extent(held.first, 3)])
        rig("fail", owner, version, "broke")
        rig("forgo", owner, Extent(held.first, 1), version)  # too late: it is garbage already
        assert rig.garbage() == [held.first, held.first + 1]

    def test_what_is_given_back_is_garbage(self, rig, owner):
        lease = rig("lease", owner, 6)
        rig("store", owner, "store", "a", 1, OLD, [Extent(lease.first + 2, 2)])
        rig("give_back", owner, lease)
        rig("give_back", owner, lease)
        assert rig.garbage() == [*range(lease.first, lease.first + 2), *range(lease.first + 4, lease.stop)]
        assert rig.catalog.leases() == []


class TestConflict:
    def test_of_an_upload(self, rig, owner):
        number = rig("begin", owner, "store", "a")
        held = rig("extend", owner, number, 5)
        rig("conflicted", owner, held.first + 2, number)
        rig("conflicted", owner, held.first + 2, number)
        rig("fail", owner, number, "broke")
        assert rig.garbage() == [one for one in indices(held) if one != held.first + 2]

    def test_of_a_lease(self, rig, owner):
        lease = rig("lease", owner, 5)
        rig("conflicted", owner, lease.first)
        rig("conflicted", owner, lease.first)
        rig("leave", owner)
        assert rig.garbage() == indices(lease)[1:]

    def test_that_is_told_after_the_owner_was_given_up(self, rig, owner):
        number = rig("begin", owner, "store", "a")
        held = rig("extend", owner, number, 5)
        lease = rig("lease", owner, 3)
        rig.clock.now += 31
        rig("expire")
        rig("conflicted", owner, held.first + 4, number)
        rig("conflicted", owner, lease.first + 1)
        assert rig.garbage() == [*indices(held)[:4], lease.first, lease.first + 2]


class TestOwner:
    def test_whose_deadline_passed_has_lost_all(self, rig, owner):
        number = rig("begin", owner, "store", "a")
        held, lease = rig("extend", owner, number, 2), rig("lease", owner, 2)
        rig.clock.now += 29
        rig("renew", owner)
        rig.clock.now += 29
        assert rig("expire") == 0
        rig.clock.now += 1
        for call in (
            ("renew", owner),
            ("extend", owner, number, 1),
            ("commit", owner, number, 1, OLD, [held]),
            ("store", owner, "store", "b", 1, OLD, [lease]),
            ("begin", owner, "store", "c"),
            ("lease", owner, 1),
            ("pin", owner, number),
        ):
            with pytest.raises(UploadLostError):
                rig(*call)
        assert rig("expire") == 1
        assert rig.catalog.version(number).state is VersionState.FAILED
        assert rig.garbage() == indices(held, lease)

    def test_that_leaves_fails_its_uploads_and_no_others(self, rig, owner):
        other = rig("enter", "other")
        mine, its = rig("begin", owner, "store", "a"), rig("begin", other, "store", "a")
        rig("leave", owner)
        rig("leave", owner)
        assert rig.catalog.version(mine).state is VersionState.FAILED
        assert rig.catalog.version(its).state is VersionState.PENDING

    def test_has_a_number_that_nobody_had(self, rig, owner):
        rig("leave", owner)
        assert rig("enter", "another") != owner

    def test_that_is_to_be_alone_of_its_kind(self, rig):
        one = rig("enter_alone", "collector")
        with pytest.raises(BusyError):
            rig("enter_alone", "collector")
        rig("enter_alone", "another kind")
        rig.clock.now += 30
        two = rig("enter_alone", "collector")
        assert one != two
        rig("leave", two)
        rig("enter_alone", "collector")

    def test_that_is_to_be_alone_and_asks_again_is_the_same(self, rig):
        one = rig("enter_alone", "collector", 30.0, "a")
        assert rig("enter_alone", "collector", 30.0, "a") == one
        for token in ("", "b"):
            with pytest.raises(BusyError):
                rig("enter_alone", "collector", 30.0, token)
        rig("enter_alone", "another", 30.0, "a")
        rig("leave", one)
        assert rig("enter_alone", "collector", 30.0, "a") != one


class TestClock:
    """Whoever sets the machine's clock changes nothing for owners; the machine that starts anew ends all of them."""

    @pytest.fixture
    def wall(self, rig) -> Clock:
        rig.catalog.clock = Clock()
        return rig.catalog.clock

    @pytest.mark.parametrize("step", [31, 3600.0, 1e9, -31, -6 * 3600.0, -1e6])
    def test_that_is_set(self, rig, wall, owner, step):
        version = rig.small(owner, "a")
        number = rig("begin", owner, "store", "b")
        lease = rig("lease", owner, 2)
        rig("pin", owner, version.number)
        rig("delete", "store", "a")
        wall.now += step
        assert rig("expire") == 0
        rig("renew", owner)
        held = rig("extend", owner, number, 2)
        rig("commit", owner, number, 1, OLD, [held])
        rig("store", owner, "store", "c", 1, OLD, [lease])
        assert rig.garbage() == [], "it is pinned"
        rig.clock.now += 30
        assert rig("expire") == 1, "the process died"
        assert rig.garbage() == indices(*version.extents)

    @pytest.mark.parametrize("step", [-6 * 3600.0, -1e9])
    def test_that_is_set_back_does_not_keep_the_collector_that_died(self, rig, wall, step):
        rig("enter_alone", "collector")
        wall.now += step
        rig.clock.now += 30
        rig("enter_alone", "collector")

    @pytest.mark.parametrize("uptime", [0.0, 5.0, 1_000_000.0 - 91])
    def test_of_a_machine_that_started_anew(self, rig, owner, uptime):
        version = rig.small(owner, "a")
        number = rig("begin", owner, "store", "b")
        rig("extend", owner, number, 2)
        rig("enter_alone", "collector")
        rig("pin", owner, version.number)
        rig("delete", "store", "a")
        rig.clock.now = uptime
        assert rig.garbage() == indices(*version.extents)
        rig("enter_alone", "collector")
        with pytest.raises(UploadLostError):
            rig("renew", owner)
        assert rig("expire") == 2
        assert rig.catalog.version(number).state is VersionState.FAILED

    def test_of_a_catalog_that_an_earlier_version_wrote(self, rig, owner):
        """Its deadlines were seconds since 1970."""
        number = rig("begin", owner, "store", "b")
        with rig.catalog.change():
            rig.catalog._db.run("UPDATE owners SET deadline = 1.8e9")
        assert rig("expire") == 1
        assert rig.catalog.version(number).state is VersionState.FAILED


class TestPin:
    def test_keeps_the_chunks_while_anybody_reads(self, rig, owner):
        version = rig.small(owner, "a")
        rig("pin", owner, version.number, 1)
        rig("pin", owner, version.number, 2)
        rig("pin", owner, version.number, 2)
        rig("delete", "store", "a")
        assert rig.garbage() == []
        rig("unpin", owner, version.number, 1)
        assert rig.garbage() == []
        rig("unpin", owner, version.number, 2)
        rig("unpin", owner, version.number, 2)
        assert rig.garbage() == indices(*version.extents)

    def test_ends_with_its_owner(self, rig, owner):
        version = rig.small(owner, "a")
        rig("pin", owner, version.number)
        rig("delete", "store", "a")
        rig.clock.now += 30
        assert rig.garbage() == indices(*version.extents)

    @pytest.mark.parametrize("change", ["delete", "replace"])
    def test_that_is_asked_for_again_answers_as_the_first_time(self, rig, owner, change):
        """Its answer was lost, and the version is not the name's any more."""
        version = rig.small(owner, "a")
        rig("pin", owner, version.number, 7)
        if change == "delete":
            rig("delete", "store", "a")
        else:
            rig.small(owner, "a", NEW)
        rig("pin", owner, version.number, 7)
        assert rig.garbage() == []
        with pytest.raises(NotFoundError):
            rig("pin", owner, version.number, 8)
        rig("unpin", owner, version.number, 7)
        assert rig.garbage() == indices(*version.extents)

    def test_of_what_is_gone_is_refused(self, rig, owner):
        version = rig.small(owner, "a")
        rig("delete", "store", "a")
        with pytest.raises(NotFoundError):
            rig("pin", owner, version.number)


class TestDelete:
    def test_and_what_is_left(self, rig, owner):
        version = rig.small(owner, "a")
        assert rig("delete", "store", "a") == version
        assert rig.catalog.lookup("store", "a") is None
        assert rig.catalog.page("store") == []
        assert history(rig, "a")[0] == (VersionState.DELETED, "deleted")
        with pytest.raises(NotFoundError):
            rig("delete", "store", "a")
        with pytest.raises(NotFoundError):
            rig("delete", "nowhere", "a")
        with pytest.raises(NotFoundError):
            rig.catalog.find_object(version.object_id)

    def test_garbage_goes_when_it_is_collected(self, rig, owner):
        for name in "abc":
            rig.small(owner, name)
            rig("delete", "store", name)
        first = rig.catalog.garbage(1)
        rig("collected", first)
        rig("collected", first)
        assert len(rig.garbage()) == 4
        rig("collected", rig.catalog.garbage(1000))
        assert rig.garbage() == []

    def test_history_of_a_name_that_changes_always_is_cut(self, rig, owner):
        with rig.catalog.change():
            lease = rig.catalog.lease(owner, 2100)
            for first in range(lease.first, lease.stop, 2):
                rig.catalog.store(owner, "store", "a", 1, OLD, [Extent(first, 2)])
        told = rig.catalog.history("store", "a")
        assert len({step.version for step in told}) == 1001
        assert told[0].version == rig.catalog.find("store", "a").number

    def test_history_is_forgotten_when_it_is_old_and_collected(self, rig, owner):
        rig.small(owner, "a")
        rig("delete", "store", "a")
        rig.clock.now += 100
        assert rig("forget", 99) == 0
        rig("collected", rig.catalog.garbage(10))
        assert rig("forget", 101) == 0
        assert rig("forget", 99) == 1
        with pytest.raises(NotFoundError):
            rig.catalog.history("store", "a")


class TestTickets:
    def test_of_a_foreign_client_stay_its_own(self, rig):
        lease = rig("lease", None, 1000, "a script")
        rig.clock.now += 1e9
        rig("expire")
        (known,) = rig.catalog.leases()
        assert (known.extent, known.owner, known.what) == (lease, None, "a script")
        assert rig.garbage() == []

    def test_end_somewhere(self, rig, owner):
        with pytest.raises(UsageError):
            rig("lease", owner, extent.ticket.COUNT)
        for count in (0, -1):
            with pytest.raises(UsageError):
                rig("lease", owner, count)
        assert rig("lease", owner, 1).first == FIRST


NAMES = [
    *("a", "a\0", "a\0b", "a b", "ab", "b/../c", "\N{SNOWMAN}", "x" * 1024),
    *("\ud7ff", "\ue000", "\uffff", "\U00010000", "\U0010ffff"),  # where UTF-8 and UTF-16 sort differently
]


class TestListing:
    @pytest.fixture
    def filled(self, rig, owner):
        for name in NAMES[::-1]:
            rig.small(owner, name)
        return rig

    def test_is_in_the_order_of_utf8(self, filled):
        expected = sorted(NAMES, key=str.encode)
        assert [entry.name for entry in filled.catalog.page("store")] == expected
        for name in NAMES:
            assert filled.catalog.find("store", name).name == name

    def test_paged(self, filled):
        found, after = [], ""
        while page := filled.catalog.page("store", after=after, limit=3):
            found += [entry.name for entry in page]
            after = found[-1]
        assert found == sorted(NAMES, key=str.encode)

    @pytest.mark.parametrize("prefix", ["", "a", "a\0", "z", "\ud7ff", "\U0010ffff", "\N{SNOWMAN}", "x"])
    @pytest.mark.parametrize("after", ["", "a", "a b", "\uffff", "x"])
    def test_of_a_prefix(self, filled, prefix, after):
        expected = [
            name
            for name in sorted(NAMES, key=str.encode)
            if name.startswith(prefix) and name.encode() > after.encode()
        ]
        assert [entry.name for entry in filled.catalog.page("store", prefix, after)] == expected

    def test_of_what_is_not_there(self, filled):
        assert filled.catalog.page("nowhere") == []
        with pytest.raises(UsageError):
            filled.catalog.page("store", limit=0)
        for arguments in (("\ud800",), ("store", "\ud800"), ("store", "", "\ud800")):
            with pytest.raises(UsageError):
                filled.catalog.page(*arguments)
        for name in ("\ud800", "x" * 1025, ""):
            with pytest.raises(UsageError):
                filled.catalog.lookup("store", name)

    def test_seeks_to_its_first_name(self, filled):
        """However many names come before it: SQLite says which part of the index it searches."""
        asked = []
        db = filled.catalog._db.connection
        db.exec_trace = lambda _, sql, bindings: asked.append((sql, bindings)) or True
        filled.catalog.page("store", "x", "")
        db.exec_trace = None
        ((sql, bindings),) = asked
        (step,) = db.execute("EXPLAIN QUERY PLAN " + sql, bindings).fetchall()
        assert "COVERING INDEX live (namespace=? AND name>? AND name<?)" in str(step)


class TestMany:
    """Of more than are looked at together none is left out, and none comes twice."""

    @pytest.mark.parametrize("count", [999, 1000, 1001, 2000, 2001])
    def test_versions_of_a_state(self, rig, owner, count):
        with rig.catalog.change():
            lease = rig.catalog.lease(owner, 2 * count)
            for i in range(count):
                rig.catalog.store(owner, "store", f"{i}", 1, OLD, [Extent(lease.first + 2 * i, 2)])
            pending = [rig.catalog.begin(owner, "store", "a") for _ in range(3)]
        found = [version.number for version in rig.catalog.versions(VersionState.OK)]
        assert found == list(range(1, count + 1))
        assert [version.number for version in rig.catalog.versions(VersionState.PENDING)] == pending
        assert len(rig.catalog.page("store", limit=1_000_000)) == min(count, 1000), "a page has no more"
        newest = [version.number for version in rig.catalog.newest(3)]
        assert newest == [count, count - 1, count - 2]

    def test_garbage_a_page_at_a_time(self, rig, owner):
        with rig.catalog.change():
            lease = rig.catalog.lease(owner, 14)
            rig.catalog.discard(owner, [Extent(lease.first + 2 * i, 1) for i in range(7)])
        for limit in range(1, 9):
            last, found = 0, []
            while page := rig.catalog.garbage(limit, last):
                assert len(page) <= limit
                last = page[-1].id
                found += [item.extent.first - lease.first for item in page]
            assert found == list(range(0, 14, 2))
        assert rig.catalog.garbage_size() == (7, 7)


class TestFile:
    def test_is_for_its_owner_alone(self, tmp_path):
        path = tmp_path / "catalog.db"
        mask = os.umask(0)
        try:
            with Catalog(path) as catalog, catalog.change():
                catalog.enter("x")
                modes = {one.name: one.stat().st_mode & 0o777 for one in tmp_path.iterdir()}
        finally:
            os.umask(mask)
        assert modes == {"catalog.db": 0o600, "catalog.db-wal": 0o600, "catalog.db-shm": 0o600}

    def test_that_is_something_else_is_refused(self, tmp_path):
        text, other, newer = tmp_path / "text", tmp_path / "other", tmp_path / "newer"
        text.write_bytes(b"no database at all " * 100)
        apsw.Connection(str(other)).execute("CREATE TABLE t(x)")
        Catalog(newer).close()
        apsw.Connection(str(newer)).pragma("user_version", 3)
        for path, said in ((text, "no whole catalog"), (other, "not a catalog"), (newer, "format 3")):
            with pytest.raises(CatalogError, match=said):
                Catalog(path)

    def test_that_is_damaged_is_reported(self, tmp_path):
        path = tmp_path / "catalog.db"
        Catalog(path).close()
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * (path.stat().st_size - 4096))
        with pytest.raises(CatalogError), Catalog(path) as catalog, catalog.change():
            catalog.enter("x")

    def test_that_is_closed_whole_is_one_file_and_its_reserve(self, tmp_path):
        """Whoever takes it away has all of it; and the next start may come on a full disk."""
        catalog = Catalog(tmp_path / "catalog.db")
        with catalog.change():
            owner = catalog.enter("x")
        reserve = catalog.room
        assert not reserve.path.exists()
        catalog.close_whole()
        left = {path.name for path in tmp_path.iterdir()}
        assert left == {"catalog.db", reserve.path.name, *(spare.name for spare in reserve.spares)}
        assert reserve.path.stat().st_size == CATALOG_RESERVE_SIZE
        with pytest.raises(DiskError, match="closed"), catalog.change():
            pass
        shutil.copy(tmp_path / "catalog.db", tmp_path / "taken.db")
        with Catalog(tmp_path / "taken.db") as taken, taken.change():
            taken.leave(owner)
            assert taken.enter("y") == owner + 1

    @pytest.mark.parametrize("kind", [Catalog, CatalogReader])
    def test_whose_commits_are_durable_when_they_return(self, tmp_path, kind):
        """Whoever opens it, also once more after the disk failed: FULL, in SQLite's log, of a bounded size."""
        with kind(tmp_path / "catalog.db") as catalog:
            for _ in range(2):
                asked = ("synchronous", "journal_mode", "journal_size_limit", "wal_autocheckpoint")
                found = [catalog._db.value(f"PRAGMA {name}") for name in asked]
                assert found == [2, "wal", CATALOG_WAL_KEPT_SIZE, CATALOG_CHECKPOINT_PAGES]
                assert set(catalog.beside) == {tmp_path / f"catalog.db{side}" for side in ("-wal", "-shm")}
                before, catalog._db._spoilt = catalog._db.connection, True
                catalog.namespaces()
                assert catalog._db.connection is not before

    def test_that_is_nowhere(self, tmp_path):
        with pytest.raises(DiskError):
            Catalog(tmp_path / "missing" / "catalog.db")

    @pytest.mark.parametrize(("laid", "chunk"), [("pack", "00/00/00/obj"), ("tree", "00/00/00/00/obj")])
    def test_that_is_lost_is_not_made_anew(self, tmp_path, laid, chunk):
        meta = tmp_path / ".ingest"
        meta.mkdir()
        record = f'{{"format": 1, "layout": "{laid}", "store_id": "{"0" * 32}", "log_id": "{"0" * 32}", "keys": []}}'
        (meta / "store.json").write_text(record)
        Catalog(meta / "catalog.db").close()
        (tmp_path / chunk).parent.mkdir(parents=True)
        (tmp_path / chunk).touch()
        Catalog(meta / "catalog.db").close()
        (meta / "catalog.db").unlink()
        with pytest.raises(CatalogError, match="rebuild"):
            Catalog(meta / "catalog.db")


class TestProcesses:
    def start(self, path: Path, what: str) -> subprocess.Popen:
        command = [sys.executable, str(HERE / "catalog_process.py"), str(path), what]
        environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def test_a_transaction_dies_with_its_process(self, rig, owner, tmp_path):
        version = rig.small(owner, "kept")
        process = self.start(tmp_path / "catalog.db", "hang")
        try:
            assert process.stdout.readline() == "begun\n"
            assert rig.catalog.find("store", "kept") == version  # others read meanwhile
        finally:
            process.kill()
            process.communicate()
        assert [entry.name for entry in rig.catalog.page("store")] == ["kept"]
        assert rig.garbage() == []
        assert rig("lease", owner, 2).first == version.extents[0].stop

    def test_two_change_it_at_once(self, tmp_path):
        path = tmp_path / "catalog.db"
        processes = [self.start(path, name) for name in ("one", "two")]
        for process in processes:
            process.communicate()
            assert process.returncode == 0
        with CatalogReader(path) as reader:
            names = [entry.name for entry in reader.page("store")]
            assert len(names) == 201
            live = indices(*(one for version in reader.versions(VersionState.OK) for one in version.extents))
            garbage = indices(*(item.extent for item in reader.garbage(1000)))
            assert sorted(live + garbage) == list(range(FIRST, FIRST + 800))
            assert len(list(reader.versions(VersionState.DELETED))) == 199


def test_a_full_disk_is_told_as_such_and_changes_nothing(tmp_path):
    with Catalog(tmp_path / "catalog.db") as catalog:
        with catalog.change():
            owner = catalog.enter("x")
        database = catalog._db.connection
        database.pragma("max_page_count", database.pragma("page_count"))  # SQLite's own full disk
        with pytest.raises(NoSpaceError, match="full"), catalog.change():
            for i in range(10_000):
                place = catalog.lease(owner, 2)
                catalog.store(owner, "store", f"{i:06}", 1, bytes(32), [place])
        assert catalog.page("store") == []
