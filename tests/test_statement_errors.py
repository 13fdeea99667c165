"""Statements of the catalog that an error of the disk ends: of a transaction nothing stays, others are made again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import apsw
import pytest

from ingest.catalog.database import SPOILING, Database
from ingest.errors import DiskError

NAMES = ("first", "second", "third")
INSERT = "INSERT INTO namespaces(name) VALUES (?)"


class Failing:
    """A connection of which the call of `execute` number ``at`` fails, after SQLite has rolled back what was under way."""

    def __init__(self, real: apsw.Connection, at: int, error: type[apsw.Error]) -> None:
        self._real = real
        self._left = at
        self._error = error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def execute(self, sql: str, *bindings: Any) -> Any:
        self._left -= 1
        if self._left < 0 and self._left > -2:
            if self._real.in_transaction:
                self._real.execute("ROLLBACK")
            raise self._error("as a disk does it")
        return self._real.execute(sql, *bindings)


def names_of(db: Database) -> list[str]:
    return [name for (name,) in db.all("SELECT name FROM namespaces ORDER BY id")]


@pytest.fixture
def db(tmp_path: Path):
    opened = Database(tmp_path / "catalog.db")
    yield opened
    opened.close()


@pytest.mark.parametrize("error", SPOILING)
@pytest.mark.parametrize("at", range(1, len(NAMES) + 2))  # each insert, and the commit
def test_nothing_of_a_transaction_stays(db: Database, at: int, error: type[apsw.Error]) -> None:
    db.connection = Failing(db.connection, at, error)
    with pytest.raises(DiskError), db.transaction():
        for name in NAMES:
            db.run(INSERT, name)
    assert names_of(db) == []
    with db.transaction():
        db.run(INSERT, "later")
    assert names_of(db) == ["later"]


@pytest.mark.parametrize("error", SPOILING)
def test_the_beginning_of_one_is_asked_again(db: Database, error: type[apsw.Error]) -> None:
    db.connection = Failing(db.connection, 0, error)
    with db.transaction():
        for name in NAMES:
            db.run(INSERT, name)
    assert names_of(db) == list(NAMES)


@pytest.mark.parametrize("error", SPOILING)
def test_what_reads_is_asked_again_once(
    db: Database, monkeypatch: pytest.MonkeyPatch, error: type[apsw.Error]
) -> None:
    db.connection = Failing(db.connection, 0, error)
    assert names_of(db) == []
    real = db.connection

    def open_a_bad_one(self: Database) -> None:
        self.connection = Failing(real, 0, error)

    monkeypatch.setattr(Database, "_open", open_a_bad_one)
    db.connection = Failing(db.connection, 0, error)
    with pytest.raises(DiskError):
        names_of(db)
