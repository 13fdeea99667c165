"""A real gateway (`ingest gateway`) beside a real server, for one round."""

from __future__ import annotations

import http.client
import json
import os
import time
from pathlib import Path

from bench.process import START_TIMEOUT_S, Process
from bench.server import PROBE_TIMEOUT_S, Server
from ingest.runtime.listeners import format_address, parse_address


class Gateway(Process):
    """One gateway on the data of `server`, which runs, with a free port and an HTTP process for each core. ``probe``: the
    path that is asked for at its start until it is answered 200."""

    def __init__(self, server: Server, probe: str = "/healthz") -> None:
        data_dir = server.data_dir
        command = ["gateway", "--data-dir", str(data_dir), "--http-listen", "127.0.0.1:0"]
        command += ["--connect", format_address(server.put_address)]
        command += ["--read-connect", format_address(server.get_address)]
        self.processes = len(os.sched_getaffinity(0))
        command += ["--http-workers", str(self.processes)]
        super().__init__(
            f"the gateway on {data_dir}", command, data_dir.parent / f"{data_dir.name}.gateway.stderr"
        )
        self._announcement = data_dir / ".ingest" / "gateway.json"
        self._probe = probe

    def start(self) -> float:
        """Starts it; returns the seconds until a request is answered. All its processes listen then: one that comes later
        would get no share of the connections."""
        began = time.perf_counter()
        self._launch()
        self.address = self._wait_for_address()
        self._wait_until_it_answers()
        seconds = time.perf_counter() - began
        deadline = time.perf_counter() + START_TIMEOUT_S
        while listening(self.address[1]) < self.processes:
            self._look(deadline, "not all of its processes listen")
        return seconds

    def url(self, path: str) -> str:
        return f"http://{format_address(self.address)}{path}"

    def _wait_for_address(self) -> tuple[str, int]:
        deadline = time.perf_counter() + START_TIMEOUT_S
        while True:
            try:
                said = json.loads(self._announcement.read_bytes())
                if said["pid"] == self.process.pid:
                    return parse_address(said["http"])
            except FileNotFoundError:
                pass
            self._look(deadline, "says no address")

    def _wait_until_it_answers(self) -> None:
        deadline = time.perf_counter() + START_TIMEOUT_S
        while True:
            connection = http.client.HTTPConnection(*self.address, timeout=PROBE_TIMEOUT_S)
            try:
                connection.request("HEAD", self._probe)
                status = connection.getresponse().status
                if status != 200:
                    raise self._error(f"answers {self._probe} with {status}")
                return
            except (ConnectionError, TimeoutError):
                pass
            finally:
                connection.close()
            self._look(deadline, "does not answer")


def listening(port: int) -> int:
    """How many sockets listen on a port of 127.0.0.1."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1] == f"0100007F:{port:04X}" and row[3] == "0A" for row in rows)
