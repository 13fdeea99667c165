"""What a server proves on each new connection of a client that has to be sure of it: that it has a certain chunk, or had.

A client connects again by itself, and its frames go out again at once. Who answers by then may be another server, with the
same key and another store. So the connection begins with one exchange, and nothing else is sent before its answer:

    port   is sent                answer that proves it
    get    a get of the ticket    the chunk, or DELETED where that is expected
    put    a put of the chunk     SAVED, or DELETED where that is expected

The put would store the chunk in a store that never had it. So a get comes before it, over a connection of its own,
where the client knows the get port.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from ingest import frame, ticket
from ingest.client._seal import seal, seal_request, unseal
from ingest.client.channel import Proof
from ingest.errors import ConnectionLostError, ForeignStoreError, ProtocolError, RefusedError
from ingest.limits import ACK_SIZE, DATA_SIZE, FRAME_SIZE, RUN_HEADER_SIZE
from ingest.mac import KeyRing
from ingest.status import Status

REFUSED = (Status.BAD_CHECKSUM, Status.BAD_TICKET, Status.NO_SPACE)


@dataclass(frozen=True, slots=True)
class Expected:
    """``data``: the 1458 bytes under the ticket ``name``; None: it was deleted. ``complaint``: of a server where it is not
    so, for the operator. ``deleted``: called when the ticket was deleted although it had ``data``: who requires it may
    find another proof, and require that. Until then the server proves nothing."""

    name: str
    data: bytes | None
    complaint: str
    deleted: Callable[[], None] | None = None

    def prove(self, status: Status, data: bytes | None) -> None:
        """ForeignStoreError; RefusedError for a key that is not accepted, and for a disk that is full, where a server may
        answer so whatever it has; ConnectionLostError for no answer."""
        if status in REFUSED:
            raise RefusedError(self.name, status)
        if status in (Status.BUSY, Status.ERROR):
            raise ConnectionLostError(f"the server answers {status.name} for ticket {self.name}")
        if status is Status.DELETED and self.data is not None and self.deleted is not None:
            self.deleted()
        wanted = Status.DELETED if self.data is None else Status.SAVED
        if status is not wanted or data != self.data:
            raise ForeignStoreError(self.complaint)


def get_proof(expected: Expected, keys: Callable[[], KeyRing]) -> Proof:
    """``keys``: the client's, now."""
    index = ticket.parse(expected.name)

    def size(answer: memoryview) -> int:
        if len(answer) < RUN_HEADER_SIZE:
            return RUN_HEADER_SIZE
        _, status, count = frame.parse_run_header(answer[:RUN_HEADER_SIZE])
        return RUN_HEADER_SIZE + (FRAME_SIZE if status == Status.SAVED and count else 0)

    def judge(answer: bytes) -> None:
        found, number, _ = frame.parse_run_header(answer[:RUN_HEADER_SIZE])
        if found != index:
            raise ProtocolError("the server answers for a ticket that it was not asked for")
        data = bytearray(DATA_SIZE)
        if len(answer) > RUN_HEADER_SIZE and unseal(
            tuple(key.put for key in keys().all), index, answer[RUN_HEADER_SIZE:], data
        ):
            raise ConnectionLostError(f"the frame of ticket {expected.name} fails its checksum")
        expected.prove(_status(number), bytes(data) if number == Status.SAVED else None)

    return Proof(_nothing, lambda: seal_request(keys().signing.get, index, 1), size, judge)


def put_proof(
    expected: Expected, keys: Callable[[], KeyRing], before: Callable[[], Awaitable[None]]
) -> Proof:
    """``before``: looks whether a put may be tried."""
    index = ticket.parse(expected.name)

    def judge(answer: bytes) -> None:
        ((found, _, number),) = frame.ack_runs(answer)
        if found != index:
            raise ProtocolError("the server acks a ticket that it did not get")
        status = _status(number)
        expected.prove(status, expected.data if status is Status.SAVED else None)

    def message() -> bytes:
        # Where the ticket was deleted, any put of it is answered so.
        return seal(keys().signing.put, index, expected.data or b"\0")

    return Proof(before, message, lambda _: ACK_SIZE, judge)


def _status(number: int) -> Status:
    try:
        return Status(number)
    except ValueError:
        raise ProtocolError(f"the server answers with status {number}") from None


async def _nothing() -> None:
    return None
