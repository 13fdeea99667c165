"""A record: bytes whose length is known again when they are read. A convention of clients: `docs/protocol.md`, "Records".

The server knows nothing of it. A chunk is padded with zeros, and its reader cannot tell a zero of the sender's from one of
the padding. The length that stands at the end of a record's chunk tells. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from ingest import ticket
from ingest.errors import RecordError, UsageError
from ingest.limits import DATA_SIZE, RECORD_LENGTH_SIZE, RECORD_SIZE_MAX

if TYPE_CHECKING:
    from typing_extensions import Buffer


def serialize(record: Buffer) -> bytes:
    """The 1458 bytes of data of the chunk that holds ``record``, 0 to 1456 bytes (else UsageError)."""
    view = memoryview(record).cast("B")
    size = len(view)
    if size > RECORD_SIZE_MAX:
        raise UsageError(f"a record has at most {RECORD_SIZE_MAX} bytes, not {size}")
    chunk = bytearray(DATA_SIZE)
    chunk[:size] = view
    chunk[RECORD_SIZE_MAX:] = size.to_bytes(RECORD_LENGTH_SIZE, "big")
    return bytes(chunk)


def parse(chunk: bytes, name: str) -> bytes:
    """The record that ``chunk`` (1458 bytes, under the ticket ``name``) holds. RecordError when it holds none."""
    assert len(chunk) == DATA_SIZE, len(chunk)
    size = int.from_bytes(chunk[RECORD_SIZE_MAX:], "big")
    if size > RECORD_SIZE_MAX:
        raise RecordError(
            f"ticket {name}: no record, because its last {RECORD_LENGTH_SIZE} bytes say a length of {size}, and "
            f"{RECORD_SIZE_MAX} is the most: `get` reads any chunk"
        )
    if chunk.count(0, size, RECORD_SIZE_MAX) != RECORD_SIZE_MAX - size:
        raise RecordError(
            f"ticket {name}: no record, because its last {RECORD_LENGTH_SIZE} bytes say a length of {size}, and other "
            "bytes than zeros stand behind that: `get` reads any chunk"
        )
    return chunk[:size]


def chunks(first: str, records: Iterable[Buffer]) -> Iterator[tuple[str, bytes]]:
    """(ticket, data) of the chunks of one record after the other, from the ticket ``first`` on. TicketError, UsageError."""
    for index, data in enumerate(records, ticket.parse(first)):
        yield ticket.format(index), serialize(data)
