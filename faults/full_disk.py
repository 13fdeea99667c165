"""Part 9: somebody else fills the disk below a node, to its last byte or its last inode, under load over HTTP.

A case: `ingest serve` on a small ext4 of its own, clients with objects of theirs, and a filler. In each period the disk
becomes full at a random moment: in some by so much at once that the server has not seen its reserve go. In most of the
others the node is ended meanwhile, by SIGKILL or SIGTERM, and started again on the full disk. Then there is room again
at a random moment, and uploads have to go on by themselves: also where the start has waited for room, because chunks of
the log have no place (docs/operations.md). At the end everything of the histories is read back, before and after a
clean restart, and `ingest fsck` looks at the store.
"""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from gateway_rig import Connection, NodeGateway
from small_disk import small_disk

from faults import object_history, progress
from faults.disk_filler import Filler
from faults.object_client import REFUSED_PAUSE_S, Address, Loss, ObjectClient, Sizes, Teller, read_back, until
from faults.object_history import Content, ObjectHistory
from faults.outcome import Outcome
from ingest import limits
from ingest.store.layouts.layout import LAYOUTS

NUMBER, TITLE, CASES = 9, "a full disk, through HTTP", 60
CLIENTS = 3
PERIODS_MAX = 3  # of one case
RESERVE = 8 << 20  # bytes
AT_ONCE_SHARE = (
    0.3  # of the periods of a disk that is full by bytes: its reserve goes faster than the server looks
)
FLAGS = (f"--wal-size={limits.LOG_SIZE_MIN}", f"--reserve={RESERVE}", "--workers=1", "--collect-interval=1")
BLOCK = 4096  # bytes, as on any disk of 512 MiB and more: smaller ones are not what SQLite maps its index by
# The log, the reserves, and four times what the clients have. Layout tree keeps a file and a directory for each ticket.
MIB = {"pack": 224, "tree": 512}
INODES = {"pack": limits.RESERVE_INODES + 1500, "tree": limits.RESERVE_INODES_TREE + 60_000}
MANY_INODES = 100_000  # of a disk that is full by bytes
SIZES = {"pack": Sizes(2 << 20, 6 << 20), "tree": Sizes(300_000, 1 << 20)}
STEPS_BETWEEN = 120  # answers between two events at most
PERIOD_S = 60.0  # for so many answers, and for a start or an end
ROOM_S = (
    30.0  # after which uploads go on where room was made: the server looks once a second, the catalog too
)
KEPT = {"kept/small": 700, "kept/large": 300_000, "kept/medium": 100_000}  # bytes of what is never changed
GOES = 2 * PERIODS_MAX  # objects to delete on a full disk


def parent_of(pid: int) -> int:
    """OSError when there is no such process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


class FullNode(NodeGateway):  # type: ignore[misc]
    """`ingest serve` whose start changes nothing on its disk before it: not even an inode is given back."""

    started_at = 0  # where the log of the last start begins, in bytes

    def start(self, wait: bool = True) -> None:
        self.started_at = self.log_path.stat().st_size if self.log_path.exists() else 0
        ports = [f"--{name}=127.0.0.1:0" for name in ("http-listen", "listen", "read-listen", "admin-listen")]
        command = [sys.executable, "-m", "ingest", "serve", f"--data-dir={self.data_dir}"]
        clean = {name: text for name, text in os.environ.items() if not name.startswith("INGEST_")}
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *ports, *self.flags], stdout=log, stderr=log, env=clean
            )
        if wait:
            self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """Until its HTTP port is known and takes connections."""
        assert self.process is not None
        deadline = time.monotonic() + PERIOD_S
        while time.monotonic() < deadline:
            if (code := self.process.poll()) is not None:
                raise Loss(f"the start ended with {code}")
            try:
                found = json.loads(self.announcement.read_bytes())
                host, _, port = found["http"].rpartition(":")
                if parent_of(found["pid"]) == self.process.pid:  # else it is what an earlier one left
                    socket.create_connection((host, int(port)), PERIOD_S).close()
                    self.gateway.address = (host, int(port))
                    return
            except (OSError, ValueError, KeyError):
                pass
            time.sleep(0.01)
        raise Loss(f"the start is not ready after {PERIOD_S:g} s")

    def found_no_room(self, what: str) -> bool:
        """For `what`, since the last start, by what it says."""
        with self.log_path.open("rb") as log:
            log.seek(self.started_at)
            lines = log.read().splitlines()
        no_space = os.strerror(errno.ENOSPC).encode()
        return any(what.encode() in line and no_space in line for line in lines)


@dataclass
class Case:
    """One node on one disk. `counts` grows with what was really tested."""

    node: FullNode
    filler: Filler
    directory: Path  # not on that disk
    chance: random.Random
    sizes: Sizes
    tree: bool  # the layout
    counts: Counter[str]

    def __post_init__(self) -> None:
        self.address = Address()
        self.own = Teller(self.address, ObjectHistory(self.directory / "own.txt"))
        seed = self.chance.randrange(1 << 30)
        paths = [self.directory / f"client-{number}.txt" for number in range(CLIENTS)]
        self.clients = [
            ObjectClient(self.address, path, number, seed, self.sizes) for number, path in enumerate(paths)
        ]
        self.next = 1 << 60  # seed of the next content that is our own
        self.goes = [f"goes/{number}" for number in range(GOES)]

    def until(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        until(condition, self.clients, seconds, what)
        if self.filler.error is not None:
            raise self.filler.error

    def steps(self, count: int, where: str) -> None:
        """Until the clients got so many more answers."""
        wanted = sum(client.steps for client in self.clients) + count
        self.until(
            lambda: sum(client.steps for client in self.clients) >= wanted,
            PERIOD_S,
            f"no {count} answers {where}",
        )

    def start(self) -> None:
        self.node.start()
        self.address.at = self.node.gateway.address
        self.address.down = False

    def start_on_a_full_disk(self, may_wait: bool) -> bool:
        """False: what it has to recover `may_wait` for room, and does; nobody expects anything until it `serves`."""
        self.node.start()
        self.address.at = self.node.gateway.address
        self.until(
            lambda: self.answers() or (may_wait and self.node.found_no_room(" recovery of ")),
            PERIOD_S,
            "a start on a full disk does not serve",
        )
        self.address.down = not self.answers()
        return not self.address.down

    def answers(self) -> bool:
        with Connection(self.address.at) as connection:
            return bool(connection.request("GET", "/objects/kept/small").status == 200)

    def serves(self) -> None:
        self.until(self.answers, ROOM_S, "where room was made, what has waited for it does not serve")
        self.address.down = False

    def fill(self, at_once: bool) -> None:
        """To the last byte or inode. Unless `at_once`, the server has seen before that its reserve is touched."""
        if not at_once:
            self.filler.fill(leave=RESERVE // 2)
            self.until(self.sees_no_space, ROOM_S, "a server without its reserve does not say so")
        self.filler.fill()

    def sees_no_space(self) -> bool:
        lock = json.loads((self.node.data_dir / ".ingest" / "lock").read_bytes())
        host, _, port = lock["admin"].rpartition(":")
        with Connection((host, int(port))) as connection:
            return "no space" in connection.request("GET", "/readyz").json["reasons"]

    def end(self, how: str, may_wait: bool = False) -> None:
        """`may_wait`: chunks of the log may lack a place, which SIGTERM tells by its exit code, and the log."""
        self.address.down = True
        self.address.ends += 1
        if how == "kill":
            self.node.kill()
            return
        assert self.node.process is not None
        self.node.process.send_signal(signal.SIGTERM)
        try:
            code = self.node.process.wait(PERIOD_S)
        except subprocess.TimeoutExpired:
            raise Loss(f"SIGTERM: it has not ended after {PERIOD_S:g} s") from None
        if code and not (may_wait and code == 1 and self.node.found_no_room("saving stops until recovery")):
            raise Loss(f"SIGTERM: it ended with {code}")

    def put(self, name: str, size: int) -> bool:
        self.next += 1
        return self.own.put(name, Content(self.next, size))

    def begin(self) -> None:
        """A first start, objects to come back to, the catalog's reserve, and the clients' load."""
        self.start()
        sizes = KEPT | {name: self.chance.choice((10, 300_000)) for name in self.goes}
        for name, size in sizes.items():
            if not self.put(name, size):
                raise Loss(f"PUT {name}: refused on a disk with room")
        meta = self.node.data_dir / ".ingest"
        last = meta / f"catalog.reserve.{limits.CATALOG_RESERVE_FILES}"
        reserve = meta / "catalog.reserve"
        self.until(
            lambda: last.exists() and reserve.stat().st_size == limits.CATALOG_RESERVE_SIZE,
            ROOM_S,
            "the catalog has no reserve",
        )
        self.filler.start()
        for client in self.clients:
            client.start()

    def full(self) -> None:
        """One period: full, perhaps ended and started, room again."""
        chance = self.chance
        self.steps(chance.randrange(1, STEPS_BETWEEN), "on a disk with room")
        outrun = not self.filler.inodes and chance.random() < AT_ONCE_SHARE
        end = chance.choice(("", "kill", "kill", "term"))
        self.fill(at_once=outrun or self.filler.inodes)
        self.counts["times_full"] += 1
        self.counts["reserves_outrun"] += outrun
        self.steps(chance.choice((0, 1, chance.randrange(1, STEPS_BETWEEN // 2))), "on a full disk")
        may_wait = outrun or self.tree
        if end:
            self.end(end, may_wait)
            self.filler.fill()  # what its end gave back is somebody else's too
            self.counts[f"{end}s_and_starts_on_a_full_disk"] += 1
            # Chunks of the log may have no place: in layout tree each that a recovery does again needs a file anew.
            if not self.start_on_a_full_disk(may_wait):
                self.counts["starts_that_waited_for_room"] += 1
                self.filler.free()
                self.serves()
                self.room()
                return
        self.own_on_a_full_disk()
        self.steps(chance.choice((0, chance.randrange(1, STEPS_BETWEEN // 2))), "on a full disk")
        self.filler.free()
        self.room()

    def own_on_a_full_disk(self) -> None:
        for name in KEPT:
            self.own.get(name)
        name = self.goes.pop()
        self.own.delete(name)
        self.own.get(name)
        self.own.get_range("kept/large", 4000, 290_000)

    def room(self) -> None:
        """Every client, and we with a small and a large object, are stored to again, by the same processes."""
        stored = [client.teller.counts["puts"] for client in self.clients]
        missing = ["kept/small", "kept/large"]

        def again() -> bool:
            if missing and self.put(missing[-1], KEPT[missing[-1]]):
                missing.pop()
            elif missing:
                time.sleep(REFUSED_PAUSE_S)
            return not missing and all(
                client.teller.counts["puts"] > before
                for client, before in zip(self.clients, stored, strict=True)
            )

        self.until(again, ROOM_S, "where room was made, not all uploads go on")

    def finish(self) -> None:
        """Reads everything back, before and after a clean restart, and looks at the store."""
        for client in self.clients:
            client.end()
        self.own.close()
        self.own.history.close()
        paths = [self.own.history.path, *(client.teller.history.path for client in self.clients)]
        histories = [object_history.read(path) for path in paths]
        for when in ("at the end", "after a clean restart"):
            for promises in histories:
                if losses := read_back(self.address, promises):
                    raise Loss(f"{when}: {losses[0]} (and {len(losses) - 1} more)")
                self.counts["read_back"] += len(promises.names())
            self.end("term")
            if when == "at the end":
                self.start()
        command = [sys.executable, "-m", "ingest", "fsck", str(self.node.data_dir)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode:
            raise Loss(f"fsck ended with {done.returncode}: {(done.stdout + done.stderr)[-1500:]}")
        self.counts["stores_checked"] += 1

    def run(self) -> list[str]:
        """The losses, after the first of which it ends."""
        try:
            self.begin()
            for _ in range(self.chance.randrange(1, PERIODS_MAX + 1)):
                self.full()
            self.finish()
        except Loss as loss:
            found = os.statvfs(self.node.data_dir)
            free = f"{found.f_bavail * found.f_frsize >> 10} KiB and {found.f_favail} inodes are free"
            return [f"{loss}; {free}; the log ends with:\n{self.node.log()[-3000:]}"]
        finally:
            for client in self.clients:
                client.ended.set()
            self.address.down = True
            self.node.close()
            self.filler.end()
            for teller in (self.own, *(client.teller for client in self.clients)):
                self.counts.update(teller.counts)
        return []


def case(seed: int, number: int, directory: Path, counts: Counter[str]) -> list[str]:
    """The losses of one case, on a new disk whose image and histories lie in `directory`."""
    chance = random.Random(f"{seed} {number}")
    layout = LAYOUTS[number % len(LAYOUTS)]
    inodes = number % 3 == 2
    # Who takes each inode at once that is given back can take those that a start makes way with.
    greedy = not inodes and chance.random() < 0.5
    count = INODES[layout] if inodes else MANY_INODES
    with small_disk(directory, "disk", MIB[layout], inodes=count, block=BLOCK) as disk:
        flags = (*FLAGS, f"--layout={layout}", f"--http-workers={chance.choice((1, 2))}")
        node = FullNode(disk / "data", *flags)
        node.log_path = directory / "node.log"
        filler = Filler(disk / "others", inodes=inodes, greedy=greedy)
        losses = Case(node, filler, directory, chance, SIZES[layout], layout == "tree", counts).run()
    kind = f"layout {layout}, full by {'inodes' if inodes else 'bytes'}{', greedy' if greedy else ''}"
    return [f"seed {seed}, case {number} ({kind}): {loss}" for loss in losses]


def run(seed: int, cases: int, directory: Path) -> Outcome:
    counts: Counter[str] = Counter()
    losses: list[str] = []
    for number in range(cases):
        home = directory / f"case-{number}"
        home.mkdir()
        try:
            found = case(seed, number, home, counts)
        except pytest.skip.Exception as lacks:
            return Outcome(seed, 0, not_run=str(lacks))
        except (OSError, AssertionError, subprocess.SubprocessError) as error:
            found = [f"seed {seed}, case {number}: {type(error).__name__}: {error}"]
        progress.done(1, found)
        losses += found
        if len(losses) >= 20:
            return Outcome(seed, number + 1, losses, dict(counts))
    return Outcome(seed, cases, losses, dict(counts))
