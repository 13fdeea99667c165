"""How the workers of a server share connections and bad news: each hands over to a sibling that has fewer.

SO_REUSEPORT spreads few connections unevenly. So a worker that would have two more connections of a kind than a
sibling passes the accepted one on, through a socket pair on which that sibling listens. A message there is
one byte that says what it is about, and a descriptor or an address:

    P   a put connection (its descriptor)
    G   a get connection (its descriptor)
    B   an address whose connection was closed for bad frames
"""

from __future__ import annotations

import logging
import socket
import struct
from typing import TYPE_CHECKING

from ingest.engine import _queue
from ingest.engine.ports.frame_port import Port

if TYPE_CHECKING:
    from ingest.engine.node import Node

log = logging.getLogger(__name__)

_DESCRIPTOR = struct.Struct("i")
_ADDRESS_SIZE_MAX = 256  # bytes of a message: an address with its scope


class Siblings:
    """The other workers, as the worker ``slot`` sees them."""

    def __init__(self, node: Node, slot: int) -> None:
        self._queue = node.queue
        self._slot = slot
        self.inbox = node.passing[slot][0]
        self._outboxes = [pair[1] for pair in node.passing]

    def with_room(self, port: Port) -> int | None:
        """The sibling with the fewest connections of this kind, if it has two fewer than this one with it."""
        if self._queue.flags & _queue.DRAINING:
            return None
        which = 0 if port.is_put else 1
        own = self._queue.connections(self._slot)[which]
        counts = [
            (self._queue.connections(slot)[which], slot)
            for slot in range(self._queue.workers)
            if slot != self._slot and self._queue.is_live(slot)
        ]
        fewest, sibling = min(counts, default=(own, self._slot))
        return sibling if fewest + 2 <= own else None

    def pass_on(self, port: Port, connection: socket.socket, sibling: int) -> bool:
        """Gives a connection, which is counted as this worker's, to another one. False: it stays."""
        self._queue.count_connection(sibling, port.is_put, 1)
        try:
            socket.send_fds(self._outboxes[sibling], [port.kind], [connection.fileno()], socket.MSG_DONTWAIT)
        except OSError as error:
            # Its inbox is full (EAGAIN), or too many descriptors are on their way (ETOOMANYREFS): kept here instead.
            log.debug("worker-%d takes no connection: %s", sibling, error.strerror)
            self._queue.count_connection(sibling, port.is_put, -1)
            return False
        self._queue.count_connection(self._slot, port.is_put, -1)
        connection.close()
        return True

    def tell_of_bad_peer(self, address: str) -> None:
        for slot, outbox in enumerate(self._outboxes):
            if slot != self._slot:
                try:
                    outbox.send(b"B" + address.encode(), socket.MSG_DONTWAIT)
                except OSError as error:
                    log.debug("worker-%d does not hear of %s: %s", slot, address, error.strerror)

    def receive(self) -> tuple[bytes, list[int]] | None:
        """The next message and its descriptors; None when there is none now. An empty one: nobody holds the other end."""
        try:
            # socket.recv_fds drops the flags.
            message, extra, _, _ = self.inbox.recvmsg(
                _ADDRESS_SIZE_MAX,
                socket.CMSG_LEN(_DESCRIPTOR.size),
                socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC,
            )
        except (BlockingIOError, InterruptedError):
            return None
        return message, [fd for _, _, content in extra for (fd,) in _DESCRIPTOR.iter_unpack(content)]
