"""Frames, acks, requests and runs: every record of the wire, `docs/protocol.md`. Pure: no sockets, no keys.

Batches of frames and acks are handled in buffers by the functions of `_frame`, which are named here too. The
records that are read one at a time have ``parse`` (from exactly their bytes), ``serialize`` (the inverse) and ``check``
(does it make sense). Checksums are made and verified by `mac`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ingest import ticket
from ingest._frame import ack_runs, build, build_acks, extract, indices, parse_acks, parse_run_header, runs
from ingest.errors import ProtocolError, TicketError, UsageError
from ingest.limits import (
    ACK_SIZE,
    CHECKSUM_SIZE,
    DATA_SIZE,
    FRAME_SIZE,
    RANGE_COUNT_MAX,
    REQUEST_SIZE,
    RUN_HEADER_SIZE,
    TICKET_SIZE,
)
from ingest.status import Status
from ingest.ticket import TicketRange

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = [
    "Ack",
    "RecordSplitter",
    "Request",
    "RunHeader",
    "ack_runs",
    "build",
    "build_acks",
    "delete_count",
    "delete_data",
    "extract",
    "frames_needed",
    "indices",
    "parse_acks",
    "parse_run_header",
    "runs",
]

_REQUEST = struct.Struct(">8sQ8s")
_RUN_HEADER = struct.Struct(">8sB3sI")
_DELETE = struct.Struct(">Q")
_DELETE_ZEROS = bytes(DATA_SIZE - _DELETE.size)


def frames_needed(size: int) -> int:
    """How many frames carry ``size`` bytes of data."""
    return -(-size // DATA_SIZE)


def _exactly(raw: Buffer, size: int, what: str) -> bytes:
    data = bytes(raw)
    if len(data) != size:
        raise UsageError(f"{what} has {size} bytes, not {len(data)}")
    return data


@dataclass(frozen=True, slots=True)
class Ack:
    """What became of one frame. ``ticket`` holds the 8 bytes as they were received, so it may be malformed."""

    ticket: bytes
    status: Status

    @classmethod
    def parse(cls, raw: Buffer) -> Ack:
        """From 9 bytes. ProtocolError for an unknown status."""
        data = _exactly(raw, ACK_SIZE, "an ack")
        return cls(data[:TICKET_SIZE], _status(data[TICKET_SIZE]))

    def serialize(self) -> bytes:
        return self.ticket + bytes([self.status])

    def check(self) -> None:
        """ProtocolError for a malformed ticket under any status but BAD_TICKET."""
        if self.status is not Status.BAD_TICKET:
            _peer_ticket(self.ticket, f"an ack {self.status.name}")


@dataclass(frozen=True, slots=True)
class Request:
    """A get or an inventory request: which of the two, and by whom, only its checksum says.

    ``ticket`` holds 8 bytes as on the wire and may be malformed; ``count`` is 0 to 2⁶⁴ - 1. Both are judged by
    ``check``, because a server has to answer a bad request too.
    """

    ticket: bytes
    count: int
    checksum: bytes = field(default=bytes(CHECKSUM_SIZE))

    @classmethod
    def of(cls, tickets: TicketRange) -> Request:
        """The request for a range, not signed yet. UsageError for more than 65,536 tickets."""
        if tickets.count > RANGE_COUNT_MAX:
            raise UsageError(f"{tickets.count} tickets in one request: the most are {RANGE_COUNT_MAX}")
        return cls(ticket.to_wire(tickets.first), tickets.count)

    @classmethod
    def parse(cls, raw: Buffer) -> Request:
        """From 24 bytes, whatever they are."""
        return cls(*_REQUEST.unpack(_exactly(raw, REQUEST_SIZE, "a request")))

    def serialize(self) -> bytes:
        return _REQUEST.pack(self.ticket, self.count, self.checksum)

    @property
    def signed_part(self) -> bytes:
        """The 16 bytes that the checksum covers."""
        return self.serialize()[: REQUEST_SIZE - CHECKSUM_SIZE]

    def check(self) -> TicketRange:
        """The range that is asked for. TicketError (status BAD_TICKET) for a malformed ticket, a count of 0 or over
        65,536, or a range past the last ticket."""
        return _checked_range(ticket.from_wire(self.ticket), self.count)


@dataclass(frozen=True, slots=True)
class RunHeader:
    """One run of a reply: ``count`` tickets from ``ticket`` (8 bytes as on the wire) on share a status."""

    ticket: bytes
    status: Status
    count: int

    @classmethod
    def parse(cls, raw: Buffer) -> RunHeader:
        """From 16 bytes. ProtocolError for an unknown status, or where zeros should be."""
        data = _exactly(raw, RUN_HEADER_SIZE, "the header of a run")
        text, status, zero, count = _RUN_HEADER.unpack(data)
        if zero != b"\0\0\0":
            raise ProtocolError(f"bytes 9 to 11 of the header of a run are {zero.hex(' ')}, not zero")
        return cls(text, _status(status), count)

    def serialize(self) -> bytes:
        return _RUN_HEADER.pack(self.ticket, self.status, b"\0\0\0", self.count)

    @property
    def is_refusal(self) -> bool:
        """The server did not take the request, and closes."""
        return self.count == 0

    def check(self, expected: TicketRange) -> TicketRange:
        """The tickets of this run, which has to start where ``expected`` (what the reply still owes) does and not to
        go beyond. ProtocolError if it does, and for a refusal."""
        if self.is_refusal:
            raise ProtocolError(f"the server refused the request for {expected.first}: {self.status.name}")
        first = _peer_ticket(self.ticket, "the header of a run")
        if first != expected.first or self.count > expected.count:
            raise ProtocolError(
                f"a run of {self.count} tickets from {first} on, where at most {expected.count} from "
                f"{expected.first} on were expected"
            )
        return TicketRange(first, self.count)


def delete_data(count: int) -> bytes:
    """The 1458 data bytes of a frame that deletes ``count`` tickets, 1 to 65,536. UsageError for other counts."""
    if not 1 <= count <= RANGE_COUNT_MAX:
        raise UsageError(f"a delete of {count} tickets: 1 to {RANGE_COUNT_MAX} are possible")
    return _DELETE.pack(count) + _DELETE_ZEROS


def delete_count(data: Buffer, first: str) -> int:
    """How many tickets from ``first`` on the 1458 data bytes of a delete frame name. TicketError (BAD_TICKET) for
    a count of 0 or over 65,536, a range past the last ticket, or anything but zeros after the count."""
    raw = _exactly(data, DATA_SIZE, "the data of a delete frame")
    if raw[_DELETE.size :] != _DELETE_ZEROS:
        raise TicketError("the data of a delete frame are a count and zeros, here something follows")
    return _checked_range(first, _DELETE.unpack_from(raw)[0]).count


class RecordSplitter:
    """Cuts a stream that arrives in pieces of any size into whole records of ``size`` bytes (frames by default).

    Holds at most one partial record. Does no I/O and never looks into a record.
    """

    def __init__(self, size: int = FRAME_SIZE) -> None:
        if size < 1:
            raise UsageError(f"records of {size} bytes: at least one is needed")
        self.size = size
        self._partial = bytearray()

    @property
    def partial_size(self) -> int:
        """Bytes of a record that is not whole yet: what is dropped if the stream ends here."""
        return len(self._partial)

    def feed(self, data: Buffer) -> list[memoryview]:
        """The whole records that ``data`` completes, in order, as at most two buffers of one or more records each.

        Only the record that began in an earlier piece is copied; the other buffer is a view of ``data`` and valid as
        long as the caller leaves that alone.
        """
        view = memoryview(data).cast("B")
        whole = []
        if self._partial:
            missing = self.size - len(self._partial)
            self._partial += view[:missing]
            view = view[missing:]
            if len(self._partial) < self.size:
                return []
            whole.append(memoryview(self._partial))
        end = len(view) // self.size * self.size
        if end:
            whole.append(view[:end])
        self._partial = bytearray(view[end:])  # a new one: the caller may hold the old one
        return whole


def _status(value: int) -> Status:
    try:
        return Status(value)
    except ValueError:
        raise ProtocolError(f"{value} is not a status") from None


def _peer_ticket(raw: bytes, what: str) -> str:
    """The ticket in a record of the peer, whose fault it is when that is malformed."""
    try:
        return ticket.from_wire(raw)
    except TicketError as error:
        raise ProtocolError(f"{what}: {error}") from None


def _checked_range(first: str, count: int) -> TicketRange:
    if count > RANGE_COUNT_MAX:
        raise TicketError(f"{count} tickets in one request: the most are {RANGE_COUNT_MAX}")
    return TicketRange(first, count)
