"""A client for many small requests, one in flight on each connection.

It speaks no more HTTP than it needs, over plain sockets, so that the server is what is measured: HTTP/1.1 with keep-alive,
answers with a Content-Length. Each answer must be 200 and whole, and have the body that is expected, if one is.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ingest.runtime.listeners import unpace

HEAD_SIZE_MAX = 4096  # bytes of the head of an answer
SILENCE_MAX_S = 30.0  # without any answer: it hangs
OK = b"HTTP/1.1 200 "
LENGTH = b"\r\nContent-Length: "
END = b"\r\n\r\n"


class HttpError(Exception):
    """The answer is not what the benchmark needs; the message has its beginning."""


@dataclass(frozen=True)
class Done:
    """Requests that were answered, in how many seconds, how many processors the client kept busy, and latencies."""

    requests: int
    seconds: float
    client_cores: float
    p50_ms: float
    p99_ms: float

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds

    def details(self) -> dict[str, Any]:
        return {
            "requests": self.requests,
            "p50_ms": round(self.p50_ms, 3),
            "p99_ms": round(self.p99_ms, 3),
            "client_cores": round(self.client_cores, 2),
        }


@dataclass(frozen=True)
class Ask:
    """Requests by their number: the bytes of one, and the body of its answer.

    ``body``: None for any, of ``body_max`` bytes at most."""

    request: Callable[[int], bytes]
    body: Callable[[int], bytes] | None
    body_max: int


class Connection:
    """One connection, with at most one request in flight."""

    def __init__(self, address: tuple[str, int], ask: Ask) -> None:
        self.sock = socket.create_connection(address, SILENCE_MAX_S)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        unpace(self.sock, address[0])  # as the load generator of chunks does
        self._ask = ask
        self._buffer = bytearray(HEAD_SIZE_MAX + ask.body_max)
        self._view = memoryview(self._buffer)
        self._have = 0
        self._number = 0
        self.sent_at = 0.0

    def send(self, number: int) -> None:
        self._number = number
        self.sent_at = time.perf_counter()
        self.sock.sendall(self._ask.request(number))

    def receive(self) -> memoryview | None:
        """Takes what has come: the body of the answer once that is whole, valid until the next call. HttpError."""
        size = self.sock.recv_into(self._view[self._have :])
        if size == 0:
            raise self._error("the connection ended")
        self._have += size
        end = self._buffer.find(END, 0, self._have)
        if end < 0:
            if self._have == len(self._buffer):
                raise self._error("its head is too long")
            return None
        if not self._buffer.startswith(OK):
            raise self._error("it is not 200")
        start = self._buffer.find(LENGTH, 0, end + 2) + len(LENGTH)
        if start < len(LENGTH):
            raise self._error("it has no Content-Length")
        whole = end + len(END) + int(self._buffer[start : self._buffer.index(b"\r", start)])
        if self._have < whole:
            if whole > len(self._buffer):
                raise self._error(f"it has {whole} bytes, more than are expected")
            return None
        if self._have > whole:
            raise self._error("more came than was asked for")
        start = end + len(END)
        if self._ask.body is not None:
            expected = self._ask.body(self._number)
            # Not by comparing memoryviews: that goes byte by byte.
            if len(expected) != whole - start or not self._buffer.startswith(expected, start):
                raise self._error("it has another body than is expected")
        self._have = 0
        return self._view[start:whole]

    def _error(self, what: str) -> HttpError:
        return HttpError(
            f"the answer to request {self._number}: {what}: {bytes(self._view[: self._have])[:400]!r}"
        )


def load(
    address: tuple[str, int], connections: int, seconds: float, ask: Ask, numbers: Iterator[int]
) -> Done:
    """Asks for ``seconds``, by the numbers that come next, then waits for the answers that are under way: those count too,
    with their time. All connections are open before the clock starts. HttpError."""
    by_fd: dict[int, Connection] = {}
    poll = select.epoll()
    try:
        for _ in range(connections):
            connection = Connection(address, ask)
            by_fd[connection.sock.fileno()] = connection
            poll.register(connection.sock, select.EPOLLIN)
        return _run(poll, by_fd, seconds, numbers)
    finally:
        poll.close()
        for connection in by_fd.values():
            connection.sock.close()


def _run(poll: select.epoll, by_fd: dict[int, Connection], seconds: float, numbers: Iterator[int]) -> Done:
    latencies: list[float] = []
    busy = time.process_time()
    began = time.perf_counter()
    end = began + seconds
    for connection in by_fd.values():
        connection.send(next(numbers))
    waiting = len(by_fd)
    while waiting:
        events = poll.poll(SILENCE_MAX_S)
        if not events:
            raise HttpError(f"no answer for {SILENCE_MAX_S:g} s, {waiting} are missing")
        for fd, _ in events:
            connection = by_fd[fd]
            if connection.receive() is None:
                continue
            now = time.perf_counter()
            latencies.append(now - connection.sent_at)
            if now < end:
                connection.send(next(numbers))
            else:
                waiting -= 1
    taken = time.perf_counter() - began
    p50, p99 = np.percentile(latencies, [50, 99]) * 1000
    return Done(len(latencies), taken, (time.process_time() - busy) / taken, float(p50), float(p99))
