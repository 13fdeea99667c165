"""A put server in this process, with loopback connections and a committer that the test steers."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable

from ingest import _hmac
from ingest.engine import _queue, metrics
from ingest.engine._queue import Queue
from ingest.engine.ports._put_server import PutServer
from ingest.limits import FRAME_SIZE
from ingest.mac import SubKeys, derive
from ingest.status import Status
from ingest.ticket import index_to_wire

PATIENCE_S = 20.0  # before a wait for an event counts as failed
PUT, DELETE = 0, 1
KEYS = derive(bytes(range(32)))
OTHER_KEYS = derive(bytes(range(1, 33)))


def frame(index: int, data: bytes = b"", key: bytes = KEYS.put) -> bytes:
    return raw_frame(index_to_wire(index), data, key)


def raw_frame(ticket: bytes, data: bytes = b"", key: bytes = KEYS.put) -> bytes:
    """A frame with this ticket field, whatever it holds, signed."""
    built = bytearray(ticket.ljust(8, b"\0") + bytes(8) + data.ljust(FRAME_SIZE - 16, b"\0"))
    _hmac.sign(key, built)
    return bytes(built)


def delete_frame(index: int, count: int, padding: bytes = b"") -> bytes:
    return frame(index, count.to_bytes(8, "big") + padding, KEYS.delete)


def frames(first: int, count: int) -> bytes:
    """`count` frames, each with data of its own."""
    return b"".join(frame(first + i, b"data of %d" % (first + i)) for i in range(count))


def ack(index: int, status: Status = Status.SAVED) -> bytes:
    return index_to_wire(index) + bytes([status])


def acks(first: int, count: int, status: Status = Status.SAVED) -> bytes:
    return b"".join(ack(first + i, status) for i in range(count))


class Rig:
    """`server` with `queue`; `connect` opens a connection to it, `until` lets both ends of the queue work.

    The committer answers everything SAVED as long as `answering` is true, and keeps in `stored` what it was given:
    {ticket index: (kind, frame)}, and in `runs` the runs as they came.
    """

    def __init__(
        self, places: int = 64, block_places: int = 16, keys: tuple[SubKeys, ...] = (KEYS,), **options: int
    ):
        self.queue = Queue(1, places)
        self.queue.committer_ready()
        self.server = PutServer(self.queue, 0, keys, block_places=block_places, **options)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.answering = True
        self.stored: dict[int, tuple[int, bytes]] = {}
        self.runs: list[tuple[int, int, int, int, int]] = []
        self.unanswered: list[tuple[int, int, int, int, int]] = []
        self.events: list[tuple[str, str, int]] = []
        self.clients: list[socket.socket] = []
        self.turn()

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, *_: object) -> None:
        for client in self.clients:
            client.close()
        self.listener.close()
        self.server.close()
        self.queue.close()

    def connect(self, receive_buffer: int = 0) -> socket.socket:
        """A connection; `receive_buffer` makes the kernel's buffers small, those for acks as small as that."""
        client = socket.socket()
        if receive_buffer:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        client.connect(self.listener.getsockname())
        self.clients.append(client)
        accepted, address = self.listener.accept()
        if receive_buffer:
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, receive_buffer)
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        accepted.setblocking(False)
        self.queue.count_connection(0, True, 1)
        self.server.adopt(accepted.detach(), f"{address[0]}:{address[1]}")
        client.setblocking(False)
        return client

    def turn(self) -> None:
        self.events += self.server.turn() or []

    def tick(self, now: float) -> None:
        self.events += self.server.tick(now) or []

    def commit(self) -> None:
        """What a committer does in one go."""
        for run in self.queue.take_runs(0):
            first, _, place, count, kind = run
            self.runs.append(run)
            held = bytes(self.queue.frames(0, place, count))
            for i in range(count):
                self.stored[first + i] = (kind, held[i * FRAME_SIZE : (i + 1) * FRAME_SIZE])
            self.unanswered.append(run)
        if self.answering:
            self.answer_all()

    def answer_all(self, status: Status = Status.SAVED) -> None:
        while self.unanswered:
            self.answer(self.unanswered[0], status)

    def answer(self, run: tuple[int, int, int, int, int], status: Status = Status.SAVED) -> None:
        self.unanswered.remove(run)
        _, cookie, place, count, kind = run
        if kind == DELETE and status == Status.SAVED:
            status = Status.DELETED
        self.queue.answer(0, cookie, place, count, status)

    def step(self, wait_s: float = 0.05) -> bool:
        """One turn of the event loop, if there is anything to do; whether there was."""
        ready = bool(select.select([self.server.fileno()], [], [], wait_s)[0])
        if ready:
            self.turn()
        self.commit()
        return ready

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, "it never came"
            self.step(0.01)

    def settle(self) -> None:
        """Until the server has nothing to do any more."""
        quiet = 0
        while quiet < 2:
            quiet = 0 if self.step(0.005) else quiet + 1

    def send(self, client: socket.socket, data: bytes) -> None:
        view = memoryview(data)
        deadline = time.monotonic() + PATIENCE_S
        while view:
            assert time.monotonic() < deadline, "the server does not read"
            try:
                view = view[client.send(view) :]
            except BlockingIOError:
                self.step(0.01)

    def receive(self, client: socket.socket, size: int) -> bytes:
        """Exactly `size` bytes, fewer at the end of the stream."""
        got = bytearray()
        deadline = time.monotonic() + PATIENCE_S
        while len(got) < size:
            assert time.monotonic() < deadline, f"{len(got)} of {size} bytes came"
            try:
                more = client.recv(size - len(got))
            except BlockingIOError:
                self.step(0.01)
                continue
            if not more:
                break
            got += more
        return bytes(got)

    def receive_all(self, client: socket.socket) -> bytes:
        """To the end of the stream; ConnectionResetError after a reset."""
        return self.receive(client, 1 << 30)

    def counter(self, name: str) -> int:
        return self.queue.counter_row(_queue.ROW_WORKER)[metrics.INDEX[COUNTERS[name]]]


COUNTERS = {
    "frames": "FRAMES_RECEIVED",
    "bytes": "BYTES_RECEIVED",
    "partial": "PARTIAL_FRAMES",
    "saved": "ACKS_SAVED",
    "bad_checksum": "ACKS_BAD_CHECKSUM",
    "bad_ticket": "ACKS_BAD_TICKET",
    "deleted": "ACKS_DELETED",
    "accepted": "PUT_ACCEPTED",
    "refused": "PUT_REFUSED",
    "closed_bad": "PUT_CLOSED_BAD",
    "closed_unread": "PUT_CLOSED_UNREAD",
    "closed_partial": "PUT_CLOSED_PARTIAL",
    "closed_idle": "PUT_CLOSED_IDLE",
    "passed": "PUT_PASSED",
    "tls": "FOREIGN_TLS",
    "http": "FOREIGN_HTTP",
    "ack_us": "ACK_MICROSECONDS",
    "outstanding": "OUTSTANDING_FRAMES",
}


def split_acks(data: bytes) -> list[bytes]:
    assert len(data) % 9 == 0
    return [data[i : i + 9] for i in range(0, len(data), 9)]
