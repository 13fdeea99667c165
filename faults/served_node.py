"""`ingest serve` with two workers and two HTTP processes. Each process has a name, and can be made to stand still."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import psutil
import short_limits
from gateway_rig import NodeGateway

from ingest import mac
from ingest.runtime.key_file import read_keys

WORKERS = ("worker-0", "worker-1")
HTTP = ("http-0", "http-1")
# Who starts whom.
PARENT_OF = (
    dict.fromkeys(("server", "gateway"), "serve")
    | dict.fromkeys(("admin", "committer", *WORKERS), "server")
    | dict.fromkeys(("catalog", *HTTP, "collector"), "gateway")
)
NAMES = ("serve", *PARENT_OF)
REPLACED = ("admin", *WORKERS, *HTTP, "collector")  # when they are silent for too long
STOPPED = "T"
END_S = 30.0  # for an end, whose drains take 12 s at most
DRAIN = ("--drain-timeout=5",)  # half of the default: an end waits so long for what stands still


class ServedNode:
    """As `NodeRig` and `NodeGateway` are one server and one gateway. ``settings``: limits that are changed, by name."""

    def __init__(self, data_dir: Path, settings: dict[str, float], *flags: str) -> None:
        changed = [f"{name}={value}" for name, value in settings.items()]
        self.node = NodeGateway(
            data_dir,
            "--workers=2",
            "--http-workers=2",
            "--reserve=0",
            *DRAIN,
            *flags,
            wrapper=(sys.executable, short_limits.__file__, *changed, "--"),
        )
        self.data_dir = data_dir
        self.put_address = self.get_address = self.admin_address = ("", 0)

    def start(self) -> None:
        """Returns when all its ports take connections."""
        self.node.start()
        record = json.loads((self.data_dir / ".ingest" / "lock").read_text())
        self.put_address, self.get_address, self.admin_address = (
            (record[name].rsplit(":", 1)[0], int(record[name].rsplit(":", 1)[1]))
            for name in ("put", "get", "admin")
        )

    @property
    def http_address(self) -> tuple[str, int]:
        address: tuple[str, int] = self.node.gateway.address
        return address

    @property
    def keys(self) -> mac.SubKeys:
        return mac.KeyRing(read_keys(self.data_dir / ".ingest" / "key")).signing

    @property
    def pid(self) -> int:
        assert self.node.process is not None
        return int(self.node.process.pid)

    def log(self) -> str:
        return str(self.node.log())

    def log_size(self) -> int:
        return int(self.node.log_path.stat().st_size)

    def log_from(self, offset: int) -> str:
        with self.node.log_path.open("rb") as file:
            file.seek(offset)
            return str(file.read().decode(errors="replace"))

    # --- its processes

    def processes(self) -> dict[str, int]:
        """Process ids by name. One that was just forked, and has no name of its own yet, is left out."""
        found = {"serve": self.pid}
        below: dict[int, list[int]] = {}
        for pid in psutil.pids():
            with suppress(OSError, ValueError, IndexError):
                stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                if stat[0] not in "ZX":
                    below.setdefault(int(stat[1]), []).append(pid)
        for parent in ("serve", "server", "gateway"):
            names = {f"ingest-{name}"[:15]: name for name, above in PARENT_OF.items() if above == parent}
            for pid in below.get(found.get(parent, 0), []):
                with suppress(OSError):
                    comm = Path(f"/proc/{pid}/comm").read_text().rstrip("\n")
                    if comm in names:
                        found[names[comm]] = pid
        return found

    def stopped(self) -> list[str]:
        """Names of the processes that stand still by a signal."""
        return [name for name, pid in self.processes().items() if state_of(pid) == STOPPED]

    def send(self, pids: Iterable[int], number: signal.Signals) -> None:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def go_on(self, pids: Iterable[int]) -> None:
        self.send(pids, signal.SIGCONT)

    # --- its end

    def end(self, number: signal.Signals, meanwhile: Callable[[], None] = lambda: None) -> list[str]:
        """Sends this to the parent, and waits until no process of it is left. ``meanwhile`` is called after the signal."""
        family = self.node.family()
        os.kill(self.pid, number)
        meanwhile()
        _, alive = psutil.wait_procs(family, END_S)
        names = [f"{one.pid} {one.name()}" for one in alive if one.is_running()]
        if names:
            return [f"{number.name}: after {END_S:.0f} s there are still {', '.join(names)}:\n{self.log()}"]
        assert self.node.process is not None
        self.node.process.wait(END_S)
        return []

    def close(self) -> None:
        self.node.close()


def has(pid: int, sock: socket.socket) -> bool:
    """Whether this process has the other end of a connection."""
    try:
        found = psutil.Process(pid).net_connections("tcp")
    except psutil.Error:
        return False
    return any(one.raddr and tuple(one.raddr) == sock.getsockname() for one in found)


def state_of(pid: int) -> str:
    """The letter of a process's state; empty when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether that came true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
