"""The catalog through its service and within the process: the same calls, one commit for many, and what a death leaves."""

import asyncio
import contextlib
import dataclasses
import math
import os
import resource
import signal
import socket
import threading
from pathlib import Path

import msgspec
import pytest
from catalog_rig import ServiceRig

from ingest import errors
from ingest.catalog import catalog_calls, catalog_socket
from ingest.catalog.catalog_access import CatalogAccess
from ingest.catalog.catalog_changes import Catalog
from ingest.catalog.catalog_client import CatalogClient
from ingest.catalog.catalog_reader import CatalogReader, Garbage
from ingest.catalog.catalog_service import CatalogService
from ingest.catalog.catalog_socket import catalog_path, connect, listen, service_lock
from ingest.catalog.extent import Extent
from ingest.catalog.local_catalog import LocalCatalog
from ingest.catalog.version import ABSENT, Condition, Version, VersionState
from ingest.errors import (
    ConnectionLostError,
    DataDirLostError,
    DiskError,
    NameTakenError,
    NoSpaceError,
    NotFoundError,
    ProtocolError,
    StoreLockedError,
    UploadLostError,
    UsageError,
)
from ingest.limits import CATALOG_MESSAGE_MAX
from ingest.store.possession import Possession, identity_of

DIGEST = bytes(range(32))


@pytest.fixture
def service(tmp_path):
    rig = ServiceRig(tmp_path / "data")
    rig.start()
    yield rig
    rig.close()


@pytest.fixture(params=["local", "service"])
def place(request, tmp_path) -> Path:
    """A data directory, with a service or without one."""
    if request.param == "service":
        return request.getfixturevalue("service").data_dir
    (tmp_path / "local" / ".ingest").mkdir(parents=True)
    return tmp_path / "local"


@contextlib.asynccontextmanager
async def opened(place: Path):
    access: CatalogAccess
    if (place / ".ingest" / "catalog.sock").exists():
        access = await CatalogClient.connect(place)
    else:
        access = await LocalCatalog.open(catalog_path(place))
    try:
        yield access
    finally:
        await access.close()


def reader(place: Path) -> CatalogReader:
    return CatalogReader(catalog_path(place))


async def store(access: CatalogAccess, owner: int, lease: Extent, name: str, number: int):
    return await access.store(owner, "n", name, 1, DIGEST, [lease], {"a": "b"}, number=number)


class TestCalls:
    def test_an_upload(self, place):
        async def main():
            async with opened(place) as access:
                owner = await access.enter("test", 100)
                await access.renew(owner)
                number = await access.begin(owner, "n", "a\0\N{SNOWMAN}", {"x": "y"}, ABSENT)
                held = await access.extend(owner, number, 10)
                await access.conflicted(owner, held.first, number)
                kept = [Extent(held.first + 1, 4)]
                done = await access.commit(owner, number, 4000, DIGEST, kept)
                with reader(place) as catalog:
                    assert catalog.find("n", "a\0\N{SNOWMAN}") == done
                assert (done.digest, done.extents, done.headers) == (DIGEST, tuple(kept), {"x": "y"})
                await access.pin(owner, number)
                await access.pin(owner, number)
                tag = frozenset([done.etag])
                assert (await access.delete("n", "a\0\N{SNOWMAN}", Condition(etags=tag))) == done
                return done, owner, access

        done, _, _ = asyncio.run(main())
        with reader(place) as catalog:
            assert catalog.version(done.number).state is VersionState.DELETED

    def test_pins_are_counted(self, place):
        async def main():
            async with opened(place) as access:
                owner = await access.enter("test")
                (number,) = await access.reserve(1)
                lease = await access.lease(owner, 2)
                await store(access, owner, lease, "a", number)
                await access.pin(owner, number)
                await access.pin(owner, number)
                await access.delete("n", "a")
                found = []
                with reader(place) as catalog:
                    for _ in range(2):
                        found.append([item.extent for item in catalog.garbage(10)])
                        await access.unpin(owner, number)
                    found.append([item.extent for item in catalog.garbage(10)])
                    assert found == [[], [], [lease]]
                    await access.collected(catalog.garbage(10))
                    assert catalog.garbage(10) == []
                assert await access.forget(-1) == 1

        asyncio.run(main())

    def test_small_objects_and_leases(self, place):
        async def main():
            async with opened(place) as access:
                owner = await access.enter("test")
                lease = await access.lease(owner, 10)
                foreign = await access.lease(None, 3, "a script")
                numbers = await access.reserve(2)
                await store(access, owner, Extent(lease.first, 2), "a", numbers[0])
                await access.discard(owner, [Extent(lease.first + 2, 2)])
                await access.conflicted(owner, lease.first + 4)
                await access.give_back(owner, lease)
                number = await access.begin(owner, "n", "b")
                await access.fail(owner, number, "broke")
                await access.leave(owner)
                assert await access.expire() == 0
                with reader(place) as catalog:
                    assert [item.extent for item in catalog.garbage(10)] == [
                        Extent(lease.first + 2, 2),
                        Extent(lease.first + 5, 5),
                    ]
                    assert [one.extent for one in catalog.leases()] == [foreign]
                    assert catalog.history("n", "b")[0].reason == "broke"

        asyncio.run(main())

    def test_errors_are_of_their_own_type(self, place):
        async def main():
            async with opened(place) as access:
                owner = await access.enter("test")
                first, second = await access.lease(owner, 2), await access.lease(owner, 2)
                numbers = await access.reserve(3)
                await store(access, owner, first, "a", numbers[0])
                with pytest.raises(NameTakenError, match="there is an object 'a' already"):
                    await access.store(
                        owner, "n", "a", 1, DIGEST, [second], condition=ABSENT, number=numbers[1]
                    )
                with pytest.raises(UploadLostError):
                    await store(access, owner, first, "b", numbers[2])
                with pytest.raises(NotFoundError):
                    await access.delete("n", "missing")
                with pytest.raises(UsageError):
                    await access.begin(owner, "n", "x" * 1025)
                await access.leave(owner)
                with pytest.raises(UploadLostError):
                    await access.renew(owner)

        asyncio.run(main())

    def test_one_is_alone_whoever_asks(self, place):
        """The same process too: two collectors would each tell the catalog of what the other one deletes."""

        async def main():
            async with opened(place) as one, opened(place) as two:
                for first, others in ((one, (one, two)), (two, (two, one))):
                    owner = await first.enter_alone("collector")
                    for other in others:
                        with pytest.raises(errors.BusyError):
                            await other.enter_alone("collector")
                    await first.leave(owner)

        asyncio.run(main())

    def test_of_one_caller_are_made_in_their_order(self, place):
        async def main():
            async with opened(place) as access:
                owner = await access.enter("test")
                lease = await access.lease(owner, 200)
                numbers = await access.reserve(100)
                places = [Extent(lease.first + 2 * i, 2) for i in range(100)]
                calls = [
                    store(access, owner, one, "same", number)
                    for one, number in zip(places, numbers, strict=True)
                ]
                await asyncio.gather(*calls)
                with reader(place) as catalog:
                    assert catalog.find("n", "same").number == numbers[-1]
                    assert [item.extent for item in catalog.garbage(100)] == places[:-1]

        asyncio.run(main())

    def test_after_its_end_nothing_is_taken(self, place):
        async def main():
            async with opened(place) as access:
                owner = await access.enter("test")
            with pytest.raises(ConnectionLostError):
                await access.leave(owner)

        asyncio.run(main())


class TestTogether:
    def test_what_waits_is_committed_at_once(self, tmp_path):
        """100 calls are in the socket before the service looks at it."""
        meta = tmp_path / ".ingest"
        meta.mkdir()
        listener = listen(tmp_path)
        commits = []

        def serve_here():
            catalog = Catalog(catalog_path(tmp_path))
            catalog._db.connection.set_commit_hook(lambda: bool(commits.append(1)))
            made.append(CatalogService(catalog, listener, Possession({})))
            ready.set()
            go.wait()
            made[0].run()

        made: list[CatalogService] = []
        ready, go = threading.Event(), threading.Event()
        thread = threading.Thread(target=serve_here)
        thread.start()
        ready.wait()

        async def main():
            client = await CatalogClient.connect(tmp_path)
            calls = [asyncio.create_task(client.enter(f"owner {i}")) for i in range(100)]
            while client._link is None or client._link.unsent or client._last_id < 100:
                await asyncio.sleep(0)
            go.set()
            assert len(set(await asyncio.gather(*calls))) == 100
            await client.close()

        try:
            asyncio.run(main())
        finally:
            go.set()
            made[0].stop()
            thread.join()
        assert len(commits) == 1

    def test_what_waits_at_its_end_is_committed_before(self, tmp_path, monkeypatch):
        monkeypatch.setattr("ingest.catalog.local_catalog.CATALOG_BATCH_MAX", 2)

        async def main():
            catalog = await LocalCatalog.open(tmp_path / "catalog.db")
            calls = [asyncio.create_task(catalog.lease(None, 8, f"{i}")) for i in range(9)]
            while catalog._running is None:
                await asyncio.sleep(0)
            await catalog.close()
            return await asyncio.gather(*calls)

        found = asyncio.run(main())
        with CatalogReader(tmp_path / "catalog.db") as catalog:
            assert [lease.extent for lease in catalog.leases()] == found and len(found) == 9

    def test_a_full_disk_fails_all_of_a_transaction(self, tmp_path):
        async def main():
            access = await LocalCatalog.open(tmp_path / "catalog.db")
            owner = await access.enter("test")
            pages = access._catalog._db.value("PRAGMA page_count")
            access._catalog._db.run(f"PRAGMA max_page_count = {pages + 2}")
            calls = [access.enter("x" * 10_000) for _ in range(5)]
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert all(isinstance(one, DiskError) for one in outcomes)
            access._catalog._db.run("PRAGMA max_page_count = 100000")
            await access.renew(owner)
            await access.close()

        asyncio.run(main())
        with CatalogReader(tmp_path / "catalog.db") as catalog:
            assert catalog._db.value("SELECT count(*) FROM owners") == 1

    def test_a_call_of_nonsense_fails_alone(self, tmp_path):
        with Catalog(tmp_path / "catalog.db") as catalog:
            good, bad, also = catalog_calls.run_together(
                catalog, [("enter", ["a"]), ("renew", [object()]), ("enter", ["b"])]
            )
            assert isinstance(bad, errors.CatalogError)
            assert good != also
            assert catalog._db.value("SELECT count(*) FROM owners") == 2

    def test_a_busy_one_fails_alone(self, tmp_path):
        with Catalog(tmp_path / "catalog.db") as catalog:
            calls = [("enter_alone", ["collector"]), ("enter_alone", ["collector"]), ("enter", ["b"])]
            first, second, third = catalog_calls.run_together(catalog, calls)
            assert isinstance(second, errors.BusyError)
            assert first != third
            assert catalog._db.value("SELECT count(*) FROM owners") == 2


class TestAgain:
    """What a client asks once more, after an answer was lost, may have been done: and others have gone on since."""

    # Of which a second time gives something more, that nobody has: it is garbage sooner or later.
    GIVEN_TWICE = frozenset({"enter", "lease", "reserve", "extend"})

    def arguments(self, catalog: Catalog, call: str) -> list:
        """Of a call that does something."""
        me = catalog.enter("me", 1e6)
        lease = catalog.lease(me, 8)
        numbers = catalog.reserve(3)
        small = [Extent(lease.stop - 2, 2)]
        stored = catalog.store(me, "n", "name", 1, DIGEST, small, number=numbers[0])
        held = catalog.extend(me, catalog.begin(me, "n", "name", number=numbers[1]), 4)
        rest = Extent(lease.first, 6)
        if call == "unpin":
            catalog.pin(me, stored.number, 1)
        if call in ("collected", "forget"):
            catalog.discard(me, [Extent(lease.first, 1)])
        if call == "forget":
            catalog.delete("n", "name")
            catalog.collected(catalog.garbage(10))
        if call == "expire":
            catalog.renew(catalog.enter("late"), 0)
        return {
            "bound": [],
            "enter": ["x"],
            "enter_alone": ["x", 1e6, "token"],
            "renew": [me, 1e6],
            "leave": [me],
            "expire": [],
            "lease": [me, 4, "x"],
            "discard": [me, [Extent(lease.first, 2)]],
            "forgo": [me, Extent(lease.first, 2)],
            "conflicted": [me, lease.first],
            "give_back": [me, rest],
            "reserve": [3],
            "begin": [me, "n", "name", {"a": "b"}, Condition(), numbers[2]],
            "extend": [me, numbers[1], 4],
            "commit": [me, numbers[1], 1, DIGEST, [Extent(held.first, 2)]],
            "store": [me, "n", "name", 1, DIGEST, [Extent(lease.first, 2)], {}, Condition(), numbers[2]],
            "fail": [me, numbers[1], "broke"],
            "delete": ["n", "name"],
            "pin": [me, stored.number, 1],
            "unpin": [me, stored.number, 1],
            "collected": [catalog.garbage(10)],
            "forget": [-1.0],
        }[call]

    def stranger(self, catalog: Catalog) -> int:
        """Who puts under the same name, begins there, holds tickets, and reads what there is."""
        owner = catalog.enter("stranger", 1e6)
        lease = catalog.lease(owner, 10)
        numbers = [*catalog.reserve(2)]
        catalog.store(owner, "n", "name", 1, DIGEST[::-1], [Extent(lease.first, 2)], number=numbers[0])
        catalog.extend(owner, catalog.begin(owner, "n", "name", number=numbers[1]), 4)
        catalog.pin(owner, numbers[0], 1)
        return owner

    def of_stranger(self, catalog: Catalog, owner: int) -> list:
        return [
            catalog.lookup("n", "name"),
            catalog._db.all("SELECT * FROM owners WHERE id = ?", owner),
            catalog._db.all("SELECT * FROM leases WHERE owner = ?", owner),
            catalog._db.all("SELECT * FROM pins WHERE owner = ?", owner),
            catalog._db.all("SELECT * FROM versions WHERE owner = ?", owner),
        ]

    def everything(self, catalog: Catalog) -> dict[str, list]:
        tables = catalog._db.all("SELECT name FROM sqlite_master WHERE type = 'table'")
        return {name: catalog._db.all(f"SELECT * FROM {name}") for (name,) in tables}

    @pytest.mark.parametrize("call", catalog_calls.CALLS)
    def test_a_call_changes_nothing_of_others(self, tmp_path, call):
        with Catalog(tmp_path / "catalog.db") as catalog:
            with catalog.change():
                arguments = self.arguments(catalog, call)
            before = self.everything(catalog)
            (first,) = catalog_calls.run_together(catalog, [(call, arguments)])
            assert not isinstance(first, Exception)
            assert self.everything(catalog) != before, "the arguments are of a call that does nothing"
            with catalog.change():
                owner = self.stranger(catalog)
            theirs, before = self.of_stranger(catalog, owner), self.everything(catalog)
            (second,) = catalog_calls.run_together(catalog, [(call, arguments)])
            harmless = self.of_stranger(catalog, owner) == theirs
            assert harmless != (call in catalog_calls.NOT_AGAIN)
            if harmless and call not in self.GIVEN_TWICE | {"renew"}:
                assert self.everything(catalog) == before
            if harmless and call not in self.GIVEN_TWICE | {"expire", "forget"}:
                as_before = (
                    msgspec.structs.replace(second, state=first.state)
                    if isinstance(first, Version)
                    else second
                )
                assert as_before == first

    @pytest.mark.parametrize("call", catalog_calls.CALLS)
    def test_a_full_disk_refuses_what_stores_something_new_and_nothing_else(self, tmp_path, call):
        """What ends or frees something is what makes room."""
        stores = {"bound", "lease", "reserve", "begin", "extend", "commit", "store"}
        with Catalog(tmp_path / "catalog.db") as catalog:
            with catalog.change():
                arguments = self.arguments(catalog, call)
            before = self.everything(catalog)
            catalog.room.short, catalog.room._filled_at = True, math.inf  # and nobody looks for room
            (outcome,) = catalog_calls.run_together(catalog, [(call, arguments)])
            assert isinstance(outcome, NoSpaceError) == (call in stores), outcome
            assert (self.everything(catalog) == before) == (call in stores)

    @pytest.mark.parametrize("call", catalog_calls.CALLS)
    def test_a_lost_catalog_takes_what_readers_need_and_nothing_else(self, tmp_path, call):
        """What it took would be gone with it."""
        reads = {"enter", "renew", "leave", "pin", "unpin"}
        (tmp_path / ".ingest").mkdir()
        path = catalog_path(tmp_path)
        with service_lock(tmp_path) as possession:
            catalog = Catalog(path)
            with catalog.change():
                arguments = self.arguments(catalog, call)
            possession.add(path, identity_of(os.stat(path)))
            service = CatalogService(catalog, listen(tmp_path), possession)
            path.rename(tmp_path / "away")
            possession.look()
            before = self.everything(catalog)
            (outcome,) = service._outcomes([(call, arguments)])
            changed = self.everything(catalog) != before
            service.stop()
            service.run()
        assert isinstance(outcome, DataDirLostError) == (call not in reads), outcome
        assert changed == (call in reads)


class TestDeath:
    def test_of_the_service_is_not_noticed(self, service):
        async def main():
            client = await CatalogClient.connect(service.data_dir)
            owner = await client.enter("test", 1e6)
            lease = await client.lease(owner, 600)
            numbers = await client.reserve(300)
            for third in range(3):
                mine = range(100 * third, 100 * third + 100)
                calls = [
                    asyncio.create_task(
                        store(client, owner, Extent(lease.first + 2 * i, 2), f"{i}", numbers[i])
                    )
                    for i in mine
                ]
                pending = calls[:1] if third else []  # some have been answered, or none
                await asyncio.gather(*pending)
                service.kill()
                service.start()
                await asyncio.gather(*calls)
            await client.close()
            return lease

        lease = asyncio.run(main())
        with reader(service.data_dir) as catalog:
            assert len(catalog.page("n")) == 300
            assert catalog.garbage(10) == catalog.leases() == []
            tickets = sorted(version.extents[0].first for version in catalog.versions(VersionState.OK))
            assert tickets == list(range(lease.first, lease.stop, 2))

    def test_while_a_delete_was_asked_for_is_told(self, service):
        async def main():
            client = await CatalogClient.connect(service.data_dir)
            service.signal(signal.SIGSTOP)
            asked = asyncio.create_task(client.delete("n", "a"))
            await asyncio.sleep(0)
            service.kill()
            with pytest.raises(ConnectionLostError):
                await asked
            service.start()
            with pytest.raises(NotFoundError):
                await client.delete("n", "a")
            await client.close()

        asyncio.run(main())

    @pytest.mark.parametrize("made", [True, False])
    def test_a_delete_whose_answer_was_lost_takes_nothing_that_came_since(self, service, made):
        async def main():
            client = await CatalogClient.connect(service.data_dir)
            owner = await client.enter("test", 1e6)
            first, second = await client.lease(owner, 2), await client.lease(owner, 2)
            numbers = await client.reserve(2)
            await store(client, owner, first, "a", numbers[0])
            service.signal(signal.SIGSTOP)
            asked = asyncio.create_task(client.delete("n", "a"))
            await asyncio.sleep(0)
            service.kill()
            with Catalog(catalog_path(service.data_dir)) as catalog, catalog.change():
                if made:
                    catalog.delete("n", "a")
                catalog.store(owner, "n", "a", 1, DIGEST, [second], number=numbers[1])
            service.start()
            with pytest.raises(ConnectionLostError):
                await asked
            await client.renew(owner)  # all that is asked again has been asked
            await client.close()
            return numbers[1]

        number = asyncio.run(main())
        with reader(service.data_dir) as catalog:
            assert catalog.find("n", "a").number == number

    def test_after_which_a_pin_may_be_there_or_not_keeps_nothing(self, service):
        """Who asked was told that the catalog is away: nobody else would ever unpin it."""

        async def main():
            client = await CatalogClient.connect(service.data_dir, retry_for=0)
            owner = await client.enter("test")
            lease = await client.lease(owner, 2)
            (number,) = await client.reserve(1)
            await store(client, owner, lease, "a", number)
            await client.pin(owner, number)
            service.kill()
            with pytest.raises(ConnectionLostError):
                await client.unpin(owner, number)
            with pytest.raises(ConnectionLostError):
                await client.pin(owner, number)
            service.start()
            with Catalog(catalog_path(service.data_dir)) as catalog, catalog.change():
                catalog.pin(owner, number, client._last_reader)  # it was made after all
            await client.delete("n", "a")
            await client.renew(owner)
            await client.close()

        asyncio.run(main())
        with reader(service.data_dir) as catalog:
            assert catalog.garbage_size() == (1, 2)

    def test_of_the_service_while_no_descriptor_is_to_be_had(self, service, monkeypatch):
        """It is tried again until there is one."""

        async def main():
            client = await CatalogClient.connect(service.data_dir)
            service.kill()
            service.start()
            while client._link is not None:  # whose descriptor is free then
                await asyncio.sleep(0.01)
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            free = os.dup(0)
            os.close(free)
            tries = []
            create = socket.socket

            def counted(*arguments, **options):
                tries.append(1)
                return create(*arguments, **options)

            monkeypatch.setattr(socket, "socket", counted)
            resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
            try:
                asked = asyncio.create_task(client.enter("test"))
                while len(tries) < 3:
                    await asyncio.sleep(0.01)
                    assert not asked.done()
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert await asked > 0
            await client.close()

        asyncio.run(main())

    def test_without_a_successor_is_told(self, service):
        async def main():
            client = await CatalogClient.connect(service.data_dir, retry_for=0.1)
            service.kill()
            with pytest.raises(ConnectionLostError, match="does a gateway run"):
                await client.enter("test")
            service.start()
            assert await client.enter("test") > 0
            await client.close()
            service.kill()
            with pytest.raises(ConnectionLostError):
                await CatalogClient.connect(service.data_dir, retry_for=0)

        asyncio.run(main())

    def test_what_was_given_up_is_not_made_later(self, service):
        """Its caller was told that it was not, and has gone on by another way since."""

        async def main():
            client = await CatalogClient.connect(service.data_dir, retry_for=0.1)
            service.kill()
            outcomes = await asyncio.gather(
                *(client.lease(None, 8, f"given up {i}") for i in range(3)), return_exceptions=True
            )
            assert {type(outcome) for outcome in outcomes} == {ConnectionLostError}
            service.start()
            await client.lease(None, 8, "taken")
            await client.lease(None, 8, "taken")  # by now whatever went out before it was answered
            await client.close()

        asyncio.run(main())
        with reader(service.data_dir) as catalog:
            assert [lease.what for lease in catalog.leases()] == ["taken", "taken"]

    def test_of_a_process_leaves_the_others_alone(self, service):
        async def main():
            one, two = [await CatalogClient.connect(service.data_dir) for _ in range(2)]
            service.signal(signal.SIGSTOP)
            calls = [asyncio.create_task(client.enter("x")) for client in (one, two)]
            await asyncio.sleep(0)
            await one.close()
            service.signal(signal.SIGCONT)
            lost, owner = await asyncio.gather(*calls, return_exceptions=True)
            assert isinstance(lost, ConnectionLostError)
            await two.renew(owner)
            await two.close()

        asyncio.run(main())

    def test_by_term_answers_what_came(self, service):
        async def main():
            client = await CatalogClient.connect(service.data_dir, retry_for=0)
            owner = await client.enter("x")
            assert service.terminate() == 0
            with pytest.raises(ConnectionLostError):
                await client.renew(owner)
            await client.close()

        asyncio.run(main())


class TestCancelled:
    """Who is cancelled while he waits gets nothing, and nothing stays behind that nobody would give up."""

    def test_begin_and_lease_and_pin(self, service):
        async def main():
            client = await CatalogClient.connect(service.data_dir)
            owner = await client.enter("x", 1e6)
            first, (number,) = await client.lease(owner, 2), await client.reserve(1)
            await store(client, owner, first, "a", number)
            await client.fail(owner, await client.begin(owner, "n", "warm"), "no")
            service.signal(signal.SIGSTOP)
            calls = [
                asyncio.create_task(call)
                for call in (
                    client.begin(owner, "n", "b"),
                    client.lease(owner, 4),
                    client.pin(owner, number),
                )
            ]
            while len(client._waiting) < 3:
                await asyncio.sleep(0)
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            assert all(call.cancelled() for call in calls)
            service.signal(signal.SIGCONT)
            await asyncio.gather(*client._undoing)
            await client.delete("n", "a")
            await client.close()
            return first

        first = asyncio.run(main())
        with reader(service.data_dir) as catalog:
            assert list(catalog.versions(VersionState.PENDING)) == []
            assert catalog.history("n", "b")[0].state is VersionState.FAILED
            assert catalog.leases() == []
            assert [item.extent for item in catalog.garbage(9)] == [Extent(first.stop, 4), first]


class TestSocket:
    def test_is_for_its_owner_alone(self, service):
        path = service.data_dir / ".ingest" / "catalog.sock"
        assert path.stat().st_mode & 0o777 == 0o600

    def test_however_long_its_path_is(self, tmp_path):
        deep = tmp_path.joinpath(*["directory" * 5] * 5)
        rig = ServiceRig(deep)
        rig.start()
        try:
            connect(deep).close()
        finally:
            rig.close()

    @pytest.mark.parametrize("long", [False, True])
    def test_whoever_finds_its_name_can_connect_and_is_its_owner(self, tmp_path, monkeypatch, long):
        """It has its mode and listens before it has its name: a process that starts meanwhile is not turned away."""
        data = tmp_path.joinpath(*["directory" * 5] * 5) if long else tmp_path
        meta = data / ".ingest"
        meta.mkdir(parents=True)
        listen(data).close()  # the name of one that is dead
        path, seen = meta / "catalog.sock", []
        rename = os.rename
        before = path.stat().st_ino

        def looked_at(source, target):
            assert path.stat().st_ino == before
            rename(source, target)
            seen.append(path.stat().st_mode & 0o777)
            connect(data).close()

        monkeypatch.setattr(os, "rename", looked_at)
        mask = os.umask(0)
        try:
            listen(data).close()
        finally:
            os.umask(mask)
        assert seen == [0o600]

    def test_descriptors_are_closed_where_nobody_listens_or_may(self, tmp_path, service):
        """Whoever waits for a service tries this again and again."""
        open_before = sorted(os.listdir("/proc/self/fd"))
        (tmp_path / "file").touch()
        deep = tmp_path.joinpath(*["directory" * 5] * 5)
        (deep / ".ingest").mkdir(parents=True)
        for data in (tmp_path, deep, tmp_path / "missing", tmp_path / "file"):
            with pytest.raises(ConnectionLostError):
                connect(data)
        for data in (tmp_path / "missing", tmp_path / "file"):
            with pytest.raises(DiskError):
                listen(data)
            with pytest.raises(DiskError), service_lock(data):
                pass
        with pytest.raises(StoreLockedError), service_lock(service.data_dir):
            pass
        with service_lock(deep):
            pass
        assert sorted(os.listdir("/proc/self/fd")) == open_before

    @pytest.mark.parametrize("proc", [True, False])
    def test_each_length_of_its_path(self, tmp_path_factory, monkeypatch, proc):
        """To the longest one that an address holds, and behind it; where /proc is needed and missing that is said."""
        if not proc:
            monkeypatch.setattr(catalog_socket, "_DESCRIPTORS", "/nowhere")
        base, longest = tmp_path_factory.mktemp("s"), catalog_socket._longest()
        if len(os.fsencode(base)) + 6 > longest:
            pytest.skip(f"{base} is too long itself")
        for length in range(longest - 4, longest + 5):
            data = base / ("d" * (length - len(os.fsencode(base)) - 1))
            (data / ".ingest").mkdir(parents=True)
            assert len(os.fsencode(data)) == length
            if length > longest and not proc:
                for call in (listen, connect):
                    with pytest.raises(errors.ConfigError, match=f"a name of {longest} bytes at most"):
                        call(data)
                continue
            with listen(data):
                connect(data).close()
            assert [path.name for path in (data / ".ingest").iterdir()] == ["catalog.sock"]

    def test_is_one_service_s(self, service):
        with pytest.raises(StoreLockedError), service_lock(service.data_dir):
            pass

    def test_is_one_service_s_also_when_somebody_removes_the_lock(self, service):
        (service.data_dir / ".ingest" / "catalog.lock").unlink()
        with pytest.raises(StoreLockedError), service_lock(service.data_dir):
            pass

    def test_of_a_dead_service_is_replaced(self, service):
        service.kill()
        service.start()
        connect(service.data_dir).close()

    @pytest.mark.parametrize("before", [False, True])
    @pytest.mark.parametrize("long", [False, True])
    @pytest.mark.parametrize("step", ["chmod", "listen", "rename"])
    def test_of_one_that_died_while_it_made_it_is_no_hindrance(
        self, tmp_path, monkeypatch, step, long, before
    ):
        """Wherever that was: the next one listens, for its owner alone; nothing else stays. ``before``: there was one."""
        data = tmp_path.joinpath(*["directory" * 5] * 5) if long else tmp_path
        meta = data / ".ingest"
        meta.mkdir(parents=True)
        if before:
            listen(data).close()

        class Death(BaseException):
            """Nothing is cleared away behind it."""

        def die(*arguments, **options):
            raise Death

        with monkeypatch.context() as deadly:
            deadly.setattr(socket.socket if step == "listen" else os, step, die)
            with pytest.raises(Death):
                listen(data)
        assert len(list(meta.iterdir())) == 1 + before
        with listen(data) as listener:
            connect(data).close()
            listener.accept()[0].close()
        (path,) = meta.iterdir()
        assert (path.name, path.stat().st_mode & 0o777) == ("catalog.sock", 0o600)

    @pytest.mark.parametrize(
        "junk",
        [
            (CATALOG_MESSAGE_MAX + 1).to_bytes(4, "big"),
            catalog_calls.framed(b"junk"),
            catalog_calls.framed(catalog_calls.serialize_call(1, "close", [])),
            catalog_calls.framed(catalog_calls.serialize_call(1, "enter", [1])),
            catalog_calls.framed(catalog_calls.serialize_call(1, "enter", ["a", 1.0, "more"])),
        ],
        ids=["too long", "no message", "no call", "wrong type", "too many arguments"],
    )
    def test_who_sends_junk_is_disconnected(self, service, junk):
        sock = connect(service.data_dir)
        sock.setblocking(True)
        with sock, contextlib.suppress(ConnectionResetError):
            sock.sendall(junk)
            assert sock.recv(100) == b""

        async def main():
            client = await CatalogClient.connect(service.data_dir)
            assert await client.enter("another") > 0
            await client.close()

        asyncio.run(main())

    def test_answers_all_before_it_hangs_up_on_who_has_ended(self, service):
        sock = connect(service.data_dir)
        sock.setblocking(True)
        with sock:
            for i in range(10):
                sock.sendall(catalog_calls.framed(catalog_calls.serialize_call(i, "enter", ["x"])))
            sock.shutdown(socket.SHUT_WR)
            received = bytearray()
            while part := sock.recv(4096):
                received += part
        answers = [catalog_calls.parse_answer(message) for message in catalog_calls.unframed(received)]
        assert [answer.id for answer in answers] == list(range(10))


class TestMessages:
    def test_in_pieces(self):
        whole = catalog_calls.framed(b"one") + catalog_calls.framed(b"") + catalog_calls.framed(b"three")
        buffer, found = bytearray(), []
        for byte in whole:
            buffer.append(byte)
            found += catalog_calls.unframed(buffer)
        assert (found, buffer) == ([b"one", b"", b"three"], b"")

    def test_arguments_come_as_they_are_declared(self):
        garbage = [Garbage(1, None, Extent(5, 2))]
        for call, arguments in (
            ("collected", (garbage,)),
            ("lease", (None, 5, "x")),
            ("begin", (1, "n", "a", {"b": "c"}, Condition(True, frozenset(["x"])), None)),
            ("commit", (1, 2, 3, DIGEST, [Extent(5, 2)], Condition(), None, 8)),
        ):
            message = catalog_calls.serialize_call(7, call, arguments)
            assert catalog_calls.parse_call(message) == (7, (call, arguments))

    @pytest.mark.parametrize(
        ("call", "before"),
        [
            ("begin", (1, "n", "a", {})),
            ("commit", (1, 2, 3, DIGEST, [Extent(5, 2)])),
            ("store", (1, "n", "a", 3, DIGEST, [Extent(5, 2)], {})),
            ("delete", ("n", "a")),
        ],
    )
    def test_a_condition_comes_with_all_of_its_fields(self, call, before):
        values = {
            "exists": [True, False],
            "etags": [frozenset(), frozenset("*"), frozenset(["x", "y"])],
            "none_of": [frozenset(), frozenset("*"), frozenset(["x", "y"])],
            "same": [True],
            "unmodified_since": [0, -1, 1 << 40],
        }
        assert set(values) == {field.name for field in dataclasses.fields(Condition)}
        for name, some in values.items():
            for value in some:
                condition = Condition(**{name: value})
                message = catalog_calls.serialize_call(7, call, (*before, condition))
                _, (_, arguments) = catalog_calls.parse_call(message)
                assert arguments[len(before)] == condition

    def test_every_error_is_told_by_its_name(self):
        kinds = [
            kind
            for kind in vars(errors).values()
            if isinstance(kind, type)
            and issubclass(kind, errors.IngestError)
            and kind is not errors.RefusedError
        ]
        assert len(kinds) > 20
        for kind in kinds:
            answer = catalog_calls.parse_answer(catalog_calls.serialize_answer(1, kind("why")))
            outcome = catalog_calls.outcome_of(answer, int)
            assert type(outcome) is kind and str(outcome) == "why"

    @pytest.mark.parametrize("name", ["RefusedError", "Exception", "annotations", "NoSuchError", ""])
    def test_one_that_is_not_to_be_told_is_an_error_of_the_catalog(self, name):
        """Nothing of that name is called, whatever it is."""
        message = msgspec.msgpack.encode((1, name, "why"))
        outcome = catalog_calls.outcome_of(catalog_calls.parse_answer(message), int)
        assert type(outcome) is errors.CatalogError and str(outcome) == f"{name}: why"

    def test_the_longest_one_is_taken_and_none_that_is_longer(self):
        length = CATALOG_MESSAGE_MAX.to_bytes(4, "big")
        buffer = bytearray(catalog_calls.framed(b"before") + length + b"a part")
        assert list(catalog_calls.unframed(buffer)) == [b"before"]
        assert buffer == length + b"a part"
        buffer = bytearray(catalog_calls.framed(b"before") + (CATALOG_MESSAGE_MAX + 1).to_bytes(4, "big"))
        with pytest.raises(ProtocolError):
            list(catalog_calls.unframed(buffer))

    def test_what_can_not_be_read_is_an_error(self):
        with pytest.raises(ProtocolError):
            catalog_calls.parse_answer(b"junk")
        answer = catalog_calls.parse_answer(catalog_calls.serialize_answer(1, "text"))
        assert isinstance(catalog_calls.outcome_of(answer, int), ProtocolError)


class TestLost:
    """The file that SQLite has open, or the lock, is not where it was: what is saved there is found by nobody."""

    @pytest.mark.parametrize("name", ["catalog.db", "catalog.lock", ""])
    def test_nothing_is_saved_until_it_is_back(self, service, name):
        path, away = service.data_dir / ".ingest" / name, service.data_dir.with_name("away")

        async def saves(access: CatalogAccess, owner: int) -> bool:
            try:
                await access.lease(owner, 8)
            except DataDirLostError:
                return False
            return True

        async def main():
            access = await CatalogClient.connect(service.data_dir)
            owner = await access.enter("test")
            assert await saves(access, owner)
            path.rename(away)
            while await saves(access, owner):
                pass  # a look may be as old as POSSESSION_INTERVAL_S
            await access.renew(owner)  # what readers need goes on
            with pytest.raises(DataDirLostError, match=f"{path}.* is gone: nothing is saved"):
                await access.lease(owner, 8)
            assert not path.exists(), "it was made anew"
            away.rename(path)
            while not await saves(access, owner):
                pass
            await access.close()

        asyncio.run(main())

    @pytest.mark.parametrize("name", ["catalog.db-wal", "catalog.db-shm"])
    def test_a_file_of_sqlite_that_is_removed(self, service, name):
        """A commit is durable there first: it would be in a file that has no name."""
        path = service.data_dir / ".ingest" / name

        async def main() -> list[Extent]:
            access = await CatalogClient.connect(service.data_dir)
            owner = await access.enter("test")
            leased = [await access.lease(owner, 8)]
            path.unlink()
            with pytest.raises(DataDirLostError, match=f"{name} is gone: nothing is saved"):
                while True:  # a look may be as old as POSSESSION_INTERVAL_S
                    leased.append(await access.lease(owner, 8))
            await access.close()
            return leased

        async def lease() -> Extent:
            access = await CatalogClient.connect(service.data_dir)
            found = await access.lease(await access.enter("other"), 8)
            await access.close()
            return found

        leased = asyncio.run(main())
        service.kill()  # what was answered before is in the catalog
        service.start()
        assert asyncio.run(lease()).first >= max(extent.stop for extent in leased)

    @pytest.mark.parametrize("name", ["catalog.db", "catalog.db-wal", "catalog.lock", ""])
    def test_nothing_is_made_where_it_was_when_it_ends_at_once(self, tmp_path, name):
        """The end comes before the next look: a reserve would be made in what is somebody else's by now."""
        data = tmp_path / "data"
        (data / ".ingest").mkdir(parents=True)
        lost = data / ".ingest" / name
        with service_lock(data) as possession:
            path = catalog_path(data)
            catalog = Catalog(path)
            with catalog.change():
                catalog.enter("test")
            possession.add(path, identity_of(os.stat(path)))
            possession.add_changing(lambda: catalog.beside)
            service = CatalogService(catalog, listen(data), possession)
            assert possession.look_again() == ""
            lost.rename(tmp_path / "away")
            if not name:
                lost.mkdir()
            there = set(data.rglob("*"))
            service.stop()
            service.run()
        assert set(data.rglob("*")) <= there
