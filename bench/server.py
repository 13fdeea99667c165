"""A real server (`python -m ingest server`) for one round: started, asked, watched, ended or killed."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from ingest import limits, mac, ticket
from ingest.status import Status
from ingest.tls import client_context

ROOT = Path(__file__).parent.parent
START_TIMEOUT_S = 60.0
END_TIMEOUT_S = 60.0
POLL_INTERVAL_S = 0.002  # between looks whether a port answers
PROBE_TIMEOUT_S = 10.0


class ServerError(Exception):
    """The server did not do what the benchmark needs; the message has the end of its log."""


@dataclass(frozen=True)
class Memory:
    """One process at one moment, bytes."""

    name: str
    anonymous: int
    shared: int

    @property
    def total(self) -> int:
        return self.anonymous + self.shared


def memory(pid: int) -> Memory | None:
    """RssAnon and RssShmem of a process; None when it has ended."""
    fields: dict[str, str] = {}
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            fields[name] = value.strip()
    except (FileNotFoundError, ProcessLookupError):
        return None
    if "RssAnon" not in fields:
        return None  # a zombie has no memory

    def size(name: str) -> int:
        return int(fields[name].removesuffix(" kB")) * 1024

    return Memory(fields["Name"], size("RssAnon"), size("RssShmem"))


class Server:
    """One server on `data_dir`, with free ports; `tls_ca` when its flags have it speak TLS. As a context: what still
    runs in the end is killed."""

    def __init__(self, data_dir: Path, *flags: str, tls_ca: Path | None = None) -> None:
        self.data_dir = data_dir
        self._tls = client_context(tls_ca) if tls_ca is not None else None
        self.flags = flags
        self.command = [sys.executable, "-m", "ingest", "server", "--data-dir", str(data_dir), *flags]
        self.command += [
            part for flag in ("--listen", "--read-listen", "--admin-listen") for part in (flag, "127.0.0.1:0")
        ]
        self.log_path = data_dir.parent / f"{data_dir.name}.stderr"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self.kill()
        self.log_path.unlink(missing_ok=True)

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "the server does not run"
        return self._process

    def start(self) -> float:
        """Starts it; returns the seconds until its ports answer: a frame is SAVED and comes back."""
        assert self._process is None
        # The benchmark's own variables are none of the server's.
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("INGEST_") or name == "INGEST_MAC_PATH"
        }
        environment["PYTHONPATH"] = os.pathsep.join(
            [str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]
        )
        began = time.perf_counter()
        with open(self.log_path, "ab") as log:
            self._process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )
        self._addresses = self._wait_for_addresses()
        self._shared_key = mac.parse_keys((self.data_dir / ".ingest" / "key").read_text())[0]
        self._wait_until_it_answers()
        return time.perf_counter() - began

    @property
    def put_address(self) -> tuple[str, int]:
        return self._addresses["put"]

    @property
    def get_address(self) -> tuple[str, int]:
        return self._addresses["get"]

    @property
    def shared_key(self) -> bytes:
        return self._shared_key

    @property
    def key_file(self) -> Path:
        return self.data_dir / ".ingest" / "key"

    def pids(self) -> list[int]:
        """The parent and all that it started."""
        found = [self.process.pid]
        for pid in found:
            try:
                children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            found += [int(child) for child in children]
        return found

    def stop(self) -> float:
        """TERM; returns the seconds until it has flushed and exited with 0. ServerError for another exit code."""
        began = time.perf_counter()
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise self._error(f"still runs {END_TIMEOUT_S:g} s after TERM") from None
        seconds = time.perf_counter() - began
        if code != 0:
            raise self._error(f"exit code {code} after TERM")
        self._process = None
        return seconds

    def kill(self) -> None:
        """SIGKILL to all its processes, the parent first; returns when the last one is gone."""
        waiting = []
        for pid in self.pids():
            try:
                waiting.append(os.pidfd_open(pid))
            except ProcessLookupError:
                continue
        try:
            for fd in waiting:
                try:
                    signal.pidfd_send_signal(fd, signal.SIGKILL)
                except ProcessLookupError:
                    pass  # it ended by itself
            for fd in waiting:
                poll = select.poll()
                poll.register(fd, select.POLLIN)
                if not poll.poll(END_TIMEOUT_S * 1000):
                    raise self._error("a process does not die of SIGKILL")
        finally:
            for fd in waiting:
                os.close(fd)
        self.process.wait()
        self._process = None

    def metric(self, name: str) -> float:
        """The value of a metric without labels, asked of the admin port."""
        host, port = self._addresses["admin"]
        with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=PROBE_TIMEOUT_S) as reply:
            text: str = reply.read().decode()
        for line in text.splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[1])
        raise self._error(f"has no metric {name}")

    def expect_frame(self, frame: bytes) -> None:
        """The get port must give back this frame. ServerError when it does not."""
        request = mac.build_request(mac.derive(self._shared_key).get, frame[: limits.TICKET_SIZE], 1)
        try:
            reply = self._ask(self.get_address, request, limits.RUN_HEADER_SIZE + limits.FRAME_SIZE)
        except (ConnectionError, TimeoutError) as error:
            raise self._error(f"{frame[:8]!r} was SAVED and does not come back: {error}") from None
        if reply[limits.RUN_HEADER_SIZE :] != frame:
            raise self._error(f"{frame[:8]!r} was SAVED, and other bytes came back")

    def log_tail(self) -> str:
        return self.log_path.read_text(errors="replace")[-2000:]

    def _error(self, what: str) -> ServerError:
        return ServerError(f"the server on {self.data_dir}: {what}; its log ends with:\n{self.log_tail()}")

    def _look(self, deadline: float, what: str) -> None:
        if self.process.poll() is not None:
            raise self._error(f"ended with {self.process.returncode} at its start")
        if time.perf_counter() > deadline:
            raise self._error(f"{what} after {START_TIMEOUT_S:g} s")
        time.sleep(POLL_INTERVAL_S)

    def _wait_for_addresses(self) -> dict[str, tuple[str, int]]:
        deadline = time.perf_counter() + START_TIMEOUT_S
        while True:
            try:
                said = json.loads((self.data_dir / ".ingest" / "lock").read_bytes())
                if said["pid"] == self.process.pid:
                    break
            except (FileNotFoundError, json.JSONDecodeError):
                pass
            self._look(deadline, "says no addresses")
        addresses = {}
        for name in ("put", "get", "admin"):
            host, _, port = said[name].rpartition(":")
            addresses[name] = (host, int(port))
        return addresses

    def _wait_until_it_answers(self) -> None:
        """One frame put and read back, over new connections until both ports take it."""
        keys = mac.derive(self._shared_key)
        wire = ticket.to_wire("0")  # in the root pack, where no load goes
        frame = mac.build_frame(keys.put, wire, b"probe")
        deadline = time.perf_counter() + START_TIMEOUT_S
        while True:
            try:
                ack = self._ask(self.put_address, frame, limits.ACK_SIZE)
                if ack == wire + bytes([Status.SAVED]):
                    break
                if ack[8] not in (Status.BUSY, Status.ERROR):
                    raise self._error(f"a probe was answered {Status(ack[8]).name}")
            except (ConnectionError, TimeoutError):
                pass
            self._look(deadline, "the put port does not answer")
        request = mac.build_request(keys.get, wire, 1)
        while True:
            try:
                reply = self._ask(self.get_address, request, limits.RUN_HEADER_SIZE + limits.FRAME_SIZE)
            except (ConnectionError, TimeoutError):
                self._look(deadline, "the get port does not answer")
                continue
            if reply[limits.RUN_HEADER_SIZE :] != frame:
                raise self._error(
                    f"the get port answered {reply[:16].hex(' ')}, and not the frame that was SAVED"
                )
            return

    def _ask(self, address: tuple[str, int], question: bytes, size: int) -> bytes:
        """`size` bytes of answer. ConnectionError when there are fewer."""
        sock = socket.create_connection(address, PROBE_TIMEOUT_S)
        if self._tls is not None:
            sock = self._tls.wrap_socket(sock, server_hostname=address[0])
        with sock:
            sock.sendall(question)
            answer = b""
            while len(answer) < size:
                part = sock.recv(size - len(answer))
                if not part:
                    raise ConnectionResetError(f"{len(answer)} of {size} bytes")
                answer += part
            return answer


@dataclass(frozen=True)
class Peak:
    """The most memory that one process took, bytes: in the first and in the second half of the time it was watched."""

    name: str
    anonymous: int
    shared: int
    first_half: int
    second_half: int

    @property
    def total(self) -> int:
        return max(self.first_half, self.second_half)


class MemoryWatch:
    """Samples the memory of all processes of a server while the context is open."""

    def __init__(self, server: Server, interval_s: float = 0.1) -> None:
        self._server = server
        self._interval_s = interval_s
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._samples: defaultdict[int, list[Memory]] = defaultdict(list)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            for pid in self._server.pids():
                sample = memory(pid)
                if sample is not None:
                    self._samples[pid].append(sample)
            if self._end.wait(self._interval_s):
                return

    def peaks(self) -> list[Peak]:
        """Of each process, the largest first."""
        found = []
        for samples in self._samples.values():
            half = (len(samples) + 1) // 2
            top = max(samples, key=lambda sample: sample.total)
            first = max(sample.total for sample in samples[:half])
            second = max((sample.total for sample in samples[half:]), default=first)
            found.append(Peak(top.name, top.anonymous, top.shared, first, second))
        return sorted(found, key=lambda peak: -peak.total)
