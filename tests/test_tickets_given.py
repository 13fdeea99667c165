"""What the catalog gives, and to whom: up to the last ticket, to the last one of a lease, and to each owner his own."""

from __future__ import annotations

import contextlib
import inspect
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ingest.catalog.catalog_calls import CALLS
from ingest.catalog.catalog_changes import Catalog
from ingest.catalog.extent import FIRST, RESERVED, Extent
from ingest.errors import UploadLostError, UsageError

DIGEST = bytes(32)


class Rig:
    """A catalog, one transaction for each call."""

    def __init__(self, path: Path) -> None:
        self.at = 1000.0  # seconds, of both clocks
        self.catalog = Catalog(path, lambda: self.at, lambda: self.at)

    def __call__(self, call: str, *arguments: Any, **more: Any) -> Any:
        with self.catalog.change():
            return getattr(self.catalog, call)(*arguments, **more)

    def leased(self) -> dict[int, int | None]:
        """Whose each ticket is."""
        return {index: lease.owner for lease in self.catalog.leases() for index in of(lease.extent)}

    def rows(self) -> dict[str, list[tuple[Any, ...]]]:
        """All that it keeps."""
        return {
            table: self.catalog._db.all(f"SELECT * FROM {table}")
            for table in ("counters", "owners", "versions", "leases", "pins", "garbage")
        }

    def garbage(self) -> list[int]:
        return sorted(index for item in self.catalog.garbage(1000) for index in of(item.extent))


def of(place: Extent) -> range:
    return range(place.first, place.stop)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path / "catalog.db")
    yield made
    made.catalog.close()


@pytest.mark.parametrize("left", range(4))
@pytest.mark.parametrize("to", ["owner", "foreign client", "upload"])
def test_the_ticket_that_says_whose_the_store_is_is_never_given(rig: Rig, to: str, left: int) -> None:
    owner = rig("enter", "test")
    version = rig("begin", owner, "n", "a")
    ask = {
        "owner": lambda count: rig("lease", owner, count),
        "foreign client": lambda count: rig("lease", None, count, "foreign"),
        "upload": lambda count: rig("extend", owner, version, count),
    }[to]
    if first := RESERVED - left - FIRST:
        assert rig("lease", owner, first) == Extent(FIRST, first)
    for count in (-1, 0, left + 1, left + 2):
        with pytest.raises(UsageError):
            ask(count)
    if left:
        assert ask(left) == Extent(RESERVED - left, left)
    assert rig.catalog.next_ticket() == RESERVED
    with pytest.raises(UsageError):
        ask(1)


@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("used", range(4))
def test_who_gives_a_lease_back_keeps_those_beside_it(rig: Rig, which: int, used: int) -> None:
    """Also where a ticket of it was used, from the first one to the last one (3: none was)."""
    owner = rig("enter", "test")
    leases = [rig("lease", owner, 3) for _ in range(3)]
    assert all(one.stop == other.first for one, other in itertools.pairwise(leases))
    for lease in leases:
        rig("forgo", owner, Extent(lease.first + used, int(used < 3)))
    kept = [index for index in of(Extent(FIRST, 9)) if (index - FIRST) % 3 != used]
    rig("give_back", owner, leases[which])
    assert rig.garbage() == [index for index in kept if index in of(leases[which])]
    assert rig.leased() == {index: owner for index in kept if index not in of(leases[which])}


# --- whose what is

# What another owner asks, alive or not, about the lease, the upload and the pin of this one.
OF_ANOTHERS: dict[str, Callable[[int, Extent, int, Extent, int], list[tuple[Any, ...]]]] = {
    "discard": lambda other, lease, upload, held, read: [(other, [lease]), (other, [held])],
    "forgo": lambda other, lease, upload, held, read: [
        (other, lease), (other, held), (other, held, upload), (other, lease, upload),
    ],
    "conflicted": lambda other, lease, upload, held, read: [
        (other, lease.first), (other, lease.stop - 1), (other, held.first, upload), (other, held.stop - 1, upload),
    ],
    "give_back": lambda other, lease, upload, held, read: [(other, lease), (other, held)],
    "extend": lambda other, lease, upload, held, read: [(other, upload, 2)],
    "commit": lambda other, lease, upload, held, read: [(other, upload, 1, DIGEST, [held])],
    "store": lambda other, lease, upload, held, read: [
        (other, "n", "stored", 1, DIGEST, [lease]), (other, "n", "stored", 1, DIGEST, [held]),
    ],
    "fail": lambda other, lease, upload, held, read: [(other, upload, "broke")],
    "unpin": lambda other, lease, upload, held, read: [(other, read), (other, read, 7)],
}  # fmt: skip
REFUSED = {"extend", "commit", "store"}
# They make something, or are about the owner.
OF_NOTHING_OF_ANYBODYS = {"renew", "leave", "lease", "begin", "pin"}


def test_each_call_of_an_owner_is_asked_here() -> None:
    asking = {call for call in CALLS if "owner" in inspect.signature(getattr(Catalog, call)).parameters}
    assert asking == OF_ANOTHERS.keys() | OF_NOTHING_OF_ANYBODYS


@pytest.mark.parametrize("who", ["another", "one that has left", "nobody", "itself"])
@pytest.mark.parametrize("call", OF_ANOTHERS)
def test_what_an_owner_has_is_changed_by_no_other(rig: Rig, call: str, who: str) -> None:
    owner, other = rig("enter", "test"), rig("enter", "other")
    whole = rig("lease", owner, 2)
    read = rig("store", owner, "n", "read", 1, DIGEST, [whole]).number
    rig("pin", owner, read, 7)
    rig("pin", owner, read)
    upload = rig("begin", owner, "n", "a")
    held = rig("extend", owner, upload, 3)
    lease = rig("lease", owner, 3)
    if who == "one that has left":
        rig("leave", other)
    asker = {"nobody": 0, "itself": owner}.get(who, other)
    before = rig.rows()
    for asked in OF_ANOTHERS[call](asker, lease, upload, held, read):
        if call in REFUSED and who != "itself":
            with pytest.raises(UploadLostError):
                rig(call, *asked)
        elif who != "itself":
            rig(call, *asked)
        else:
            with contextlib.suppress(UploadLostError):  # of the two that the table has, one fits
                rig(call, *asked)
    assert (rig.rows() == before) is (who != "itself"), call


@pytest.mark.parametrize("how", ["leave", "expire"])
def test_no_row_names_an_owner_that_has_ended(rig: Rig, how: str) -> None:
    """In no table that has owners: what stays of each process that ever was would be for ever."""
    owner, other = rig("enter", "test", 50), rig("enter", "other", 100)
    tables = [
        table
        for (table,) in rig.catalog._db.all("SELECT name FROM sqlite_master WHERE type = 'table'")
        if any(row[1] == "owner" for row in rig.catalog._db.all(f"PRAGMA table_info({table})"))
    ]
    assert {"leases", "pins", "versions"} <= set(tables)

    def of_each() -> dict[tuple[str, int], int]:
        count = "SELECT count(*) FROM {} WHERE owner = ?"
        return {
            (table, one): rig.catalog._db.value(count.format(table), one)
            for table in tables
            for one in (owner, other)
        }

    for one in (owner, other):
        read = rig("store", one, "n", f"read {one}", 1, DIGEST, [rig("lease", one, 2)]).number
        for reader in range(2):
            rig("pin", one, read, reader)
        for name in "ab":
            rig("extend", one, rig("begin", one, "n", name), 2)
            rig("lease", one, 3)
    before = of_each()
    assert all(before.values())
    if how == "leave":
        rig("leave", owner)
    else:
        rig.at += 75
        assert rig("expire") == 1
    assert of_each() == {(table, one): before[table, one] * (one == other) for table, one in before}
