"""The load under which the power goes: connections that put in all sizes, repeat, contradict, delete and read."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable, Mapping, Sequence

from node_rig import Connection, delete_frame, get_range, put_frames

from faults.ack_history import DELETE, GET, NEVER, PUT, Event, History
from faults.recovered_server import RecoveredServer, version_of
from ingest import ticket
from ingest.limits import ACK_SIZE, PACK_SLOTS
from ingest.status import Status

FIRST = ticket.parse("POWER00")
AREA = PACK_SLOTS * 5_000  # tickets of one writer
SCATTERED = PACK_SLOTS * 500_000  # tickets over which each writer scatters those that get packs of their own
STEPS = (
    "single",
    "few",
    "many",
    "bulk",
    "packs",
    "again",
    "contradict",
    "delete",
    "read",
    "scatter",
    "rivals",
    "rest",
)


class Writer(threading.Thread):
    """One connection. `count` gives the recorder's count of entries; `weights`: how often it does which of STEPS.

    Ends when `ended` is set, when its connection breaks, or after `frames_max` frames. `wrong`: what broke a guarantee.
    """

    def __init__(
        self,
        number: int,
        server: RecoveredServer,
        history: History,
        count: Callable[[], int],
        chance: random.Random,
        weights: Sequence[int],
        frames_max: int,
    ) -> None:
        super().__init__(name=f"writer-{number}", daemon=True)
        self.number, self.server, self.history, self.count = number, server, history, count
        self.chance, self.weights, self.frames_max = chance, weights, frames_max
        self.next = FIRST + (number + 1) * AREA
        self.next_rival = FIRST  # all writers put their own version under these
        self.saved: list[int] = []
        self.frames = 0
        self.ended = threading.Event()
        self.wrong: list[str] = []

    def run(self) -> None:
        try:
            with Connection(self.server.put_address, self.server.keys) as connection:
                while not self.ended.is_set() and self.frames < self.frames_max:
                    (step,) = self.chance.choices(STEPS, self.weights)
                    getattr(self, step)(connection)
        except OSError:
            pass  # the server was killed: what was under way has no answer
        except (AssertionError, ValueError) as error:
            self.wrong.append(f"while it was recorded: {error}")

    def single(self, connection: Connection) -> None:
        for _ in range(8):
            self.put_new(connection, 1)

    def few(self, connection: Connection) -> None:
        self.put_new(connection, self.chance.randrange(2, 30))

    def many(self, connection: Connection) -> None:
        self.put_new(connection, self.chance.randrange(30, 256))

    def bulk(self, connection: Connection) -> None:
        """Enough frames that wait, in runs long enough, for the path that skips the log."""
        self.put_new(connection, self.chance.randrange(2500, 4000))

    def packs(self, connection: Connection) -> None:
        """Whole new packs."""
        self.next += -(self.next - 36) % PACK_SLOTS
        self.put_new(connection, PACK_SLOTS * self.chance.randrange(1, 4))

    def again(self, connection: Connection) -> None:
        if self.saved:
            self.put(connection, [self.chance.choice(self.saved)])

    def contradict(self, connection: Connection) -> None:
        if self.saved:
            self.put(connection, [self.chance.choice(self.saved)], version=9)

    def delete(self, connection: Connection) -> None:
        if self.saved:
            self.delete_range(connection, self.chance.choice(self.saved), self.chance.choice((1, 1, 3, 40)))

    def read(self, connection: Connection) -> None:
        """What a get shows is as durable as what an ack promises."""
        first, sent = self.chance.choice(self.saved) if self.saved else FIRST, self.count()
        with socket.create_connection(self.server.get_address, 30) as sock:
            shown = get_range(sock, self.server.keys, first, 20)
        answered = self.count()
        for index, (status, data) in enumerate(shown, first):
            if status in (Status.SAVED, Status.DELETED):
                version = version_of(index, data) if data else None
                version = -1 if version is None else version
                self.history.note(index, Event(GET, version, sent, answered, status))

    def scatter(self, connection: Connection) -> None:
        """Tickets that need new packs in new directories."""
        first = FIRST + (self.number + 10) * SCATTERED
        self.put(connection, sorted({first + self.chance.randrange(SCATTERED) for _ in range(3)}))

    def rivals(self, connection: Connection) -> None:
        count = self.chance.choice((1, 5))
        self.put(connection, range(self.next_rival, self.next_rival + count), version=self.number)
        self.next_rival += count

    def rest(self, connection: Connection) -> None:
        """Lets the flusher come between: what it has synced is not in the log any more."""
        self.ended.wait(self.chance.uniform(0.1, 0.5))

    def put_new(self, connection: Connection, count: int) -> None:
        self.put(connection, range(self.next, self.next + count))
        self.next += count

    def put(self, connection: Connection, indices: Sequence[int], version: int = 0) -> dict[int, Status]:
        requests = {index: [index] for index in indices}
        answers = self.exchange(
            connection, put_frames(connection.keys, indices, version), requests, PUT, version
        )
        saved = [index for index, status in answers.items() if status is Status.SAVED and version == 0]
        self.saved += self.chance.sample(saved, min(10, len(saved)))
        return answers

    def delete_range(self, connection: Connection, first: int, count: int) -> Status:
        frame = delete_frame(connection.keys, first, count)
        return self.exchange(connection, frame, {first: range(first, first + count)}, DELETE, 0)[first]

    def exchange(
        self,
        connection: Connection,
        frames: bytes | bytearray,
        requests: Mapping[int, Sequence[int]],
        kind: str,
        version: int,
    ) -> dict[int, Status]:
        """Sends frames and reads their acks, and notes when each came. `requests`: the tickets that each frame is about."""
        answers: dict[int, Status] = {}
        self.frames += len(requests)
        sent, rest = self.count(), b""
        try:
            connection.send(frames)
            while len(answers) < len(requests):
                part = connection.sock.recv(1 << 16)
                answered = self.count()
                if not part:
                    raise ConnectionResetError("end of stream")
                rest += part
                whole = len(rest) - len(rest) % ACK_SIZE
                for at in range(0, whole, ACK_SIZE):
                    index, status = ticket.index_from_wire(rest[at : at + 8]), Status(rest[at + 8])
                    answers[index] = status
                    for one in requests[index]:
                        self.history.note(one, Event(kind, version, sent, answered, status))
                rest = rest[whole:]
        finally:
            for index in requests.keys() - answers.keys():
                for one in requests[index]:
                    self.history.note(one, Event(kind, version, sent, NEVER, None))
        return answers
