"""What is asked at a start, or by anybody without a token, costs the same however many versions have ended."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import pytest

from ingest.catalog.catalog_changes import Catalog
from ingest.limits import BINDING_OBJECTS_MAX

DEAD = 20_000
MANY_STEPS = 2_000  # of SQLite's machine: a scan takes some for each version
ADD_DEAD = """
WITH RECURSIVE more(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM more WHERE n < ?)
INSERT INTO versions(namespace, name, state, size, created, saved, ended, first, digest, extents, rank)
    SELECT 1, 'a', 3, 1, 1.0, 1.0, 2.0, 1000000 + n, zeroblob(32), zeroblob(0), n FROM more
"""


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    """One object, and above it those that another name had."""
    catalog = Catalog(tmp_path / "catalog.db")
    with catalog.change():
        owner = catalog.enter("test", 60)
        (number,) = catalog.reserve(1)
        held = catalog.lease(owner, 2)
        catalog.store(owner, "n", "b", 1, bytes(32), [held], {}, number=number)
    catalog._db.connection.execute(ADD_DEAD, (DEAD,))
    return catalog


def steps(db: apsw.Connection, call: Callable[[], Any]) -> int:
    """Of SQLite's machine, in tens."""
    taken: list[int] = []

    def step() -> bool:
        taken.append(1)
        return False

    db.set_progress_handler(step, 10)
    call()
    db.set_progress_handler(None)
    return len(taken)


def test_the_newest_are_those_that_are_live(catalog: Catalog) -> None:
    assert [version.name for version in catalog.newest(BINDING_OBJECTS_MAX)] == ["b"]


def test_questions_of_health_and_of_a_start(catalog: Catalog) -> None:
    def enter() -> None:
        with catalog.change():
            owner = catalog.enter("another", 60)
            catalog.lease(owner, 10)
            catalog.renew(owner, 60)
            catalog.leave(owner)
            catalog.expire()
            catalog.bound()

    asked: dict[str, Callable[[], Any]] = {
        "newest": lambda: catalog.newest(BINDING_OBJECTS_MAX),
        "identity": catalog.identity,
        "next_ticket": catalog.next_ticket,
        "garbage": lambda: catalog.garbage(10),
        "page": lambda: catalog.page("n"),
        "enter": enter,
    }
    taken = {name: steps(catalog._db.connection, call) for name, call in asked.items()}
    assert not {name: count for name, count in taken.items() if 10 * count > MANY_STEPS}
