"""A load whose tickets lie in random packs: at most one frame for each pack, in an order drawn at random.

Position i of the load belongs to pack `order[i]`, a permutation, so that no pack comes twice. Everything follows
from the seed and the position, so a frame can be made again to compare.
"""

from __future__ import annotations

import socket
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingest import _hmac, limits, mac, sharding, ticket
from ingest.status import Status

BATCH = 128  # frames built, signed and sent at once
WINDOW = 1024  # frames in flight on each connection
FIRST_PACK = sharding.ticket_pack(ticket.parse("5000000"))


class RandomTickets:
    """Puts frames over some connections until `packs` are used up or the connections end."""

    def __init__(
        self, address: tuple[str, int], shared_key: bytes, *, packs: int, connections: int, seed: int
    ) -> None:
        draw = np.random.default_rng(seed)
        slots = draw.integers(0, limits.PACK_SLOTS, packs, dtype=np.int64)
        first = sharding.slot_ticket(FIRST_PACK, 0)
        self._indices: NDArray[np.int64] = (
            first + draw.permutation(packs).astype(np.int64) * limits.PACK_SLOTS + slots
        )
        self._data = np.frombuffer(draw.bytes(limits.DATA_SIZE), np.uint8)
        self._key = mac.derive(shared_key).put
        self._next = 0
        self._lock = threading.Lock()
        self._ending = False
        self._open = connections
        self._done = threading.Event()
        self._begun = threading.Event()  # something was acked, or nothing will be
        self._failures: list[BaseException] = []
        self._acked: list[list[int]] = [[] for _ in range(connections)]
        self._sockets = [socket.create_connection(address) for _ in range(connections)]
        self._threads = [threading.Thread(target=self._run, args=(i,)) for i in range(connections)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def wait(self, seconds: float) -> None:
        """Returns after so long and at least one ack, or earlier when every frame was acked or a connection failed."""
        self._done.wait(seconds)
        self._begun.wait()

    @property
    def acked(self) -> int:
        return sum(len(acked) for acked in self._acked)

    def expect_the_end(self) -> None:
        """From now on connections may break."""
        self._ending = True

    def join(self) -> list[int]:
        """The positions that were acked SAVED. Raises what went wrong before the end was expected."""
        for thread in self._threads:
            thread.join()
        for sock in self._sockets:
            sock.close()
        if self._failures:
            raise self._failures[0]
        return [position for acked in self._acked for position in acked]

    def frame(self, position: int) -> bytes:
        return self._frames(position, position + 1).tobytes()

    def _frames(self, begin: int, end: int) -> NDArray[np.uint8]:
        """Signed frames of some positions, shape (n, 1474)."""
        indices = self._indices[begin:end]
        frames = np.zeros((end - begin, limits.FRAME_SIZE), np.uint8)
        frames[:, : limits.TICKET_SIZE] = wire_tickets(indices)
        frames[:, 16:] = self._data
        frames[:, 16:24] ^= indices.astype(">i8").view(np.uint8).reshape(-1, 8)
        _hmac.sign(self._key, frames.reshape(-1).data)
        return frames

    def _take(self) -> tuple[int, int]:
        with self._lock:
            begin = self._next
            self._next = min(begin + BATCH, len(self._indices))
            return begin, self._next

    def _run(self, connection: int) -> None:
        try:
            self._put(self._sockets[connection], self._acked[connection])
        except ConnectionError as error:
            if not self._ending:
                self._failures.append(error)
        except BaseException as error:
            self._failures.append(error)
        finally:
            with self._lock:
                self._open -= 1
                if self._open == 0 or self._failures:
                    self._done.set()
                    self._begun.set()

    def _put(self, sock: socket.socket, acked: list[int]) -> None:
        waiting: dict[bytes, int] = {}
        rest = b""
        begin, end = self._take()
        while begin < end or waiting:
            if begin < end and len(waiting) <= WINDOW - BATCH:
                frames = self._frames(begin, end)
                waiting.update((frames[i, :8].tobytes(), begin + i) for i in range(end - begin))
                sock.sendall(frames.reshape(-1).data)
                begin, end = self._take()
                continue
            received = sock.recv(limits.ACK_SIZE * WINDOW)
            if not received:
                raise ConnectionResetError("the server ended the connection")
            rest += received
            whole = len(rest) // limits.ACK_SIZE * limits.ACK_SIZE
            for at in range(0, whole, limits.ACK_SIZE):
                assert rest[at + 8] == Status.SAVED, f"{rest[at : at + 8]!r}: {Status(rest[at + 8]).name}"
                acked.append(waiting.pop(rest[at : at + 8]))
            self._begun.set()
            rest = rest[whole:]


def wire_tickets(indices: NDArray[np.int64]) -> NDArray[Any]:
    """Tickets of one length, as they travel: shape (n, 8). `ticket.index_to_wire` for many at once."""
    length = len(ticket.format(int(indices.min())))
    assert len(ticket.format(int(indices.max()))) == length, "tickets of different lengths"
    letters = np.frombuffer(ticket.ALPHABET.encode(), np.uint8)
    values = indices - ticket.parse(ticket.ALPHABET[0] * length)
    wire = np.zeros((len(indices), limits.TICKET_SIZE), np.uint8)
    for place in range(length - 1, -1, -1):
        values, digit = np.divmod(values, ticket.BASE)
        wire[:, place] = letters[digit]
    return wire
