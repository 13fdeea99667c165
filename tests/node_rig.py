"""A real server in processes of its own, and the few lines of the wire that its tests need.

The client half here is written against `docs/protocol.md` with `frame` and `mac` alone, so that what it says of
the server does not rest on `client`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import log_lines

from ingest import frame, mac, ticket
from ingest._hmac import sign, verify
from ingest.limits import ACK_SIZE, DATA_SIZE, FRAME_SIZE, RUN_HEADER_SIZE
from ingest.runtime.key_file import read_keys
from ingest.status import Status

START_TIMEOUT_S = 30.0


class NodeRig:
    """A server on `data_dir` with free ports. `start` may be called again after `stop` or `kill`."""

    def __init__(self, data_dir: Path, *flags: str, wrapper: Iterable[str] = ()) -> None:
        self.data_dir = data_dir
        self.flags = flags
        self.wrapper = list(wrapper)
        self.environment: dict[str, str] = {}  # more variables for the servers that are started from now on
        self.process: subprocess.Popen[bytes] | None = None
        self.log_path = data_dir.parent / f"{data_dir.name}.log"
        self.put_address = ("", 0)
        self.get_address = ("", 0)
        self.admin_address = ("", 0)
        self.pid = 0

    @property
    def keys(self) -> mac.SubKeys:
        return mac.KeyRing(read_keys(self.data_dir / ".ingest" / "key")).signing

    def start(self, wait: bool = True) -> None:
        assert self.process is None or self.process.poll() is not None
        lock = self.data_dir / ".ingest" / "lock"
        if lock.exists():
            os.truncate(lock, 0)  # so that what is read there is this server's
        ports = [f"--{name}=127.0.0.1:0" for name in ("listen", "read-listen", "admin-listen")]
        command = [
            *self.wrapper,
            sys.executable,
            "-m",
            "ingest",
            "server",
            f"--data-dir={self.data_dir}",
            *ports,
            *self.flags,
        ]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                command, stderr=log, stdout=log, env=os.environ | self.environment
            )
        if wait:
            self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """Until the ports are known and a put connection is accepted."""
        assert self.process is not None
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended with {self.process.returncode}:\n{self.log()}")
            try:
                record = json.loads((self.data_dir / ".ingest" / "lock").read_text())
                self.pid = record["pid"]
                self.put_address, self.get_address, self.admin_address = (
                    (record[name].rsplit(":", 1)[0], int(record[name].rsplit(":", 1)[1]))
                    for name in ("put", "get", "admin")
                )
                socket.create_connection(self.get_address, 5).close()
                socket.create_connection(self.put_address, 5).close()
                return
            except (OSError, ValueError, KeyError):
                time.sleep(0.005)
        raise AssertionError(f"the server is not ready after {START_TIMEOUT_S} s:\n{self.log()}")

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")[-4000:] if self.log_path.exists() else ""

    def says(self, text: str) -> bool:
        return log_lines.says(self.log, text)

    def children(self, name: str = "ingest-") -> list[int]:
        """Process ids of the server's children whose name starts so: ingest-worker, ingest-committer, ingest-admin."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == self.pid and (entry / "comm").read_text().startswith(name[:15]):
                    found.append(int(entry.name))
            except OSError:
                continue
        return sorted(found)

    def wait_for_another(self, name: str, pid: int) -> None:
        """Until the only process of this name is another one than ``pid``."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while self.children(name) in ([], [pid]):
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.01)

    def kill_all(self) -> None:
        """SIGKILL to every process at once."""
        for pid in [self.pid, *self.children()]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.wait_gone()

    def kill_parent(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self.wait_gone()

    def wait_gone(self) -> None:
        """Until the parent is reaped and no child holds the lock any more."""
        assert self.process is not None
        self.process.wait(START_TIMEOUT_S)
        import fcntl

        fd = os.open(self.data_dir / ".ingest" / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            deadline = time.monotonic() + START_TIMEOUT_S
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return
                except BlockingIOError:
                    assert time.monotonic() < deadline, "a child outlived its parent"
                    time.sleep(0.002)
        finally:
            os.close(fd)

    def stop(self, timeout: float = 30) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            os.kill(self.pid or self.process.pid, signal.SIGTERM)
        return self.process.wait(timeout)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill_all()

    def connect(self) -> Connection:
        return Connection(self.put_address, self.keys)

    def get(self, first: int, count: int) -> list[tuple[Status, bytes]]:
        """Status and data of each ticket of a range; every frame's checksum is verified."""
        with socket.create_connection(self.get_address, 30) as sock:
            return get_range(sock, self.keys, first, count)


@contextmanager
def running_node(data_dir: Path, *flags: str, wrapper: Iterable[str] = ()) -> Iterator[NodeRig]:
    rig = NodeRig(data_dir, *flags, wrapper=wrapper)
    try:
        rig.start()
        yield rig
    finally:
        rig.close()


def data_of(index: int, version: int = 0) -> bytes:
    """What the tests store under a ticket: 1458 bytes that differ for each ticket and version."""
    return (struct.pack(">QQ", index * 0x9E3779B97F4A7C15 % 2**64, version) * 92)[:DATA_SIZE]


def put_frames(keys: mac.SubKeys, indices: Iterable[int], version: int = 0) -> bytearray:
    """Signed put frames, back to back."""
    frames = bytearray(
        b"".join(ticket.index_to_wire(index) + bytes(8) + data_of(index, version) for index in indices)
    )
    sign(keys.put, frames)
    return frames


def delete_frame(keys: mac.SubKeys, first: int, count: int) -> bytearray:
    frame_ = bytearray(ticket.index_to_wire(first) + bytes(8) + frame.delete_data(count))
    sign(keys.delete, frame_)
    return frame_


def read_exactly(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = sock.recv(size - len(data))
        if not part:
            raise ConnectionResetError("end of stream")
        data += part
    return bytes(data)


def get_range(sock: socket.socket, keys: mac.SubKeys, first: int, count: int) -> list[tuple[Status, bytes]]:
    """Status and data of each ticket. A bad frame is asked for once more: a delete may just have run."""
    found = [(status, one, good) for status, one, good in get_frames(sock, keys, first, count)]
    for i, (_, _, good) in enumerate(found):
        if not good:
            ((status, one, good),) = get_frames(sock, keys, first + i, 1)
            assert good, f"{ticket.format(first + i)} came back corrupt, twice: {one[:32].hex(' ')}"
            found[i] = (status, one, good)
    return [(status, one[16:]) for status, one, _ in found]


def get_frames(
    sock: socket.socket, keys: mac.SubKeys, first: int, count: int
) -> list[tuple[Status, bytes, bool]]:
    """Status, frame, and whether the frame is that ticket's and verifies, of each ticket of a range."""
    head = ticket.index_to_wire(first) + struct.pack(">Q", count)
    sock.sendall(head + mac.blake3(head, key=keys.get).digest(8))
    found: list[tuple[Status, bytes, bool]] = []
    while len(found) < count:
        raw = read_exactly(sock, RUN_HEADER_SIZE)
        name, status, n = ticket.index_from_wire(raw[:8]), Status(raw[8]), int.from_bytes(raw[12:], "big")
        assert name == first + len(found) and n >= 1 and raw[9:12] == bytes(3), raw.hex(" ")
        if status is not Status.SAVED:
            found += [(status, b"", True)] * n
            continue
        frames = read_exactly(sock, n * FRAME_SIZE)
        good = verify(keys.put, frames)
        for i in range(n):
            one = frames[i * FRAME_SIZE : (i + 1) * FRAME_SIZE]
            found.append((status, one, bool(good[i]) and one[:8] == ticket.index_to_wire(name + i)))
    assert len(found) == count
    return found


class Connection:
    """One put connection."""

    def __init__(self, address: tuple[str, int], keys: mac.SubKeys, timeout: float = 30) -> None:
        self.keys = keys
        self.sock = socket.create_connection(address, timeout)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, frames: bytes | bytearray) -> None:
        self.sock.sendall(frames)

    def acks(self, count: int) -> list[tuple[bytes, Status]]:
        """The next acks: the ticket's 8 bytes and the status."""
        raw = read_exactly(self.sock, count * ACK_SIZE)
        return [(raw[i : i + 8], Status(raw[i + 8])) for i in range(0, len(raw), ACK_SIZE)]

    def put(self, indices: Iterable[int], version: int = 0) -> dict[int, Status]:
        indices = list(indices)
        self.send(put_frames(self.keys, indices, version))
        return {ticket.index_from_wire(name): status for name, status in self.acks(len(indices))}

    def delete(self, first: int, count: int) -> Status:
        self.send(delete_frame(self.keys, first, count))
        ((name, status),) = self.acks(1)
        assert name == ticket.index_to_wire(first)
        return status
