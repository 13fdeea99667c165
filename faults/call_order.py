"""Part 4: the order of system calls. A server runs under strace while singles, windows, deletes and long runs come at it
side by side; `faults.call_rules` and `faults.slot_rules` judge what strace saw.
"""

from __future__ import annotations

import os
import random
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from node_rig import Connection, NodeRig, delete_frame, put_frames, read_exactly

from faults import progress, slot_rules, strace
from faults.call_rules import Checker, LoggedBatch, Session, read_segments
from faults.outcome import Outcome
from ingest import limits, sharding, ticket
from ingest.limits import ACK_SIZE, PACK_SLOTS
from ingest.runtime.file_system import file_system
from ingest.status import Status
from ingest.store.layouts.layout import LAYOUTS

NUMBER, TITLE, CASES = 4, "order of system calls", 100_000
FIRST = ticket.parse("ORDER00")


class Client:
    """Puts over connections of its own, and remembers what it sent and got on each."""

    def __init__(self, rig: NodeRig) -> None:
        self.rig = rig
        self.sessions: list[Session] = []
        self.errors: list[str] = []
        self.next = FIRST

    def take(self, count: int, packs: int = 0) -> range:
        """Tickets that nobody had; at the start of a pack that nobody had, with `packs`."""
        if packs:
            pack = sharding.ticket_pack(self.next) + packs
            self.next = sharding.slot_ticket(pack, 0)
        first = self.next
        self.next += count + 1  # a gap, so that runs do not grow together
        return range(first, first + count)

    def talk(self, messages: list[tuple[list[bytes], bytes | bytearray]]) -> None:
        """One connection; each message (the tickets of its frames, its bytes) is sent when the one before is answered."""
        session = Session()
        self.sessions.append(session)
        with Connection(self.rig.put_address, self.rig.keys, 120) as connection:
            for names, frames in messages:
                session.sent += names
                connection.send(frames)
                acks = read_exactly(connection.sock, len(names) * ACK_SIZE)
                session.acks += acks
                bad = {acks[i] for i in range(8, len(acks), ACK_SIZE)} - {Status.SAVED, Status.DELETED}
                if bad:
                    self.errors.append(f"answers {sorted(bad)} to good frames")

    def puts(self, indices: Iterable[int]) -> tuple[list[bytes], bytes | bytearray]:
        indices = list(indices)
        return [ticket.index_to_wire(index) for index in indices], put_frames(self.rig.keys, indices)

    def delete(self, first: int, count: int) -> tuple[list[bytes], bytes | bytearray]:
        return [ticket.index_to_wire(first)], delete_frame(self.rig.keys, first, count)

    def round(self, chance: random.Random) -> int:
        """Singles, windows, deletes and long runs side by side. Returns the acks."""
        singles = [[self.puts(self.take(1)) for _ in range(20)] for _ in range(6)]
        windows = [[self.puts(self.take(chance.randint(2, 200))) for _ in range(10)] for _ in range(2)]
        doomed = [self.take(chance.randint(1, 40)) for _ in range(8)]
        deletes = [[self.puts(r), self.delete(r[0], len(r))] for r in doomed]
        bulk = [
            [self.puts(self.take(chance.choice((2, 3)) * PACK_SLOTS - chance.randrange(300), packs=40))]
            for _ in range(2)
        ]
        talks = [*singles, *windows, *deletes, *bulk]
        threads = [threading.Thread(target=self.talk, args=(messages,)) for messages in talks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(len(names) for messages in talks for names, _ in messages)


def run(seed: int, cases: int, directory: Path, *, layouts: Sequence[str] = LAYOUTS) -> Outcome:
    """`cases` acks and more, in equal shares on a server of each layout, from its start to its clean end."""
    if reason := strace.unusable():
        return Outcome(seed, cases, not_run=reason)
    chance = random.Random(seed)
    counts: Counter[str] = Counter()
    losses: list[str] = []
    for layout in layouts:
        home = directory / layout
        home.mkdir()
        found, seen = one_server(layout, -(-cases // len(layouts)), chance, home)
        losses += [f"layout {layout}: {loss}" for loss in found]
        counts.update(seen)
    return Outcome(seed, counts["acks"], losses[:20], dict(counts))


def one_server(
    layout: str, cases: int, chance: random.Random, home: Path
) -> tuple[list[str], dict[str, int]]:
    """The losses, and what was looked at."""
    log, data = home / "strace.log", home / "data"
    flags = [f"--layout={layout}", "--reserve=0", f"--wal-size={limits.LOG_SIZE_MIN}"]
    rig = NodeRig(data, *flags, wrapper=strace.command(log))
    batches: dict[int, LoggedBatch] = {}
    try:
        rig.start()
        client = Client(rig)
        acks = 0
        while acks < cases:
            came = client.round(chance)
            acks += came
            progress.done(came)
            read_segments(data / ".ingest" / "wal", batches)
        code = rig.stop(120)
    finally:
        rig.close()
    fd = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
    try:
        each_file = file_system(fd).syncs_files
    finally:
        os.close(fd)
    with log.open() as lines:
        found = strace.calls(lines)
        checker = Checker(found, client.sessions, batches, data.resolve(), each_file=each_file)
    checker.check()
    slot_rules.check(checker)
    losses = client.errors + checker.losses
    if code:
        losses.append(f"a clean stop ended with {code}")
    if checker.counts["acks"] != acks:
        losses.append(f"{acks} acks came, the strace log accounts for {checker.counts['acks']}")
    if not checker.counts["erased"]:
        losses.append("not a case: nothing was erased")
    if not checker.counts["recycled"] or (layout == "pack" and not checker.counts["notes"]):
        losses.append("not a case: no long run or no recycling was seen")
    return losses, dict(checker.counts)
