"""`make demo`: real files in, verified and read back, while a worker is killed and the server restarted; then a directory
tree through a gateway (`demo_tree`).

Everything is in a temporary directory, on free ports, and gone at the end, however that comes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import FrameType

import demo_tree
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ingest import Client, frame, ticket
from ingest.errors import IngestError
from ingest.limits import DATA_SIZE
from ingest.ticket import TicketRange

CHUNKS_MIN = 20_000
FIRST_TICKET = "DEMO000"  # 7 characters, so the client may name it; slot 0 of its pack
SINGLE_PUTS = 500  # with one in flight, for their latency
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 20.0


class DemoError(Exception):
    pass


# --- the server ----------------------------------------------------------------------------------


class Server:
    """``ingest server`` on one directory, started as anyone would start it. Its log goes to a file beside the data."""

    command = "server"

    def __init__(self, directory: Path) -> None:
        self.data = directory / "data"
        self.log = directory / "server.log"
        self.addresses = {"put": "127.0.0.1:0", "get": "127.0.0.1:0", "admin": "127.0.0.1:0"}
        self.process: subprocess.Popen[bytes] | None = None
        self.data.mkdir(mode=0o700, exist_ok=True)

    @property
    def key_file(self) -> Path:
        return self.data / ".ingest" / "key"

    def start(self) -> float:
        """Starts it and returns after how many seconds it was ready. Keeps the ports that it got the first time."""
        started = time.monotonic()
        command = [sys.executable, "-m", "ingest", self.command, "--data-dir", str(self.data)]
        command += ["--listen", self.addresses["put"], "--read-listen", self.addresses["get"]]
        command += ["--admin-listen", self.addresses["admin"], *self._flags()]
        with self.log.open("ab") as log:
            # A session of its own: Ctrl-C is for the demo, which then ends the server.
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        while not self._is_ready():
            if self.process.poll() is not None:
                raise DemoError(f"the server ended with {self.process.returncode}:\n{self.log_tail()}")
            if time.monotonic() - started > START_TIMEOUT_S:
                raise DemoError(f"the server was not ready within {START_TIMEOUT_S:g} s:\n{self.log_tail()}")
            time.sleep(0.01)
        return time.monotonic() - started

    def _flags(self) -> list[str]:
        return []

    def _is_ready(self) -> bool:
        """Whether the process that we started has said where it listens, and answers there."""
        assert self.process is not None
        try:
            said = json.loads((self.data / ".ingest" / "lock").read_text())
        except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):  # not yet, or being written
            return False
        if said["pid"] != self.process.pid:  # left by the one before
            return False
        self.addresses = {name: said[name] for name in self.addresses}
        try:
            with urllib.request.urlopen(f"http://{said['admin']}/readyz", timeout=1):
                return True
        except (urllib.error.URLError, OSError):  # 503 while it recovers
            return False

    def stop(self) -> float:
        """Ends it with SIGTERM, as an operator does; returns after how many seconds it was gone."""
        assert self.process is not None
        started = time.monotonic()
        self.process.terminate()
        code = self.process.wait(STOP_TIMEOUT_S)
        if code != 0:
            raise DemoError(f"the server ended with {code} after SIGTERM:\n{self.log_tail()}")
        return time.monotonic() - started

    def kill(self) -> None:
        """Whatever its state, it is gone afterwards; its children end with their parent."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def kill_a_worker(self) -> int:
        """SIGKILL to the worker that has worked most, which is one that serves us. Returns its pid."""
        assert self.process is not None
        workers = list(worker_times(self.process.pid))
        if not workers:
            raise DemoError("the server has no worker to kill")
        _, pid = max(workers)
        os.kill(pid, signal.SIGKILL)
        return pid

    def log_tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-10:])


class Serving(Server):
    """``ingest serve``: a server and its gateway."""

    command = "serve"
    http = "127.0.0.1:0"

    @property
    def _announcement(self) -> Path:
        return self.data / ".ingest" / "gateway.json"

    def _flags(self) -> list[str]:
        return ["--http-listen", self.http]

    def _is_ready(self) -> bool:
        """Whether the gateway has said where it listens, which it takes back when it ends, and answers there."""
        try:
            self.http = json.loads(self._announcement.read_text())["http"]
            with urllib.request.urlopen(f"http://{self.http}/healthz", timeout=1):
                return True
        except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, urllib.error.URLError, OSError):
            return False


def worker_times(parent: int) -> Iterator[tuple[int, int]]:
    """(clock ticks used, pid) of each worker among the children of a process: proc_pid_stat(5)."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text()
        except (FileNotFoundError, ProcessLookupError):  # it ended since
            continue
        name = stat[stat.index("(") + 1 : stat.rindex(")")]
        fields = stat[stat.rindex(")") + 2 :].split()  # from field 3, the state, on
        if int(fields[1]) == parent and fields[0] != "Z" and name.startswith("ingest-worker"):
            yield int(fields[11]) + int(fields[12]), int(entry.name)


# --- the files -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class StoredFile:
    """What whoever stores files has to remember: where the chunks are, and the true length."""

    path: Path
    tickets: TicketRange
    size: int


def candidates() -> Iterator[Path]:
    """Real files: the sources of the standard library; its compiled parts and what is installed, for the case that a
    distribution ships it without its tests."""
    library = Path(sysconfig.get_path("stdlib"))
    installed = Path(sysconfig.get_path("purelib"))
    sources = sorted(library.rglob("*.py"))
    inner = [path for path in sources if not {"site-packages", "dist-packages"} & set(path.parts)]
    yield from inner
    yield from sorted(library.rglob("*.so"))
    yield from sorted(installed.rglob("*.py"))
    yield from sorted(installed.rglob("*.so"))


def collect(chunks_min: int) -> Iterator[tuple[StoredFile, bytes]]:
    """Files with at least so many chunks together, and what is in them; consecutive tickets from ``FIRST_TICKET`` on."""
    start = ticket.parse(FIRST_TICKET)
    chunks = 0
    for path in candidates():
        if chunks >= chunks_min:
            return
        content = path.read_bytes()
        if content:
            count = frame.frames_needed(len(content))
            yield StoredFile(path, TicketRange.of_indices(start + chunks, count), len(content)), content
            chunks += count
    if chunks < chunks_min:
        raise DemoError(f"only {chunks} chunks of files were found, {chunks_min} are needed")


def chunked(stored: StoredFile, content: bytes) -> Iterator[tuple[str, bytes]]:
    for i, text in enumerate(stored.tickets):
        yield text, content[i * DATA_SIZE : (i + 1) * DATA_SIZE]


# --- the story -----------------------------------------------------------------------------------


@dataclass
class Measured:
    what: str
    chunks: int
    seconds: float
    latencies: list[float] | None = None  # seconds, of one chunk each

    def row(self) -> tuple[str, ...]:
        rate = self.chunks / self.seconds
        p50, p99 = ("", "")
        if self.latencies:
            ordered = sorted(self.latencies)
            p50, p99 = (f"{ordered[int(len(ordered) * part)] * 1000:.2f}" for part in (0.50, 0.99))
        return (
            self.what,
            f"{self.chunks:,}",
            f"{self.seconds:.2f}",
            f"{rate:,.0f}",
            f"{rate * DATA_SIZE / 1e6:,.1f}",
            p50,
            p99,
        )


def put(
    client: Client, server: Server, files: list[tuple[StoredFile, bytes]], progress: Progress
) -> Measured:
    """Puts all files with many chunks in flight; a third of the way in, a worker of the server is killed."""
    total = sum(stored.tickets.count for stored, _ in files)
    task = progress.add_task("put", total=total)

    def chunks() -> Iterator[tuple[str, bytes]]:
        given = 0
        for stored, content in files:
            for chunk in chunked(stored, content):
                if given == total // 3:
                    progress.console.print(
                        f"killed worker {server.kill_a_worker()} with SIGKILL in the middle of it"
                    )
                yield chunk
                given += 1
            progress.advance(task, stored.tickets.count)

    started = time.monotonic()
    refused = client.put_many(chunks(), window=16_384)
    seconds = time.monotonic() - started
    if refused:
        raise DemoError(
            f"{len(refused)} chunks were not saved, the first one is {next(iter(refused.items()))}"
        )
    return Measured("put, a worker killed", total, seconds)


def put_singly(client: Client, first: str) -> Measured:
    """Puts chunks one after the other, each after the ack of the one before."""
    latencies = []
    for i, text in enumerate(TicketRange(first, SINGLE_PUTS)):
        started = time.monotonic()
        client.put(text, b"single chunk %d" % i)
        latencies.append(time.monotonic() - started)
    return Measured("put, one in flight", SINGLE_PUTS, sum(latencies), latencies)


def get_singly(client: Client, first: str) -> Measured:
    latencies = []
    for i, text in enumerate(TicketRange(first, SINGLE_PUTS)):
        started = time.monotonic()
        chunk = client.get(text)
        latencies.append(time.monotonic() - started)
        if chunk != (b"single chunk %d" % i).ljust(DATA_SIZE, b"\0"):
            raise DemoError(f"ticket {text} came back with other bytes")
    return Measured("get, one in flight", SINGLE_PUTS, sum(latencies), latencies)


def compare(client: Client, files: list[StoredFile], progress: Progress) -> Measured:
    """Reads everything back in one stream and compares each file with what lies on the disk of this machine."""
    total = sum(stored.tickets.count for stored in files)
    task = progress.add_task("get", total=total)
    stream = client.get_range(files[0].tickets.first, total)
    started = time.monotonic()
    for stored in files:
        content = b"".join(data for _, _, data in islice(stream, stored.tickets.count))
        if len(content) != stored.tickets.count * DATA_SIZE:
            raise DemoError(f"{stored.path}: some of its chunks did not come back")
        if content[: stored.size] != stored.path.read_bytes() or any(content[stored.size :]):
            raise DemoError(f"{stored.path} came back with other bytes")
        progress.advance(task, stored.tickets.count)
    return Measured("get, verify, compare", total, time.monotonic() - started)


def tell(directory: Path, chunks_min: int, console: Console) -> None:
    files = list(collect(chunks_min))
    manifest = [stored for stored, _ in files]
    chunks = sum(stored.tickets.count for stored in manifest)
    console.print(
        f"{len(files):,} files from {sysconfig.get_path('stdlib')} are {chunks:,} chunks of {DATA_SIZE} bytes"
    )

    server = Server(directory)
    with contextlib.ExitStack() as stack:
        stack.callback(server.kill)
        console.print(f"server ready after {server.start():.2f} s on {server.addresses['put']}")
        client = stack.enter_context(
            Client.connect(server.addresses["put"], server.addresses["get"], key=server.key_file)
        )
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        progress = stack.enter_context(
            Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        )
        singles = ticket.successor(manifest[-1].tickets.last)
        measured = [put(client, server, files, progress), put_singly(client, singles)]
        console.print(f"stopped the server with SIGTERM: gone after {server.stop():.2f} s")
        console.print(f"started it again on the same data: ready after {server.start():.2f} s")
        measured += [compare(client, manifest, progress), get_singly(client, singles)]
        console.print(f"stopped the server: gone after {server.stop():.2f} s")

    table = Table("", "chunks", "seconds", "chunks/s", "MB/s", "p50 ms", "p99 ms")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in measured:
        table.add_row(*row.row())
    console.print(table)
    console.print(f"all {len(files):,} files came back as they are on the disk")


def tell_of_a_tree(directory: Path, console: Console) -> None:
    """On the data of the story before."""
    serving = Serving(directory)
    try:
        demo_tree.tell(serving, directory / "fetched", console)
    finally:
        serving.kill()


def interrupted(number: int, _: FrameType | None) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--chunks", type=int, default=CHUNKS_MIN, metavar="N", help="put at least so many (%(default)s)"
    )
    options = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):  # SIGINT too: a shell's background job has it ignored
        signal.signal(number, interrupted)
    console = Console(soft_wrap=True)
    directory = Path(tempfile.mkdtemp(prefix="ingest-demo-"))
    try:
        tell(directory, options.chunks, console)
        tell_of_a_tree(directory, console)
    except (DemoError, demo_tree.TreeError, IngestError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr)
        return 130
    finally:
        shutil.rmtree(directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
