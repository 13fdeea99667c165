"""A get server in this process, with loopback connections, over packs that a test makes."""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from packs import KEYS, Packs

from ingest.engine import metrics
from ingest.engine._queue import Queue
from ingest.engine.ports._get_server import GetServer
from ingest.limits import FRAME_SIZE
from ingest.mac import SubKeys, build_request
from ingest.status import Status
from ingest.store.layouts._pack_reader import PackReader
from ingest.store.layouts._slot_reader import SlotReader
from ingest.store.layouts._tree_reader import TreeReader
from ingest.ticket import index_from_wire, index_to_wire

PATIENCE_S = 20.0  # before a wait for an event counts as failed
ACCEPTED, REFUSED, CLOSED_PARTIAL, CLOSED_UNREAD, REQUESTS, REQUESTS_BAD, FRAMES, BYTES, ERRORS, HTTP = (
    metrics.INDEX[name]
    for name in (
        "GET_ACCEPTED",
        "GET_REFUSED",
        "GET_CLOSED_PARTIAL",
        "GET_CLOSED_UNREAD",
        "GET_REQUESTS",
        "GET_REQUESTS_BAD",
        "GET_FRAMES",
        "GET_BYTES",
        "GET_ERRORS",
        "FOREIGN_HTTP",
    )
)

Run = tuple[int, Status, int, bytes]


def request(first: int, count: int = 1, key: bytes = KEYS.get) -> bytes:
    return build_request(key, index_to_wire(first), count)


def header(first: int, status: Status, n: int) -> bytes:
    return index_to_wire(first) + bytes([status, 0, 0, 0]) + n.to_bytes(4, "big")


def parse_runs(data: bytes, inventory: bool = False) -> list[Run]:
    """All runs in `data`, which ends with one."""
    runs = []
    at = 0
    while at < len(data):
        head = data[at : at + 16]
        assert len(head) == 16 and head[9:12] == bytes(3)
        status, n = Status(head[8]), int.from_bytes(head[12:], "big")
        size = n * FRAME_SIZE if status == Status.SAVED and not inventory else 0
        frames = data[at + 16 : at + 16 + size]
        assert len(frames) == size
        runs.append((index_from_wire(head[:8]), status, n, frames))
        at += 16 + size
    return runs


def _shrink(end: socket.socket, buffer: int) -> None:
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        end.setsockopt(socket.SOL_SOCKET, option, buffer)


class Rig:
    """`server` over the packs below `root`, of which it keeps `packs_max` open; `connect` opens a connection to it."""

    def __init__(
        self,
        root: Path,
        keys: Iterable[SubKeys] = (KEYS,),
        packs_max: int | None = None,
        layout: str = "pack",
        **options: int,
    ) -> None:
        self.packs = Packs(root)
        self.queue = Queue(1, 1)
        if layout == "pack":
            self.reader: SlotReader = PackReader(self.packs.fd, packs_max=packs_max)
        else:
            self.reader = TreeReader(self.packs.fd)
        self.server = GetServer(self.queue, 0, self.reader, keys, **options)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.events: list[tuple[str, str, int]] = []
        self.clients: list[socket.socket] = []
        self.turns = 0

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, *_: object) -> None:
        for client in self.clients:
            client.close()
        self.listener.close()
        self.server.close()
        self.queue.close()
        os.close(self.packs.fd)

    def connect(self, buffer: int = 0) -> socket.socket:
        client = socket.socket()
        if buffer:
            _shrink(client, buffer)
        client.connect(self.listener.getsockname())
        self.clients.append(client)
        accepted, address = self.listener.accept()
        if buffer:
            _shrink(accepted, buffer)
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        accepted.setblocking(False)
        self.queue.count_connection(0, False, 1)
        self.server.adopt(accepted.detach(), f"{address[0]}:{address[1]}")
        client.setblocking(False)
        return client

    def turn(self) -> None:
        self.turns += 1
        self.events += self.server.turn() or []

    def tick(self, now: float) -> None:
        self.events += self.server.tick(now) or []

    def step(self, wait_s: float = 0.05) -> bool:
        """One turn of the event loop, if there is anything to do; whether there was."""
        ready = bool(select.select([self.server.fileno()], [], [], wait_s)[0])
        if ready:
            self.turn()
        return ready

    def settle(self) -> None:
        """Until the server has nothing to do any more."""
        quiet = 0
        while quiet < 2:
            quiet = 0 if self.step(0.005) else quiet + 1

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, "it never came"
            self.step(0.01)

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
        got = bytearray()
        deadline = time.monotonic() + PATIENCE_S
        while True:
            assert time.monotonic() < deadline, "no end of the stream"
            try:
                more = client.recv(1 << 20)
            except BlockingIOError:
                self.step(0.01)
                continue
            if not more:
                return bytes(got)
            got += more

    def ask(self, client: socket.socket, first: int, count: int = 1, inventory: bool = False) -> list[Run]:
        """The runs of one range."""
        self.send(client, request(first, count, KEYS.inventory if inventory else KEYS.get))
        return self.answer(client, first, count, inventory)

    def answer(self, client: socket.socket, first: int, count: int, inventory: bool = False) -> list[Run]:
        runs = []
        done = 0
        while done < count:
            head = self.receive(client, 16)
            size = (
                int.from_bytes(head[12:], "big") * FRAME_SIZE
                if head[8] == Status.SAVED and not inventory
                else 0
            )
            (run,) = parse_runs(head + self.receive(client, size), inventory)
            assert run[0] == first + done and run[2] >= 1
            done += run[2]
            runs.append(run)
        assert done == count
        return runs

    def counter(self, which: int) -> int:
        return self.queue.counter_row(3)[which]
