"""A real server in a fork of this process, so that thousands of starts are cheap; and how to read it back."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys
import time
from pathlib import Path

import numpy as np
from blake3 import blake3
from node_rig import START_TIMEOUT_S, NodeRig, data_of, get_range

from faults.ack_history import NO_VERSION, VERSIONS, Contents
from faults.block_recorder import end_with_parent
from ingest import limits, mac, ticket, workers
from ingest._hmac import verify
from ingest.commands import cli
from ingest.engine import admin, server
from ingest.engine.commit import committer
from ingest.status import Status

IMPORTED = (admin, server, workers, committer)  # before the fork, so that no start does it again


class RecoveredServer(NodeRig):  # type: ignore[misc]
    """`NodeRig` with `ingest server` in a fork of this process. It ends when this process does.

    This process must be the reaper of what its children leave behind (`block_recorder.isolate`).
    """

    def __init__(self, data_dir: Path, log_path: Path, *flags: str) -> None:
        super().__init__(data_dir, *flags)
        self.log_path = log_path
        self.exit_code: int | None = None

    def start(self, wait: bool = True) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        self.exit_code = None
        self.pid = os.fork()
        if self.pid == 0:
            try:
                end_with_parent()
                log = os.open(self.log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
                os.dup2(log, 1)
                os.dup2(log, 2)
                ports = [f"--{name}=127.0.0.1:0" for name in ("listen", "read-listen", "admin-listen")]
                sys.argv = ["ingest", "server", f"--data-dir={self.data_dir}", *ports, *self.flags]
                cli.main()
            except SystemExit as ended:
                os._exit(ended.code if isinstance(ended.code, int) else 1)
            finally:
                os._exit(1)
        if wait:
            self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """Until both ports accept. AssertionError, with its log, when the server ends instead."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._ended():
                raise AssertionError(f"the server ended with {self.exit_code}: {self.log()[-1500:]}")
            try:
                record = json.loads((self.data_dir / ".ingest" / "lock").read_text())
                if record["pid"] == self.pid:  # else it is what an earlier server left
                    self.put_address, self.get_address = (_address(record[name]) for name in ("put", "get"))
                    socket.create_connection(self.get_address, 5).close()
                    socket.create_connection(self.put_address, 5).close()
                    return
            except (OSError, ValueError, KeyError, TypeError):
                pass
            time.sleep(0.005)
        raise AssertionError(f"the server is not ready after {START_TIMEOUT_S} s: {self.log()[-1500:]}")

    def _ended(self) -> bool:
        if self.exit_code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.exit_code = os.waitstatus_to_exitcode(status)
        return self.exit_code is not None

    def kill_all(self) -> None:
        """SIGKILL to every process at once; returns when they are gone, and with them what they had open."""
        if self._ended():
            return
        os.kill(self.pid, signal.SIGSTOP)  # or it starts another child meanwhile
        children = self.children()
        for pid in [self.pid, *children]:
            os.kill(pid, signal.SIGKILL)
        self.exit_code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        for pid in children:
            os.waitpid(pid, 0)

    def stop(self, timeout: float = START_TIMEOUT_S) -> int:
        """A clean stop. Returns the exit code."""
        if not self._ended():
            os.kill(self.pid, signal.SIGTERM)
            self.exit_code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        assert self.exit_code is not None
        return self.exit_code

    def close(self) -> None:
        if self.pid:
            self.kill_all()

    def show(self, indices: np.ndarray, names: np.ndarray) -> Contents:
        """What the server shows of `indices`, which are in order; `names` are the same on the wire, a row of 8 bytes each.

        AssertionError where a frame fails its check, twice.
        """
        statuses = np.zeros(len(indices), np.uint8)
        versions = np.full(len(indices), NO_VERSION, np.int16)
        breaks = np.flatnonzero(np.diff(indices) != 1) + 1
        self.put_key, keys = self.keys.put, self.keys
        with socket.create_connection(self.get_address, 30) as sock, sock.makefile("rb", 1 << 20) as stream:
            for start, end in zip([0, *breaks], [*breaks, len(indices)], strict=True):
                for at in range(start, end, limits.RANGE_COUNT_MAX):
                    count = min(limits.RANGE_COUNT_MAX, end - at)
                    first = int(indices[at])
                    head = ticket.index_to_wire(first) + struct.pack(">Q", count)
                    sock.sendall(head + blake3(head, key=keys.get).digest(8))
                    done = 0
                    while done < count:
                        name, status, n = struct.unpack(">8sB3xI", stream.read(limits.RUN_HEADER_SIZE))
                        assert name == ticket.index_to_wire(first + done) and 0 < n <= count - done, (
                            "runs in order"
                        )
                        here = slice(at + done, at + done + n)
                        statuses[here] = Status(status)
                        if status == Status.SAVED:
                            frames = stream.read(n * limits.FRAME_SIZE)
                            versions[here] = self._versions(first + done, names[here], frames)
                        done += n
        return Contents(indices, statuses, versions)

    def _versions(self, first: int, names: np.ndarray, raw: bytes) -> np.ndarray:
        """Which version (`node_rig.data_of`) each of consecutive frames holds; NO_VERSION for anything else."""
        good = np.frombuffer(verify(self.put_key, raw), np.uint8) != 0
        frames = np.frombuffer(raw, np.uint8).reshape(-1, limits.FRAME_SIZE)
        good &= (frames[:, :8] == names).all(axis=1)
        for i in np.flatnonzero(~good):
            get_one(self.get_address, self.keys, first + int(i))  # a second look, which may show it deleted
        data = frames[:, limits.TICKET_SIZE + limits.CHECKSUM_SIZE :]
        versions = data[:, 8:16].copy().view(">u8").reshape(-1).astype(np.int64)
        right = (data[:, 16:] == data[:, :-16]).all(axis=1) & (versions >= 0) & (versions < VERSIONS)
        for i in np.flatnonzero(right):
            right[i] = data_of(first + int(i), int(versions[i]))[:8] == data[i, :8].tobytes()
        return np.where(right & good, versions, NO_VERSION).astype(np.int16)


def get_one(address: tuple[str, int], keys: mac.SubKeys, index: int) -> None:
    """AssertionError when the ticket's frame is shown and fails its check, twice."""
    with socket.create_connection(address, 30) as sock:
        get_range(sock, keys, index, 1)


def version_of(index: int, data: bytes) -> int | None:
    """Which version of what the tests store under a ticket (`node_rig.data_of`) this is; None for anything else."""
    version = struct.unpack_from(">Q", data, 8)[0]
    return version if data == data_of(index, version) else None


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)
