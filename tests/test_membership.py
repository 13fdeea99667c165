"""What a process has in advance of a catalog: its lease, also when the catalog refuses another one."""

import asyncio
from pathlib import Path

import pytest

from ingest.catalog.catalog_changes import Catalog
from ingest.catalog.extent import FIRST, Extent
from ingest.catalog.local_catalog import LocalCatalog
from ingest.errors import ConnectionLostError, UsageError
from ingest.limits import VERSIONS_RESERVED
from ingest.objects.membership import Membership
from ingest.ticket import COUNT


async def take(membership: Membership, count: int) -> Extent:
    taken = await membership.take(count)
    await membership.settle(taken)
    return taken.place


def set_deadline(path: Path, owner: int, deadline: float) -> None:
    with Catalog(path) as catalog, catalog.change():
        catalog._db.run("UPDATE owners SET deadline = ? WHERE id = ?", deadline, owner)


def run(path: Path, work) -> None:
    async def with_catalog() -> None:
        catalog = await LocalCatalog.open(path)
        try:
            membership = await Membership.enter(catalog, "test", 5)
            await work(membership)
            await membership.leave()
        finally:
            await catalog.close()

    asyncio.run(with_catalog())


def test_a_lease_that_could_not_be_replaced_is_not_taken_from(tmp_path):
    async def work(membership: Membership) -> None:
        assert await take(membership, 4) == Extent(FIRST, 4)
        with pytest.raises(UsageError):
            await take(membership, COUNT)
        assert await take(membership, 1) == Extent(FIRST + 5, 1)  # its last ticket was forgone

    run(tmp_path / "catalog.db", work)


def test_a_process_that_was_given_up_enters_again_at_once(tmp_path):
    """It stood still for too long: what begins afterwards is not to suffer for it."""
    path = tmp_path / "catalog.db"

    async def work(membership: Membership) -> None:
        first = membership.owner
        assert not await membership.entered_again(first), "it is alive"
        assert await take(membership, 4) == Extent(FIRST, 4)
        set_deadline(path, first, 0)
        assert await take(membership, 2) == Extent(FIRST + 5, 2)
        second = membership.owner
        assert second > first
        set_deadline(path, second, 0)
        again = await asyncio.gather(*(membership.entered_again(second) for _ in range(3)))
        assert again == [True] * 3
        assert membership.owner == second + 1, "once for all of them"

    run(path, work)


def test_uploads_at_the_same_time_have_tickets_and_numbers_of_their_own(tmp_path):
    uploads = 2 * VERSIONS_RESERVED + 1

    async def work(membership: Membership) -> None:
        places = await asyncio.gather(*(take(membership, 2) for _ in range(uploads)))
        tickets = {index for place in places for index in range(place.first, place.stop)}
        assert len(tickets) == 2 * uploads
        numbers = await asyncio.gather(*(membership.number() for _ in range(uploads)))
        assert len(set(numbers)) == uploads

    run(tmp_path / "catalog.db", work)


def test_what_was_never_given_out_is_no_garbage(tmp_path):
    path = tmp_path / "catalog.db"

    async def work(membership: Membership) -> None:
        await take(membership, 2)
        await take(membership, 9)  # more than the lease has, and than it would be

    run(path, work)
    with Catalog(path) as catalog:
        assert [item.extent for item in catalog.garbage(10)] == [Extent(FIRST, 2), Extent(FIRST + 5, 9)]
        assert not catalog.leases()
        assert catalog.next_ticket() == FIRST + 14


def test_a_lease_that_the_catalog_did_not_let_go_goes_with_its_last_upload(tmp_path):
    """Else what is left of it stays taken for as long as the process lives."""
    path = tmp_path / "catalog.db"

    async def work(membership: Membership) -> None:
        catalog = membership._catalog
        uploads = [await membership.take(2) for _ in range(2)]
        forgo, catalog.forgo = catalog.forgo, refused
        with pytest.raises(ConnectionLostError):
            await membership.take(9)
        catalog.forgo = forgo
        for left in (1, 0):
            await membership.settle(uploads[left])
            with Catalog(path) as reader:
                assert len(reader.leases()) == left

    async def refused(*_) -> None:
        raise ConnectionLostError("away")

    run(path, work)
