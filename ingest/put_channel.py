"""Puts and deletes of one client connection: frames that wait for their acks.

A frame is sent again when its connection ended before its ack (puts and deletes are idempotent), and, after a back-off,
when the ack says ERROR or BUSY. Acks are matched by ticket, so no two frames of one ticket are in flight at a time.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import deque

from ingest import limits
from ingest.channel import Address, Channel
from ingest.errors import IngestError, ProtocolError
from ingest.status import Status
from ingest.ticket import from_wire

RETRIED = (Status.ERROR, Status.BUSY)
BAD = (Status.BAD_CHECKSUM, Status.BAD_TICKET)
PUT_STATUSES = {int(status): status for status in Status if status is not Status.MISSING}


class Batch:
    """The frames of one call, which are settled when they got the ack ``expected`` or any other final one."""

    __slots__ = ("_waiter", "error", "expected", "left", "refused")

    def __init__(self, expected: Status = Status.SAVED) -> None:
        self.expected = expected
        self.left = 0  # frames not settled
        self.refused: dict[str, Status] = {}
        self.error: IngestError | None = None
        self._waiter: asyncio.Future[None] | None = None

    def settle(self, wire: bytes, status: Status) -> None:
        self.left -= 1
        if status is not self.expected:
            self.refused[from_wire(wire)] = status
        if self.left == 0:
            self._awake()

    def fail(self, error: IngestError) -> None:
        self.left -= 1
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


class _Pending:
    """One frame that is not settled. ``sent``: on the present connection. ``timer``: waits for its back-off."""

    __slots__ = ("batch", "deadline", "delay", "frame", "sent", "timer")

    def __init__(self, frame: bytes, batch: Batch) -> None:
        self.frame = frame
        self.batch = batch
        self.sent = False
        self.timer: asyncio.TimerHandle | None = None
        self.delay = limits.RETRY_DELAY_MIN_S
        self.deadline: float | None = None  # of the retries, once one was needed


class PutChannel(Channel):
    def __init__(
        self, address: Address, timeout: float, retry_for: float, tls: ssl.SSLContext | None = None
    ) -> None:
        super().__init__(address, timeout, retry_for, tls)
        self._pending: dict[bytes, _Pending] = {}  # by ticket as on the wire
        self._unsent: deque[_Pending] = deque()
        self._sent = 0
        self._waiting = 0  # for their back-off
        self._partial = b""  # of an ack
        self._good = 0  # frames of this connection that were authentic
        self._bad: Status | None = None  # the last bad answer of this connection
        self._room: asyncio.Future[None] | None = None  # set when something was settled

    async def add(self, frames: bytes | bytearray, batch: Batch, window: int) -> None:
        """Sends whole signed frames as part of ``batch``, as soon as fewer than ``window`` of it are in flight."""
        size = limits.FRAME_SIZE
        for at in range(0, len(frames), size):
            frame = bytes(frames[at : at + size])
            wire = frame[: limits.TICKET_SIZE]
            while True:
                self.check_open()
                if batch.error is not None:
                    raise batch.error
                if (
                    batch.left < window
                    and len(self._pending) < limits.IN_FLIGHT_MAX
                    and wire not in self._pending
                ):
                    break
                self.wake()
                await self._settled()
            pending = self._pending[wire] = _Pending(frame, batch)
            batch.left += 1
            self._unsent.append(pending)
        self.wake()

    async def _settled(self) -> None:
        if self._room is None or self._room.done():
            self._room = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._room)

    def _notify(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    # --- Channel ---------------------------------------------------------------------------------

    def has_work(self) -> bool:
        return len(self._pending) > self._waiting

    def in_flight(self) -> bool:
        return self._sent > 0

    def take(self) -> bytes:
        taken: list[bytes] = []
        while self._unsent and len(taken) < limits.SEND_FRAMES:
            pending = self._unsent.popleft()
            pending.sent = True
            taken.append(pending.frame)
        self._sent += len(taken)
        return b"".join(taken)

    def received(self, data: bytes) -> None:
        if self._partial:
            data = self._partial + data
        whole = len(data) // limits.ACK_SIZE * limits.ACK_SIZE
        self._partial = data[whole:]
        try:
            for at in range(0, whole, limits.ACK_SIZE):
                self._ack(data[at : at + limits.TICKET_SIZE], data[at + limits.TICKET_SIZE])
        finally:
            self._notify()
        if whole:
            self.answered()

    def _ack(self, wire: bytes, number: int) -> None:
        pending = self._pending.get(wire)
        if pending is None or not pending.sent:
            raise ProtocolError(f"{self._name} acked {wire!r}, which was not sent, or acked before")
        status = PUT_STATUSES.get(number)
        if status is None:
            raise ProtocolError(f"{self._name} acked {wire!r} with status {number}")
        self._sent -= 1
        if status in BAD:
            self._bad = status
        else:
            self._good += 1
        if status in RETRIED and self._later(pending):
            return
        del self._pending[wire]
        pending.batch.settle(wire, status)

    def _later(self, pending: _Pending) -> bool:
        """Sends a frame again after its back-off, unless its time is over."""
        now = time.monotonic()
        if pending.deadline is None:
            pending.deadline = now + self.retry_for
        if now + pending.delay > pending.deadline:
            return False
        pending.sent = False
        pending.timer = asyncio.get_running_loop().call_later(pending.delay, self._again, pending)
        pending.delay = min(2 * pending.delay, limits.RETRY_DELAY_MAX_S)
        self._waiting += 1
        return True

    def _again(self, pending: _Pending) -> None:
        pending.timer = None
        self._waiting -= 1
        self._unsent.append(pending)
        self.wake()

    def disconnected(self) -> None:
        if self._bad is not None and not self._good:
            # It took none of our frames for authentic and hung up: the next connection would end the same way.
            for wire, pending in self._drain():
                pending.batch.settle(wire, self._bad)
        for pending in self._pending.values():
            pending.sent = False
        self._unsent = deque(pending for pending in self._pending.values() if pending.timer is None)
        self._sent = 0
        self._partial = b""
        self._good = 0
        self._bad = None

    def give_up(self, error: IngestError) -> None:
        for _, pending in self._drain():
            pending.batch.fail(error)

    def _drain(self) -> list[tuple[bytes, _Pending]]:
        drained = list(self._pending.items())
        for _, pending in drained:
            if pending.timer is not None:
                pending.timer.cancel()
        self._pending.clear()
        self._unsent.clear()
        self._sent = self._waiting = 0
        self._notify()
        return drained
