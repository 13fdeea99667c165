"""Part 5: calls of the committer or of a worker fail, at the k-th and from the k-th on, for k = 1, 2, … until none is left.

A small library (`failing_calls.c`, built here with the C compiler) is preloaded into a real server. It counts the calls of
one kind that one of its processes makes on files of the data directory (or on sockets) and lets the k-th fail, or do only a
part of what it was asked for. strace could not do that: its `inject=…:retval=` returns a number for a write that never was.

A case: a server starts with the fault in place, on an empty directory (`fresh`) or on one that was killed with work in its
log (`again`: recovery meets the fault), and takes a fixed sequence of puts (small, and long enough for the bulk path),
duplicates, rivals, deletes and gets. A fault that persists is ended when nothing moves any more. Then the server must become
ready by itself, take what it had not taken, and end cleanly; and a start without any fault must have exactly what was
acknowledged.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import random
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from node_rig import Connection, NodeRig, data_of, delete_frame, put_frames

from faults.outcome import Outcome
from ingest import ticket
from ingest.limits import ACK_SIZE, PACK_SLOTS
from ingest.status import Status

NUMBER = 5
TITLE = "calls that fail"
CASES = 100_000  # more than there are: each series ends when its fault does not strike any more

SHORT = -1
STUCK_S = 60.0  # without an ack, a death or a fault: a server that will never answer
PERSISTENT_S = 0.6  # without an ack while a fault persists: nothing more will be seen of it
SERVERS = 4  # at a time: they wait more than they work
FLAGS = ("--workers=1", "--reserve=0", "--wal-size=96MiB")
LOSSES_MAX = 50  # more of them say nothing new
SAMPLE_K_MAX = 12  # of a case of a short run

S, E, C, N, D, M = (
    Status.SAVED,
    Status.ERROR,
    Status.CONFLICT,
    Status.NO_SPACE,
    Status.DELETED,
    Status.MISSING,
)
BUSY = Status.BUSY


class Control(ctypes.Structure):
    """`struct control` of failing_calls.c."""

    _fields_ = [
        ("armed", ctypes.c_uint32),
        ("error", ctypes.c_int32),
        ("when", ctypes.c_uint64),
        ("onward", ctypes.c_uint32),
        ("unused", ctypes.c_uint32),
        ("count", ctypes.c_uint64),
        ("struck", ctypes.c_uint64),
        ("call", ctypes.c_char * 24),
        ("role", ctypes.c_char * 16),
        ("root", ctypes.c_char * 256),
    ]


@dataclass(frozen=True)
class Series:
    """A kind of call of one process that fails in one way; a case is its k-th call."""

    scenario: str  # fresh, again
    role: str
    call: str
    error: int  # an errno, or SHORT
    onward: bool
    layout: str = "pack"

    def name(self, k: int) -> str:
        how = "short" if self.error == SHORT else errno.errorcode[self.error]
        onward = " and all after it" if self.onward else ""
        return f"{self.layout}, {self.scenario}: {self.role} {self.call} {how} at call {k}{onward}"


COMMITTER_NAME, WORKER_NAME = "ingest-committe", "ingest-worker-0"  # as the kernel cuts them
_FILES = (errno.EMFILE, errno.ENFILE, errno.EIO, errno.ENOSPC, errno.EINTR)
# What each process calls, and how that may fail. EINTR and EDQUOT come once: nobody is interrupted for ever.
COMMITTER = {
    "openat": _FILES,
    "openat2": (*_FILES, errno.EDQUOT),
    "dup": (errno.EMFILE,),
    "mkdirat": (errno.ENOSPC, errno.EDQUOT, errno.EIO),
    "pwrite": (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EINTR, SHORT),
    "pread": (errno.EIO, errno.EINTR, SHORT),
    "fdatasync": (errno.EIO, errno.ENOSPC, errno.EINTR),
    "fsync": (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EINTR),
    "syncfs": (errno.EIO, errno.ENOSPC, errno.EINTR),
    "sync_file_range": (errno.EIO, errno.EINTR),
    "fallocate": (errno.EIO, errno.ENOSPC, errno.EINTR),
    "ftruncate": (errno.EIO, errno.EINTR),
    "fstat": (errno.EIO,),
    "statvfs": (errno.EIO, errno.EINTR),
    "unlink": (errno.EIO,),
}
WORKER = {
    "openat2": (errno.EMFILE, errno.ENFILE, errno.EIO, errno.EINTR),
    "pread": (errno.EIO, errno.EINTR, SHORT),
    "accept4": (errno.EMFILE, errno.ENFILE, errno.EINTR),
    "recv": (errno.EINTR, SHORT),
    "send": (errno.EINTR, SHORT),
}
# Of layout tree, what it does in other ways than layout pack does.
TREE = {
    "openat": (errno.EMFILE, errno.EIO, errno.ENOSPC),
    "openat2": (errno.EMFILE, errno.EIO, errno.ENOSPC, errno.EINTR),
    "mkdirat": (errno.ENOSPC, errno.EIO),
    "pwrite": (errno.EIO, errno.ENOSPC, errno.EINTR, SHORT),
    "pread": (errno.EIO, SHORT),
    "ftruncate": (errno.EIO,),
    "fsetxattr": (errno.EIO, errno.ENOSPC),
    "fgetxattr": (errno.EIO,),
    "syncfs": (errno.EIO,),
}
SOCKETS = ("accept4", "recv", "send")


def all_series() -> list[Series]:
    kinds = (
        ("pack", COMMITTER_NAME, COMMITTER, ("fresh", "again")),
        ("pack", WORKER_NAME, WORKER, ("fresh",)),
        ("tree", COMMITTER_NAME, TREE, ("fresh", "again")),
    )
    return [
        Series(scenario, role, call, error, onward, layout)
        for layout, role, calls, scenarios in kinds
        for call, errors in calls.items()
        for error in errors
        for onward in (False, True)
        if not (onward and error in (errno.EINTR, errno.EDQUOT))
        for scenario in scenarios
    ]


class Shim:
    """The library, and the file through which it is told what to do."""

    def __init__(self, library: Path, path: Path, data: Path, series: Series, k: int) -> None:
        self.path = path
        path.write_bytes(bytes(ctypes.sizeof(Control)))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), ctypes.sizeof(Control))
        self.control = Control.from_buffer(self._map)
        self.control.error, self.control.when, self.control.onward = series.error, k, series.onward
        self.control.call, self.control.role = series.call.encode(), series.role.encode()
        self.control.root = b"" if series.call in SOCKETS else os.fsencode(data)
        self.control.armed = 1
        self.environment = {"LD_PRELOAD": str(library), "FAILING_CALLS": str(path)}

    @property
    def struck(self) -> int:
        return int(self.control.struck)

    def disarm(self) -> None:
        self.control.armed = 0


class Loss(Exception):
    """The contract was broken."""


@dataclass
class Client:
    """Sends frames, and keeps what may be stored under each ticket: `allowed` is {MISSING} for one that was never sent."""

    node: NodeRig
    shim: Shim
    allowed: dict[int, set[Status]] = field(default_factory=dict)
    answered: list[Status | None] = field(default_factory=list)
    connection: Connection | None = None

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
                        index = ticket.index_from_wire(buffer[at : at + 8])
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
            if self.node.process is None or self.node.process.poll() is not None:
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
        if self.shim.struck and self.shim.control.onward and seconds > PERSISTENT_S:
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
                if allowed == {S} and status is BUSY:
                    raise Loss(f"{ticket.format(index)} is stored, and is answered BUSY")
            else:
                raise Loss(f"a put of {ticket.format(index)} is answered {status}")

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
                found = self.node.get(first, count)
        except (OSError, AssertionError) as error:
            if certain or isinstance(error, AssertionError):
                raise Loss(f"a get of {count} from {ticket.format(first)}: {error}") from None
            return
        for index, (status, data) in enumerate(found, first):
            allowed = self.allowed.get(index, {M})
            if status is E and not certain:
                continue
            if status not in allowed:
                names = " or ".join(sorted(one.name for one in allowed))
                raise Loss(f"{ticket.format(index)} must be {names}, and is {status.name}")
            if status is S and data != data_of(index):
                raise Loss(f"{ticket.format(index)} comes back with other bytes")
            if status is not E and certain:
                self.allowed[index] = {status}

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


# Tickets of the sequence: three packs for small puts, and one long run.
SMALL = [36 + PACK_SLOTS * (5 + 2 * pack) + slot for pack in range(3) for slot in (3, 7, 8, 500)]
LONG = 36 + PACK_SLOTS * 200


@dataclass(frozen=True)
class Work:
    """What is asked of a server: `long` tickets in a row, and what is deleted (first ticket, count)."""

    long: int
    deletes: tuple[tuple[int, int], ...]

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """All that is touched, and its neighbours."""
        small = [(36 + PACK_SLOTS * (5 + 2 * pack), 512) for pack in range(3)]
        return [*small, (LONG, self.long + 10)]

    @property
    def puts(self) -> range:
        return range(LONG, LONG + self.long)

    def sequence(self, client: Client) -> None:
        """While calls fail."""
        client.put(SMALL[:6])
        client.put(list(self.puts))
        client.put(SMALL[4:])  # two of them again
        client.put([index for index in SMALL[:4] if client.allowed[index] == {S}], version=1)
        for first, count in self.deletes:
            client.delete(first, count)
        for first, count in self.ranges:
            client.get(first, count)

    def settle(self, client: Client) -> None:
        """Without the fault everything that was not taken is taken now."""
        for first, count in self.deletes:
            if client.delete(first, count) is not D:
                raise Loss(f"a delete of {ticket.format(first)} is not done after the fault")
        todo = [index for index in (*SMALL, *self.puts) if client.allowed[index] != {D}]
        client.put(todo)
        for index in todo:
            if client.allowed[index] != {S}:
                raise Loss(f"{ticket.format(index)} is not SAVED after the fault")


WORK = {
    # Long enough for the bulk path; one delete ends in the middle of a block, one empties a pack.
    "pack": Work(3 * PACK_SLOTS + 400, ((SMALL[8], 1), (LONG + 100, 50), (LONG + PACK_SLOTS, PACK_SLOTS))),
    # A file each: few, or no series would ever end. One delete goes past what is stored.
    "tree": Work(24, ((SMALL[8], 1), (LONG + 4, 3), (LONG + 20, 8))),
}


@dataclass
class Case:
    """One server that meets one fault."""

    library: Path
    directory: Path
    series: Series
    k: int
    template: Path | None

    def run(self) -> tuple[bool, str]:
        """Whether the fault struck, and what was lost (empty: nothing)."""
        data = self.directory / "data"
        self.directory.mkdir()
        if self.template is not None:
            shutil.copytree(self.template, data)
        shim = Shim(self.library, self.directory / "control", data, self.series, self.k)
        node = NodeRig(
            data,
            *FLAGS,
            f"--layout={self.series.layout}",
            "--drain-timeout=5",
            wrapper=["env", *(f"{name}={value}" for name, value in shim.environment.items())],
        )
        client = Client(node, shim)
        if self.template is not None:
            for index in SMALL[:2]:
                client.allowed[index] = {S}
            client.allowed[SMALL[2]] = {D}
        try:
            self._live(node, shim, client)
            plain = NodeRig(data, *FLAGS, f"--layout={self.series.layout}")
            client.node = node = plain
            node.start()
            until_ready(node, shim)
            for first, count in WORK[self.series.layout].ranges:
                client.get(first, count, certain=True)
            if node.stop() != 0:
                raise Loss(f"the server without a fault does not end cleanly: {node.log()[-500:]}")
        except (Loss, AssertionError, subprocess.TimeoutExpired) as error:
            text = (self.directory / "data.log").read_text(errors="replace")[-1500:]
            return shim.struck > 0, f"{self.series.name(self.k)}: {error or type(error).__name__}\n{text}"
        finally:
            client.close()
            node.close()
            shutil.rmtree(self.directory, ignore_errors=True)
        return shim.struck > 0, ""

    def _live(self, node: NodeRig, shim: Shim, client: Client) -> None:
        work = WORK[self.series.layout]
        node.start(wait=False)
        with client.ending_fault():
            node.wait_until_ready()
        work.sequence(client)
        if self.series.call == "syncfs":
            wait_for_flush(node, shim)
        struck_before = shim.struck
        if struck_before:
            shim.disarm()
            until_ready(node, shim)
            work.settle(client)
            for first, count in work.ranges:
                client.get(first, count, certain=True)
        client.close()
        code = node.stop()
        if code not in ((0,) if struck_before or not shim.struck else (0, 1)):
            raise Loss(f"the server ended with {code}")
        self._check_log(node, shim, client)

    def _check_log(self, node: NodeRig, shim: Shim, client: Client) -> None:
        """Who reads the log sees what failed; a call that was only interrupted or cut short concerns nobody."""
        text = node.log_path.read_text(errors="replace")
        trouble = any(status in (E, N, None) for status in client.answered)
        trouble |= "saving stops" in text
        if self.series.error in (SHORT, errno.EINTR):
            if trouble and self.series.call not in SOCKETS:
                raise Loss(
                    "a call that was interrupted or cut short, and could have gone on, failed something"
                )
        elif (
            shim.struck
            and trouble
            and self.series.role == COMMITTER_NAME
            and os.strerror(self.series.error) not in text
        ):
            raise Loss(f"the log does not say {os.strerror(self.series.error)!r}")
        if "Traceback" in text:
            raise Loss("the log holds a traceback")


def until_ready(node: NodeRig, shim: Shim) -> None:
    """Until /readyz says so. Without a fault it must, by itself."""
    deadline = time.monotonic() + STUCK_S
    while time.monotonic() < deadline:
        if node.process is None or node.process.poll() is not None:
            raise Loss("the server ended by itself")
        try:
            with urllib.request.urlopen("http://{}:{}/readyz".format(*node.admin_address), timeout=STUCK_S):
                return
        except urllib.error.HTTPError as error:
            error.close()
        except OSError:
            pass
        time.sleep(0.02)
    raise Loss("the server does not become ready again by itself")


def wait_for_flush(node: NodeRig, shim: Shim) -> None:
    """Until the packs were synced once behind the acks, or that failed."""
    deadline = time.monotonic() + STUCK_S
    url = "http://{}:{}/metrics".format(*node.admin_address)
    while time.monotonic() < deadline and not shim.struck:
        with urllib.request.urlopen(url, timeout=STUCK_S) as answer:
            lines = [
                line for line in answer.read().decode().splitlines() if line.startswith("ingest_flushes")
            ]
        if any(float(line.split()[-1]) > 0 for line in lines):
            return
        time.sleep(0.02)


def make_template(directory: Path, layout: str) -> Path:
    """A data directory with work for recovery: puts, a long run, and a delete, killed before any flush."""
    data = directory / f"template-{layout}"
    node = NodeRig(data, *FLAGS, f"--layout={layout}")
    other = 36 + PACK_SLOTS * 400
    try:
        node.start()
        with node.connect() as connection:
            assert set(connection.put(SMALL[:3]).values()) == {S}
            assert set(connection.put(range(other, other + WORK[layout].long)).values()) == {S}
            assert connection.delete(SMALL[2], 1) is D
        node.kill_all()
    finally:
        node.close()
    return data


def run(seed: int, cases: int, directory: Path) -> Outcome:
    """All series until they are clean when `cases` allows, else a sample of so many cases."""
    series = all_series()
    chance = random.Random(seed)
    if cases < len(series):
        sample = [(chance.choice(series), chance.randint(1, SAMPLE_K_MAX)) for _ in range(cases)]
        return run_cases(sample, directory, seed)
    chance.shuffle(series)

    def whole(proof: Proof, one: Series) -> None:
        k = 1
        while proof.open and proof.case(one, k):
            k += 1

    return _run(directory, seed, cases, [partial(whole, one=one) for one in series])


def run_cases(cases: list[tuple[Series, int]], directory: Path, seed: int = 0) -> Outcome:
    """These cases: the series, and which of its calls."""

    def one(proof: Proof, series: Series, k: int) -> None:
        proof.case(series, k)

    return _run(directory, seed, len(cases), [partial(one, series=series, k=k) for series, k in cases])


def _run(directory: Path, seed: int, cases_max: int, jobs: list[Callable[[Proof], None]]) -> Outcome:
    library = directory / "failing_calls.so"
    not_run = build(library)
    if not_run:
        return Outcome(seed, 0, not_run=not_run)
    templates = {layout: make_template(directory, layout) for layout in WORK}
    proof = Proof(library, directory, templates, cases_max)
    with ThreadPoolExecutor(SERVERS) as threads:
        for future in [threads.submit(job, proof) for job in jobs]:
            future.result()
    for template in templates.values():
        shutil.rmtree(template)
    return Outcome(seed, proof.cases, proof.losses, proof.counts)


def build(library: Path) -> str:
    """Compiles failing_calls.c; returns why that can't be done, if so."""
    compiler = os.environ.get("CC", "cc").split()
    source = Path(__file__).with_suffix(".c")
    flags = ["-shared", "-fPIC", "-O2", "-U_FORTIFY_SOURCE", "-o", str(library)]
    try:
        built = subprocess.run(
            [*compiler, *flags, str(source), "-ldl"], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return f"there is no C compiler {compiler[0]}"
    return f"the library does not compile: {built.stderr[:200]}" if built.returncode else ""


class Proof:
    """Runs cases, from several threads, and keeps what they found."""

    def __init__(self, library: Path, directory: Path, templates: dict[str, Path], cases_max: int) -> None:
        self.cases = 0
        self.losses: list[str] = []
        self.counts = {"faults_that_struck": 0, "kinds_of_call": 0}
        self._library = library
        self._directory = directory
        self._templates = templates
        self._cases_max = cases_max
        self._kinds: set[tuple[str, str]] = set()
        self._begun = 0
        self._lock = threading.Lock()

    @property
    def open(self) -> bool:
        """Whether another case may be begun. Stops early when something is badly wrong."""
        return self._begun < self._cases_max and len(self.losses) < LOSSES_MAX

    def case(self, series: Series, k: int) -> bool:
        """Whether the fault struck."""
        with self._lock:
            self._begun += 1
            directory = self._directory / f"case-{self._begun}"
        template = self._templates[series.layout] if series.scenario == "again" else None
        struck, loss = Case(self._library, directory, series, k, template).run()
        with self._lock:
            self.cases += 1
            if struck:
                self.counts["faults_that_struck"] += 1
                self._kinds.add((series.role, series.call))
                self.counts["kinds_of_call"] = len(self._kinds)
            if loss:
                self.losses.append(loss)
        return struck
