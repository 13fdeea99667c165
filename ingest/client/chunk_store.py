"""What is asked of a store of chunks by those who keep objects in it. `AsyncClient` is the one that asks a single server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from ingest.client.put_channel import Batch
from ingest.status import Status

if TYPE_CHECKING:
    from typing_extensions import Buffer


class ChunkStore(Protocol):
    """Chunks of 1458 bytes under tickets, put in batches, read and deleted by ranges.

    Order: an implementation promises none between tickets. Two puts of one ticket take effect in the order in which they
    were added. A delete or a read takes account of every put that was answered before it began.

    Durability: a chunk that is SAVED has been stored as durably as the server's ``--sync`` says, and every reader finds it
    from then on. What a ticket holds never changes: a put of other data gets CONFLICT, and any put DELETED after a delete.

    Errors: a status that is no answer (ERROR, BUSY) is tried again for a while; any other one is final. With
    ConnectionLostError the outcome is unknown, and the same call may be made again. TicketError and UsageError come before
    anything is sent.

    A call that is cancelled leaves what it has sent: its answers still come to the batch.
    """

    def new_batch(self) -> Batch:
        """For puts that are waited for together. Its ``refused`` has, at any time, each ticket that was not SAVED so far.

        That stays true after a call for the batch was cancelled or has failed.
        """

    async def add_range(self, batch: Batch, first: str, data: Buffer) -> None:
        """Puts ``data`` in chunks under consecutive tickets from ``first`` on, the last chunk padded with zeros.

        Back when the store has taken it, not when it is saved; ``data`` may be used again then. ConnectionLostError and
        ProtocolError as soon as the batch has failed.
        """

    def seal_range(self, first: str, data: Buffer) -> bytes:
        """The frames that ``add_range`` would send, signed, 1474 bytes each: the data stands at the end of each."""

    async def add_frames(self, batch: Batch, frames: bytes) -> None:
        """Puts what ``seal_range`` made of at least a byte, as ``add_range`` does."""

    async def finish(self, batch: Batch) -> dict[str, Status]:
        """Back when all that was added is answered: the ticket and status of each that is not SAVED.

        May be called again when it was cancelled. ConnectionLostError and ProtocolError.
        """

    async def delete(self, first: str, count: int = 1, *, retry_for: float | None = None) -> None:
        """Deletes ``count`` tickets from ``first`` on for good, whether anything is stored there or not.

        Back when that is as durable as a put that is SAVED.

        ``retry_for``: seconds for which ERROR and BUSY are tried again, if it is not the store's. RefusedError, which names
        the first ticket of the refused part: what comes before it is then deleted. ConnectionLostError.
        """

    async def get(self, name: str) -> bytes:
        """The 1458 bytes under a ticket. Raises what ``read_range`` does."""

    async def read_range(self, first: str, count: int) -> bytearray:
        """The data of ``count`` tickets from ``first`` on, 1458 bytes each, one after the other, checked end to end.

        RefusedError with the first ticket that is not SAVED and its status, CorruptFrameError for a frame that was bad
        twice, ConnectionLostError.
        """
