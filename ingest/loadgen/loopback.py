"""The load generator: puts frames as fast as the server takes them, or at a fixed rate, and reads them back.

Frames are built and signed in batches by the C kernel (`_load_engine`), so that the client is not what is measured.
In rate mode the latency of a frame counts from the moment it was due, not from when it could be sent: a server that
stalls is charged for all that it kept waiting (Gil Tene, "How NOT to Measure Latency"; wrk2 does the same).
"""

from __future__ import annotations

import os
import queue
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from json import loads
from pathlib import Path
from typing import Any

from ingest import limits, ticket
from ingest.client.key import Key, shared_keys
from ingest.errors import ConnectionLostError, ProtocolError, UsageError
from ingest.loadgen._load_latency import BUCKETS, bucket_value
from ingest.loadgen.load_share import Loader, Report, Share, error_from_content
from ingest.status import Status

CONNECTIONS_MAX = 65_536
PROCESSES_MAX = 256
RATE_BOUND = 4_000_000  # frames/s that no server reaches: how many tickets a run of some duration may need

# The 7-character tickets, whole packs: where a run starts unless it is told.
RANDOM_FIRST = ticket.parse("0000000")
RANDOM_END = ticket.parse("00000000")


@dataclass(frozen=True)
class LoopbackOptions:
    """One run. Each field is the flag of `ingest loopback` of the same name.

    connect       (host, port) of the put port
    key           a key file, or shared keys as `ingest.client.key.Key` says; the first signs
    read_connect  (host, port) of the get port; needed by ``verify``
    frames        how many in all, or
    duration      for how many seconds; with ``rate`` that is ``rate · duration`` frames, however long they take
    connections   in all, spread over the processes
    window        frames in flight on each connection, 1 (closed loop) to 65,536
    processes     of the generator; one works inside the caller's process
    rate          frames per second in all; None: as fast as acks come
    first         the ticket to begin with; None: a random pack-aligned one of 7 characters. Each connection has tickets
                  of its own, the next one beginning whole packs (1296 tickets) later
    verify        read everything back, compare data and checksums
    tls_ca        the server speaks TLS, and its certificate is checked against these (PEM)
    tls_cert      the certificate to show to it, with its chain (PEM), and
    tls_key       its key
    timeout       seconds without any progress after which the run has failed
    seed          of the data; None: random
    """

    connect: tuple[str, int]
    key: Key = field(repr=False)
    read_connect: tuple[str, int] | None = None
    frames: int | None = None
    duration: float | None = None
    connections: int = 4
    window: int = 1024
    processes: int = 1
    rate: float | None = None
    first: str | None = None
    verify: bool = False
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    timeout: float = 60.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if (self.frames is None) == (self.duration is None):
            raise UsageError("either a number of frames or a duration is needed")
        if self.frames is not None and self.frames < 1:
            raise UsageError(f"{self.frames} frames: at least one is needed")
        for name in ("duration", "rate", "timeout"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise UsageError(f"{name} {value:g}: more than 0 is needed")
        for name, most in (
            ("connections", CONNECTIONS_MAX),
            ("window", limits.IN_FLIGHT_MAX),
            ("processes", PROCESSES_MAX),
        ):
            if not 1 <= getattr(self, name) <= most:
                raise UsageError(f"{getattr(self, name)} {name}: 1 to {most} are possible")
        if self.verify and self.read_connect is None:
            raise UsageError("verify needs the address of the read port")
        if (self.tls_cert is None) != (self.tls_key is None) or (self.tls_cert and self.tls_ca is None):
            raise UsageError("TLS needs the CA of the server; a certificate goes with its key")
        if self.first is not None:
            ticket.parse(self.first)
        if self.seed is not None and not 0 <= self.seed < 1 << 64:
            raise UsageError(f"seed {self.seed}: 0 to 2⁶⁴ - 1 are possible")


@dataclass(frozen=True)
class LoopbackResult:
    """What came of a run. ``as_json`` has the fields that `--json` prints; the others are for tests and benchmarks.

    ``frames`` were sent and acked, ``saved`` of them SAVED; ``mb_per_s`` counts whole frames, 10⁶ bytes;
    ``verified`` came back as they were put, ``wrong`` did not. ``connection_frames`` and ``connection_seconds`` are of
    each connection.
    ``build_ns`` and ``send_ns``: CPU time of building and signing, and of sending, for each frame.
    """

    frames: int
    saved: int
    failed: int
    statuses: dict[str, int]
    seconds: float
    frames_per_s: float
    mb_per_s: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    verified: int
    verify: bool = False
    wrong: int = 0
    problems: tuple[str, ...] = ()
    first: str = ""
    connection_frames: tuple[int, ...] = ()
    connection_seconds: tuple[float, ...] = ()
    latencies: dict[int, int] = field(
        default_factory=dict, repr=False
    )  # {bucket: count}, see `_load_latency.bucket_value`
    build_ns: float = 0.0
    send_ns: float = 0.0

    @property
    def ok(self) -> bool:
        """Every frame SAVED and, if that was asked for, verified."""
        return self.failed == 0 and (not self.verify or self.verified == self.frames)

    @property
    def fairness(self) -> float:
        """The rate of the slowest connection over the mean rate of all; 1 is perfect."""
        rates = [n / s for n, s in zip(self.connection_frames, self.connection_seconds, strict=True) if s > 0]
        return (
            min(rates) / (sum(rates) / len(rates)) if len(rates) == len(self.connection_frames) > 0 else 0.0
        )

    def as_json(self) -> dict[str, Any]:
        names = "frames saved failed statuses seconds frames_per_s mb_per_s p50_ms p99_ms p999_ms verified"
        return {name: getattr(self, name) for name in names.split()}


@dataclass(frozen=True)
class Progress:
    """How far a run is. ``phase`` is "put" or "verify"; ``total`` is None for a duration without a rate."""

    phase: str
    done: int
    total: int | None
    seconds: float
    frames_per_s: float
    p50_ms: float
    p99_ms: float


def percentile_ms(latencies: dict[int, int], share: float) -> float:
    """The latency that ``share`` (0 to 1) of the frames did not exceed; 0 when there are none."""
    total = sum(latencies.values())
    need = share * total
    seen = 0
    for bucket in sorted(latencies):
        seen += latencies[bucket]
        if seen >= need and seen:
            return bucket_value(bucket) / 1e6
    return 0.0


def plan(options: LoopbackOptions) -> list[Share]:
    """Who puts what: one share for each process, no more processes than connections.

    TicketError or UsageError when there are not so many tickets from ``first`` on.
    """
    n = options.connections
    total = options.frames
    if total is None and options.rate is not None and options.duration is not None:
        total = max(1, round(options.rate * options.duration))
    if total is None:
        assert options.duration is not None
        # Each connection may get four times its share before it runs out of tickets.
        each = [_whole_packs(int(options.duration * RATE_BOUND * min(4, n) / n) + limits.PACK_SLOTS)] * n
    else:
        each = [total // n + (i < total % n) for i in range(n)]
    stride = _whole_packs(each[0])
    first = _first(options.first, stride * (n - 1) + each[-1])
    firsts = [first + i * stride for i in range(n)]
    keys = tuple(key.hex() for key in shared_keys(options.key))
    seed = options.seed if options.seed is not None else secrets.randbits(64)
    processes = min(options.processes, n)
    shares = []
    for p in range(processes):
        mine = slice(n * p // processes, n * (p + 1) // processes)
        shares.append(
            Share(
                connect=options.connect,
                read_connect=options.read_connect,
                keys=keys,
                seed=seed,
                window=options.window,
                firsts=tuple(firsts[mine]),
                counts=tuple(each[mine]),
                interval_ns=1e9 / options.rate if options.rate else 0.0,
                offset=mine.start,
                connections_total=n,
                duration_ns=int(options.duration * 1e9) if options.duration and not options.rate else 0,
                timeout_s=options.timeout,
                tls=_tls_files(options),
            )
        )
    return shares


def _tls_files(options: LoopbackOptions) -> tuple[str | None, ...] | None:
    if options.tls_ca is None:
        return None
    return tuple(
        None if path is None else str(path) for path in (options.tls_ca, options.tls_cert, options.tls_key)
    )


def _whole_packs(count: int) -> int:
    return -(-max(1, count) // limits.PACK_SLOTS) * limits.PACK_SLOTS


def _first(text: str | None, count: int) -> int:
    if text is not None:
        first = ticket.parse(text)
        if count > ticket.LAST - first + 1:
            raise UsageError(f"{count} tickets from {text} on: only {ticket.LAST - first + 1} are left")
        return first
    packs = (RANDOM_END - RANDOM_FIRST - count) // limits.PACK_SLOTS
    if packs < 0:
        raise UsageError(f"{count} tickets do not fit among those of 7 characters: say where to start")
    return RANDOM_FIRST + secrets.randbelow(packs + 1) * limits.PACK_SLOTS


def run(options: LoopbackOptions, progress: Callable[[Progress], None] | None = None) -> LoopbackResult:
    """Runs it and waits. ``progress`` is called about ten times a second.

    ConnectionLostError when the server cannot be reached, goes away, or shows no progress for the time-out;
    ProtocolError for an ack or a reply that cannot be; KeyFileError, UsageError. A status other than
    SAVED is no error: see ``LoopbackResult.ok``.
    """
    shares = plan(options)
    team: _Team = _Inside(shares[0]) if len(shares) == 1 else _Processes(shares)
    counts = sum(sum(share.counts) for share in shares) if options.rate or options.frames else None
    try:
        started = team.start(options.verify)
        for phase, reports in team.work(options.verify):
            if progress is not None:
                progress(_progress(phase, reports, counts, started))
        return _result(options, shares, team.reports)
    finally:
        team.close()


def _progress(phase: str, reports: list[Report], total: int | None, started: float) -> Progress:
    latencies = _merge(report.latencies for report in reports)
    acked = sum(report.acked for report in reports)
    seconds = max(1e-9, time.monotonic() - started)
    done = acked if phase == "put" else sum(report.verified for report in reports)
    return Progress(
        phase,
        done,
        total if phase == "put" else acked,
        seconds,
        done / seconds,
        percentile_ms(latencies, 0.5),
        percentile_ms(latencies, 0.99),
    )


def _merge(parts: Iterator[dict[int, int]]) -> dict[int, int]:
    merged: dict[int, int] = {}
    for part in parts:
        for key, count in part.items():
            merged[key] = merged.get(key, 0) + count
    assert all(0 <= key < BUCKETS for key in merged)
    return merged


def _result(options: LoopbackOptions, shares: list[Share], reports: list[Report]) -> LoopbackResult:
    statuses = _merge(report.statuses for report in reports)
    latencies = _merge(report.latencies for report in reports)
    connections = [item for report in reports for item in report.connections]
    frames = sum(report.acked for report in reports)
    seconds = max(seconds for _, _, seconds in connections)
    return LoopbackResult(
        frames=frames,
        saved=statuses.get(Status.SAVED, 0),
        failed=frames - statuses.get(Status.SAVED, 0),
        statuses={Status(number).name: count for number, count in sorted(statuses.items())},
        seconds=seconds,
        frames_per_s=frames / seconds if seconds else 0.0,
        mb_per_s=frames * limits.FRAME_SIZE / seconds / 1e6 if seconds else 0.0,
        p50_ms=percentile_ms(latencies, 0.5),
        p99_ms=percentile_ms(latencies, 0.99),
        p999_ms=percentile_ms(latencies, 0.999),
        verified=sum(report.verified for report in reports),
        verify=options.verify,
        wrong=sum(report.wrong for report in reports),
        problems=tuple(problem for report in reports for problem in report.problems),
        first=ticket.format(shares[0].firsts[0]),
        connection_frames=tuple(acked for _, acked, _ in connections),
        connection_seconds=tuple(seconds for _, _, seconds in connections),
        latencies=latencies,
        build_ns=sum(report.build_s for report in reports) / max(1, frames) * 1e9,
        send_ns=sum(report.send_s for report in reports) / max(1, frames) * 1e9,
    )


class _Inside:
    """The only share, in this process."""

    def __init__(self, share: Share) -> None:
        self._worker = Loader(share)
        self.reports: list[Report] = []

    def start(self, verify: bool) -> float:
        self._worker.connect()
        started = time.monotonic_ns()
        self._worker.start(started)
        return started / 1e9

    def work(self, verify: bool) -> Iterator[tuple[str, list[Report]]]:
        while not self._worker.step():
            self.reports = [self._worker.report()]
            yield "put", self.reports
        self.reports = [self._worker.report()]
        if verify:
            said = time.monotonic()
            for _ in self._worker.verify():
                if time.monotonic() - said > 0.1:
                    said = time.monotonic()
                    yield "verify", self.reports

    def close(self) -> None:
        self._worker.close()


class _Processes:
    """One process for each share. They start together, and end with us: their stdin is ours to close."""

    def __init__(self, shares: list[Share]) -> None:
        self.reports = [Report() for _ in shares]
        self._shares = shares
        self._said: queue.Queue[tuple[int, str]] = queue.Queue()
        self._children: list[subprocess.Popen[str]] = []
        self._timeout = shares[0].timeout_s

    def start(self, verify: bool) -> float:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        for i, share in enumerate(self._shares):
            child = subprocess.Popen(
                [sys.executable, "-m", "ingest.loadgen.load_share"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )
            self._children.append(child)
            threading.Thread(target=self._listen, args=(i, child), daemon=True).start()
            self._order(child, share.to_json())
        for _ in self._children:
            self._next("ready")
        started = time.monotonic_ns() + 10_000_000  # all of them have read this line by then
        for child in self._children:
            self._order(child, f'{{"at_ns": {started}, "verify": {"true" if verify else "false"}}}')
        return started / 1e9

    def work(self, verify: bool) -> Iterator[tuple[str, list[Report]]]:
        putting = done = 0
        while done < len(self._children):
            i, kind, content = self._next("progress", "put", "done")
            self.reports[i] = Report.from_content(content)
            putting += kind == "put"
            done += kind == "done"
            yield "put" if putting < len(self._children) else "verify", self.reports

    def close(self) -> None:
        for child in self._children:
            assert child.stdin is not None
            try:
                child.stdin.close()
            except BrokenPipeError:
                pass
        for child in self._children:
            try:
                child.wait(5)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def _order(self, child: subprocess.Popen[str], line: str) -> None:
        assert child.stdin is not None
        try:
            child.stdin.write(line + "\n")
            child.stdin.flush()
        except BrokenPipeError:
            pass  # it ended, and its listener says why

    def _listen(self, i: int, child: subprocess.Popen[str]) -> None:
        assert child.stdout is not None
        for line in child.stdout:
            self._said.put((i, line))
        self._said.put((i, ""))

    def _next(self, *kinds: str) -> tuple[int, str, Any]:
        """The next thing that a process says, which has to be of one of these kinds: (process, kind, content)."""
        while True:
            try:
                # A share that makes no progress says so itself; this is for one that cannot even do that.
                i, line = self._said.get(timeout=self._timeout + 60)
            except queue.Empty:
                raise ConnectionLostError("a process of the load generator does not answer") from None
            if not line:
                if self._children[i].wait(5) == 0:
                    continue  # it was done
                raise ProtocolError(
                    f"process {i} of the load generator ended with {self._children[i].returncode}"
                )
            said = loads(line)
            if said["kind"] == "error":
                raise error_from_content(said["content"])
            if said["kind"] in kinds:
                return i, said["kind"], said["content"]
            raise ProtocolError(f"process {i} of the load generator said {said['kind']}")


_Team = _Inside | _Processes
