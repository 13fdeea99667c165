"""Puts and deletes of one client connection: frames that wait for their acks.

A frame is sent again when its connection ended before its ack (puts and deletes are idempotent), and, after a back-off,
when the ack says ERROR or BUSY. Acks are matched by ticket, so no two frames of one ticket are in flight at a time.

BUSY and NO_SPACE say of the frame that they answer that nothing of it was stored. A frame that went out before without an
answer, or with ERROR, may be stored for all that; so the outcome of the two together is ERROR.

Frames are kept by *spans*: consecutive tickets in one buffer, which share their batch and are in the same state. A span
is sent whole; an ack, or a run of them, cuts out of it what it settles. So the work goes by spans and runs of acks, not by
frames.

    a span      becomes
    waiting     sent, when it was given to a connection; nothing, if that one's predecessor refused the key
    sent        nothing, by its ack; later, by an ack ERROR or BUSY; waiting, when the connection ends
    later       waiting, when its back-off is over
"""

from __future__ import annotations

import asyncio
import ssl
import time
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterator

from ingest import frame, limits, ticket
from ingest.client.channel import Address, Channel
from ingest.errors import IngestError, ProtocolError
from ingest.status import RETRIED, Status

BAD = (Status.BAD_CHECKSUM, Status.BAD_TICKET)
NOT_STORED = (Status.BUSY, Status.NO_SPACE)
PUT_STATUSES = {int(status): status for status in Status if status is not Status.MISSING}


class Batch:
    """The frames of one call, which are settled when they got the ack ``expected`` or any other final one.

    ``left``: how many are not settled yet. ``refused``: the ticket and status of each that is settled otherwise, so far.
    ``window``: how many may be in flight at a time. ``retry_for``: seconds for which ERROR and BUSY are tried again; None:
    as long as the channel does.
    """

    __slots__ = ("_waiter", "error", "expected", "left", "refused", "retry_for", "window")

    def __init__(self, window: int, expected: Status = Status.SAVED, retry_for: float | None = None) -> None:
        self.window = window
        self.expected = expected
        self.retry_for = retry_for
        self.left = 0
        self.refused: dict[str, Status] = {}
        self.error: IngestError | None = None
        self._waiter: asyncio.Future[None] | None = None

    def settle(self, first: int, count: int, status: Status) -> None:
        self.left -= count
        if status is not self.expected:
            for index in range(first, first + count):
                self.refused[ticket.format(index)] = status
        if self.left == 0:
            self._awake()

    def fail(self, error: IngestError, count: int) -> None:
        self.left -= count
        self.error = self.error or error
        self._awake()

    def _awake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self) -> None:
        """Until all are settled. Raises the error that left the outcome of some of them unknown."""
        while self.left and self.error is None:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self.error is not None:
            raise self.error


class _Span:
    """``count`` frames with consecutive tickets from index ``first`` on. ``sent``: on the present connection. ``open``: they
    went out before, and may be stored by that. ``timer``: of its back-off."""

    __slots__ = ("batch", "count", "deadline", "delay", "first", "frames", "open", "sent", "timer")

    def __init__(self, first: int, count: int, frames: memoryview, batch: Batch) -> None:
        self.first = first
        self.count = count
        self.frames = frames
        self.batch = batch
        self.sent = self.open = False
        self.timer: asyncio.TimerHandle | None = None
        self.delay = limits.RETRY_DELAY_MIN_S
        self.deadline: float | None = None  # of the retries, once one was needed

    @property
    def stop(self) -> int:
        return self.first + self.count

    def cut(self, first: int, count: int) -> _Span:
        """A span of some of its frames, in the same state."""
        at = (first - self.first) * limits.FRAME_SIZE
        part = _Span(first, count, self.frames[at : at + count * limits.FRAME_SIZE], self.batch)
        part.sent, part.open, part.delay, part.deadline = self.sent, self.open, self.delay, self.deadline
        return part


class _Spans:
    """Spans without a ticket in common, in ticket order. ``frames``: of all of them together."""

    def __init__(self) -> None:
        self.frames = 0
        self._firsts: list[int] = []
        self._by_first: dict[int, _Span] = {}

    def __iter__(self) -> Iterator[_Span]:
        return (self._by_first[first] for first in self._firsts)

    def free(self, first: int, count: int) -> int:
        """How many of ``count`` tickets from ``first`` on come before the next one that is in a span."""
        i = bisect_right(self._firsts, first)
        if i and self._by_first[self._firsts[i - 1]].stop > first:
            return 0
        return min(count, self._firsts[i] - first) if i < len(self._firsts) else count

    def add(self, span: _Span) -> None:
        insort(self._firsts, span.first)
        self._by_first[span.first] = span
        self.frames += span.count

    def find(self, index: int) -> _Span | None:
        """The span of a ticket."""
        i = bisect_right(self._firsts, index)
        span = self._by_first[self._firsts[i - 1]] if i else None
        return span if span is not None and index < span.stop else None

    def remove(self, span: _Span, first: int, count: int) -> None:
        """Takes ``count`` tickets from ``first`` on out of ``span``; what is left of it before and behind stays."""
        rest = [
            span.cut(start, stop - start)
            for start, stop in ((span.first, first), (first + count, span.stop))
            if count < span.count and start < stop
        ]
        del self._by_first[span.first]
        self.frames -= count
        i = bisect_left(self._firsts, span.first)
        self._firsts[i : i + 1] = [part.first for part in rest]
        self._by_first.update((part.first, part) for part in rest)

    def clear(self) -> None:
        self._firsts.clear()
        self._by_first.clear()
        self.frames = 0


class PutChannel(Channel):
    port = "put"
    receive_size = limits.ACKS_RECEIVE_SIZE

    def __init__(
        self, address: Address, timeout: float, retry_for: float, tls: ssl.SSLContext | None = None
    ) -> None:
        super().__init__(address, timeout, retry_for, tls)
        self._spans = _Spans()
        self._unsent: deque[_Span] = deque()
        self._sent = 0  # frames
        self._later = 0  # frames that wait for their back-off
        self._good = 0  # frames of this connection that were authentic
        self._bad: Status | None = None  # the last bad answer of this connection
        self._room: asyncio.Future[None] | None = None  # set when something was settled

    async def add(self, first: int, frames: bytes | memoryview, batch: Batch) -> None:
        """Sends whole signed frames as part of ``batch``, as soon as fewer than its window of it are in flight.

        Their tickets are consecutive from index ``first`` on. ``frames`` must not change any more.
        """
        size = limits.FRAME_SIZE
        view = memoryview(frames)
        stop = first + len(view) // size
        begin = first
        while first < stop:
            self.check_open()
            if batch.error is not None:
                raise batch.error
            room = min(batch.window - batch.left, self._room_for(batch.left + stop - first))
            count = self._spans.free(first, min(stop - first, limits.SEND_FRAMES, room)) if room > 0 else 0
            if count == 0:
                self.wake()
                await self._settled()
                continue
            at = (first - begin) * size
            span = _Span(first, count, view[at : at + count * size], batch)
            self._spans.add(span)
            self._unsent.append(span)
            batch.left += count
            first += count
        self.wake()

    def _room_for(self, frames: int) -> int:
        """How many more frames may be in flight, of a batch that wants ``frames`` there. A sixteenth of all is kept for
        those that want little: some large ones do not keep the others waiting."""
        most = limits.IN_FLIGHT_MAX
        if frames > limits.SEND_FRAMES:
            most -= most // 16
        return most - self._spans.frames

    async def _settled(self) -> None:
        if self._room is None or self._room.done():
            self._room = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._room)

    def _notify(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    # --- Channel ---------------------------------------------------------------------------------

    def has_work(self) -> bool:
        return self._spans.frames > self._later

    def in_flight(self) -> bool:
        return self._sent > 0

    def take(self) -> bytes | memoryview:
        taken: list[memoryview] = []
        frames = 0
        while self._unsent and frames + self._unsent[0].count <= limits.SEND_FRAMES:
            span = self._unsent.popleft()
            span.sent = True
            frames += span.count
            taken.append(span.frames)
        self._sent += frames
        return taken[0] if len(taken) == 1 else b"".join(taken)

    def received(self, data: memoryview) -> int:
        whole = len(data) // limits.ACK_SIZE * limits.ACK_SIZE
        at = 0
        try:
            for first, count, number in frame.ack_runs(data[:whole]):
                if first < 0:
                    wire = bytes(data[at : at + limits.TICKET_SIZE])
                    raise ProtocolError(f"{self._name} acked {wire!r}, which was not sent")
                self._acked(first, count, number)
                at += count * limits.ACK_SIZE
        finally:
            self._notify()
        if whole:
            self.answered()
        return whole

    def _acked(self, first: int, count: int, number: int) -> None:
        """A run of acks, which may be of several spans."""
        stop = first + count
        while first < stop:
            span = self._spans.find(first)
            if span is None or not span.sent:
                raise ProtocolError(
                    f"{self._name} acked {ticket.format(first)}, which was not sent, or acked before"
                )
            status = PUT_STATUSES.get(number)
            if status is None:
                raise ProtocolError(f"{self._name} acked {ticket.format(first)} with status {number}")
            here = min(stop, span.stop) - first
            self._answer(span, first, here, status)
            first += here

    def _answer(self, span: _Span, first: int, count: int, status: Status) -> None:
        self._sent -= count
        if status in BAD:
            self._bad = status
        else:
            self._good += count
        # Made before anything changes: what fails on the way leaves frames that are sent again, not such that nobody has.
        later = self._delayed(span.cut(first, count)) if status in RETRIED else None
        self._spans.remove(span, first, count)
        if later is None:
            span.batch.settle(first, count, Status.ERROR if span.open and status in NOT_STORED else status)
        else:
            later.open |= status is Status.ERROR
            self._spans.add(later)
            self._later += later.count

    def _delayed(self, span: _Span) -> _Span | None:
        """The span, which will be sent again after its back-off; None when its time is over."""
        now = time.monotonic()
        if span.deadline is None:
            retry_for = span.batch.retry_for
            span.deadline = now + (self.retry_for if retry_for is None else retry_for)
        if now + span.delay > span.deadline:
            return None
        span.sent = False
        span.frames = memoryview(bytes(span.frames))  # of a buffer whose other frames may be long gone
        span.timer = asyncio.get_running_loop().call_later(span.delay, self._again, span)
        span.delay = min(2 * span.delay, limits.RETRY_DELAY_MAX_S)
        return span

    def _again(self, span: _Span) -> None:
        span.timer = None
        self._later -= span.count
        self._unsent.append(span)
        self.wake()

    def disconnected(self) -> None:
        if self._bad is not None and not self._good:
            # It took none of our frames for authentic and hung up: the next connection would end the same way.
            for span in self._drain():
                span.batch.settle(span.first, span.count, self._bad)
        for span in self._spans:
            span.open |= span.sent
            span.sent = False
        self._unsent = deque(span for span in self._spans if span.timer is None)
        self._sent = 0
        self._good = 0
        self._bad = None

    def give_up(self, error: IngestError) -> None:
        for span in self._drain():
            span.batch.fail(error, span.count)

    def _drain(self) -> list[_Span]:
        drained = list(self._spans)
        for span in drained:
            if span.timer is not None:
                span.timer.cancel()
        self._spans.clear()
        self._unsent.clear()
        self._sent = self._later = 0
        self._notify()
        return drained
