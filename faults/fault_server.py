"""A server in a fork of a process that has the library of failing calls loaded, and everything imported."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPResponse
from pathlib import Path

from node_rig import START_TIMEOUT_S

from faults.recovered_server import RecoveredServer

STUCK_S = 60.0  # without being what is waited for: it will never be
LOOK_S = 0.01  # between looks at the admin port


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
                with self._ask("readyz"):
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
            with self._ask("metrics") as answer:
                lines = answer.read().decode().splitlines()
            if any(float(line.split()[-1]) > 0 for line in lines if line.startswith("ingest_flushes")):
                return
            time.sleep(LOOK_S)

    def _ask(self, what: str) -> HTTPResponse:
        host, port = self.admin_address
        answer: HTTPResponse = urllib.request.urlopen(f"http://{host}:{port}/{what}", timeout=STUCK_S)
        return answer

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
