"""Both ends of the catalog's socket, each against one that reads nothing, sends junk or ends at the wrong moment."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from ingest.catalog import catalog_caller, catalog_calls, catalog_client, catalog_service
from ingest.catalog.catalog_calls import (
    Answer,
    framed,
    parse_answer,
    parse_call,
    serialize_answer,
    serialize_call,
    unframed,
)
from ingest.catalog.catalog_changes import Catalog
from ingest.catalog.catalog_client import CatalogClient
from ingest.catalog.catalog_reader import CatalogReader
from ingest.catalog.catalog_service import CatalogService, Peer
from ingest.catalog.catalog_socket import catalog_path, connect, listen
from ingest.catalog.local_catalog import LocalCatalog
from ingest.catalog.version import VersionState
from ingest.errors import ConnectionLostError, UsageError
from ingest.store.possession import Possession

DIGEST = bytes(range(32))
LONG = "\1" * 1000  # a name: what is said of it is four times as long
UNREAD_MAX, RECEIVE_SIZE = 64 << 10, 8 << 10  # bytes
TOO_MANY = 5000  # calls: more than any buffers hold


# --- the service


class Turned:
    """A service that is turned by hand: nothing happens meanwhile."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        (data_dir / ".ingest").mkdir(parents=True)
        self.catalog = Catalog(catalog_path(data_dir))
        self.service = CatalogService(self.catalog, listen(data_dir), Possession({}))
        self.ended = False

    def turn(self) -> None:
        for _ in range(TOO_MANY):
            if not self.service._turn(0):
                return
        raise AssertionError("it never rests")

    def connect(self) -> tuple[socket.socket, Peer]:
        before = set(self.service._peers)
        sock = connect(self.data_dir)
        self.turn()
        (peer,) = self.service._peers - before
        return sock, peer

    def end(self) -> None:
        if not self.ended:
            self.ended = True
            self.service.stop()
            self.service.run()


@pytest.fixture
def turned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Turned]:
    monkeypatch.setattr(catalog_service, "CATALOG_UNREAD_MAX", UNREAD_MAX)
    monkeypatch.setattr(catalog_service, "RECEIVE_SIZE", RECEIVE_SIZE)
    made = Turned(tmp_path / "data")
    yield made
    made.end()


def called(id_: int, call: str, *arguments: Any) -> bytes:
    return framed(serialize_call(id_, call, arguments))


def received(sock: socket.socket, buffer: bytearray) -> list[Answer]:
    """What is there by now."""
    with contextlib.suppress(BlockingIOError):
        while part := sock.recv(1 << 20):
            buffer += part
    return [parse_answer(message) for message in unframed(buffer)]


def asked_without_reading(turned: Turned, sock: socket.socket, peer: Peer) -> int:
    """Sends calls with long answers until none is taken any more. Returns how many were sent whole."""
    unsent, sent, longest = b"", 0, 0
    while sent < TOO_MANY:
        unsent = unsent or called(sent, "delete", "n", LONG)
        try:
            unsent = unsent[sock.send(unsent) :]
            sent += not unsent
        except BlockingIOError:
            if not turned.service._turn(0):
                break
            longest = max(longest, len(peer.unsent))
    assert sent < TOO_MANY, "it is listened to, whatever it leaves unread"
    assert UNREAD_MAX <= longest < UNREAD_MAX + 6 * RECEIVE_SIZE
    return sent


def test_who_reads_no_answers_is_not_listened_to_and_gets_all_of_them_later(turned: Turned) -> None:
    slow, peer = turned.connect()
    with slow:
        sent = asked_without_reading(turned, slow, peer)
        other, _ = turned.connect()
        with other:
            other.sendall(called(7, "enter", "other"))
            turned.turn()
            assert [answer.id for answer in received(other, bytearray())] == [7]
        buffer, answers = bytearray(), list[int]()
        for _ in range(TOO_MANY):
            answers += [answer.id for answer in received(slow, buffer)]
            if len(answers) >= sent:
                break
            turned.service._turn(0)
        assert answers == list(range(sent))


def test_who_goes_without_its_answers_is_let_go(turned: Turned) -> None:
    slow, peer = turned.connect()
    other, its = turned.connect()
    with other:
        with slow:
            asked_without_reading(turned, slow, peer)
        turned.turn()
        assert turned.service._peers == {its}
        assert peer.sock.fileno() == -1
        other.sendall(called(1, "enter", "other"))
        turned.turn()
        assert [answer.id for answer in received(other, bytearray())] == [1]


def test_at_its_end_all_that_it_has_received_is_answered(
    turned: Turned, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much of that nobody has read yet; who is connected and asks nothing does not keep it."""
    made: list[str] = []
    run_together = catalog_service.run_together

    def counted(catalog: Catalog, calls: list[catalog_calls.Call]) -> list[Any]:
        made.extend(call for call, _ in calls)
        return run_together(catalog, calls)

    monkeypatch.setattr(catalog_service, "run_together", counted)
    slow, peer = turned.connect()
    idle, _ = turned.connect()
    with slow, idle:
        asked_without_reading(turned, slow, peer)
        assert peer.unsent
        turned.ended = True
        thread = threading.Thread(target=turned.service.run)
        turned.service.stop()
        thread.start()
        slow.settimeout(20)
        buffer = bytearray()
        with contextlib.suppress(ConnectionResetError):  # of what it sent and was not heard
            while part := slow.recv(1 << 20):
                buffer += part
        thread.join()
        assert [parse_answer(message).id for message in unframed(buffer)] == list(range(len(made)))
        assert not buffer, "a half of an answer"


def test_calls_that_come_in_pieces_are_each_connections_own(turned: Turned) -> None:
    """Also beside one that was cut off in the middle of a call, and after one that sent junk."""
    junk, _ = turned.connect()
    half, _ = turned.connect()
    one, two = turned.connect()[0], turned.connect()[0]
    with junk, half, one, two:
        half.sendall(called(9, "enter", "half")[:-3])
        messages = [(one, called(1, "enter", "one")), (two, called(2, "enter", "two"))]
        for at in range(max(len(message) for _, message in messages)):
            for sock, message in messages:
                sock.sendall(message[at : at + 1])
                turned.turn()
            if at == 3:
                junk.sendall(called(3, "enter", "junk")[:6] + b"\xff" * 20)
                half.close()
                turned.turn()
        found = [[answer.id for answer in received(sock, bytearray())] for sock in (one, two)]
        assert found == [[1], [2]]
        assert len(turned.service._peers) == 2
        assert turned.catalog._db.all("SELECT what FROM owners ORDER BY what") == [("one",), ("two",)]


# --- the client


class Scripted:
    """In the service's place. ``answer``: what to send for a call that comes over a connection (the first is 0), None to
    hang up, which it then does."""

    def __init__(self, answer: Callable[[int, int, str], bytes | None]) -> None:
        self.answer = answer
        self.asked: list[tuple[int, int, str, tuple[Any, ...]]] = []  # connection, id, call and its arguments
        self.connections = 0

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number, self.connections = self.connections, self.connections + 1
        buffer = bytearray()
        while part := await reader.read(1 << 16):
            buffer += part
            for message in unframed(buffer):
                id_, (call, arguments) = parse_call(message)
                self.asked.append((number, id_, call, tuple(arguments)))
                answer = self.answer(number, id_, call)
                if answer is None:
                    writer.transport.abort()
                    return
                writer.write(answer)
        writer.close()

    @contextlib.asynccontextmanager
    async def serving(self, data_dir: Path) -> AsyncIterator[CatalogClient]:
        (data_dir / ".ingest").mkdir(parents=True)
        server = await asyncio.start_unix_server(self._serve, sock=listen(data_dir))
        client = await CatalogClient.connect(data_dir)
        try:
            yield client
        finally:
            await client.close()
            server.close()


def answered(id_: int, value: Any) -> bytes:
    return framed(serialize_answer(id_, value))


JUNK: dict[str, Callable[[int], bytes]] = {
    "no message": lambda id_: framed(b"junk"),
    "too long": lambda id_: (catalog_calls.CATALOG_MESSAGE_MAX + 1).to_bytes(4, "big"),
    "to nothing": lambda id_: answered(id_ + 100, 3),
    "to one that was answered": lambda id_: answered(id_ - 1, 3),
    "half of one": lambda id_: answered(id_, 3)[:-1],
}


@pytest.mark.parametrize("junk", JUNK.values(), ids=JUNK)
def test_over_another_connection_is_asked_again_what_was_answered_by_junk(
    tmp_path: Path, junk: Callable[[int], bytes]
) -> None:
    """And what came right before is not asked again; nothing of the old connection is read as a part of the new one."""
    halves: list[int] = []

    def answer(connection: int, id_: int, call: str) -> bytes | None:
        if connection or call == "expire":
            return answered(id_, 5 + connection)
        if call == "forget":  # hangs up behind the half of an answer
            return None
        halves.append(id_)
        return junk(id_)

    async def main() -> Scripted:
        scripted = Scripted(answer)
        async with scripted.serving(tmp_path) as client:
            assert await client.expire() == 5
            asked = [asyncio.ensure_future(client.enter("x"))]
            while not halves:
                await asyncio.sleep(0)
            if junk is JUNK["half of one"]:
                asked.append(asyncio.ensure_future(client.forget()))
            found = await asyncio.wait_for(asyncio.gather(*asked), 20)
            assert found == [6] * len(asked)
        return scripted

    scripted = asyncio.run(main())
    assert scripted.connections == 2
    again = ["enter", "forget"] if junk is JUNK["half of one"] else ["enter"]
    assert [call for number, _, call, _ in scripted.asked if number == 1] == again


def test_what_was_not_answered_is_asked_again_in_its_order(tmp_path: Path) -> None:
    """Also what its caller has given up: others come behind it. Under the same ids, and each once; a delete never."""

    def answer(connection: int, id_: int, call: str) -> bytes | None:
        if connection == 0 and call == "forget":
            return None
        return answered(id_, None) if connection or id_ <= 2 else b""

    async def main() -> Scripted:
        scripted = Scripted(answer)
        async with scripted.serving(tmp_path) as client:
            fails = [asyncio.ensure_future(client.fail(1, number, "broke")) for number in range(8)]
            deleted = asyncio.ensure_future(client.delete("n", "a"))
            await asyncio.gather(*fails[:2])
            fails[4].cancel()
            hung_up = asyncio.ensure_future(client.forget())
            with pytest.raises(ConnectionLostError):
                await asyncio.wait_for(deleted, 20)
            late = asyncio.ensure_future(client.fail(1, 8, "while nobody is there"))
            await asyncio.gather(*fails[5:], *fails[2:4], late)
            assert fails[4].cancelled()
            hung_up.cancel()
        return scripted

    scripted = asyncio.run(main())
    assert scripted.connections == 2, "an answer to who has given up is an answer"
    numbers = [
        (id_, arguments[1])
        for number, id_, call, arguments in scripted.asked
        if (number, call) == (1, "fail")
    ]
    first = [
        (id_, arguments[1])
        for number, id_, call, arguments in scripted.asked
        if (number, call) == (0, "fail")
    ]
    assert [number for _, number in numbers] == [2, 3, 4, 5, 6, 7, 8]
    assert numbers[:-1] == first[2:]
    assert (1, "delete") not in {(number, call) for number, _, call, _ in scripted.asked}


def test_who_closes_while_nobody_listens_is_told_and_comes_never_again(tmp_path: Path) -> None:
    async def main() -> None:
        scripted = Scripted(lambda connection, id_, call: None)
        async with scripted.serving(tmp_path) as client:
            sock = tmp_path / ".ingest" / "catalog.sock"
            sock.rename(tmp_path / "away")
            asked = asyncio.ensure_future(client.enter("x"))
            while client._reconnecting is None:
                await asyncio.sleep(0)
            await client.close()
            with pytest.raises(ConnectionLostError, match="was closed"):
                await asyncio.wait_for(asked, 1)
            (tmp_path / "away").rename(sock)
            reconnecting = client._reconnecting
            if reconnecting is not None:
                await asyncio.wait([reconnecting])
            assert scripted.connections == 1 and client._link is None
            with pytest.raises(ConnectionLostError, match="is closed"):
                await client.enter("y")

    asyncio.run(main())


def test_the_longest_call_is_one_that_the_other_end_takes(
    turned: Turned, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One byte more is refused before it is sent: what is disconnected for it would be asked again for ever."""
    whole = len(serialize_call(1, "enter", ("x" * 500, 30.0)))
    for module in (catalog_client, catalog_calls):
        monkeypatch.setattr(module, "CATALOG_MESSAGE_MAX", whole)

    async def main() -> None:
        client = await CatalogClient.connect(turned.data_dir)
        turned.turn()
        asked = asyncio.ensure_future(client.enter("x" * 500, 30.0))
        while not asked.done():
            await asyncio.sleep(0)
            turned.turn()
        assert await asked == 1
        with pytest.raises(UsageError, match=f"{whole + 1} bytes"):
            await client.enter("x" * 501, 30.0)
        assert not client._waiting
        await client.close()

    asyncio.run(main())


# --- within the process


def test_who_is_cancelled_leaves_nothing_and_keeps_nobody(tmp_path: Path) -> None:
    """While SQLite is at it, and while it waits its turn."""

    async def main() -> None:
        catalog = await LocalCatalog.open(tmp_path / "catalog.db")
        owner = await catalog.enter("x", 1e6)
        number = (await catalog.reserve(1))[0]
        await catalog.store(owner, "n", "a", 1, DIGEST, [await catalog.lease(owner, 2)], number=number)
        await catalog.fail(owner, await catalog.begin(owner, "n", "warm"), "no")
        go = threading.Event()
        catalog._thread.submit(go.wait)
        for turns in (0, 3):  # none of them has come to the thread, or all have
            some: tuple[Coroutine[Any, Any, object], ...] = (
                catalog.begin(owner, "n", f"b{turns}"),
                catalog.lease(owner, 4),
                catalog.pin(owner, number),
                catalog.renew(owner, 1e6),  # which is not shielded: its answer comes to nobody
            )
            calls = [asyncio.ensure_future(call) for call in some]
            for _ in range(turns + 1):
                await asyncio.sleep(0)
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            assert all(call.cancelled() for call in calls)
        behind = asyncio.ensure_future(catalog.enter("behind"))
        go.set()
        assert await asyncio.wait_for(behind, 20) > owner
        await asyncio.gather(*catalog._undoing)
        await catalog.delete("n", "a")
        await catalog.close()

    asyncio.run(main())
    with CatalogReader(tmp_path / "catalog.db") as reader:
        assert list(reader.versions(VersionState.PENDING)) == reader.leases() == []
        assert sum(item.extent.count for item in reader.garbage(99)) == 2 + 2 * 4


def test_numbers_are_reserved_again_when_they_are_used_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many begin at once: each has its own, and none is left out."""
    monkeypatch.setattr(catalog_caller, "VERSIONS_RESERVED", 3)

    async def main() -> list[int]:
        catalog = await LocalCatalog.open(tmp_path / "catalog.db")
        owner = await catalog.enter("x")
        numbers = await asyncio.gather(*(catalog.begin(owner, "n", f"{i}") for i in range(8)))
        await catalog.close()
        return numbers

    assert asyncio.run(main()) == list(range(1, 9))
