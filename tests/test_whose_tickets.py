"""What an owner may change is its own: tickets, uploads and pins of others stay as they are, whatever it asks for."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ingest.catalog.catalog_changes import Catalog
from ingest.catalog.catalog_reader import ALIVE
from ingest.catalog.extent import Extent
from ingest.catalog.version import Version, VersionState
from ingest.errors import UploadLostError

DIGEST = bytes(range(32))
TABLES = ("leases", "versions", "pins", "garbage")


class Rig:
    """``me`` has a lease, an upload under way and a pin; ``other`` is alive, and has the like."""

    def __init__(self, path: Path) -> None:
        self.now = 1000.0
        self.catalog = Catalog(path, lambda: self.now, lambda: self.now)
        with self.catalog.change():
            self.foreign = self.catalog.lease(None, 8, "a script")
            self.me, self.lease, self.upload, self.held, self.stored = self.fill("mine")
            self.other, self.its_lease, self.its_upload, self.its_held, _ = self.fill("its")

    def fill(self, name: str) -> tuple[int, Extent, int, Extent, Version]:
        catalog = self.catalog
        owner = catalog.enter(name)
        stored = catalog.store(owner, "n", name, 1, DIGEST, [catalog.lease(owner, 2)])
        catalog.pin(owner, stored.number, 1)
        lease = catalog.lease(owner, 8)
        upload = catalog.begin(owner, "n", name)
        return owner, lease, upload, catalog.extend(owner, upload, 8), stored

    def __call__(self, call: str, *arguments: object) -> object:
        with self.catalog.change():
            return getattr(self.catalog, call)(*arguments)

    def everything(self) -> dict[str, list[tuple[object, ...]]]:
        return {name: self.catalog._db.all(f"SELECT * FROM {name}") for name in TABLES}

    def garbage(self) -> list[int]:
        found = [item.extent for item in self.catalog.garbage(1000)]
        return sorted(index for one in found for index in range(one.first, one.stop))

    def leased(self) -> list[int]:
        found = [one.extent for one in self.catalog.leases()]
        return sorted(index for one in found for index in range(one.first, one.stop))


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path / "catalog.db")
    yield made
    made.catalog.close()


def calls(rig: Rig, owner: int, lease: Extent) -> list[tuple[object, ...]]:
    """What ``owner`` may ask about a lease and an upload."""
    part, number = Extent(lease.first, 2), rig.upload
    return [
        ("give_back", owner, lease),
        *(("discard", owner, [place]) for place in (part, lease)),
        *(("forgo", owner, place) for place in (part, lease)),
        *(("conflicted", owner, index) for index in (lease.first, lease.stop - 1)),
        ("store", owner, "n", "new", 1, DIGEST, [part]),
        ("extend", owner, number, 4),
        ("commit", owner, number, 1, DIGEST, [Extent(rig.held.first, 2)]),
        ("forgo", owner, rig.held, number),
        *(("conflicted", owner, index, number) for index in (rig.held.first, rig.held.stop - 1)),
        ("fail", owner, number, "not by its owner"),
        ("unpin", owner, rig.stored.number, 1),
    ]


def test_what_belongs_to_another_owner_stays_as_it_is(rig: Rig) -> None:
    """Also a lease of a foreign client, which is nobody's; and nobody is no owner."""
    nobody = 0
    for owner, lease in (
        (rig.other, rig.lease),
        (rig.other, rig.foreign),
        (rig.me, rig.foreign),
        (nobody, rig.lease),
    ):
        for call in calls(rig, owner, lease):
            if owner == rig.me and (call[0] == "unpin" or rig.upload in call):
                continue
            before = rig.everything()
            try:
                rig(*call)  # type: ignore[arg-type]
            except UploadLostError:
                assert call[0] in ("store", "extend", "commit"), call
            assert rig.everything() == before, call


def test_its_owner_can_do_all_of_that(rig: Rig) -> None:
    """Else the test before would be of calls that do nothing."""

    class Undone(Exception):
        pass

    before = rig.everything()
    for call in calls(rig, rig.me, rig.lease):
        with pytest.raises(Undone), rig.catalog.change():
            getattr(rig.catalog, str(call[0]))(*call[1:])
            assert rig.everything() != before, call
            raise Undone


def test_neighbours_of_a_lease_stay_leases(rig: Rig) -> None:
    """What is given back is this lease, to its last ticket, and none of the one before or behind it."""
    one, two, three = (rig("lease", rig.me, 4) for _ in range(3))
    assert isinstance(one, Extent) and isinstance(two, Extent) and isinstance(three, Extent)
    assert (one.stop, two.stop) == (two.first, three.first)
    before = set(rig.leased())
    rig("forgo", rig.me, Extent(two.first, 1))  # so that what is left does not begin where the lease did
    rig("store", rig.me, "n", "new", 1, DIGEST, [Extent(two.first + 1, 2)])
    rig("give_back", rig.me, two)
    assert set(rig.leased()) == before - set(range(two.first, two.stop))
    assert rig.garbage() == [two.stop - 1]


@pytest.mark.parametrize("first", range(11))
def test_of_an_upload_only_what_is_forgone_is_nowhere(rig: Rig, first: int) -> None:
    """Wherever that lies among its extents; what is not among them is not looked for. The rest is garbage when it breaks."""
    for count in range(1, 12 - first):
        number = rig("begin", rig.me, "n", "upload")
        places = []
        for size in (3, 1, 4):  # with the lease of somebody else between them
            places.append(rig("extend", rig.me, number, size))
            rig("lease", None, 1)
        held = [index for place in places for index in range(place.first, place.stop)]  # type: ignore[attr-defined]
        gone = Extent(held[0] + first, count)
        leased, before = rig.leased(), rig.garbage()
        rig("forgo", rig.me, gone, number)
        rest = [index for index in held if not gone.first <= index < gone.stop]
        assert isinstance(number, int)
        kept = rig.catalog.version(number).extents
        assert [index for place in kept for index in range(place.first, place.stop)] == rest
        rig("fail", rig.me, number, "broke")
        assert rig.garbage() == before + rest and rig.leased() == leased


@pytest.mark.parametrize("count", [1, 2, 5])
def test_of_garbage_a_conflict_takes_one_ticket_and_leaves_it_with_its_version(rig: Rig, count: int) -> None:
    """Whichever it is. What is left is kept while somebody reads the version that had it."""
    for at in range(-1, count + 1):
        place = rig("lease", rig.me, count + 3)
        assert isinstance(place, Extent)
        number = rig("begin", rig.me, "n", f"{at}")
        held = rig("extend", rig.me, number, count)
        assert isinstance(held, Extent) and isinstance(number, int)
        rig("fail", rig.me, number, "broke")
        before = rig.garbage()
        index = held.first + at
        rig("conflicted", rig.me, index, number)
        assert rig.garbage() == [one for one in before if one != index]
        entries = [one for one in rig.catalog.garbage(100) if one.version == number]
        assert sum(one.extent.count for one in entries) == count - (0 <= at < count)


def test_who_has_ended_has_nothing_any_more(rig: Rig) -> None:
    """By its own will or by its deadline: no lease, no pin, no upload; the others have theirs."""
    for end in ("leave", "expire"):
        theirs = {name: rig.everything()[name] for name in ("leases", "pins")}
        gone = rig("enter", "short-lived", 1.0)
        rig("lease", gone, 4)
        rig("pin", gone, rig.stored.number, 1)
        number = rig("begin", gone, "n", "upload")
        if end == "leave":
            rig("leave", gone)
        else:
            rig.now += 1.0
            assert rig("expire") == 1
        assert {name: rig.everything()[name] for name in ("leases", "pins")} == theirs
        assert rig.catalog._db.all("SELECT 1 FROM owners WHERE id = ?", gone) == []
        assert rig.catalog.version(number).state is VersionState.FAILED  # type: ignore[arg-type]
        alive = rig.catalog._db.all(f"SELECT id FROM owners WHERE {ALIVE}", *rig.catalog.life())
        assert alive == [(rig.me,), (rig.other,)]
        assert {
            number for (number,) in rig.catalog._db.all("SELECT number FROM versions WHERE state = 0")
        } == {
            rig.upload,
            rig.its_upload,
        }
