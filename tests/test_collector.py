"""The collector beside an engine that refuses: what it passes by, what ends its run, and that nothing is forgotten."""

import asyncio
import itertools
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import apsw
import pytest
from reference_server import ERROR, NO_SPACE, Faults, ReferenceServer

from ingest.catalog.catalog_changes import Catalog
from ingest.catalog.catalog_reader import CatalogReader, Garbage
from ingest.catalog.extent import FIRST, RESERVED, Extent
from ingest.catalog.local_catalog import LocalCatalog
from ingest.client.async_client import AsyncClient
from ingest.errors import BusyError, ConnectionLostError, DataDirLostError, NotFoundError, RefusedError
from ingest.limits import COLLECT_BATCH, HISTORY_KEPT_S
from ingest.objects.collector import Collector, _merged, described, waiting
from ingest.status import Status
from ingest.store.possession import Possession

KEY = bytes(range(32))
BUSY = int(Status.BUSY)


class Watched(LocalCatalog):
    """Says which of its calls have been answered."""

    done: Callable[[str], None]

    async def _ask(self, kind: Any, call: str, *arguments: Any) -> Any:
        answer = await super()._ask(kind, call, *arguments)
        self.done(call)
        return answer


class Rig:
    """A catalog with garbage in it, and an engine that answers the n-th frame for a ticket with ``answers[ticket]``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answers: dict[int, int] = {}
        self.asked: Counter[int] = Counter()
        self.faults = Faults(answer=self._answer)
        self.retry_for = 60.0
        self.confirmed = 0
        # Called behind each call of the catalog, and each look at whose store it is.
        self.done: Callable[[str], None] = lambda step: None

    def _answer(self, index: int, seen: int) -> int | None:
        self.asked[index] += index != RESERVED
        if index == RESERVED:
            self.confirmed += 1
            self.done("confirm")
        return self.answers.get(index)

    def throw_away(self, *extents: Extent) -> None:
        with Catalog(self.path) as catalog, catalog.change():
            for one in extents:
                catalog.throw_away([one])

    def garbage(self) -> list[Extent]:
        with CatalogReader(self.path) as reader:
            return [item.extent for item in reader.garbage(100_000)]

    def run(self, work: Callable[[Collector], Coroutine[Any, Any, Any]]) -> Any:
        async def main() -> Any:
            with ReferenceServer([KEY], self.faults) as self.server, CatalogReader(self.path) as reader:
                catalog = await Watched.open(self.path)
                catalog.done = lambda call: self.done(call)
                put = self.server.put_address
                async with await AsyncClient.connect(put, None, KEY, retry_for=self.retry_for) as client:
                    possession = Possession({})
                    possession.add_changing(lambda: reader.beside)
                    result = await work(Collector(client, catalog, reader, possession))
                await catalog.close()
                return result

        return asyncio.run(main())


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path / "catalog.db")


def extents(count: int, size: int = 1) -> list[Extent]:
    """None of which is another one's neighbour."""
    return [Extent(FIRST + i * (size + 1), size) for i in range(count)]


@pytest.mark.parametrize("status", [NO_SPACE, ERROR])
@pytest.mark.parametrize("place", [0, 1, COLLECT_BATCH - 1, COLLECT_BATCH, 2 * COLLECT_BATCH])
def test_what_is_refused_keeps_nothing_else(rig: Rig, status: int, place: int) -> None:
    places = extents(2 * COLLECT_BATCH + 1)
    rig.throw_away(*places)
    rig.answers[places[place].first] = status

    async def work(collector: Collector) -> None:
        done = await collector.run(retry_for=0)
        assert (done.entries, done.tickets) == (len(places) - 1, len(places) - 1)
        assert [(one.garbage.extent, one.status) for one in done.refused] == [(places[place], status)]
        assert rig.garbage() == [places[place]]
        rig.answers.clear()
        again = await collector.run(retry_for=0)
        assert (again.entries, again.refused) == (1, [])

    rig.run(work)
    assert rig.garbage() == []
    assert rig.server.model.deleted == {one.first for one in places}


@pytest.mark.parametrize("place", [0, 1, COLLECT_BATCH - 1, COLLECT_BATCH])
def test_a_catalog_that_is_lost_meanwhile(rig: Rig, place: int) -> None:
    """The delete that is under way is the last one, and may have waited long: the engine can be away for a minute. The
    catalog of now is not told of its page."""
    places = extents(3 * COLLECT_BATCH)
    rig.throw_away(*places)

    async def work(collector: Collector) -> None:
        answer = rig._answer

        def lose(index: int, seen: int) -> int | None:
            if index == places[place].first:
                rig.path.with_name(f"{rig.path.name}-wal").unlink(missing_ok=True)
            return answer(index, seen)

        rig.faults.answer = lose
        with pytest.raises(DataDirLostError, match="is gone"):
            await collector.run(retry_for=0)
        page = place // COLLECT_BATCH
        assert rig.server.model.deleted == {one.first for one in places[: place + 1]}
        assert len(collector._reader.garbage(len(places))) == len(places) - page * COLLECT_BATCH
        asked = rig.asked.total()
        with pytest.raises(DataDirLostError):
            await collector.run(retry_for=0)
        assert rig.asked.total() == asked

    rig.run(work)


def gone(path: Path) -> None:
    path.unlink()


def another_one(path: Path) -> None:
    """As whoever puts a copy back does it."""
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    copy.replace(path)


@pytest.mark.parametrize("side", ["-wal", "-shm"])
@pytest.mark.parametrize("lose", [gone, another_one])
@pytest.mark.parametrize(
    ("step", "pages"),
    [
        ("enter_alone", 0), ("expire", 0), ("confirm", 0), ("renew", 0), ("collected", 1), ("renew", 1), ("collected", 2)
    ],
)  # fmt: skip
def test_a_catalog_that_is_lost_between_two_pages(
    rig: Rig, side: str, lose: Callable[[Path], None], step: str, pages: int
) -> None:
    """Behind each call that comes before a page: nothing more is deleted of what the catalog of now may have as live.
    ``pages``: that were deleted until then."""
    places = extents(3 * COLLECT_BATCH)
    rig.throw_away(*places)

    def done(call: str) -> None:
        if call == step and len(rig.server.model.deleted) == pages * COLLECT_BATCH:
            rig.done = lambda call: None
            lose(rig.path.with_name(f"{rig.path.name}{side}"))

    async def work(collector: Collector) -> None:
        rig.done = done
        with pytest.raises(DataDirLostError, match="is gone" if lose is gone else "is not the one"):
            await collector.run(retry_for=0)
        assert rig.server.model.deleted == {one.first for one in places[: pages * COLLECT_BATCH]}
        assert rig.confirmed == (step not in ("enter_alone", "expire")), "the id is that of the lost one"
        asked = rig.asked.total()
        with pytest.raises(DataDirLostError):
            await collector.run(retry_for=0)
        assert rig.asked.total() == asked

    rig.run(work)


def test_more_are_refused_than_are_asked_for_together(rig: Rig) -> None:
    places = extents(2 * COLLECT_BATCH)
    rig.throw_away(*places)
    rig.answers = {one.first: NO_SPACE for one in places[: COLLECT_BATCH + 1]}
    done = rig.run(lambda collector: collector.run(retry_for=0))
    assert len(done.refused) == COLLECT_BATCH + 1 and done.entries == COLLECT_BATCH - 1
    assert rig.garbage() == places[: COLLECT_BATCH + 1]


@pytest.mark.parametrize("refused", [5, 6])
def test_a_run_in_which_too_much_is_refused_ends(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, refused: int
) -> None:
    """With its page: an engine that deletes nothing is not asked for all of it, which may be a million entries."""
    monkeypatch.setattr("ingest.objects.collector.COLLECT_REFUSED_MAX", 5)
    places = extents(2 * COLLECT_BATCH)
    rig.throw_away(*places)
    rig.answers = {one.first: NO_SPACE for one in places[:refused]}
    done = rig.run(lambda collector: collector.run(retry_for=0))
    assert len(done.refused) == refused
    assert done.entries == (2 if refused == 5 else 1) * COLLECT_BATCH - refused


def test_neighbours_of_what_is_refused_are_deleted(rig: Rig) -> None:
    """They are asked for in one delete, as long as that is taken."""
    places = [Extent(FIRST + 10 * i, 10) for i in range(5)]
    rig.throw_away(*places)
    rig.answers = {FIRST: NO_SPACE, FIRST + 20: NO_SPACE}
    done = rig.run(lambda collector: collector.run(retry_for=0))
    assert [one.garbage.extent for one in done.refused] == [places[0], places[2]]
    assert rig.garbage() == [places[0], places[2]]
    gone = {*range(FIRST + 10, FIRST + 20), *range(FIRST + 30, FIRST + 50)}
    assert rig.server.model.deleted == gone


def test_the_next_run_is_the_next_try(rig: Rig) -> None:
    """The client's patience with ERROR would keep the rest waiting for a minute."""
    rig.throw_away(*extents(3))
    rig.answers[FIRST] = ERROR
    rig.run(lambda collector: collector.run(retry_for=0))
    assert rig.asked[FIRST] == 1


def test_a_node_that_takes_no_deletes_ends_the_run(rig: Rig) -> None:
    places = extents(3)
    rig.throw_away(*places)
    rig.answers = {one.first: BUSY for one in places}

    async def work(collector: Collector) -> None:
        with pytest.raises(RefusedError, match="BUSY"):
            await collector.run(retry_for=0)
        assert sum(rig.asked.values()) == 1
        rig.answers.clear()
        done = await collector.run(retry_for=0)  # the collector before has left
        assert done.entries == 3

    rig.run(work)
    assert rig.garbage() == []


def test_a_connection_that_is_lost_ends_the_run(rig: Rig) -> None:
    rig.throw_away(*extents(3))
    rig.retry_for = 0
    rig.faults.cut_put_after = [1]

    async def work(collector: Collector) -> None:
        with pytest.raises(ConnectionLostError):
            await collector.run()

    rig.run(work)
    assert rig.garbage() == extents(3)
    assert rig.run(lambda collector: collector.run()).entries == 3
    assert rig.garbage() == []


def test_trouble_that_lasts_is_told_once(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.throw_away(*extents(3))

    async def work(collector: Collector) -> None:
        running = asyncio.create_task(collector.run_for_ever(0.001))
        for status in (BUSY, int(Status.BAD_CHECKSUM), BUSY, 0):
            rig.answers = {one.first: status for one in extents(3)} if status else {}
            asked = rig.asked.total()
            while rig.asked.total() < asked + 5 and rig.garbage():
                await asyncio.sleep(0.001)
        running.cancel()

    rig.run(work)
    told = [line for line in caplog.messages if line.startswith("not everything was collected")]
    assert [line.rpartition(" ")[2] for line in told] == ["BUSY", "BAD_CHECKSUM", "BUSY"]
    assert rig.garbage() == []


def test_another_collector_is_at_work(rig: Rig) -> None:
    rig.throw_away(*extents(1))
    with Catalog(rig.path) as catalog, catalog.change():
        catalog.enter_alone("collector", 1e6)
    assert rig.run(lambda collector: collector.run()) is None
    assert rig.garbage() == extents(1)


def test_a_catalog_that_is_held_is_no_other_collector(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process takes the catalog for itself when the deletes are under way."""
    monkeypatch.setattr("ingest.catalog.database.CATALOG_BUSY_S", 0.1)
    rig.throw_away(*extents(1))
    other = apsw.Connection(str(rig.path))

    def hold(index: int, seen: int) -> None:
        if seen == 1 and index != RESERVED:
            other.execute("BEGIN IMMEDIATE")

    rig.faults.answer = hold

    async def work(collector: Collector) -> None:
        with pytest.raises(BusyError, match="another process"):
            await collector.run()
        other.execute("ROLLBACK")
        with Catalog(rig.path) as catalog, catalog.change():
            catalog._db.run("UPDATE owners SET deadline = 0")  # it could not leave
        assert (await collector.run()).entries == 1

    rig.run(work)
    assert rig.garbage() == []


def test_a_refusal_is_told_once(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    places = extents(30)
    rig.throw_away(*places)
    rig.answers = {places[0].first: NO_SPACE}

    def told() -> list[str]:
        found = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        caplog.clear()
        return found

    async def work(collector: Collector) -> None:
        await collector.run(retry_for=0)
        (line,) = told()
        assert "00000000+1" in line and "NO_SPACE" in line
        await collector.run(retry_for=0)
        assert told() == []
        rig.answers = {places[0].first: ERROR}
        await collector.run(retry_for=0)
        (line,) = told()
        assert "ERROR" in line
        rig.throw_away(*places[1:])
        rig.answers = {one.first: NO_SPACE for one in places}
        await collector.run(retry_for=0)
        lines = told()
        assert len(lines) == 11 and lines[-1].endswith("20 more extents")

    rig.run(work)


@pytest.mark.parametrize("refused", [False, True])
def test_history_that_is_old_goes_with_the_last_of_its_chunks(rig: Rig, refused: bool) -> None:
    """In the same run; what ended lately is told still, and so is what has garbage left: it says whose that is."""
    now = time.time()
    with Catalog(rig.path) as catalog:
        for name, age in (
            ("old", HISTORY_KEPT_S + 60),
            ("older", 2 * HISTORY_KEPT_S),
            ("late", HISTORY_KEPT_S - 60),
        ):
            catalog.clock = lambda age=age: now - age
            with catalog.change():
                place = catalog.lease(None, 2)
                owner = catalog.enter("test")
                catalog.store(owner, "n", name, 1, bytes(32), [catalog.lease(owner, 2)])
                catalog.leave(owner)
                catalog.delete("n", name)
            if refused and name == "old":
                rig.answers[place.stop] = NO_SPACE

    async def work(collector: Collector) -> None:
        done = await collector.run(retry_for=0)
        assert (done.forgotten, len(done.refused)) == (2 - refused, refused)
        assert described(done)["forgotten"] == 2 - refused
        rig.answers.clear()
        assert (await collector.run(retry_for=0)).forgotten == refused

    rig.run(work)
    with CatalogReader(rig.path) as reader:
        assert reader.history("n", "late")
        for name in ("old", "older"):
            with pytest.raises(NotFoundError):
                reader.history("n", name)


def test_a_dry_run_counts_what_was_refused(rig: Rig) -> None:
    rig.throw_away(*extents(3, size=5))
    rig.answers[FIRST] = NO_SPACE
    rig.run(lambda collector: collector.run(retry_for=0))
    with CatalogReader(rig.path) as reader:
        found = waiting(reader)
    assert (found.entries, found.tickets) == (1, 5)


def test_what_is_deleted_together_is_what_the_entries_name() -> None:
    """No ticket more, none less, however they lie to each other; and each entry is told by its own place's answer."""
    places = [Extent(FIRST + first, count) for first in range(5) for count in range(1, 4)]
    for some in itertools.combinations_with_replacement(places, 3):
        found = [Garbage(number, None, place) for number, place in enumerate(some)]
        merged = _merged(found[::-1])
        tickets = [index for place, _ in merged for index in range(place.first, place.stop)]
        assert sorted({index for one in some for index in range(one.first, one.stop)}) == tickets
        assert all(before.stop < after.first for (before, _), (after, _) in itertools.pairwise(merged))
        assert sorted(item.id for _, items in merged for item in items) == [0, 1, 2]
        for place, items in merged:
            assert all(place.first <= item.extent.first <= item.extent.stop <= place.stop for item in items)
