"""Gets of one client connection without a socket: replies cut anywhere, and broken off anywhere."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_server import Model, build_frame, build_request

from ingest import limits, mac, ticket
from ingest.client.get_channel import GetChannel
from ingest.client.range_reader import RangeReader, StoredRun
from ingest.errors import ProtocolError, RefusedError
from ingest.limits import DATA_SIZE
from ingest.status import Status

KEY = bytes(range(32))
PUT_KEYS = (mac.derive(KEY).put,)
FIRST = ticket.parse("AAAA")


class Unconnected(GetChannel):
    """Takes requests as if it were open."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 1), 5, 60)

    def check_open(self) -> None:
        pass


def feed(channel: GetChannel, data: bytes, cuts: list[int]) -> None:
    """In pieces that end at ``cuts``; what is not taken comes again before the next one."""
    held = b""
    for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True):
        held += data[start:stop]
        if held:
            held = held[channel.received(memoryview(held)) :]


def stored(saved: set[int], deleted: set[int]) -> Model:
    model = Model([KEY])
    for i in saved:
        model.frame(build_frame(KEY, FIRST + i, b"chunk %d" % i))
    model.deleted |= {FIRST + i for i in deleted - saved}
    return model


@settings(deadline=None, max_examples=60)
@given(
    saved=st.sets(st.integers(0, 19)),
    deleted=st.sets(st.integers(0, 19)),
    cuts=st.lists(st.floats(0, 1), max_size=12),
    broken=st.none() | st.floats(0, 1, exclude_max=True),
)
def test_replies_in_any_pieces(
    saved: set[int], deleted: set[int], cuts: list[float], broken: float | None
) -> None:
    model = stored(saved, deleted)

    async def work() -> None:
        channel = Unconnected()
        parts = [range(FIRST, FIRST + 12), range(FIRST + 12, FIRST + 20)]
        data = bytearray(20 * DATA_SIZE)
        readers, fetches, replies = [], [], b""
        for part in parts:
            request = build_request(KEY, part.start, len(part))
            at = (part.start - FIRST) * DATA_SIZE
            readers.append(RangeReader(PUT_KEYS, part.start, memoryview(data)[at:]))
            fetches.append(asyncio.create_task(channel.fetch(request, part, readers[-1])))
            replies += model.request(request)[0]
        await asyncio.sleep(0)
        assert channel.take() == b"".join(build_request(KEY, part.start, len(part)) for part in parts)
        if broken is not None:  # inside of the first reply or of the second, or between them
            got = int(broken * len(replies))
            where = sorted(int(cut * got) for cut in cuts)
            feed(channel, replies[:got], [*where, got])
            channel.disconnected()
            again = channel.take()
            replies = b"".join(model.request(again[i : i + 24])[0] for i in range(0, len(again), 24))
        feed(channel, replies, sorted(int(cut * len(replies)) for cut in cuts))
        await asyncio.gather(*fetches)
        runs = [run for reader in readers for run in reader.runs]
        whole = [(i, run.status) for run in runs for i in range(run.first, run.first + run.count)]
        assert whole == [(i, Status(model.status(i))) for i in range(FIRST, FIRST + 20)]
        assert not any(reader.bad for reader in readers)
        for i in range(20):
            expected = b"chunk %d" % i if i in saved else b""
            assert data[i * DATA_SIZE : (i + 1) * DATA_SIZE] == expected.ljust(DATA_SIZE, b"\0")
        assert not channel.has_work()

    asyncio.run(work())


def test_nobody_reads_for_a_call_that_was_cancelled() -> None:
    model = stored({0, 1}, set())

    async def work() -> None:
        channel = Unconnected()
        request = build_request(KEY, FIRST, 1)
        data = bytearray(2 * DATA_SIZE)
        left = RangeReader(PUT_KEYS, FIRST, memoryview(data))
        kept = RangeReader(PUT_KEYS, FIRST, memoryview(data)[DATA_SIZE:])
        leaving = asyncio.create_task(channel.fetch(request, range(FIRST, FIRST + 1), left))
        keeping = asyncio.create_task(channel.fetch(request, range(FIRST, FIRST + 1), kept))
        await asyncio.sleep(0)
        channel.take()
        leaving.cancel()
        await asyncio.wait([leaving])
        feed(channel, 2 * model.request(request)[0], [100])
        await keeping
        assert left.runs == [] and kept.runs == [StoredRun(FIRST, 1, Status.SAVED)]
        assert data[:DATA_SIZE] == bytes(DATA_SIZE)

    asyncio.run(work())


def test_frames_that_are_not_right_are_named() -> None:
    model = stored(set(range(5)), set())
    model.frames[FIRST + 3] = build_frame(KEY, FIRST + 4, b"of another ticket")
    model.frames[FIRST + 4] = model.frames[FIRST + 4][:-1] + b"\1"

    async def work() -> None:
        channel = Unconnected()
        request = build_request(KEY, FIRST, 5)
        data = bytearray(5 * DATA_SIZE)
        reader = RangeReader(PUT_KEYS, FIRST, memoryview(data))
        fetching = asyncio.create_task(channel.fetch(request, range(FIRST, FIRST + 5), reader))
        await asyncio.sleep(0)
        channel.take()
        feed(channel, model.request(request)[0], [20, 3000])
        await fetching
        assert reader.bad == [FIRST + 3, FIRST + 4]
        assert data[3 * DATA_SIZE :] == bytes(2 * DATA_SIZE)

    asyncio.run(work())


@pytest.mark.parametrize(
    "before", ["nothing", "half a reply", "a refusal", "a refusal and what came behind it"]
)
def test_what_a_connection_left_is_none_of_the_next_one_s(before: str) -> None:
    model = stored({0, 1}, set())

    async def work() -> None:
        channel = Unconnected()
        request = build_request(KEY, FIRST, 2)
        readers = [RangeReader(PUT_KEYS, FIRST, memoryview(bytearray(2 * DATA_SIZE))) for _ in range(2)]
        calls = [
            asyncio.create_task(channel.fetch(request, range(FIRST, FIRST + 2), reader)) for reader in readers
        ]
        await asyncio.sleep(0)
        assert len(channel.take()) == 2 * len(request)
        refusal = ticket.index_to_wire(FIRST) + bytes([Status.BAD_CHECKSUM]) + bytes(7)
        sent = {"nothing": b"", "half a reply": model.request(request)[0][:1000], "a refusal": refusal}
        feed(channel, sent.get(before, refusal + b"bytes"), [])
        assert channel.in_flight()
        channel.disconnected()
        assert not channel.in_flight()
        again = len(channel.take()) // len(request)
        assert again == (1 if "refusal" in before else 2)
        feed(channel, again * model.request(request)[0], [17])
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(result) for result in results] == [
            RefusedError if again == 1 else type(None),
            type(None),
        ]
        assert readers[1].runs == [StoredRun(FIRST, 2, Status.SAVED)]
        assert not channel.has_work() and not channel.in_flight()

    asyncio.run(work())


def test_bytes_that_nobody_asked_for() -> None:
    with pytest.raises(ProtocolError, match="3 bytes"):
        Unconnected().received(memoryview(b"abc"))


@pytest.mark.parametrize("behind", [0, 1, 2])
def test_a_server_that_refused_has_to_hang_up(behind: int) -> None:
    """Nothing is sent to it any more, so whoever asks meanwhile waits: the channel has to watch the connection for silence,
    also when nothing else was under way on it."""

    async def work() -> None:
        channel = Unconnected()
        request = build_request(KEY, FIRST, 1)

        def fetch() -> asyncio.Task[None]:
            reader = RangeReader(PUT_KEYS, FIRST, memoryview(bytearray(DATA_SIZE)))
            return asyncio.create_task(channel.fetch(request, range(FIRST, FIRST + 1), reader))

        calls = [fetch() for _ in range(1 + behind)]
        await asyncio.sleep(0)
        channel.take()
        feed(channel, ticket.index_to_wire(FIRST) + bytes([Status.BAD_CHECKSUM]) + bytes(7), [])
        calls.append(fetch())
        await asyncio.sleep(0)
        assert channel.take() == b"" and channel.in_flight() and channel.has_work()
        channel.disconnected()
        assert not channel.in_flight()
        assert channel.take() == (1 + behind) * request
        feed(channel, (1 + behind) * stored(set(), set()).request(request)[0], [])
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(result) for result in results] == [RefusedError] + (1 + behind) * [type(None)]

    asyncio.run(work())


@pytest.mark.parametrize("sent", [False, True])
def test_what_nobody_waits_for_is_not_asked_for(sent: bool) -> None:
    """Whether it was cancelled before it was sent, or before its connection broke."""

    async def work() -> None:
        channel = Unconnected()
        calls = [
            asyncio.create_task(
                channel.fetch(
                    build_request(KEY, FIRST + i, 1),
                    range(FIRST + i, FIRST + i + 1),
                    RangeReader(PUT_KEYS, FIRST + i, memoryview(bytearray(DATA_SIZE))),
                )
            )
            for i in range(3)
        ]
        await asyncio.sleep(0)
        if sent:
            channel.take()
        calls[1].cancel()
        await asyncio.wait([calls[1]])
        if sent:
            channel.disconnected()
        assert channel.take() == build_request(KEY, FIRST, 1) + build_request(KEY, FIRST + 2, 1)
        channel.give_up(ProtocolError("the test is over"))
        await asyncio.gather(*calls, return_exceptions=True)

    asyncio.run(work())


@pytest.mark.parametrize("how", ["answered", "broken off"])
def test_so_many_are_asked_for_at_a_time_and_no_more(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their replies would come all together, whoever reads them. The others go out in their order, when one is answered,
    also on the next connection."""
    monkeypatch.setattr(limits, "GETS_IN_FLIGHT_MAX", 3)
    model = stored({0, 2, 7}, {5})

    async def work() -> None:
        channel = Unconnected()
        requests = [build_request(KEY, FIRST + i, 1) for i in range(8)]
        calls = []
        for i, request in enumerate(requests):
            reader = RangeReader(PUT_KEYS, FIRST + i, memoryview(bytearray(DATA_SIZE)))
            calls.append(asyncio.create_task(channel.fetch(request, range(FIRST + i, FIRST + i + 1), reader)))
        await asyncio.sleep(0)
        assert channel.take() == b"".join(requests[:3]) and channel.take() == b""
        for answered in range(8):
            if how == "broken off":
                feed(channel, model.request(requests[answered])[0][:10], [])
                channel.disconnected()
                assert channel.take() == b"".join(requests[answered : answered + 3])
            channel._wake.clear()
            feed(channel, model.request(requests[answered])[0], [])
            assert channel._wake.is_set() == (answered + 3 < 8)
            await asyncio.sleep(0)
            assert [call.done() for call in calls] == [i <= answered for i in range(8)]
            assert channel.take() == b"".join(requests[answered + 3 : answered + 4])
        assert not channel.has_work()

    asyncio.run(work())
