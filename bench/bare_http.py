"""The limit for small objects: an aiohttp handler that reads a body and forgets it, or answers with the same one each time.

So many processes as a gateway has share the port in the same way, each with uvloop. Nothing is routed, checked or stored.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import uvloop
from aiohttp import web

from ingest import limits
from ingest.runtime import listeners

ROOT = Path(__file__).parent.parent


@contextmanager
def bare_handler(processes: int, body: bytes) -> Iterator[tuple[str, int]]:
    """The address of such a handler. ``body``: of what it answers to GET."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    sockets = listeners.bind_shared(("127.0.0.1", 0), processes)
    address = listeners.bound_address(sockets[0])
    running = []
    with ExitStack() as ends:
        for sock in sockets:
            with sock:
                process = subprocess.Popen(
                    [sys.executable, "-m", "bench.bare_http", str(sock.fileno())],
                    pass_fds=[sock.fileno()], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment,
                )  # fmt: skip
            ends.callback(_end, process)
            running.append(process)
        for process in running:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(body)
            process.stdin.close()
            assert process.stdout.readline(), "a bare handler does not start"
        yield address


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    assert process.stdin is not None and process.stdout is not None
    process.stdin.close()
    process.stdout.close()


async def serve(sock: socket.socket, body: bytes) -> None:
    async def answer(request: web.BaseRequest) -> web.Response:
        if request.method == "GET":
            return web.Response(body=body)
        await request.read()
        return web.Response()

    runner = web.ServerRunner(web.Server(answer, access_log=None))
    await runner.setup()
    listeners.listen(sock, limits.LISTEN_BACKLOG)  # as a gateway does
    await web.SockSite(runner, sock, backlog=limits.LISTEN_BACKLOG).start()
    print("ready", flush=True)
    await asyncio.Event().wait()


def main() -> None:
    uvloop.run(serve(socket.socket(fileno=int(sys.argv[1])), sys.stdin.buffer.read()))


if __name__ == "__main__":
    main()
