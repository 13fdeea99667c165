"""Clients that mean it badly, or die: what they send never becomes an object, and others never notice."""

from __future__ import annotations

import itertools
import random
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Any

import pytest
from gateway_rig import Broken, Connection, Gateway, memory_gateway, running_gateway

from ingest import limits, ticket
from ingest.errors import (
    BusyError,
    ConnectionLostError,
    CorruptFrameError,
    DiskError,
    IngestError,
    NoSpaceError,
    ReadOnlyError,
    RefusedError,
)
from ingest.limits import SMALL_OBJECT_MAX
from ingest.objects.memory_budget import ALLOWANCE_SIZE
from ingest.status import Status

_numbers = itertools.count(1)
LARGE = random.Random(1).randbytes(5 * SMALL_OBJECT_MAX)
DIRECT = random.Random(2).randbytes(limits.HTTP_DIRECT_MIN + 5 * SMALL_OBJECT_MAX)


@pytest.fixture(scope="module", params=["memory", "node"])
def gateway(request: pytest.FixtureRequest) -> Iterator[Gateway]:
    with running_gateway(request.param, request.getfixturevalue("tmp_path_factory")) as running:
        yield running


@pytest.fixture
def name() -> str:
    return f"hostile{next(_numbers)}"


def reset(connection: Connection) -> None:
    """Closes it so that the other side sees a reset, as of a machine that was switched off and on."""
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def ends_as_failed(gateway: Gateway, name: str) -> None:
    """Waits until the upload's end is known, which is the last thing that its process does about it."""
    for _ in range(3000):
        history = gateway.request("GET", f"/store/{name}?history")
        states = [step["state"] for step in history.json] if history.status == 200 else []
        if states and states[0] != "pending":
            break
        threading.Event().wait(0.01)
    assert states == ["failed", "pending"]


# --- what is no HTTP


@pytest.mark.parametrize(
    "raw",
    [
        b"\0\0\0\0\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",  # no Host
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nBad Header: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\x00b\r\n\r\n",
        b"PUT /objects/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"PUT /objects/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1x\r\n\r\n",
        b"PUT /objects/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"PUT /objects/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"PUT /objects/x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n",
    ],
)
def test_what_is_no_http(gateway: Gateway, raw: bytes) -> None:
    with gateway.connect() as connection:
        connection.send(raw)
        answer = connection.answer()
        assert (answer.status, answer.code) == (400, "bad_http")
        assert answer.headers["x-request-id"] == answer.json["request_id"]
        assert connection.ended()
    assert gateway.request("GET", "/objects/x").status == 404


@pytest.mark.parametrize("coding", ["gzip, chunked", "chunked, chunked", "xchunked", "identity"])
def test_unknown_transfer_codings(gateway: Gateway, name: str, coding: str) -> None:
    with gateway.connect() as connection:
        connection.send(
            connection.head("PUT", f"/objects/{name}", {"Transfer-Encoding": coding}) + b"0\r\n\r\n"
        )
        assert connection.answer().status in (400, 501)
    assert gateway.request("GET", f"/objects/{name}").status == 404


def test_huge_headers(gateway: Gateway) -> None:
    for headers in ({"X-Big": "x" * 9000}, {"X" * 9000: "x"}):
        answer = gateway.request("GET", "/", headers=headers)
        assert (answer.status, answer.code) == (431, "headers_too_large")
    assert gateway.request("GET", "/objects/" + "x" * 20_000).status == 431
    many = {f"X-{i}": "x" for i in range(limits.HTTP_FIELDS_MAX + 1)}
    assert gateway.request("GET", "/", headers=many).status == 400


def test_headers_that_would_be_kept_are_bounded(gateway: Gateway) -> None:
    headers = {f"X-{i}": "x" * 4000 for i in range(3)}
    answer = gateway.request("POST", "/upload", b"x", headers=headers)
    assert (answer.status, answer.code) == (431, "headers_too_large")


def test_headers_that_are_no_utf8(gateway: Gateway, name: str) -> None:
    with gateway.connect() as connection:
        head = connection.head("PUT", f"/objects/{name}", {"Content-Length": "0", "Content-Type": "MARK"})
        connection.send(head.replace(b"MARK", b"a\xff"))
        answer = connection.answer()
        assert (answer.status, answer.code) == (400, "bad_header")


def test_http_1_0(gateway: Gateway, name: str) -> None:
    with gateway.connect() as connection:
        connection.send(b"GET /alive HTTP/1.0\r\n\r\n")
        assert connection.answer().body == b"alive"
        assert connection.ended()
    with gateway.connect() as connection:
        connection.send(f"PUT /objects/{name} HTTP/1.0\r\n\r\n".encode())
        assert connection.answer().status == 411
    assert gateway.request("GET", f"/objects/{name}").status == 404


def test_absolute_targets(gateway: Gateway, name: str) -> None:
    host = f"{gateway.address[0]}:{gateway.address[1]}"
    assert gateway.request("PUT", f"http://{host}/objects/{name}", b"x").status == 200
    assert gateway.request("GET", f"http://{host}/objects/{name}").body == b"x"
    answer = gateway.request("GET", f"http://evil.example/objects/{name}")
    assert (answer.status, answer.code) == (403, "foreign_host")
    assert gateway.request("OPTIONS", "*").status == 400
    assert gateway.request("GET", "/objects/a#b").status == 400


@pytest.mark.parametrize("length", [10**18, 2**63 - 1, 2**64 - 1, "0" * 19 + "5", "0" * 5000 + "5"])
@pytest.mark.parametrize("path", ["/alive", "/objects/a"])
def test_a_length_that_is_none_is_refused(gateway: Gateway, length: object, path: str) -> None:
    """2^64 - 1 is "no length" to aiohttp's parser: it would see no body, and we would wait for one."""
    with gateway.connect() as connection:
        head = connection.head("PUT", path, {"Content-Length": str(length)})
        connection.send(head + b"GET /alive HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = connection.answer()
        assert (answer.status, answer.code) == (400, "bad_http")
        assert connection.ended()


THIN = b"1\r\na\r\n" * (limits.HTTP_CHUNKS_EXCESS_MAX // 4 + 1)


def test_chunks_of_next_to_nothing_are_refused(gateway: Gateway, name: str) -> None:
    """Each takes as much time as kilobytes of data, of a process that serves others too."""
    with gateway.connect() as connection:
        connection.send(connection.head("PUT", f"/objects/{name}", {"Transfer-Encoding": "chunked"}) + THIN)
        answer = connection.answer()
        assert (answer.status, answer.code, answer.headers["connection"]) == (400, "bad_http", "close")
        assert connection.ended()
    assert gateway.request("GET", f"/objects/{name}").status == 404


@pytest.mark.parametrize(("method", "path", "status"), [("PUT", "/alive", 405), ("GET", "/alive", 200)])
def test_chunks_behind_an_answer_are_not_read(gateway: Gateway, method: str, path: str, status: int) -> None:
    """Nor what follows them: the answer says that it is the last."""
    with gateway.connect() as connection:
        connection.send(connection.head(method, path, {"Transfer-Encoding": "chunked"}))
        answer = connection.answer()
        assert (answer.status, answer.headers["connection"]) == (status, "close")
        connection.send(b"0\r\n\r\n" + connection.head("GET", "/alive"))
        connection.sock.shutdown(socket.SHUT_WR)
        assert connection.ended()


@pytest.mark.parametrize("framing", [{"Content-Length": "48"}, {"Transfer-Encoding": "chunked"}, {}])
def test_nothing_is_answered_behind_connect(framing: dict[str, str]) -> None:
    """What follows it has no end: its body was answered as a request of its own."""
    with memory_gateway() as gateway, gateway.connect() as connection:
        inner = b"PUT /objects/smuggled HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
        connection.send(connection.head("CONNECT", "localhost:80", framing) + inner)
        answer = connection.answer()
        assert 400 <= answer.status < 500 and answer.headers["connection"] == "close"
        connection.sock.shutdown(socket.SHUT_WR)
        assert connection.ended()
        assert gateway.request("GET", "/objects/smuggled").status == 404


# --- bodies that end early


@pytest.mark.parametrize("cut", [0, 1, 1000, SMALL_OBJECT_MAX, SMALL_OBJECT_MAX + 1, len(LARGE) - 1])
@pytest.mark.parametrize("end", ["close", "reset", "half"])
def test_a_body_that_ends_early(gateway: Gateway, name: str, cut: int, end: str) -> None:
    connection = gateway.connect()
    connection.send(connection.head("POST", f"/store/{name}", {"Content-Length": str(len(LARGE))}))
    connection.send(LARGE[:cut])
    if end == "half":
        connection.sock.shutdown(socket.SHUT_WR)
        assert connection.ended()
    (reset if end == "reset" else Connection.close)(connection)
    # What was reset may never have been seen, and of what fits into memory nothing is noted before it is whole.
    if end != "reset" and (cut > SMALL_OBJECT_MAX or gateway.store is not None):
        ends_as_failed(gateway, name)
    assert gateway.request("GET", f"/store/{name}").status == 404


@pytest.mark.parametrize("cut", [limits.HTTP_DIRECT_MIN // 2, len(DIRECT) - 1])
@pytest.mark.parametrize("end", ["close", "half"])
def test_a_body_that_goes_by_aiohttp_and_ends_early(gateway: Gateway, name: str, cut: int, end: str) -> None:
    with gateway.connect() as connection:
        connection.send(connection.head("POST", f"/store/{name}", {"Content-Length": str(len(DIRECT))}))
        connection.send(DIRECT[:cut])
        if end == "half":
            connection.sock.shutdown(socket.SHUT_WR)
            assert connection.ended()
    ends_as_failed(gateway, name)
    assert gateway.request("GET", f"/store/{name}").status == 404


def test_what_comes_behind_a_body_that_goes_by_aiohttp_is_no_request(gateway: Gateway, name: str) -> None:
    with gateway.connect() as connection:
        head = connection.head("POST", f"/store/{name}", {"Content-Length": str(len(DIRECT))})
        connection.send(head + DIRECT + connection.head("DELETE", f"/store/{name}"))
        answer = connection.answer()
        assert (answer.status, answer.headers["connection"]) == (204, "close")
        assert connection.ended()
    assert gateway.request("GET", f"/store/{name}").body == DIRECT


@pytest.mark.parametrize("tail", [b"", b"5\r\nabc", b"5\r\nabcde\r\n", b"5\r\nabcde\r\n0\r\n"])
def test_a_chunked_body_that_ends_early(gateway: Gateway, name: str, tail: bytes) -> None:
    connection = gateway.connect()
    connection.send(connection.head("POST", f"/store/{name}", {"Transfer-Encoding": "chunked"}) + tail)
    connection.close()
    assert gateway.request("GET", f"/store/{name}").status == 404


@pytest.mark.parametrize(
    "garbage", [b"x\r\n", b"-1\r\n", b"3\r\nabcd\r\n", b"ffffffffffffffffff\r\n", b"0x3\r\nabc\r\n"]
)
def test_a_chunked_body_that_is_garbage(gateway: Gateway, name: str, garbage: bytes) -> None:
    with gateway.connect() as connection:
        head = connection.head("POST", f"/store/{name}", {"Transfer-Encoding": "chunked"})
        connection.send(head + b"3\r\nabc\r\n" + garbage)
        try:
            assert connection.answer().status >= 400
        except (Broken, ConnectionError):
            pass
    assert gateway.request("GET", f"/store/{name}").status == 404


def test_a_client_that_disappears_at_any_byte(gateway: Gateway, name: str) -> None:
    """Of a request that replaces an object: the name has the old bytes or the new ones, and nothing between."""
    old, new = b"old" * 100, b"new" * 200
    path = f"/objects/{name}"
    gateway.request("PUT", path, old)
    with gateway.connect() as connection:
        raw = connection.head("PUT", path, {"Content-Length": str(len(new))}) + new
    for size in [*range(0, len(raw), 37), len(raw) - 1]:
        connection = gateway.connect()
        connection.send(raw[:size])
        (reset if size % 2 else Connection.close)(connection)
        assert gateway.request("GET", path).body == old
    connection = gateway.connect()
    connection.send(raw)
    reset(connection)
    assert gateway.request("GET", path).body in (old, new)


def test_a_client_that_sends_more_than_it_said(gateway: Gateway, name: str) -> None:
    with gateway.connect() as connection:
        connection.send(
            connection.head("PUT", f"/objects/{name}", {"Content-Length": "3"}) + b"abcGARBAGE\r\n\r\n"
        )
        statuses = [connection.answer().status]
        if statuses == [200]:
            statuses.append(connection.answer().status)
    assert statuses[-1] == 400
    found = gateway.request("GET", f"/objects/{name}")
    assert found.body == b"abc" if statuses[0] == 200 else found.status == 404


def test_a_stream_that_is_reset(gateway: Gateway) -> None:
    with gateway.connect("stream") as connection:
        connection.send(b"x" * 1000)
        reset(connection)
    with gateway.connect("stream") as connection:
        connection.sock.shutdown(socket.SHUT_WR)
        assert len(connection.file.read()) == 9


# --- many at once


def test_two_writers_of_one_name(gateway: Gateway, name: str) -> None:
    """Whoever reads meanwhile gets one of the bodies, whole."""
    bodies = [bytes([65 + i]) * (SMALL_OBJECT_MAX // 2 + i * SMALL_OBJECT_MAX) for i in range(3)]
    path = f"/objects/{name}"
    gateway.request("PUT", path, bodies[0])
    done = threading.Event()

    def write(body: bytes) -> None:
        with gateway.connect() as connection:
            for _ in range(6):
                assert connection.request("PUT", path, body).status == 200

    def read() -> int:
        count = 0
        with gateway.connect() as connection:
            while not done.is_set() or count == 0:
                answer = connection.request("GET", path)
                assert answer.status == 200 and answer.body in bodies, answer.body[:100]
                count += 1
        return count

    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        try:
            list(pool.map(write, bodies[1:]))
        finally:
            done.set()
        assert all(reader.result() for reader in readers)
    assert gateway.request("GET", path).body in bodies[1:]


def test_one_of_many_creates(gateway: Gateway, name: str) -> None:
    def create(i: int) -> int:
        return gateway.request("POST", f"/store/{name}", b"%d" % i).status

    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(create, range(16)))
    assert sorted(statuses) == [204] + [409] * 15
    winner = statuses.index(204)
    assert gateway.request("GET", f"/store/{name}").body == b"%d" % winner


def test_a_reader_during_a_replace_finishes_what_it_began(gateway: Gateway, name: str) -> None:
    path = f"/objects/{name}"
    large = LARGE * 8  # more than the buffers between us hold
    gateway.request("PUT", path, large)
    with gateway.connect() as connection:
        connection.send(connection.head("GET", path))
        status, headers = connection.answer_head()
        assert gateway.request("PUT", path, b"new").status == 200
        assert gateway.request("GET", path).body == b"new"
        assert gateway.request("DELETE", path).status == 200
        assert status == 200 and connection.exactly(int(headers["content-length"])) == large


def test_a_reader_that_goes_away(gateway: Gateway, name: str) -> None:
    path = f"/objects/{name}"
    gateway.request("PUT", path, LARGE * 8)
    for end in (reset, Connection.close):
        connection = gateway.connect()
        connection.send(connection.head("GET", path))
        connection.answer_head()
        end(connection)
    assert gateway.request("GET", path).body == LARGE * 8


# --- a store that fails


@pytest.fixture
def failing() -> Iterator[Gateway]:
    with memory_gateway() as running:
        yield running


FAILURES = [
    (RefusedError("0", Status.NO_SPACE), 507, "no_space"),
    (RefusedError("0", Status.BUSY), 503, "busy"),
    (RefusedError("0", Status.ERROR), 502, "engine_failed"),
    (RefusedError("0", Status.BAD_CHECKSUM), 502, "key_refused"),
    (ConnectionLostError("gone"), 503, "engine_unreachable"),
    (CorruptFrameError("bad"), 502, "corrupt"),
    (NoSpaceError("full"), 507, "no_space"),
    (ReadOnlyError("catalog"), 503, "disk_read_only"),
    (DiskError("catalog"), 500, "catalog_failed"),
    (BusyError("catalog"), 503, "busy"),
    (IngestError("other"), 500, "failed"),
    (ZeroDivisionError("ours"), 500, "internal"),
]


@pytest.mark.parametrize(("error", "status", "code"), FAILURES)
def test_uploads_into_a_store_that_fails(failing: Gateway, error: Any, status: int, code: str) -> None:
    store = failing.store
    assert store is not None
    store.error, store.full = error, True
    answer = failing.request("PUT", "/objects/a", b"x" * 100)
    assert (answer.status, answer.code) == (status, code)
    assert ("retry-after" in answer.headers) == (status == 503)
    assert "ours" not in answer.json["message"]
    store.full = False
    assert failing.request("PUT", "/objects/a", b"x").status == 200


def test_an_upload_that_fails_in_the_middle_is_answered(failing: Gateway) -> None:
    store = failing.store
    assert store is not None
    store.error, store.full = NoSpaceError("full"), True
    for body in (LARGE, DIRECT):
        with failing.connect() as connection:
            answer = connection.request("PUT", "/objects/a", body)
            assert (answer.status, answer.code) == (507, "no_space")


@pytest.mark.parametrize(("error", "status", "code"), FAILURES)
def test_downloads_from_a_store_that_fails_at_once(
    failing: Gateway, error: Any, status: int, code: str
) -> None:
    store = failing.store
    assert store is not None
    failing.request("PUT", "/objects/a", LARGE)
    store.error, store.broken_from = error, 0
    answer = failing.request("GET", "/objects/a")
    assert (answer.status, answer.code) == (status, code)
    assert store.open_downloads == 0


@pytest.mark.parametrize(
    "error", [CorruptFrameError("bad"), ConnectionLostError("gone"), ZeroDivisionError()]
)
def test_a_download_that_fails_in_the_middle_is_seen_to_be_broken(failing: Gateway, error: Any) -> None:
    store = failing.store
    assert store is not None
    failing.request("PUT", "/objects/a", LARGE)
    store.error, store.broken_from = error, len(LARGE) // 2
    with failing.connect() as connection:
        connection.send(connection.head("GET", "/objects/a"))
        status, headers = connection.answer_head()
        assert (status, headers["content-length"]) == (200, str(len(LARGE)))
        with pytest.raises(Broken):
            connection.exactly(len(LARGE))
    assert store.open_downloads == 0
    part = failing.request("GET", "/objects/a", headers={"Range": "bytes=0-99"})
    assert part.body == LARGE[:100]


# --- too many


def begin_upload(connection: Connection) -> None:
    """It has a request under way when this returns."""
    connection.send(
        connection.head("PUT", "/objects/begun", {"Content-Length": "1", "Expect": "100-continue"})
    )
    assert connection.answer_head()[0] == 100


def test_connections_beyond_the_limit_are_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest.runtime.wires.HTTP_CONNECTIONS_MAX", 2)
    monkeypatch.setattr("ingest.runtime.wires.HTTP_REFUSED_MAX", 1)
    with memory_gateway() as running:
        with running.connect() as first, running.connect() as second:
            begin_upload(first)
            begin_upload(second)
            with running.connect("store") as third:  # whatever the port
                answer = third.request("PUT", "/store/a", LARGE)
                assert (answer.status, answer.code, answer.headers["retry-after"]) == (503, "busy", "1")
                assert answer.headers["x-request-id"] == answer.json["request_id"]
                with running.connect() as fourth:
                    assert fourth.ended()
            first.send(b"x")
            assert first.answer().status == 200
        for _ in range(3000):  # until the end of one of them is noticed
            answer = running.request("GET", "/alive")
            if answer.status == 200:
                break
        assert answer.body == b"alive"


def test_raw_streams_count_as_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest.runtime.wires.HTTP_CONNECTIONS_MAX", 2)
    monkeypatch.setattr("ingest.runtime.wires.HTTP_REFUSED_MAX", 2)
    for module in ("runtime.last_answer", "gateway.apis.stream_api"):
        monkeypatch.setattr(f"ingest.{module}.HTTP_LINGER_S", 60.0)
    with memory_gateway() as running:
        with running.connect("stream") as first, running.connect("stream") as second:
            for connection in (first, second):
                connection.send(b"x")
            with running.connect("stream") as third:
                assert third.file.read() == bytes(8) + bytes([Status.BUSY])  # so both are counted
                with running.connect() as fourth:
                    assert fourth.request("GET", "/alive").status == 503
                    for port in ("stream", None):  # nobody else is told
                        with running.connect(port) as fifth:
                            assert fifth.ended()
            first.sock.shutdown(socket.SHUT_WR)
            assert first.file.read()[8] == Status.SAVED
        for _ in range(3000):  # until the end of one of them is noticed
            try:
                if running.request("GET", "/alive").status == 200:
                    break
            except (Broken, ConnectionError):
                pass
        assert running.request("GET", "/alive").body == b"alive"


def silent(connection: Connection) -> None:
    pass


def unfinished(connection: Connection) -> None:
    connection.send(b"GET / HTTP/1.1\r\n")


def answered(connection: Connection) -> None:
    assert connection.request("GET", "/alive").status == 200


@pytest.mark.parametrize(
    ("api", "begin"), [(None, silent), (None, unfinished), (None, answered), ("stream", silent)]
)
def test_connections_without_a_request_give_way(
    api: str | None, begin: Callable[[Connection], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.runtime.wires.HTTP_CONNECTIONS_MAX", 3)
    with memory_gateway() as running, ExitStack() as stack:
        busy, *idle = (stack.enter_context(running.connect(api if i else None)) for i in range(3))
        begin_upload(busy)
        for connection in idle:
            begin(connection)
        for _ in range(10):
            assert running.request("GET", "/alive").status == 200
        assert idle[0].ended()
        busy.send(b"x")
        assert busy.answer().status == 200


REFUSED = {
    "length": b"PUT /alive HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n",
    "chunked": b"PUT /alive HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n",
    "answered 200": b"GET /alive HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n",
    "large": b"PUT /alive HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (len(DIRECT)),
    "raw stream": b"GET / HTTP/1.1\r\n\r\n",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_who_is_answered_before_the_end_of_its_body_gives_way(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.runtime.wires.HTTP_CONNECTIONS_MAX", 2)
    monkeypatch.setattr(limits, "HTTP_LINGER_S", 60.0)
    monkeypatch.setattr("ingest.gateway.apis.stream_api.HTTP_LINGER_S", 60.0)
    with memory_gateway() as running, ExitStack() as stack:
        port = "stream" if kind == "raw stream" else None
        early = [stack.enter_context(running.connect(port)) for _ in range(2)]
        for connection in early:
            connection.send(REFUSED[kind])
            status, headers = connection.answer_head()
            connection.exactly(int(headers["content-length"]))
            assert status in (200, 403, 405)
        for _ in range(3000):  # an answer is seen before its sender goes on
            if running.request("GET", "/alive").status == 200:
                break
        assert running.request("GET", "/alive").status == 200
        assert early[0].ended()


def test_an_address_has_a_share_of_the_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest.runtime.wires.HTTP_SHARE_MAX", 2)
    monkeypatch.setattr("ingest.runtime.admission.HTTP_FRESH_S", 0.0)
    with memory_gateway() as running, running.connect() as first, running.connect() as second:
        begin_upload(first)
        begin_upload(second)
        assert running.request("GET", "/alive").status == 503
        with socket.socket() as other:
            other.bind(("127.0.0.2", 0))
            other.settimeout(60)
            other.connect(running.address)
            other.sendall(b"GET /alive HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert other.recv(12) == b"HTTP/1.1 200"
        first.send(b"x")
        assert first.answer().status == 200
        assert running.request("GET", "/alive").status == 200
        assert first.ended()  # it had no request any more, and gave way


def test_a_head_has_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest.runtime.wire.HTTP_HEAD_TIMEOUT_S", 0.1)
    with memory_gateway() as running:
        with running.connect() as silent:
            assert silent.ended()
        with running.connect() as slow:
            slow.send(b"GET /alive HTTP/1.1\r\n")
            answer = slow.answer()
            assert (answer.status, answer.code) == (408, "head_stalled")
            assert slow.ended()


# --- other protocols

ALERT = b"\x15\x03\x01\x00\x02\x02\x28"  # of TLS: fatal, handshake_failure
BINDING = bytes.fromhex("000100002112a442") + bytes(12)
STUN = [BINDING, len(BINDING).to_bytes(2) + BINDING, bytes.fromhex("001100002112a442") + bytes(12)]


def client_hello() -> bytes:
    sent = ssl.MemoryBIO()
    context = ssl.create_default_context()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname="chosen.example").do_handshake()
    return sent.read()


@pytest.mark.parametrize("step", [1, 1 << 20])
def test_tls_to_a_plain_port_gets_an_alert(gateway: Gateway, step: int) -> None:
    """And stores nothing where bytes are stored as they come: its name is for a web page to choose."""
    stored = gateway.request("GET", "/catalog/objects?namespace=stream").json["objects"]
    for api in (None, "store", "stream"):
        with gateway.connect(api) as connection:
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            hello = client_hello()
            for at in range(0, min(len(hello), 20) if step == 1 else len(hello), step):
                try:
                    connection.send(hello[at : at + step])
                except ConnectionError:
                    break
            assert connection.file.read(len(ALERT)) == ALERT
            assert connection.ended()
    for message in STUN:  # as WebRTC asks a server, as it asks a peer by TCP, and an indication
        with gateway.connect("stream") as connection:
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for at in range(0, len(message), step):
                with suppress(ConnectionError):
                    connection.send(message[at : at + step])
            assert connection.ended()
    assert gateway.request("GET", "/catalog/objects?namespace=stream").json["objects"] == stored


@pytest.mark.parametrize(
    "raw",
    [
        b"\x16",
        b"\x16\x03\x01\x02\x00\x02\x00data",
        b"\x00",
        b"\x00\x01data",
        b"\x00\x14" + BINDING[:7],
        b"\x00" + BINDING,
        b"PRI * HTTP/2.0",
        b"\r\n\r\n",
        bytes(100),
    ],
)
def test_bytes_that_only_begin_alike_are_stored(gateway: Gateway, raw: bytes) -> None:
    with gateway.connect("stream") as connection:
        connection.send(raw)
        connection.sock.shutdown(socket.SHUT_WR)
        assert connection.file.read()[8] == Status.SAVED


TRAILERS = b"0\r\na: " + b"x" * (limits.HTTP_HEAD_SIZE_MAX + 1)


@pytest.mark.parametrize(
    ("api", "raw", "words"),
    [
        (
            None,
            b"PUT /objects/a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n" + TRAILERS,
            "trailers",
        ),
        ("stream", b"GET / HTTP/1.1\r\n\r\n", "was refused"),
        (None, b"\x16\x03\x01aaaa", "speaks TLS"),
    ],
)
def test_strangers_fill_no_log(
    api: str | None, raw: bytes, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with memory_gateway() as running:
        for _ in range(20):
            with running.connect(api) as connection:
                connection.send(raw)
                connection.sock.shutdown(socket.SHUT_WR)
                with suppress(ConnectionError):
                    connection.file.read()
    assert len([line for line in caplog.messages if words in line]) == 1


# --- HTTP to the raw stream


def in_steps(connection: Connection, raw: bytes, step: int) -> None:
    """The first bytes in small ones."""
    for at in range(0, min(len(raw), 200), step):
        connection.send(raw[:200][at : at + step])
    connection.send(raw[200:])


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /x?y HTTP/1.1\r\nOrigin: http://evil.example\r\nContent-Length: 5\r\n\r\nbytes",
        b"OPTIONS * HTTP/1.0\n\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\r\n\nGET / HTTP/1.1\r\n\r\n",
        b"POST /" + b"x" * (limits.STREAM_HEAD_MAX + 1) + b" HTTP/1.1\r\n\r\n",
    ],
)
@pytest.mark.parametrize("step", [1, 1 << 20])
def test_a_browser_cannot_store_through_the_raw_stream(gateway: Gateway, raw: bytes, step: int) -> None:
    with gateway.connect("stream") as connection:
        in_steps(connection, raw, step)
        status, headers = connection.answer_head()
        assert (status, headers["connection"]) == (403, "close")
        assert b"nothing was stored" in connection.exactly(int(headers["content-length"]))
        assert connection.ended()


@pytest.mark.parametrize(
    "raw",
    [
        b"GET",
        b"GET /",
        b"GET / HTTP/1.1",  # no line: nothing that a browser would send
        b"GET / HTTP/2.0\r\n",
        b"GET a b HTTP/1.1\r\n",
        b"word " * 10_000,
        b"x" * 100_000,
    ],
)
@pytest.mark.parametrize("step", [1, 1 << 20])
def test_a_raw_stream_may_look_like_http(gateway: Gateway, raw: bytes, step: int) -> None:
    with gateway.connect("stream") as connection:
        in_steps(connection, raw, step)
        connection.sock.shutdown(socket.SHUT_WR)
        reply = connection.file.read()
    assert (len(reply), reply[8]) == (9, Status.SAVED)
    chunk = gateway.request("GET", "/" + ticket.tree_path(ticket.from_wire(reply[:8]))).body
    assert chunk.rstrip(b"\0") == raw[: limits.DATA_SIZE]


# --- slow clients


@pytest.mark.parametrize("size", [10, limits.HTTP_DIRECT_MIN + 10])
def test_a_body_that_stalls(failing: Gateway, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr("ingest.gateway.http.request_body.HTTP_STALL_TIMEOUT_S", 0.2)
    monkeypatch.setattr("ingest.gateway.http.incoming.HTTP_STALL_TIMEOUT_S", 0.2)
    with failing.connect() as connection:
        connection.send(connection.head("PUT", "/objects/a", {"Content-Length": str(size)}) + b"half ")
        answer = connection.answer()
        assert (answer.status, answer.code) == (408, "body_stalled")
    assert failing.request("GET", "/objects/a").status == 404


def test_a_slow_body_arrives(failing: Gateway) -> None:
    with failing.connect() as connection:
        connection.send(connection.head("PUT", "/objects/a", {"Content-Length": "40"}))
        for _ in range(40):
            connection.send(b"x")
        assert connection.answer().status == 200


@pytest.mark.parametrize(
    "asked", [["/objects/large"], ["/objects/small"] * 200, ["/objects/?limit=1000"] * 200]
)
def test_a_client_that_takes_nothing(monkeypatch: pytest.MonkeyPatch, asked: list[str]) -> None:
    """Whatever it asked for: a large object, or small answers, more than its machine and ours take."""
    for module in ("wire", "wires"):
        monkeypatch.setattr(f"ingest.runtime.{module}.HTTP_UNREAD_TIMEOUT_S", 0.2)
    with memory_gateway() as running:
        store = running.store
        assert store is not None
        running.request("PUT", "/objects/large", LARGE * 40)
        running.request("PUT", "/objects/small", LARGE[: ALLOWANCE_SIZE - 1])
        for i in range(1000):
            running.request("PUT", f"/objects/{i:0100}", b"")
        with running.connect() as connection:
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            for path in asked:
                connection.send(connection.head("GET", path))
            assert connection.ended_unread()
        for _ in range(3000):  # its request ends after the connection
            if store.open_downloads == 0:
                break
            threading.Event().wait(0.01)
        assert store.open_downloads == 0


def test_a_client_that_takes_little_at_a_time_gets_all_of_it_in_order() -> None:
    """What the system takes at once, and what waits for it, go two ways: they stay in order."""
    with memory_gateway() as running:
        running.request("PUT", "/objects/large", LARGE * 3)
        running.request("PUT", "/objects/small", b"small")
        with running.connect() as connection:
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
            for path in ["/objects/large", "/objects/small"] * 2:
                connection.send(connection.head("GET", path))
            bodies = [connection.answer().body for _ in range(4)]
        assert bodies == [LARGE * 3, b"small"] * 2


def test_a_head_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HTTP_IDLE_TIMEOUT_S", 0.2)
    with memory_gateway() as running:
        for raw in (b"", b"GET / HTTP/1.1\r\nHost: loc", b"GET / HTTP/1.1\r\nHost: localhost\r\n"):
            with running.connect() as connection:
                connection.send(raw)
                assert connection.ended()
