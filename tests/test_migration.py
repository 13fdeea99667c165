"""A catalog of an earlier format: who may change it, and what all others say of it."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import Any

import apsw
import pytest
from node_rig import running_node
from test_binding import of_format_1
from test_object_commands import Commands

from ingest.catalog.backup import backup
from ingest.catalog.catalog_changes import Catalog
from ingest.catalog.catalog_reader import CatalogReader
from ingest.catalog.catalog_socket import catalog_path, service_lock
from ingest.catalog.database import Database, is_outdated, migrate
from ingest.catalog.schema import FORMAT
from ingest.commands.local_backend import LocalBackend, LocalNode
from ingest.errors import BusyError, CatalogError, ConnectionLostError, NotFoundError
from ingest.runtime.key_file import make_key_file
from ingest.store.data_dir import DataDir


def format_of(path: Path) -> int:
    db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        return int(db.pragma("user_version"))
    finally:
        db.close()


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "catalog.db"
    Catalog(path).close()
    of_format_1(path)
    return path


@pytest.fixture
def commands(tmp_path: Path) -> Iterator[Commands]:
    """Beside a server, with a catalog of before that was never used."""
    with running_node(tmp_path / "data") as node:
        commands = Commands(node)
        Catalog(catalog_path(commands.data_dir)).close()
        of_format_1(catalog_path(commands.data_dir))
        yield commands


@pytest.mark.parametrize("kind", [CatalogReader, Catalog])
def test_who_opens_it_leaves_it_alone_and_says_what_to_do(old, kind):
    with pytest.raises(CatalogError, match=r"format 1, .*start one of this version once"):
        kind(old)
    assert format_of(old) == 1 and is_outdated(old)


def test_it_is_migrated_once(old):
    for _ in range(2):
        migrate(old)
        with CatalogReader(old) as reader, Catalog(old) as catalog:
            assert len(reader.identity().id) == 16
            assert catalog.identity() == reader.identity()
            first = reader.identity()
    migrate(old)
    with CatalogReader(old) as reader:
        assert reader.identity() == first
    assert format_of(old) == FORMAT and not is_outdated(old)


def test_a_death_at_any_statement_leaves_one_of_either_format(old, tmp_path, monkeypatch):
    """Copies of the files are what a death leaves: a transaction that has no end in the log never was."""
    left: list[Path] = []
    run = Database.run

    def recorded(self: Database, *arguments: Any) -> None:
        run(self, *arguments)
        left.append(tmp_path / f"left-{len(left)}" / old.name)
        left[-1].parent.mkdir()
        for path in old.parent.glob(f"{old.name}*"):
            shutil.copy(path, left[-1].parent)

    monkeypatch.setattr(Database, "run", recorded)
    migrate(old)
    monkeypatch.setattr(Database, "run", run)
    assert len(left) > 3
    formats = [format_of(path) for path in left]
    assert formats == sorted(formats) and set(formats) == {1, FORMAT}
    for path in left:
        migrate(path)
        with CatalogReader(path) as reader:
            assert len(reader.identity().id) == 16
        assert format_of(path) == FORMAT


def test_one_that_another_process_migrates_meanwhile_keeps_its_id(old, monkeypatch):
    """It has looked before the other one was done, and its turn comes after: the store may carry that id by then."""
    ids = []
    transaction = Database.transaction

    def overtaken(self: Database) -> AbstractContextManager[None]:
        monkeypatch.setattr(Database, "transaction", transaction)
        migrate(old)
        with CatalogReader(old) as reader:
            ids.append(reader.identity())
        return transaction(self)

    monkeypatch.setattr(Database, "transaction", overtaken)
    migrate(old)
    with CatalogReader(old) as reader:
        assert [reader.identity()] == ids
    assert format_of(old) == FORMAT


def test_one_that_lacks_nothing_is_not_locked(tmp_path):
    path = tmp_path / "catalog.db"
    migrate(path)
    with closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN IMMEDIATE")
        migrate(path)


def test_none_is_made_by_who_only_asks(tmp_path):
    assert not is_outdated(tmp_path / "catalog.db")
    assert list(tmp_path.iterdir()) == []


def test_a_copy_has_the_format_of_its_source(old, tmp_path):
    backup(old, tmp_path / "copy")
    assert format_of(old) == format_of(tmp_path / "copy") == 1
    migrate(tmp_path / "copy")
    Catalog(tmp_path / "copy").close()


def test_a_gateway_does_not_touch_the_catalog_of_one_that_runs(commands):
    path = catalog_path(commands.data_dir)
    command = [sys.executable, "-m", "ingest", "gateway", "--http-listen=127.0.0.1:0"]
    with service_lock(commands.data_dir):  # as the gateway of before has it
        done = subprocess.run(command, env=commands.environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == BusyError.exit_code, done.stderr
    assert "another gateway" in done.stderr
    assert format_of(path) == 1


def test_a_command_that_reads_leaves_it_alone(commands):
    commands.run("ls", code=CatalogError.exit_code)
    assert "start one of this version once" in commands.complaint
    assert format_of(catalog_path(commands.data_dir)) == 1


def test_a_command_that_changes_it_migrates_it_when_no_gateway_runs(commands):
    path = catalog_path(commands.data_dir)
    with service_lock(commands.data_dir):
        commands.run("put", "-", "--name", "b", stdin=b"x", code=BusyError.exit_code)
    assert "another gateway" in commands.complaint
    assert format_of(path) == 1
    commands.run("put", "-", "--name", "b", stdin=b"now")
    assert format_of(path) == FORMAT
    assert commands.run("get", "b") == b"now"


async def nothing() -> AsyncIterator[bytes]:
    yield b""


CHANGING: dict[str, Callable[[LocalBackend], Coroutine[Any, Any, Any]]] = {
    "put": lambda backend: backend.put("objects", "a", nothing()),
    "get": lambda backend: backend.open("objects", "a"),
    "get by id": lambda backend: backend.open_object("00000000"),
    "rm": lambda backend: backend.delete("objects", "a"),
    "gc": lambda backend: backend.collect(dry_run=False),
}
READING: dict[str, Callable[[LocalBackend], Coroutine[Any, Any, Any]]] = {
    "ls": lambda backend: backend.page("objects", "", ""),
    "stat": lambda backend: backend.describe("objects", "a"),
    "gc --dry-run": lambda backend: backend.collect(dry_run=True),
}


@pytest.mark.parametrize("gateway", ["no gateway", "a gateway of before"])
@pytest.mark.parametrize("call", [*CHANGING, *READING])
def test_each_command_migrates_it_or_leaves_it_alone(old, tmp_path, call, gateway):
    """Who changes the catalog, or enters itself there as one that reads, needs the present format; nobody takes the catalog
    of a gateway that runs from under it."""
    DataDir(tmp_path).meta.mkdir()
    path = catalog_path(tmp_path)
    old.rename(path)
    make_key_file(DataDir(tmp_path).key)

    async def work() -> None:
        async with LocalBackend(LocalNode(data_dir=tmp_path)) as backend:
            await (CHANGING | READING)[call](backend)

    runs = gateway != "no gateway"
    error = CatalogError if call in READING else BusyError if runs else (NotFoundError, ConnectionLostError)
    with service_lock(tmp_path) if runs else nullcontext(), pytest.raises(error):
        asyncio.run(work())
    assert format_of(path) == (FORMAT if call in CHANGING and not runs else 1)
