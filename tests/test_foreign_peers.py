"""Who speaks another protocol to a frame port is answered in it; who says nothing keeps nobody out."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import get_rig
import put_rig
import pytest
import trustme
from put_rig import ack, frame
from test_put_server import reset
from tls_rig import certificates

from ingest.engine.ports._put_server import BAD_FRAMES, IDLE, SPEAKS_HTTP, SPEAKS_TLS
from ingest.limits import FRAME_SIZE, TICKET_LENGTH_MAX
from ingest.runtime.tls_context import TlsContext
from ingest.status import Status
from ingest.ticket import from_wire

REQUESTS = [
    b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"DELETE /objects/a HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"PUT /objects/a HTTP/1.1\r\nContent-Length: 5000\r\n\r\n" + b"x" * 5000,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
]
ALERT = b"\x15\x03\x01\x00\x02\x02\x28"  # fatal, handshake_failure


def come_and_go(rig: put_rig.Rig | get_rig.Rig, count: int = 1) -> None:
    """So many connections at once, of each kind one after the other: whoever comes next is in a slot that each had."""
    whole = frame(9) if isinstance(rig, put_rig.Rig) else get_rig.request(9)
    kinds = (b"", REQUESTS[0], client_hello(), whole + whole[:5], whole[:5], whole * 2)
    ends = (socket.socket.close, lambda client: client.shutdown(socket.SHUT_WR), reset)
    for sent, end in zip(kinds, ends * 2, strict=True):
        clients = [rig.connect() for _ in range(count)]
        for client in clients:
            client.send(sent)
        rig.step(0)
        rig.step(0)
        for client in clients:
            end(client)
        rig.until(lambda: rig.server.connections == 0)
    rig.events.clear()


@pytest.fixture(params=["put", "get", "put, later", "get, later"])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[put_rig.Rig | get_rig.Rig]:
    with put_rig.Rig() if request.param.startswith("put") else get_rig.Rig(tmp_path) as rig:
        if request.param.endswith("later"):
            come_and_go(rig)
        yield rig


def client_hello() -> bytes:
    sent = ssl.MemoryBIO()
    context = ssl.create_default_context()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname="localhost").do_handshake()
    return sent.read()


def check_answer(answer: bytes) -> bytes:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"Content-Length: %d\r\n" % len(body) in head
    assert b"--http-listen" in body and b"--admin-listen" in body
    return body


@pytest.mark.parametrize("request_", REQUESTS)
@pytest.mark.parametrize("step", [1, 9, 1 << 20])
def test_http_is_answered_in_http(rig: put_rig.Rig | get_rig.Rig, request_: bytes, step: int) -> None:
    client = rig.connect()
    for at in range(0, min(20, len(request_)), step):
        client.send(request_[at : at + step] if step > 20 else request_[:20][at : at + step])
        rig.turn()
    check_answer(rig.receive_all(client))
    assert [event[0] for event in rig.events] == [SPEAKS_HTTP]


def test_tls_on_a_plain_port_gets_an_alert(rig: put_rig.Rig | get_rig.Rig) -> None:
    client = rig.connect()
    client.send(client_hello())
    assert rig.receive_all(client) == ALERT
    assert [event[0] for event in rig.events] == [SPEAKS_TLS]


def test_http_on_a_port_with_tls_is_told_so(rig: put_rig.Rig | get_rig.Rig) -> None:
    rig.server.set_tls(TlsContext(certificates(trustme.CA().issue_cert("127.0.0.1")), is_server=True))
    client = rig.connect()
    client.send(REQUESTS[0])
    assert b"over TLS" in check_answer(rig.receive_all(client))


def test_something_else_on_a_port_with_tls_gets_no_http(rig: put_rig.Rig | get_rig.Rig) -> None:
    rig.server.set_tls(TlsContext(certificates(trustme.CA().issue_cert("127.0.0.1")), is_server=True))
    client = rig.connect()
    client.send(frame(1))
    assert rig.receive_all(client) == b""


@pytest.mark.parametrize(
    "name", ["GET", "PUT", "HEAD", "POST", "PATCH", "DELETE", "OPTIONS", "CONNECT", "PRI"]
)
def test_tickets_that_look_like_methods_are_tickets(name: str) -> None:
    with put_rig.Rig() as rig:
        for text in (name, name.ljust(TICKET_LENGTH_MAX, "0"), name):
            wire = text.encode().ljust(8, b"\0")
            assert from_wire(wire) == text
            client = rig.connect()
            whole = put_rig.raw_frame(wire)
            for at in range(0, FRAME_SIZE, 5):
                client.send(whole[at : at + 5])
                rig.turn()
            assert rig.receive(client, 9) == wire + bytes([Status.SAVED])
            client.close()
            rig.until(lambda: rig.server.connections == 0)


def test_only_the_first_bytes_of_a_connection_are_looked_at() -> None:
    """What comes behind a frame is answered as a frame: an answer in HTTP would stand among acks."""
    with put_rig.Rig(bad_frame_limit=1) as rig:
        for _ in range(2):
            client = rig.connect()
            rig.send(client, frame(1) + REQUESTS[2])
            answer = rig.receive_all(client)
            assert ack(1) in (answer[:9], answer[9:]) and len(answer) == 18
            assert BAD_FRAMES in [event[0] for event in rig.events]
            client.close()
            come_and_go(rig)


# --- silent connections


@pytest.mark.parametrize("later", [False, True])
def test_a_new_connection_takes_the_place_of_one_without_work(later: bool) -> None:
    """Of those without a key first, and of the ones that were answered longest ago."""
    with put_rig.Rig(connections_max=5) as rig:
        rig.tick(0.0)
        if later:
            come_and_go(rig, 5)
        waiting, proved, *silent = (rig.connect() for _ in range(5))
        rig.send(proved, frame(1))
        assert rig.receive(proved, 9) == ack(1)
        rig.answering = False
        rig.send(waiting, frame(2))
        rig.settle()
        rig.tick(1.0)
        for given_up in (*silent, proved):
            rig.events.clear()
            if given_up is not proved:
                rig.send(silent[2], b"x")  # bytes that make no frame keep no place
                rig.turn()
            rig.tick(2.0)
            rig.events += rig.server.make_room() or []
            assert [event[0] for event in rig.events] == [IDLE]
            rig.send(rig.connect(), frame(10))
            rig.settle()
            assert rig.receive_all(given_up) == b""
            assert rig.server.connections == 5
        assert rig.server.make_room() is None  # all the others wait for the committer
        rig.answering = True
        assert rig.receive(waiting, 9) == ack(2)


def test_who_sent_what_nobody_could_receive_keeps_its_place() -> None:
    """It has work, although nothing of that is known yet: neither its age nor that it has shown no key counts."""
    with put_rig.Rig(places=16, block_places=16, connections_max=4) as rig:
        rig.tick(0.0)
        rig.answering = False
        waiting, *early = (rig.connect() for _ in range(3))
        rig.send(waiting, put_rig.frames(1, 16))  # all places of the arena
        rig.settle()
        for i, client in enumerate(early):
            rig.send(client, frame(100 + i))
        rig.settle()
        rig.tick(1.0)
        silent = rig.connect()
        rig.events += rig.server.make_room() or []
        assert rig.receive_all(silent) == b""
        assert rig.server.close_idle(9) is None
        rig.answering = True
        assert rig.receive(waiting, 16 * 9) == put_rig.acks(1, 16)
        assert [rig.receive(client, 9) for client in early] == [ack(100), ack(101)]


def test_while_there_is_room_nobody_gives_way(rig: put_rig.Rig | get_rig.Rig) -> None:
    rig.connect()
    assert rig.server.make_room() is None
    assert rig.server.connections == 1
    assert rig.server.close_idle(5) is not None
    assert rig.server.connections == 0
    assert rig.server.close_idle(5) is None
