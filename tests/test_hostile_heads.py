"""Heads of requests that are large, unfinished, or many at once: what they may take of a process, and who is refused."""

from __future__ import annotations

import json
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import pytest
from gateway_rig import Connection, Gateway, NodeGateway, memory_gateway, node_gateway

from ingest import limits
from ingest.runtime.listeners import parse_address

CONNECTIONS = 200
GROWTH_MAX = 60 << 20  # bytes; a head of 100 headers of 8 kB on each connection would be 200 MB
# In a head that is ASCII but for one character each letter takes four bytes.
WIDE = b"\xf0\x9f\x98\x80"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeGateway]:
    flags = ("--workers=1", "--http-workers=1")
    with node_gateway(tmp_path_factory.mktemp("heads") / "data", *flags) as running:
        yield running
        assert running.stop() == 0, running.log()


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with memory_gateway() as running:
        yield running


def admin_of(node: NodeGateway) -> tuple[str, int]:
    found = json.loads((node.data_dir / ".ingest" / "lock").read_text())["admin"]
    return parse_address(found)


def of_port(node: NodeGateway, address: tuple[str, int]) -> psutil.Process:
    """The process that serves it."""
    for process in node.family()[::-1]:
        for connection in process.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and tuple(connection.laddr) == address:
                return process
    raise AssertionError(address)


def most(process: psutil.Process) -> int:
    """Bytes of memory that it has had at most."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def lines(count: int, size: int) -> bytes:
    return b"".join(b"X-%d: " % i + b"a" * size + b"\r\n" for i in range(count))


START = b"GET / HTTP/1.1\r\nHost: localhost\r\n"
KINDS = {
    "unfinished": START + lines(95, 8000),
    "unfinished within the limit": START + b"W: " + WIDE + lines(3, 8000),
    "wide": START + b"".join(b"X-%d: %s%s\r\n" % (i, WIDE, b"a" * 300) for i in range(90)),
    "request line": b"GET /" + b"a" * (limits.HTTP_LINE_SIZE_MAX - 10),
    "pipelined": b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + lines(3, 8000) + b"\r\n",
    "trailers": b"PUT /objects/trailers HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
    + lines(95, 8000),
    "small chunks": b"PUT /objects/chunks HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    + b"1\r\na\r\n" * 1_000,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("port", ["http", "admin"])
def test_what_clients_send_takes_little_of_a_process(node: NodeGateway, port: str, kind: str) -> None:
    address = node.gateway.address
    if port == "admin":
        address = admin_of(node)
    process = of_port(node, address)
    before = process.memory_info().rss
    opened: list[Connection] = []
    with ExitStack() as stack:
        for _ in range(CONNECTIONS):
            connection = stack.enter_context(Connection(address))
            connection.sock.setblocking(False)
            opened.append(connection)
        for connection in opened * 3:
            with suppress(OSError):  # full, or ended
                connection.sock.send(KINDS[kind])
        host = "http://{}:{}".format(*address)
        urllib.request.urlopen(host + ("/alive" if port == "http" else "/healthz"), timeout=60).close()
    assert max(most(process) - before, 0) < GROWTH_MAX


def head_of(size: int) -> bytes:
    """Bytes of a request for /alive, of which the last four end it."""
    start = b"GET /alive HTTP/1.1\r\nHost: localhost\r\n" + lines((size - 1000) // 7100, 7000)
    return start + b"Y: " + b"a" * (size - len(start) - 7) + b"\r\n\r\n"


@pytest.mark.parametrize("step", [1 << 20, 1000, 7])
def test_a_head_has_32_kib_at_most(gateway: Gateway, step: int) -> None:
    for size, status in ((limits.HTTP_HEAD_SIZE_MAX, 200), (limits.HTTP_HEAD_SIZE_MAX + 1, 431)):
        with gateway.connect() as connection:
            head = head_of(size)
            assert len(head) == size
            for _ in range(2 if status == 200 else 1):  # it is counted anew for each request
                for at in range(0, size, step):
                    connection.send(head[at : at + step])
                answer = connection.answer()
                assert answer.status == status
            if status == 431:
                assert answer.code == "headers_too_large"
                assert answer.headers["x-request-id"] == answer.json["request_id"]
                assert connection.ended()


def test_large_heads_have_a_limit_together(monkeypatch: pytest.MonkeyPatch) -> None:
    size = 20_000
    monkeypatch.setattr("ingest.runtime.wire.HTTP_HEADS_SIZE_MAX", size)
    with memory_gateway() as running, running.connect() as first:
        first.send(head_of(size)[:-1])
        with running.connect() as second:
            while True:  # until the first one's is counted
                second.send(head_of(size))
                answer = second.answer()
                if answer.status != 200:
                    break
            assert (answer.status, answer.code, answer.headers["retry-after"]) == (503, "busy", "1")
        assert running.request("GET", "/alive").status == 200  # small ones always have their place
        first.send(b"\n")
        assert first.answer().status == 200
        assert first.request("GET", "/alive").status == 200
        assert running.run is not None
        with running.connect() as third:
            third.send(head_of(size))
            assert third.answer().status == 200


def test_the_memory_for_heads_is_not_one_address_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who holds most of it with unfinished heads gives way to another address."""
    size = 20_000
    monkeypatch.setattr("ingest.runtime.wire.HTTP_HEADS_SIZE_MAX", 2 * size)
    with memory_gateway() as running, ExitStack() as stack:
        held = [stack.enter_context(running.connect()) for _ in range(3)]
        for connection in held[:2]:
            connection.send(head_of(size)[:-1])
        while True:  # until both are counted
            with running.connect() as late:
                late.send(head_of(size))
                if late.answer().status == 503:  # its own address has most
                    break
        with socket.socket() as other:
            other.bind(("127.0.0.2", 0))
            other.settimeout(60)
            other.connect(running.address)
            other.sendall(head_of(size))
            assert other.recv(12) == b"HTTP/1.1 200"
        held[0].sock.setblocking(True)
        assert any(connection.ended() for connection in held[:1])


def test_requests_that_were_sent_at_once_are_answered_one_by_one(gateway: Gateway) -> None:
    with gateway.connect() as connection:
        requests, methods = b"", []
        for i in range(60):
            body = b"\r\n\r\n%d" % i * (1 + i * 10)
            path = f"/objects/one-by-one-{i % 3}"
            if i % 2:
                requests += connection.head("PUT", path, {"Content-Length": str(len(body))}) + body
            else:
                requests += connection.head("PUT", path, {"Transfer-Encoding": "chunked"})
                requests += b"%x\r\n%s\r\n0\r\nX-Trailer: y\r\n\r\n" % (len(body), body)
            requests += b"\r\n" + connection.head("GET", path)
            methods.append(body)
        connection.send(requests)
        connection.sock.shutdown(socket.SHUT_WR)
        for body in methods:
            assert connection.answer().status == 200
            assert connection.answer().body == body
        assert connection.ended()


def test_chunks_of_http_1_0_are_refused(node: NodeGateway, gateway: Gateway) -> None:
    """Whoever stands between knows no chunks, and sees another end of the request."""
    chunked = b"Host: localhost\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    for address in (gateway.address, admin_of(node)):
        for line in (
            b"PUT /objects/old HTTP/1.0\r\n",
            b"GET /healthz HTTP/1.0\r\n",
            b"GET /alive HTTP/1.0\r\n",
        ):
            with Connection(address) as connection:
                connection.send(line + chunked + b"GET /alive HTTP/1.1\r\nHost: localhost\r\n\r\n")
                answer = connection.answer()
                assert answer.status == 400
                assert connection.ended()
    assert gateway.request("GET", "/objects/old").status == 404


@pytest.mark.parametrize("size", [0, 5, 300_000, limits.HTTP_DIRECT_MIN + 1_000_000])
def test_who_ends_its_sending_side_gets_the_answer(gateway: Gateway, size: int) -> None:
    """But a body that ended early is no object."""
    path = f"/objects/half-closed-{size}"
    for told, status in ((size + 1, 404), (size, 200)):
        with gateway.connect() as connection:
            connection.send(connection.head("PUT", path, {"Content-Length": str(told)}) + bytes(size))
            connection.sock.shutdown(socket.SHUT_WR)
            if told == size:
                assert connection.answer().status == 200
            assert connection.ended()
        with gateway.connect() as connection:
            connection.send(connection.head("GET", path))
            connection.sock.shutdown(socket.SHUT_WR)
            answer = connection.answer()
            assert answer.status == status and (status != 200 or answer.body == bytes(size))
