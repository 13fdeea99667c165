"""A real server (`ingest server`) for one round."""

from __future__ import annotations

import json
import socket
import time
import urllib.request
from pathlib import Path

from bench.process import START_TIMEOUT_S, Process
from ingest import limits, mac, ticket
from ingest.status import Status
from ingest.tls import client_context

PROBE_TIMEOUT_S = 10.0


class Server(Process):
    """One server on `data_dir`, with free ports; `tls_ca` when its flags have it speak TLS."""

    def __init__(self, data_dir: Path, *flags: str, tls_ca: Path | None = None) -> None:
        self.data_dir = data_dir
        self._tls = client_context(tls_ca) if tls_ca is not None else None
        self.flags = flags
        command = ["server", "--data-dir", str(data_dir), *flags]
        for flag in ("--listen", "--read-listen", "--admin-listen"):
            command += [flag, "127.0.0.1:0"]
        super().__init__(f"the server on {data_dir}", command, data_dir.parent / f"{data_dir.name}.stderr")

    def start(self) -> float:
        """Starts it; returns the seconds until its ports answer: a frame is SAVED and comes back."""
        began = time.perf_counter()
        self._launch()
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
