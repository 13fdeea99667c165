"""`python -m ingest …` for one round: started, asked, watched, ended or killed."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).parent.parent
START_TIMEOUT_S = 60.0
END_TIMEOUT_S = 60.0
POLL_INTERVAL_S = 0.002  # between looks whether a port answers


class ServerError(Exception):
    """A server did not do what the benchmark needs; the message has the end of its log."""


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


class Process(ABC):
    """`ingest COMMAND`, with all processes below it. As a context: started, and what still runs in the end is killed."""

    def __init__(self, name: str, command: Sequence[str], log_path: Path) -> None:
        self.name = name
        self.command = [sys.executable, "-m", "ingest", *command]
        self.log_path = log_path
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def start(self) -> float:
        """Starts it; returns the seconds until it answers."""

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
        assert self._process is not None, f"{self.name} does not run"
        return self._process

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

    def log_tail(self) -> str:
        return self.log_path.read_text(errors="replace")[-2000:]

    def _launch(self) -> None:
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
        with open(self.log_path, "ab") as log:
            self._process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )

    def _error(self, what: str) -> ServerError:
        return ServerError(f"{self.name}: {what}; its log ends with:\n{self.log_tail()}")

    def _look(self, deadline: float, what: str) -> None:
        if self.process.poll() is not None:
            raise self._error(f"ended with {self.process.returncode} at its start")
        if time.perf_counter() > deadline:
            raise self._error(f"{what} after {START_TIMEOUT_S:g} s")
        time.sleep(POLL_INTERVAL_S)


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

    def __init__(self, server: Process, interval_s: float = 0.1) -> None:
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
