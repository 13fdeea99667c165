"""Gets and inventories of one client connection: requests that wait for their replies, which come in their order.

Reads are repeated on the next connection when theirs ended before the reply was whole.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from dataclasses import dataclass
from typing import Protocol

from ingest import frame, limits, ticket
from ingest.client.channel import Address, Channel
from ingest.errors import IngestError, ProtocolError, RefusedError
from ingest.status import Status


class Reader(Protocol):
    """What takes a reply as it comes, in ticket order."""

    with_frames: bool  # the request is a get: frames follow the header of a run SAVED

    def restart(self) -> None:
        """The reply broke off. It comes again from its beginning."""

    def take_run(self, first: int, count: int, status: Status) -> None:
        """``count`` tickets from index ``first`` on share a status."""

    def take_frames(self, first: int, frames: memoryview) -> None:
        """The next whole frames, not verified yet, of a run that was told. The bytes are valid during the call only."""


@dataclass(eq=False, slots=True)
class _Request:
    message: bytes  # signed, 24 bytes
    first: int  # index
    count: int
    reader: Reader
    done: asyncio.Future[None]
    answered: int = 0  # tickets
    frames_left: int = 0  # of the present run

    @property
    def whole(self) -> bool:
        return self.answered == self.count and not self.frames_left

    @property
    def is_waited_for(self) -> bool:
        return not self.done.done()


class GetChannel(Channel):
    port = "get"
    receive_size = limits.FRAMES_RECEIVE_SIZE

    def __init__(
        self, address: Address, timeout: float, retry_for: float, tls: ssl.SSLContext | None = None
    ) -> None:
        super().__init__(address, timeout, retry_for, tls)
        self._unsent: deque[_Request] = deque()
        self._sent: deque[_Request] = deque()
        self._refused = False  # the server will close

    async def fetch(self, message: bytes, tickets: range, reader: Reader) -> None:
        """Sends a signed request for ``tickets`` (indices, at most 65,536); back when ``reader`` has the whole reply.

        RefusedError when the server does not take it, ConnectionLostError or ProtocolError.
        """
        self.check_open()
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._unsent.append(_Request(message, tickets.start, len(tickets), reader, done))
        self.wake()
        await done

    # --- Channel ---------------------------------------------------------------------------------

    def has_work(self) -> bool:
        return bool(self._unsent or self._sent)

    def in_flight(self) -> bool:
        return bool(self._sent) or self._refused  # then it is the server that has to close

    def take(self) -> bytes:
        taken = []
        while self._unsent and len(self._sent) < limits.GETS_IN_FLIGHT_MAX and not self._refused:
            request = self._unsent.popleft()
            if request.is_waited_for:
                self._sent.append(request)
                taken.append(request.message)
        return b"".join(taken)

    def received(self, data: memoryview) -> int:
        if not self._refused:
            self.answered()
        taken = 0
        while not self._refused:
            if not self._sent:
                if taken < len(data):
                    raise ProtocolError(f"{self._name} sent {len(data) - taken} bytes that nobody asked for")
                return taken
            request = self._sent[0]
            step = self._take_frames if request.frames_left else self._take_header
            size = step(request, data[taken:])
            if size == 0:
                return taken
            taken += size
            if request.whole and not self._refused:
                self._sent.popleft()
                if request.is_waited_for:
                    request.done.set_result(None)
                if self._unsent:
                    self.wake()
        return len(data)

    def _take_header(self, request: _Request, data: memoryview) -> int:
        """Takes the header of the next run, if it is whole; returns the bytes taken."""
        if len(data) < limits.RUN_HEADER_SIZE:
            return 0
        index, number, count = frame.parse_run_header(data[: limits.RUN_HEADER_SIZE])
        status = Status(number)
        if count == 0:
            self._refuse(request, index, status)
            return limits.RUN_HEADER_SIZE
        first = request.first + request.answered
        left = request.count - request.answered
        if index != first or count > left:
            raise ProtocolError(
                f"{self._name} sent a run of {count} tickets from {_shown(index)} on, where at most {left} from "
                f"{_shown(first)} on were expected"
            )
        request.answered += count
        if status is Status.SAVED and request.reader.with_frames:
            request.frames_left = count
        if request.is_waited_for:
            request.reader.take_run(first, count, status)
        return limits.RUN_HEADER_SIZE

    def _take_frames(self, request: _Request, data: memoryview) -> int:
        """Takes as many frames of the present run as are whole; returns the bytes taken."""
        count = min(request.frames_left, len(data) // limits.FRAME_SIZE)
        size = count * limits.FRAME_SIZE
        if count and request.is_waited_for:
            request.reader.take_frames(request.first + request.answered - request.frames_left, data[:size])
        request.frames_left -= count
        return size

    def _refuse(self, request: _Request, index: int, status: Status) -> None:
        if index < 0:
            raise ProtocolError(f"{self._name} refused a request for a malformed ticket")
        self._sent.popleft()
        if request.is_waited_for:
            request.done.set_exception(RefusedError(ticket.format(index), status))
        self._refused = True

    def disconnected(self) -> None:
        for request in self._sent:
            request.answered = request.frames_left = 0
            request.reader.restart()
        self._unsent.extendleft(reversed(self._sent))
        self._sent.clear()
        self._refused = False

    def give_up(self, error: IngestError) -> None:
        for request in (*self._sent, *self._unsent):
            if request.is_waited_for:
                request.done.set_exception(error)
        self._sent.clear()
        self._unsent.clear()


def _shown(index: int) -> str:
    return ticket.format(index) if index >= 0 else "a malformed ticket"
