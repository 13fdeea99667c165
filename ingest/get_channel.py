"""Gets and inventories of one client connection: requests that wait for their replies, which come in their order.

Reads are repeated on the next connection when theirs ended before the reply was whole.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from dataclasses import dataclass, field

from ingest import limits
from ingest.channel import Address, Channel
from ingest.errors import IngestError, ProtocolError, RefusedError, TicketError
from ingest.frame import RunHeader
from ingest.status import Status
from ingest.ticket import TicketRange, from_wire


@dataclass(frozen=True, slots=True)
class Reply:
    """One run of a reply: ``frames`` are its whole frames, not verified yet (none unless SAVED and asked for)."""

    first: int  # index
    status: Status
    count: int
    frames: bytes


@dataclass(eq=False, slots=True)
class _Request:
    message: bytes  # signed, 24 bytes
    tickets: TicketRange
    with_frames: bool
    done: asyncio.Future[list[Reply]]
    replies: list[Reply] = field(default_factory=list)
    answered: int = 0  # tickets

    @property
    def rest(self) -> TicketRange:
        """What the reply still owes."""
        start = self.tickets.indices.start + self.answered
        return TicketRange.of_indices(start, self.tickets.count - self.answered)


class GetChannel(Channel):
    def __init__(
        self, address: Address, timeout: float, retry_for: float, tls: ssl.SSLContext | None = None
    ) -> None:
        super().__init__(address, timeout, retry_for, tls)
        self._unsent: deque[_Request] = deque()
        self._sent: deque[_Request] = deque()
        self._bytes = bytearray()
        self._header: RunHeader | None = None  # whose frames are not all here
        self._refused = False  # the server will close

    async def fetch(self, message: bytes, tickets: TicketRange, with_frames: bool) -> list[Reply]:
        """The runs that answer a signed request for ``tickets`` (at most 65,536), with their frames or without.

        RefusedError when the server does not take it, ConnectionLostError or ProtocolError.
        """
        self.check_open()
        done: asyncio.Future[list[Reply]] = asyncio.get_running_loop().create_future()
        self._unsent.append(_Request(message, tickets, with_frames, done))
        self.wake()
        return await done

    # --- Channel ---------------------------------------------------------------------------------

    def has_work(self) -> bool:
        return bool(self._unsent or self._sent)

    def in_flight(self) -> bool:
        return bool(self._sent) or self._refused  # then it is the server that has to close

    def take(self) -> bytes:
        taken = []
        while self._unsent and len(self._sent) < limits.GETS_IN_FLIGHT_MAX and not self._refused:
            request = self._unsent.popleft()
            if not request.done.done():  # nobody waits for it any more
                self._sent.append(request)
                taken.append(request.message)
        return b"".join(taken)

    def received(self, data: bytes) -> None:
        if self._refused:
            return
        self._bytes += data
        self.answered()
        while self._step():
            pass

    def _step(self) -> bool:
        """Takes the next header, or the frames of a run, if they are whole."""
        if not self._sent:
            if self._bytes:
                raise ProtocolError(f"{self._name} sent {len(self._bytes)} bytes that nobody asked for")
            return False
        request = self._sent[0]
        if self._header is None:
            if len(self._bytes) < limits.RUN_HEADER_SIZE:
                return False
            self._header = RunHeader.parse(self._bytes[: limits.RUN_HEADER_SIZE])
            del self._bytes[: limits.RUN_HEADER_SIZE]
            if self._header.is_refusal:
                self._refuse(request, self._header)
                return False
            self._header.check(request.rest)
        size = self._header.count * limits.FRAME_SIZE if self._needs_frames(request) else 0
        if len(self._bytes) < size:
            return False
        reply = Reply(
            request.rest.indices.start, self._header.status, self._header.count, bytes(self._bytes[:size])
        )
        del self._bytes[:size]
        self._header = None
        request.replies.append(reply)
        request.answered += reply.count
        if request.answered == request.tickets.count:
            self._sent.popleft()
            if not request.done.done():
                request.done.set_result(request.replies)
            self.wake()
        return True

    def _needs_frames(self, request: _Request) -> bool:
        return self._header is not None and self._header.status is Status.SAVED and request.with_frames

    def _refuse(self, request: _Request, run: RunHeader) -> None:
        try:
            name = from_wire(run.ticket)
        except TicketError as error:
            raise ProtocolError(f"{self._name} refused a request for a malformed ticket: {error}") from None
        self._sent.popleft()
        if not request.done.done():
            request.done.set_exception(RefusedError(name, run.status))
        self._refused = True

    def disconnected(self) -> None:
        for request in self._sent:
            request.replies.clear()
            request.answered = 0
        self._unsent.extendleft(reversed(self._sent))
        self._sent.clear()
        self._bytes.clear()
        self._header = None
        self._refused = False

    def give_up(self, error: IngestError) -> None:
        for request in (*self._sent, *self._unsent):
            if not request.done.done():
                request.done.set_exception(error)
        self._sent.clear()
        self._unsent.clear()
