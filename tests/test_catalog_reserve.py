"""A disk that somebody else has filled: what the catalog has in reserve, and what goes on with it and without it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from catalog_rig import ServiceRig
from gateway_rig import TIMEOUT_S, NodeGateway
from small_disk import fill, small_disk

from ingest.catalog import catalog_reserve
from ingest.catalog.catalog_changes import Catalog
from ingest.catalog.catalog_client import CatalogClient
from ingest.catalog.catalog_reserve import CatalogReserve
from ingest.catalog.catalog_socket import listen
from ingest.catalog.extent import Extent
from ingest.catalog.local_catalog import LocalCatalog
from ingest.errors import NoSpaceError
from ingest.limits import (
    CATALOG_RESERVE_FILES,
    CATALOG_RESERVE_RETRY_S,
    CATALOG_RESERVE_SIZE,
    CATALOG_RESERVE_STEP,
    SMALL_OBJECT_MAX,
)
from ingest.objects.membership import NOBODY, Membership

DIGEST = bytes(range(32))
LARGE = os.urandom(4 * SMALL_OBJECT_MAX)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path, "disk", 48) as mount:
        yield mount


def eventually(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def taken(path: Path) -> int:
    """Bytes of the disk that a file has."""
    return path.stat().st_blocks * 512


class TestReserve:
    def test_it_is_filled_and_given_step_by_step(self, tmp_path):
        reserve = CatalogReserve(tmp_path / "reserve")
        assert not reserve.give(), "there is none yet"
        assert reserve.fill() and reserve.fill()
        assert taken(reserve.path) >= CATALOG_RESERVE_SIZE
        assert reserve.path.stat().st_mode & 0o777 == 0o600
        steps = 0
        while reserve.give():
            steps += 1
        assert steps == CATALOG_RESERVE_SIZE // CATALOG_RESERVE_STEP
        assert taken(reserve.path) == 0
        assert reserve.fill()
        assert taken(reserve.path) >= CATALOG_RESERVE_SIZE

    @pytest.mark.parametrize("kept", [1, CATALOG_RESERVE_SIZE - 1, CATALOG_RESERVE_SIZE])
    def test_a_copy_without_blocks_is_no_reserve(self, tmp_path, kept):
        reserve = CatalogReserve(tmp_path / "reserve")
        with reserve.path.open("wb") as file:
            file.truncate(kept)
        assert reserve.fill()
        assert taken(reserve.path) >= CATALOG_RESERVE_SIZE

    def test_a_link_in_its_place_is_not_followed(self, tmp_path):
        other = tmp_path / "other"
        other.write_bytes(b"kept")
        (tmp_path / "reserve").symlink_to(other)
        reserve = CatalogReserve(tmp_path / "reserve")
        assert not reserve.fill() and not reserve.give()
        assert other.read_bytes() == b"kept"

    def test_it_takes_what_there_is(self, disk):
        reserve = CatalogReserve(disk / "reserve")
        ballast = fill(disk, leave=3 * CATALOG_RESERVE_STEP + 4096)
        assert not reserve.fill()
        assert 0 < reserve.path.stat().st_size < CATALOG_RESERVE_SIZE
        assert taken(reserve.path) >= reserve.path.stat().st_size, "all that it says it has"
        ballast.unlink()
        assert reserve.fill()

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO])
    def test_nothing_new_is_stored_while_the_disk_has_no_room_for_it(self, tmp_path, monkeypatch, number):
        """Of what was given, or could not be taken; not where the disk fails otherwise. Once a second it is tried."""
        now, error, tries = [1000.0], [0], []
        allocate = os.posix_fallocate

        def allocated(fd, offset, size):
            tries.append(offset)
            if error[0]:
                os.ftruncate(fd, offset + size // 2)  # as much of a step as there was room for
                raise OSError(error[0], "no")
            allocate(fd, offset, size)

        monkeypatch.setattr(os, "posix_fallocate", allocated)
        monkeypatch.setattr(time, "monotonic", lambda: now[0])
        reserve, full = CatalogReserve(tmp_path / "reserve"), number in (errno.ENOSPC, errno.EDQUOT)
        assert reserve.fill() and not reserve.refuses()
        assert reserve.give()
        assert reserve.refuses() and not tries[CATALOG_RESERVE_SIZE // CATALOG_RESERVE_STEP :], "not yet"
        size = reserve.path.stat().st_size
        error[0], now[0] = number, now[0] + CATALOG_RESERVE_RETRY_S
        tries.clear()
        assert reserve.refuses() == full and tries == [size]
        assert reserve.path.stat().st_size == size, "what it had of the step goes back"
        assert reserve.refuses() == full and len(tries) == 1
        error[0], now[0] = 0, now[0] + CATALOG_RESERVE_RETRY_S
        assert not reserve.refuses() and reserve.fill()
        assert reserve.path.stat().st_size == CATALOG_RESERVE_SIZE

    def test_a_file_that_another_process_makes_first_is_one(self, tmp_path, monkeypatch):
        reserve = CatalogReserve(tmp_path / "reserve")

        def faster(path):
            path.touch()
            raise FileExistsError

        monkeypatch.setattr(catalog_reserve, "open_new", faster)
        assert reserve.fill() and all(spare.exists() for spare in reserve.spares)


class TestInodes:
    """A disk that has blocks and no inode."""

    @pytest.fixture
    def few(self, tmp_path: Path) -> Iterator[Path]:
        with small_disk(tmp_path, "few", 48, inodes=256) as mount:
            yield mount

    def test_an_empty_file_makes_way_and_comes_back(self, few):
        reserve = CatalogReserve(few / "reserve")
        assert reserve.fill()
        assert all(spare.stat().st_mode & 0o777 == 0o600 for spare in reserve.spares)
        others = take_inodes(few)
        for given in range(1, CATALOG_RESERVE_FILES + 1):
            assert reserve.give()
            (few / f"new {given}").touch()
        assert taken(reserve.path) >= CATALOG_RESERVE_SIZE, "blocks would not have helped"
        assert not reserve.fill() and not reserve.short, "what is stored takes no inode"
        for other in others:
            other.unlink()
        assert reserve.fill()
        assert all(spare.exists() for spare in reserve.spares)

    def test_a_service_that_was_killed_or_ended_starts(self, few):
        service = ServiceRig(few / "data")
        meta = few / "data" / ".ingest"

        async def use() -> None:
            catalog = await CatalogClient.connect(service.data_dir)
            await catalog.enter("test")
            await catalog.close()

        try:
            service.start()
            eventually((meta / f"catalog.reserve.{CATALOG_RESERVE_FILES}").exists, "a reserve")
            service.kill()
            (meta / "catalog.sock").unlink()
            take_inodes(few)
            for _ in range(2):
                service.start()
                asyncio.run(use())
                assert service.terminate() == 0
                take_inodes(few)
            for spare in meta.glob("catalog.reserve.*"):
                spare.unlink()
            take_inodes(few)
            assert (meta / "catalog.sock").exists()
            listen(few / "data").close()  # in the place of the old one, without any reserve
        finally:
            service.close()


def take_inodes(mount: Path) -> list[Path]:
    """All that are free: the files that have them."""
    made: list[Path] = []
    with contextlib.suppress(OSError):
        while True:
            path = mount / f"taken {time.monotonic_ns()}"
            path.touch()
            made.append(path)
    assert os.statvfs(mount).f_favail == 0
    return made


async def stored(catalog: CatalogClient | LocalCatalog, owner: int, count: int) -> list[int]:
    """Versions of the names 0, 1, …"""
    lease = await catalog.lease(owner, 2 * count)
    numbers = list(await catalog.reserve(count))
    places = [Extent(lease.first + 2 * i, 2) for i in range(count)]
    await asyncio.gather(
        *(
            catalog.store(owner, "store", f"{i:04}" + 900 * "x", 1, DIGEST, [place], number=number)
            for i, (place, number) in enumerate(zip(places, numbers, strict=True))
        )
    )
    return numbers


async def refused(catalog: CatalogClient | LocalCatalog, owner: int) -> None:
    """Something new, until the room that SQLite had is taken."""
    for number in range(1000):
        try:
            await catalog.begin(owner, "store", f"new {number}" + 900 * "y")
        except NoSpaceError:
            return
    raise AssertionError("the disk is not full")


async def until_room(catalog: CatalogClient | LocalCatalog, owner: int) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        try:
            await catalog.begin(owner, "store", "there is room")
            return
        except NoSpaceError:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)


class TestFullDisk:
    def test_a_service_deletes_pins_ends_and_starts(self, disk):
        service = ServiceRig(disk / "data")
        reserve = disk / "data" / ".ingest" / "catalog.reserve"

        async def fill_up() -> None:
            catalog = await CatalogClient.connect(service.data_dir)
            owner = await catalog.enter("test")
            numbers = await stored(catalog, owner, 1000)
            fill(disk)
            await refused(catalog, owner)
            for i in range(300):
                await catalog.delete("store", f"{i:04}" + 900 * "x")
            await catalog.pin(owner, numbers[800])
            await catalog.renew(owner)
            await refused(catalog, owner)
            await catalog.close()

        async def go_on() -> None:
            catalog = await CatalogClient.connect(service.data_dir)
            owner = await catalog.enter("test")
            await catalog.delete("store", "0801" + 900 * "x")
            await refused(catalog, owner)
            (disk / "ballast").unlink()
            await until_room(catalog, owner)
            await catalog.close()

        try:
            service.start()
            eventually(reserve.exists, "a reserve")
            asyncio.run(fill_up())
            service.kill()
            fill(disk)
            service.start()
            assert service.terminate() == 0
            fill(disk)  # what its end gave back is somebody else's too
            service.start()
            asyncio.run(go_on())
            eventually(lambda: reserve.stat().st_size == CATALOG_RESERVE_SIZE, "a whole reserve")
            assert service.terminate() == 0
        finally:
            service.close()
        with Catalog(disk / "data" / ".ingest" / "catalog.db") as catalog:
            assert len(catalog.page("store", limit=1000)) == 699
            assert catalog.garbage_size()[1] >= 2 * 301

    def test_a_command_without_a_service_deletes(self, disk):
        path = disk / "catalog.db"

        async def run() -> None:
            catalog = await LocalCatalog.open(path)
            await stored(catalog, await catalog.enter("test"), 10)
            await catalog.close()
            fill(disk)
            catalog = await LocalCatalog.open(path)
            owner = await catalog.enter("another")
            await refused(catalog, owner)
            await catalog.delete("store", "0003" + 900 * "x")
            await catalog.leave(owner)
            await catalog.close()

        asyncio.run(run())
        assert path.with_suffix(".reserve").exists()
        with Catalog(path) as catalog:
            assert len(catalog.page("store")) == 9

    def test_what_stores_and_what_deletes_come_together(self, disk):
        """In one transaction: the one is refused, the other done."""
        path = disk / "catalog.db"

        async def run() -> None:
            catalog = await LocalCatalog.open(path)
            owner = await catalog.enter("test")
            await stored(catalog, owner, 10)
            catalog._catalog.room.fill()
            fill(disk)
            await refused(catalog, owner)
            outcomes = await asyncio.gather(
                *(catalog.begin(owner, "store", f"new {i}" + 900 * "z") for i in range(100)),
                catalog.delete("store", "0003" + 900 * "x"),
                return_exceptions=True,
            )
            assert {type(outcome) for outcome in outcomes[:-1]} == {NoSpaceError}
            assert outcomes[-1].name.startswith("0003")
            await catalog.close()

        asyncio.run(run())

    def test_what_was_in_the_log_is_in_the_file_when_it_is_closed(self, disk):
        """With room of the reserve: whoever takes the file alone has all of it."""
        catalog = Catalog(disk / "catalog.db")
        assert catalog.room.fill()
        with catalog.change():
            owners = [catalog.enter(f"{i}" + 3000 * "x") for i in range(300)]
        fill(disk)
        catalog.close_whole()
        assert not list(disk.glob("catalog.db-*"))
        (disk / "ballast").unlink()
        with Catalog(disk / "catalog.db") as opened, opened.change():
            assert opened.enter("next") == owners[-1] + 1

    def test_a_process_that_the_catalog_cannot_take_enters_when_there_is_room(self, disk):
        """Without any reserve."""
        path = disk / "catalog.db"

        async def run() -> None:
            catalog = await LocalCatalog.open(path)
            owner = await catalog.enter("test")
            fill(disk)
            while True:  # SQLite's log has no room either
                try:
                    await catalog.enter(10_000 * "x")
                except NoSpaceError:
                    break
            membership = await Membership.enter(catalog, 10_000 * "y")
            assert membership.owner == NOBODY
            (disk / "ballast").unlink()
            taken = await membership.take(2)
            assert taken.owner == membership.owner > owner
            await membership.settle(taken)
            await membership.leave()
            await catalog.close()

        asyncio.run(run())


def test_a_gateway_starts_without_an_inode(tmp_path):
    with small_disk(tmp_path, "disk", 192, inodes=9000) as disk:
        node = NodeGateway(disk / "data", "--wal-size=96MiB", "--reserve=8MiB", "--http-workers=1")
        node.log_path = tmp_path / "log"
        try:
            node.start()
            eventually((disk / f"data/.ingest/catalog.reserve.{CATALOG_RESERVE_FILES}").exists, "a reserve")
            for end in (node.kill, node.stop):
                take_inodes(disk)
                end()
                take_inodes(disk)
                node.start()
                assert node.gateway.request("GET", "/objects/absent").status == 404
        finally:
            node.close()


def test_a_gateway_reads_deletes_ends_and_starts(tmp_path):
    with small_disk(tmp_path, "disk", 192) as disk:
        node = NodeGateway(disk / "data", "--wal-size=96MiB", "--reserve=8MiB", "--http-workers=1")
        node.log_path = tmp_path / "log"

        def status(method: str, name: str, body: bytes | None = None) -> int:
            answer = node.gateway.request(method, f"/objects/{name}", body)
            assert answer.status != 200 or method != "GET" or answer.body == LARGE
            return answer.status

        try:
            node.start()
            for name in ("large", "old", "older"):
                assert status("PUT", name, LARGE) == 200
            eventually(lambda: (disk / "data/.ingest/catalog.reserve").exists(), "a reserve")
            fill(disk)
            eventually(
                lambda: "no space:" in node.log(), "the engine has looked"
            )  # it does so 20 times a second
            assert status("GET", "large") == 200
            assert status("DELETE", "old") == 200
            assert status("PUT", "new", LARGE) == 507
            assert node.stop() == 0, node.log()
            fill(disk)  # what its end gave back is somebody else's too
            node.start()
            assert status("GET", "large") == 200
            assert status("GET", "old") == 404
            node.kill()
            fill(disk)
            node.start()
            assert status("DELETE", "older") == 200
            # Not even a reserve is left: it can be read all the same.
            (disk / "data/.ingest/catalog.reserve").unlink()
            fill(disk)
            assert status("GET", "large") == 200
            (disk / "ballast").unlink()
            eventually(lambda: status("PUT", "new", LARGE) == 200, "room for it")
            assert node.stop() == 0, node.log()
        finally:
            node.close()
