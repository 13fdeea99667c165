"""What a client is told at the end of its connection reaches it, whatever it still sends, and however it ended its side."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator

import pytest
import trustme
from gateway_rig import TIMEOUT_S, Connection, Gateway, memory_gateway, taken
from test_gateway_hostile import THIN, client_hello
from test_places import comes
from tls_rig import client_context

from ingest import limits
from ingest.status import Status

AUTHORITY = trustme.CA()
HUGE = b"GET / HTTP/1.1\r\nX: " + b"x" * limits.HTTP_HEAD_SIZE_MAX
CHUNKED = b"PUT /objects/a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
REQUEST = b"GET /alive HTTP/1.1\r\nHost: localhost\r\n\r\n"
FULL = bytes(8) + bytes([Status.BUSY])


@pytest.fixture(scope="module")
def gateways() -> Iterator[dict[str | None, Gateway]]:
    """By port: the others have plain ones. Nobody waits so long as they do for the end of what is sent."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    AUTHORITY.issue_cert("127.0.0.1").configure_cert(context)
    patch = pytest.MonkeyPatch()
    for module in ("gateway.apis.stream_api", "runtime.last_answer", "gateway.http.tls_port", "runtime.wire"):
        patch.setattr(f"ingest.{module}.HTTP_LINGER_S", 600.0)
    with memory_gateway() as plain, memory_gateway(tls=context) as secure:
        yield {None: plain, "stream": plain, "TLS": secure}
    patch.undo()


def turn(gateway: Gateway) -> None:
    """Its loop has done what it had to do by now."""
    assert gateway.run is not None
    for _ in range(5):
        gateway.run(lambda: None)


@pytest.mark.parametrize(
    ("port", "sent", "places", "told"),
    [
        ("stream", REQUEST, 5, b"HTTP/1.1 403 "),
        ("stream", b"bytes", 0, FULL),
        (None, HUGE, 5, b"HTTP/1.1 431 "),
        (None, REQUEST, 0, b"HTTP/1.1 503 "),
        (None, CHUNKED.replace(b"/objects", b"/nowhere"), 5, b"HTTP/1.1 404 "),
        ("TLS", REQUEST, 5, b"HTTP/1.1 400 "),
    ],
)
def test_no_reset_eats_an_answer_while_the_client_still_sends(
    gateways: dict[str | None, Gateway], port: str | None, sent: bytes, places: int, told: bytes
) -> None:
    """What nobody wants is received all the same, for a while: the client looks for the answer when all is sent."""
    gateway = gateways[port]
    assert gateway.wires is not None
    comes(gateway, lambda wires: not taken(wires), "those before are gone")
    guests = gateway.wires.guests
    guests.places, before = places, guests.places
    try:
        with gateway.connect("stream" if port == "stream" else None) as client:
            client.send(sent)
            assert client.sock.recv(len(told), socket.MSG_PEEK | socket.MSG_WAITALL) == told
            for _ in range(3):
                turn(gateway)
                client.send(b"x")
            for _ in range(64):  # more than the kernel has room for
                client.send(bytes(1 << 18))
            client.sock.shutdown(socket.SHUT_WR)
            assert client.file.read().startswith(told)
    finally:
        guests.places = before


@pytest.mark.parametrize("sent", [CHUNKED + THIN, REQUEST, CHUNKED + b"3\r\nabc\r\n0\r\n\r\n"])
def test_who_has_ended_its_side_already_gets_the_answer(
    gateways: dict[str | None, Gateway], sent: bytes
) -> None:
    """The end is known to the gateway when it reads the request: it comes in the same turn of its loop."""
    gateway = gateways[None]
    assert gateway.run is not None
    stands, goes_on = threading.Event(), threading.Event()

    def wait() -> None:
        stands.set()
        goes_on.wait(TIMEOUT_S)

    with gateway.connect() as client:
        client.send(REQUEST)
        assert client.answer().status == 200
        standing = threading.Thread(target=gateway.run, args=(wait,))
        standing.start()
        stands.wait(TIMEOUT_S)
        try:
            client.send(sent)
            client.sock.shutdown(socket.SHUT_WR)
        finally:
            goes_on.set()
            standing.join()
        answer = client.answer()
        assert answer.status == (400 if sent.endswith(THIN) else 200)
        assert client.ended()


@pytest.mark.parametrize("before", [b"", REQUEST, b"\r\n"])
@pytest.mark.parametrize("step", [1, 1 << 20])
def test_a_hello_of_tls_within_tls_is_no_http(
    gateways: dict[str | None, Gateway], before: bytes, step: int
) -> None:
    """Who has a connection by TLS is told in its HTTP: an alert there is for a port without."""
    with Connection(gateways["TLS"].address, client_context(AUTHORITY)) as client:
        client.send(before)
        if before == REQUEST:
            assert client.answer().status == 200
        hello = client_hello()
        for at in range(0, min(len(hello), 20) if step == 1 else len(hello), step):
            client.send(hello[at : at + step])
        client.send(b"\r\n\r\n")
        answer = client.answer()
        assert (answer.status, answer.code) == (400, "bad_http")
        assert client.ended()
