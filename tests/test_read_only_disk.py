"""A disk that may only be read for a while, or for good: the catalog, its readers and a gateway on it."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from catalog_rig import ServiceRig
from gateway_rig import TIMEOUT_S, Broken, NodeGateway
from small_disk import small_disk

from ingest.catalog.catalog_calls import run_together
from ingest.catalog.catalog_changes import Catalog
from ingest.catalog.catalog_client import CatalogClient
from ingest.catalog.catalog_reader import CatalogReader
from ingest.catalog.extent import Extent
from ingest.errors import DiskError, ReadOnlyError
from ingest.limits import SMALL_OBJECT_MAX

DIGEST = bytes(range(32))
LARGE = os.urandom(4 * SMALL_OBJECT_MAX)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path, "disk", 32) as mount:
        yield mount


def remount(disk: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=True)


def store(catalog: Catalog, name: str) -> None:
    with catalog.change():
        owner = catalog.enter("test")
        lease = catalog.lease(owner, 2)
        catalog.store(owner, "store", name, 1, DIGEST, [Extent(lease.first, 2)])
        catalog.leave(owner)


def names(reader: CatalogReader) -> list[str]:
    return [entry.name for entry in reader.page("store")]


def killed(disk: Path) -> Path:
    """A catalog whose service was killed: the files that SQLite has beside it are there, as under a running gateway."""
    service = ServiceRig(disk / "data")
    service.start()
    path = disk / "data" / ".ingest" / "catalog.db"
    try:
        with Catalog(path) as catalog:
            store(catalog, "a")
            service.kill()
    finally:
        service.close()
    service.start()
    service.kill()
    return path


def test_who_changes_it_goes_on_when_it_can_be_written(disk):
    path = killed(disk)
    remount(disk, "ro")
    with Catalog(path) as catalog:
        assert names(catalog) == ["a"]
        for _ in range(2):
            with pytest.raises(ReadOnlyError):
                store(catalog, "b")
        (outcome,) = run_together(catalog, [("delete", ("store", "a"))])
        assert type(outcome) is ReadOnlyError
        assert names(catalog) == ["a"]
        remount(disk, "rw")
        store(catalog, "b")
        (outcome,) = run_together(catalog, [("delete", ("store", "a"))])
        assert outcome.name == "a"
        assert names(catalog) == ["b"]


def test_who_reads_it_sees_what_comes_when_it_can_be_written(disk):
    path = killed(disk)
    remount(disk, "ro")
    with CatalogReader(path) as reader:
        assert names(reader) == ["a"]
        remount(disk, "rw")
        service = ServiceRig(disk / "data")
        service.start()

        async def change() -> None:
            catalog = await CatalogClient.connect(service.data_dir)
            owner = await catalog.enter("test")
            place = await catalog.lease(owner, 2)
            (number,) = await catalog.reserve(1)
            await catalog.store(owner, "store", "b", 1, DIGEST, [place], number=number)
            await catalog.delete("store", "a")
            await catalog.close()

        try:
            asyncio.run(change())
            assert names(reader) == ["b"]
            assert service.terminate() == 0
        finally:
            service.close()


def test_a_file_that_cannot_be_opened_for_a_while(tmp_path):
    path = tmp_path / "catalog.db"
    with Catalog(path) as catalog:
        store(catalog, "a")
    catalog = Catalog(path)
    try:
        catalog._db._spoilt = True  # an error of the disk has been met
        catalog._db.close()
        moved = path.rename(tmp_path / "away")
        for _ in range(2):
            with pytest.raises(DiskError):
                store(catalog, "b")
            with pytest.raises(DiskError):
                names(catalog)
        moved.rename(path)
        store(catalog, "b")
        assert names(catalog) == ["a", "b"]
    finally:
        catalog.close()


def eventually(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def test_a_gateway_reads_on_and_says_what_it_refuses(tmp_path):
    """As the kernel does it when a journal can't be written: for good, while files are open."""
    with small_disk(tmp_path, "disk", 192) as disk:
        node = NodeGateway(disk / "data", "--wal-size=96MiB", "--reserve=8MiB", "--http-workers=1")
        node.log_path = tmp_path / "log"

        def ask(method: str, name: str, body: bytes | None = None) -> tuple[int, object]:
            try:
                answer = node.gateway.request(method, f"/objects/{name}", body)
            except (Broken, OSError):
                return 0, None
            return answer.status, answer.body if answer.status == 200 else answer.code

        try:
            node.start()
            for name, data in (("large", LARGE), ("small", b"small")):
                assert ask("PUT", name, data)[0] == 200
            remount(disk, "abort")
            for _ in range(2):
                assert ask("GET", "large") == (200, LARGE)
                assert ask("GET", "small") == (200, b"small")
                assert ask("DELETE", "small") == (503, "disk_read_only")
                (process,) = (one for one in node.family() if one.name() == "ingest-http-0")
                process.kill()  # the one that takes its place was never there when the disk could be written
                psutil.wait_procs([process], TIMEOUT_S)
                eventually(lambda: ask("GET", "small")[0] == 200, "another process")
            assert ask("PUT", "new", b"new") == (503, "disk_read_only")
            assert ask("PUT", "new", LARGE) == (503, "disk_read_only")
            assert node.stop() in (0, 1), "the engine may have packs that it could not sync, and says so"
            log = node.log_path.read_text()
            assert "exited with 74" not in log or "Read-only file system" in log
            assert "Traceback" not in log
            assert re.search(r"gateway \(pid \d+\) exited with 0", log)
            ports = [
                f"--{name}=127.0.0.1:0" for name in ("listen", "read-listen", "admin-listen", "http-listen")
            ]
            command = [sys.executable, "-m", "ingest", "serve", f"--data-dir={node.data_dir}", *ports]
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
            assert done.returncode == 78
            assert re.search(rf"{node.data_dir}\S*: Read-only file system", done.stderr), done.stderr
            assert "Traceback" not in done.stderr
        finally:
            node.close()
