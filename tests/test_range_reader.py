"""What is read of a range when the server answers this and then that for each of its tickets, and replies break off."""

import asyncio
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_server import build_frame, build_request

from ingest import limits, mac, ticket
from ingest.client.get_channel import GetChannel, Reader
from ingest.client.range_reader import RangeSource, StoredRun
from ingest.errors import CorruptFrameError, RefusedError
from ingest.limits import DATA_SIZE
from ingest.status import RETRIED, Status

KEY = bytes(range(32))
KEYS = mac.KeyRing([KEY])
FIRST = ticket.parse("AAAA")
BAD = "bad"  # a frame that was spoilt on its way
FINAL = [Status.SAVED, Status.MISSING, Status.DELETED, Status.NO_SPACE]
Answer = Status | str


class Scripted:
    """A channel whose server answers each time with the next of the ticket's ``scripts``, with the last one from then on.
    ``breaks``: after how many tickets the first replies break off."""

    def __init__(self, scripts: list[list[Answer]], breaks: list[int]) -> None:
        self.scripts = [list(script) for script in scripts]
        self.breaks = list(breaks)
        self.asked = 0

    async def fetch(self, message: bytes, tickets: range, reader: Reader) -> None:
        assert message == build_request(KEY, tickets.start, len(tickets))
        await asyncio.sleep(0)
        while self.breaks:
            self._reply(tickets[: self.breaks.pop(0)], reader)
            reader.restart()
        self._reply(tickets, reader)

    def _reply(self, tickets: range, reader: Reader) -> None:
        for index in tickets:
            self.asked += 1
            script = self.scripts[index - FIRST]
            answer = script.pop(0) if len(script) > 1 else script[0]
            if isinstance(answer, Status) and answer is not Status.SAVED:
                reader.take_run(index, 1, answer)
                continue
            frame = build_frame(KEY, index, b"chunk %d" % index)
            reader.take_run(index, 1, Status.SAVED)
            reader.take_frames(index, memoryview(frame[:-1] + b"\1" if answer == BAD else frame))


def outcome(script: list[Answer], ignored: int) -> Answer:
    """What a ticket comes to, as a plain loop: after what was ``ignored`` because the reply broke off."""
    left = [*script[ignored:], script[-1]] if ignored < len(script) else [script[-1]] * 2
    doubted = False
    for answer in [*left, script[-1]]:
        if answer == BAD and doubted:
            return BAD
        doubted = doubted or answer == BAD
        if answer != BAD and answer not in RETRIED:
            return answer
    raise AssertionError(script)


scripts = st.lists(
    st.builds(
        lambda before, last: [*before, last],
        st.lists(st.sampled_from([BAD, Status.ERROR, Status.BUSY]), max_size=4),
        st.sampled_from([BAD, *FINAL]),
    ),
    min_size=1,
    max_size=6,
)


def read(channel: Scripted, count: int, retry_for: float = 60) -> tuple[list[StoredRun], bytes]:
    async def work() -> tuple[list[StoredRun], bytes]:
        data = bytearray(count * DATA_SIZE)
        source = RangeSource(cast(GetChannel, cast(Any, channel)), KEYS, retry_for)
        return await source.read(range(FIRST, FIRST + count), memoryview(data)), bytes(data)

    return asyncio.run(work())


@pytest.fixture(scope="module", autouse=True)
def no_delay() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "RETRY_DELAY_MIN_S", 0.0)
        yield


@settings(deadline=None, max_examples=40)
@given(scripts=scripts, breaks=st.lists(st.integers(0, 6), max_size=2))
def test_each_ticket_comes_to_what_its_answers_say(scripts: list[list[Answer]], breaks: list[int]) -> None:
    """Whatever the others come to; in order; and an answer of a reply that broke off counts for nothing."""
    expected = [outcome(one, sum(n > i for n in breaks)) for i, one in enumerate(scripts)]
    channel = Scripted(scripts, breaks)
    if BAD in expected:
        with pytest.raises(CorruptFrameError, match="also the second time"):
            read(channel, len(scripts))
        return
    others, data = read(channel, len(scripts))
    assert others == [
        StoredRun(FIRST + i, 1, cast(Status, one))
        for i, one in enumerate(expected)
        if one is not Status.SAVED
    ]
    for i, one in enumerate(expected):
        if one is Status.SAVED:
            assert data[i * DATA_SIZE : (i + 1) * DATA_SIZE].rstrip(b"\0") == b"chunk %d" % (FIRST + i)


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("late", [[Status.ERROR], [Status.BUSY], [Status.BUSY, Status.ERROR, BAD]], ids=str)
def test_the_first_one_that_is_not_saved_is_named(place: int, late: list[Answer]) -> None:
    """Also when the server was long about it, and others behind it were known before."""
    answers: list[list[Answer]] = [[Status.SAVED]] * place + [[*late, Status.DELETED], [Status.MISSING]]

    async def work() -> None:
        source = RangeSource(cast(GetChannel, cast(Any, Scripted(answers, []))), KEYS, 60)
        data = memoryview(bytearray(len(answers) * DATA_SIZE))
        with pytest.raises(RefusedError) as refused:
            await source.read_saved(range(FIRST, FIRST + len(answers)), data)
        assert (refused.value.ticket, refused.value.status) == (ticket.format(FIRST + place), Status.DELETED)

    asyncio.run(work())


@pytest.mark.parametrize("status", RETRIED)
def test_when_the_time_for_more_is_over_the_answer_stands(status: Status) -> None:
    """For those that were not answered otherwise; a frame that was bad once is asked for again all the same."""
    answers: list[list[Answer]] = [[status], [Status.SAVED], [BAD, Status.SAVED], [status], [BAD, status]]
    channel = Scripted(answers, [])
    others, data = read(channel, len(answers), retry_for=-1)
    assert others == [StoredRun(FIRST + i, 1, status) for i in (0, 3, 4)]
    assert data[2 * DATA_SIZE :].startswith(b"chunk")
    assert channel.asked == len(answers) + 2


@pytest.mark.parametrize("part", [1, 2, 3])
def test_what_was_bad_in_a_reply_that_broke_off_is_not_asked_for_apart(part: int) -> None:
    """The reply comes again from its beginning, and only that counts."""
    channel = Scripted([[BAD, Status.SAVED, BAD]] * part, [part])
    assert read(channel, part)[0] == [] and channel.asked == 2 * part
