"""Load with a memory: writers that put and delete, and append what they were told to a file before it counts.

The history file has one event a line, `EVENT FIRST COUNT` (the first ticket's index, a number of tickets):

    delete    a delete was sent
    saved     all of them were acknowledged SAVED; the data of a ticket are always `data_of(its index)`
    deleted   all of them were acknowledged DELETED

so that what a run found can be judged afterwards, also by somebody else, and nothing that was acknowledged is
forgotten when a writer dies.
"""

from __future__ import annotations

import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from node_rig import Connection, NodeRig, data_of, get_range

from ingest import ticket
from ingest.status import Status

FIRST = ticket.parse("KILL000")
WRITERS = 4
RANGE = 1296 * 5_000_000  # tickets of one writer: no run gets that far
READ_COUNT = 4096  # tickets of one get
PATIENCE_S = 60.0  # for anything that a server does within a second


def runs_of(indices: Iterable[int]) -> Iterator[tuple[int, int]]:
    """(first, count) of the consecutive runs of sorted indices."""
    first = count = 0
    for index in indices:
        if count and index == first + count:
            count += 1
            continue
        if count:
            yield first, count
        first, count = index, 1
    if count:
        yield first, count


class History:
    """An append-only file of events. Appends may come from several threads; each is one write."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def append(self, event: str, indices: Iterable[int]) -> None:
        lines = "".join(f"{event} {first} {count}\n" for first, count in runs_of(sorted(indices)))
        if lines:
            os.write(self._fd, lines.encode())

    def close(self) -> None:
        os.close(self._fd)


@dataclass
class Acked:
    """What a history file says was acknowledged. `maybe_deleted`: a delete was sent, whatever became of it."""

    saved: set[int] = field(default_factory=set)
    deleted: set[int] = field(default_factory=set)
    maybe_deleted: set[int] = field(default_factory=set)

    def read(self, path: Path, offset: int = 0) -> int:
        """Adds the events from byte `offset` on; returns where they end."""
        with path.open("rb") as file:
            file.seek(offset)
            content = file.read()
        end = content.rfind(b"\n") + 1
        targets = {"saved": self.saved, "deleted": self.deleted, "delete": self.maybe_deleted}
        for line in content[:end].decode().splitlines():
            event, first, count = line.split()
            targets[event].update(range(int(first), int(first) + int(count)))
        return offset + end


def check(rig: NodeRig, acked: Acked, maybe_deleted: set[int]) -> list[str]:
    """Reads back all that was acknowledged; a line for each ticket that is not as it was acknowledged."""
    losses: list[str] = []
    wanted = sorted(acked.saved | acked.deleted)
    with socket.create_connection(rig.get_address, PATIENCE_S) as sock:
        position = 0
        while position < len(wanted):
            first = wanted[position]
            count = (
                1  # up to the last one that a get of this one reaches, so that gaps are not read beyond it
            )
            while position + count < len(wanted) and wanted[position + count] < first + READ_COUNT:
                count += 1
            found = get_range(sock, rig.keys, first, wanted[position + count - 1] - first + 1)
            for index in wanted[position : position + count]:
                status, data = found[index - first]
                name = ticket.format(index)
                if index in acked.deleted:
                    if status is not Status.DELETED:
                        losses.append(f"{name}: acknowledged DELETED, found {status.name}")
                elif index in maybe_deleted and status is Status.DELETED:
                    continue
                elif status is not Status.SAVED:
                    losses.append(f"{name}: acknowledged SAVED, found {status.name}")
                elif data != data_of(index):
                    losses.append(f"{name}: acknowledged SAVED, came back with other bytes")
            position += count
    return losses


@dataclass(frozen=True)
class Mix:
    """What writers do: shares of repeats, rivals and deletes, and the lengths of their runs of new tickets.

    ``pause_s``: between two of a writer's requests, where a run takes long and is not to fill the disk.
    """

    counts: tuple[int, ...] = (1, 3, 64, 700, 3000)
    repeat: float = 0.1
    rival: float = 0.1
    delete: float = 0.05
    pause_s: float = 0.0


MIXED = Mix()
BULK = Mix(counts=(2592, 3888), repeat=0.02, rival=0.02, delete=0.02)
DELETES = Mix(counts=(1, 3, 64), delete=0.4)
SMALL = Mix(counts=(1, 3, 64, 300))


class Writer(threading.Thread):
    """Puts and deletes over one connection at a time, and remembers what was acknowledged in the history.

    `wrong` collects answers that break a guarantee.
    """

    def __init__(self, rig: NodeRig, history: History, mix: Mix, number: int, seed: int) -> None:
        super().__init__(name=f"writer-{number}", daemon=True)
        self.rig = rig
        self.history = history
        self.mix = mix
        self.random = random.Random(seed * 1000 + number)
        self.next = FIRST + number * RANGE
        self.recent: list[int] = []  # a few that are saved, to come back to
        self.deleted: set[int] = set()
        self.maybe_deleted: set[int] = set()
        self.acks = 0
        self.deletes = 0
        self.wrong: list[str] = []
        self.ended = threading.Event()
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.breaks = 0

    def run(self) -> None:
        while not self.ended.is_set():
            try:
                with Connection(self.rig.put_address, self.rig.keys) as connection:
                    while not self.ended.is_set():
                        self.may_go_on.wait()
                        self.step(connection)
                        if self.mix.pause_s:
                            self.ended.wait(self.mix.pause_s)
            except (OSError, ValueError):
                self.breaks += 1
                self.ended.wait(0.005)
            except AssertionError as error:
                self.wrong.append(str(error))
                return

    def step(self, connection: Connection) -> None:
        kind = self.random.random()
        mix = self.mix
        if kind < mix.repeat and self.recent:
            self.repeat(connection, version=0, expected=Status.SAVED)
        elif kind < mix.repeat + mix.rival and self.recent:
            self.repeat(connection, version=1, expected=Status.CONFLICT)
        elif kind < mix.repeat + mix.rival + mix.delete and self.recent:
            self.delete(connection)
        else:
            self.put(connection)

    def put(self, connection: Connection) -> None:
        """A run of new tickets; what is not acknowledged is sent again later."""
        count = self.random.choice(self.mix.counts)
        if self.random.random() < 0.2:
            self.next += self.random.randrange(3000)
        indices = range(self.next, self.next + count)
        answers = connection.put(indices)
        assert set(answers) == set(indices), "acks for other tickets than those that were put"
        for index, status in answers.items():
            assert status in (Status.SAVED, Status.ERROR, Status.BUSY), (
                f"{ticket.format(index)}: {status.name}"
            )
        saved = [index for index, status in answers.items() if status is Status.SAVED]
        self.history.append("saved", saved)
        self.acks += len(saved)
        if len(saved) == count:
            self.recent = (self.recent + self.random.sample(indices, min(8, count)))[-200:]
            self.next += count

    def repeat(self, connection: Connection, version: int, expected: Status) -> None:
        index = self.random.choice(self.recent)
        if index in self.deleted:
            expected = Status.DELETED
        (status,) = connection.put([index], version).values()
        if index in self.maybe_deleted and index not in self.deleted:
            return
        assert status in (expected, Status.ERROR, Status.BUSY), (
            f"{ticket.format(index)}: {status.name}, not {expected.name}"
        )

    def delete(self, connection: Connection) -> None:
        index = self.random.choice(self.recent)
        self.history.append("delete", [index])
        self.maybe_deleted.add(index)
        status = connection.delete(index, 1)
        assert status in (Status.DELETED, Status.ERROR, Status.BUSY), f"a delete: {status.name}"
        if status is Status.DELETED:
            self.history.append("deleted", [index])
            self.deleted.add(index)
            self.deletes += 1


class Load:
    """Writers on one server, and the judgement of what they were told."""

    def __init__(self, rig: NodeRig, path: Path, seed: int, mix: Mix = MIXED) -> None:
        self.rig = rig
        self.history = History(path)
        self.writers = [Writer(rig, self.history, mix, number, seed) for number in range(WRITERS)]
        self.maybe_deleted: set[int] = set()  # as read from the history so far
        self._checked = 0
        for writer in self.writers:
            writer.start()

    @property
    def acks(self) -> int:
        return sum(writer.acks for writer in self.writers)

    @property
    def deletes(self) -> int:
        return sum(writer.deletes for writer in self.writers)

    @property
    def wrong(self) -> list[str]:
        return [line for writer in self.writers for line in writer.wrong]

    def mixes(self, mix: Mix) -> None:
        for writer in self.writers:
            writer.mix = mix

    def until(self, condition: Callable[[], bool], what: str) -> list[str]:
        """Waits under load; the losses that ended the wait: a wrong answer, or `what` for a condition that never came."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            if self.wrong:
                return self.wrong
            if time.monotonic() > deadline:
                return [f"{what}; the server said:\n{self.rig.log()}"]
            time.sleep(0.001)
        return []

    def check_new(self) -> list[str]:
        """Reads back what was acknowledged since the last check, while the writers come to rest."""
        for writer in self.writers:
            writer.may_go_on.clear()  # or they would fill the disk while their work is read back
        acked = Acked()
        self._checked = acked.read(self.history.path, self._checked)
        known, late = -1, acked
        losses: list[str] = []
        # Each may end what it is at, which may be a delete: it was noted before it was sent.
        while known != len(self.maybe_deleted | late.maybe_deleted):
            self.maybe_deleted |= late.maybe_deleted
            known = len(self.maybe_deleted)
            losses = self.wrong + check(self.rig, acked, self.maybe_deleted)
            late = Acked()
            late.read(self.history.path, self._checked)
        for writer in self.writers:
            writer.may_go_on.set()
        return losses

    def check_all(self) -> tuple[list[str], int]:
        """Reads back all that the history file has; and how many tickets that were. The writers must have ended."""
        acked = Acked()
        acked.read(self.history.path)
        return check(self.rig, acked, acked.maybe_deleted), len(acked.saved | acked.deleted)

    def end(self) -> None:
        for writer in self.writers:
            writer.ended.set()
            writer.may_go_on.set()
        for writer in self.writers:
            writer.join(PATIENCE_S)
        self.history.close()
