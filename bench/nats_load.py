"""Records to NATS JetStream over its own protocol, without its client library: that one would be what is measured.

The protocol is lines: PUB with a reply subject and the payload, answered by a MSG with a JSON document that holds `"seq":`
when the record is stored, `"error"` when it is not (docs.nats.io, "Client Protocol" and "JetStream wire API").
"""

from __future__ import annotations

import json
import os
import select
import socket
import time
from dataclasses import dataclass, field

STREAM = "records"
STORED = b'"seq":'
REFUSED = b'"error"'
RECEIVE_SIZE = 1 << 18
SILENCE_MAX_S = 20.0  # without any ack: it hangs


class NatsError(Exception):
    """The server refused, or said nothing."""


@dataclass(frozen=True)
class Published:
    records: int
    seconds: float


def make_stream(address: tuple[str, int]) -> bool:
    """Makes the one stream, in files. False while the server can't yet; NatsError when it won't."""
    config = {"name": STREAM, "subjects": [f"{STREAM}.*"], "storage": "file", "num_replicas": 1}
    body = json.dumps(config).encode()
    with _connect(address, "made") as sock:
        sock.sendall(b"PUB $JS.API.STREAM.CREATE.%s made %d\r\n%s\r\n" % (STREAM.encode(), len(body), body))
        sock.settimeout(5)
        said = b""
        while b"MSG made" not in said or not said.endswith(b"}\r\n"):
            part = sock.recv(65536)
            if not part:
                return False
            said += part
    if REFUSED in said:
        raise NatsError(said.decode(errors="replace"))
    return True


def _connect(address: tuple[str, int], inbox: str) -> socket.socket:
    sock = socket.create_connection(address, 5)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    options = b'CONNECT {"verbose":false,"pedantic":false,"headers":true,"no_responders":true}\r\n'
    sock.sendall(options + b"SUB %s 1\r\nPING\r\n" % inbox.encode())
    said = b""
    while b"PONG\r\n" not in said:
        part = sock.recv(65536)
        if not part:
            sock.close()
            raise ConnectionResetError(said.decode(errors="replace"))
        said += part
    return sock


@dataclass
class _Publisher:
    """One connection: for each ack that comes a record goes out."""

    sock: socket.socket
    records: memoryview  # a window of them
    size: int  # bytes of one, as it travels
    unsent: int = 0  # bytes
    sent: int = 0  # bytes, since the first
    acked: int = 0
    tail: bytes = b""  # what may be the start of an ack
    waits_to_write: bool = field(default=False)

    def add(self, records: int) -> None:
        self.unsent += records * self.size
        self.push()

    def push(self) -> None:
        while self.unsent:
            at = self.sent % self.size
            part = self.records[at : min(len(self.records), at + self.unsent)]
            try:
                n = self.sock.send(part)
            except BlockingIOError:
                break
            self.sent += n
            self.unsent -= n
        self.waits_to_write = self.unsent > 0

    def receive(self) -> int:
        try:
            part = self.sock.recv(RECEIVE_SIZE)
        except BlockingIOError:
            return 0
        except ConnectionResetError as error:
            raise NatsError(f"{error}, after {self.tail!r}") from error
        if not part:
            raise NatsError(f"the connection ended, after {self.tail!r}")
        if part.startswith(b"PING"):
            self.sock.sendall(b"PONG\r\n")
        said = self.tail + part
        if REFUSED in said:
            raise NatsError(said.decode(errors="replace")[-500:])
        count = said.count(STORED)
        self.tail = said[-(len(STORED) - 1) :]
        self.acked += count
        return count


def publish(
    address: tuple[str, int], seconds: float, connections: int, window: int, record_size: int
) -> Published:
    """Publishes for `seconds`, then waits for the acks of what is on its way: those count too, with their time."""
    publishers: dict[int, _Publisher] = {}
    payload = os.urandom(record_size).replace(b"\r", b"r").replace(b"\n", b"n")
    poll = select.epoll()
    try:
        for i in range(connections):
            inbox = f"acks.{i}"
            sock = _connect(address, inbox)
            sock.setblocking(False)
            record = b"PUB %s.one %s %d\r\n%s\r\n" % (STREAM.encode(), inbox.encode(), record_size, payload)
            publishers[sock.fileno()] = _Publisher(sock, memoryview(record * (window + 1)), len(record))
            poll.register(sock, select.EPOLLIN)
        return _run(poll, publishers, seconds, window)
    finally:
        poll.close()
        for publisher in publishers.values():
            publisher.sock.close()


def _run(poll: select.epoll, publishers: dict[int, _Publisher], seconds: float, window: int) -> Published:
    began = time.perf_counter()
    end = began + seconds
    for publisher in publishers.values():
        publisher.add(window)
    waiting = len(publishers) * window
    records = 0
    while waiting:
        events = poll.poll(SILENCE_MAX_S)
        if not events:
            raise NatsError(f"no ack for {SILENCE_MAX_S:g} s, {waiting} are missing")
        go_on = time.perf_counter() < end
        for fd, what in events:
            publisher = publishers[fd]
            waited = publisher.waits_to_write
            if what & select.EPOLLOUT:
                publisher.push()
            if what & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
                count = publisher.receive()
                records += count
                if go_on and count:
                    publisher.add(count)
                else:
                    waiting -= count
            if publisher.waits_to_write != waited:
                poll.modify(fd, select.EPOLLIN | (select.EPOLLOUT if publisher.waits_to_write else 0))
    return Published(records, time.perf_counter() - began)
