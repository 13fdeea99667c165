"""The admin port as its users see it: a real process that answers on a real socket."""

import http.client
import json
import os
import select
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import uvloop

import ingest
from ingest import limits, ticket
from ingest.engine import _queue, admin
from ingest.engine._queue import Queue
from ingest.engine.node import Node
from ingest.engine.server_config import ServerConfig
from ingest.errors import CorruptionError
from ingest.runtime import listeners
from ingest.status import Status

CHUNK = bytes(range(256)) * 5 + bytes(limits.DATA_SIZE - 1280)
STORED = {"0", "01", "ABC", "AB12CD", "ZZZZZZZZ"}


def read_chunk(index: int) -> tuple[Status, bytes]:
    """A store that holds a few chunks and has every kind of trouble."""
    name = ticket.format(index)
    if name in STORED:
        return Status.SAVED, bytes(16) + CHUNK
    if name == "D":
        return Status.DELETED, b""
    if name == "E":
        return Status.ERROR, b""
    if name == "C":
        raise CorruptionError("pack obj, slot 1304 fails its checksum")
    if name == "F":
        raise OSError(5, "Input/output error")
    return Status.MISSING, b""


class Port:
    """An admin port on all of ``hosts``; ``addresses`` are those of its sockets, ``address`` is the first of them."""

    def __init__(self, *hosts: str, layout: str = "pack") -> None:
        self.queue = Queue(1, 4)
        sockets = [sock for host in hosts for sock in listeners.bind_alone((host, 0))]
        for sock in sockets:
            listeners.listen(sock, 16)
        self.addresses = [
            ("127.0.0.1" if host == "0.0.0.0" else host, sock.getsockname()[1])
            for host, sock in zip(hosts, sockets, strict=True)
        ]
        self.address = self.addresses[0]
        data_fd = os.open("/", os.O_RDONLY | os.O_CLOEXEC)
        store = SimpleNamespace(data_fd=data_fd, wal_dir=Path("/"), layout=layout)
        node = Node(ServerConfig(), store, SimpleNamespace(), self.queue, sockets)  # type: ignore[arg-type]
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                uvloop.run(admin.serve_admin(node, lambda _: read_chunk))
                code = 0
            finally:
                os._exit(code)
        os.close(store.data_fd)
        listeners.close_all(sockets)

    def get(
        self, path: str, method: str = "GET", **headers: str
    ) -> tuple[int, bytes, http.client.HTTPMessage]:
        connection = http.client.HTTPConnection(*self.address, timeout=20)
        try:
            connection.putrequest(method, path, skip_host="Host" in headers, skip_accept_encoding=True)
            for name, text in headers.items():
                if text is not None:
                    connection.putheader(name, text)
            connection.endheaders()
            response = connection.getresponse()
            return response.status, response.read(), response.headers
        finally:
            connection.close()

    def end(self) -> int:
        if not self.pid:
            return 0
        os.kill(self.pid, signal.SIGTERM)
        pidfd = os.pidfd_open(self.pid)
        ended = select.select([pidfd], [], [], 20)[0]
        os.close(pidfd)
        if not ended:
            os.kill(self.pid, signal.SIGKILL)
        pid, self.pid = self.pid, 0
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@contextmanager
def opened(*hosts: str, layout: str = "pack") -> Iterator[Port]:
    port = Port(*hosts, layout=layout)
    try:
        yield port
    finally:
        code = port.end()
    assert code == 0


@pytest.fixture(scope="module")
def port() -> Iterator[Port]:
    with opened("127.0.0.1") as port:
        yield port


def test_healthz_answers_before_recovery(port: Port) -> None:
    assert port.queue.epoch % 2 == 1
    assert port.get("/healthz")[:2] == (200, b"ok\n")


def test_readyz_says_why_not(port: Port) -> None:
    status, body, _ = port.get("/readyz")
    assert (status, json.loads(body)) == (503, {"ready": False, "reasons": ["recovering"]})
    port.queue.committer_ready()
    status, body, headers = port.get("/readyz")
    assert (status, json.loads(body)) == (200, {"ready": True, "reasons": []})
    assert headers["Content-Type"].startswith("application/json")
    port.queue.set_flag(_queue.NO_SPACE)
    port.queue.set_flag(_queue.DRAINING)
    status, body, _ = port.get("/readyz")
    assert (status, json.loads(body)["reasons"]) == (503, ["draining", "no space"])
    port.queue.clear_flag(_queue.NO_SPACE | _queue.DRAINING)
    port.queue.committer_gone()


def test_metrics(port: Port) -> None:
    port.queue.counter_row(_queue.ROW_WORKER)[0] = 42
    status, body, headers = port.get("/metrics")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert b'ingest_frames_received_total{process="worker-0"} 42.0\n' in body
    assert body.endswith(b"\n")


@pytest.mark.parametrize(
    ("kept_free", "store"), [(limits.RESERVE_INODES, "pack"), (limits.RESERVE_INODES_TREE, "tree")]
)
def test_the_inodes_that_are_kept_free_are_those_of_the_layout(kept_free: int, store: str) -> None:
    """Who waits for an alarm by it hears nothing before puts are refused, if it is the other one's."""
    with opened("127.0.0.1", layout=store) as port:
        _, body, _ = port.get("/metrics")
    assert f"\ningest_disk_reserve_inodes {float(kept_free)}\n".encode() in body


def test_version(port: Port) -> None:
    status, body, _ = port.get("/version")
    assert status == 200
    assert json.loads(body)["version"] == ingest.__version__


@pytest.mark.parametrize("name", sorted(STORED))
def test_a_chunk_lies_at_the_path_of_its_ticket(port: Port, name: str) -> None:
    status, body, headers = port.get("/" + ticket.tree_path(name))
    assert (status, body) == (200, CHUNK)
    assert headers["Content-Type"] == "application/octet-stream"
    assert headers["Content-Length"] == "1458"


def test_head(port: Port) -> None:
    status, body, headers = port.get("/0/obj", "HEAD")
    assert (status, body, headers["Content-Length"]) == (200, b"", "1458")


@pytest.mark.parametrize(
    ("name", "status", "error"),
    [
        ("1", 404, "MISSING"),
        ("D", 410, "DELETED"),
        ("E", 500, "ERROR"),
        ("C", 500, "ERROR"),
        ("F", 500, "ERROR"),
    ],
)
def test_a_chunk_that_cannot_be_shown(port: Port, name: str, status: int, error: str) -> None:
    got, body, _ = port.get(f"/{name}/obj")
    assert (got, json.loads(body)) == (status, {"error": error, "ticket": name})


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/obj",
        "/0",
        "/0/",
        "/0/obj/",
        "/0/obj/0",
        "//0/obj",
        "/./0/obj",
        "/x/../0/obj",
        "/%30/obj",
        "/0%2Fobj",
        "/a/obj",
        "/AB/C/D/obj",
        "/A/BC/obj",
        "/ABC/obj",
        "/00/00/00/00/0/obj",
        "/AB/C/OBJ",
        "/AB/C/obj%00",
        "/AB/C/obj;x",
        "/%D9%A3/obj",
        "/.ingest/key",
        "/../../etc/passwd",
        "/healthz/",
        "/" + "A" * 4000,
    ],
)
def test_no_other_path_leads_anywhere(port: Port, path: str) -> None:
    status, body, _ = port.get(path)
    assert status == 404
    assert json.loads(body) == {"error": "there is nothing under this path"}


@pytest.mark.parametrize(
    "path", ["/%68ealthz", "/%72eadyz", "/version%20", "//metrics", "/./metrics", "/Metrics", "/0/%6fbj"]
)
def test_each_path_has_one_spelling(port: Port, path: str) -> None:
    """Whoever stands before this port may have let some of them through and others not."""
    assert port.get(path)[0] == 404


def raw_answer(port: Port, sent: bytes) -> tuple[int, dict[str, str]]:
    """To a request that is no good request; the connection has ended behind it."""
    with socket.create_connection(port.address, 20) as sock:
        sock.sendall(sent)
        content = b""
        while piece := sock.recv(65536):
            content += piece
    first, *lines = content.partition(b"\r\n\r\n")[0].decode().split("\r\n")
    assert content.count(b"\r\nServer: ") == 1, "what came behind it was answered"
    return int(first.split()[1]), dict(line.lower().split(": ", 1) for line in lines)


BEHIND = b"GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n"
CHUNKED = b"Host: localhost\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /healthz HTTP/1.0\r\n" + CHUNKED, 400),
        (b"POST /healthz HTTP/1.0\r\n" + CHUNKED, 400),
        (b"\x00\x01\x02\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nNo field\r\n\r\n", 400),
        (b"GET /" + b"a" * (limits.HTTP_LINE_SIZE_MAX + 1) + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 431),
        (
            b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 2 * limits.HTTP_FIELD_SIZE_MAX + b"\r\n\r\n",
            431,
        ),
    ],
)
def test_what_has_no_certain_end_ends_its_connection(port: Port, sent: bytes, status: int) -> None:
    """What comes behind it may be the rest of it, and is no request. And it is in nobody's cache."""
    found, headers = raw_answer(port, sent + BEHIND)
    assert found == status
    assert headers["cache-control"] == "no-store" and headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_nothing_can_be_changed(port: Port, method: str) -> None:
    assert port.get("/0/obj", method, **{"Content-Length": "0"})[0] == 405


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:5080", "localhost.", "127.0.0.1", "127.9.9.9:1", "[::1]:5080", "[::1]"]
)
def test_our_own_names(port: Port, host: str) -> None:
    assert port.get("/healthz", Host=host)[0] == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:5080",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "evil-localhost",
        "evil.localhost:5080",
        "10.0.0.1:5080",
        "",
        "[::2]:1",
        "0.0.0.0",
    ],
)
@pytest.mark.parametrize("path", ["/0/obj", "/metrics", "/healthz", "/nothing"])
def test_foreign_names_are_refused(port: Port, path: str, host: str) -> None:
    status, body, _ = port.get(path, Host=host)
    assert status == 403
    assert CHUNK not in body


def test_off_loopback_no_chunk_is_shown_and_any_name_is_fine() -> None:
    port = Port("0.0.0.0")
    assert port.get("/0/obj")[0] == 404
    assert json.loads(port.get("/1/obj")[1]) == {"error": "there is nothing under this path"}
    assert port.get("/healthz", Host="node-7.example")[0] == 200
    assert port.end() == 0


LOOPBACK, OTHER = ("127.0.0.1", "::1", "127.0.0.2"), "0.0.0.0"


@pytest.mark.parametrize(
    "hosts", [(*LOOPBACK[:at], OTHER, *LOOPBACK[at:count]) for count in (1, 3) for at in range(count + 1)]
)
def test_one_address_off_loopback_is_enough_to_show_no_chunk_on_any(hosts: tuple[str, ...]) -> None:
    """Wherever it stands among those of the port's name, and whatever name the client gives."""
    with opened(*hosts) as port:
        for address in port.addresses:
            port.address = address
            for host in ("localhost", "127.0.0.1", "node-7.example"):
                status, body, _ = port.get("/0/obj", Host=host)
                assert status == 404 and CHUNK not in body
            assert port.get("/healthz", Host="node-7.example")[0] == 200


def test_chunks_are_shown_on_each_of_several_loopback_addresses() -> None:
    """And on none of them to who comes by a foreign name."""
    with opened(*LOOPBACK) as port:
        for address in port.addresses:
            port.address = address
            assert port.get("/0/obj", Host="localhost")[:2] == (200, CHUNK)
            assert port.get("/0/obj", Host="evil.example")[0] == 403


def test_ipv6() -> None:
    port = Port("::1")
    assert port.get("/0/obj")[0] == 200
    assert port.end() == 0


def test_it_ends_while_a_connection_is_open() -> None:
    port = Port("127.0.0.1")
    connection = http.client.HTTPConnection(*port.address, timeout=20)
    connection.request("GET", "/healthz")
    assert connection.getresponse().read() == b"ok\n"
    assert port.end() == 0
    connection.close()
