"""A real server in a process that is forked and not started anew, so that thousands of starts are cheap; and reading it back."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from node_rig import START_TIMEOUT_S, NodeRig, data_of, get_range

from faults.block_recorder import end_with_parent
from ingest import cli, limits
from ingest.status import Status


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
            time.sleep(0.002)
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

    def read_packs(self, indices: Iterable[int]) -> dict[int, tuple[Status, int | None]]:
        """Every ticket of every pack that one of `indices` lies in: its status, and the version of its data (None: of none).

        AssertionError where the server shows a frame that fails its check.
        """
        found: dict[int, tuple[Status, int | None]] = {}
        packs = sorted({(index - 36) // limits.PACK_SLOTS for index in indices})
        with socket.create_connection(self.get_address, 30) as sock:
            for pack in packs:
                first = 36 + pack * limits.PACK_SLOTS
                for index, (status, data) in enumerate(
                    get_range(sock, self.keys, first, limits.PACK_SLOTS), first
                ):
                    found[index] = status, version_of(index, data) if status is Status.SAVED else None
        return found


def version_of(index: int, data: bytes) -> int | None:
    """Which version of what the tests store under a ticket (`node_rig.data_of`) this is; None for anything else."""
    version = struct.unpack_from(">Q", data, 8)[0]
    return version if data == data_of(index, version) else None


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)
