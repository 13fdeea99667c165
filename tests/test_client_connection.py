"""One socket of a client's channel: whatever the pieces in which bytes come, and however it ends."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.client.channel import Channel, _Connection
from ingest.errors import ConnectionLostError, IngestError, PeerError, ProtocolError

RECORD = 7  # bytes of one that this channel takes
HTTP, ALERT = b"HTTP/1.1 400 Bad Request\r\n", b"\x15\x03\x03\x00\x02\x02\x28"


class Records(Channel):
    """Takes whole records, and sends what it is given."""

    receive_size = 64
    port = "put"

    def __init__(self) -> None:
        super().__init__(("host", 1), 30, 0)
        self.got, self.queue, self.gone = bytearray(), list[bytes](), 0

    def has_work(self) -> bool:
        return False

    def in_flight(self) -> bool:
        return False

    def take(self) -> bytes:
        return self.queue.pop(0) if self.queue else b""

    def received(self, data: memoryview) -> int:
        taken = len(data) - len(data) % RECORD
        self.got += data[:taken]
        return taken

    def disconnected(self) -> None:
        self.gone += 1

    def give_up(self, error: IngestError) -> None:
        raise AssertionError(error)


class Transport:
    def __init__(self) -> None:
        self.written, self.aborted = list[bytes](), 0

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def abort(self) -> None:
        self.aborted += 1


def connection_of(channel: Channel) -> tuple[_Connection, Any]:
    connection, transport = _Connection(channel), Transport()
    connection.transport = transport  # type: ignore[assignment]
    return connection, transport


def comes(connection: _Connection, *pieces: bytes) -> None:
    for piece in pieces:
        while piece:
            buffer = connection.get_buffer(-1)
            taken = min(len(buffer), len(piece))
            buffer[:taken] = piece[:taken]
            connection.buffer_updated(taken)
            piece = piece[taken:]


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[i : i + size] for i in range(0, len(data), size)]


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(work())


@settings(deadline=None, max_examples=60)
@given(sizes=st.lists(st.integers(1, 100), min_size=1, max_size=30))
def test_each_byte_is_given_once_and_in_its_order(sizes: list[int]) -> None:
    """What is no whole record yet waits for the rest of it, and so does what comes behind."""

    async def work() -> None:
        channel = Records()
        connection, _ = connection_of(channel)
        data = bytes(i % 251 for i in range(sum(sizes)))
        at = 0
        for size in sizes:
            comes(connection, data[at : at + size])
            at += size
            assert channel.got == data[: at - at % RECORD]
        assert not connection.ended.done()

    run(work)


@pytest.mark.parametrize(("answer", "said"), [(HTTP, "answers with HTTP"), (ALERT, "alert of TLS")])
@pytest.mark.parametrize("asks", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 50])
def test_who_answers_instead_is_named_in_whatever_pieces(
    answer: bytes, said: str, asks: bool, size: int
) -> None:
    async def work() -> None:
        channel = Records()
        connection, _ = connection_of(channel)
        asking = asyncio.create_task(connection.ask(b"?", lambda _: 40)) if asks else None
        await asyncio.sleep(0)
        comes(connection, *cut(answer, size))
        assert isinstance(connection.ended.result(), ProtocolError) and said in str(connection.ended.result())
        if asking is not None:
            with pytest.raises(ProtocolError, match=said):
                await asking

    run(work)


@pytest.mark.parametrize("inside", [HTTP, ALERT])
def test_only_the_first_bytes_tell_who_answers(inside: bytes) -> None:
    """Later ones are what somebody has stored."""

    async def work() -> None:
        channel = Records()
        connection, _ = connection_of(channel)
        data = b"AAAAAAA" + inside
        comes(connection, b"AAAAAAA", inside)
        assert not connection.ended.done() and channel.got == data[: len(data) - len(data) % RECORD]

    run(work)


def size_of(answer: memoryview) -> int:
    """Its second byte says how much comes behind it."""
    return 2 + answer[1] if len(answer) >= 2 else 2


@pytest.mark.parametrize("more", [0, 20])
@pytest.mark.parametrize("size", [1, 2, 3, 22, 64])
def test_what_is_asked_for_first_is_the_askers_and_no_records(more: int, size: int) -> None:
    async def work() -> None:
        channel = Records()
        connection, transport = connection_of(channel)
        asking = asyncio.create_task(connection.ask(b"who?", size_of))
        await asyncio.sleep(0)
        answer = b"A" + bytes([more]) + b"x" * more
        comes(connection, *cut(answer, size))
        assert await asking == answer and transport.written == [b"who?"]
        comes(connection, *cut(b"1234567" * 3, size))
        assert channel.got == b"1234567" * 3 and not connection.ended.done()

    run(work)


@pytest.mark.parametrize(
    "pieces", [[b"A\0B"], [b"A\0", b"B\0"], [b"A\1xB"], [b"A\1", b"xB"], [b"A\1x", b"B\1xB"]]
)
def test_nothing_comes_behind_an_answer(pieces: list[bytes]) -> None:
    """Nothing else was asked for yet: what comes is no answer to what is sent next."""

    async def work() -> None:
        channel = Records()
        connection, _ = connection_of(channel)
        asking = asyncio.create_task(connection.ask(b"who?", size_of))
        await asyncio.sleep(0)
        comes(connection, *pieces)
        assert isinstance(connection.ended.result(), ProtocolError) and not channel.got
        await asyncio.wait([asking])
        assert asking.exception() is None or isinstance(asking.exception(), ProtocolError)

    run(work)


ENDS: dict[str, tuple[Callable[[_Connection], None], type[Exception]]] = {
    "closed": (lambda one: one.eof_received(), ConnectionLostError),
    "lost": (lambda one: one.connection_lost(None), ConnectionLostError),
    "reset": (lambda one: one.connection_lost(OSError(errno.ECONNRESET, "reset")), OSError),
    "nonsense": (lambda one: one.end(ProtocolError("nonsense")), ProtocolError),
    "fault": (lambda one: one.end(ZeroDivisionError()), ZeroDivisionError),
}


@pytest.mark.parametrize("second", ENDS)
@pytest.mark.parametrize("first", ENDS)
def test_the_first_end_is_why_and_nothing_goes_on(first: str, second: str) -> None:
    """Neither is anything taken that comes then, nor sent what there is."""

    async def work() -> None:
        channel = Records()
        connection, transport = connection_of(channel)
        asking = asyncio.create_task(connection.ask(b"who?", lambda _: 40))
        await asyncio.sleep(0)
        for name in (first, second):
            ENDS[name][0](connection)
        with pytest.raises(ENDS[first][1]):
            await asking
        channel._connection, channel.queue = connection, [b"data"]
        comes(connection, b"1234567")
        channel._send()
        connection.resume_writing()
        assert not channel.got and transport.written == [b"who?"] and channel.queue == [b"data"]
        ended = await channel._talk(connection)
        expected = ConnectionLostError if issubclass(ENDS[first][1], OSError) else ENDS[first][1]
        assert type(ended) is expected and isinstance(ended, PeerError) == (first != "fault")
        assert channel._connection is None and transport.aborted == 1

    run(work)


def test_what_a_full_connection_does_not_take_waits_for_it() -> None:
    """For that one: another one that takes more, which is not used any more, has nothing to do with it."""

    async def work() -> None:
        channel = Records()
        (connection, transport), (before, old) = connection_of(channel), connection_of(channel)
        channel._connection, channel.queue = connection, [b"a", b"b", b"c"]
        connection.pause_writing()
        channel._send()
        before.resume_writing()
        assert transport.written == old.written == []
        connection.resume_writing()
        assert transport.written == [b"a", b"b", b"c"] and old.written == []

    run(work)
