"""Puts of one client connection without a socket: the test is the network and the server, as unkind as both may be."""

import asyncio
import random
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest import limits, ticket
from ingest.client import put_channel
from ingest.client._seal import seal
from ingest.client.channel import _Connection
from ingest.client.put_channel import Batch, PutChannel, _Span, _Spans
from ingest.errors import ConnectionLostError, ProtocolError
from ingest.limits import FRAME_SIZE
from ingest.status import RETRIED, Status

KEY = bytes(range(32))
FIRST = ticket.parse("AAAA")


class Unconnected(PutChannel):
    """Takes frames as if it were open."""

    def __init__(self, retry_for: float = 60) -> None:
        super().__init__(("127.0.0.1", 1), 5, retry_for)

    def check_open(self) -> None:
        pass


class Wire:
    """What lies between the channel and a server: frames in flight, and bytes of acks that came in pieces."""

    def __init__(self, channel: PutChannel) -> None:
        self.channel = channel
        self.in_flight: list[bytes] = []
        self.sent: Counter[int] = Counter()
        self._acks = b""

    def take(self) -> None:
        data = bytes(self.channel.take())
        frames = [data[i : i + FRAME_SIZE] for i in range(0, len(data), FRAME_SIZE)]
        assert all(len(frame) == FRAME_SIZE for frame in frames)
        self.in_flight += frames
        self.sent.update(index(frame) for frame in frames)
        assert len({frame[:8] for frame in self.in_flight}) == len(self.in_flight), "one ticket twice"

    def take_all(self) -> None:
        before = -1
        while len(self.in_flight) > before:
            before = len(self.in_flight)
            self.take()

    def ack(self, frames: list[bytes], statuses: list[Status], cut: int = 0) -> None:
        """All of it but ``cut`` bytes, which come with the next ones."""
        for frame in frames:
            self.in_flight.remove(frame)
        self._acks += b"".join(frame[:8] + bytes([s]) for frame, s in zip(frames, statuses, strict=True))
        now, later = self._acks[: len(self._acks) - cut], self._acks[len(self._acks) - cut :]
        taken = self.channel.received(memoryview(now))
        self._acks = now[taken:] + later

    def flush(self) -> None:
        self.ack([], [])

    def disconnect(self) -> None:
        self.in_flight.clear()
        self._acks = b""
        self.channel.disconnected()


def index(frame: bytes) -> int:
    return ticket.index_from_wire(frame[:8])


def frames(first: int, count: int, what: bytes = b"data") -> bytes:
    return seal(KEY, first, what.ljust(1458, b".") * count)


async def turn() -> None:
    """Until everybody who can go on did."""
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.fixture
def no_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RETRY_DELAY_MIN_S", 0.0)


class TestSpans:
    @given(st.data())
    def test_they_are_a_set_of_tickets(self, data: st.DataObject) -> None:
        spans, model = _Spans(), set[int]()
        for _ in range(data.draw(st.integers(1, 25))):
            first, count = data.draw(st.integers(0, 60)), data.draw(st.integers(1, 15))
            free = spans.free(first, count)
            assert free == next((i for i in range(count) if first + i in model), count)
            span = spans.find(first)
            assert (span is not None) == (first in model)
            if span is not None:
                count = min(count, span.stop - first)
                spans.remove(span, first, count)
                model -= set(range(first, first + count))
            else:
                spans.add(_Span(first, free, memoryview(frames(first, free)), Batch(1)))
                model |= set(range(first, first + free))
            assert spans.frames == len(model)
            here = [i for span in spans for i in range(span.first, span.stop)]
            assert here == sorted(model)
            for span in spans:
                assert bytes(span.frames) == frames(span.first, span.count)

    def test_a_part_of_one_is_in_the_same_state(self) -> None:
        """Else it would be tried for longer, or be told as not stored, than the whole of it."""
        span = _Span(FIRST, 4, memoryview(frames(FIRST, 4)), Batch(4))
        own = {"first", "count", "frames", "timer"}  # what is not lost with it, or is of that span alone
        state = {name: object() for name in _Span.__slots__ if name not in own}
        for name, value in state.items():
            setattr(span, name, value)
        part = span.cut(FIRST + 1, 2)
        assert {name: getattr(part, name) for name in state} == state
        assert (part.first, part.count, bytes(part.frames)) == (FIRST + 1, 2, frames(FIRST + 1, 2))
        assert part.timer is None


class TestAnyOrder:
    @settings(deadline=None, max_examples=60)
    @given(seed=st.integers(0, 2**32))
    def test_each_frame_gets_its_answer(self, seed: int) -> None:
        chance = random.Random(seed)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(limits, "RETRY_DELAY_MIN_S", 0.0)
            patch.setattr(limits, "SEND_FRAMES", chance.choice([1, 7, 176]))
            asyncio.run(self._talk(chance))

    async def _talk(self, chance: random.Random) -> None:
        """Overlapping batches; acks in any order and any pieces, of any status; connections that break."""
        channel = Unconnected()
        wire = Wire(channel)
        batches = []
        for _ in range(chance.randint(1, 5)):
            window = chance.choice([1, 3, 20, 65_536])
            batches.append((Batch(window), FIRST + chance.randrange(40), chance.randint(1, 60)))
        # What one batch puts twice, or two put, goes one after the other: each gets a last answer of its own.
        last: dict[bytes, Status] = {}
        unclear = set[
            bytes
        ]()  # answered ERROR, or under way when a connection broke: the last answer is of one try only
        adding = [
            asyncio.create_task(channel.add(first, frames(first, count, b"batch %d" % i), batch))
            for i, (batch, first, count) in enumerate(batches)
        ]
        breaks = chance.randint(0, 4)
        while any(batch.left for batch, _, _ in batches) or not all(task.done() for task in adding):
            await turn()
            wire.take()
            for batch, _, _ in batches:
                assert batch.left <= batch.window
            if breaks and chance.random() < 0.1:
                breaks -= 1
                unclear |= {frame[:8] + frame[16:24] for frame in wire.in_flight}
                wire.disconnect()
            elif wire.in_flight:
                some = chance.sample(wire.in_flight, chance.randint(1, len(wire.in_flight)))
                if chance.random() < 0.5:
                    some.sort(key=index)
                finals = (Status.SAVED, Status.CONFLICT, Status.DELETED, Status.NO_SPACE)
                status = chance.choice([*finals, *RETRIED])
                statuses = [status if chance.random() < 0.8 else Status.SAVED for _ in some]
                wire.ack(some, statuses, cut=chance.choice([0, 0, 5]))
                wire.flush()
                for frame, status in zip(some, statuses, strict=True):
                    which = frame[:8] + frame[16:24]
                    open_ = which in unclear and status is Status.NO_SPACE
                    last[which] = Status.ERROR if open_ else status
                    unclear |= {which} if status is Status.ERROR else set()
        await asyncio.gather(*adding)
        for i, (batch, first, count) in enumerate(batches):
            await batch.wait()
            answers = {
                ticket.format(j): last[ticket.index_to_wire(j) + b"batch %d." % i]
                for j in range(first, first + count)
            }
            assert batch.refused == {name: s for name, s in answers.items() if s is not Status.SAVED}
        assert not channel.in_flight()


CONNECTIONS: dict[str, tuple[Status, ...]] = {
    "nothing": (),
    "good": (Status.SAVED,),
    "bad": (Status.BAD_CHECKSUM,),
    "bad, then good": (Status.BAD_TICKET, Status.CONFLICT),
    "good, then bad": (Status.DELETED, Status.BAD_CHECKSUM),
    "busy": (Status.BUSY,),
    "bad twice": (Status.BAD_TICKET, Status.BAD_CHECKSUM),
}


@pytest.mark.parametrize("first", CONNECTIONS)
def test_only_what_a_connection_said_itself_counts_at_its_end(first: str) -> None:
    """One that took a frame for bad, and none for good, fails all; nothing of it, or of an earlier one, counts for the next.
    Whatever waits for its back-off is sent by its timer alone."""

    async def work(kinds: tuple[str, ...]) -> None:
        channel, batch = Unconnected(), Batch(1000)
        wire = Wire(channel)
        await channel.add(FIRST, frames(FIRST, 20), batch)
        refused: dict[str, Status] = {}
        waiting, left = 0, 20
        for kind in kinds:
            wire.take_all()
            assert len(wire.in_flight) == left - waiting, kinds
            statuses = [*CONNECTIONS[kind]][: len(wire.in_flight)]
            some = wire.in_flight[: len(statuses)]
            wire.ack(some, statuses)
            for frame, status in zip(some, statuses, strict=True):
                waiting += status in RETRIED
                left -= status not in RETRIED
                if status not in (*RETRIED, Status.SAVED):
                    refused[ticket.format(index(frame))] = status
            wire.disconnect()
            if kind.startswith("bad") and kind != "bad, then good" and left:
                left = waiting = 0
                assert batch.left == 0 and set(batch.refused.values()) >= {statuses[-1]}, kinds
                break
            assert batch.left == left and batch.refused == refused, kinds
        wire.take_all()
        assert len(wire.in_flight) == left - waiting, kinds
        assert not waiting or channel._later == waiting, kinds
        channel.give_up(ConnectionLostError("the test is over"))

    async def all_of_them() -> None:
        for second in CONNECTIONS:
            for third in CONNECTIONS:
                await work((first, second, third))

    asyncio.run(all_of_them())


class TestRuns:
    def test_only_what_was_not_acked_is_sent_again(self, no_delay: None) -> None:
        async def work() -> None:
            channel, batch = Unconnected(), Batch(1000)
            wire = Wire(channel)
            await channel.add(FIRST, frames(FIRST, 500), batch)
            wire.take_all()
            acked = wire.in_flight[3:5] + wire.in_flight[100:400] + wire.in_flight[499:]
            wire.ack(acked, [Status.SAVED] * len(acked))
            wire.disconnect()
            wire.take_all()
            assert len(wire.in_flight) == 500 - len(acked)
            assert all(wire.sent[index(frame)] == 1 for frame in acked)
            wire.ack(wire.in_flight[:], [Status.SAVED] * len(wire.in_flight))
            await batch.wait()
            assert batch.refused == {}

        asyncio.run(work())

    def test_only_what_is_busy_is_sent_again(self, no_delay: None) -> None:
        async def work() -> None:
            channel, batch = Unconnected(), Batch(1000)
            wire = Wire(channel)
            await channel.add(FIRST, frames(FIRST, 300), batch)
            wire.take_all()
            sent = wire.in_flight[:]
            wire.ack(sent, [Status.BUSY if 10 <= i < 20 else Status.SAVED for i in range(300)])
            assert not channel.has_work() and batch.left == 10
            while not channel.has_work():
                await turn()
            wire.take_all()
            assert wire.in_flight == sent[10:20]
            wire.ack(sent[10:20], [Status.SAVED] * 10)
            await batch.wait()

        asyncio.run(work())

    def test_a_ticket_waits_for_itself_alone(self) -> None:
        """Of two runs that overlap the second one is sent as far as the first one is settled."""

        async def work() -> None:
            channel, one, two = Unconnected(), Batch(1000), Batch(1000)
            wire = Wire(channel)
            await channel.add(FIRST + 10, frames(FIRST + 10, 10), one)
            wire.take()
            first = wire.in_flight[:]
            adding = asyncio.create_task(channel.add(FIRST, frames(FIRST, 30, b"other"), two))
            await turn()
            wire.take()
            assert [index(frame) - FIRST for frame in wire.in_flight[10:]] == list(range(10))
            wire.ack(first[:4], [Status.SAVED] * 4)
            await turn()
            wire.take()
            assert [index(frame) - FIRST for frame in wire.in_flight[-4:]] == [10, 11, 12, 13]
            wire.ack(first[4:], [Status.SAVED] * 6)
            await turn()
            wire.take()
            assert one.left == 0 and two.left == 30 and adding.done()
            wire.ack(wire.in_flight[:], [Status.CONFLICT] * 30)
            assert set(two.refused.values()) == {Status.CONFLICT} and len(two.refused) == 30

        asyncio.run(work())

    def test_the_channel_bounds_all_batches_together(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "IN_FLIGHT_MAX", 50)

        async def work() -> None:
            channel = Unconnected()
            wire = Wire(channel)
            adding = [
                asyncio.create_task(channel.add(FIRST + 100 * i, frames(FIRST + 100 * i, 40), Batch(40)))
                for i in range(3)
            ]
            answered = 0
            while answered < 120:
                await turn()
                wire.take_all()
                assert 0 < len(wire.in_flight) <= 50
                answered += len(wire.in_flight)
                wire.ack(wire.in_flight[:], [Status.SAVED] * len(wire.in_flight))
            await asyncio.gather(*adding)

        asyncio.run(work())

    def test_large_batches_leave_room_for_small_ones(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "IN_FLIGHT_MAX", 1600)

        async def work() -> None:
            channel = Unconnected()
            wire = Wire(channel)
            large = [
                asyncio.create_task(
                    channel.add(FIRST + 2000 * i, frames(FIRST + 2000 * i, 1000), Batch(1000))
                )
                for i in range(3)
            ]
            await turn()
            wire.take_all()
            assert len(wire.in_flight) == 1500
            await channel.add(FIRST + 10_000, frames(FIRST + 10_000, 1), Batch(1))
            while not all(task.done() for task in large) or wire.in_flight:
                wire.take_all()
                wire.ack(wire.in_flight[:100], [Status.SAVED] * len(wire.in_flight[:100]))
                await turn()
            assert wire.sent.total() == 3001

        asyncio.run(work())

    @pytest.mark.parametrize("status", [Status.NO_SPACE, Status.BUSY])
    @pytest.mark.parametrize("before", ["ERROR", "a broken connection", "BUSY", "nothing"])
    def test_what_an_earlier_try_may_have_stored_is_not_told_as_not_stored(
        self, no_delay: None, monkeypatch: pytest.MonkeyPatch, before: str, status: Status
    ) -> None:
        async def work() -> None:
            channel, batch = Unconnected(), Batch(10)
            wire = Wire(channel)
            await channel.add(FIRST, frames(FIRST, 5), batch)
            wire.take()
            if before == "a broken connection":
                wire.disconnect()
            elif before != "nothing":
                wire.ack(wire.in_flight[1:3], [Status[before]] * 2)
            await turn()
            wire.take_all()
            monkeypatch.setattr(limits, "RETRY_DELAY_MAX_S", 0.0)
            channel.retry_for = -1  # the next answer is the last one
            for span in channel._spans:
                span.deadline = span.deadline and 0.0
            wire.ack(sorted(wire.in_flight, key=index), [status] * 5)
            which = {"ERROR": (1, 2), "a broken connection": range(5)}.get(before, ())
            assert batch.left == 0
            assert batch.refused == {
                ticket.format(FIRST + i): Status.ERROR if i in which else status for i in range(5)
            }

        asyncio.run(work())

    def test_the_time_of_retries_ends(self) -> None:
        async def work() -> None:
            channel, batch = Unconnected(retry_for=0), Batch(10)
            wire = Wire(channel)
            await channel.add(FIRST, frames(FIRST, 5), batch)
            wire.take()
            wire.ack(wire.in_flight[:], [Status.ERROR] * 5)
            assert set(batch.refused.values()) == {Status.ERROR} and batch.left == 0

        asyncio.run(work())


@pytest.mark.parametrize("end", ["given up", "the key is refused"])
def test_what_waited_for_its_back_off_is_gone_with_the_others(no_delay: None, end: str) -> None:
    """It is not sent for a batch that has failed, and does not hide what comes next."""

    async def work() -> None:
        channel, failed, following = Unconnected(), Batch(10), Batch(10)
        wire = Wire(channel)
        await channel.add(FIRST, frames(FIRST, 5), failed)
        wire.take()
        wire.ack(wire.in_flight[1:3], [Status.ERROR, Status.BUSY])
        wire.disconnect()
        if end == "given up":
            channel.give_up(ConnectionLostError("gone"))
        else:
            wire.take_all()
            wire.ack(wire.in_flight[:1], [Status.BAD_CHECKSUM])
            wire.disconnect()
            assert set(failed.refused.values()) == {Status.BAD_CHECKSUM}
        assert failed.left == 0 and not channel.has_work()
        await turn()
        assert not channel.take() and not channel.has_work()
        await channel.add(FIRST + 2, frames(FIRST + 2, 2), following)
        assert channel.has_work() and not channel.in_flight()
        wire.take_all()
        assert [index(frame) for frame in wire.in_flight] == [FIRST + 2, FIRST + 3] and channel.in_flight()
        wire.ack(wire.in_flight[:], [Status.SAVED] * 2)
        await following.wait()
        assert following.refused == {} and not channel.has_work() and not channel.in_flight()

    asyncio.run(work())


def wrong_acks() -> Iterator[tuple[bytes, str]]:
    saved = bytes([Status.SAVED])
    yield ticket.index_to_wire(FIRST + 5) + saved, "AAAF"  # acked before
    yield ticket.index_to_wire(FIRST + 200) + saved, "not sent"  # waits to be sent
    yield ticket.index_to_wire(FIRST - 1) + saved, "not sent"
    yield b"aaaa\0\0\0\0" + saved, "aaaa"
    yield ticket.index_to_wire(FIRST) + b"\x0a", "status 10"
    yield ticket.index_to_wire(FIRST) + bytes([Status.MISSING]), "status 8"


@pytest.mark.parametrize(("ack", "what"), list(wrong_acks()))
def test_wrong_acks(ack: bytes, what: str) -> None:
    async def work() -> None:
        channel, batch = Unconnected(), Batch(1000)
        wire = Wire(channel)
        await channel.add(FIRST, frames(FIRST, 300), batch)
        wire.take()
        assert len(wire.in_flight) == limits.SEND_FRAMES
        wire.ack(wire.in_flight[5:6], [Status.SAVED])
        good = ticket.index_to_wire(FIRST + 20) + bytes([Status.SAVED])
        with pytest.raises(ProtocolError, match=what):
            channel.received(memoryview(good + ack))
        assert batch.left == 298  # the good one before it counts
        channel.disconnected()
        channel.give_up(ProtocolError("what the server sent"))
        with pytest.raises(ProtocolError):
            await batch.wait()
        assert not channel.has_work()

    asyncio.run(work())


def test_giving_up_fails_those_who_add_and_those_who_wait() -> None:
    async def work() -> None:
        channel, batch = Unconnected(), Batch(10)
        adding = asyncio.create_task(channel.add(FIRST, frames(FIRST, 30), batch))
        await turn()
        channel.give_up(ConnectionLostError("gone"))
        for waiting in (adding, batch.wait()):
            with pytest.raises(ConnectionLostError, match="gone"):
                await waiting
        assert batch.left == 0

    asyncio.run(work())


class Full:
    """A transport whose buffer is full after each write."""

    def __init__(self, connection: _Connection) -> None:
        self.connection = connection
        self.sent: list[int] = []  # frames of each write

    def write(self, data: bytes | memoryview) -> None:
        assert self.connection.writable
        self.sent.append(len(data) // FRAME_SIZE)
        self.connection.pause_writing()


def test_no_more_is_sent_than_the_connection_takes() -> None:
    """What does not go out would lie in the transport's buffer, all that may be in flight: the client holds it, and sends
    it when there is room again, of this connection and not of one before."""

    async def work() -> None:
        channel = Unconnected()
        before, connection = _Connection(channel), _Connection(channel)
        before.transport, connection.transport = Full(before), Full(connection)
        channel._connection = connection
        await channel.add(FIRST, frames(FIRST, 5 * limits.SEND_FRAMES), Batch(limits.IN_FLIGHT_MAX))
        sent = connection.transport.sent
        await turn()
        for times in range(1, 6):
            channel.wake()
            await turn()
            before.resume_writing()
            assert sent == [limits.SEND_FRAMES] * times
            assert channel._sent == times * limits.SEND_FRAMES
            connection.resume_writing()  # nothing else wakes it
            assert len(sent) == min(times + 1, 5)
        assert sent == [limits.SEND_FRAMES] * 5 and before.transport.sent == []
        await channel.add(FIRST + 10_000, frames(FIRST + 10_000, 1), Batch(1))
        await turn()
        assert sent[5:] == [1]

    asyncio.run(work())


@pytest.mark.parametrize("of", ["its batch", "the channel"])
@pytest.mark.parametrize("between", ["nothing", "another cut", "a broken connection"])
@pytest.mark.parametrize("status", RETRIED)
def test_the_time_of_retries_is_counted_from_the_first_one(
    no_delay: None, monkeypatch: pytest.MonkeyPatch, status: Status, between: str, of: str
) -> None:
    """Not from the last: a disk that fails for good would be tried for ever. Nor anew by what happens to others."""
    clock = [1000.0]
    monkeypatch.setattr(put_channel, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    async def work() -> None:
        channel = Unconnected(retry_for=10 if of == "the channel" else 1e9)
        batch = Batch(10, retry_for=None if of == "the channel" else 10)
        wire = Wire(channel)
        await channel.add(FIRST, frames(FIRST, 5), batch)
        for late in (0, 4, 8, 12):
            clock[0] = 1000.0 + late
            wire.take_all()
            assert batch.left == 5 and not batch.refused
            if between == "another cut":
                wire.ack(wire.in_flight[late // 4 : late // 4 + 1], [status])
            if between == "a broken connection":
                wire.disconnect()
                wire.take_all()
            wire.ack(wire.in_flight[:], [status] * len(wire.in_flight))
            for _ in range(20):
                await turn()
        assert batch.left == 0 and set(batch.refused.values()) <= {status, Status.ERROR}
        assert not channel.has_work() and not channel._later

    asyncio.run(work())


@pytest.mark.parametrize("error", [ConnectionLostError("silent"), ProtocolError("wrong")], ids=str)
def test_what_comes_when_a_connection_is_done_with_is_not_looked_at(error: Exception) -> None:
    """An answer behind a wrong one proves nothing, and what is sent again is not answered before it is."""

    async def work() -> None:
        channel, batch = Unconnected(), Batch(10)
        wire, connection = Wire(channel), _Connection(channel)
        await channel.add(FIRST, frames(FIRST, 3), batch)
        wire.take_all()
        acks = b"".join(frame[:8] + bytes([Status.SAVED]) for frame in wire.in_flight)
        for part in (acks[:9], acks[9:13]):
            connection.get_buffer(-1)[: len(part)] = part
            connection.buffer_updated(len(part))
        assert batch.left == 2
        connection.end(error)
        connection.get_buffer(-1)[: len(acks[13:])] = acks[13:]
        connection.buffer_updated(len(acks[13:]))
        assert batch.left == 2 and connection.ended.result() is error
        wire.disconnect()
        wire.take_all()
        assert len(wire.in_flight) == 2

    asyncio.run(work())


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_call_that_is_cancelled_while_it_waits_for_room_leaves_the_others(which: int) -> None:
    """They wait for the same room."""

    async def work() -> None:
        channel, batch = Unconnected(), Batch(10)
        wire = Wire(channel)
        await channel.add(FIRST, frames(FIRST, 10), batch)
        adding = [
            asyncio.create_task(channel.add(FIRST + 10 * i, frames(FIRST + 10 * i, 2), batch))
            for i in (1, 2, 3)
        ]
        await turn()
        adding[which].cancel()
        await turn()
        assert [task.done() for task in adding] == [i == which for i in range(3)]
        wire.take_all()
        wire.ack(wire.in_flight[:], [Status.SAVED] * 10)
        await asyncio.gather(*adding[:which], *adding[which + 1 :])
        wire.take_all()
        wire.ack(wire.in_flight[:], [Status.SAVED] * 4)
        assert not channel.has_work() and batch.left == 0

    asyncio.run(work())


@pytest.mark.parametrize(
    "end", ["answers", "answers while nobody waits", "an error", "one while nobody waits"]
)
@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_wait_that_was_cancelled_may_begin_again(times: int, end: str) -> None:
    """What is answered meanwhile is not lost, and what was refused can be seen at any time."""

    async def work() -> None:
        channel, batch = Unconnected(), Batch(10)
        wire = Wire(channel)
        for part in (0, 1):  # of two buffers: an outage is told for each
            await channel.add(FIRST + 3 * part, frames(FIRST + 3 * part, 3 - part), batch)
        wire.take_all()
        for answered in range(1, times + 1):
            waiting = asyncio.create_task(batch.wait())
            await turn()
            waiting.cancel()
            await turn()
            wire.ack(wire.in_flight[:1], [Status.CONFLICT])
            assert list(batch.refused.values()) == [Status.CONFLICT] * answered
        waits = [] if "nobody" in end else [asyncio.create_task(batch.wait())]
        await turn()
        assert batch.left == 5 - times and not any(one.done() for one in waits)
        refused = dict(batch.refused)
        if "answers" in end:
            wire.ack(wire.in_flight[:], [Status.SAVED] * (5 - times))
            for waiting in (*waits, batch.wait(), batch.wait()):
                await waiting
        else:
            channel.give_up(ConnectionLostError("the first"))
            for waiting in (*waits, batch.wait(), batch.wait()):
                with pytest.raises(ConnectionLostError, match="the first"):
                    await waiting
        assert batch.refused == refused and batch.left == 0

    asyncio.run(work())
