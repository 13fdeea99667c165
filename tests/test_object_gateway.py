"""The object commands with `--gateway`: beside a real one, and against every way in which one can refuse or break."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trustme
from blake3 import blake3
from gateway_rig import Gateway, NodeGateway, memory_gateway, node_gateway
from test_object_commands import SIZES, Commands, bytes_of, write_files

from ingest import limits
from ingest.catalog.catalog_changes import Catalog
from ingest.catalog.catalog_socket import catalog_path
from ingest.catalog.version import VersionState
from ingest.commands import cli
from ingest.commands.gateway_backend import _DELETES, _PUTS, GatewayBackend
from ingest.commands.gateway_client import _ERRORS, GatewayAddress, UploadBody
from ingest.errors import (
    ConnectionLostError,
    KeyFileError,
    NoSpaceError,
    UploadLostError,
    UsageError,
)
from ingest.gateway.http.access import Access, Hosts
from ingest.gateway.http.token_file import parse_tokens, read_token
from ingest.gateway.process.api_table import shared_routes

READ, WRITE = "reader-0123456789", "writer-0123456789"
HOSTS = Hosts.of([("127.0.0.1", 0)])


def url_of(gateway: Gateway, scheme: str = "http") -> str:
    return f"{scheme}://{gateway.address[0]}:{gateway.address[1]}"


# --- the command line


class Here:
    """The command line in this process. ``complaint``: what the last one wrote to stderr."""

    def __init__(self, capfd: pytest.CaptureFixture[str], url: str) -> None:
        self._capfd = capfd
        self.url = url
        self.complaint = ""

    def __call__(self, *arguments: str | Path, code: int = 0) -> str:
        """What it wrote to stdout."""
        self._capfd.readouterr()
        name, *rest = map(str, arguments)
        found = cli.run(cli.cli, "ingest", [name, "--gateway", self.url, *rest])
        out, self.complaint = self._capfd.readouterr()
        assert found == code, self.complaint
        assert code in (0, 130) or self.complaint.startswith("ingest: ")
        return out

    def unwell(self, *arguments: str) -> str:
        """Likewise, of one that says by its results and its exit code that not all is well."""
        self._capfd.readouterr()
        assert cli.run(cli.cli, "ingest", [arguments[0], "--gateway", self.url, *arguments[1:]]) == 1
        out, self.complaint = self._capfd.readouterr()
        assert not self.complaint
        return out


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("INGEST_TOKEN", "INGEST_DATA_DIR", "INGEST_GATEWAY", "INGEST_TLS_CA"):
        monkeypatch.delenv(name, raising=False)


# --- beside a node


class Node:
    """Of `Commands`, with the ports of a server that `ingest serve` started."""

    def __init__(self, running: NodeGateway) -> None:
        self.data_dir = running.data_dir
        said = json.loads((running.data_dir / ".ingest" / "lock").read_bytes())
        self.put_address, self.get_address = (
            (said[name].rsplit(":", 1)[0], int(said[name].rsplit(":", 1)[1])) for name in ("put", "get")
        )


class GatewayCommands(Commands):
    """The command line with the gateway alone: nothing leads to its server."""

    def __init__(self, running: NodeGateway) -> None:
        super().__init__(Node(running))
        self.gateway = running.gateway
        self.beside = Commands(self.node)

    def environment(self) -> dict[str, str]:
        clean = {name: text for name, text in os.environ.items() if not name.startswith("INGEST_")}
        return clean | {
            "PYTHONPATH": super().environment()["PYTHONPATH"],
            "INGEST_GATEWAY": url_of(self.gateway),
        }


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayCommands]:
    data = tmp_path_factory.mktemp("commands") / "data"
    with node_gateway(data, "--workers=1", "--sync=os", "--collect-interval=3600") as running:
        yield GatewayCommands(running)


@pytest.fixture
def there(capfd: pytest.CaptureFixture[str], commands: GatewayCommands, clean_environment: None) -> Here:
    """In this process, with the gateway of the node."""
    return Here(capfd, url_of(commands.gateway))


def test_round_trips(commands, tmp_path):
    files = write_files(tmp_path, SIZES)
    put = commands.json("put", *files)["objects"]
    for one, size in zip(put, SIZES, strict=True):
        digest = blake3(bytes_of(size, size)).hexdigest()
        assert (one["name"], one["size"], one["digest"]) == (f"size {size}", size, digest)
    for one in put[:1] + put[-2:]:
        got = tmp_path / "got"
        found = commands.json("get", one["name"], "-o", got)
        assert found == one | {"file": str(got)}
        assert got.read_bytes() == bytes_of(one["size"], one["size"])
    assert commands.run("get", put[-1]["id"]) == bytes_of(SIZES[-1], SIZES[-1])  # by ObjectID, to stdout
    assert not [entry for entry in os.listdir(tmp_path) if entry.startswith(".ingest-")]


def test_both_places_say_the_same(commands, tmp_path):
    (file,) = write_files(tmp_path, [2_000_000])
    commands.run("put", file, "--name", "same")
    here, there = (where.json("stat", "same") for where in (commands.beside, commands))
    for step, other in zip(here.pop("history"), there.pop("history"), strict=True):
        assert abs(step.pop("time") - other.pop("time")) < 0.001
        assert step == other
    assert abs(here.pop("created") - there.pop("created")) < 0.001
    assert here == there and here["extents"]
    listed = [where.json("ls", "same") for where in (commands.beside, commands)]
    assert abs(listed[0].pop("created") - listed[1].pop("created")) < 0.001
    assert listed[0] == listed[1]


@pytest.mark.parametrize("size", [0, 100, 3_000_000])
def test_stdin_from_a_pipe(commands, size):
    commands.run("put", "-", "--name", f"from stdin {size}", stdin=bytes_of(size))
    assert commands.run("get", f"from stdin {size}", "-o", "-") == bytes_of(size)


@pytest.mark.parametrize(
    "name", ["..", ".", "a/../b", "/a//b/", "%2e%2E?#&=+ ", "line\nescape\x1b[2J 'ü' 🦦", "x" * 1024]
)
def test_names_of_any_characters(commands, there, tmp_path, name):
    file, got = tmp_path / "file", tmp_path / "got"
    file.write_bytes(name.encode())
    there("put", file, "--name", name)
    assert json.loads(there("ls", name, "--json"))["name"] == name
    assert commands.beside.run("get", name) == file.read_bytes()
    there("get", name, "-o", got)
    assert got.read_bytes() == file.read_bytes()
    assert "\x1b" not in there("rm", name)
    there("stat", name, code=1)
    assert "\x1b" not in there.complaint and "there is no object" in there.complaint


def test_each_namespace_has_the_rules_of_its_api(there, tmp_path):
    one, other, got = tmp_path / "one", tmp_path / "other", tmp_path / "got"
    one.write_bytes(b"one")
    other.write_bytes(b"other")

    def put(namespace: str, file: Path, code: int = 0) -> None:
        there("put", file, "--name", "abc", "--namespace", namespace, code=code)

    def get(namespace: str) -> bytes:
        there("get", "abc", "--namespace", namespace, "-o", got)
        return got.read_bytes()

    for namespace in ("objects", "store"):  # replaced
        put(namespace, one)
        put(namespace, other)
        assert get(namespace) == b"other"
        there("rm", "abc", "--namespace", namespace)
        there("get", "abc", "--namespace", namespace, "-o", got, code=1)
    put("files", one)  # once
    put("files", one, code=1)
    assert "there is an object 'abc' already" in there.complaint
    put("blob", one)  # the same bytes again
    put("blob", one)
    put("blob", other, code=1)
    assert "already, with other bytes" in there.complaint
    for namespace in ("files", "blob"):
        assert get(namespace) == b"one"
        there("rm", "abc", "--namespace", namespace, code=2)
        assert "never deleted" in there.complaint
    there("put", one, "--name", "A-Z", "--namespace", "blob", code=2)
    assert there.complaint == "ingest: alphanumeric IDs only\n"
    put("odd", one, code=2)
    assert "no API of a gateway is for the namespace 'odd'" in there.complaint


def test_content_under_its_sha1(commands, tmp_path):
    (file,) = write_files(tmp_path, [1_000_000])
    name = hashlib.sha1(file.read_bytes()).hexdigest()
    (stored,) = commands.json("put", file, "--namespace", "sos")["objects"]
    assert stored["name"] == name
    commands.run("put", "-", "--namespace", "sos", stdin=file.read_bytes())
    assert commands.run("get", name, "--namespace", "sos") == file.read_bytes()
    commands.run("put", file, "--namespace", "sos", "--name", "mine", code=2)
    assert "the bytes say the name" in commands.complaint


_UNDER_NAMES = ("/objects/", "/store/", "/files/", "/blob/", "/upload")


def test_the_tables_are_those_of_the_gateway():
    """Every route that stores or deletes under a name, and none that is not there."""
    routes = {
        (method, route.path.removesuffix("*"))
        for route in shared_routes()
        for method in route.handlers
        if method in ("PUT", "POST", "DELETE") and route.path.startswith(_UNDER_NAMES)
    }
    known = {(method, path) for methods, path in _PUTS.values() for method in methods}
    assert routes == known | {("DELETE", path) for path in _DELETES.values()} | {("POST", "/store/")}


def test_a_listing_of_many_pages(commands):
    names = [f"many/{i}" for i in range(limits.LIST_PAGE_MAX + 3)] + ["many/é", "many/ &=+%", "other"]
    with Catalog(catalog_path(commands.data_dir)) as catalog, catalog.change():
        owner = catalog.enter("test")
        for name in names:
            lease = catalog.lease(owner, 2)
            catalog.store(owner, "list", name, 1, bytes(32), [lease])
    try:
        listed = commands.run("ls", "many/", "--namespace", "list", "--json").splitlines()
        assert [json.loads(line)["name"] for line in listed] == sorted(names[:-1], key=str.encode)
        assert commands.run("ls", "nothing", "--namespace", "list") == b""
        assert commands.run("ls", "--namespace", "no such") == b""
    finally:  # nothing is stored of them
        with Catalog(catalog_path(commands.data_dir)) as catalog, catalog.change():
            for name in names:
                catalog.delete("list", name)
    commands.run("gc")


def test_the_collector_gives_back_what_was_removed(commands, tmp_path):
    files = write_files(tmp_path, [3000, 2_000_000])
    commands.run("put", *files)
    assert commands.json("rm", "missing", *[file.name for file in files], code=1)["missing"] == ["missing"]
    assert commands.saved() != commands.live()
    dry = commands.json("gc", "--dry-run")
    assert dry["dry_run"] and dry["tickets"] >= 2 + 2_000_000 // limits.DATA_SIZE
    assert commands.saved() != commands.live()
    assert commands.json("gc")["tickets"] == dry["tickets"]
    assert commands.saved() == commands.live()
    assert commands.json("gc")["tickets"] == 0


def test_two_collectors(commands):
    """The second one is told to come again, and gets its turn."""
    with Catalog(catalog_path(commands.data_dir)) as catalog:
        with catalog.change():
            owner = catalog.enter_alone("collector")
        answer = commands.gateway.request("POST", "/gc", b"")
        assert (answer.status, answer.code) == (503, "busy")
        process = commands.start("gc", stdout=subprocess.DEVNULL)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(3 * limits.GC_RETRY_S)
        with catalog.change():
            catalog.leave(owner)
    assert process.wait(60) == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_put(commands, number, code):
    name = f"interrupted by {number}"
    process = commands.start("put", "-", "--name", name, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    process.stdin.write(bytes_of(4_000_000))
    process.stdin.flush()
    wait_for(lambda: states(commands, name) == {VersionState.PENDING}, process)
    wait_for(lambda: commands.saved() - commands.live(), process)
    process.send_signal(number)
    assert process.wait(60) == code
    process.stdin.close()
    wait_for(lambda: states(commands, name) == {VersionState.FAILED})
    commands.run("stat", name, code=1)
    commands.run("gc")
    assert commands.saved() == commands.live()


def states(commands: Commands, name: str) -> set[VersionState]:
    with commands.reader() as reader:
        return {state for state in VersionState for version in reader.versions(state) if version.name == name}


def wait_for(true: Callable[[], Any], process: subprocess.Popen[bytes] | None = None) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline and (process is None or process.poll() is None)
        time.sleep(0.02)


def test_progress_on_a_terminal(commands, tmp_path):
    (file,) = write_files(tmp_path, [3_000_000])
    commands.run("put", file)
    for arguments in (["put", file], ["get", file.name, "-o", tmp_path / "got"]):
        terminal, other = os.openpty()
        process = commands.start(*arguments, stdout=subprocess.DEVNULL, stderr=other)
        os.close(other)
        shown = bytearray()
        try:
            while part := os.read(terminal, 65536):
                shown += part
        except OSError:  # EIO: all who had the other end have closed it
            pass
        os.close(terminal)
        assert process.wait(60) == 0
        assert file.name.encode() in shown and b"MB" in shown


# --- within this process, against a store in memory


@pytest.fixture(scope="module")
def memory() -> Iterator[Gateway]:
    with memory_gateway() as running:
        yield running
    assert running.store.open_downloads == 0


@pytest.fixture
def here(capfd: pytest.CaptureFixture[str], memory: Gateway, clean_environment: None) -> Here:
    return Here(capfd, url_of(memory))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(bytes_of(3_000_000))
    return path


def test_a_full_disk(here, memory, file):
    memory.store.full, memory.store.error = True, NoSpaceError("the disk of the node is full")
    try:
        here("put", file, code=1)
    finally:
        memory.store.full = False
    assert "the disk of the node is full" in here.complaint
    here("stat", "file", code=1)


def test_a_download_that_ends_early(here, memory, file, tmp_path):
    here("put", file)
    target = tmp_path / "target"
    target.write_bytes(b"as it was")
    memory.store.broken_from, memory.store.error = 1_000_000, UploadLostError("for the test")
    try:
        here("get", "file", "-o", target, code=1)
    finally:
        memory.store.broken_from = None
    assert "the answer ended early" in here.complaint
    assert target.read_bytes() == b"as it was"
    assert sorted(os.listdir(tmp_path)) == ["file", "target"]


def test_a_name_that_is_replaced_while_it_is_looked_up(memory):
    class Hasty(GatewayBackend):
        replaced = False

        async def describe(self, namespace: str, name: str) -> Any:
            found = await super().describe(namespace, name)
            if not self.replaced:
                self.replaced = True
                await asyncio.to_thread(memory.request, "PUT", "/objects/hasty", b"second")
            return found

    async def read() -> bytes:
        async with Hasty(GatewayAddress(url_of(memory))) as backend:
            download = await backend.open("objects", "hasty")
            try:
                assert download.version.size == len(b"second")
                return b"".join([piece async for piece in download.read()])
            finally:
                await download.close()

    assert memory.request("PUT", "/objects/hasty", b"first").status == 200
    assert asyncio.run(read()) == b"second"


def test_what_is_not_there(here, file, tmp_path):
    here("get", "missing", "-o", tmp_path / "target", code=1)
    assert here.complaint == "ingest: there is no object 'missing'\n"
    here("get", "ZZZZZZZZ", "-o", tmp_path / "target", code=1)
    here("stat", "missing", code=1)
    here("rm", "missing", code=1)
    here("put", tmp_path / "nowhere", code=2)
    here("put", file, "--name", "n" * 1025, code=2)
    assert "1 to 1024" in here.complaint
    for command in (["ls"], ["stat"], ["rm"], ["put", file, "--name"]):
        here(*command, "half\udc80", code=2)
        assert "is not UTF-8" in here.complaint
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("size", [2_999_999, 3_000_001, 0])
@pytest.mark.parametrize("namespace", ["objects", "blob"])
def test_a_file_that_changes_its_size(memory, size, namespace):
    """Nothing is stored of it, whether it is cut or grows."""

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, 3_000_000, 1_000_000):
            yield bytes_of(3_000_000)[start : start + 1_000_000]

    async def put() -> None:
        async with GatewayBackend(GatewayAddress(url_of(memory))) as backend:
            await backend.put(namespace, "changing", pieces(), size=size)

    with pytest.raises(UploadLostError, match="it grew" if size < 3_000_000 else "it was cut"):
        asyncio.run(put())
    assert memory.request("GET", f"/{namespace}/changing").status == 404


def test_a_body_is_sent_once():
    async def send_twice() -> None:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"bytes"

        async with asyncio.timeout(60) as patience:
            body = UploadBody(pieces(), None, patience)
            assert [piece async for piece in body] == [b"bytes"]
            aiter(body)

    with pytest.raises(ConnectionLostError):
        asyncio.run(send_twice())


# --- tokens and TLS


@pytest.fixture
def guarded(capfd: pytest.CaptureFixture[str], here: Here) -> Iterator[Here]:
    tokens = parse_tokens(f"read-only {READ}\nread-write {WRITE}\n".encode(), "tokens")
    with memory_gateway(Access(HOSTS, tokens)) as running:
        yield Here(capfd, url_of(running))


def test_tokens(guarded, file, tmp_path, monkeypatch):
    guarded("put", file, code=78)
    assert "a token is needed" in guarded.complaint and "INGEST_TOKEN" in guarded.complaint
    monkeypatch.setenv("INGEST_TOKEN", "guess-0123456789")
    guarded("put", file, code=78)
    monkeypatch.setenv("INGEST_TOKEN", READ)
    guarded("put", file, code=78)
    assert "reading only" in guarded.complaint
    guarded("gc", code=78)
    token = tmp_path / "token"
    token.write_text(f"# of the backup\n{WRITE}\n")
    token.chmod(0o600)
    guarded("put", file, "--token-file", token)  # the flag goes before the variable
    guarded("get", "file", "-o", tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == file.read_bytes()
    assert "file" in guarded("ls")
    monkeypatch.setenv("INGEST_TOKEN", "two words")
    guarded("ls", code=78)
    assert "two words" not in guarded.complaint
    token.chmod(0o644)
    guarded("ls", "--token-file", token, code=78)
    assert "chmod 600" in guarded.complaint


def test_token_files(tmp_path):
    path = tmp_path / "token"

    def content(text: str) -> Path:
        path.write_text(text)
        path.chmod(0o600)
        return path

    assert read_token(content(WRITE)) == WRITE
    assert read_token(content(f"\n# mine\nread-write {WRITE}\n")) == WRITE
    for text in ("", "# none\n", f"{READ}\n{WRITE}\n", "a b c", "ümlaut", f"admin {WRITE}"):
        with pytest.raises(KeyFileError) as complaint:
            read_token(content(text))
        assert str(path) in str(complaint.value) and WRITE not in str(complaint.value)
    with pytest.raises(KeyFileError, match="No such file"):
        read_token(tmp_path / "absent")


def test_no_token_is_shown(monkeypatch):
    assert WRITE not in repr(GatewayAddress("http://127.0.0.1:1", WRITE))
    monkeypatch.setenv("INGEST_TOKEN", WRITE)
    assert cli.run(cli.cli, "ingest", ["put", "--help"]) == 0


def test_tls(capfd, here, file, tmp_path):
    ca = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    trusted = tmp_path / "ca.pem"
    trusted.write_bytes(ca.cert_pem.bytes())
    stranger = tmp_path / "stranger.pem"
    stranger.write_bytes(trustme.CA().cert_pem.bytes())
    with memory_gateway(tls=context) as running:
        secure = Here(capfd, url_of(running, "https"))
        secure("put", file, "--tls-ca", trusted)
        secure("get", "file", "-o", tmp_path / "got", "--tls-ca", trusted)
        assert (tmp_path / "got").read_bytes() == file.read_bytes()
        for flags in ([], ["--tls-ca", stranger]):
            secure("ls", *flags, code=1)
            assert "TLS failed" in secure.complaint and "--tls-ca" in secure.complaint
        secure("ls", "--tls-ca", tmp_path / "absent", code=78)
        plain = Here(capfd, url_of(running))
        plain("ls", code=1)
        plain("ls", "--tls-ca", trusted, code=2)
        assert "https://" in plain.complaint
    here.url = here.url.replace("http:", "https:")
    here("ls", code=1)
    assert "TLS failed" in here.complaint


# --- what is no gateway, or breaks


GO_ON = b"HTTP/1.1 100 Continue\r\n\r\n"


class Scripted:
    """Answers each request with the next of ``answers``, whatever it is; b"" closes the connection, None says and reads
    nothing any more. GO_ON is followed by the next one, which is sent when the body is there, if it is an answer.

    ``requests``: the heads that came.
    """

    def __init__(self, *answers: bytes | None) -> None:
        self.answers = list(answers)
        self.requests: list[bytes] = []
        self.end = threading.Event()
        self.pause = 0.0  # seconds before each answer
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Scripted:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end.set()
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(60)
        assert not self.thread.is_alive()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:  # closed
                return
            with sock, sock.makefile("rb") as file, suppress(ConnectionResetError):
                while self._answer(sock, file):
                    pass

    def _answer(self, sock: socket.socket, file: Any) -> bool:
        """Whether the connection goes on."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            line = file.readline()
            if not line:
                return False
            head += line
        self.requests.append(head)
        answer = self.answers.pop(0) if self.answers else b""
        if answer == GO_ON:
            sock.sendall(answer)
            answer = self.answers.pop(0)
            if answer:
                size = int(re.search(rb"Content-Length: (\d+)", head)[1])
                assert len(file.read(size)) == size
        if answer is None:
            self.end.wait(60)
        if not answer:
            return False
        self.end.wait(self.pause)
        sock.sendall(answer)
        return b"onnection: close" not in answer


def said(status: str, body: bytes, kind: str = "application/json", more: str = "") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{more}\r\n"
    return head.encode() + body


def complaint(status: str, code: str, message: str = "the gateway's words") -> bytes:
    return said(status, json.dumps({"code": code, "message": message, "request_id": "r-1"}).encode())


def described(content: bytes, **changes: Any) -> bytes:
    whole = {
        "name": "x", "namespace": "objects", "size": len(content), "etag": blake3(content).hexdigest(), "id": "00000000",
        "version": 7, "created": "2026-11-21T12:00:00.000Z", "headers": {}, "extents": [["00000000", 2]], "history": [],
    }  # fmt: skip
    return said("200 OK", json.dumps(whole | changes).encode())


@contextmanager
def scripted(here: Here, *answers: bytes | None) -> Iterator[Scripted]:
    with Scripted(*answers) as server:
        yield_here, here.url = here.url, server.url
        try:
            yield server
        finally:
            here.url = yield_here


@pytest.mark.parametrize(
    ("answer", "code", "match"),
    [
        (complaint("400 Bad Request", "bad_name"), 2, "the gateway's words"),
        (complaint("401 Unauthorized", "unauthorized"), 78, "the gateway's words; --token-file or INGEST_TOKEN"),
        (complaint("403 Forbidden", "foreign_host"), 78, "the gateway's words"),
        (complaint("404 Not Found", "not_found"), 1, "the gateway's words"),
        (complaint("404 Not Found", "no_such_route"), 1, "--gateway is the port that has all APIs"),
        (complaint("405 Method Not Allowed", "method_not_allowed"), 2, "the gateway's words"),
        (complaint("408 Request Timeout", "body_stalled"), 1, "the gateway's words"),
        (complaint("409 Conflict", "name_taken"), 1, "the gateway's words"),
        (complaint("412 Precondition Failed", "precondition_failed"), 1, "the gateway's words"),
        (complaint("431 Request Header Fields Too Large", "headers_too_large"), 2, "the gateway's words"),
        (complaint("418 I'm a teapot", "unheard_of"), 1, "the gateway's words"),
        (complaint("500 Internal Server Error", "internal"), 1, "the gateway's words (request r-1)"),
        (complaint("502 Bad Gateway", "engine_failed"), 1, "the gateway's words (request r-1)"),
        (complaint("503 Service Unavailable", "busy"), 75, "the gateway's words (request r-1)"),
        (complaint("507 Insufficient Storage", "no_space"), 1, "the gateway's words (request r-1)"),
        (complaint("404 Not Found", "not_found", "\x1b[2J"), 1, r"\x1b[2J"),
        (said("200 OK", b"<html>Welcome</html>", "text/html"), 1, "no gateway of this version: it answers text/html"),
        (said("502 Bad Gateway", b"<html>nginx</html>", "text/html"), 1, "502 Bad Gateway, text/html"),
        (said("200 OK", b"[]"), 1, "no gateway of this version"),
        (said("200 OK", b'{"name": "x"}'), 1, "no gateway of this version"),
        (said("302 Found", b"", more="Location: http://127.0.0.1:1/\r\n"), 1, "sends us on to http://127.0.0.1:1/"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", 1, "no HTTP"),
        (b"", 1, "the connection ended"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\nConnection: close\r\n\r\n{", 1, "the answer ended early"),
    ],
)  # fmt: skip
def test_what_a_gateway_may_answer(here, file, tmp_path, answer, code, match):
    """The same of a request that has a body and of one that has none, and nothing is stored here."""
    for arguments in (["stat", "x"], ["put", file]):
        with scripted(here, answer, answer, answer):  # aiohttp may look twice when a connection ends
            assert here(*arguments, code=code) == ""
            assert match in here.complaint and "\x1b" not in here.complaint
    assert os.listdir(tmp_path) == ["file"]


def test_each_status_of_the_gateway_is_an_error_of_ours():
    """Whoever runs the commands from a program goes by the exit code: what the request can not have, what may come again,
    what is nobody's fault here."""
    assert {status: kind.exit_code for status, kind in _ERRORS.items()} == {
        400: 2, 401: 78, 403: 78, 404: 1, 405: 2, 408: 1, 409: 1, 412: 1, 431: 2, 503: 75, 507: 1,
    }  # fmt: skip


def collected(**changes: Any) -> bytes:
    refused = [
        {"entry": 3, "first": "0000000A", "count": 2, "status": "ERROR"},
        {"entry": 5, "first": "0000000Z", "count": 1, "status": "BUSY"},
    ]
    whole = {"tickets": 7, "entries": 4, "processes": 1, "forgotten": 9, "refused": refused}
    return said("200 OK", json.dumps(whole | changes).encode())


def test_what_the_gateway_could_not_delete_is_told(here):
    """All of it, and by the exit code: it goes on to take room."""
    with scripted(here, collected(), collected(), collected(refused=[])) as server:
        assert json.loads(here.unwell("gc", "--json")) == {"dry_run": False} | json.loads(
            collected().partition(b"\r\n\r\n")[2]
        )
        assert here.unwell("gc").splitlines() == [
            "deleted 7 tickets of 4 extents; 1 processes had died",
            "not deleted: 0000000A+2, ERROR",
            "not deleted: 0000000Z+1, BUSY",
        ]
        assert here("gc", "--dry-run").splitlines() == ["would delete 7 tickets of 4 extents"]
    assert [head.split()[0] for head in server.requests] == [b"POST", b"POST", b"GET"]


@pytest.mark.parametrize(
    "changes",
    [{"status": "NONE"}, {"status": "busy"}, {"first": "?"}, {"first": ""}, {"entry": "x"}, {"count": None}],
    ids=str,
)
def test_a_collection_that_is_none(here, changes):
    one = {"entry": 3, "first": "0000000A", "count": 2, "status": "ERROR"}
    with scripted(here, collected(refused=[one, one | changes])):
        here("gc", code=1)
    assert "says wrongly" in here.complaint or "no gateway of this version" in here.complaint


def test_a_collection_takes_its_time(here, monkeypatch):
    """As long as it takes to delete what there is, while other answers have to come sooner."""
    monkeypatch.setattr(limits, "GATEWAY_SILENCE_S", 0.05)
    with scripted(here, None), monkeypatch.context() as hasty:
        hasty.setattr(limits, "GATEWAY_COLLECT_SILENCE_S", 0.05)
        here("gc", code=1)
        assert "silent for too long" in here.complaint
    with scripted(here, collected(refused=[])) as server:
        server.pause = 0.2
        here("gc")


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "identity"])
def test_bytes_come_as_they_were_put(here, tmp_path, encoding):
    """Who stored something compressed gets that back: the digest is of those bytes."""
    content = gzip.compress(b"bytes" * 100)
    for more in (f"Content-Encoding: {encoding}\r\n", f"X-Kept: {'k' * limits.KEPT_HEADERS_SIZE_MAX}\r\n"):
        answer = said("200 OK", content, "text/plain", more)
        with scripted(here, described(content), answer) as server:
            here("get", "x", "-o", tmp_path / "target")
        assert (tmp_path / "target").read_bytes() == content
        for head in server.requests:
            accepted = re.search(rb"(?i)\r\naccept-encoding: *([^\r]*)", head)
            assert accepted and accepted[1] == b"identity"  # nobody is asked to compress it on the way


@pytest.mark.parametrize("content", [b"bytes", b""])
def test_the_head_of_an_upload(here, tmp_path, content):
    """What is known of the bytes, and nothing that is not: a type that nobody gave would be kept with the object."""
    file = tmp_path / "x"
    file.write_bytes(content)
    answers = [GO_ON] if content else []
    with scripted(here, *answers, described(content)) as server:
        here("put", file)
    lines = dict(line.lower().split(b": ", 1) for line in server.requests[0].split(b"\r\n")[1:] if line)
    assert b"content-type" not in lines and b"cookie" not in lines
    assert lines[b"expect"] == b"100-continue"
    assert lines[b"user-agent"].startswith(b"ingest/")
    if content:
        assert lines[b"content-length"] == b"5"
    else:
        assert lines[b"transfer-encoding"] == b"chunked"


def test_an_answer_without_an_end(here, monkeypatch):
    """It is not kept in memory for as long as somebody sends it."""
    monkeypatch.setattr(limits, "GATEWAY_ANSWER_MAX", 1000)
    for size, code in ((1000, 0), (1001, 1), (3_000_000, 1)):
        page = json.dumps({"objects": [], "next": None}).encode().ljust(size)
        for answer, right in ((said("200 OK", page), code), (said("404 Not Found", page), 1)):
            with scripted(here, answer):
                here("ls", code=right)
            assert ("an answer of more than 1,000 bytes" in here.complaint) == (size > 1000)


def test_a_token_goes_nowhere_else(here, monkeypatch, tmp_path):
    monkeypatch.setenv("INGEST_TOKEN", WRITE)
    with Scripted() as other:
        redirect = said("307 Temporary Redirect", b"", more=f"Location: {other.url}/x\r\n")
        with scripted(here, redirect) as server:
            here("get", "x", "-o", tmp_path / "target", code=1)
        assert f"Authorization: Bearer {WRITE}".encode() in server.requests[0]
        assert other.requests == []


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"other", "were read, and the catalog has 5"),
        (b"byte", "were read, and the catalog has 5"),
        (b"bytes and more", "more than its 5 bytes"),
    ],
)
def test_a_download_that_is_not_what_the_catalog_says(here, tmp_path, content, match):
    with scripted(here, described(b"bytes"), said("200 OK", content, "text/plain")):
        here("get", "x", "-o", tmp_path / "target", code=1)
    assert match in here.complaint
    assert os.listdir(tmp_path) == []


SPOILT = {
    "size": b"bytes and more",
    "first byte": b"Bytes",
    "last byte": b"byteS",
    "all": b"",
}


@pytest.mark.parametrize("told", ["at once", "when it is asked"])
@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("content", SPOILT.values(), ids=SPOILT)
def test_an_upload_that_is_not_what_was_read(here, tmp_path, told, which, content):
    """Of several files any one, whether the API says what it stored or the catalog has to be asked; exit code 0 says that
    all of it is stored."""
    files = [tmp_path / str(number) for number in range(3)]
    answers: list[bytes | None] = []
    for number, file in enumerate(files):
        file.write_bytes(b"bytes")
        answers += [GO_ON, described(content if number == which else b"bytes")]
        if told == "when it is asked":
            answers[-1:] = [said("200 OK", b"{}"), answers[-1]]
    with scripted(here, *answers):
        assert here("put", *files, code=1) == ""
    assert f"{files[which]}: 5 bytes were read, and the catalog has {len(content)} bytes" in here.complaint


@pytest.mark.parametrize(
    "changes", [{"etag": "no digest"}, {"etag": "00"}, {"id": "00000001"}, {"extents": []}, {"extents": [["?", 1]]}]
)  # fmt: skip
def test_a_description_that_is_none(here, tmp_path, changes):
    with scripted(here, described(b"bytes", **changes)):
        here("get", "x", "-o", tmp_path / "target", code=1)
    assert "describes an object wrongly" in here.complaint


def test_a_listing_without_an_end(here):
    entry = {"name": "x", "size": 1, "etag": "00" * 32, "created": "2026-11-21T12:00:00.000Z"}
    page = said("200 OK", json.dumps({"objects": [entry], "next": "x"}).encode())
    with scripted(here, page, page, page):
        here("ls", code=1)
    assert "lists names again" in here.complaint


def test_an_upload_of_which_the_gateway_says_something_else(here, file):
    """All bytes went there; what it says of them is not what they are."""
    wrong = json.dumps({"name": "file", "size": 3_000_000, "etag": "00" * 32, "id": "00000000", "version": 1})
    with scripted(here, GO_ON, said("200 OK", wrong.encode())):
        here("put", file, code=1)
    assert "with another digest" in here.complaint


def test_a_gateway_that_says_nothing(here, file, monkeypatch):
    monkeypatch.setattr(limits, "GATEWAY_SILENCE_S", 0.2)
    for arguments in (["stat", "x"], ["put", file]):
        with scripted(here, None):
            here(*arguments, code=1)
        assert "silent for too long" in here.complaint


def test_a_gateway_that_stops_taking_bytes(here, file, monkeypatch):
    """It lets the upload go on, and takes nothing of it any more."""
    monkeypatch.setattr(limits, "GATEWAY_SILENCE_S", 0.5)
    file.write_bytes(bytes(20_000_000))  # more than what sockets hold
    with scripted(here, GO_ON, None):
        here("put", file, code=1)
    assert "silent for too long" in here.complaint


def test_a_gateway_that_dies_during_an_upload(here, file):
    file.write_bytes(bytes(20_000_000))
    with scripted(here, GO_ON, b"") as server:
        here("put", file, code=1)
    assert "the connection ended" in here.complaint
    assert len(server.requests) == 1  # nothing is sent once more


def test_a_source_that_is_silent_for_longer_than_a_gateway_may_be(memory, monkeypatch):
    """Whoever writes into our stdin has all the time that he wants."""
    monkeypatch.setattr(limits, "GATEWAY_SILENCE_S", 2.0)  # for which a busy machine is not silent

    async def put() -> None:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"one, "
            await asyncio.sleep(2.5)
            yield b"two"

        async with GatewayBackend(GatewayAddress(url_of(memory))) as backend:
            await backend.put("objects", "slow", pieces())

    asyncio.run(put())
    assert memory.request("GET", "/objects/slow").body == b"one, two"


def test_an_interrupted_get(here, tmp_path):
    """Its temporary file goes with it."""
    content = bytes_of(1_000_000)
    half = said("200 OK", content)[:-500_000]
    out = tmp_path / "out"
    out.mkdir()
    with Scripted(described(content), half) as server:
        command = [
            sys.executable,
            "-m",
            "ingest",
            "get",
            "x",
            "-o",
            str(out / "target"),
            "--gateway",
            server.url,
        ]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        wait_for(lambda: [entry for entry in out.iterdir() if entry.stat().st_size], process)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert not os.listdir(out)


def test_nobody_listens(here):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        here.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    here("ls", code=1)
    assert "no gateway can be reached" in here.complaint


BEGIN = (  # of what somebody meant as a user and a password, whichever characters those have
    *(
        "http://me:",
        "http://me:x/",
        "http://me:12/",
        "http://me:/",
        "http://me:?",
        "http://me:#",
        "http://me:%",
        "http://me:a@",
    ),
    *("me:", "http:me:", "http:/me:", "ftp://me:", "//me:", "http://[::1"),
)


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("127.0.0.1:8080", "is no gateway"),
        ("ftp://127.0.0.1", "is no gateway"),
        ("http://", "is no gateway"),
        ("http://127.0.0.1:99999", "is no gateway"),
        ("http://[::1", "is no gateway"),
        ("http://me:secret@127.0.0.1:8080", "no password"),
        ("http://127.0.0.1:8080/?x=secret", "before a ?"),
        ("http://127.0.0.1:8080#secret", "before a ?"),
        ("http://127.0.0.1:0", "is no gateway"),
        ("http://secret@127.0.0.1", "no password"),
        ("https://:secret@127.0.0.1", "no password"),
        *(
            (f"{begin}secret@127.0.0.1{end}", "no password")
            for begin in BEGIN
            for end in ("", ":8080", "/x", "[", "@x")
        ),
        ("http://127.0.0.1?token=a@secret", "no password"),
        *((f"http://me:secret{at}127.0.0.1", "no password") for at in ("\uff20", "\ufe6b")),
        ("http://127.0.0.1:99999?token=secret", "is no gateway"),
    ],
)
def test_what_is_no_url(url, match):
    with pytest.raises(UsageError, match=match.replace("?", r"\?")) as found:
        GatewayAddress(url)
    assert "secret" not in str(found.value)


def test_a_gateway_below_a_path(memory, here):
    """Behind a proxy that gives it a part of its names."""
    place = GatewayBackend(GatewayAddress("http://127.0.0.1:1/ingest/"))
    assert place._client._base == "http://127.0.0.1:1/ingest"
    here.url += "/"
    here("ls")


def test_flags_of_both_places(here, file, tmp_path, monkeypatch):
    here("put", file, "--data-dir", tmp_path, code=2)
    assert "--data-dir and --gateway" in here.complaint
    here("put", file, "--connect", "127.0.0.1:1", code=2)
    monkeypatch.setenv("INGEST_DATA_DIR", str(tmp_path))
    here("put", file)  # a flag goes before a variable
    assert cli.run(cli.cli, "ingest", ["ls", "--token-file", str(file)]) == 2
    monkeypatch.setenv("INGEST_GATEWAY", here.url)
    assert cli.run(cli.cli, "ingest", ["stat", "file"]) == 0
    assert cli.run(cli.cli, "ingest", ["stat", "file", "--data-dir", str(tmp_path)]) == 78
    assert cli.run(cli.cli, "ingest", ["stat", "file", "--data-dir", str(tmp_path), "--tls-ca", "x"]) == 2


# --- the routes of the commands


def test_a_version_by_its_id(memory):
    stored = memory.request("PUT", "/objects/by-id", b"0123456789", headers={"Content-Type": "text/x"}).json
    path = f"/id/{stored['id']}"
    answer = memory.request("GET", path)
    assert (answer.status, answer.body, answer.headers["content-type"]) == (200, b"0123456789", "text/x")
    assert answer.headers["etag"] == f'"{stored["etag"]}"'
    assert memory.request("HEAD", path).headers["content-length"] == "10"
    assert memory.request("GET", path, headers={"Range": "bytes=2-3"}).body == b"23"
    assert memory.request("GET", path, headers={"If-None-Match": f'"{stored["etag"]}"'}).status == 304
    memory.request("PUT", "/objects/by-id", b"other")
    for gone in (path, f"/catalog/version?id={stored['id']}", "/id/ZZZZZZZZ"):
        answer = memory.request("GET", gone)
        assert (answer.status, answer.code) == (404, "not_found")
    for malformed in ("/id/abc", "/id/%ff", "/catalog/version?id=abc"):
        assert memory.request("GET", malformed).status == 400
    assert memory.request("GET", "/id/").status == 404


def test_what_is_known_of_a_version(memory):
    stored = memory.request("PUT", "/objects/known", b"x", headers={"Content-Type": "text/x"}).json
    by_name = memory.request("GET", "/catalog/version?namespace=objects&name=known")
    assert by_name.status == 200
    assert by_name.json == memory.request("GET", f"/catalog/version?id={stored['id']}").json
    assert by_name.json.items() >= stored.items()
    assert by_name.json["headers"] == {"Content-Type": "text/x"}
    assert by_name.json["extents"] == [[stored["id"], 2]]
    assert [step["state"] for step in by_name.json["history"]] == ["ok", "pending"]
    for query in ("", "?name=known", "?namespace=objects", "?id=00000000&name=known", "?nothing=1"):
        assert memory.request("GET", f"/catalog/version{query}").code == "bad_query"
    for query in ("namespace=&name=x", "namespace=objects&name=", "namespace=objects&name=" + "x" * 1025):
        assert memory.request("GET", f"/catalog/version?{query}").code == "bad_name"
    assert memory.request("GET", "/catalog/version?namespace=other&name=known").status == 404


def test_objects_of_any_namespace(memory):
    memory.request("POST", "/files/listed", b"x")
    page = memory.request("GET", "/catalog/objects?namespace=files&prefix=list&limit=5").json
    assert [one["name"] for one in page["objects"]] == ["listed"] and page["next"] is None
    assert memory.request("GET", "/catalog/objects?namespace=files&after=listed").json["objects"] == []
    assert memory.request("GET", "/catalog/objects").code == "bad_name"
    assert memory.request("GET", "/catalog/objects?namespace=files&nothing=1").code == "bad_query"


def test_where_nothing_is_collected(memory):
    assert memory.request("GET", "/gc").code == "no_such_route"
    assert memory.request("DELETE", "/gc").status == 405
    for path in ("/gc", "/catalog/version?id=00000000", "/id/00000000"):
        assert memory.request("GET", path, api="objects").status == 404  # on the shared port alone
