"""An engine, the gateway whose catalog belongs to it, the user's commands on both, and what the engine's store holds."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from blake3 import blake3
from gateway_rig import Answer, Broken, Connection, NodeGateway
from node_rig import NodeRig, read_exactly

from faults.catalog_history import CatalogHistory
from ingest import mac, ticket
from ingest._hmac import verify
from ingest.catalog.extent import FIRST
from ingest.limits import FRAME_SIZE, RANGE_COUNT_MAX, RUN_HEADER_SIZE
from ingest.status import Status

PATIENCE_S = 60.0  # for anything that a process does within seconds
BOUND_S = 30.0  # until a gateway serves again whose engine is back: the client's back-off is 2 s at most
REFUSED = 78
ADVICE = "nothing is stored or deleted there"  # in every refusal, docs/objects.md
WHOSE = re.compile(
    r"the engine's store (belongs to the catalog [0-9a-f]{32}, and this one is [0-9a-f]{32}"
    r"|is not that of this catalog, [0-9a-f]{32}|does not carry the id of this catalog): "
)
SIDES = ("", "-wal", "-shm")  # the files of a catalog
Place = tuple[tuple[str, int], tuple[str, int]]  # of an engine: its put and its get address


class LossError(Exception):
    """A guarantee was broken: what was expected, and what was found."""


@dataclass
class Run:
    """One run of consecutive tickets of a store with the same status. `frames`: of SAVED ones."""

    first: int
    count: int
    status: Status
    frames: bytes = b""

    def __contains__(self, index: int) -> bool:
        return self.first <= index < self.first + self.count

    def data(self, index: int) -> bytes:
        return self.frames[(index - self.first) * FRAME_SIZE :][16:FRAME_SIZE]


def read_store(engine: NodeRig, keys: mac.SubKeys, first: int, count: int) -> list[Run]:
    """What the get port shows, every frame of it checked."""
    runs: list[Run] = []
    with socket.create_connection(engine.get_address, PATIENCE_S) as sock:
        for start in range(first, first + count, RANGE_COUNT_MAX):
            wanted = min(RANGE_COUNT_MAX, first + count - start)
            head = ticket.index_to_wire(start) + struct.pack(">Q", wanted)
            sock.sendall(head + blake3(head, key=keys.get).digest(8))
            done = 0
            while done < wanted:
                raw = read_exactly(sock, RUN_HEADER_SIZE)
                at, status = ticket.index_from_wire(raw[:8]), Status(raw[8])
                found = int.from_bytes(raw[12:], "big")
                if at != start + done or not found:
                    raise LossError(f"the get port answers for {ticket.format(at)} and {found} tickets")
                frames = read_exactly(sock, found * FRAME_SIZE) if status is Status.SAVED else b""
                if frames and not all(verify(keys.put, frames)):
                    raise LossError(f"a frame behind {ticket.format(at)} fails its checksum")
                runs.append(Run(at, found, status, frames))
                done += found
    return runs


def everything(engine: NodeRig, keys: mac.SubKeys, upto: int) -> dict[int, tuple[Status, bytes]]:
    """All that the store has of the tickets of catalogs before `upto`, and under the last ticket."""
    runs = read_store(engine, keys, FIRST, upto - FIRST) + read_store(engine, keys, ticket.LAST, 1)
    return {
        index: (run.status, run.data(index))
        for run in runs
        if run.status is not Status.MISSING
        for index in range(run.first, run.first + run.count)
    }


def until(condition: Callable[[], bool], what: str, limit_s: float = PATIENCE_S) -> float:
    """Waits; returns the seconds that it took. LossError after `limit_s`."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > limit_s:
            raise LossError(f"{what}: not within {limit_s:.0f} s")
        time.sleep(0.01)
    return time.monotonic() - began


def flags_of(put: Place, get: Place | None = None) -> tuple[str, ...]:
    """How a gateway is told of its engine: the put port of one place, and the get port of the same or another."""
    (host, port), _ = put
    _, (read_host, read_port) = get or put
    return f"--connect={host}:{port}", f"--read-connect={read_host}:{read_port}"


class Gateway(NodeGateway):  # type: ignore[misc]
    """`ingest gateway` on a data directory in which there is a catalog and nothing else."""

    def __init__(self, data_dir: Path, key_file: Path, workers: int) -> None:
        (data_dir / ".ingest").mkdir(parents=True)
        super().__init__(data_dir, command="gateway")
        self.fixed = (f"--key-file={key_file}", "--collect-interval=0.2", f"--http-workers={workers}")
        self._log_from = 0

    def begin(self, addresses: tuple[str, ...]) -> None:
        """Starts it and does not wait."""
        self.flags = (*self.fixed, *addresses)
        self._log_from = self.log_path.stat().st_size if self.log_path.exists() else 0
        self.start(wait=False)

    @property
    def runs(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def said(self) -> str:
        """Its log since its last start."""
        with self.log_path.open(errors="replace") as file:
            file.seek(self._log_from)
            text: str = file.read()
        return text

    def outcome(self) -> bool | None:
        """True: it serves; False: it was refused, in the words of the documents; None: nobody knows yet. LossError for any
        other end than that, or than a kill by us."""
        if self._ready():
            return True
        code = None if self.process is None else self.process.poll()
        if code in (None, -signal.SIGKILL):
            return None
        self.require_refusal(code or 0, self.said())
        return False

    def serves(self) -> bool:
        """Waits for its `outcome`. LossError when there is none."""
        until(lambda: self.outcome() is not None, f"a gateway serves or ends: {self.log_path}")
        return self.runs

    def moved(self, data_dir: Path) -> None:
        """Its data directory is there now. It must not run."""
        self.data_dir = data_dir
        self.announcement = data_dir / ".ingest" / "gateway.json"

    def _ready(self) -> bool:
        """One that waits for its engine listens, too; it says that it is not ready."""
        with suppress(OSError, Broken, ValueError, IndexError, KeyError):
            host, _, port = json.loads(self.announcement.read_bytes())["http"].rpartition(":")
            with Connection((host, int(port))) as connection:
                ready = connection.request("GET", "/healthz").status == 200
            self.gateway.address = (host, int(port))
            return ready and self.runs
        return False

    @staticmethod
    def require_refusal(code: int, said: str) -> None:
        if code != REFUSED:
            raise LossError(f"expected exit code {REFUSED}, found {code}:\n{said[-3000:]}")
        if not WHOSE.search(said) or ADVICE not in said:
            raise LossError(f"refused without the words of the documents:\n{said[-3000:]}")

    def kill(self) -> None:
        """SIGKILL to all of them; nothing when none is there."""
        if self.runs:
            with suppress(psutil.NoSuchProcess):
                self.end([process.pid for process in self.family()])

    def end(self, pids: list[int]) -> None:
        """SIGKILL to these, the parent among them; returns when all of its family are gone."""
        assert self.process is not None
        family = self.family()[1:]
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(PATIENCE_S)
        _, alive = psutil.wait_procs(family, PATIENCE_S)
        if alive:
            raise LossError(f"{len(alive)} processes of a gateway outlived their parent")

    def quit(self) -> None:
        if self.runs and (code := self.stop()):
            raise LossError(f"a clean stop of a gateway ended with {code}:\n{self.log()}")

    def ask(self, method: str, path: str, body: bytes | None = None) -> Answer:
        """OSError, Broken and ValueError when there is no whole answer; LossError when there is none for a minute."""
        try:
            with Connection(self.gateway.address) as connection:
                return connection.request(method, path, body)
        except TimeoutError:
            raise LossError(f"{method} {path}: no answer for a minute:\n{self.log()}") from None
        except IndexError:
            raise Broken("the connection ended in the head") from None


@dataclass
class Side:
    """`place`: where the engine listens when all is well. `history`: of the catalog's objects."""

    engine: NodeRig
    gateway: Gateway
    history: CatalogHistory
    key_file: Path
    layout: str = "pack"  # of the engine's store
    place: Place = (("", 0), ("", 0))
    copies: int = 0
    waits: list[float] = field(default_factory=list)  # until the gateway served again whose engine was back

    @property
    def keys(self) -> mac.SubKeys:
        keys: mac.SubKeys = self.engine.keys
        return keys

    @property
    def catalog(self) -> Path:
        return self.gateway.data_dir / ".ingest" / "catalog.db"

    def start_engine(self, place: Place | None = None) -> None:
        """At `place`, or at its own."""
        (host, port), (read_host, read_port) = place or self.place
        self.engine.flags = (
            f"--listen={host}:{port}",
            f"--read-listen={read_host}:{read_port}",
            f"--layout={self.layout}",
            "--reserve=0",
            "--workers=1",
        )
        try:
            self.engine.start()
        except AssertionError as error:
            raise LossError(str(error)) from None

    def start(self, place: Place | None = None) -> None:
        """The gateway, on the engine that is there. LossError unless it serves."""
        self.gateway.begin(flags_of(place or self.place))
        if not self.gateway.serves():
            raise LossError(f"the gateway is refused at its own engine:\n{self.gateway.said()[-3000:]}")

    def stop(self) -> None:
        self.gateway.quit()
        self.history.append("quiet")

    def stop_engine(self) -> None:
        if code := self.engine.stop():
            raise LossError(f"a clean stop of an engine ended with {code}:\n{self.engine.log()}")

    def command(self, *arguments: str, code: tuple[int, ...] = (0,)) -> str:
        """`ingest ARGUMENTS`, as users run it. Returns what it said. LossError for another exit code."""
        clean = {name: text for name, text in os.environ.items() if not name.startswith("INGEST_")}
        command = [sys.executable, "-m", "ingest", *arguments]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, env=clean, timeout=PATIENCE_S
            )
        except subprocess.TimeoutExpired:
            raise LossError(f"ingest {' '.join(arguments)}: no end within {PATIENCE_S:.0f} s") from None
        said = done.stdout + done.stderr
        if done.returncode not in code:
            raise LossError(
                f"ingest {' '.join(arguments)}: expected exit code {code}, found {done.returncode}:\n{said[-3000:]}"
            )
        return said

    def put_catalog(self, source: Path) -> None:
        """The catalog becomes this file. No gateway may run."""
        for end in SIDES:
            Path(f"{self.catalog}{end}").unlink(missing_ok=True)
        shutil.copy(source, self.catalog)

    def copy_of_catalog(self) -> Path:
        """As `ingest catalog backup` makes it, whether a gateway runs or not."""
        self.copies += 1
        target = self.gateway.data_dir.parent / f"{self.gateway.data_dir.name}-copy-{self.copies}.db"
        self.command("catalog", "backup", str(target), f"--data-dir={self.gateway.data_dir}")
        return target

    def close(self) -> None:
        self.gateway.close()
        self.engine.close()
        self.history.close()
