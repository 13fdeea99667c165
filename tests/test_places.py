"""A connection gives its place back in whatever state it ends, in whatever way: on each kind of port of a gateway.

Places that are not given back keep new clients of all ports out, after hours, until the process is started again.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
import trustme
from gateway_rig import TIMEOUT_S, Connection, Gateway, memory_gateway, taken
from test_gateway_hostile import reset
from tls_rig import client_context

from ingest.runtime.wires import Wires

AUTHORITY = trustme.CA()
BEGUN = b"PUT /objects/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nx"
LARGE = (
    b"PUT /objects/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\nx"  # goes by an Incoming
)
ANSWERED = b"GET /alive HTTP/1.1\r\nHost: localhost\r\n\r\n"
REFUSED = b"PUT /alive HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"


class State(NamedTuple):
    """``sends``: what a client has sent. ``becomes``: what has come of it: its connection has a place (`open`), and a
    request (`busy`); it was `answered`. ``places``: that there are. ``tls``: behind a handshake."""

    port: str | None
    sends: bytes
    becomes: str
    places: int = 5
    tls: bool = False


STATES = {
    "HTTP, silent": State(None, b"", "open"),
    "HTTP, in its head": State(None, BEGUN[:20], "open"),
    "HTTP, uploads": State(None, BEGUN, "busy"),
    "HTTP, uploads much": State(None, LARGE, "busy"),
    "HTTP, answered": State(None, ANSWERED, "answered"),
    "HTTP, answered early": State(None, REFUSED, "answered"),
    "HTTP, no HTTP": State(None, b"\0\r\n\r\n", "answered"),
    "HTTP, told that it is full": State(None, b"", "answered", places=0),
    "raw, silent": State("stream", b"", "open"),
    "raw, begun": State("stream", b"x", "busy"),
    "raw, uploads": State("stream", bytes(100_000), "busy"),
    "raw, answered early": State("stream", b"GET / HTTP/1.1\r\n\r\n", "answered"),
    "raw, told that it is full": State("stream", b"x", "answered", places=0),
    "HTTPS, silent": State("TLS", b"", "open"),
    "HTTPS, in its handshake": State("TLS", b"\x16\x03\x01", "open"),
    "HTTPS, nonsense": State("TLS", b"\x16\x03\x01\x00\x05hello", "answered"),
    "HTTPS, speaks HTTP": State("TLS", ANSWERED, "answered"),
    "HTTPS, uploads": State("TLS", BEGUN, "busy", tls=True),
    "HTTPS, uploads much": State("TLS", LARGE, "busy", tls=True),
    "HTTPS, answered": State("TLS", ANSWERED, "answered", tls=True),
    "HTTPS, told that it is full": State("TLS", b"", "answered", places=0, tls=True),
}


def close(gateway: Gateway, client: Connection) -> None:
    client.close()


def send_a_reset(gateway: Gateway, client: Connection) -> None:
    reset(client)


def half_close(gateway: Gateway, client: Connection) -> None:
    """And goes when there is nothing more to read."""
    try:
        client.sock.shutdown(socket.SHUT_WR)
        while client.sock.recv(1 << 16):
            pass
    except OSError:  # it has been reset
        pass
    client.close()


def give_way(gateway: Gateway, client: Connection) -> None:
    """As for another one that comes. Who is told that it is full has no place to give."""

    wires = wires_of(gateway)

    def evict() -> int:
        guests = list(wires.guests._networks)
        for guest in guests:
            wires.guests.leave(guest)
            guest.evict()
        return len(guests)

    assert gateway.run is not None
    if gateway.run(evict):
        comes(gateway, lambda wires: not taken(wires), "it is gone")
    client.close()


ENDS = [close, send_a_reset, half_close, give_way]


def wires_of(gateway: Gateway) -> Wires:
    assert gateway.wires is not None
    return gateway.wires


def comes(gateway: Gateway, condition: Callable[[Wires], object], what: str) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    assert gateway.run is not None
    while not gateway.run(lambda: condition(wires_of(gateway))):
        assert time.monotonic() < deadline, what
        time.sleep(0.001)


@pytest.fixture(scope="module")
def gateways() -> Iterator[dict[str | None, Gateway]]:
    """By port: the others have plain ones."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    AUTHORITY.issue_cert("127.0.0.1").configure_cert(context)
    patch = pytest.MonkeyPatch()
    patch.setattr("ingest.limits.HTTP_LINGER_S", 60.0)
    for module in ("gateway.apis.stream_api", "runtime.last_answer", "gateway.http.tls_port"):
        patch.setattr(f"ingest.{module}.HTTP_LINGER_S", 60.0)
    with memory_gateway() as plain, memory_gateway(tls=context) as secure:
        yield {None: plain, "stream": plain, "TLS": secure}
    patch.undo()


def begin(gateway: Gateway, state: State) -> Connection:
    address = gateway.alone["stream"] if state.port == "stream" else gateway.address
    client = Connection(address, client_context(AUTHORITY) if state.tls else None)
    client.send(state.sends)
    if state.becomes == "answered":
        client.sock.recv(1)
    elif state.becomes == "busy":
        comes(gateway, lambda wires: len(wires.guests) and not wires.guests._idle, "it has a request")
    else:
        comes(gateway, taken, "it has a place")
    return client


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("name", STATES)
def test_a_place_is_given_back(
    gateways: dict[str | None, Gateway], name: str, end: Callable[[Gateway, Connection], None]
) -> None:
    state = STATES[name]
    gateway = gateways[state.port]
    wires = wires_of(gateway)
    places, wires.guests.places = wires.guests.places, state.places
    try:
        client = begin(gateway, state)
        end(gateway, client)
        comes(gateway, lambda wires: not taken(wires), "its place is free")
        assert (wires.heads, wires.unfinished) == (0, {})
    finally:
        wires.guests.places = places
