"""An HTTPS port of an HTTP process: who has not done its handshake counts, too.

A server of asyncio tells nobody of a connection until its handshake is done, and has as many of them as come. So connections
are accepted here.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from functools import partial

from ingest.limits import ACCEPT_PAUSE_S, HTTP_LINGER_S, HTTP_RECEIVE_SIZE, TLS_HANDSHAKE_TIMEOUT_S
from ingest.runtime.wire import Wire
from ingest.runtime.wires import Wires

log = logging.getLogger(__name__)


_REASON = b"this port speaks TLS: use https://\n"
_NO_HTTP = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\n"
    b"Connection: close\r\n\r\n%s" % (len(_REASON), _REASON)
)


class TlsPort:
    """Serves ``sock``, which listens, until ``close``. To be made within the event loop. ``connect``: makes the protocol of
    a connection; ``wires``: counts all of the process."""

    def __init__(
        self,
        sock: socket.socket,
        context: ssl.SSLContext,
        connect: Callable[[], Wire],
        wires: Wires,
    ) -> None:
        self._sock = sock
        self._context = context
        self._connect = connect
        self._wires = wires
        self._opening: set[asyncio.Task[None]] = set()
        self._unbegun: set[socket.socket] = set()  # no step of their tasks has run
        sock.setblocking(False)
        self._accepting = asyncio.create_task(self._accept())

    async def close(self) -> None:
        """No connection is accepted any more, and those whose handshake is not done are ended."""
        tasks = [self._accepting, *self._opening]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._sock.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, peer = await loop.sock_accept(self._sock)
            except ConnectionError:  # the client has left already
                continue
            except OSError as error:  # ENFILE, EMFILE, ENOBUFS, ENOMEM: until there is room
                log.warning("no connection can be accepted: %s", error)
                await asyncio.sleep(ACCEPT_PAUSE_S)
                continue
            wire = self._connect()
            if not self._wires.guests.admit(wire, peer) and not self._wires.may_refuse(wire):
                sock.close()
                continue
            wire.opening = task = asyncio.create_task(self._open(sock, wire))
            self._opening.add(task)
            self._unbegun.add(sock)
            task.add_done_callback(partial(self._opened, sock, wire))

    def _opened(self, sock: socket.socket, wire: Wire, task: asyncio.Task[None]) -> None:
        """A task that was cancelled before its first step has closed nothing."""
        self._opening.discard(task)
        if sock in self._unbegun:
            self._unbegun.discard(sock)
            sock.close()
            wire.dismiss()

    async def _open(self, sock: socket.socket, wire: Wire) -> None:
        self._unbegun.discard(sock)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(TLS_HANDSHAKE_TIMEOUT_S):
                if not await self._is_refused(sock):
                    await loop.connect_accepted_socket(lambda: wire, sock, ssl=self._context)
                    return
        except OSError:  # of the network, ssl.SSLError, or it took too long
            pass
        except asyncio.CancelledError:
            wire.dismiss()
            raise
        wire.dismiss()

    async def _is_refused(self, sock: socket.socket) -> bool:
        """Whether a client that speaks plain HTTP was told so. The socket is closed then, or when this fails."""
        refused = True
        try:
            refused = await _begins_as_http(sock)
            if refused:
                await _refuse_http(sock)
        finally:
            if refused:
                sock.close()
        return refused


async def _begins_as_http(sock: socket.socket) -> bool:
    """Waits for the first byte, and leaves it there: TLS begins with another one than any method of HTTP."""
    loop = asyncio.get_running_loop()
    came: asyncio.Future[None] = loop.create_future()
    loop.add_reader(sock, _set, came)
    try:
        await came
    finally:
        loop.remove_reader(sock)
    return sock.recv(1, socket.MSG_PEEK).isalpha()


def _set(came: asyncio.Future[None]) -> None:
    if not came.done():
        came.set_result(None)


async def _refuse_http(sock: socket.socket) -> None:
    """Says so in plain HTTP, and reads for a while what is sent: unread, it would make a reset that eats the answer."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, _NO_HTTP)
    sock.shutdown(socket.SHUT_WR)
    async with asyncio.timeout(HTTP_LINGER_S):
        while await loop.sock_recv(sock, HTTP_RECEIVE_SIZE):
            pass
