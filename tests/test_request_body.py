"""The body of a request on its way in: whole, in order, as it comes, whichever way it takes and however it is announced."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import cast

import pytest
import uvloop
from aiohttp import web
from blake3 import blake3
from gateway_rig import Gateway, memory_gateway

from ingest.errors import NoSpaceError
from ingest.gateway.http.access import Access, Hosts
from ingest.gateway.http.app import make_app
from ingest.gateway.http.exchange import Exchange, Services
from ingest.gateway.http.request_id import RequestIds
from ingest.gateway.http.routes import Route
from ingest.runtime.wires import Wires

DATA = b"0123456789"
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with memory_gateway() as running:
        yield running


@pytest.fixture
def path() -> str:
    return f"/objects/body{next(_numbers)}"


# --- as it comes

Connect = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


@asynccontextmanager
async def serving(handler: Callable[[Exchange], Awaitable[web.StreamResponse]]) -> AsyncIterator[Connect]:
    """How to connect to a port whose every POST goes to ``handler``."""
    loop = asyncio.get_running_loop()
    routes = [Route("/", {"POST": handler})]
    app = make_app(routes, cast(Services, None), Access(Hosts(frozenset())), RequestIds(), Wires())
    port = await loop.create_server(app, "127.0.0.1", 0)
    address = port.sockets[0].getsockname()
    yield lambda: asyncio.open_connection(*address)
    port.close()
    await app.shutdown(1)


def framed(way: str, piece: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(piece), piece) if way == "chunked" else piece


@pytest.mark.parametrize("way", ["short", "chunked", "direct"])
@pytest.mark.parametrize("size", [1, 3, 64])
def test_what_came_is_given_before_the_rest_has_come(
    monkeypatch: pytest.MonkeyPatch, way: str, size: int
) -> None:
    """To who has patience for a moment only: all of what came, once, and that it is not all. Wherever the rest begins."""
    if way == "direct":
        monkeypatch.setattr("ingest.gateway.http.request_body.HTTP_DIRECT_MIN", 1)
    arrived: asyncio.Queue[bytes] = asyncio.Queue()

    async def handler(exchange: Exchange) -> web.StreamResponse:
        body, buffer = exchange.body(), memoryview(bytearray(size))
        found = b""
        while not body.ended:
            given = bytes(buffer[: await body.fill(buffer, 0.001)])
            if given:
                arrived.put_nowait(given)
            found += given
        assert await body.fill(buffer) == await body.fill(buffer, 0.0) == 0
        return web.Response(body=found)

    async def come(count: int) -> bytes:
        found = b""
        while len(found) < count:
            found += await arrived.get()
        return found

    async def work() -> None:
        kind = "Transfer-Encoding: chunked" if way == "chunked" else f"Content-Length: {len(DATA)}"
        async with serving(handler) as connect:
            for cut in range(1, len(DATA)):
                reader, writer = await connect()
                writer.write(f"POST / HTTP/1.1\r\nHost: localhost\r\n{kind}\r\n\r\n".encode())
                writer.write(framed(way, DATA[:cut]))
                assert await come(cut) == DATA[:cut]
                writer.write(framed(way, DATA[cut:]) + (b"0\r\n\r\n" if way == "chunked" else b""))
                assert await come(len(DATA) - cut) == DATA[cut:]
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200 ")
                assert await reader.readexactly(len(DATA)) == DATA
                writer.close()

    uvloop.run(asyncio.wait_for(work(), 60))


# --- how it is announced


@pytest.mark.parametrize("coding", ["chunked", "Chunked", "CHUNKED"])
def test_a_coding_is_known_in_any_case(gateway: Gateway, path: str, coding: str) -> None:
    assert gateway.request("PUT", path, [DATA, DATA], {"Transfer-Encoding": coding}).status == 200
    assert gateway.request("GET", path).body == DATA + DATA


@pytest.mark.parametrize("accept", ["text/html", "Text/HTML", "application/json;q=0.1, TEXT/HTML;q=0.9"])
def test_so_is_a_type_that_is_accepted(gateway: Gateway, accept: str) -> None:
    kind = gateway.request("GET", "/", headers={"Accept": accept}).headers["content-type"]
    assert kind.startswith("text/html")


@pytest.mark.parametrize("expected", ["100-continue", "100-Continue", "100-CONTINUE"])
@pytest.mark.parametrize("size", [0, len(DATA), 300_000])  # of which the last is taken in steps
def test_a_connection_goes_on_after_a_body_that_was_asked_for(
    gateway: Gateway, path: str, expected: str, size: int
) -> None:
    """What comes next on it is the next request, and each is asked for once."""
    with gateway.connect() as connection:
        for number in range(3):
            body = bytes([number]) * size
            headers = {"Expect": expected, "Content-Length": str(size)}
            connection.send(connection.head("PUT", path, headers))
            assert connection.answer_head() == (100, {})
            connection.send(body)
            answer = connection.answer()
            assert (answer.status, answer.interim) == (200, [])
            assert answer.headers["etag"] == f'"{blake3(body).hexdigest()}"'
            assert "connection" not in answer.headers
            assert connection.request("GET", path).body == body


@pytest.mark.parametrize("wrong", ["digest", "store", "condition"])
def test_what_fails_behind_a_continue_is_answered(gateway: Gateway, path: str, wrong: str) -> None:
    """As what fails without one: the client has sent its body, and hears what became of it."""
    store = gateway.store
    assert store is not None
    headers = {"Expect": "100-continue"}
    if wrong == "digest":
        headers["Content-MD5"] = "AAAAAAAAAAAAAAAAAAAAAA=="
    elif wrong == "condition":  # which is known with the last byte
        path = "/upload"
        gateway.request("POST", path, DATA)
        headers["If-None-Match"] = "*"
    store.full, store.error = wrong == "store", NoSpaceError("full")
    try:
        answer = gateway.request("POST" if wrong == "condition" else "PUT", path, DATA, headers)
    finally:
        store.full = False
    code = {"digest": "bad_digest", "store": "no_space", "condition": "precondition_failed"}[wrong]
    assert (answer.interim, answer.code) == ([100], code)
    if wrong == "condition":
        path = f"/fetch/{hashlib.sha1(DATA).hexdigest()}"
    assert gateway.request("GET", path).status == (200 if wrong == "condition" else 404)


@pytest.mark.parametrize("expected", ["100-continue", "something-else"])
def test_a_client_of_http_1_0_gets_one_answer_whatever_it_expects(
    gateway: Gateway, path: str, expected: str
) -> None:
    """It knows no interim answers, and would take one for that to its request (RFC 9110, 10.1.1)."""
    with gateway.connect() as connection:
        head = f"PUT {path} HTTP/1.0\r\nContent-Length: {len(DATA)}\r\nExpect: {expected}\r\n\r\n"
        connection.send(head.encode() + DATA)
        answer = connection.answer()
        assert (answer.status, answer.interim) == (200, [])
        assert connection.ended()
    assert gateway.request("GET", path).body == DATA
