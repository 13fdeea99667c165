"""Part 3: the power goes. What was not flushed is lost, in part and out of order; nothing that was acknowledged is.

A server runs on a file system on a disk that records each write and flush (`block_recorder`), and clients note what they are
told, and when (`ack_history`). Then disks are made as a cut at some moment would leave them (`power_loss`), mounted, and
served: read, probed, ended, started and read again; half of them are cut once more, anywhere in that.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import multiprocessing
import os
import random
import shutil
import struct
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from node_rig import Connection

from faults import progress
from faults.ack_history import DELETE, GET, PUT, Contents, Event, History, Promise
from faults.block_recorder import (
    MAKE,
    SECTORS,
    RecordedDisk,
    end_with_parent,
    entries_of,
    isolate,
    make_image,
)
from faults.outcome import Outcome
from faults.power_cut_load import FIRST, STEPS, Writer
from faults.power_loss import FLUSH, Entry, Piece, durable_count, survivors
from faults.recovered_server import RecoveredServer
from faults.stacked import disk_of, laid
from ingest import limits, ticket
from ingest.status import Status
from ingest.store.layouts.layout import LAYOUTS
from ingest.store.log.log_format import BLOCK_SIZE, SegmentHeader

NUMBER = 3
TITLE = "power cut"
CASES = 1000

FILE_SYSTEMS = tuple(MAKE)
IMAGE_SIZE = 1 << 30  # bytes, mostly a hole: xfs wants 300 MiB, and takes 64 MiB of it for its log
STATES = 20  # of one recording
PROCESSES = 2
WRITERS = 3
FLAGS = (f"--wal-size={limits.LOG_SIZE_MIN}", "--reserve=1MiB")
PROBED = FIRST - limits.PACK_SLOTS  # the first ticket of a pack that no writer uses
LOAD_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Plan:
    """One recording, and how many states to make of it."""

    seed: int
    file_system: str
    layout: str
    states: int
    directory: Path
    flags: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()  # what the load is made of; empty: anything

    def __str__(self) -> str:
        return f"{self.file_system}, {self.layout}, recording {self.seed}"


@dataclass
class Result:
    losses: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def run(
    seed: int,
    cases: int,
    directory: Path,
    *,
    file_systems: Sequence[str] = FILE_SYSTEMS,
    layouts: Sequence[str] = LAYOUTS,
    flags: tuple[str, ...] = (),
    steps: tuple[str, ...] = (),
) -> Outcome:
    """Tries `cases` states, shared evenly by all pairs of a file system and a layout.

    `flags` go to the recorded server, `steps` are what its load is made of (empty: anything).
    """
    reason = what_lacks(directory, file_systems)
    if reason:
        return Outcome(seed, 0, not_run=reason)
    chance = random.Random(seed)
    kinds = itertools.cycle(itertools.product(file_systems, layouts))
    recordings = max(-(-cases // STATES), min(cases, len(file_systems) * len(layouts)))
    shares = [cases * (i + 1) // recordings - cases * i // recordings for i in range(recordings)]
    plans = [
        Plan(chance.randrange(1 << 31), *next(kinds), share, directory, flags, steps) for share in shares
    ]
    total = Result()
    with _processes(min(PROCESSES, len(plans))) as pool:
        for result in pool.map(record_and_cut, plans):
            total.losses += result.losses
            total.counts += result.counts
            progress.done(result.counts["states"], result.losses)
    return Outcome(seed, cases, total.losses, dict(total.counts))


def _processes(count: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(count, multiprocessing.get_context("fork"), initializer=end_with_parent)


def what_lacks(directory: Path, file_systems: Iterable[str]) -> str:
    """What this machine lacks for it, or nothing."""
    if os.geteuid() != 0:
        return "it mounts file systems: this needs root"
    for device in ("/dev/fuse", "/dev/loop-control"):
        if not os.path.exists(device):
            return f"there is no {device}"
    try:
        import mfusepy  # noqa: F401
    except ImportError:
        return "mfusepy is not installed"
    except (OSError, AttributeError) as error:
        return f"{error} (Debian: apt-get install libfuse2, or libfuse3-3)"
    for name in file_systems:
        if shutil.which(f"mkfs.{disk_of(name)}") is None:
            return f"there is no mkfs.{disk_of(name)} (Debian: apt-get install e2fsprogs xfsprogs)"
    with _processes(1) as pool:
        for name in file_systems:
            reason = pool.submit(_try_to_mount, name, directory).result()
            if reason:
                return reason
    return ""


def _try_to_mount(file_system: str, directory: Path) -> str:
    """Why a recorded disk can't be mounted here, or nothing."""
    with tempfile.TemporaryDirectory(dir=directory) as place:
        base, point = Path(place, "image"), Path(place, "mount")
        point.mkdir()
        try:
            isolate()
            make_image(base, disk_of(file_system), IMAGE_SIZE)
            with RecordedDisk(base, Path(place, "disk")) as disk, laid(disk.file, point, file_system):
                pass
        except subprocess.CalledProcessError as error:
            return f"{' '.join(map(str, error.cmd))}: {str(error.stderr).strip()}"
        except OSError as error:
            return str(error)
    return ""


def record_and_cut(plan: Plan) -> Result:
    """Records a server under load, from its first start, and tries states that cuts of it leave. In a process of its own."""
    isolate()
    with tempfile.TemporaryDirectory(dir=plan.directory) as place:
        replay = Replay(plan, Path(place))
        replay.record()
        replay.cut()
        return replay.result


class Replay:
    """One recording and the disks that are made from it. `directory` is its own."""

    def __init__(self, plan: Plan, directory: Path) -> None:
        self.plan = plan
        self.directory = directory
        self.chance = random.Random(plan.seed)
        self.result = Result()
        self.history = History()
        self.base = directory / "image"
        self.point = directory / "mount"
        self.point.mkdir()
        make_image(self.base, disk_of(plan.file_system), IMAGE_SIZE)

    def server(self, *flags: str) -> RecoveredServer:
        return RecoveredServer(
            self.point / "data", self.directory / "log", f"--layout={self.plan.layout}", *FLAGS, *flags
        )

    # --- the recording

    def record(self) -> None:
        """A first start, load, and an end: a kill, or a clean stop."""
        with RecordedDisk(self.base, self.directory / "recorded") as disk:
            with laid(disk.file, self.point, self.plan.file_system):
                self.mounted_at = disk.count
                with contextlib.closing(self.server("--workers=2", *self.plan.flags)) as server:
                    server.start()
                    self.ready_at = disk.count
                    self._load(server, disk)
                    if self.chance.random() < 0.3:
                        server.stop()
                    server.kill_all()
                    self.result.counts["recordings_with_a_recycled_log"] += self._log_is_recycled()
            self.recorded = disk.record()
        self.entries = entries_of(self.recorded)
        self.indices = self.history.packs(PROBED)
        names = b"".join(ticket.index_to_wire(int(index)) for index in self.indices)
        self.names = np.frombuffer(names, np.uint8).reshape(-1, limits.TICKET_SIZE)
        self.result.counts["recordings"] += 1
        self.result.counts["recorded_writes"] += sum(entry.offset != FLUSH for entry in self.entries)
        self.result.counts["recorded_flushes"] += sum(entry.offset == FLUSH for entry in self.entries)
        self.result.counts["tickets"] += len(self.history.events)

    def _load(self, server: RecoveredServer, disk: RecordedDisk) -> None:
        """Until one writer has done its share; the others are then in the middle of something."""
        weights, frames = self._shape()
        chances = [random.Random(self.chance.random()) for _ in range(WRITERS)]
        writers = [
            Writer(number, server, self.history, lambda: disk.count, chance, weights, frames)
            for number, chance in enumerate(chances)
        ]
        for writer in writers:
            writer.start()
        writers[0].join(LOAD_TIMEOUT_S)
        if self.chance.random() < 0.7:
            server.kill_all()
        for writer in writers:
            writer.ended.set()
        for writer in writers:
            writer.join(LOAD_TIMEOUT_S)
            self.result.losses += [f"{self.plan}: {line}" for line in writer.wrong]
            if writer.is_alive():
                self.result.losses.append(f"{self.plan}: {writer.name} waits for an ack for ever")

    def _shape(self) -> tuple[list[int], int]:
        """How often each of STEPS is done, and how many frames one writer puts."""
        if self.plan.steps:
            return [int(step in self.plan.steps) for step in STEPS], 6000
        if self.plan.layout == "pack" and self.chance.random() < 0.15:
            # Past the bulk path, and enough to make the log go round.
            shape = {"many": 60, "bulk": 0, "packs": 0, "rest": 0}
            return [shape.get(step, 1) for step in STEPS], 20_000
        weights = {step: self.chance.choice((0, 1, 3)) for step in STEPS}
        weights["few"] += 1
        frames = self.chance.choice((300, 2000, 8000))
        if (
            self.plan.layout == "tree"
        ):  # a ticket is a file in a directory of its own: that takes its time, and room
            frames //= 5
            weights["bulk"] = weights["packs"] = int(self.chance.random() < 0.2)
        return list(weights.values()), frames

    def _log_is_recycled(self) -> bool:
        """Whether some segment of the log was used twice."""
        paths = list((self.point / "data" / ".ingest" / "wal").glob("*.log"))
        blocks = [path.open("rb").read(BLOCK_SIZE) for path in paths]
        headers = [SegmentHeader.parse(block) for block in blocks if len(block) == BLOCK_SIZE]
        return max((header.use for header in headers if header), default=0) > len(paths)

    # --- the cuts

    def cut(self) -> None:
        """Makes the disks in the order of their moments: what is durable at one is so at the next, and is in the base."""
        durable = 0
        image = os.open(self.base, os.O_WRONLY)
        with RecordedDisk(self.base, self.directory / "cut") as disk:
            for moment in self._moments():
                reached = durable_count(self.entries, moment)
                whole = [Piece(*entry) for entry in self.entries[durable:reached] if entry.offset != FLUSH]
                _apply(image, self.recorded, whole)
                durable = reached
                disk.reset()
                self._lay_down(disk, self.recorded, self._survivors(self.entries, moment))
                lost = sum(entry.length for entry in self.entries[durable:moment])
                self.result.counts["states"] += 1
                self.result.counts["states_with_writes_at_stake"] += lost > 0
                self._try(disk, moment)
        os.close(image)

    def _moments(self) -> list[int]:
        """Where to cut: after an answer came, before a flush, in the first start, anywhere."""
        promises = [moment for moment in self.history.moments() if moment <= len(self.entries)]
        flushes = [
            i for i, entry in enumerate(self.entries) if entry.offset == FLUSH and i >= self.mounted_at
        ]
        moments = []
        for _ in range(self.plan.states):
            kind = self.chance.random()
            if kind < 0.4 and promises:
                moments.append(self.chance.choice(promises))
            elif kind < 0.65 and flushes:
                moments.append(self.chance.choice(flushes))
            elif kind < 0.75:
                moments.append(self.chance.randint(self.mounted_at, self.ready_at))
            else:
                moments.append(self.chance.randint(self.mounted_at, len(self.entries)))
        return sorted(moments)

    def _survivors(self, entries: Sequence[Entry], cut: int) -> list[Piece]:
        return survivors(entries, cut, self.chance, SECTORS[disk_of(self.plan.file_system)])

    @staticmethod
    def _lay_down(disk: RecordedDisk, record: mmap.mmap, pieces: Sequence[Piece]) -> None:
        fd = os.open(disk.file, os.O_WRONLY)
        try:
            _apply(fd, record, pieces)
            os.fsync(fd)  # the disk has this when the power comes back
        finally:
            os.close(fd)

    def _try(self, disk: RecordedDisk, moment: int) -> None:
        where = f"{self.plan}, cut {moment} of {len(self.entries)}"
        wanted = self.history.promise(moment, Promise.nothing(self.indices))
        began = disk.count
        recovered = self._recover(disk, wanted, where)
        if recovered is None or self.chance.random() < 0.5:
            return
        shown, shown_at, probes = recovered
        record = disk.record()
        entries = entries_of(record)
        second = self.chance.randint(began, len(entries))
        # What the first recovery showed is a promise from then on; what it did not show may still go either way.
        if second >= shown_at:
            wanted = probes.promise(second, Promise.exactly(shown))
        whole = [
            Piece(*entry) for entry in entries[: durable_count(entries, second)] if entry.offset != FLUSH
        ]
        disk.reset()
        self._lay_down(disk, record, whole + self._survivors(entries, second))
        record.close()
        self.result.counts["cuts_of_a_recovery"] += 1
        self._recover(
            disk, wanted, f"{where}, then cut {second} of {began} to {len(entries)} of its recovery"
        )

    def _recover(
        self, disk: RecordedDisk, wanted: Promise, where: str
    ) -> tuple[Contents, int, History] | None:
        """Mounts, starts, reads all, probes; ends, starts and reads again. None after a loss.

        Returns what the first read showed, the moment after it, and the history of the probes.
        """
        probes = History()
        try:
            with (
                laid(disk.file, self.point, self.plan.file_system),
                contextlib.closing(self.server("--workers=1")) as server,
            ):
                server.start()
                shown = server.show(self.indices, self.names)
                shown_at = disk.count
                bad = wanted.losses(shown) or self._probe(server, disk, shown, probes)
                if not bad:
                    clean = self.chance.random() < 0.3
                    server.stop() if clean else server.kill_all()
                    server.start()
                    again = probes.promise(disk.count, Promise.exactly(shown))
                    lost = again.losses(server.show(self.indices, self.names))
                    end = "a clean stop" if clean else "kill -9"
                    bad = [f"after {end} that followed, with no cut: {line}" for line in lost]
        except (AssertionError, OSError, ValueError, struct.error) as error:
            bad = [str(error)]
        except subprocess.CalledProcessError as error:
            bad = [f"{' '.join(map(str, error.cmd))}: {str(error.stderr).strip()}"]
        self.result.counts["tickets_checked"] += len(self.history.events)
        self.result.losses += [f"{where}: {line}" for line in bad[:5]]
        if len(bad) > 5:
            self.result.losses.append(f"{where}: and {len(bad) - 5} more")
        return None if bad else (shown, shown_at, probes)

    def _probe(
        self,
        server: RecoveredServer,
        disk: RecordedDisk,
        shown: Contents,
        probes: History,
    ) -> list[str]:
        """Whether tickets are still written once, and deletes final, and new ones taken. Returns what was answered wrong."""
        named = list(self.history.events)
        sample = self.chance.sample(named, min(len(named), 200))
        by_status = {
            status: [index for index in sample if shown.of(index)[0] is status]
            for status in (Status.SAVED, Status.DELETED, Status.MISSING)
        }
        free = [PROBED + i for i in range(300) if shown.of(PROBED + i)[0] is Status.MISSING]
        bad = []
        with Connection(server.put_address, server.keys) as connection:

            def put(indices: Sequence[int], version: int, status: Status) -> None:
                sent = disk.count
                answers = connection.put(indices, version)
                for index, answer in answers.items():
                    self._note(probes, index, shown, Event(PUT, version, sent, disk.count, answer))
                    if answer is not status:
                        bad.append(
                            f"{ticket.format(index)}: a put after the recovery was answered {answer.name}, not {status.name}"
                        )

            for index in self._some(by_status[Status.SAVED], 3):
                put([index], shown.of(index)[1], Status.SAVED)
                put([index], 10, Status.CONFLICT)
            for index in self._some(by_status[Status.DELETED], 2):
                put([index], 0, Status.DELETED)
            for index in self._some(by_status[Status.MISSING], 3):
                put([index], 11, Status.SAVED)
            put(free[: self.chance.choice((1, 300))], 12, Status.SAVED)
            for index in self._some(by_status[Status.SAVED], 1):
                sent = disk.count
                answer = connection.delete(index, 1)
                self._note(probes, index, shown, Event(DELETE, 0, sent, disk.count, answer))
                if answer is not Status.DELETED:
                    bad.append(
                        f"{ticket.format(index)}: a delete after the recovery was answered {answer.name}"
                    )
        return bad

    def _some(self, indices: Sequence[int], count: int) -> list[int]:
        return self.chance.sample(indices, min(count, len(indices)))

    @staticmethod
    def _note(probes: History, index: int, shown: Contents, event: Event) -> None:
        """Notes what a probe was answered, after what the ticket was before it."""
        status, version = shown.of(index)
        if index not in probes.events and status in (Status.SAVED, Status.DELETED):
            probes.note(index, Event(GET, version, -1, -1, status))
        probes.note(index, event)


def _apply(fd: int, record: mmap.mmap, pieces: Iterable[Piece]) -> None:
    with memoryview(record) as view:
        for offset, length, position in pieces:
            written = os.pwrite(fd, view[position : position + length], offset)
            assert written == length, "the disk took a part only"
