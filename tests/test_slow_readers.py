"""Who reads slowly is not late while anything moves, however little; and nobody is late for what the server has not done."""

from __future__ import annotations

import fcntl
import socket
import sys
import termios
from pathlib import Path

import get_rig
import put_rig
import pytest
from packs import A0
from put_rig import frame
from test_put_server import send_until_stuck

from ingest import limits
from ingest.limits import ACK_SIZE

ALMOST = limits.UNREAD_ACKS_TIMEOUT_S - 1


def reads(rig: put_rig.Rig | get_rig.Rig, client: socket.socket, size: int) -> None:
    rig.receive(client, size)
    rig.settle()


def test_acks_that_are_read_little_by_little() -> None:
    with put_rig.Rig() as rig:
        rig.tick(0.0)
        client = rig.connect(receive_buffer=2048)
        send_until_stuck(rig, client, frame(9) * 3000)
        now = 0.0
        for _ in range(3):
            now += ALMOST
            rig.tick(now)
            assert rig.server.connections == 1, "it reads"
            reads(rig, client, 600 * ACK_SIZE)
        rig.tick(now + ALMOST)
        assert rig.server.connections == 1
        rig.tick(now + ALMOST + 1)
        assert (rig.server.connections, len(rig.events)) == (0, 1)


def test_replies_that_are_read_little_by_little(tmp_path: Path) -> None:
    with get_rig.Rig(tmp_path) as rig:
        rig.packs.put(range(A0, A0 + 1296))
        rig.tick(0.0)
        client = rig.connect(buffer=4096)
        rig.send(client, get_rig.request(A0, 1296))
        rig.settle()
        now = 0.0
        for _ in range(12):
            now += ALMOST
            rig.tick(now)
            assert rig.server.connections == 1, "it reads"
            reads(rig, client, 100_000)
        rig.receive(client, 16 + 1296 * 1474 - 1_200_000)
        rig.settle()
        rig.tick(now + limits.IDLE_TIMEOUT_S - 1)
        assert rig.server.connections == 1, "it was idle from its last answer on"
        rig.tick(now + limits.IDLE_TIMEOUT_S)
        assert rig.server.connections == 0


def test_requests_that_wait_for_their_turn(tmp_path: Path) -> None:
    """One is answered in part, one is not read yet."""
    with get_rig.Rig(tmp_path, turn_requests_max=1, turn_bytes_max=1) as rig:
        rig.packs.put(range(A0, A0 + 10))
        rig.tick(0.0)
        first, second = rig.connect(), rig.connect()
        first.send(get_rig.request(A0, 10) * 3)
        second.send(get_rig.request(A0, 1))
        rig.turn()
        for i in range(1, 4):
            rig.tick(i * limits.IDLE_TIMEOUT_S)
            assert rig.server.connections == 2
            assert rig.server.close_idle(2) is None, "their bytes are there"
        for client, count in ((first, 30), (second, 1)):
            assert len(rig.receive(client, count * 1474)) == count * 1474


def connect_narrow(rig: put_rig.Rig | get_rig.Rig) -> socket.socket:
    """The server's end takes each small answer whole, or nothing of it: in a few of them it is full."""
    client, accepted = socket.socketpair()
    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    accepted.setblocking(False)
    rig.clients.append(client)
    rig.queue.count_connection(0, isinstance(rig, put_rig.Rig), 1)
    rig.server.adopt(accepted.detach(), "127.0.0.1:1")
    return client


def unread(client: socket.socket) -> int:
    return int.from_bytes(fcntl.ioctl(client, termios.FIONREAD, bytes(4)), sys.byteorder)


@pytest.mark.parametrize("at_once", [True, False])
def test_a_socket_that_takes_nothing_more_is_late_from_then_on(tmp_path: Path, at_once: bool) -> None:
    """Not from its last byte on, which may be long ago: until then it was the server, or nobody, who had something to do."""
    with get_rig.Rig(tmp_path, turn_bytes_max=1) as rig:
        now = 0.0
        rig.tick(now)
        client = connect_narrow(rig)
        sent = 0
        for i in range(100):
            if not i or not at_once:
                client.send(b"".join(get_rig.request(A0 + 2 * n) for n in range(100 if at_once else 1)))
            now += limits.UNREAD_ACKS_TIMEOUT_S
            rig.tick(now)
            if at_once:
                rig.turn()
            else:
                rig.settle()
            rig.tick(now + 1)
            assert rig.server.connections == 1, f"it could take nothing for one second, after {sent} replies"
            if rig.counter(get_rig.BYTES) == sent:
                break
            sent = rig.counter(get_rig.BYTES)
        assert sent
        rig.tick(now + limits.UNREAD_ACKS_TIMEOUT_S)
        assert [event[0] for event in rig.events] == ["unread replies"]


@pytest.mark.parametrize("waits_s", [0.0, ALMOST, 2 * ALMOST])
def test_acks_are_late_from_when_they_could_be_read(waits_s: float) -> None:
    """Also of a client that is not read until it reads: neither its silence before, nor the time that the committer took."""
    with put_rig.Rig(unread_acks_max=0) as rig:
        now = 0.0
        rig.tick(now)
        client = connect_narrow(rig)
        for i in range(100):
            now += ALMOST
            rig.tick(now)
            rig.answering = not waits_s
            client.send(frame(i))
            rig.settle()
            now += waits_s
            rig.tick(now)
            rig.answer_all()
            rig.settle()
            rig.tick(now + 2)
            assert rig.server.connections == 1, f"it could take nothing for two seconds, behind {i} acks"
            if unread(client) < rig.counter("saved") * ACK_SIZE:
                break
        assert 0 < i < 99
        rig.tick(now + limits.UNREAD_ACKS_TIMEOUT_S)
        assert [event[0] for event in rig.events] == ["unread acks"]


def test_frames_that_wait_for_a_place_keep_theirs() -> None:
    """Who is not read because the arena is full has work, whatever the server has seen of it."""
    with put_rig.Rig(places=16, block_places=16, connections_max=3) as rig:
        rig.tick(0.0)
        rig.answering = False
        full, waiting, _ = (rig.connect() for _ in range(3))
        rig.send(full, put_rig.frames(100, 16))
        rig.until(lambda: rig.server.outstanding == 16)
        waiting.send(put_rig.frames(200, 2))
        rig.turn()
        assert [event[0] for event in rig.server.close_idle(3) or ()] == ["idle"]
        assert rig.server.connections == 2
        rig.answer_all()
        rig.answering = True
        assert rig.receive(waiting, 18) == put_rig.acks(200, 2)


@pytest.mark.parametrize("looks", [1, 3])
def test_who_has_sent_more_than_was_read_is_not_late_for_his_acks(looks: int) -> None:
    """While there is no place for his frames nobody can say that nothing moves: his time begins when they were read."""
    with put_rig.Rig(places=16, block_places=16) as rig:
        rig.tick(0.0)
        client, full = connect_narrow(rig), rig.connect()
        for i in range(100):
            client.send(frame(i))
            rig.settle()
            if unread(client) < rig.counter("saved") * ACK_SIZE:
                break
        rig.answering = False
        rig.send(full, put_rig.frames(100, 16))
        rig.until(lambda: rig.server.outstanding == 16)
        client.send(frame(200))
        rig.turn()
        for i in range(1, looks + 1):
            now = i * limits.UNREAD_ACKS_TIMEOUT_S
            rig.tick(now)
            assert rig.server.connections == 2
        rig.answering = True
        rig.answer_all()
        assert rig.receive(full, 16 * ACK_SIZE) == put_rig.acks(100, 16)
        rig.until(lambda: 200 in rig.stored)
        rig.settle()
        rig.tick(now + ALMOST)
        assert rig.server.connections == 2
        rig.tick(now + ALMOST + 1)
        assert [event[0] for event in rig.events] == ["unread acks"]


@pytest.mark.parametrize("looks", [1, 3])
def test_a_request_in_part_is_not_late_while_its_rest_is_not_read(tmp_path: Path, looks: int) -> None:
    """Nor right after it, when what was read is not all of it yet."""
    with get_rig.Rig(tmp_path, turn_requests_max=1) as rig:
        rig.tick(0.0)
        first, second = rig.connect(), rig.connect()
        second.send(get_rig.request(A0)[:7])
        rig.settle()
        first.send(get_rig.request(A0) * 2)
        rig.step()
        second.send(get_rig.request(A0)[7:11])
        first.send(get_rig.request(A0))
        rig.turn()
        for i in range(1, looks + 1):
            now = i * limits.PARTIAL_FRAME_TIMEOUT_S
            rig.tick(now)
            assert rig.server.connections == 2
        rig.settle()
        rig.tick(now + limits.PARTIAL_FRAME_TIMEOUT_S - 1)
        assert rig.server.connections == 2
        rig.tick(now + limits.PARTIAL_FRAME_TIMEOUT_S)
        assert [event[0] for event in rig.events] == ["partial request"]


@pytest.mark.parametrize("rounds", [1, 5])
def test_blocks_of_bad_frames_of_many_are_free_again(rounds: int) -> None:
    """They come in one turn, in which the server goes from block to block."""
    with put_rig.Rig(places=32, block_places=4) as rig:
        for _ in range(rounds):
            clients = [rig.connect() for _ in range(20)]
            for client in clients:
                client.send(frame(1, key=bytes(32)) * (limits.BAD_FRAME_LIMIT - 1))
            rig.settle()
            for client in clients:
                client.close()
            rig.until(lambda: rig.server.connections == 0)
        rig.answering = False
        client = rig.connect()
        rig.send(client, put_rig.frames(100, 32))
        rig.until(lambda: rig.server.outstanding == 32)
        rig.answer_all()
        assert len(rig.receive(client, 32 * ACK_SIZE)) == 32 * ACK_SIZE
