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

from ingest.limits import ACCEPT_PAUSE_S, TLS_HANDSHAKE_TIMEOUT_S
from ingest.runtime.wire import Wire, Wires

log = logging.getLogger(__name__)


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
            task.add_done_callback(self._opening.discard)

    async def _open(self, sock: socket.socket, wire: Wire) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(
                lambda: wire, sock, ssl=self._context, ssl_handshake_timeout=TLS_HANDSHAKE_TIMEOUT_S
            )
        except OSError:  # of the network, ssl.SSLError, or it took too long
            wire.dismiss()
        except asyncio.CancelledError:
            wire.dismiss()
            raise
