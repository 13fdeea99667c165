"""Which of a name's versions is newer: an order says it, whatever the clock does."""

import itertools
from pathlib import Path
from typing import Any

import apsw
import pytest

from ingest.catalog.catalog_changes import Catalog
from ingest.catalog.version import ANY, Condition, Version, VersionState, order_at
from ingest.errors import OrderError, PreconditionError

NOON = 1_900_000_000.0
HOUR = 3600.0


class Names:
    """A catalog under a clock of its own, in which objects of one chunk are stored."""

    def __init__(self, path: Path) -> None:
        self.now = NOON
        self.catalog = Catalog(path, lambda: self.now)
        with self.catalog.change():
            self.owner = self.catalog.enter("test", 1e9)
        self._digests = (number.to_bytes(32, "big") for number in itertools.count(1))

    def store(
        self, name: str = "a", order: int = 0, condition: Condition = ANY, number: int | None = None
    ) -> Version:
        with self.catalog.change():
            if number is None:
                (number,) = self.catalog.reserve(1)
            held = self.catalog.lease(self.owner, 2)
            return self.catalog.store(
                self.owner, "n", name, 1, next(self._digests), [held], {}, condition, number, order
            )

    def commit(self, name: str = "a", order: int = 0, began: float | None = None) -> Version:
        with self.catalog.change():
            now, self.now = self.now, self.now if began is None else began
            number = self.catalog.begin(self.owner, "n", name)
            self.now = now
            held = self.catalog.extend(self.owner, number, 2)
            digest = next(self._digests)
            return self.catalog.commit(self.owner, number, 1, digest, [held], order=order)

    def fail(self, number: int, name: str = "a") -> int:
        with self.catalog.change():
            self.catalog.begin(self.owner, "n", name, number=number)
            self.catalog.fail(self.owner, number, "the body ended early")
        return number

    def delete(self, name: str = "a") -> None:
        with self.catalog.change():
            self.catalog.delete("n", name)


@pytest.fixture
def names(tmp_path: Path) -> Names:
    return Names(tmp_path / "catalog.db")


@pytest.fixture(params=["store", "commit"])
def save(request: pytest.FixtureRequest, names: Names):
    return getattr(names, request.param)


def test_it_is_the_clock_and_grows_with_each_version(names, save):
    orders = []
    for step in (0, 1e-3, -HOUR, 0, 0, HOUR, HOUR):
        names.now += step
        orders.append(save().order)
    assert orders[0] == order_at(NOON) and orders[-1] == order_at(names.now)
    assert orders == sorted(set(orders))


def test_one_that_is_not_above_the_live_one_is_refused_and_changes_nothing(names, save):
    first = save(order=order_at(NOON))
    for order in (1, order_at(NOON) - 1, order_at(NOON)):
        with pytest.raises(OrderError):
            save(order=order)
    assert names.catalog.find("n", "a") == first
    again = save(order=names.catalog.last_order("n", "a") + 1)
    assert names.catalog.find("n", "a") == again


def test_one_that_is_not_above_a_deleted_one_either(names, save):
    """Its chunks may be there still, and its manifest be found."""
    save()
    names.delete()
    with pytest.raises(OrderError):
        save(order=order_at(NOON))
    names.now -= HOUR
    assert save().order == order_at(NOON) + 1


@pytest.mark.parametrize("numbers", list(itertools.permutations(range(3))))
def test_the_highest_of_those_that_ended_counts_whatever_their_numbers_are(names, numbers):
    """Each process has numbers in advance: the version that came last may have the lowest one."""
    with names.catalog.change():
        reserved = names.catalog.reserve(3)
    for step, number in enumerate(numbers):
        names.store(order=10 * (step + 1), number=reserved[number])
    assert names.catalog.last_order("n", "a") == 30
    names.delete()
    assert names.catalog.last_order("n", "a") == 30
    for order in (10, 20, 25, 30):
        with pytest.raises(OrderError):
            names.store(order=order)
    assert names.store(order=31).order == 31


def test_names_have_orders_of_their_own(names, save):
    save("a")
    assert save("b", order=5).order == 5
    assert names.catalog.last_order("n", "b") == 5 and names.catalog.last_order("n", "c") == 0
    assert names.catalog.last_order("another", "a") == 0


def test_a_condition_goes_before_it(names):
    names.store()
    with pytest.raises(PreconditionError):
        names.store(order=1, condition=Condition(etags=frozenset(["x"])))


def test_an_answer_that_was_lost_is_given_again(names):
    """Also when the name has got a higher order since."""
    with names.catalog.change():
        number = names.catalog.begin(names.owner, "n", "a")
        held = names.catalog.extend(names.owner, number, 2)
        arguments = (names.owner, number, 1, bytes(32), [held])
        done = names.catalog.commit(*arguments, order=order_at(NOON))
    names.store()
    with names.catalog.change():
        assert names.catalog.commit(*arguments, order=order_at(NOON)).order == done.order


def test_what_http_goes_by_does_not_go_back(names, save):
    first = save()
    assert first.modified == int(NOON)
    names.now -= HOUR
    second, third = save(), save()
    assert first.modified < second.modified < third.modified
    with pytest.raises(PreconditionError):
        Condition(unmodified_since=first.modified).check("a", second)
    names.now += 2 * HOUR
    assert save().saved == names.now


def test_a_history_is_told_in_the_order_of_what_happened(names):
    first = names.commit()
    names.now -= HOUR
    second = names.commit(began=names.now)
    names.delete()
    steps = [(step.version, step.state) for step in names.catalog.history("n", "a")][::-1]
    assert steps.index((first.number, VersionState.OK)) < steps.index((second.number, VersionState.OK))
    assert steps[-1] == (second.number, VersionState.DELETED)
    times = [step.time for step in names.catalog.history("n", "a")]
    assert times == sorted(times, reverse=True)


def test_a_history_that_is_cut_keeps_what_happened_last(names):
    """Each process has numbers that it took in advance, so a lower one may be the newer one."""
    with names.catalog.change():
        early = names.catalog.reserve(10)
    first = names.store()
    for _ in range(1010):
        names.now += 0.1
        names.store()
    names.now += 1
    newer = names.store(number=early[0])
    failed = names.fail(early[1])
    names.now += 1
    names.store()
    told = [(step.version, step.state) for step in names.catalog.history("n", "a")]
    assert {(newer.number, VersionState.OK), (failed, VersionState.FAILED)} < set(told[:7])
    assert len({version for version, _ in told}) == 1001 and first.number not in {
        version for version, _ in told
    }
    names.store(number=early[2])
    names.now -= HOUR
    names.delete()
    assert names.catalog.history("n", "a")[0].reason == "deleted"
    again = names.store(number=early[3])
    names.delete()
    steps = [step for step in names.catalog.history("n", "a") if step.version == again.number]
    assert [step.state for step in steps] == [VersionState.DELETED, VersionState.OK, VersionState.PENDING]


def test_steps_of_one_moment_are_told_in_their_order(names):
    """The name had the first version before the second, whichever number is lower."""
    with names.catalog.change():
        (low,) = names.catalog.reserve(1)
    first, second = names.store(), names.store(number=low)
    told = [(step.version, step.state) for step in names.catalog.history("n", "a")]
    ends = [
        (second.number, VersionState.OK),
        (first.number, VersionState.DELETED),
        (first.number, VersionState.OK),
    ]
    assert [step for step in told if step in ends] == ends


@pytest.mark.parametrize("between", [0, 2000])
def test_a_second_is_shared_by_all_versions_that_the_name_came_to_point_to_in_it(names, save, between):
    """And by no other: one that ended then began before, one that failed then was never there."""
    with names.catalog.change():
        early = iter(names.catalog.reserve(10))
    shares = names.catalog.shares_second
    save()
    names.now += 1.25
    before = save()
    assert not shares(before)
    names.now += 1.25
    with names.catalog.change():
        for _ in range(between):
            names.catalog.fail(names.owner, names.catalog.begin(names.owner, "n", "a"), "why not")
    present = save()
    assert not shares(before) and not shares(present)
    names.now += 0.25
    names.store("b")
    names.fail(next(early))
    assert not shares(present)
    newer = names.store(number=next(early))
    assert shares(present) and shares(newer) and not shares(before)
    names.delete()
    names.now += 1
    third = save()
    assert shares(newer) and not shares(third)
    names.delete()
    assert shares(save()) and shares(third)


@pytest.mark.parametrize("place", ["begin", "middle", "end"])
@pytest.mark.parametrize("deleted", [False, True])
def test_a_second_begins_with_its_first_moment_and_ends_before_the_next(names, save, place, deleted):
    """Dates of HTTP are whole seconds: what was there in the one before or behind it has another date."""
    steps = {"begin": 0.0, "middle": 0.5, "end": 1 - 1 / 1024}
    for at, other in enumerate((-1.0, -1 / 1024, 0.0, 0.25, 1 - 1 / 1024, 1.0, 1.5)):
        name, first = f"{place} {at}", other <= steps[place]
        moments = (other, steps[place]) if first else (steps[place], other)
        versions = []
        for moment in moments:
            names.now = NOON + moment
            versions.append(save(name))
        if deleted:
            names.delete(name)
        version = versions[first]
        assert version.saved == NOON + steps[place] and version.modified == NOON
        assert names.catalog.shares_second(version) == (0 <= other < 1), other


@pytest.mark.parametrize("back", [0.0, 0.25, HOUR])
@pytest.mark.parametrize("end", ["commit", "fail", "delete", "replace", "leave"])
def test_no_step_of_a_version_is_told_before_the_one_that_came_before_it(names, end, back):
    """The clock goes back before each of them: begun, saved, ended; and a date of HTTP is never before its upload."""
    with names.catalog.change():
        number = names.catalog.begin(names.owner, "n", "a")
        held = names.catalog.extend(names.owner, number, 2)
    names.now -= back
    with names.catalog.change():
        if end == "fail":
            names.catalog.fail(names.owner, number, "broke")
        elif end == "leave":
            names.catalog.leave(names.owner)
        else:
            done = names.catalog.commit(names.owner, number, 1, bytes(32), [held])
            assert done.saved == names.catalog.find("n", "a").saved == done.created == NOON
    names.now -= back
    if end == "delete":
        names.delete()
    elif end == "replace":
        assert names.store().created >= NOON
    (row,) = names.catalog._db.all("SELECT created, saved, ended FROM versions WHERE number = ?", number)
    times = [time for time in row if time is not None]
    assert times == sorted(times) and len(times) == {"delete": 3, "replace": 3}.get(end, 2)
    states = [step.state for step in names.catalog.history("n", "a") if step.version == number]
    last = {"commit": [], "delete": [VersionState.DELETED], "replace": [VersionState.DELETED]}
    told = last.get(end, [VersionState.FAILED]) + [VersionState.OK] * (end in last) + [VersionState.PENDING]
    assert states == told


def test_a_catalog_of_before_there_was_an_order_tells_its_history(names):
    saved = [names.store().number for _ in range(3)]
    names.catalog._db.run("UPDATE versions SET rank = NULL")
    names.now += 1
    saved.append(names.store().number)
    ended = [s.version for s in names.catalog.history("n", "a") if s.state is VersionState.DELETED]
    assert sorted(ended) == saved[:3] and ended[0] == saved[2]
    assert names.catalog.history("n", "a")[0].version == saved[3]


def test_a_history_is_found_without_looking_at_all_of_it(names):
    """Names may have been replaced a million times."""
    asked: list[str] = []
    db = names.catalog._db.connection
    names.store()
    version = names.store()
    db.trace_v2(1, lambda event: asked.append(event["sql"]))
    names.catalog.history("n", "a")
    names.catalog.shares_second(version)
    db.trace_v2(0, None)
    plans = [
        row[3] for sql in asked for row in db.execute(f"EXPLAIN QUERY PLAN {sql}", (None,) * sql.count("?"))
    ]
    assert not [
        plan for plan in plans if plan.startswith("SCAN versions") or plan == "USE TEMP B-TREE FOR ORDER BY"
    ]
    assert any("others" in plan and "saved>?" in plan for plan in plans)


def test_versions_of_before_there_was_an_order_come_before_those_that_replace_them(names, save):
    old = save()
    names.catalog._db.run("UPDATE versions SET rank = NULL")
    names.now -= HOUR
    assert names.catalog.last_order("n", "a") > order_at(old.saved or 0)
    assert save().order > order_at(NOON)


def test_no_statement_is_parsed_again(names):
    """SQLite plans some anew whenever something is bound, because it may look at what is: that takes most of the time."""
    parsed: list[tuple[Any, ...]] = []

    def work() -> None:
        for _ in range(3):
            names.catalog.shares_second(names.store())
            names.catalog.history("n", "a")
            names.catalog.page("n", "a", "")
            names.catalog.garbage(10)

    def seen(*step: Any) -> int:
        parsed.append(step)
        return apsw.SQLITE_OK

    names.catalog._db.connection.authorizer = seen  # asked about each step of a statement that is parsed
    work()
    assert parsed
    parsed.clear()
    work()
    assert not parsed
