"""kill -9 under load: nothing that was acknowledged is lost or changed, and nobody has to help.

A few cycles run with the other tests; `make soak` runs 200 (SOAK_CYCLES), with the seed that it prints.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest
from node_rig import Connection, NodeRig, data_of, get_range

from ingest import ticket
from ingest.status import Status

FIRST = ticket.parse("KILL000")
WRITERS = 4
RANGE = 1296 * 5_000_000  # tickets of one writer: no soak gets that far
RECONNECT_TIMEOUT_S = 30.0


class Writer(threading.Thread):
    """Puts and deletes over one connection at a time, and remembers what was acknowledged.

    ``saved`` and ``deleted`` only ever hold what the server said. ``wrong`` collects answers that break the contract.
    """

    def __init__(self, rig: NodeRig, number: int, seed: int) -> None:
        super().__init__(name=f"writer-{number}", daemon=True)
        self.rig = rig
        self.random = random.Random(seed * 1000 + number)
        self.next = FIRST + number * RANGE
        self.saved: set[int] = set()
        self.recent: list[int] = []  # a few of `saved`, to come back to
        self.deleted: set[int] = set()
        self.maybe_deleted: set[int] = set()  # a delete was sent and not yet answered
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
            except (OSError, ValueError):
                self.breaks += 1
                self.ended.wait(0.005)
            except AssertionError as error:
                self.wrong.append(str(error))
                return

    def step(self, connection: Connection) -> None:
        kind = self.random.random()
        if kind < 0.1 and self.recent:
            self.repeat(connection, version=0, expected=Status.SAVED)
        elif kind < 0.2 and self.recent:
            self.repeat(connection, version=1, expected=Status.CONFLICT)
        elif kind < 0.25 and self.recent:
            self.delete(connection)
        else:
            self.put(connection)

    def put(self, connection: Connection) -> None:
        """A run of new tickets, sometimes long enough for the bulk path; what is not acked is sent again later."""
        count = self.random.choice((1, 3, 64, 700, 3000))
        if self.random.random() < 0.2:
            self.next += self.random.randrange(3000)
        indices = range(self.next, self.next + count)
        answers = connection.put(indices)
        assert set(answers) == set(indices)
        for index, status in answers.items():
            assert status in (Status.SAVED, Status.ERROR, Status.BUSY), (
                f"{ticket.format(index)}: {status.name}"
            )
            if status is Status.SAVED:
                self.saved.add(index)
        if all(status is Status.SAVED for status in answers.values()):
            self.recent = (self.recent + self.random.sample(indices, min(8, count)))[-200:]
            self.next += count

    def repeat(self, connection: Connection, version: int, expected: Status) -> None:
        index = self.random.choice(self.recent)
        if index in self.maybe_deleted or index in self.deleted:
            expected = Status.DELETED
        (status,) = connection.put([index], version).values()
        if index in self.maybe_deleted and index not in self.deleted:
            return
        assert status in (expected, Status.ERROR, Status.BUSY), (
            f"{ticket.format(index)}: {status.name}, not {expected.name}"
        )

    def delete(self, connection: Connection) -> None:
        index = self.random.choice(self.recent)
        self.maybe_deleted.add(index)
        status = connection.delete(index, 1)
        assert status in (Status.DELETED, Status.ERROR, Status.BUSY), status.name
        if status is Status.DELETED:
            self.deleted.add(index)


def check(rig: NodeRig, writers: list[Writer], since: list[int]) -> int:
    """Reads back what was acknowledged from ticket `since` of each writer on. Returns how many tickets it saw."""
    import socket

    seen = 0
    with socket.create_connection(rig.get_address, 60) as sock:
        for writer, first in zip(writers, since, strict=True):
            assert not writer.wrong, writer.wrong
            wanted = sorted(index for index in writer.saved.copy() if index >= first)  # the writer goes on
            position = 0
            while position < len(wanted):
                start = wanted[position]
                deleted = writer.deleted.copy()  # as it was before the read: the writer goes on
                found = get_range(sock, rig.keys, start, 4096)
                while position < len(wanted) and wanted[position] < start + 4096:
                    index = wanted[position]
                    status, data = found[index - start]
                    if index in deleted:
                        assert status is Status.DELETED, (
                            f"{ticket.format(index)} was deleted and is {status.name}"
                        )
                    elif not (index in writer.maybe_deleted and status is Status.DELETED):
                        assert status is Status.SAVED, (
                            f"{ticket.format(index)} was acked and is {status.name}"
                        )
                        assert data == data_of(index), f"{ticket.format(index)} was acked and has changed"
                    position += 1
                    seen += 1
    return seen


def kill_something(rig: NodeRig, choice: str, chance: random.Random) -> None:
    if choice == "all":
        rig.kill_all()
    elif choice == "parent":
        rig.kill_parent()
    else:
        pids = rig.children(f"ingest-{choice}")
        if pids:
            os.kill(chance.choice(pids), signal.SIGKILL)


def cycles(data_dir: Path, count: int, seed: int, layout: str) -> None:
    chance = random.Random(seed)
    rig = NodeRig(data_dir, f"--layout={layout}")
    between = 20_000 if layout == "pack" else 4_000  # chunks acknowledged from one kill to the next, at most
    writers: list[Writer] = []
    try:
        rig.start()
        writers = [Writer(rig, number, seed) for number in range(WRITERS)]
        for writer in writers:
            writer.start()
        for cycle in range(count):
            since = [writer.next for writer in writers]
            before = sum(len(writer.saved) for writer in writers)
            deadline = time.monotonic() + RECONNECT_TIMEOUT_S
            wanted = before + chance.randrange(1, between)
            while sum(len(writer.saved) for writer in writers) < wanted:
                assert time.monotonic() < deadline, f"cycle {cycle}: puts no longer get through\n{rig.log()}"
                assert not any(writer.wrong for writer in writers), [writer.wrong for writer in writers]
                time.sleep(0.001)
            choice = chance.choice(("worker", "committer", "parent", "all"))
            kill_something(rig, choice, chance)
            if choice in ("parent", "all"):
                rig.start(wait=False)
                if chance.random() < 0.3:  # and once more, perhaps in the middle of recovery
                    time.sleep(chance.random() * 0.3)
                    if rig.process is not None:
                        rig.process.kill()
                        rig.wait_gone()
                    rig.start(wait=False)
                rig.wait_until_ready()
            for writer in writers:
                writer.may_go_on.clear()  # or they would fill the disk while their work is read back
            check(rig, writers, since)
            for writer in writers:
                writer.may_go_on.set()
        for writer in writers:
            writer.ended.set()
        for writer in writers:
            writer.join(60)
        seen = check(rig, writers, [0] * WRITERS)
        assert rig.stop() == 0, rig.log()
        rig.start()
        assert check(rig, writers, [0] * WRITERS) == seen
        assert rig.stop() == 0
        deletes = sum(len(writer.deleted) for writer in writers)
        print(
            f"{count} kills, seed {seed}: {seen} acknowledged chunks and {deletes} deletes, all as they were acknowledged"
        )
    finally:
        for writer in writers:
            writer.ended.set()
            writer.may_go_on.set()
        rig.close()


def test_nothing_acknowledged_is_lost_in_a_few_kills(tmp_path: Path, layout: str) -> None:
    kills = 8 if layout == "pack" else 4
    cycles(tmp_path / "data", kills, int(os.environ.get("SOAK_SEED", "1")), layout)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_nothing_acknowledged_is_lost_in_many_kills(
    tmp_path: Path, layout: str, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = int(os.environ.get("SOAK_SEED", str(random.randrange(1 << 30))))
    with capsys.disabled():
        print(f"\nSOAK_SEED={seed}, layout {layout}")
        cycles(tmp_path / "data", int(os.environ.get("SOAK_CYCLES", "200")), seed, layout)
