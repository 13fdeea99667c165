"""Part 10 of the proof in short: two catalogs and one store. `make faults PART=10` is the long run."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from faults import two_catalogs
from faults.catalog_history import ABSENT, BROKEN, CatalogHistory, bytes_of, read
from faults.catalog_load import check_binding, check_served, check_stored, delete, name_of, put
from faults.catalog_moves import Moves
from faults.catalog_side import Gateway, LossError, Side
from ingest import ticket
from ingest.catalog.catalog_reader import CatalogReader
from ingest.errors import ForeignStoreError
from ingest.runtime.key_file import make_key_file


@pytest.mark.timeout(400)  # some ten starts of servers and gateways, whatever else the machine does
def test_two_catalogs_keep_apart_in_a_few_moves(tmp_path: Path) -> None:
    outcome = two_catalogs.run(8, 1, tmp_path, moves=1)
    assert outcome.passed, "\n".join(outcome.losses)
    assert outcome.counts["bindings_contested"] == outcome.counts["moves"] == 1
    assert outcome.counts["chunks_read_back"] > 0


@pytest.fixture
def sides(tmp_path: Path) -> Iterator[list[Side]]:
    """One that serves; of the other one the engine runs."""
    make_key_file(tmp_path / "key")
    made: list[Side] = []
    try:
        for number in range(2):
            made.append(two_catalogs.make_side(tmp_path, number, tmp_path / "key", workers=1))
            two_catalogs.first_start(made[-1], {})
        made[0].start()
        yield made
    finally:
        for side in made:
            side.close()


def found_by(check: object, *arguments: object) -> str:
    with pytest.raises(LossError) as caught:
        check(*arguments)  # type: ignore[operator]
    return str(caught.value)


def test_the_judge_sees_what_is_lost_changed_and_bound_to_another(sides: list[Side]) -> None:
    side, other = sides
    for number in range(3):
        assert put(side, number, 4000).status == 200  # type: ignore[union-attr]
    check_binding(side)
    assert (check_served(side), check_stored(side)) == (3, 3 * 4)
    moves = Moves(other, side, Random(0), Counter())
    with CatalogReader(side.catalog) as reader:
        first = reader.find("objects", name_of(0)).extents[0].first
        free = reader.next_ticket() + 5
    moves.upto = lambda: free + 1  # type: ignore[method-assign]  # the other catalog was never made

    def a_stranger_stores() -> None:
        with moves.untouched(), side.engine.connect() as connection:
            connection.put([free])

    def a_stranger_deletes() -> None:
        with moves.untouched(), side.engine.connect() as connection:
            connection.delete(first, 1)

    assert f"a stranger changed ticket {free}" in found_by(a_stranger_stores)
    assert f"a stranger changed ticket {first}" in found_by(a_stranger_deletes)
    assert f"a chunk of object-0, {ticket.format(first)}, is DELETED" in found_by(check_stored, side)
    assert "GET object-0: status 502, corrupt" in found_by(check_served, side)
    side.history.append("gone object-0")
    side.history.append("put object-1 9 4000")
    side.history.append("ok object-1 9")  # which nobody put
    assert "object-1" in found_by(check_stored, side)
    assert "that nobody put there" in found_by(check_only, side, 2, "catalog-9")
    assert delete(side, 2).status == 200  # type: ignore[union-attr]
    side.history.append("put object-2 10 4000")
    side.history.append("ok object-2 10")
    assert "acknowledged, and a delete finds it absent" in found_by(delete, side, 2)
    with other.engine.connect() as connection:
        connection.put([ticket.LAST])
    with pytest.raises(ForeignStoreError, match="a chunk of its own"):
        check_binding(other)


def check_only(side: Side, number: int, catalog: str) -> None:
    """As if its objects were those of another catalog."""
    whole, side.history.catalog = side.history.catalog, catalog
    present = side.history.known.now
    try:
        side.history.known.now = {name_of(number): present[name_of(number)]}
        check_served(side)
    finally:
        side.history.catalog, side.history.known.now = whole, present


def test_words_and_codes_of_a_refusal() -> None:
    ids = "belongs to the catalog " + "0" * 32 + ", and this one is " + "1" * 32
    advice = "nothing is stored or deleted there. Either"
    Gateway.require_refusal(78, f"ingest: the engine's store {ids}: {advice}")
    assert "expected exit code 78, found 75" in found_by(Gateway.require_refusal, 75, "busy")
    assert "without the words" in found_by(Gateway.require_refusal, 78, "no key")


def test_what_a_history_says(tmp_path: Path) -> None:
    history = CatalogHistory(tmp_path / "history.txt", "a")
    assert history.put("x", 5) == (1, bytes_of("a", "x", 1, 5)) and history.known.may("x") == {ABSENT, 1}
    history.append("ok x 1")
    history.append("mark")
    history.append("marked")
    history.put("x", 6)
    history.append("ok x 2")
    history.put("y", 7)
    history.append("ok y 3")
    assert history.known.now == {"x": {2}, "y": {3}}
    history.append("save")
    history.append("stale")
    assert history.known.now == {"x": {1, BROKEN}, "y": {ABSENT}}
    history.append("rebuilt")
    assert history.known.now == {"x": {ABSENT, 1, 2}, "y": {ABSENT, 3}}
    history.append("seen x 2")
    history.put("x", 8)
    history.append("no x 4")
    history.append("rebuilt")
    assert history.known.now["x"] == {2, 4}
    history.append("restored")
    assert history.known.now == {"x": {2}, "y": {3}}
    assert history.known.identify("a", "x", bytes_of("a", "x", 2, 6)) == 2
    assert history.known.identify("b", "x", bytes_of("a", "x", 2, 6)) is None
    with (tmp_path / "history.txt").open("a") as file:
        file.write("ok x")  # the client died in the middle of a line
    assert read(history.path).now == history.known.now
    history.close()
