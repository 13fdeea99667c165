"""The contract (docs/protocol.md) once more, as plainly as it can be said: a server in memory, in one thread.

``Model`` is what a store has to do with one frame or request after another; the tests of the real server hold that
against it. ``ReferenceServer`` puts it behind two ports for the tests of the client, and misbehaves as ``Faults`` says.
It shares no code with ``ingest`` but the numbers: checksums are PyPI ``blake3``.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType

from blake3 import blake3

ALPHABET = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LAST = 2901713047667
FRAME, DATA, ACK, REQUEST = 1474, 1458, 9, 24
SAVED, ERROR, BAD_CHECKSUM, BAD_TICKET, CONFLICT, BUSY, NO_SPACE, MISSING, DELETED = range(1, 10)
COUNT_MAX = 65_536
BAD_FRAME_LIMIT = 3


def index_of(ticket: bytes) -> int | None:
    """The index of 8 bytes on the wire; None when they are malformed."""
    text = ticket.rstrip(b"\0")
    if not text or any(character not in ALPHABET for character in text):
        return None
    value = 0
    for character in text:
        value = value * 36 + ALPHABET.index(character) + 1
    return value - 1


def ticket_of(index: int) -> bytes:
    """The 8 bytes on the wire of an index."""
    value, text = index + 1, b""
    while value:
        value, digit = divmod(value - 1, 36)
        text = ALPHABET[digit : digit + 1] + text
    return text.ljust(8, b"\0")


def subkey(shared: bytes, purpose: str) -> bytes:
    return blake3(shared, derive_key_context=f"ingest 2026-11-21 {purpose}").digest()


def checksum(key: bytes, message: bytes) -> bytes:
    return blake3(message, key=key).digest(8)


def build_frame(shared: bytes, index: int, data: bytes, purpose: str = "put frame") -> bytes:
    ticket, data = ticket_of(index), data.ljust(DATA, b"\0")
    return ticket + checksum(subkey(shared, purpose), ticket + data) + data


def build_request(shared: bytes, index: int, count: int, purpose: str = "get request") -> bytes:
    head = ticket_of(index) + count.to_bytes(8, "big")
    return head + checksum(subkey(shared, purpose), head)


class Model:
    """What is stored, and what becomes of each frame and request. ``keys``: shared keys, the first two accepted."""

    def __init__(self, keys: list[bytes]) -> None:
        self.put_keys, self.delete_keys, self.get_keys, self.inventory_keys = (
            [subkey(key, purpose) for key in keys[:2]]
            for purpose in ("put frame", "delete frame", "get request", "inventory request")
        )
        self.frames: dict[int, bytes] = {}
        self.deleted: set[int] = set()

    def frame(self, frame: bytes) -> int:
        """The status that a frame of 1474 bytes is acked with."""
        index = index_of(frame[:8])
        if index is None:
            return BAD_TICKET
        signed = frame[:8] + frame[16:]
        if any(checksum(key, signed) == frame[8:16] for key in self.put_keys):
            return self._put(index, frame)
        if any(checksum(key, signed) == frame[8:16] for key in self.delete_keys):
            return self._delete(index, int.from_bytes(frame[16:24], "big"), frame[24:])
        return BAD_CHECKSUM

    def _put(self, index: int, frame: bytes) -> int:
        if index in self.deleted:
            return DELETED
        if self.frames.setdefault(index, frame)[16:] != frame[16:]:
            return CONFLICT
        return SAVED

    def _delete(self, index: int, count: int, rest: bytes) -> int:
        if not 1 <= count <= COUNT_MAX or index + count - 1 > LAST or any(rest):
            return BAD_TICKET
        for i in range(index, index + count):
            self.frames.pop(i, None)
            self.deleted.add(i)
        return DELETED

    def status(self, index: int) -> int:
        return DELETED if index in self.deleted else SAVED if index in self.frames else MISSING

    def request(self, request: bytes) -> tuple[bytes, bool]:
        """The reply to a request of 24 bytes, and whether the connection stays open."""
        is_get = any(checksum(key, request[:16]) == request[16:] for key in self.get_keys)
        is_inventory = any(checksum(key, request[:16]) == request[16:] for key in self.inventory_keys)
        index, count = index_of(request[:8]), int.from_bytes(request[8:16], "big")
        if index is None or (
            (is_get or is_inventory) and not (1 <= count <= COUNT_MAX and index + count - 1 <= LAST)
        ):
            return run_header(request[:8], BAD_TICKET, 0), False
        if not is_get and not is_inventory:
            return run_header(request[:8], BAD_CHECKSUM, 0), False
        reply = bytearray()
        for first, status, length in self.runs(index, count):
            reply += run_header(ticket_of(first), status, length)
            if is_get and status == SAVED:
                reply += b"".join(self.frames[i] for i in range(first, first + length))
        return bytes(reply), True

    def runs(self, index: int, count: int) -> Iterator[tuple[int, int, int]]:
        start = index
        while start < index + count:
            stop = start + 1
            while stop < index + count and self.status(stop) == self.status(start):
                stop += 1
            yield start, self.status(start), stop - start
            start = stop


def run_header(ticket: bytes, status: int, count: int) -> bytes:
    return ticket + bytes([status, 0, 0, 0]) + count.to_bytes(4, "big")


@dataclass
class Faults:
    """How the server misbehaves. Lists are used up from the front, one entry for each event; empty means no fault."""

    cut_put_after: list[int] = field(default_factory=list)  # acks, after which each put connection is reset
    cut_get_after: list[int] = field(default_factory=list)  # bytes of replies, likewise
    answer: Callable[[int, int], int | None] | None = (
        None  # (ticket index, how often seen): this status instead
    )
    reorder: random.Random | None = None  # shuffles the acks of what arrived together
    silent: bool = False  # reads everything, answers nothing
    corrupt: list[int] = field(default_factory=list)  # replies (counted from 0) that get a flipped data byte
    corrupt_always: bool = False
    extra_ack: bytes = b""  # sent once after the first acks
    gate: threading.Event | None = None  # acks wait until it is set, once ``gate_after`` frames were acked
    gate_after: int = 0
    hold: tuple[int, int] | None = (
        None  # (n, total): an ack leaves only when n frames wait for theirs, or all came
    )


class ReferenceServer:
    """``with ReferenceServer([key]) as server``: both ports on 127.0.0.1 (``put_address``, ``get_address``)."""

    def __init__(
        self, keys: list[bytes], faults: Faults | None = None, put_port: int = 0, get_port: int = 0
    ) -> None:
        self.model = Model(keys)
        self.faults = faults or Faults()
        self.put_connections = 0  # ever accepted
        self.get_connections = 0
        self.replies = 0
        self.frames_received = 0
        self.in_flight_max = 0  # most frames of a connection that were received and not acked
        self.stalled = threading.Event()  # set when acks begin to wait for the gate
        self._seen: dict[int, int] = {}
        self._loop = asyncio.new_event_loop()
        self._put_socket = socket.create_server(("127.0.0.1", put_port), backlog=2048)
        self._get_socket = socket.create_server(("127.0.0.1", get_port), backlog=2048)
        self.put_address = ("127.0.0.1", self._put_socket.getsockname()[1])
        self.get_address = ("127.0.0.1", self._get_socket.getsockname()[1])
        self._stop: asyncio.Event | None = None
        self._ready = threading.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(
            target=self._loop.run_until_complete, args=(self._serve(),), daemon=True
        )

    def __enter__(self) -> ReferenceServer:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Closes the ports and resets every connection."""
        if self._thread.is_alive():
            stop = self._stop
            assert stop is not None
            if self.faults.gate is not None:
                self.faults.gate.set()
            self._loop.call_soon_threadsafe(stop.set)
            self._thread.join()

    def drop_connections(self) -> None:
        """Resets every connection; the ports stay open."""
        self._loop.call_soon_threadsafe(self._abort_all)

    def _abort_all(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        put = await asyncio.start_server(self._put, sock=self._put_socket)
        get = await asyncio.start_server(self._get, sock=self._get_socket)
        self._ready.set()
        await self._stop.wait()
        put.close()
        get.close()
        self._abort_all()
        while others := asyncio.all_tasks() - {
            asyncio.current_task()
        }:  # end by themselves: nobody is connected
            await asyncio.wait(others, timeout=0.1)
            self._abort_all()

    async def _put(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.put_connections += 1
        left = self.faults.cut_put_after.pop(0) if self.faults.cut_put_after else None
        await self._talk(reader, writer, FRAME, PutTalk(self, left))

    async def _get(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.get_connections += 1
        left = self.faults.cut_get_after.pop(0) if self.faults.cut_get_after else None
        await self._talk(reader, writer, REQUEST, GetTalk(self, left))

    async def _talk(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, size: int, talk: PutTalk | GetTalk
    ) -> None:
        self._writers.add(writer)
        pending = b""
        with contextlib.suppress(ConnectionError):
            while talk.open:
                data = await reader.read(256 * FRAME)
                if not data:
                    break
                pending += data
                whole = len(pending) // size * size
                records = [pending[i : i + size] for i in range(0, whole, size)]
                pending = pending[whole:]
                answer = talk.answer(records)
                if talk.waits and self.faults.gate is not None and not self.faults.gate.is_set():
                    self.stalled.set()
                    await asyncio.to_thread(self.faults.gate.wait)
                writer.write(answer)
                if talk.cut:
                    with contextlib.suppress(ConnectionError):
                        await writer.drain()
                    break
                await writer.drain()
            if not talk.open and not talk.cut:  # docs/protocol.md: answer, shut down, read to the end or 1 s
                writer.write_eof()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(1):
                        while await reader.read(65_536):
                            pass
        self._writers.discard(writer)
        writer.close()


class PutTalk:
    """One put connection: frames in, acks out."""

    def __init__(self, server: ReferenceServer, acks_left: int | None) -> None:
        self.server, self.acks_left = server, acks_left
        self.open, self.cut, self.waits = True, False, False
        self.bad = 0
        self.held: list[bytes] = []

    def answer(self, frames: list[bytes]) -> bytes:
        server, faults = self.server, self.server.faults
        acks: list[bytes] = []
        for frame in frames:
            status = self._status(frame)
            server.frames_received += 1
            acks.append(frame[:8] + bytes([status]))
            self.bad += status in (BAD_CHECKSUM, BAD_TICKET)
            if self.bad >= BAD_FRAME_LIMIT:
                self.open = False
                break
        self.waits = faults.gate is not None and server.frames_received > faults.gate_after
        if faults.reorder:
            faults.reorder.shuffle(acks)
        self.held += acks
        server.in_flight_max = max(server.in_flight_max, len(self.held))
        keep = 0
        if faults.hold is not None and server.frames_received < faults.hold[1]:
            keep = min(len(self.held), faults.hold[0] - 1)
        acks, self.held = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
        if self.acks_left is not None:
            self.cut = len(acks) > self.acks_left
            acks = acks[: self.acks_left]
            self.acks_left -= len(acks)
        if faults.extra_ack and acks:
            acks.append(faults.extra_ack)
            faults.extra_ack = b""
        return b"" if faults.silent else b"".join(acks)

    def _status(self, frame: bytes) -> int:
        server, index = self.server, index_of(frame[:8])
        if server.faults.answer is not None and index is not None:
            seen = server._seen[index] = server._seen.get(index, 0) + 1
            status = server.faults.answer(index, seen)
            if status is not None:
                return status
        return server.model.frame(frame)


class GetTalk:
    """One get connection: requests in, runs and frames out."""

    def __init__(self, server: ReferenceServer, bytes_left: int | None) -> None:
        self.server, self.bytes_left = server, bytes_left
        self.open, self.cut, self.waits = True, False, False

    def answer(self, requests: list[bytes]) -> bytes:
        replies = bytearray()
        for request in requests:
            reply, self.open = self.server.model.request(request)
            replies += self._corrupt(reply)
            self.server.replies += 1
            if not self.open:
                break
        if self.bytes_left is not None:
            self.cut = len(replies) > self.bytes_left
            replies = replies[: self.bytes_left]
            self.bytes_left -= len(replies)
        return b"" if self.server.faults.silent else bytes(replies)

    def _corrupt(self, reply: bytes) -> bytes:
        faults = self.server.faults
        if len(reply) < FRAME or not (faults.corrupt_always or self.server.replies in faults.corrupt):
            return reply
        return reply[:-1] + bytes([reply[-1] ^ 1])
