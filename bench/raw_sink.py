"""The raw sink as processes: what the same client reaches against a peer that reads, acks and does nothing else.

Connections are dealt to the workers in turn: SO_REUSEPORT would spread a few of them unevenly, and the limit with them.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable

SERVE = """
import socket, sys
from ingest.loadgen._sink import Sink
Sink(socket.socket(fileno=int(sys.argv[1]))).serve()
"""


def start(workers: int) -> tuple[int, Callable[[], None]]:
    """Starts ``workers`` processes. Returns the port on 127.0.0.1, and what ends them."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    pairs = [socket.socketpair() for _ in range(workers)]
    processes = []
    for _, theirs in pairs:
        command = [sys.executable, "-c", SERVE, str(theirs.fileno())]
        processes.append(subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment))
        theirs.close()

    def deal() -> None:
        turn = 0
        while True:
            try:
                connection, _ = listener.accept()
                with connection:
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    socket.send_fds(pairs[turn % workers][0], [b"\0"], [connection.fileno()])
            except OSError:  # stop() closed the listener
                return
            turn += 1

    def stop() -> None:
        listener.shutdown(socket.SHUT_RDWR)
        dealer.join()
        listener.close()
        for ours, _ in pairs:
            ours.close()
        for process in processes:
            process.wait()

    dealer = threading.Thread(target=deal, daemon=True)
    dealer.start()
    return listener.getsockname()[1], stop
