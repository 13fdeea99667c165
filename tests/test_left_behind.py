"""Whoever comes after finds nothing of who was there before: in a slot, in a total, in a lease, in a connection.

The first one ends in each way that there is. The second one's world is then held against that of somebody who comes first.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import sys
import termios
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import get_rig
import pytest
from packs import A0
from put_rig import KEYS, PATIENCE_S, Rig, ack, acks, delete_frame, frame, frames
from test_put_server import reset, send_until_stuck, split_acks
from test_wire import Writer, connected

from ingest import limits
from ingest.catalog.catalog_changes import Catalog
from ingest.catalog.local_catalog import LocalCatalog
from ingest.errors import IngestError, UploadLostError
from ingest.limits import ACK_SIZE, FRAME_SIZE
from ingest.objects import membership as membership_module
from ingest.objects.membership import Membership
from ingest.objects.memory_budget import Budget
from ingest.runtime import wires as wires_module
from ingest.runtime.wire import Wire
from ingest.runtime.wires import Wires
from ingest.status import Status

TOTAL = 20_000  # bytes of acks that all connections may leave unread together
BAD = frame(1, key=bytes(32))

# --- ends of a put connection


def half_close(rig: Rig, client: socket.socket) -> None:
    client.shutdown(socket.SHUT_WR)


def close(rig: Rig, client: socket.socket) -> None:
    client.close()


def send_a_reset(rig: Rig, client: socket.socket) -> None:
    reset(client)


def go_in_the_middle_of_a_frame(rig: Rig, client: socket.socket) -> None:
    client.send(frame(77)[:1000])
    rig.settle()
    client.close()


def send_bad_frames(rig: Rig, client: socket.socket) -> None:
    rig.send(client, BAD * limits.BAD_FRAME_LIMIT)


def send_nearly_too_many_bad_frames(rig: Rig, client: socket.socket) -> None:
    rig.send(client, BAD * (limits.BAD_FRAME_LIMIT - 1))
    rig.settle()
    client.close()


def stand_still(rig: Rig, client: socket.socket) -> None:
    """Until the server has had enough."""


ENDS = [
    half_close, close, send_a_reset, go_in_the_middle_of_a_frame, send_bad_frames, send_nearly_too_many_bad_frames,
    stand_still,
]  # fmt: skip


@contextmanager
def put_rig() -> Iterator[Rig]:
    with Rig(unread_acks_total_max=TOTAL) as rig:
        rig.tick(0.0)
        yield rig


def until_gone(rig: Rig) -> None:
    """Whatever a connection waits for: time passes until it is over."""
    now = 0.0
    for _ in range(100):
        rig.settle()
        if rig.server.connections == 0:
            return
        now += limits.UNREAD_ACKS_TIMEOUT_S
        rig.tick(now)
    raise AssertionError("it stays for ever")


def is_as_if_alone(rig: Rig) -> None:
    """A connection gets what it is owed, may do all that one may, and leaves nothing behind."""
    assert (rig.server.connections, rig.server.outstanding, rig.queue.connections(0)) == (0, 0, (0, 0))
    saved = rig.counter("saved")
    greedy = rig.connect(receive_buffer=2048)
    view, deadline = memoryview(frame(9) * 10_000), time.monotonic() + PATIENCE_S
    while (answered := rig.counter("saved") - saved) * ACK_SIZE <= TOTAL:
        assert time.monotonic() < deadline, f"others count yet: it is not read after {answered} acks"
        with suppress(BlockingIOError):
            view = view[greedy.send(view) :]
        rig.step(0.001)
    reset(greedy)
    until_gone(rig)
    client = rig.connect()
    rig.send(client, BAD * (limits.BAD_FRAME_LIMIT - 1))
    bad = limits.BAD_FRAME_LIMIT - 1
    assert rig.receive(client, bad * ACK_SIZE) == ack(1, Status.BAD_CHECKSUM) * bad
    rig.send(client, frames(100, 20) + frame(200)[:700])
    rig.settle()
    rig.send(client, frame(200)[700:])
    got = rig.receive(client, 21 * ACK_SIZE)
    assert Counter(split_acks(got)) == Counter(split_acks(acks(100, 20) + ack(200)))
    rig.settle()
    with pytest.raises(BlockingIOError):
        client.recv(1)
    client.close()
    until_gone(rig)
    assert (rig.server.outstanding, rig.queue.connections(0)) == (0, (0, 0))


def test_what_a_connection_that_comes_first_finds() -> None:
    with put_rig() as rig:
        is_as_if_alone(rig)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("left", ["nothing", "unread acks", "frames under way"])
def test_a_put_connection_leaves_nothing_to_the_next(
    end: Callable[[Rig, socket.socket], None], left: str
) -> None:
    with put_rig() as rig:
        for _ in range(1 if left == "unread acks" else 3):
            client = rig.connect(receive_buffer=2048)
            if left == "unread acks":
                send_until_stuck(rig, client, frame(9) * 3000)
            elif left == "frames under way":
                rig.answering = False
                rig.send(client, frames(500, 16))
                rig.until(lambda: rig.server.outstanding > 0)
            if left == "unread acks" and end not in (close, send_a_reset, stand_still):
                client.shutdown(socket.SHUT_WR)  # it is not read any more: nothing else would come through
            else:
                end(rig, client)
            if left == "frames under way":
                rig.settle()
                rig.answer_all()
                rig.answering = True
            until_gone(rig)
        is_as_if_alone(rig)


def test_acks_that_were_read_do_not_count() -> None:
    with put_rig() as rig:
        client = rig.connect()
        for _ in range(10):
            rig.send(client, frame(9) * 1000)
            assert rig.receive(client, 1000 * ACK_SIZE) == ack(9) * 1000
        client.close()
        until_gone(rig)
        is_as_if_alone(rig)


# --- a committer that starts anew


@pytest.mark.parametrize("kind", ["another connection", "a delete", "a connection that is gone"])
@pytest.mark.parametrize("border", [1, 2, 7, 8, 15])
def test_what_is_submitted_again_is_answered_to_whom_it_belongs(kind: str, border: int) -> None:
    """Frames of two lie side by side, and their tickets follow one another: they are no run."""
    with Rig(places=64, block_places=16) as rig:
        rig.answering = False
        one, two = rig.connect(), rig.connect()
        rig.send(one, frames(100, border))
        rig.until(lambda: rig.server.outstanding == border)
        last = delete_frame(100 + border, 1) if kind == "a delete" else frames(100 + border, 16 - border)
        count = len(last) // FRAME_SIZE
        rig.send(one if kind == "a delete" else two, last)
        rig.until(lambda: rig.server.outstanding == border + count)
        if kind == "a connection that is gone":
            reset(one)
            rig.until(lambda: rig.server.connections == 1)
            one = rig.connect()  # in its slot
        for _ in range(2):
            rig.queue.committer_gone()
            rig.unanswered.clear()
            rig.queue.committer_ready()
            rig.until(lambda: sum(run[3] for run in rig.unanswered) == border + count)
        rig.answer_all()
        first = acks(100, border) if kind != "a connection that is gone" else b""
        second = ack(100 + border, Status.DELETED) if kind == "a delete" else acks(100 + border, count)
        if kind == "a delete":
            first, second = first + second, b""
        assert rig.receive(one, len(first)) == first
        assert rig.receive(two, len(second)) == second
        rig.settle()
        assert (rig.server.outstanding, rig.events) == (0, [])
        for client in (one, two):
            with pytest.raises(BlockingIOError):
                client.recv(1)


# --- get connections


@pytest.mark.parametrize(
    "end", ["close", "reset", "half a request", "a bad request", "unread", "closed half way"]
)
def test_a_get_connection_leaves_nothing_to_the_next(tmp_path: Path, end: str) -> None:
    with get_rig.Rig(tmp_path) as rig:
        rig.packs.put(range(A0, A0 + 200))
        rig.tick(0.0)
        for _ in range(3):
            client = rig.connect(4096)
            if end in ("close", "reset", "unread", "closed half way"):
                client.send(get_rig.request(A0, 200) * 4)
                rig.settle()
            if end == "half a request":
                client.send(get_rig.request(A0, 200)[:13])
            elif end == "a bad request":
                client.send(get_rig.request(A0, 200, key=KEYS.put))
            rig.settle()
            if end == "reset":
                reset(client)
            elif end == "closed half way":
                client.shutdown(socket.SHUT_WR)
            elif end != "unread":
                client.close()
            now = 0.0
            while rig.server.connections:
                rig.settle()
                now += 600.0
                assert now < 60_000, "it stays for ever"
                rig.tick(now)
            assert rig.queue.connections(0) == (0, 0)
            follower = rig.connect()
            rig.send(follower, get_rig.request(A0 + 3, 2) + get_rig.request(A0 + 199, 2))
            expected = [
                (A0 + 3, Status.SAVED, 2, b"".join(rig.packs.model[A0 + i] or b"" for i in (3, 4))),
                (A0 + 199, Status.SAVED, 1, rig.packs.model[A0 + 199]),
                (A0 + 200, Status.MISSING, 1, b""),
            ]
            got = rig.receive(follower, 16 * 3 + 3 * FRAME_SIZE)
            assert get_rig.parse_runs(got) == expected
            rig.settle()
            with pytest.raises(BlockingIOError):
                follower.recv(1)
            follower.close()
            rig.until(lambda: rig.server.connections == 0)


# --- owners


def lose_owner(path: Path, owner: int) -> None:
    """As the catalog service does when its deadline has passed."""
    with Catalog(path) as catalog, catalog.change():
        catalog._db.run("UPDATE owners SET deadline = 0 WHERE id = ?", owner)
        catalog.expire()


@pytest.mark.parametrize("busy", [False, True])
def test_nothing_of_a_given_up_owner_is_given_to_an_upload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, busy: bool
) -> None:
    """``busy``: an upload of the old owner ends only when there is a new one."""
    path = tmp_path / "catalog.db"
    monkeypatch.setattr(membership_module, "OWNER_RENEW_S", 0.01)

    async def run() -> None:
        catalog = await LocalCatalog.open(path)
        membership = await Membership.enter(catalog, "test", 50)
        old = membership.owner
        number = await membership.number()
        before = await membership.take(2)
        assert before.owner == old
        await membership.settle(before)
        if busy:
            under_way = await membership.take(3)
            assert under_way.owner == old and under_way.place.first == before.place.stop
        lose_owner(path, old)
        async with asyncio.timeout(20):
            while membership.owner == old:
                await asyncio.sleep(0)
        for count in (1, 3, 60):
            taken = await membership.take(count)
            assert taken.owner == membership.owner != old
            assert taken.place.first >= before.place.first + 50, "tickets of the old lease, which is garbage"
            await membership.settle(taken)
        if busy:
            await membership.settle(under_way)
            taken = await membership.take(1)
            assert taken.owner == membership.owner and taken.place.first >= before.place.first + 50
            await membership.settle(taken)
        assert await membership.number() != number
        await membership.leave()
        with Catalog(path) as found:
            assert found.leases() == []
            assert found._db.value("SELECT count(*) FROM owners") == 0
        await catalog.close()

    asyncio.run(run())


def test_an_upload_of_a_given_up_owner_is_lost_and_the_next_one_is_not(tmp_path: Path) -> None:
    with Catalog(tmp_path / "catalog.db") as catalog:
        with catalog.change():
            old, new = catalog.enter("old", 1e6), catalog.enter("new", 1e6)
            mine = catalog.lease(old, 5)
        lose_owner(tmp_path / "catalog.db", old)
        with pytest.raises(UploadLostError), catalog.change():
            catalog.store(old, "n", "name", 1, bytes(32), [mine], {})
        with pytest.raises(IngestError), catalog.change():
            catalog.store(new, "n", "name", 1, bytes(32), [mine], {})
        with catalog.change():
            catalog.store(new, "n", "name", 1, bytes(32), [catalog.lease(new, 2)], {})


# --- HTTP connections


def test_a_client_that_is_owed_nothing_is_not_late() -> None:
    """However long that lasts, and whatever it left unread before: its upload takes as long as it takes."""
    late = limits.HTTP_UNREAD_TIMEOUT_S

    async def test(writer: Writer, client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        wire = writer.transport.get_protocol()

        async def look(now: float) -> bool:
            wire.check(now)
            await asyncio.sleep(0)
            return not writer.transport.is_closing()

        async def taken() -> None:
            """All that was written is with the client."""
            client.setblocking(False)
            async with asyncio.timeout(20):
                while unacknowledged(writer.transport):
                    await asyncio.wait_for(loop.sock_recv(client, 1 << 20), 20)
                    await asyncio.sleep(0.001)

        now = 0.0
        for _ in range(20):  # it is idle, or sends: nobody owes it anything
            assert await look(now)
            now += late
        for _ in range(3):
            writer.transport.write(bytes(8 << 20))  # more than the kernel takes
            assert await look(now)
            now += late * 0.9
            assert await look(now), "not yet"
            await taken()
            assert await look(now)
            now += 10 * late  # idle: that does not count
            assert await look(now)
        writer.transport.write(bytes(8 << 20))
        assert await look(now), "what was owed before does not count"
        assert await look(now + late * 0.9)
        assert not await look(now + late)

    asyncio.run(connected(test))


def unacknowledged(transport: asyncio.Transport) -> int:
    """Bytes that were written and have not reached the client's machine."""
    sock = transport.get_extra_info("socket")
    in_kernel = int.from_bytes(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    return transport.get_write_buffer_size() + in_kernel


async def comes(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("end", ["close", "reset", "half close", "aborted here"])
def test_connections_that_are_gone_take_nobody_s_place(monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    """One is served, one is told that there are too many, the third gets nothing: again and again."""
    monkeypatch.setattr(wires_module, "HTTP_CONNECTIONS_MAX", 1)
    monkeypatch.setattr(wires_module, "HTTP_REFUSED_MAX", 1)
    monkeypatch.setattr("ingest.runtime.last_answer.HTTP_LINGER_S", 0.01)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        wires, writers = Wires(), []

        def accept() -> asyncio.BaseProtocol:
            writers.append(Writer())
            return Wire(wires, writers[-1], lambda: "id")  # type: ignore[arg-type]

        server = await loop.create_server(accept, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        for _ in range(3):
            clients = []
            for number in (1, 2, 3):
                clients.append(socket.create_connection(address))
                await comes(lambda number=number: len(writers) >= number)  # type: ignore[misc]
                if number == 1:
                    async with asyncio.timeout(20):
                        await writers[0].opened.wait()
                    wires.guests.busy(writers[0].wire)  # so it does not give way
            served = writers[0]
            assert (len(wires.open), len(wires.refused) <= 1) == (1, True)
            for client in clients:
                client.setblocking(False)
                if end == "reset":
                    reset(client)
                elif end == "half close":
                    with suppress(OSError):  # the third one was reset
                        client.shutdown(socket.SHUT_WR)
                elif end == "close":
                    client.close()
            if end in ("aborted here", "half close"):
                served.transport.abort()
            await comes(lambda: not wires.open and not wires.refused and not len(wires.guests))
            assert wires.heads == 0
            assert len(wires.scratch) == limits.HTTP_RECEIVE_SIZE
            for client in clients:
                client.close()
            writers.clear()
        server.close()
        await server.wait_closed()

    asyncio.run(run())


# --- memory


def test_what_transfers_borrowed_is_there_again_however_they_end() -> None:
    budget = Budget(1000)
    for _ in range(50):
        kept, left, late = budget.enter(), budget.enter(), budget.enter()
        assert kept.borrow(1, 300) and left.borrow(1, 300) and late.borrow(1, 100)
        kept.give_back(kept.borrowed)
        kept.leave()
        left.leave()
        left.leave()
        late.leave()
        late.give_back(100)  # of somebody who had not heard of it
        assert (budget.lent, budget.transfers, budget.borrowers) == (0, 0, 0)
        alone = budget.enter()
        assert alone.borrow(1, 5000) == 1000
        alone.leave()
