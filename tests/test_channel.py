"""One connection of the client: what it takes for an answer, and how it tries again when it can not connect."""

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_server import Model, build_frame, build_request
from test_get_channel import Unconnected as Gets
from test_put_channel import Unconnected as Puts
from test_put_channel import frames, turn

from ingest import limits, mac, ticket
from ingest.client.channel import Channel
from ingest.client.put_channel import Batch
from ingest.client.range_reader import RangeReader
from ingest.errors import ConnectionLostError, ForeignStoreError, IngestError, RefusedError
from ingest.limits import ACK_SIZE, DATA_SIZE, FRAME_SIZE, RUN_HEADER_SIZE
from ingest.status import Status

KEY = bytes(range(32))
FIRST = ticket.parse("AAAA")
LONG_AGO = 1.0
FAILURES = [ForeignStoreError, RefusedError, ConnectionLostError, ZeroDivisionError]


def heard(channel: Channel, data: bytes) -> bool:
    """Whether the channel takes that for an answer, for which the server is not silent."""
    channel._answered_at, channel._progress = LONG_AGO, False
    channel.received(memoryview(bytearray(data)))
    assert channel._progress == (channel._answered_at > LONG_AGO)
    return channel._progress


@pytest.mark.parametrize(
    "status", [Status.SAVED, Status.CONFLICT, Status.BUSY, Status.ERROR, Status.BAD_CHECKSUM]
)
def test_each_ack_is_an_answer(status: Status) -> None:
    """Else a connection on which much is under way would be ended as a silent one. A part of an ack is none."""

    async def work() -> None:
        channel = Puts()
        await channel.add(FIRST, frames(FIRST, 5), Batch(5))
        channel.take()
        acks = b"".join(ticket.index_to_wire(FIRST + i) + bytes([status]) for i in range(5))
        assert not heard(channel, acks[: ACK_SIZE - 1])
        assert heard(channel, acks[:ACK_SIZE])
        assert heard(channel, acks[ACK_SIZE : 3 * ACK_SIZE + 4])
        assert not heard(channel, acks[3 * ACK_SIZE :][:4])
        assert heard(channel, acks[3 * ACK_SIZE :])
        assert not heard(channel, b"")

    asyncio.run(work())


def test_each_part_of_a_reply_is_an_answer_until_the_server_has_refused() -> None:
    """A reply may be long in coming. What comes behind a refusal is none: a server that does not hang up would be waited for
    as long as it sends something."""
    model = Model([KEY])
    model.frame(build_frame(KEY, FIRST, b"data"))

    async def work() -> None:
        channel = Gets()
        request = build_request(KEY, FIRST, 1)
        calls = []
        for _ in range(2):
            reader = RangeReader((mac.derive(KEY).put,), FIRST, memoryview(bytearray(DATA_SIZE)))
            calls.append(asyncio.create_task(channel.fetch(request, range(FIRST, FIRST + 1), reader)))
        await asyncio.sleep(0)
        channel.take()
        reply = model.request(request)[0]
        assert heard(channel, reply[:5])
        assert heard(channel, reply[:RUN_HEADER_SIZE])
        assert heard(channel, reply[RUN_HEADER_SIZE : RUN_HEADER_SIZE + 100])
        assert heard(channel, reply[RUN_HEADER_SIZE:][:FRAME_SIZE])
        assert heard(channel, ticket.index_to_wire(FIRST) + bytes([Status.BAD_CHECKSUM]) + bytes(7))
        assert not heard(channel, b"and something else")
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(result) for result in results] == [type(None), RefusedError]

    asyncio.run(work())


class Outage(Puts):
    """Fails to connect with one of ``failures`` after the other, and connects then. ``waited``: seconds before each try."""

    def __init__(self, failures: list[Exception]) -> None:
        super().__init__(retry_for=1e9)
        self.failures = list(failures)
        self.tries = 0
        self.waited: list[float] = []
        self.given_up: list[IngestError] = []

    async def _connect(self):  # type: ignore[no-untyped-def]
        self.tries += 1
        if self.failures:
            raise self.failures.pop(0)
        return

    def give_up(self, error: IngestError) -> None:
        self.given_up.append(error)

    async def again(self, monkeypatch: pytest.MonkeyPatch, share: float = 1.0) -> None:
        """``share``: of the back-off, as chance has it."""
        real = asyncio.sleep

        async def sleep(seconds: float) -> None:
            self.waited.append(seconds)
            await real(0)

        await self.add(FIRST, frames(FIRST, 1), Batch(1))
        with monkeypatch.context() as patch:
            patch.setattr(random, "uniform", lambda least, most: least + share * (most - least))
            patch.setattr(asyncio, "sleep", sleep)
            await self._connect_again(ConnectionLostError("gone"))


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("failures", [0, 1, 2, 5, 20])
def test_tries_come_at_once_and_then_ever_later(
    monkeypatch: pytest.MonkeyPatch, failures: int, share: float
) -> None:
    """Up to a limit, and not those of all clients together: a server that comes back would be met by all of them."""
    channel = Outage([ConnectionLostError("refused")] * failures)
    asyncio.run(channel.again(monkeypatch, share))
    expected = [0.0]
    for doubled in range(failures):
        expected.append(min(limits.RETRY_DELAY_MIN_S * 2**doubled, limits.RETRY_DELAY_MAX_S))
    assert channel.waited == pytest.approx([(0.5 + share / 2) * one for one in expected])
    assert channel.tries == failures + 1 and not channel.given_up


@settings(deadline=None, max_examples=40)
@given(kinds=st.lists(st.sampled_from(FAILURES), max_size=6))
def test_what_each_failure_to_connect_means(kinds: list[type[Exception]]) -> None:
    """Another store, or a key that is not accepted, ends the calls at once; anything else is tried again. Whose store it was
    the last time is known, and forgotten when it is the right one."""
    failures = [kind("A", Status.BAD_CHECKSUM) if kind is RefusedError else kind("failed") for kind in kinds]
    channel = Outage(failures)
    met: list[bool] = []
    connect = channel._connect

    async def watched():  # type: ignore[no-untyped-def]
        met.append(channel.met_foreign)
        return await connect()

    channel._connect = watched  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as monkeypatch:
        asyncio.run(channel.again(monkeypatch))
    assert channel.given_up == [one for one in failures if isinstance(one, (ForeignStoreError, RefusedError))]
    expected = False
    for kind, before in zip([*kinds, None], met, strict=True):
        assert before == expected
        if kind in (ForeignStoreError, RefusedError):
            expected = kind is ForeignStoreError
    assert not channel.met_foreign


def test_it_waits_until_something_is_to_be_sent() -> None:
    """An idle client leaves a server alone that has gone."""

    async def work() -> None:
        channel = Outage([])
        again = asyncio.create_task(channel._connect_again(ConnectionLostError("gone")))
        channel._wake.set()  # of what was answered since
        await turn()
        assert not again.done() and not channel.tries
        await channel.add(FIRST, frames(FIRST, 1), Batch(1))
        await again
        assert channel.tries == 1

    asyncio.run(work())
