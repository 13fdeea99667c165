import asyncio
import functools
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest
import uvloop
from reference_server import (
    BAD_CHECKSUM,
    BUSY,
    CONFLICT,
    DATA,
    ERROR,
    MISSING,
    NO_SPACE,
    Faults,
    Model,
    ReferenceServer,
    build_frame,
    build_request,
    index_of,
    ticket_of,
)

from ingest import AsyncClient, Client, limits, mac, ticket
from ingest.client.async_client import Chunk, Run
from ingest.client.get_channel import GetChannel
from ingest.client.loop_thread import LoopThread
from ingest.client.put_channel import PutChannel
from ingest.client.read_ahead import ahead
from ingest.errors import (
    ConnectionLostError,
    CorruptFrameError,
    KeyFileError,
    ProtocolError,
    RefusedError,
    TicketError,
    UsageError,
)
from ingest.objects.upload import data_of
from ingest.status import Status

KEY = bytes(range(32))
OTHER = bytes(range(1, 33))
T = TypeVar("T")


def padded(data: bytes) -> bytes:
    return data.ljust(DATA, b"\0")


def items(n: int, first: str = "AAAA") -> list[tuple[str, bytes]]:
    start = ticket.parse(first)
    return [(ticket.format(start + i), b"chunk %d" % i) for i in range(n)]


def stored(server: ReferenceServer) -> dict[str, bytes]:
    return {ticket.format(index): frame[16:].rstrip(b"\0") for index, frame in server.model.frames.items()}


def connect(server: ReferenceServer, key: Any = KEY, timeout: float = 5, retry_for: float = 20) -> Client:
    return Client.connect(server.put_address, server.get_address, key, timeout=timeout, retry_for=retry_for)


@pytest.fixture
def server() -> Iterator[ReferenceServer]:
    with ReferenceServer([KEY]) as running:
        yield running


@pytest.fixture
def client(server: ReferenceServer) -> Iterator[Client]:
    with connect(server) as connected:
        yield connected


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


class TestTheReferenceItself:
    """The model agrees with the golden values and with our own codecs, so that both can be held against it."""

    def test_tickets(self, contract: dict[str, Any]) -> None:
        for entry in contract["tickets"]:
            wire = entry["ticket"].encode().ljust(8, b"\0")
            assert ticket_of(entry["index"]) == wire
            assert index_of(wire) == entry["index"]
        assert index_of(b"a\0\0\0\0\0\0\0") is None
        assert index_of(b"A\0B\0\0\0\0\0") is None
        assert index_of(bytes(8)) is None

    def test_frames_and_requests(self) -> None:
        keys = mac.derive(KEY)
        assert build_frame(KEY, 36, b"x") == mac.build_frame(keys.put, ticket.to_wire("00"), b"x")
        assert build_request(KEY, 36, 7) == mac.build_request(keys.get, ticket.to_wire("00"), 7)

    def test_model(self) -> None:
        model = Model([KEY])
        put = build_frame(KEY, 5, b"a")
        assert model.frame(put) == model.frame(put) == Status.SAVED
        assert model.frame(build_frame(KEY, 5, b"b")) == CONFLICT
        assert model.frame(put[:-1] + b"\1") == BAD_CHECKSUM
        assert model.frame(build_frame(KEY, 5, (2).to_bytes(8, "big"), "delete frame")) == Status.DELETED
        assert model.frame(put) == model.frame(build_frame(KEY, 6, b"")) == Status.DELETED
        for count in (0, 65_537):
            data = count.to_bytes(8, "big")
            assert model.frame(build_frame(KEY, 5, data, "delete frame")) == Status.BAD_TICKET
        assert list(model.runs(4, 4)) == [(4, MISSING, 1), (5, Status.DELETED, 2), (7, MISSING, 1)]


class TestPut:
    def test_one(self, server: ReferenceServer, client: Client) -> None:
        client.put("AB12", b"data")
        assert stored(server) == {"AB12": b"data"}
        client.put("AB12", b"data")

    @pytest.mark.parametrize("size", [0, 1, 1457, 1458])
    def test_sizes(self, client: Client, size: int) -> None:
        data = bytes(range(1, 200)) * 8
        client.put("S", memoryview(data)[:size])
        assert client.get("S") == padded(data[:size])

    def test_too_long(self, server: ReferenceServer, client: Client) -> None:
        with pytest.raises(UsageError, match="1458"):
            client.put("A", bytes(1459))
        with pytest.raises(UsageError, match="1458"):
            client.put_many([("A", b""), ("B", bytes(1459))])
        assert not stored(server)

    @pytest.mark.parametrize("name", ["", "a", "AAAAAAAAA", "A/B", "..", "A\0", "Ä"])
    def test_no_ticket(self, client: Client, name: str) -> None:
        with pytest.raises(TicketError):
            client.put(name, b"")
        with pytest.raises(TicketError):
            client.get(name)

    def test_conflict_and_deleted(self, server: ReferenceServer, client: Client) -> None:
        client.put("A", b"one")
        with pytest.raises(RefusedError) as conflict:
            client.put("A", b"two")
        assert (conflict.value.ticket, conflict.value.status) == ("A", Status.CONFLICT)
        client.delete("A")
        with pytest.raises(RefusedError) as deleted:
            client.put("A", b"one")
        assert deleted.value.status is Status.DELETED
        assert not stored(server)

    def test_many(self, server: ReferenceServer, client: Client) -> None:
        everything = items(1000)
        assert client.put_many(everything, window=100) == {}
        assert stored(server) == dict(everything)

    def test_many_tells_what_was_refused(self, server: ReferenceServer, client: Client) -> None:
        client.put("AAAB", b"other")
        client.delete("AAAD")
        refused = client.put_many(items(200))
        assert refused == {"AAAB": Status.CONFLICT, "AAAD": Status.DELETED}
        assert len(stored(server)) == 199

    def test_none_at_all(self, client: Client) -> None:
        assert client.put_many([]) == {}
        assert client.put_range("A", b"") == {}

    def test_same_ticket_twice_in_one_call(self, server: ReferenceServer, client: Client) -> None:
        refused = client.put_many([("A", b"one"), ("A", b"one"), ("B", b"x"), ("A", b"two")])
        assert refused == {"A": Status.CONFLICT}
        assert stored(server) == {"A": b"one", "B": b"x"}

    def test_range_over_a_buffer(self, server: ReferenceServer, client: Client) -> None:
        data = random.Random(1).randbytes(200 * DATA - 5)
        assert client.put_range("ZZ", data) == {}  # crosses from two characters to three
        back = b"".join(chunk for _, _, chunk in client.get_range("ZZ", 200))
        assert back == padded(data[-1453:]).join([data[:-1453], b""])
        with pytest.raises(TicketError):
            client.put_range("ZZZZZZZZ", bytes(DATA + 1))

    def test_an_iterator_may_use_the_client(self, client: Client) -> None:
        client.put_many(items(600))
        copied = (("B" + name, data) for name, _, data in client.get_range("AAAA", 600))
        assert client.put_many(copied, window=10) == {}
        assert client.get("BAAAA") == padded(b"chunk 0")

    def test_an_iterator_that_fails(self, client: Client) -> None:
        def broken() -> Iterator[tuple[str, bytes]]:
            yield from items(600)
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            client.put_many(broken())
        client.put("Z", b"still works")

    def test_async_iterable(self, server: ReferenceServer) -> None:
        async def produce() -> AsyncIterator[tuple[str, bytes]]:
            for item in items(50):
                yield item

        async def work() -> dict[str, Status]:
            async with await AsyncClient.connect(server.put_address, None, KEY) as client:
                return await client.put_many(produce(), window=3)

        assert run(work()) == {}
        assert stored(server) == dict(items(50))

    def test_acks_in_any_order(self) -> None:
        with ReferenceServer([KEY], Faults(reorder=random.Random(7))) as server, connect(server) as client:
            assert client.put_many(items(2000), window=500) == {}
            assert stored(server) == dict(items(2000))

    @pytest.mark.parametrize("window", [1, 7, 300])
    def test_window_bounds_what_is_in_flight(self, window: int) -> None:
        """The server keeps every ack back that it can without stopping a client that uses its whole window."""
        with ReferenceServer([KEY], Faults(hold=(window, 1000))) as server, connect(server) as client:
            assert client.put_many(items(1000), window) == {}
            assert server.in_flight_max == window
            assert stored(server) == dict(items(1000))

    @pytest.mark.parametrize("window", [0, -1, 65_537])
    def test_bad_window(self, client: Client, window: int) -> None:
        with pytest.raises(UsageError, match="window"):
            client.put_many(items(1), window)

    def test_calls_may_overlap(self, server: ReferenceServer) -> None:
        async def work() -> None:
            async with await AsyncClient.connect(server.put_address, server.get_address, KEY) as client:
                await asyncio.gather(*(client.put(name, data) for name, data in items(300)))
                got = await asyncio.gather(*(client.get(name) for name, _ in items(300)))
                assert got == [padded(data) for _, data in items(300)]
                # The same ticket at the same time: one is saved, the other told so.
                both = await asyncio.gather(
                    client.put("Q", b"1"), client.put("Q", b"2"), return_exceptions=True
                )
                assert [type(result) for result in both] == [type(None), RefusedError]

        run(work())


class TestRetry:
    @pytest.mark.parametrize("seed", range(8))
    def test_cuts_at_random_points(self, seed: int) -> None:
        """However often the connection breaks, each frame is stored once and the call says so."""
        chance = random.Random(seed)
        cuts = [chance.randrange(1, 120) for _ in range(8)]
        faults = Faults(cut_put_after=list(cuts), reorder=chance if seed % 2 else None)
        with ReferenceServer([KEY], faults) as server, connect(server) as client:
            assert client.put_many(items(700), window=chance.choice([1, 5, 200])) == {}
            assert stored(server) == dict(items(700))
            assert server.put_connections >= 2

    @pytest.mark.parametrize("seed", range(8))
    def test_replies_cut_at_random_points(self, seed: int) -> None:
        chance = random.Random(seed)
        faults = Faults(cut_get_after=[chance.choice([0, 5, 16, 17, 1490, 900_000]) for _ in range(6)])
        with ReferenceServer([KEY], faults) as server, connect(server) as client:
            client.put_many(items(1500))
            got = list(client.get_range("AAAA", 1502))
            assert [(name, data) for name, status, data in got if status is Status.SAVED] == [
                (name, padded(data)) for name, data in items(1500)
            ]
            assert [status for _, status, _ in got[-2:]] == [Status.MISSING] * 2

    def test_idle_connections_are_opened_again(self, server: ReferenceServer, client: Client) -> None:
        client.put("A", b"1")
        for _ in range(3):
            server.drop_connections()
            client.put("B", b"2")
            assert client.get("A") == padded(b"1")

    @pytest.mark.parametrize("status", [BUSY, ERROR])
    def test_busy_and_error_are_tried_again(self, status: int) -> None:
        faults = Faults(answer=lambda index, seen: status if seen <= index % 4 else None)
        with ReferenceServer([KEY], faults) as server, connect(server) as client:
            assert client.put_many(items(100), window=30) == {}
            assert stored(server) == dict(items(100))
            assert server.frames_received == sum(ticket.parse(name) % 4 + 1 for name, _ in items(100))

    @pytest.mark.parametrize("status", [BUSY, ERROR])
    def test_not_for_ever(self, status: int) -> None:
        with (
            ReferenceServer([KEY], Faults(answer=lambda index, seen: status)) as server,
            connect(server, retry_for=0.2) as client,
        ):
            with pytest.raises(RefusedError) as refused:
                client.put("A", b"")
            assert refused.value.status == status
            assert server.frames_received > 1
            assert client.put_many(items(5)) == {name: Status(status) for name, _ in items(5)}

    @pytest.mark.parametrize("status", [CONFLICT, NO_SPACE, Status.DELETED])
    def test_final_answers_are_not_tried_again(self, status: int) -> None:
        with (
            ReferenceServer([KEY], Faults(answer=lambda index, seen: status)) as server,
            connect(server) as client,
        ):
            assert client.put_many(items(5)) == {name: Status(status) for name, _ in items(5)}
            assert server.frames_received == 5

    def test_a_wrong_key_is_told_at_once(self, server: ReferenceServer) -> None:
        with connect(server, OTHER) as client:
            with pytest.raises(RefusedError) as refused:
                client.put("A", b"")
            assert refused.value.status is Status.BAD_CHECKSUM
            assert set(client.put_many(items(500)).values()) == {Status.BAD_CHECKSUM}
            assert server.put_connections <= 3
            with pytest.raises(RefusedError) as refused:
                client.get("A")
            assert refused.value.status is Status.BAD_CHECKSUM

    def test_close_while_the_server_closes(self, server: ReferenceServer) -> None:
        """A refused get is answered just before its connection ends: each close meets that in another moment."""
        for _ in range(40):
            with connect(server, OTHER) as client, pytest.raises(RefusedError):
                client.get("A")

    def test_a_server_that_comes_back(self) -> None:
        with ReferenceServer([KEY]) as first:
            address = first.put_address
            client = Client.connect(address, None, KEY, timeout=5, retry_for=20)
            client.put("A", b"1")
        done: list[object] = []
        putting = threading.Thread(target=lambda: done.append(client.put_many(items(10))))
        putting.start()
        with ReferenceServer([KEY], put_port=address[1]) as second:
            putting.join()
            assert done == [{}]
            assert stored(second) == dict(items(10))
            client.close()

    def test_a_server_that_never_comes_back(self) -> None:
        with ReferenceServer([KEY]) as server:
            client = connect(server, retry_for=0.2)
            client.put("A", b"")  # both connections were accepted
            client.get("A")
        with client:
            with pytest.raises(ConnectionLostError, match=str(server.put_address[1])):
                client.put_many(items(10))
            with pytest.raises(ConnectionLostError, match=str(server.get_address[1])):
                client.get("A")

    @pytest.mark.parametrize("port", ["put", "get"])
    def test_a_server_that_comes_back_when_calls_have_failed(self, port: str) -> None:
        """The outage was that of the calls which were given up: the next one looks for the server itself."""
        with ReferenceServer([KEY]) as server:
            ports = {f"{name}_port": getattr(server, f"{name}_address")[1] for name in ("put", "get")}
            client = connect(server, retry_for=0.1)
            client.put("A", b"1")
            client.get("A")
        with client:
            for _ in range(2):
                with pytest.raises(ConnectionLostError):
                    client.put("A", b"1") if port == "put" else client.get("A")
            with ReferenceServer([KEY], **ports) as again:
                client.put("A", b"1") if port == "put" else client.inventory("A", 1)
                assert (again.put_connections, again.get_connections) == ((1, 0) if port == "put" else (0, 1))

    def test_a_server_that_never_answers(self) -> None:
        with (
            ReferenceServer([KEY], Faults(silent=True)) as server,
            connect(server, timeout=0.2, retry_for=0.3) as client,
        ):
            with pytest.raises(ConnectionLostError, match=r"no answer for 0\.2 s"):
                client.put("A", b"")
            with pytest.raises(ConnectionLostError, match=r"no answer for 0\.2 s"):
                client.get("A")
            assert server.put_connections > 1

    @pytest.mark.parametrize("port", ["put", "get"])
    def test_an_outage_that_is_over_is_forgotten(self, server: ReferenceServer, port: str) -> None:
        """Its length and its back-off: neither fails the calls of the next one, nor lets them wait."""

        async def work() -> None:
            async with await AsyncClient.connect(server.put_address, server.get_address, KEY) as client:
                channel = client._puts if port == "put" else client._gets
                assert channel is not None
                await client.put("A", b"1")
                await client.get("A")
                channel._outage_since, channel._delay = -1e9, 1e9
                server.drop_connections()
                async with asyncio.timeout(20):
                    await (client.put("A", b"1") if port == "put" else client.get("A"))
                assert channel._delay <= limits.RETRY_DELAY_MAX_S

        run(work())

    def test_silence_is_counted_from_what_was_sent(self) -> None:
        """Not from the last answer, which may be long ago: the connection would be ended for the first call after it."""

        async def work(server: ReferenceServer) -> None:
            async with await AsyncClient.connect(server.put_address, server.get_address, KEY) as client:
                await client.put("A", b"1")
                await client.get("A")
                server.faults.silent = True
                for call, channel in (
                    (lambda: client.put("B", b"2"), client._puts),
                    (lambda: client.get("A"), client._gets),
                ):
                    assert channel is not None and not channel.in_flight()
                    channel._answered_at = 0.0
                    calling = asyncio.create_task(call())
                    while not channel.in_flight():
                        await asyncio.sleep(0)
                    assert channel._answered_at > 0.0
                    channel._answered_at = 1.0
                    other = asyncio.create_task(call())
                    for _ in range(3):
                        await asyncio.sleep(0)
                    assert channel._answered_at == 1.0  # that of what is under way goes on
                    for task in (calling, other):
                        task.cancel()

        with ReferenceServer([KEY]) as server:
            run(work(server))

    def test_a_cancelled_call_leaves_the_client_usable(self) -> None:
        gate = threading.Event()

        async def work(server: ReferenceServer) -> None:
            async with await AsyncClient.connect(server.put_address, server.get_address, KEY) as client:
                putting = asyncio.create_task(client.put("A", b"1"))
                await asyncio.to_thread(server.stalled.wait)
                putting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await putting
                gate.set()
                await client.put("A", b"1")
                assert await client.get("A") == padded(b"1")

        with ReferenceServer([KEY], Faults(gate=gate)) as server:
            run(work(server))


class TestFaultsOfOurOwn:
    """A program's error costs a connection, not the client."""

    def test_one_that_stays_leaves_nobody_waiting(
        self, server: ReferenceServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with connect(server, retry_for=0.3) as client:
            for channel, call in (
                (PutChannel, lambda: client.put("A", b"1")),
                (GetChannel, lambda: client.get("A")),
            ):
                with monkeypatch.context() as faulty:
                    faulty.setattr(channel, "received", lambda self, data: 1 // 0)
                    with pytest.raises(ConnectionLostError, match="ZeroDivisionError"):
                        call()
                call()

    def test_one_that_stays_after_answers_leaves_nobody_waiting(
        self, server: ReferenceServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each connection answers something before it fails."""
        received = GetChannel.received

        def faulty(self: GetChannel, data: memoryview) -> int:
            received(self, data[:16])
            raise ZeroDivisionError

        with connect(server, retry_for=0.3) as client:
            client.put("A", b"1")
            monkeypatch.setattr(GetChannel, "received", faulty)
            with pytest.raises(ConnectionLostError, match="ZeroDivisionError"):
                client.get("A")

    @pytest.mark.parametrize("port", ["put", "get"])
    def test_one_that_the_client_can_not_go_on_after_is_told_to_all_who_call_later(
        self, server: ReferenceServer, port: str
    ) -> None:
        """The tables of what is not answered are not what they should be: nobody would send what is added to them."""

        def fails() -> None:
            raise ZeroDivisionError

        async def work() -> None:
            async with await AsyncClient.connect(server.put_address, server.get_address, KEY) as client:
                channel = client._puts if port == "put" else client._gets
                await client.put("A", b"1")  # both connections were accepted
                await client.get("A")
                monkeypatch.setattr(channel, "disconnected", fails)
                server.drop_connections()
                async with asyncio.timeout(20):
                    with pytest.raises(ConnectionLostError):
                        while True:
                            await (client.put("A", b"1") if port == "put" else client.inventory("A", 1))
                    for _ in range(3):
                        with pytest.raises(ConnectionLostError):
                            await (client.put("B", b"1") if port == "put" else client.inventory("B", 1))

        with pytest.MonkeyPatch.context() as monkeypatch:
            run(work())

    @pytest.mark.parametrize("seed", range(3))
    def test_each_call_is_answered_once(
        self, seed: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Acks were taken before the fault, or will be sent again; so will frames that wait for their back-off."""
        chance = random.Random(seed)

        def often(channel: type, name: str) -> None:
            method = getattr(channel, name)

            def sometimes(*arguments: Any) -> Any:
                before = chance.random()
                if before < 0.1:
                    raise ZeroDivisionError
                result = method(*arguments)
                if before < 0.2 and name != "_delayed":
                    raise ZeroDivisionError
                return result

            monkeypatch.setattr(channel, name, sometimes)

        faults = Faults(answer=lambda index, seen: ERROR if seen <= index % 2 else None)
        with ReferenceServer([KEY], faults) as server, connect(server) as client:
            for channel, name in (
                (PutChannel, "received"), (PutChannel, "_delayed"), (PutChannel, "take"), (GetChannel, "received"),
            ):  # fmt: skip
                often(channel, name)
            assert client.put_many(items(300), window=40) == {}
            assert stored(server) == dict(items(300))
            for name, data in items(20):
                assert client.get(name) == padded(data)
        assert "ZeroDivisionError" in caplog.text


class TestProtocolErrors:
    @pytest.mark.parametrize(
        ("ack", "what"),
        [
            (b"ZZZ\0\0\0\0\0\1", "ZZZ"),  # never sent
            (b"AAAA\0\0\0\0\1", "AAAA"),  # acked before
            (b"\0" * 9, "not sent"),
        ],
    )
    def test_wrong_ack(self, ack: bytes, what: str) -> None:
        with ReferenceServer([KEY], Faults(extra_ack=ack)) as server, connect(server) as client:
            with pytest.raises(ProtocolError, match=what):
                client.put_many(items(100), window=1)
            assert client.put_many(items(100)) == {}

    @pytest.mark.parametrize("status", [0, MISSING, 10, 255])
    def test_wrong_status(self, status: int) -> None:
        with (
            ReferenceServer([KEY], Faults(answer=lambda index, seen: status)) as server,
            connect(server) as client,
            pytest.raises(ProtocolError, match=f"status {status}"),
        ):
            client.put("A", b"")

    @pytest.mark.parametrize(
        "reply",
        [
            b"B".ljust(8, b"\0") + b"\x08\0\0\0" + (1).to_bytes(4, "big"),  # another ticket
            b"A".ljust(8, b"\0") + b"\x08\0\0\0" + (2).to_bytes(4, "big"),  # more than asked for
            b"A".ljust(8, b"\0") + b"\x08\0\1\0" + (1).to_bytes(4, "big"),  # no zeros
            b"A".ljust(8, b"\0") + b"\x0b\0\0\0" + (1).to_bytes(4, "big"),  # no status
            b"a".ljust(8, b"\0") + b"\x08\0\0\0" + (1).to_bytes(4, "big"),  # no ticket
            b"a".ljust(8, b"\0") + b"\x04\0\0\0" + (0).to_bytes(4, "big"),  # refuses something else
        ],
    )
    def test_wrong_reply(self, reply: bytes) -> None:
        with ReferenceServer([KEY]) as server, connect(server) as client:
            server.model.request = lambda request: (reply, True)  # type: ignore[method-assign]
            with pytest.raises(ProtocolError):
                client.get("A")

    def test_a_reply_that_nobody_asked_for_ends_the_connection(self) -> None:
        with ReferenceServer([KEY]) as server, connect(server) as client:
            real = server.model.request
            server.model.request = lambda request: (real(request)[0] * 2, True)  # type: ignore[method-assign]
            assert_missing(client)
            server.model.request = real  # type: ignore[method-assign]
            assert_missing(client)
            assert server.get_connections == 2


def assert_missing(client: Client) -> None:
    with pytest.raises(RefusedError) as missing:
        client.get("A")
    assert missing.value.status is Status.MISSING


class TestGet:
    def test_missing_and_deleted(self, client: Client) -> None:
        assert_missing(client)
        client.delete("A")
        with pytest.raises(RefusedError) as deleted:
            client.get("A")
        assert deleted.value.status is Status.DELETED

    @pytest.mark.parametrize("count", [1, 511, 512, 513, 1300])
    def test_range(self, client: Client, count: int) -> None:
        client.put_many([item for i, item in enumerate(items(1300)) if i % 3])
        expected = [
            (name, Status.SAVED, padded(data)) if i % 3 else (name, Status.MISSING, b"")
            for i, (name, data) in enumerate(items(1300))
        ]
        assert list(client.get_range("AAAA", count)) == expected[:count]

    @pytest.mark.parametrize(("first", "count"), [("A", 0), ("A", -1), ("ZZZZZZZZ", 2), ("a", 1)])
    def test_bad_ranges(self, client: Client, first: str, count: int) -> None:
        with pytest.raises(TicketError):
            list(client.get_range(first, count))
        with pytest.raises(TicketError):
            list(client.read_pieces(first, count))
        with pytest.raises(TicketError):
            client.inventory(first, count)
        with pytest.raises(TicketError):
            client.delete(first, count)

    def test_stopping_early(self, client: Client) -> None:
        client.put_many(items(1200))
        for name, _, _ in client.get_range("AAAA", 1200):
            assert name == "AAAA"
            break
        assert client.get("AAAB") == padded(b"chunk 1")

    def test_a_bad_frame_is_asked_for_once_more(self) -> None:
        with ReferenceServer([KEY], Faults(corrupt=[0])) as server, connect(server) as client:
            client.put("A", b"1")
            assert client.get("A") == padded(b"1")
            assert server.replies == 2

    def test_a_frame_that_stays_bad(self) -> None:
        with ReferenceServer([KEY], Faults(corrupt_always=True)) as server, connect(server) as client:
            client.put_many(items(3))
            with pytest.raises(CorruptFrameError, match="AAAC"):
                list(client.get_range("AAAA", 3))
            assert server.replies == 2

    def test_a_bad_frame_that_was_just_deleted(self, server: ReferenceServer, client: Client) -> None:
        client.put("A", b"1")
        real = server.model.request

        def torn(request: bytes) -> tuple[bytes, bool]:
            reply, stays_open = real(request)
            if index_of(b"A".ljust(8, b"\0")) not in server.model.deleted:
                server.model.frame(build_frame(KEY, 10, (1).to_bytes(8, "big"), "delete frame"))
                return reply[:16] + bytes(1474), stays_open
            return reply, stays_open

        server.model.request = torn  # type: ignore[method-assign]
        with pytest.raises(RefusedError) as deleted:
            client.get("A")
        assert deleted.value.status is Status.DELETED

    def test_another_frame_with_a_right_checksum_is_bad_too(
        self, server: ReferenceServer, client: Client
    ) -> None:
        server.model.frames[10] = build_frame(KEY, 11, b"of B")
        with pytest.raises(CorruptFrameError):
            client.get("A")

    def test_errors_of_the_server_are_tried_again(self, server: ReferenceServer, client: Client) -> None:
        client.put("A", b"1")
        real, answers = server.model.request, [ERROR, BUSY]

        def failing(request: bytes) -> tuple[bytes, bool]:
            if answers:
                return request[:8] + bytes([answers.pop(), 0, 0, 0]) + (1).to_bytes(4, "big"), True
            return real(request)

        server.model.request = failing  # type: ignore[method-assign]
        assert client.get("A") == padded(b"1")

    def test_an_error_that_lasts(self, server: ReferenceServer) -> None:
        server.model.request = (
            lambda request: (  # type: ignore[method-assign]
                request[:8] + bytes([ERROR, 0, 0, 0]) + (1).to_bytes(4, "big"),
                True,
            )
        )
        with connect(server, retry_for=0.1) as client, pytest.raises(RefusedError) as refused:
            client.get("A")
        assert refused.value.status is Status.ERROR

    def test_frames_of_older_keys(self, server: ReferenceServer) -> None:
        server.model.frames[10] = build_frame(OTHER, 10, b"old")
        with connect(server, [KEY, OTHER]) as client:
            client.put("B", b"new")
            assert [data for _, _, data in client.get_range("A", 2)] == [padded(b"old"), padded(b"new")]
        with connect(server, [KEY]) as client, pytest.raises(CorruptFrameError):
            client.get("A")


class TestDeleteAndInventory:
    def test_delete_a_range(self, server: ReferenceServer, client: Client) -> None:
        client.put_many(items(10))
        client.delete("AAAC", 3)
        assert client.inventory("AAAA", 12) == [
            Run("AAAA", Status.SAVED, 2),
            Run("AAAC", Status.DELETED, 3),
            Run("AAAF", Status.SAVED, 5),
            Run("AAAK", Status.MISSING, 2),
        ]
        assert len(stored(server)) == 7

    def test_more_than_one_request_carries(self, server: ReferenceServer, client: Client) -> None:
        client.delete("A000", limits.RANGE_COUNT_MAX + 5)
        assert server.frames_received == 2
        assert client.inventory("A000", limits.RANGE_COUNT_MAX + 6) == [
            Run("A000", Status.DELETED, limits.RANGE_COUNT_MAX + 5),
            Run(ticket.format(ticket.parse("A000") + limits.RANGE_COUNT_MAX + 5), Status.MISSING, 1),
        ]


PARTS = 3  # of what one message can't carry
START = ticket.parse("A000")
CHUNKS = PARTS * limits.GET_FRAMES
RANGE = PARTS * limits.RANGE_COUNT_MAX


@functools.cache
def many_frames() -> dict[int, bytes]:
    return {index: build_frame(KEY, index, b"x") for index in range(START, START + CHUNKS)}


async def each_of(pieces: AsyncIterator[list[Chunk]]) -> list[Chunk]:
    return [chunk async for piece in pieces for chunk in piece]


async def all_bytes(pieces: AsyncIterator[bytearray]) -> bytes:
    return b"".join([piece async for piece in pieces])


# What is read in parts, all of which has to be there.
READS: dict[str, Callable[[AsyncClient], Coroutine[Any, Any, Any]]] = {
    "read_range": lambda client: client.read_range("A000", CHUNKS),
    "read_pieces": lambda client: all_bytes(client.read_pieces("A000", CHUNKS)),
}


@pytest.mark.parametrize("part", range(PARTS))
class TestEachPartCounts:
    """What is asked for in several messages: a call tells what became of each of them, not of the last one alone."""

    @pytest.mark.parametrize("status", [NO_SPACE, BUSY, ERROR, "lost"])
    def test_of_a_delete(self, part: int, status: int | str) -> None:
        """What comes behind is not asked for."""
        at = START + part * limits.RANGE_COUNT_MAX
        faults = Faults(cut_put_after=[part]) if status == "lost" else Faults()
        faults.answer = lambda index, seen: status if index == at and isinstance(status, int) else None
        with ReferenceServer([KEY], faults) as server, connect(server, retry_for=0) as client:
            with pytest.raises(ConnectionLostError if status == "lost" else RefusedError) as caught:
                client.delete("A000", RANGE)
            assert server.frames_received == part + 1
            if isinstance(caught.value, RefusedError):
                assert (caught.value.ticket, caught.value.status) == (ticket.format(at), status)
                assert server.model.deleted == set(range(START, at))

    @pytest.mark.parametrize("name", READS)
    @pytest.mark.parametrize("place", [0, limits.GET_FRAMES - 1])
    def test_of_what_is_read(self, server: ReferenceServer, part: int, name: str, place: int) -> None:
        lacking = START + part * limits.GET_FRAMES + place
        server.model.frames = {index: one for index, one in many_frames().items() if index != lacking}

        async def work() -> None:
            async with await AsyncClient.connect(None, server.get_address, KEY) as client:
                with pytest.raises(RefusedError) as caught:
                    await READS[name](client)
                assert (caught.value.ticket, caught.value.status) == (ticket.format(lacking), Status.MISSING)

        run(work())

    @pytest.mark.parametrize("name", READS)
    def test_of_what_is_lost_on_its_way(self, part: int, name: str) -> None:
        reply = 16 + limits.GET_FRAMES * limits.FRAME_SIZE
        faults = Faults(cut_get_after=[part * reply + 1000])

        async def work(server: ReferenceServer) -> None:
            async with await AsyncClient.connect(None, server.get_address, KEY, retry_for=0) as client:
                with pytest.raises(ConnectionLostError):
                    await READS[name](client)

        with ReferenceServer([KEY], faults) as server:
            server.model.frames = many_frames()
            run(work(server))

    @pytest.mark.parametrize("place", [0, limits.GET_FRAMES - 1])
    def test_of_what_is_listed(self, server: ReferenceServer, part: int, place: int) -> None:
        lacking = START + part * limits.GET_FRAMES + place
        server.model.frames = {index: one for index, one in many_frames().items() if index != lacking}

        async def work() -> list[Chunk]:
            async with await AsyncClient.connect(None, server.get_address, KEY) as client:
                return await each_of(client.get_pieces("A000", CHUNKS))

        assert [name for name, status, _ in run(work()) if status is not Status.SAVED] == [
            ticket.format(lacking)
        ]

    @pytest.mark.parametrize("place", [1, limits.RANGE_COUNT_MAX - 2])
    def test_of_an_inventory(self, server: ReferenceServer, client: Client, part: int, place: int) -> None:
        at = START + part * limits.RANGE_COUNT_MAX + place
        server.model.deleted = {at}
        assert client.inventory("A000", RANGE) == [
            Run("A000", Status.MISSING, at - START),
            Run(ticket.format(at), Status.DELETED, 1),
            Run(ticket.format(at + 1), Status.MISSING, START + RANGE - at - 1),
        ]

    def test_of_what_is_put(self, server: ReferenceServer, client: Client, part: int) -> None:
        at = START + part * limits.SEAL_FRAMES
        server.model.deleted = {at}
        refused = client.put_range("A000", bytes(PARTS * limits.SEAL_FRAMES * DATA), window=100)
        assert refused == {ticket.format(at): Status.DELETED}


class TestConnecting:
    def test_addresses_and_key_files(self, server: ReferenceServer, tmp_path: Path) -> None:
        path = tmp_path / "key"
        path.write_text(KEY.hex() + "\n")
        path.chmod(0o600)
        put, get = (f"127.0.0.1:{address[1]}" for address in (server.put_address, server.get_address))
        with Client.connect(put, get, path) as client:
            client.put("A", b"1")
        with Client.connect(None, get, str(path)) as client:
            assert client.get("A") == padded(b"1")
            with pytest.raises(UsageError, match="put port"):
                client.put("A", b"1")
        with Client.connect(put, None, path) as client, pytest.raises(UsageError, match="get port"):
            client.get("A")

    def test_bad_arguments(self, server: ReferenceServer, tmp_path: Path) -> None:
        with pytest.raises(UsageError):
            Client.connect(None, None, KEY)
        with pytest.raises(UsageError):
            Client.connect("nowhere", None, KEY)
        with pytest.raises(UsageError, match="32 bytes"):
            Client.connect(server.put_address, None, KEY[:31])
        with pytest.raises(UsageError):
            Client.connect(server.put_address, None, [])
        with pytest.raises(UsageError):
            Client.connect(server.put_address, None, KEY, timeout=0)
        with pytest.raises(KeyFileError):
            Client.connect(server.put_address, None, tmp_path / "missing")

    def test_nobody_there(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            address = listener.getsockname()[:2]
        with pytest.raises(ConnectionLostError, match=str(address[1])):
            Client.connect(address, None, KEY)

    def test_after_close(self, server: ReferenceServer) -> None:
        client = connect(server)
        client.close()
        client.close()
        for call in (
            lambda: client.put("A", b""),
            lambda: client.get("A"),
            lambda: list(client.get_range("A", 1)),
        ):
            with pytest.raises(ConnectionLostError, match="closed"):
                call()

    def test_close_at_once_ends_both_connections(self, server: ReferenceServer) -> None:
        """Also one whose task has not begun yet."""

        async def work() -> None:
            for addresses in ((server.put_address, server.get_address), (server.put_address, None)):
                client = await AsyncClient.connect(*addresses, KEY)
                await client.close()
            accepted = 3
            async with asyncio.timeout(20):
                while server.put_connections + server.get_connections < accepted or server._writers:
                    await asyncio.sleep(0)

        run(work())

    @pytest.mark.parametrize("fails", ["put", "get", "both", "the key", "nothing", "the block"])
    @pytest.mark.parametrize("kind", ["Client", "AsyncClient"])
    def test_nothing_is_left_of_a_client(self, server: ReferenceServer, kind: str, fails: str) -> None:
        """Of one that could not connect, as of one that was used: no thread, no connection, not even that of the other port.
        Who tries again and again would have more of them each time."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            nobody = listener.getsockname()[:2]
        put = nobody if fails in ("put", "both") else server.put_address
        get = nobody if fails in ("get", "both") else server.get_address
        key = KEY[:31] if fails == "the key" else KEY

        async def use() -> None:
            async with await AsyncClient.connect(put, get, key) as client:
                await client.put("A", b"1")
                assert fails == "nothing", "the block fails"

        def use_blocking() -> None:
            with Client.connect(put, get, key) as client:
                client.put("A", b"1")
                assert fails == "nothing", "the block fails"

        before = set(threading.enumerate())
        kinds = {"the key": UsageError, "the block": AssertionError}
        ends = nullcontext() if fails == "nothing" else pytest.raises(kinds.get(fails, ConnectionLostError))

        async def rounds() -> None:
            for _ in range(2):
                await (use() if kind == "AsyncClient" else asyncio.to_thread(use_blocking))

        async def gone() -> None:
            async with asyncio.timeout(20):
                while server._writers or bool(server.put_connections) != (
                    fails in ("get", "nothing", "the block")
                ):
                    await asyncio.sleep(0)

        async def work() -> None:
            with ends:
                await rounds()
            assert not [one for one in set(threading.enumerate()) - before if one.name == "ingest client"]
            await gone()  # while this loop goes on: it is not its end that ends them

        run(work())

    def test_an_interrupt_cancels_the_call(self) -> None:
        """What it waited for would go on behind its back."""
        loop, main, cancelled = LoopThread(), threading.get_ident(), threading.Event()

        async def work() -> None:
            while sys._current_frames()[main].f_code.co_name != "wait":
                await asyncio.sleep(0)
            signal.pthread_kill(main, signal.SIGINT)
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.set()
                raise

        with pytest.raises(KeyboardInterrupt):
            loop.run(work())
        assert cancelled.wait(20)
        loop.stop()

    @pytest.mark.parametrize("end", ["it stopped early", "it failed", "all was read"])
    def test_a_caller_without_a_loop_ends_what_is_read_ahead(self, end: str) -> None:
        """At once, and not when somebody collects what is left of it."""
        loop, ended = LoopThread(), threading.Event()

        async def pieces() -> AsyncGenerator[bytes, None]:
            try:
                for _ in range(3):
                    yield b"piece"
            finally:
                ended.set()

        asked = pieces()
        coming = cast(Generator[bytes, None, None], Client(cast(AsyncClient, None), loop)._pieces(asked))
        assert next(coming) == b"piece"
        if end == "it failed":
            with pytest.raises(ZeroDivisionError):
                coming.throw(ZeroDivisionError())
        elif end == "it stopped early":
            coming.close()
        else:
            assert list(coming) == [b"piece"] * 2
        assert ended.is_set()
        loop.stop()

    def test_close_ends_calls_of_other_threads(self) -> None:
        gate = threading.Event()
        with ReferenceServer([KEY], Faults(gate=gate)) as server:
            client = connect(server)
            errors: list[BaseException] = []

            def put() -> None:
                try:
                    client.put("A", b"")
                except ConnectionLostError as error:
                    errors.append(error)

            putting = threading.Thread(target=put)
            putting.start()
            server.stalled.wait()
            client.close()
            putting.join()
            assert len(errors) == 1

    def test_importing_ingest_is_cheap(self) -> None:
        code = "import sys, ingest; assert not {'asyncio', 'ingest._hmac'} & set(sys.modules); ingest.Client"
        subprocess.run([sys.executable, "-c", code], check=True)
        with pytest.raises(AttributeError, match="nothing"):
            __import__("ingest").nothing  # noqa: B018


class TestBulk:
    """Buffers of many chunks: what goes by runs must come to the same as what goes by frames."""

    DATA = random.Random(5).randbytes(1500 * DATA - 700)

    def test_round_trip(self, server: ReferenceServer, client: Client) -> None:
        assert client.put_range("AAAA", self.DATA) == {}
        assert client.read_range("AAAA", 1500) == self.DATA + bytes(700)
        assert client.read_range("AAAB", 1) == self.DATA[DATA : 2 * DATA]
        assert b"".join(client.read_pieces("AAAA", 1500)) == self.DATA + bytes(700)
        assert server.frames_received == 1500

    @pytest.mark.parametrize("seed", range(6))
    def test_cuts_and_any_order(self, seed: int) -> None:
        chance = random.Random(seed)
        faults = Faults(
            cut_put_after=[chance.randrange(1, 500) for _ in range(6)],
            cut_get_after=[chance.choice([0, 15, 1000, 900_000]) for _ in range(4)],
            reorder=chance if seed % 2 else None,
            answer=lambda index, seen: BUSY if (index + seed) % 50 == 0 and seen == 1 else None,
        )
        with ReferenceServer([KEY], faults) as server, connect(server) as client:
            assert client.put_range("AAAA", self.DATA, window=chance.choice([1, 50, 4096])) == {}
            assert client.read_range("AAAA", 1500) == self.DATA + bytes(700)
            assert len(server.model.frames) == 1500

    @pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
    def test_piece_by_piece(self, server: ReferenceServer, loop: str) -> None:
        async def work() -> None:
            async with await AsyncClient.connect(server.put_address, server.get_address, KEY) as client:
                await client.put("AAAC", b"another")
                await client.delete("AABA", 2)
                batch = client.new_batch(window=100)
                start = ticket.parse("AAAA")
                for at in range(0, 1500, 300):
                    part = bytearray(self.DATA[at * DATA : (at + 300) * DATA])
                    await client.add_range(batch, ticket.format(start + at), part)
                    part[:] = bytes(len(part))  # it is the caller's again
                assert batch.refused["AAAC"] is Status.CONFLICT  # told while others are under way
                assert await client.finish(batch) == {
                    "AAAC": Status.CONFLICT,
                    "AABA": Status.DELETED,
                    "AABB": Status.DELETED,
                }
                pieces = [piece async for piece in client.read_pieces("AABC", 1462)]
                assert b"".join(pieces) == self.DATA[38 * DATA :] + bytes(700)
                assert [len(piece) // DATA for piece in pieces] == [512, 512, 438]

        with asyncio.Runner(loop_factory=uvloop.new_event_loop if loop == "uvloop" else None) as runner:
            runner.run(work())

    def test_frames_that_were_sealed_before(self, server: ReferenceServer) -> None:
        async def work() -> None:
            async with await AsyncClient.connect(server.put_address, server.get_address, KEY) as client:
                await client.put("AAAC", b"another")
                sealed = client.seal_range("AAAA", self.DATA)
                assert data_of(sealed) == self.DATA.ljust(1500 * DATA, b"\0")
                batch = client.new_batch(window=100)
                await client.add_frames(batch, sealed)
                assert await client.finish(batch) == {"AAAC": Status.CONFLICT}
                assert await client.read_range("AABC", 1462) == self.DATA[38 * DATA :] + bytes(700)
                with pytest.raises(TicketError):
                    client.seal_range("ZZZZZZZZ", bytes(DATA + 1))

        run(work())

    def test_a_batch_that_failed_takes_no_more(self) -> None:
        received = threading.Event()

        async def work(server: ReferenceServer) -> None:
            async with await AsyncClient.connect(server.put_address, None, KEY, retry_for=0) as client:
                batch = client.new_batch()
                await client.add_range(batch, "AAAA", self.DATA)
                await asyncio.to_thread(received.wait)
                await asyncio.to_thread(server.stop)
                with pytest.raises(ConnectionLostError):
                    await client.finish(batch)
                with pytest.raises(ConnectionLostError):
                    await client.add_range(batch, "BAAA", self.DATA)

        faults = Faults(silent=True, answer=lambda index, seen: received.set())
        with ReferenceServer([KEY], faults) as server:
            run(work(server))

    def test_others_have_their_turn(self, server: ReferenceServer) -> None:
        """A window as wide as the buffer does not keep the loop until all is signed."""

        async def work() -> None:
            async with await AsyncClient.connect(server.put_address, None, KEY) as client:
                batch = client.new_batch(limits.IN_FLIGHT_MAX)
                adding = asyncio.create_task(client.add_range(batch, "AAAA", self.DATA))
                turns = 0
                while not adding.done():
                    turns += 1
                    await asyncio.sleep(0)
                assert turns > 2
                assert await client.finish(batch) == {}

        run(work())

    def test_past_the_last_ticket(self, server: ReferenceServer, client: Client) -> None:
        with pytest.raises(TicketError):
            client.put_range("ZZZZZZZY", bytes(3 * DATA))
        with pytest.raises(TicketError):
            client.read_range("ZZZZZZZY", 3)
        assert server.frames_received == 0

    @pytest.mark.parametrize("parts", [1, 2, 3])
    def test_not_even_what_comes_before_the_last_ticket(
        self, server: ReferenceServer, client: Client, parts: int
    ) -> None:
        """However many parts are signed before the one that goes past it: what was put stays there for good."""
        count = parts * limits.SEAL_FRAMES
        with pytest.raises(TicketError):
            client.put_range(ticket.format(ticket.LAST - count + 1), bytes(count * DATA + 1))
        client.put("A", b"")
        assert server.frames_received == 1

    def test_what_is_not_there(self, client: Client) -> None:
        client.put_range("AAAA", self.DATA)
        gone = ticket.format(ticket.parse("AAAA") + 600)
        client.delete(gone, 3)
        with pytest.raises(RefusedError) as refused:
            client.read_range("AAAA", 1500)
        assert (refused.value.ticket, refused.value.status) == (gone, Status.DELETED)
        after = ticket.format(ticket.parse("AAAA") + 1500)
        with pytest.raises(RefusedError) as refused:
            client.read_range(ticket.format(ticket.parse("AAAA") + 1400), 200)
        assert (refused.value.ticket, refused.value.status) == (after, Status.MISSING)

    def test_frames_that_are_bad_once(self) -> None:
        with ReferenceServer([KEY], Faults(corrupt=[0, 1, 2])) as server, connect(server) as client:
            client.put_range("AAAA", self.DATA)
            assert client.read_range("AAAA", 1500) == self.DATA + bytes(700)
            assert server.replies == 6

    def test_a_frame_that_is_bad_twice(self, server: ReferenceServer) -> None:
        async def work() -> None:
            async with await AsyncClient.connect(server.put_address, server.get_address, KEY) as client:
                await client.put_range("AAAA", self.DATA)
                index = ticket.parse("AAAA") + 700
                server.model.frames[index] = server.model.frames[index][:-1] + b"\1"
                got = 0
                with pytest.raises(CorruptFrameError, match=ticket.format(index)):
                    async for piece in client.read_pieces("AAAA", 1500):
                        got += len(piece)
                assert got == 512 * DATA  # what lies before it is good
                with pytest.raises(CorruptFrameError):
                    await client.read_range("AAAA", 1500)
                assert await client.get("AAAA") == self.DATA[:DATA]

        run(work())

    def test_errors_of_the_server_are_tried_again(self, server: ReferenceServer, client: Client) -> None:
        client.put_range("AAAA", self.DATA)
        real, answers = server.model.request, [ERROR, BUSY]

        def failing(request: bytes) -> tuple[bytes, bool]:
            if not answers:
                return real(request)
            first, count = index_of(request[:8]), int.from_bytes(request[8:16], "big")
            assert first is not None
            part = build_request(KEY, first, count - 5)
            status = bytes([answers.pop(), 0, 0, 0])
            return real(part)[0] + ticket_of(first + count - 5) + status + (5).to_bytes(4, "big"), True

        server.model.request = failing  # type: ignore[method-assign]
        assert client.read_range("AAAA", 1500) == self.DATA + bytes(700)

    @pytest.mark.parametrize("refusal", [ERROR, BUSY])
    @pytest.mark.parametrize("bad", [0, 40])
    def test_what_goes_wrong_in_the_same_reply(
        self, server: ReferenceServer, client: Client, bad: int, refusal: int
    ) -> None:
        """A frame that is bad beside tickets that are refused for now: each is asked for again."""
        client.put_range("AAAA", self.DATA)
        real, answers = server.model.request, [refusal, refusal]

        def failing(request: bytes) -> tuple[bytes, bool]:
            first, count = index_of(request[:8]), int.from_bytes(request[8:16], "big")
            if not answers or count < 50:
                return real(request)
            assert first is not None
            refused = ticket_of(first + count - 5) + bytes([answers.pop(), 0, 0, 0]) + (5).to_bytes(4, "big")
            reply = bytearray(real(build_request(KEY, first, count - 5))[0])
            reply[16 + bad * (DATA + 16) + 500] ^= 1
            return bytes(reply) + refused, True

        server.model.request = failing  # type: ignore[method-assign]
        assert client.read_range("AAAA", 1500) == self.DATA + bytes(700)
        assert not answers

    @pytest.mark.parametrize("before", [False, True], ids=["first calls", "later calls"])
    def test_each_call_has_the_keys_of_now(self, server: ReferenceServer, before: bool) -> None:
        """After a rotation: the server accepts none of before any more, and what is stored is signed with any of them."""

        async def work() -> None:
            async with await AsyncClient.connect(server.put_address, server.get_address, OTHER) as client:
                if before:
                    with pytest.raises(RefusedError, match="BAD_CHECKSUM"):
                        await client.put("ZZZ", b"1")
                    with pytest.raises(RefusedError, match="BAD_CHECKSUM"):
                        await client.inventory("ZZZ", 1)
                client.use_keys([KEY, OTHER])
                await client.put("A", b"1")
                assert await client.put_many([("B", b"2")]) == {}
                await client.put_record("C", b"3")
                assert await client.put_range("AA", self.DATA) == {}
                batch = client.new_batch()
                await client.add_frames(batch, client.seal_range("ABC", b"4"))
                await client.add(batch, [("ABD", b"5")])
                assert await client.finish(batch) == {}
                await client.delete("B")
                server.model.frames[ticket.parse("D")] = build_frame(OTHER, ticket.parse("D"), b"of before")
                assert [run.status for run in await client.inventory("A", 3)] == [
                    Status.SAVED, Status.DELETED, Status.SAVED,
                ]  # fmt: skip
                assert await client.get("A") == padded(b"1") and await client.get("D") == padded(b"of before")
                assert await client.get_record("C") == b"3"
                assert await client.read_range("ABC", 2) == padded(b"4") + padded(b"5")
                found = [status async for _, status, _ in client.get_range("A", 4)]
                assert found == [Status.SAVED, Status.DELETED, Status.SAVED, Status.SAVED]
                client.use_keys([KEY])
                with pytest.raises(CorruptFrameError):
                    await client.get("D")

        run(work())

    def test_frames_of_older_keys(self, server: ReferenceServer) -> None:
        with connect(server) as client:
            client.put_range("AAAA", self.DATA)
        index = ticket.parse("AAAA") + 3
        server.model.frames[index] = build_frame(OTHER, index, self.DATA[3 * DATA : 4 * DATA])
        with connect(server, [KEY, OTHER]) as client:
            assert client.read_range("AAAA", 1500) == self.DATA + bytes(700)

    def test_stopping_early(self, server: ReferenceServer) -> None:
        async def work() -> None:
            async with await AsyncClient.connect(server.put_address, server.get_address, KEY) as client:
                await client.put_range("AAAA", self.DATA)
                pieces = client.read_pieces("AAAA", 1500)
                assert await anext(pieces) == self.DATA[: 512 * DATA]
                await pieces.aclose()
                assert await client.get("AAAA") == self.DATA[:DATA]

        run(work())


@pytest.mark.parametrize("taken", range(4))
@pytest.mark.parametrize("end", ["the caller stops", "a part fails"])
def test_nothing_is_read_ahead_for_nobody(taken: int, end: str) -> None:
    """Wherever it ends: what is on its way then is given up, and no more is asked for."""
    begun, ended = list[int](), list[int]()

    async def read(part: range) -> int:
        begun.append(part.start)
        try:
            if part.start == taken and end == "a part fails":
                raise ZeroDivisionError
            if part.start >= taken:
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append(part.start)
            raise
        return part.start

    async def work() -> None:
        pieces = ahead((range(i, i + 1) for i in range(20)), read)
        for i in range(taken):
            assert await anext(pieces) == i
        if end == "a part fails":
            with pytest.raises(ZeroDivisionError):
                await anext(pieces)
        await pieces.aclose()
        started = len(begun)
        for _ in range(3):
            await asyncio.sleep(0)
        assert len(begun) == started <= taken + 1 + limits.GET_AHEAD
        assert ended == [i for i in begun if i >= taken + (end == "a part fails")]

    run(work())
