"""What changes files outside of the log's main path, each as a program runs it. Also a program, to be run under strace.

Each says that it has ended by trying to make a directory below `MARK`, where none can be.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from faults.damaged_store import SMALL_SEGMENT, Builder, started
from faults.name_rules import MARK
from ingest.catalog.backup import backup
from ingest.catalog.catalog_changes import Catalog
from ingest.catalog.catalog_socket import catalog_path
from ingest.catalog.extent import FIRST
from ingest.commands.object_files import Target
from ingest.objects.rebuild import rebuild
from ingest.runtime.durable_files import make_directory
from ingest.runtime.key_file import make_key_file, rotate_key_file
from ingest.store.check.export import export
from ingest.store.check.fsck import fsck
from ingest.store.check.quarantine import Quarantine
from ingest.store.log.log_writer import LogWriter
from ingest.store.store import Store
from ingest.store.store_json import read_store_json, write_store_json

OPEN: list[Catalog] = []


def make_key(home: Path) -> None:
    make_key_file(home / "key")


def rotate_key(home: Path) -> None:
    rotate_key_file(home / "store" / ".ingest" / "key")


def make_store(home: Path) -> None:
    for layout in ("pack", "tree"):
        Store.open(home / "new" / layout, layout=layout).close()


def make_store_with_a_log_elsewhere(home: Path) -> None:
    Store.open(home / "new", wal_dir=home / "other" / "wal").close()


def describe_store(home: Path) -> None:
    path = home / "store" / ".ingest" / "store.json"
    write_store_json(path, read_store_json(path))


def make_segments(home: Path) -> None:
    make_directory(home / "log")
    writer = LogWriter(home / "log", bytes(16), size_max=1 << 30, segment_size=SMALL_SEGMENT)
    writer.make_spare()
    writer.close()


def make_catalog(home: Path) -> None:
    Catalog(catalog_path(home / "store")).close()


def change_catalog(home: Path) -> None:
    """It stays open: what SQLite does when it closes comes after all that was promised."""
    catalog = Catalog(catalog_path(home / "store"))
    OPEN.append(catalog)
    with catalog.change():
        owner = catalog.enter("test", 1e6)
    os.sync()
    with catalog.change():
        catalog.store(owner, "n", "name", 1, bytes(32), [catalog.lease(owner, 2)], {})


def copy_catalog(home: Path) -> None:
    Catalog(catalog_path(home / "store")).close()
    os.sync()
    for _ in range(2):
        backup(catalog_path(home / "store"), home / "backup.db")


def rebuild_catalog(home: Path) -> None:
    """Of a store with chunks where the allocator gives tickets: the catalog says so."""
    stored = Builder(home / "objects", "pack", random.Random(1), SMALL_SEGMENT)
    stored.put([FIRST, FIRST + 1])
    stored.settle()
    stored.close()
    os.sync()
    for _ in range(2):
        rebuild(home / "objects", replace=True, segment_size=SMALL_SEGMENT)


def export_store(home: Path) -> None:
    for layout in ("pack", "tree"):
        export(home / "store", home / "exports" / layout, layout, segment_size=SMALL_SEGMENT)


def repair(home: Path) -> None:
    report = fsck(home / "store", repair=True, segment_size=SMALL_SEGMENT)
    assert any(problem.repaired for problem in report.problems), report


def start(home: Path) -> None:
    with started(home / "store", SMALL_SEGMENT):
        pass
    os.sync()


def keep_copies(home: Path) -> None:
    quarantine = Quarantine(home / "store")
    one = home / "store" / ".ingest" / "store.json"
    quarantine.keep_file("store.json", one, "kind", "detail")
    for name in ("a", "b"):
        (home / "store" / name).mkdir()
        (home / "store" / name / "file").write_bytes(b"x")
    os.sync()
    quarantine.take("a", home / "store" / "a", "kind", "detail")
    quarantine.take("b/file", home / "store" / "b" / "file", "kind", "detail")


def write_an_object(home: Path) -> None:
    async def run() -> None:
        for path in (home / "object", home / "object"):
            with Target(path) as target:
                await target.write(b"bytes")
                target.keep()

    asyncio.run(run())


COMMANDS: dict[str, Callable[[Path], None]] = {
    command.__name__: command
    for command in (
        make_key, rotate_key, make_store, make_store_with_a_log_elsewhere, describe_store, make_segments, make_catalog,
        change_catalog,
        copy_catalog, rebuild_catalog, export_store, repair, keep_copies, write_an_object, start,
    )
}  # fmt: skip

if __name__ == "__main__":
    for directory in sorted(Path(sys.argv[1]).iterdir()):
        COMMANDS[directory.name.partition(" ")[0]](directory)
        with suppress(FileNotFoundError):
            os.mkdir(f"{MARK}/{directory.name}")
