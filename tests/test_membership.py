"""What a process has in advance of a catalog: its lease, also when the catalog refuses another one."""

import asyncio
from pathlib import Path

import pytest

from ingest.catalog.catalog_changes import Catalog
from ingest.catalog.extent import FIRST, Extent
from ingest.catalog.local_catalog import LocalCatalog
from ingest.errors import ConnectionLostError, IngestError, NoSpaceError, ReadOnlyError, UsageError
from ingest.limits import VERSIONS_RESERVED
from ingest.objects.membership import NOBODY, Membership
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


@pytest.mark.parametrize("left", range(6))
def test_who_has_entered_again_takes_nothing_of_the_lease_of_before(tmp_path, left):
    """Whatever was left of it, and however this process learned of it: it was given up with its owner."""
    path = tmp_path / "catalog.db"

    async def work(membership: Membership) -> None:
        if left < 5:
            await take(membership, 5 - left)
        first = membership.owner
        set_deadline(path, first, 0)
        assert await membership.entered_again(first)
        assert not await membership.entered_again(membership.owner), "that one is alive"
        with Catalog(path) as catalog, catalog.change():
            assert catalog.expire() == 1
            swept = {index for item in catalog.garbage(10) for index in indices(item.extent)}
        for count in (1, 2, 5):
            taken = await membership.take(count)
            assert taken.owner == membership.owner != first
            assert not swept & set(indices(taken.place))
            await membership.settle(taken)

    run(path, work)


def test_a_lease_goes_back_with_its_last_upload_and_not_before(tmp_path):
    """One that is open is taken from, also while nothing of it is under way; one that is used up waits for its uploads."""
    path = tmp_path / "catalog.db"

    def leased() -> list[Extent]:
        with Catalog(path) as reader:
            return [one.extent for one in reader.leases()]

    async def work(membership: Membership) -> None:
        early, late = await membership.take(2), await membership.take(2)
        await membership.settle(early)
        await membership.settle(late)
        assert leased() == [Extent(FIRST, 5)], "its last ticket can be had"
        last = await membership.take(1)
        assert last.place == Extent(FIRST + 4, 1)
        more = await membership.take(1)
        assert more.place == Extent(FIRST + 5, 1)
        assert leased() == [Extent(FIRST, 5), Extent(FIRST + 5, 5)], "one upload of the first is under way"
        await membership.settle(last)
        assert leased() == [Extent(FIRST + 5, 5)]
        await membership.settle(more)
        assert leased() == [Extent(FIRST + 5, 5)]

    run(path, work)
    assert leased() == []
    with Catalog(path) as catalog:
        garbage = [index for item in catalog.garbage(10) for index in indices(item.extent)]
        assert garbage == list(range(FIRST, FIRST + 6)), "what was given out"


@pytest.mark.parametrize("entered", [True, False])
def test_what_the_disk_refuses_lasts_until_the_next_sign_of_life(tmp_path, monkeypatch, entered):
    """What it was the last time is told, to each who would store; that the catalog is away says nothing of the disk."""
    path = tmp_path / "catalog.db"

    async def main() -> None:
        catalog = await LocalCatalog.open(path)
        refusals: list[IngestError] = [] if entered else [NoSpaceError("full")]

        def refusing(call):
            async def refuse(*arguments):
                if refusals:
                    raise refusals[0]
                return await call(*arguments)

            return refuse

        for name in ("enter", "renew"):
            monkeypatch.setattr(catalog, name, refusing(getattr(catalog, name)))
        membership = await Membership.enter(catalog, "test", 5)
        assert (membership.owner != NOBODY) == entered
        told = refusals[0] if refusals else None
        away = ConnectionLostError("away")
        for error in (
            None,
            NoSpaceError("full"),
            away,
            ReadOnlyError("no change"),
            NoSpaceError("full"),
            None,
            away,
        ):
            refusals[:] = [] if error is None else [error]
            owner = membership.owner
            assert await membership.entered_again(owner) == (error is None and owner == NOBODY)
            told = None if error is None else told if error is away else error
            if told is None:
                membership.check()
                assert membership.owner != NOBODY
                continue
            for _ in range(2):
                with pytest.raises(type(told), match=str(told)):
                    membership.check()
        refusals.clear()
        await membership.leave()
        await catalog.close()

    asyncio.run(main())


def indices(place: Extent) -> range:
    return range(place.first, place.stop)
