"""Who puts, deletes and gets while calls fail, and holds every answer against docs/protocol.md."""

from __future__ import annotations

import functools
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from blake3 import blake3
from node_rig import Connection, data_of, delete_frame, read_exactly

from faults.call_shim import Shim
from faults.fault_server import FaultServer, committer_held
from ingest import mac, ticket
from ingest._hmac import sign
from ingest.limits import ACK_SIZE, BULK_PENDING_MIN, FRAME_SIZE, RUN_HEADER_SIZE
from ingest.status import Status

STUCK_S = 60.0  # without an ack, a death or a fault: a server that will never answer
SAID_S = 5.0  # until a line that a server has for its log is there
PERSISTENT_S = 0.6  # without an ack while a fault persists: nothing more will be seen of it

S, E, C, N, D, M = (
    Status.SAVED,
    Status.ERROR,
    Status.CONFLICT,
    Status.NO_SPACE,
    Status.DELETED,
    Status.MISSING,
)
BUSY = Status.BUSY

# All cases speak of the same tickets: what costs Python time is done once in a process.
index_of = functools.cache(ticket.index_from_wire)


@functools.cache
def unsigned(index: int, version: int) -> bytes:
    frame: bytes = ticket.index_to_wire(index) + bytes(8) + data_of(index, version)
    return frame


def put_frames(keys: mac.SubKeys, indices: list[int] | range, version: int = 0) -> bytearray:
    """Signed put frames, back to back."""
    frames = bytearray(b"".join([unsigned(index, version) for index in indices]))
    sign(keys.put, frames)
    return frames


class Loss(Exception):
    """A guarantee was broken."""


@dataclass
class Client:
    """Sends frames, and keeps what may be stored under each ticket: `allowed` is {MISSING} for one that was never sent."""

    node: FaultServer
    shim: Shim
    allowed: dict[int, set[Status]] = field(default_factory=dict)
    answered: list[Status | None] = field(default_factory=list)
    connection: Connection | None = None
    _released: threading.Event = field(default_factory=threading.Event)  # nobody holds the committer

    def __post_init__(self) -> None:
        self._released.set()

    def send(self, frames: bytes | bytearray, tickets: list[int]) -> dict[int, Status | None]:
        """Answers of all `tickets`; None where the connection broke before."""
        answers: dict[int, Status | None] = dict.fromkeys(tickets)
        waiting = set(tickets)
        began = time.monotonic()
        buffer = b""
        try:
            if self.connection is None:
                self.connection = Connection(self.node.put_address, self.node.keys)
                self.connection.sock.settimeout(0.1)
            sending = threading.Thread(target=self._feed, args=(self.connection, frames))
            sending.start()
            try:
                while waiting:
                    try:
                        part = self.connection.sock.recv(1 << 16)
                    except TimeoutError:
                        self._quiet(time.monotonic() - began)
                        continue
                    if not part:
                        raise ConnectionResetError("end of stream")
                    began = time.monotonic()
                    buffer += part
                    whole = len(buffer) // ACK_SIZE * ACK_SIZE
                    for at in range(0, whole, ACK_SIZE):
                        index = index_of(buffer[at : at + 8])
                        if index not in waiting:
                            raise Loss(f"{ticket.format(index)} is answered twice, or was not asked")
                        waiting.remove(index)
                        answers[index] = Status(buffer[at + 8])
                    buffer = buffer[whole:]
            finally:
                sending.join()
        except OSError:
            if self.connection is not None:
                self.connection.sock.close()
            self.connection = None
            if self.node.ended:
                raise Loss("the server ended by itself") from None
        self.answered += answers.values()
        return answers

    @staticmethod
    def _feed(connection: Connection, frames: bytes | bytearray) -> None:
        view = memoryview(frames)
        try:
            while view:
                try:
                    view = view[connection.sock.send(view) :]
                except TimeoutError:
                    continue
        except OSError:
            pass  # the receiving side notices

    def _quiet(self, seconds: float) -> None:
        """Nothing was answered for so long: a fault that persists has shown what it does, and is ended."""
        if (
            self.shim.struck
            and self.shim.control.onward
            and seconds > PERSISTENT_S
            and self._released.is_set()
        ):
            self.shim.disarm()
        if seconds > STUCK_S:
            raise Loss("frames are not answered any more")

    def put(self, tickets: list[int], version: int = 0) -> None:
        answers = self.send(put_frames(self.node.keys, tickets, version), tickets)
        for index, status in answers.items():
            allowed = self.allowed.setdefault(index, {M})
            if version:
                if status is S or (allowed == {S} and status not in (C, E, N, BUSY, None)):
                    raise Loss(f"other bytes for {ticket.format(index)} are answered {status}")
            elif status is S:
                if S not in allowed and D in allowed and len(allowed) == 1:
                    raise Loss(f"{ticket.format(index)} is deleted, and SAVED again")
                self.allowed[index] = {S}
            elif status in (E, None):
                if allowed != {S} and allowed != {D}:
                    allowed.add(S)
            elif status is D:
                if D not in allowed:
                    raise Loss(f"{ticket.format(index)} was never deleted, and is answered DELETED")
                self.allowed[index] = {D}
            elif status in (N, BUSY):
                # A server that cannot look at its directory answers so to everything, and looks at nothing that it has.
                if allowed == {S} and status is BUSY and not self._says_that_it_is_lost():
                    raise Loss(f"{ticket.format(index)} is stored, and is answered BUSY")
            else:
                raise Loss(f"a put of {ticket.format(index)} is answered {status}")

    def _says_that_it_is_lost(self) -> bool:
        """The line may come after the answer: its process writes it when the log takes it."""
        deadline = time.monotonic() + SAID_S
        while "nothing is saved any more" not in self.node.log():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    def put_long(self, tickets: list[int]) -> None:
        """A run for the bulk path, where it is long enough for that."""
        if len(tickets) < BULK_PENDING_MIN:
            self.put(tickets)
            return
        with committer_held(self.node, BULK_PENDING_MIN) as self._released:
            self.put(tickets)

    def leave(self) -> None:
        """The next frames go over another connection: a server that was short of descriptors may have ended this one."""
        if self.connection is not None:
            self.connection.sock.close()
            self.connection = None

    def delete(self, first: int, count: int) -> Status | None:
        status = self.send(delete_frame(self.node.keys, first, count), [first])[first]
        for index in range(first, first + count):
            if status is D:
                self.allowed[index] = {D}
            elif status in (E, None):
                self.allowed.setdefault(index, {M}).add(D)
            elif status not in (N, BUSY):
                raise Loss(f"a delete of {ticket.format(first)} is answered {status}")
        return status

    def get(self, first: int, count: int, *, certain: bool = False) -> None:
        """Every answer must be one that is allowed; `certain`: no errors and no broken connections either."""
        try:
            with self.ending_fault():
                found = self._found(first, count)
        except (OSError, AssertionError) as error:
            if certain or isinstance(error, AssertionError):
                raise Loss(f"a get of {count} from {ticket.format(first)}: {error}") from None
            return
        for index, (status, right) in enumerate(found, first):
            allowed = self.allowed.get(index, {M})
            if status is E and not certain:
                continue
            if status not in allowed:
                names = " or ".join(sorted(one.name for one in allowed))
                raise Loss(f"{ticket.format(index)} must be {names}, and is {status.name}")
            if status is S and not right:
                raise Loss(f"{ticket.format(index)} comes back with other bytes")
            if status is not E and certain:
                self.allowed[index] = {status}

    def _found(self, first: int, count: int) -> list[tuple[Status, bool]]:
        """Status of each ticket of a range, and whether its frame is what was put, byte by byte. AssertionError for a frame
        that is not even a frame, twice."""
        head = ticket.index_to_wire(first) + struct.pack(">Q", count)
        found: list[tuple[Status, bool]] = []
        with socket.create_connection(self.node.get_address, 30) as sock:
            sock.sendall(head + blake3(head, key=self.node.keys.get).digest(8))
            while len(found) < count:
                name, code, zeros, n = struct.unpack(">8sB3sI", read_exactly(sock, RUN_HEADER_SIZE))
                at, status = index_of(name), Status(code)
                assert at == first + len(found) and 1 <= n <= count - len(found) and zeros == bytes(3), name
                right = status is not S or read_exactly(sock, n * FRAME_SIZE) == put_frames(
                    self.node.keys, range(at, at + n)
                )
                if right:
                    found += [(status, True)] * n
                else:  # frame by frame; a delete may just have run, so a bad one is looked at again
                    one_by_one = self.node.get(at, n)
                    found += [
                        (s, s is not S or data == data_of(at + i)) for i, (s, data) in enumerate(one_by_one)
                    ]
        return found

    @contextmanager
    def ending_fault(self) -> Iterator[None]:
        """While something is waited for that a fault which persists may hold up for ever: it is ended once it has shown."""
        over = threading.Event()

        def watch() -> None:
            since = time.monotonic()
            while not over.wait(0.05):
                if not self.shim.struck:
                    since = time.monotonic()
                elif self.shim.control.onward and time.monotonic() - since > 2 * PERSISTENT_S:
                    self.shim.disarm()

        watching = threading.Thread(target=watch)
        watching.start()
        try:
            yield
        finally:
            over.set()
            watching.join()

    def close(self) -> None:
        if self.connection is not None:
            self.connection.sock.close()
