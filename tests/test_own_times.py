"""Each connection has the times of the protocol for itself: counted from its own beginning and its own bytes, whatever
happened before in the place that it got, and however late the server's clock was first read."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import get_rig
import put_rig
import pytest
import trustme
from test_put_server import reset
from tls_rig import certificates

from ingest import limits
from ingest.runtime.tls_context import TlsContext

Rig = put_rig.Rig | get_rig.Rig
LATER = 100_000.0
SERVER = trustme.CA().issue_cert("127.0.0.1")


@pytest.fixture(params=["put", "get"])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    with put_rig.Rig() if request.param == "put" else get_rig.Rig(tmp_path) as rig:
        yield rig


def whole(rig: Rig, bad: bool = False) -> bytes:
    key = bytes(32)
    if isinstance(rig, put_rig.Rig):
        return put_rig.frame(9, key=key) * limits.BAD_FRAME_LIMIT if bad else put_rig.frame(9)
    return get_rig.request(9, key=key) if bad else get_rig.request(9)


def silent(rig: Rig, client: socket.socket) -> float:
    return limits.IDLE_TIMEOUT_S


def answered(rig: Rig, client: socket.socket) -> float:
    rig.send(client, whole(rig))
    rig.settle()
    return limits.IDLE_TIMEOUT_S


def in_part(rig: Rig, client: socket.socket) -> float:
    rig.send(client, whole(rig)[:7])
    rig.settle()
    return limits.PARTIAL_FRAME_TIMEOUT_S


def in_part_behind_a_whole_one(rig: Rig, client: socket.socket) -> float:
    rig.send(client, whole(rig) + whole(rig)[:7])
    rig.settle()
    return limits.PARTIAL_FRAME_TIMEOUT_S


def refused(rig: Rig, client: socket.socket) -> float:
    """It ends, and is closed a while after the first look at it."""
    rig.send(client, whole(rig, bad=True))
    rig.settle()
    return limits.LINGER_S


def in_a_handshake(rig: Rig, client: socket.socket) -> float:
    rig.step(0)
    return limits.TLS_HANDSHAKE_TIMEOUT_S


WAYS = [silent, answered, in_part, in_part_behind_a_whole_one, refused, in_a_handshake]


def lives_for(rig: Rig, way, began: float) -> None:
    """A connection that comes at `began`, whether the server knows the time yet or not, ends when its own is over."""
    rig.server.set_tls(TlsContext(certificates(SERVER), is_server=True) if way is in_a_handshake else None)
    client = rig.connect()
    life = way(rig, client)
    rig.tick(began)
    if way in (in_part, in_part_behind_a_whole_one):
        began += 10.0
        rig.tick(began)
        rig.send(client, whole(rig)[7:])  # each one that comes in part has a time of its own
        way(rig, client)
    rig.tick(began + life - 0.25)
    rig.settle()
    assert rig.server.connections == 1, "before its time"
    rig.tick(began + life)
    assert rig.server.connections == 0, "its time is over"
    client.close()


@pytest.mark.parametrize("way", WAYS)
def test_the_first_one_before_the_clock_was_read(rig: Rig, way) -> None:
    lives_for(rig, way, LATER)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("before", WAYS)
@pytest.mark.parametrize("gone", ["late", "reset"])
def test_the_next_one_in_a_place(rig: Rig, way, before, gone: str) -> None:
    rig.tick(0.0)
    if gone == "late":
        lives_for(rig, before, 0.0)
    else:
        rig.server.set_tls(
            TlsContext(certificates(SERVER), is_server=True) if before is in_a_handshake else None
        )
        client = rig.connect()
        before(rig, client)
        rig.tick(0.0)
        rig.tick(0.5)
        reset(client)
        rig.until(lambda: rig.server.connections == 0)
    rig.tick(LATER)
    lives_for(rig, way, LATER)
