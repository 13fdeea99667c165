"""A raw source, the upper limit for reads: it answers each get request with SAVED runs of whole packs from memory.

It is no server: it looks at nothing but the count."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ingest import limits
from ingest.runtime.listeners import unpace
from ingest.status import Status

ROOT = Path(__file__).parent.parent


def run_header(first: bytes, count: int) -> bytes:
    """16 bytes before `count` frames that are SAVED."""
    return first + bytes([Status.SAVED, 0, 0, 0]) + count.to_bytes(4, "big")


def answer(sock: socket.socket) -> None:
    """Serves one connection until it ends. One pack's worth of bytes is all that is ever sent."""
    run = run_header(bytes(limits.TICKET_SIZE), limits.PACK_SLOTS) + os.urandom(
        limits.PACK_SLOTS * limits.FRAME_SIZE
    )
    view = memoryview(run)
    received = b""
    while part := sock.recv(limits.REQUEST_SIZE * limits.REQUESTS_PIPELINED_MAX):
        received += part
        while len(received) >= limits.REQUEST_SIZE:
            request, received = received[: limits.REQUEST_SIZE], received[limits.REQUEST_SIZE :]
            wanted = int.from_bytes(request[8:16], "big")
            for _ in range(wanted // limits.PACK_SLOTS):
                sock.sendall(view)
            if rest := wanted % limits.PACK_SLOTS:
                sock.sendall(run_header(request[: limits.TICKET_SIZE], rest))
                sock.sendall(view[limits.RUN_HEADER_SIZE : limits.RUN_HEADER_SIZE + rest * limits.FRAME_SIZE])


@contextmanager
def source() -> Iterator[tuple[str, int]]:
    """The address of a source in a process of its own. It serves one connection after the other."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    with socket.create_server(("127.0.0.1", 0)) as listener:
        unpace(listener, "127.0.0.1")  # as the server does
        command = [sys.executable, "-m", "bench.raw_source", str(listener.fileno())]
        process = subprocess.Popen(command, pass_fds=[listener.fileno()], env=environment)
        try:
            yield listener.getsockname()
        finally:
            process.kill()
            process.wait()


def main() -> None:
    listener = socket.socket(fileno=int(sys.argv[1]))
    while True:
        connection, _ = listener.accept()
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                answer(connection)
            except ConnectionError:
                continue  # the reader has what it wanted


if __name__ == "__main__":
    main()
