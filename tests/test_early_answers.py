"""Answers that come before the end of a request, and what comes behind them: each request has one answer, each connection
an end, and the log nothing to tell."""

from __future__ import annotations

import itertools
import logging
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gateway_rig import Connection, Gateway, memory_gateway, running_gateway

from ingest import limits

_numbers = itertools.count(1)
CHUNKED = {"Transfer-Encoding": "chunked"}
ABSENT = {"If-None-Match": "*"}
UPGRADES = [{"Connection": "Upgrade", "Upgrade": what} for what in ("websocket", "h2c", "tcp", "WebSocket")]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with running_gateway("memory", tmp_path_factory) as running:
        yield running


@pytest.fixture
def path(gateway: Gateway) -> str:
    """Of an object that is there."""
    found = f"/objects/early{next(_numbers)}"
    assert gateway.request("PUT", found, b"kept").status == 200
    return found


def refused(connection: Connection, path: str, headers: dict[str, str]) -> dict[str, str]:
    """Sends a head without its body. The headers of the answer."""
    connection.send(connection.head("PUT", path, ABSENT | headers))
    answer = connection.answer()
    assert (answer.status, answer.code) == (412, "precondition_failed")
    return answer.headers


def nothing_was_told(caplog: pytest.LogCaptureFixture) -> None:
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("malformed", [b"zz\r\n", b"3xyz\r\n", b"3\r\nabcd\r\n", b"-1\r\n"])
@pytest.mark.parametrize("stays", [False, True])
def test_malformed_chunks_behind_an_answer_are_nobody_s(
    gateway: Gateway, path: str, caplog: pytest.LogCaptureFixture, malformed: bytes, stays: bool
) -> None:
    with gateway.connect() as connection:
        refused(connection, path, CHUNKED)
        connection.send(malformed)
        if stays:
            connection.send(malformed * 3)
            connection.sock.shutdown(socket.SHUT_WR)
            assert connection.ended()
    assert gateway.request("GET", path).body == b"kept"
    nothing_was_told(caplog)


@pytest.mark.parametrize("malformed", [b"zz\r\n", b"3xyz\r\n", b"3\r\nabcd\r\n"])
@pytest.mark.parametrize(
    ("method", "target", "headers", "status"),
    [
        ("PUT", "{}", {}, 400),
        ("PUT", "{}", ABSENT, 412),
        ("PUT", "/nowhere", {}, 404),
        ("DELETE", "{}", {"If-Match": '"x"'}, 412),
        ("GET", "{}", {}, 200),
    ],
)
@pytest.mark.parametrize("at_once", [True, False])
def test_a_request_has_one_answer_when_its_chunks_are_malformed(
    gateway: Gateway,
    path: str,
    malformed: bytes,
    method: str,
    target: str,
    headers: dict[str, str],
    status: int,
    at_once: bool,
) -> None:
    with gateway.connect() as connection:
        head = connection.head(method, target.format(path), headers | CHUNKED)
        parts = [head + malformed] if at_once else [head, malformed]
        for part in parts:
            connection.send(part)
        answer = connection.answer()
        assert answer.status == status
        assert answer.headers["connection"] == "close"
        connection.sock.shutdown(socket.SHUT_WR)
        assert connection.ended()
    assert gateway.request("GET", path).body == b"kept"


@pytest.mark.parametrize("before", [("GET", None), ("PUT", b"kept"), ("PUT", [b"ke", b"pt"])])
@pytest.mark.parametrize(
    "malformed",
    [b"zz\r\n", b"3xyz\r\n", b"3\r\nabcd\r\n", b"1\r\na\r\n" * (limits.HTTP_CHUNKS_EXCESS_MAX // 4 + 1)],
)
@pytest.mark.parametrize("sent", ["late", "with their head", "pipelined"])
def test_malformed_chunks_are_told_whatever_the_connection_had_before(
    gateway: Gateway, path: str, before: tuple[str, Any], malformed: bytes, sent: str
) -> None:
    """An answer to a request before is none to this one. ``pipelined``: they come while that is under way."""
    with gateway.connect() as connection:
        for _ in range(2):
            assert connection.request(before[0], path, before[1]).status == 200
        head = connection.head("PUT", path, CHUNKED)
        if sent == "pipelined":
            connection.send(connection.head("GET", path) + head + malformed)
            assert connection.answer().body == b"kept"
        else:
            for part in [head, malformed] if sent == "late" else [head + malformed]:
                connection.send(part)
        answer = connection.answer()
        assert (answer.status, answer.headers["connection"]) == (400, "close")
        assert connection.ended()
    assert gateway.request("GET", path).body == b"kept"


@pytest.mark.parametrize("upgrade", UPGRADES)
@pytest.mark.parametrize("late", [True, False])
def test_a_refused_upload_that_wants_another_protocol_leaves_the_connection_as_it_is(
    gateway: Gateway, path: str, upgrade: dict[str, str], late: bool
) -> None:
    """And what its body says is no request."""
    body = b"DELETE " + path.encode() + b" HTTP/1.1\r\nHost: x\r\n\r\n"
    with gateway.connect() as connection:
        head = connection.head("PUT", path, ABSENT | upgrade | {"Content-Length": str(len(body))})
        connection.send(head if late else head + body)
        assert connection.answer().status == 412
        if late:
            connection.send(body)
        for _ in range(2):
            answer = connection.request("GET", path, headers=upgrade)
            assert (answer.status, answer.body) == (200, b"kept")
        assert connection.request("PUT", path, [b"ke", b"pt"], upgrade).status == 200


@pytest.mark.parametrize(
    ("headers", "closes"),
    [
        ({"Content-Length": "5"}, False),
        ({"Content-Length": str(limits.HTTP_LINGER_SIZE)}, False),
        ({"Content-Length": str(limits.HTTP_LINGER_SIZE + 1)}, True),
        ({"Content-Length": str(limits.HTTP_DIRECT_MIN)}, True),
        (CHUNKED, True),
    ],
)
def test_an_answer_says_when_the_connection_ends_with_it(
    gateway: Gateway, path: str, headers: dict[str, str], closes: bool
) -> None:
    with gateway.connect() as connection:
        said = refused(connection, path, headers)
        assert (said.get("connection") == "close") is closes
        if not closes:
            connection.send(bytes(int(headers["Content-Length"])))
            assert connection.request("GET", path).body == b"kept"


def test_the_rest_of_a_body_is_read_until_nothing_comes(
    gateway: Gateway, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So long the client can go on, and finds the answer when it looks."""
    with gateway.connect() as slow, gateway.connect() as silent:
        head = {"Content-Length": str(limits.HTTP_DIRECT_MIN - 1)}
        slow.send(slow.head("PUT", path, ABSENT | head))
        for _ in range(60):
            slow.send(bytes(65536))
        assert slow.answer().status == 412
        slow.send(bytes(limits.HTTP_DIRECT_MIN - 1 - 60 * 65536))
        assert slow.ended()
        monkeypatch.setattr("ingest.runtime.wire.HTTP_LINGER_S", 0.05)
        refused(silent, path, head)
        assert silent.ended()


def test_who_has_an_answer_already_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections whose bodies nobody wants keep no place from others."""
    monkeypatch.setattr("ingest.runtime.wires.HTTP_CONNECTIONS_MAX", 2)
    monkeypatch.setattr("ingest.runtime.wire.HTTP_LINGER_S", 60.0)
    with memory_gateway() as running, running.connect() as first, running.connect() as second:
        for connection in (first, second):
            connection.send(connection.head("PUT", "/nowhere", {"Content-Length": "1000000"}))
            assert connection.answer().status == 404
        assert running.request("GET", "/alive").body == b"alive"
        assert first.ended()
        second.send(b"x")


def test_a_client_that_ends_its_side_of_tls_is_no_news(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also while its request is under way."""
    cert, key = tmp_path / "cert", tmp_path / "key"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=127.0.0.1"
    )
    command += f" -addext subjectAltName=IP:127.0.0.1 -keyout {key} -out {cert}"
    subprocess.run(command.split(), check=True, capture_output=True)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(cert, key)
    client = ssl.create_default_context(cafile=str(cert))
    with memory_gateway(tls=server) as running:
        for _ in range(20):
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = client.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
            with Connection(running.address) as connection:
                step(tls.do_handshake, connection, incoming, outgoing)
                tls.write(connection.head("PUT", "/objects/a", {"Content-Length": "5"}) + b"abcde")
                with pytest.raises(ssl.SSLError):
                    tls.unwrap()
                connection.send(outgoing.read())  # both at once
                while connection.sock.recv(65536):
                    pass
    nothing_was_told(caplog)


def step(
    call: Callable[[], object], connection: Connection, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO
) -> None:
    """Until it is done."""
    while True:
        try:
            call()
        except ssl.SSLWantReadError:
            connection.send(outgoing.read())
            incoming.write(connection.sock.recv(65536))
        else:
            connection.send(outgoing.read())
            return
