"""A server in a fork of a process that has the library of failing calls loaded, and everything imported."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPResponse
from pathlib import Path

from node_rig import START_TIMEOUT_S, NodeRig

from faults.recovered_server import RecoveredServer

STUCK_S = 60.0  # without being what is waited for: it will never be
LOOK_S = 0.01  # between looks at the admin port
HELD_MAX_S = 5.0  # a fault may keep the frames away for which the committer is held


class FaultServer(RecoveredServer):
    """`RecoveredServer` with its admin port, and a stop that does not wait for ever."""

    def __init__(self, data_dir: Path, *flags: str) -> None:
        super().__init__(data_dir, data_dir.parent / f"{data_dir.name}.log", *flags)

    @property
    def ended(self) -> bool:
        return self._ended()

    def wait_until_ready(self) -> None:
        super().wait_until_ready()
        record = json.loads((self.data_dir / ".ingest" / "lock").read_text())
        host, _, port = record["admin"].rpartition(":")
        self.admin_address = (host, int(port))

    def until_ready(self) -> None:
        """Until /readyz says so. Without a fault it must, by itself: AssertionError."""
        deadline = time.monotonic() + STUCK_S
        while time.monotonic() < deadline:
            assert not self.ended, "the server ended by itself"
            try:
                with ask(self, "readyz"):
                    return
            except urllib.error.HTTPError as error:
                error.close()
            except OSError:
                pass
            time.sleep(LOOK_S)
        raise AssertionError("the server does not become ready again by itself")

    def until_flushed(self, enough: Callable[[], bool]) -> None:
        """Until the packs were synced once behind the acks, or it is `enough`."""
        deadline = time.monotonic() + STUCK_S
        while time.monotonic() < deadline and not enough():
            if sum_of(self, "ingest_flushes") > 0:
                return
            time.sleep(LOOK_S)

    def stop(self, timeout: float = START_TIMEOUT_S) -> int:
        """A clean stop. Returns the exit code; AssertionError when it takes longer than `timeout`."""
        if not self.ended:
            os.kill(self.pid, signal.SIGTERM)
        deadline = time.monotonic() + timeout
        while not self.ended:
            assert time.monotonic() < deadline, f"the server does not end within {timeout} s"
            time.sleep(0.002)
        assert self.exit_code is not None
        return self.exit_code


@contextmanager
def committer_held(node: NodeRig, frames: int) -> Iterator[threading.Event]:
    """The committer stands still until workers hold so many frames that are not answered, or HELD_MAX_S: else chance says
    whether it finds enough of them for the bulk path. Yields what is set when it goes on."""
    committers = node.children("ingest-committer")
    send_signal(committers, signal.SIGSTOP)
    over, released = threading.Event(), threading.Event()

    def release() -> None:
        deadline = time.monotonic() + HELD_MAX_S
        while committers and not over.wait(LOOK_S) and time.monotonic() < deadline:
            try:
                if sum_of(node, "ingest_outstanding_frames") >= frames:
                    break
            except OSError:
                pass  # the admin process has its own troubles
        send_signal(committers, signal.SIGCONT)
        released.set()

    releasing = threading.Thread(target=release)
    releasing.start()
    try:
        yield released
    finally:
        over.set()
        releasing.join()


def send_signal(pids: list[int], number: int) -> None:
    """To those that are still there: a committer may end at any moment."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def sum_of(node: NodeRig, metric: str) -> float:
    """A metric, of all processes. OSError."""
    with ask(node, "metrics") as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(metric))


def ask(node: NodeRig, what: str) -> HTTPResponse:
    """The answer of the admin port. OSError."""
    host, port = node.admin_address
    answer: HTTPResponse = urllib.request.urlopen(f"http://{host}:{port}/{what}", timeout=STUCK_S)
    return answer
