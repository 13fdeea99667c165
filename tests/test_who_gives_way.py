"""Which connection gives way when a frame port is full: one without a key first, whoever had its place before."""

from __future__ import annotations

import socket
from pathlib import Path

import get_rig
import put_rig
import pytest

Rig = put_rig.Rig | get_rig.Rig


def proves(rig: Rig, client: socket.socket) -> None:
    """As who has the key does it: it asks for something, and is answered."""
    if isinstance(rig, put_rig.Rig):
        client.send(put_rig.frame(10))
        rig.receive(client, 9)
    else:
        rig.send(client, get_rig.request(10))
        rig.answer(client, 10, 1)


def ended(rig: Rig, client: socket.socket) -> bool:
    try:
        return client.recv(1) == b""
    except BlockingIOError:
        return False


@pytest.fixture(params=["put", "get"])
def rig(request: pytest.FixtureRequest, tmp_path: Path):
    with put_rig.Rig() if request.param == "put" else get_rig.Rig(tmp_path) as made:
        yield made


def leaves(rig: Rig, client: socket.socket) -> None:
    client.close()
    before = sum(rig.queue.connections(0))
    rig.until(lambda: sum(rig.queue.connections(0)) < before)


@pytest.mark.parametrize("friend_is_first", [False, True])
@pytest.mark.parametrize("before", [None, "a stranger", "one with a key"])
def test_a_stranger_in_whatever_place(rig: Rig, before: str | None, friend_is_first: bool) -> None:
    opened = [rig.connect() for _ in range(2 if before else 1)]
    friend = opened[0 if friend_is_first else -1]
    proves(rig, friend)
    for first in opened:
        if first is not friend:
            if before == "one with a key":
                proves(rig, first)
            leaves(rig, first)
    stranger = rig.connect()
    rig.events += rig.server.close_idle(1) or []
    assert ended(rig, stranger)
    assert not ended(rig, friend)
    proves(rig, friend)
