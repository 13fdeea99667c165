"""What one process of the load generator does: connect, put, read back. `loopback` plans the shares and adds them up.

``python -m ingest.loadgen.load_share`` is that process: it reads its share, and when to start, as lines of JSON from
stdin and answers with lines of JSON on stdout. The end of stdin is the end of the process.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ingest import errors, limits, mac, ticket, tls
from ingest.errors import ConnectionLostError, IngestError, ProtocolError, UsageError
from ingest.frame import RunHeader
from ingest.loadgen._load_content import Content
from ingest.loadgen._load_engine import Engine
from ingest.runtime.listeners import unpace
from ingest.runtime.tls_context import TlsContext, handshake
from ingest.status import Status
from ingest.ticket import TicketRange

SLICE_NS = 100_000_000  # how long the engine works between two reports
VERIFY_RANGE = 16_384  # tickets of one get: the server streams, we read 1 MiB at a time
VERIFY_BLOCK = 704  # frames of one read and check, 1 MiB
DOUBTS_MAX = 65_536  # bad frames that are asked for once more; past this the store is beyond doubt
PROBLEMS_SHOWN = 10


@dataclass(frozen=True)
class Share:
    """The part of one process. Addresses are (host, port); ``firsts`` and ``counts`` are of its connections."""

    connect: tuple[str, int]
    read_connect: tuple[str, int] | None
    keys: tuple[str, ...] = field(repr=False)  # shared keys, hex; the first signs
    seed: int
    window: int
    firsts: tuple[int, ...]
    counts: tuple[int, ...]
    interval_ns: float = 0.0
    offset: int = 0
    connections_total: int = 0
    duration_ns: int = 0
    timeout_s: float = 60.0
    tls: tuple[str | None, ...] | None = None  # paths of CA, certificate and key; None: plain

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Share:
        content = json.loads(text)
        for name in ("connect", "read_connect", "keys", "firsts", "counts", "tls"):
            content[name] = tuple(content[name]) if content[name] is not None else None
        return cls(**content)


@dataclass
class Report:
    """What a share has done so far. ``latencies`` has only the buckets that are not empty: {bucket: count}."""

    acked: int = 0
    statuses: dict[int, int] = field(default_factory=dict)
    latencies: dict[int, int] = field(default_factory=dict)
    connections: list[tuple[int, int, float]] = field(default_factory=list)  # sent, acked, seconds
    build_s: float = 0.0
    send_s: float = 0.0
    verified: int = 0
    wrong: int = 0  # tickets that did not come back as they were put
    problems: list[str] = field(default_factory=list)  # the first few of them

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_content(cls, content: dict[str, Any]) -> Report:
        """The inverse, after JSON, whose keys are all text."""
        for name in ("statuses", "latencies"):
            content[name] = {int(key): value for key, value in content[name].items()}
        content["connections"] = [tuple(item) for item in content["connections"]]
        return cls(**content)


class Loader:
    """One share at work: ``connect``, ``start``, ``step`` until it is True, ``verify`` if wanted, ``close``."""

    def __init__(self, share: Share) -> None:
        self.share = share
        self.ring = mac.KeyRing(bytes.fromhex(key) for key in share.keys)
        self.content = Content(share.seed)
        self._sockets: list[socket.socket] = []
        self._engine: Engine | None = None
        self._report = Report()
        self._progress = (0, time.monotonic())  # acked, when that last changed

    def connect(self) -> None:
        """Opens all connections. ConnectionLostError when the server does not take one of them in time."""
        share = self.share
        _allow_descriptors(len(share.firsts) + 64)
        for _ in share.firsts:
            self._sockets.append(_connect(share.connect, share.timeout_s))
            self._sockets[-1].setblocking(False)
        sessions = []
        if share.tls is not None:
            ca, cert, key = (None if name is None else Path(name) for name in share.tls)
            context = TlsContext(tls.read_certificates(cert, key, ca), is_server=False)
            for sock in self._sockets:
                sessions.append(handshake(context, sock, share.connect[0], share.timeout_s))
        self._engine = Engine(
            self.content,
            self.ring.signing.put,
            [sock.fileno() for sock in self._sockets],
            share.firsts,
            share.counts,
            share.window,
            interval_ns=share.interval_ns,
            offset=share.offset,
            connections_total=share.connections_total,
            sessions=sessions,
        )

    def start(self, at_ns: int) -> None:
        """The clock (``time.monotonic_ns``) that latencies and the duration count from."""
        assert self._engine is not None, "connect comes before start"
        time.sleep(max(0, at_ns - time.monotonic_ns()) / 1e9)
        self._engine.start(at_ns, at_ns + self.share.duration_ns if self.share.duration_ns else 0)
        self._progress = (0, time.monotonic())

    def step(self) -> bool:
        """Works for a moment; True when every frame is acked. ConnectionLostError, ProtocolError: see ``Engine.run``;
        also when frames wait for their acks for the time-out without a single one coming."""
        engine = self._engine
        assert engine is not None
        done = engine.run(min(SLICE_NS, int(self.share.timeout_s * 1e9 / 4) + 1))
        now = time.monotonic()
        if engine.acked != self._progress[0] or not engine.outstanding:
            self._progress = (engine.acked, now)
        elif not done and now - self._progress[1] > self.share.timeout_s:
            raise ConnectionLostError(
                f"no ack for {self.share.timeout_s:g} s while {engine.outstanding} frames wait for theirs"
            )
        return done

    def report(self) -> Report:
        engine = self._engine
        if engine is None:
            return self._report
        report = self._report
        report.acked = engine.acked
        report.statuses = engine.status_counts()
        report.latencies = {i: n for i, n in enumerate(engine.latency_counts()) if n}
        report.connections = engine.connection_counts()
        report.build_s, report.send_s = engine.times()
        return report

    def verify(self) -> Iterator[Report]:
        """Reads every frame back that was put and compares it; yields the report now and then."""
        report = self.report()
        if self.share.read_connect is None:
            raise UsageError("to read back what was put, the address of the read port is needed")
        with self._connect_to_read(self.share.read_connect) as sock:
            reader = _Reader(sock, self)
            ranges = [
                (first, sent)
                for first, (sent, _, _) in zip(self.share.firsts, report.connections, strict=True)
            ]
            doubtful: list[int] = []
            for bad in reader.read(ranges):
                doubtful += bad[: DOUBTS_MAX - len(doubtful)]
                yield report
            for _ in reader.read([(index, 1) for index in doubtful], last_time=True):
                yield report

    def _connect_to_read(self, address: tuple[str, int]) -> socket.socket:
        sock = _connect(address, self.share.timeout_s)
        if self.share.tls is None:
            return sock
        try:
            return tls.client_context(*self.share.tls).wrap_socket(sock, server_hostname=address[0])
        except OSError as error:
            sock.close()
            raise ConnectionLostError(f"{address[0]}:{address[1]}: TLS handshake failed: {error}") from error

    def close(self) -> None:
        self._engine = None
        while self._sockets:
            self._sockets.pop().close()


class _Reader:
    """One get connection that reads ranges and compares them with what the generator makes."""

    def __init__(self, sock: socket.socket, worker: Loader) -> None:
        self._sock = sock
        self._worker = worker
        self._report = worker.report()
        self._put_keys = tuple(keys.put for keys in worker.ring.all)
        self._buffer = memoryview(bytearray(VERIFY_BLOCK * limits.FRAME_SIZE))

    def read(self, ranges: list[tuple[int, int]], last_time: bool = False) -> Iterator[list[int]]:
        """Yields after each block the indices that came back bad and deserve a second look (none the last time)."""
        asked: deque[tuple[int, int]] = deque()
        try:
            for first, count in _cut(ranges):
                asked.append((first, count))
                self._ask(first, count)
                if len(asked) == 2:  # one request ahead, so that the server never waits for us
                    yield from self._reply(*asked.popleft(), last_time)
            while asked:
                yield from self._reply(*asked.popleft(), last_time)
        except OSError as error:
            raise ConnectionLostError(f"reading back: {error.strerror or error}") from error

    def _ask(self, first: int, count: int) -> None:
        key = self._worker.ring.signing.get
        self._sock.sendall(mac.build_request(key, ticket.index_to_wire(first), count))

    def _reply(self, first: int, count: int, last_time: bool) -> Iterator[list[int]]:
        while count:
            header = RunHeader.parse(self._exactly(limits.RUN_HEADER_SIZE))
            run = header.check(TicketRange.of_indices(first, count))
            if header.status is Status.SAVED:
                yield from self._frames(first, run.count, last_time)
            else:
                self._wrong(first, run.count, header.status.name)
                yield []
            first += run.count
            count -= run.count

    def _frames(self, first: int, count: int, last_time: bool) -> Iterator[list[int]]:
        while count:
            n = min(count, VERIFY_BLOCK)
            good = self._worker.content.check(self._put_keys, self._exactly(n * limits.FRAME_SIZE), first)
            right = sum(good)
            self._report.verified += right
            bad = [first + i for i, flag in enumerate(good) if not flag] if right < n else []
            if last_time and bad:
                self._wrong(first, len(bad), "not what was put")
            yield bad
            first += n
            count -= n

    def _wrong(self, first: int, count: int, what: str) -> None:
        self._report.wrong += count
        if len(self._report.problems) < PROBLEMS_SHOWN:
            more = f" and {count - 1} more" if count > 1 else ""
            self._report.problems.append(f"{ticket.format(first)}{more}: {what}")

    def _exactly(self, size: int) -> memoryview:
        view = self._buffer[:size]
        have = 0
        while have < size:
            n = self._sock.recv_into(view[have:])
            if n == 0:
                raise ConnectionLostError("reading back: the server closed the connection inside a reply")
            have += n
        return view


def _cut(ranges: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    for first, count in ranges:
        for start in range(first, first + count, VERIFY_RANGE):
            yield start, min(VERIFY_RANGE, first + count - start)


def _connect(address: tuple[str, int], timeout_s: float) -> socket.socket:
    try:
        sock = socket.create_connection(address, timeout=timeout_s)
    except OSError as error:
        raise ConnectionLostError(f"{address[0]}:{address[1]}: {error.strerror or error}") from error
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    unpace(sock, sock.getpeername()[0])
    return sock


def _allow_descriptors(count: int) -> None:
    """Raises our soft limit of open files as far as the hard one if ``count`` more need it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count + 64:
        wanted = count + 64 if hard == resource.RLIM_INFINITY else min(hard, count + 64)
        with contextlib.suppress(ValueError, OSError):  # then a connection fails, and says why
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


# --- as a process of its own ---------------------------------------------------------------------


def _say(kind: str, text: str = "null") -> None:
    sys.stdout.write(f'{{"kind": "{kind}", "content": {text}}}\n')
    sys.stdout.flush()


def _work(orders: Iterator[str]) -> None:
    worker = Loader(Share.from_json(next(orders)))
    worker.connect()
    _say("ready")
    start: dict[str, Any] = json.loads(next(orders))
    threading.Thread(target=_end_with_stdin, args=(orders,), daemon=True).start()
    worker.start(start["at_ns"])
    while not worker.step():
        _say("progress", worker.report().to_json())
    _say("put", worker.report().to_json())
    if start["verify"]:
        said = time.monotonic()
        for report in worker.verify():
            if time.monotonic() - said > SLICE_NS / 1e9:
                said = time.monotonic()
                _say("progress", report.to_json())
    _say("done", worker.report().to_json())
    worker.close()


def _end_with_stdin(orders: Iterator[str]) -> None:
    for _ in orders:
        pass
    os._exit(1)


def error_from_content(content: list[str]) -> IngestError:
    """The error that a process reported, as the class that it had there."""
    kind = getattr(errors, content[0], None)
    if isinstance(kind, type) and issubclass(kind, IngestError) and kind is not errors.RefusedError:
        return kind(content[1])
    return ProtocolError(f"{content[0]}: {content[1]}")


def main() -> int:
    try:
        _work(iter(sys.stdin.readline, ""))
    except BrokenPipeError:  # nobody is interested any more
        return 1
    except Exception as error:
        _say("error", json.dumps([type(error).__name__, str(error)]))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
