"""What a connection of a put port has left unread counts until it is gone, and not longer: however it ends, the next one may
leave as much unread as it could."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable

import pytest
from put_rig import Rig, frame
from test_put_server import send_until_stuck

from ingest import limits

TOTAL_MAX = 20_000  # bytes of unread acks, of all connections: much more than `limits.ACKS_KEPT_SIZE`
End = Callable[[Rig, socket.socket, float], None]


def late(rig: Rig, client: socket.socket, now: float) -> None:
    rig.tick(now)


def closed(rig: Rig, client: socket.socket, now: float) -> None:
    client.close()


def reset(rig: Rig, client: socket.socket, now: float) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def half_closed(rig: Rig, client: socket.socket, now: float) -> None:
    client.shutdown(socket.SHUT_WR)
    rig.settle()
    rig.tick(now)


def taken_until_stuck(rig: Rig, client: socket.socket, data: bytes) -> int:
    """Frames that are received of a peer that reads nothing."""
    before = rig.counter("frames")
    assert send_until_stuck(rig, client, data)
    return rig.counter("frames") - before


@pytest.mark.parametrize("end", [late, closed, reset, half_closed])
def test_the_next_one_may_leave_as_much_unread(end: End) -> None:
    data = frame(9) * 10_000
    taken = []
    with Rig(unread_acks_total_max=TOTAL_MAX) as rig:
        for i in range(2):
            rig.tick(i * 2 * limits.UNREAD_ACKS_TIMEOUT_S)
            client = rig.connect(receive_buffer=2048)
            taken.append(taken_until_stuck(rig, client, data))
            end(rig, client, (i * 2 + 1) * limits.UNREAD_ACKS_TIMEOUT_S)
            rig.until(lambda: rig.server.connections == 0)
    assert min(taken) * 9 > max(taken) * 9 - (TOTAL_MAX - limits.ACKS_KEPT_SIZE) // 2, taken
