"""Clients that only read: they look at no more than they must, so that the server is what is measured."""

from __future__ import annotations

import select
import socket
import time
from collections import deque
from collections.abc import Callable

import numpy as np

from bench.random_tickets import wire_tickets
from ingest import _hmac, limits, mac, ticket
from ingest.status import Status

RECEIVE_SIZE = 1 << 20
RANGE_FRAMES = 8 * limits.PACK_SLOTS  # of one request of a sequential read
PIPELINED = 4  # requests under way of it
REPLY_SIZE = limits.RUN_HEADER_SIZE + limits.FRAME_SIZE  # of a single get that is answered SAVED
Look = Callable[[int, memoryview], None]


class ReadError(Exception):
    """The reply is not what was put there before."""


def read_sequence(
    address: tuple[str, int], get_key: bytes, first: int, count: int, look: Look | None = None
) -> float:
    """Reads `count` frames from ticket `first` on over one connection; returns the seconds.

    `look(at, bytes)` gets what was received in pieces, with the offset in the current run's frames from `first`.
    ReadError for a run that is not SAVED, or of other tickets than the next.
    """
    requests = deque(
        mac.build_request(get_key, ticket.index_to_wire(at), min(RANGE_FRAMES, first + count - at))
        for at in range(first, first + count, RANGE_FRAMES)
    )
    buffer = bytearray(RECEIVE_SIZE)
    view = memoryview(buffer)
    began = time.perf_counter()
    with socket.create_connection(address) as sock:
        asked = done = 0  # frames
        left = 0  # bytes of the present run that are still to come
        head = b""
        position = 0  # bytes of frames since the first
        while done < count or left:
            while requests and asked - done < PIPELINED * RANGE_FRAMES:
                sock.sendall(requests.popleft())
                asked += min(RANGE_FRAMES, count - asked)
            size = sock.recv_into(buffer)
            if size == 0:
                raise ReadError(f"the connection ended after {done} of {count} frames")
            at = 0
            while at < size:
                if left == 0:
                    part = bytes(view[at : min(size, at + limits.RUN_HEADER_SIZE - len(head))])
                    head += part
                    at += len(part)
                    if len(head) < limits.RUN_HEADER_SIZE:
                        break
                    frames = int.from_bytes(head[12:], "big")
                    if head[8] != Status.SAVED or frames == 0:
                        raise ReadError(
                            f"a run of {frames} that is {head[8]}, after {done} of {count} frames"
                        )
                    left = frames * limits.FRAME_SIZE
                    done += frames
                    head = b""
                    continue
                step = min(left, size - at)
                if look is not None:
                    look(position, view[at : at + step])
                position += step
                at += step
                left -= step
    if done != count:
        raise ReadError(f"{done} frames came where {count} were asked for")
    return time.perf_counter() - began


def read_single(
    address: tuple[str, int],
    get_key: bytes,
    indices: np.ndarray[tuple[int], np.dtype[np.int64]],
    *,
    connections: int,
    in_flight: int,
    look: Look | None = None,
) -> float:
    """Gets each of these tickets by a request of its own, `in_flight` at a time over all connections; returns the seconds.

    Requests are signed before the clock starts. `look(connection, bytes)` gets all that comes. ReadError for one that is
    not SAVED.
    """
    shares = [_signed(get_key, indices[i::connections]) for i in range(connections)]
    readers = [
        _SingleReader(address, share, in_flight // connections, i, look) for i, share in enumerate(shares)
    ]
    poll = select.epoll()
    by_fd = {}
    try:
        for reader in readers:
            by_fd[reader.sock.fileno()] = reader
            poll.register(reader.sock, select.EPOLLIN)
        began = time.perf_counter()
        for reader in readers:
            reader.ask(in_flight // connections)
        open_readers = sum(reader.left > 0 for reader in readers)
        while open_readers:
            for fd, _ in poll.poll():
                reader = by_fd[fd]
                reader.receive()
                if reader.left == 0:
                    poll.unregister(fd)
                    open_readers -= 1
        return time.perf_counter() - began
    finally:
        poll.close()
        for reader in readers:
            reader.sock.close()


def _signed(get_key: bytes, indices: np.ndarray[tuple[int], np.dtype[np.int64]]) -> memoryview:
    """Requests for one frame each."""
    requests = np.zeros((len(indices), limits.REQUEST_SIZE), np.uint8)
    requests[:, :8] = wire_tickets(indices)
    requests[:, 15] = 1
    tags = _hmac.request_tags(get_key, requests.reshape(-1).data)
    requests[:, 16:] = np.frombuffer(tags, np.uint8).reshape(-1, limits.CHECKSUM_SIZE)
    return memoryview(requests.tobytes())


class _SingleReader:
    """One connection of `read_single`: for each reply that comes whole, the next request goes out."""

    def __init__(
        self, address: tuple[str, int], requests: memoryview, in_flight: int, number: int, look: Look | None
    ) -> None:
        self.sock = socket.create_connection(address)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.left = len(requests) // limits.REQUEST_SIZE  # replies still to come
        self._requests = requests
        self._asked = 0
        self._buffer = bytearray(in_flight * REPLY_SIZE)
        self._view = memoryview(self._buffer)
        self._have = 0
        self._number = number
        self._look = look

    def ask(self, count: int) -> None:
        begin = self._asked
        self._asked = min(begin + count, len(self._requests) // limits.REQUEST_SIZE)
        if self._asked > begin:
            self.sock.sendall(self._requests[begin * limits.REQUEST_SIZE : self._asked * limits.REQUEST_SIZE])

    def receive(self) -> None:
        size = self.sock.recv_into(self._view[self._have :])
        if size == 0:
            raise ReadError(f"the connection ended with {self.left} replies to come")
        self._have += size
        whole = self._have // REPLY_SIZE
        if whole == 0:
            return
        end = whole * REPLY_SIZE
        # A reply that is not SAVED has no frame, and all behind it would stand elsewhere.
        statuses = self._buffer[limits.TICKET_SIZE : end : REPLY_SIZE]
        if statuses.count(Status.SAVED) != whole:
            raise ReadError(f"not all SAVED: {statuses.hex(' ')}")
        if self._look is not None:
            self._look(self._number, self._view[:end])
        self._buffer[: self._have - end] = self._buffer[end : self._have]
        self._have -= end
        self.left -= whole
        self.ask(whole)
