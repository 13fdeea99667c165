"""Who may use a gateway: hosts, origins, tokens, TLS, and on which addresses it starts."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import trustme
import uvloop
from aiohttp import web
from gateway_rig import Broken, Connection, Gateway, memory_gateway

from ingest.errors import ConfigError, KeyFileError, UsageError
from ingest.gateway.http.access import Access, Hosts, same_origin
from ingest.gateway.http.tls_port import TlsPort
from ingest.gateway.http.token_file import parse_tokens, read_tokens
from ingest.gateway.process.credentials import http_context, read_access
from ingest.gateway.process.gateway_config import PARSERS, SCHEMA, FileConfig, GatewayConfig, load_config
from ingest.limits import HTTP_DIRECT_MIN
from ingest.runtime.http_connection import Connection as HttpConnection
from ingest.runtime.wire import Wire
from ingest.runtime.wires import Wires

READ, WRITE = "reader-0123456789", "writer-0123456789"
TOKENS = f"# who may\n\nread-only {READ}\n  read-write\t{WRITE}\r\n".encode()


@pytest.fixture(scope="module")
def open_gateway() -> Iterator[Gateway]:
    with memory_gateway() as running:
        yield running


@pytest.fixture(scope="module")
def guarded() -> Iterator[Gateway]:
    access = Access(Hosts.of([("127.0.0.1", 0)], ["files.example"]), parse_tokens(TOKENS, "tokens"))
    with memory_gateway(access) as running:
        yield running


# --- hosts


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST.:80", "127.0.0.1", "127.9.9.9:1", "[::1]", "[::1]:8080", ""]
)
def test_hosts_that_are_served(open_gateway: Gateway, host: str) -> None:
    if host:
        assert open_gateway.request("GET", "/", headers={"Host": host}).status == 200
    else:  # over HTTP/1.0, where none is needed
        with open_gateway.connect() as connection:
            connection.send(b"GET / HTTP/1.0\r\n\r\n")
            assert connection.answer().status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8080",
        "10.0.0.1",
        "[fe80::1]",
        "localhost.evil.example",
        "1",
        "[",
        "a b",
        "@localhost",
    ],
)
@pytest.mark.parametrize("path", ["/", "/alive", "/objects/x", "/nothing"])
def test_hosts_that_are_not(open_gateway: Gateway, host: str, path: str) -> None:
    answer = open_gateway.request("GET", path, headers={"Host": host})
    assert answer.status in (400, 403)
    assert answer.code in ("foreign_host", "bad_http")


def test_hosts_of_what_is_listened_on() -> None:
    hosts = Hosts.of([("10.1.2.3", 80), ("files.example", 80)], ["Other.Example."])
    for host in ("10.1.2.3", "10.1.2.3:8080", "files.example", "OTHER.example:1", "localhost"):
        assert hosts.include(host), host
    for host in ("10.1.2.4", "example", "x.files.example"):
        assert not hosts.include(host), host
    for wildcard in ("0.0.0.0", "::"):
        hosts = Hosts.of([(wildcard, 80)])
        assert (
            hosts.include("10.1.2.4") and hosts.include("[fe80::1]:80") and not hosts.include("evil.example")
        )


# --- origins


@pytest.mark.parametrize(
    ("origin", "host", "same"),
    [
        ("http://localhost:8080", "localhost:8080", True),
        ("http://LOCALHOST", "localhost:80", True),
        ("https://files.example", "files.example", True),
        ("https://files.example:443", "files.example", True),
        ("http://[::1]:8080", "[::1]:8080", True),
        ("http://localhost:3000", "localhost:8080", False),
        ("http://localhost", "localhost:8080", False),
        ("http://evil.example", "localhost", False),
        ("http://localhost.evil.example", "localhost", False),
        ("null", "localhost", False),
        ("", "localhost", False),
        ("file://localhost", "localhost", False),
        ("http://localhost", None, False),
    ],
)
def test_origins(origin: str, host: str | None, same: bool) -> None:
    assert same_origin(origin, host) is same


def test_foreign_origins_change_nothing(open_gateway: Gateway) -> None:
    own = {"Origin": f"http://127.0.0.1:{open_gateway.address[1]}"}
    assert open_gateway.request("PUT", "/objects/a", b"x", headers=own).status == 200
    for origin in ("http://evil.example", "null", "http://127.0.0.1"):
        foreign = {"Origin": origin}
        for method, path in (("PUT", "/objects/a"), ("POST", "/upload"), ("DELETE", "/objects/a")):
            answer = open_gateway.request(method, path, b"y", headers=foreign)
            assert (answer.status, answer.code) == (403, "foreign_origin")
        assert open_gateway.request("GET", "/objects/a", headers=foreign).body == b"x"


def test_a_refused_request_gets_no_continue(open_gateway: Gateway) -> None:
    with open_gateway.connect() as connection:
        headers = {"Origin": "null", "Expect": "100-continue", "Content-Length": "1"}
        connection.send(connection.head("PUT", "/objects/a", headers))
        assert connection.answer().interim == []


# --- tokens


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_tokens(guarded: Gateway) -> None:
    path = "/objects/a"
    assert guarded.request("PUT", path, b"x", headers=bearer(WRITE)).status == 200
    for token in (READ, WRITE):
        assert guarded.request("GET", path, headers=bearer(token)).body == b"x"
        assert guarded.request("HEAD", path, headers=bearer(token)).status == 200
    for method in ("PUT", "DELETE"):
        answer = guarded.request(method, path, b"y", headers=bearer(READ))
        assert (answer.status, answer.code) == (403, "read_only")
    assert guarded.request("GET", path, headers=bearer(READ)).body == b"x"


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        "Bearer ",
        f"Bearer {READ}x",
        f"Bearer {READ[:-1]}",
        f"Basic {READ}",
        READ,
        "Bearer \u00e4",
    ],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/objects/a"), ("PUT", "/objects/a"), ("GET", "/blob"), ("GET", "/nothing"), ("GET", "/00/obj")],
)
def test_who_has_no_token(guarded: Gateway, authorization: str, method: str, path: str) -> None:
    answer = guarded.request(method, path, headers={"Authorization": authorization} if authorization else {})
    assert (answer.status, answer.code) == (401, "unauthorized")
    assert answer.headers["www-authenticate"].startswith("Bearer")


def test_the_scheme_is_not_sensitive_to_case(guarded: Gateway) -> None:
    assert guarded.request("GET", "/blob", headers={"Authorization": f"bearer  {READ}"}).status == 200


def test_health_needs_no_token(guarded: Gateway) -> None:
    for path in ("/", "/alive", "/healthz"):
        assert guarded.request("GET", path).status == 200
        assert guarded.request("GET", path, headers={"Host": "evil.example"}).status == 403
        assert guarded.request("GET", path, headers={"Host": "files.example"}).status == 200


def test_what_needs_no_token_needs_none_in_the_absolute_form(guarded: Gateway) -> None:
    for path in ("/", "/alive", "/healthz", "/page/main.js"):
        assert guarded.request("GET", f"http://files.example{path}").status == 200
        for authority, host in (("files.example", "evil.example"), ("evil.example", "files.example")):
            answer = guarded.request("GET", f"http://{authority}{path}", headers={"Host": host})
            assert (answer.status, answer.code) == (403, "foreign_host")
    for path in ("/blob", "/objects/a", "/nothing"):
        assert guarded.request("GET", f"http://files.example{path}").status == 401
        headers = bearer(READ)
        assert guarded.request("GET", f"http://files.example{path}", headers=headers).status in (200, 404)
        assert guarded.request("GET", f"http://evil.example{path}", headers=headers).status == 403
    foreign = bearer(WRITE) | {"Origin": "http://evil.example"}
    assert guarded.request("PUT", "http://files.example/objects/a", b"", foreign).code == "foreign_origin"


# --- the token file


def write(path: Path, content: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_a_token_file(tmp_path: Path) -> None:
    tokens = read_tokens(write(tmp_path / "tokens", TOKENS))
    assert [tokens.find(token) for token in (READ, WRITE, "", "reader")] == [False, True, None, None]


@pytest.mark.parametrize("mode", [0o604, 0o620, 0o660, 0o666])
def test_a_token_file_that_others_can_use(tmp_path: Path, mode: int) -> None:
    with pytest.raises(KeyFileError, match="chmod 600"):
        read_tokens(write(tmp_path / "tokens", TOKENS, mode))


def test_token_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="No such file"):
        read_tokens(tmp_path / "none")
    with pytest.raises(KeyFileError, match=r"not a regular file|Is a directory"):
        read_tokens(tmp_path)
    os.mkfifo(tmp_path / "fifo", 0o600)
    with pytest.raises(KeyFileError, match="not a regular file"):
        read_tokens(tmp_path / "fifo")
    with pytest.raises(KeyFileError, match="more than"):
        read_tokens(write(tmp_path / "tokens", b"#" * 70_000))


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "no token"),
        (b"# nothing\n", "no token"),
        (b"read-only short\n", "line 1: a token of 5 characters"),
        (b"\nadmin 0123456789abcdef\n", "line 2: expected"),
        (b"0123456789abcdef\n", "line 1: expected"),
        (b"read-only 0123456789abcdef more\n", "line 1: expected"),
        (b"read-only 0123456789abcde\xff\n", "line 1: expected"),
        (
            b"read-only 0123456789abcdef\nread-write 0123456789abcdef\n",
            "line 2: this token stands there twice",
        ),
    ],
)
def test_token_files_that_are_malformed(content: bytes, match: str) -> None:
    with pytest.raises(KeyFileError, match=match) as caught:
        parse_tokens(content, "tokens")
    assert "0123456789abcde" not in str(caught.value)


# --- on which addresses


def test_loopback_needs_nothing() -> None:
    for address in ("127.0.0.1:1", "[::1]:1", "localhost:1", "LocalHost:1", "127.5.5.5:1"):
        assert load_config({"http_listen": address}, {}).token_file is None


@pytest.mark.parametrize("address", ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "files.example:1"])
def test_other_addresses_need_tokens_or_open(tmp_path: Path, address: str) -> None:
    last = ["blob=127.0.0.1:2", "store=[::1]:3", f"blob={address}"]
    for flags in ({"http_listen": address}, {"api": [f"blob={address}"]}, {"api": last}):
        with pytest.raises(ConfigError, match="--token-file") as caught:
            load_config(flags, {})
        assert caught.value.exit_code == 78
        load_config(flags | {"open": True}, {})
        load_config(flags | {"token_file": str(tmp_path / "tokens")}, {})
    with pytest.raises(ConfigError, match="stream"):
        load_config({"api": [f"stream={address}"], "token_file": str(tmp_path / "tokens")}, {})
    load_config({"api": [f"stream={address}"], "open": True}, {})


def test_access_of_a_configuration(tmp_path: Path) -> None:
    path = write(tmp_path / "tokens", TOKENS)
    access = read_access(
        load_config({"http_listen": "0.0.0.0:1", "token_file": str(path), "host": ["a.b"]}, {})
    )
    assert access.hosts.any_address and access.hosts.include("a.b") and access.tokens is not None
    assert read_access(GatewayConfig()).tokens is None


@pytest.mark.parametrize(
    ("flags", "error", "match"),
    [
        ({"api": ["blob"]}, UsageError, "NAME=HOST:PORT"),
        ({"api": ["blub=127.0.0.1:1"]}, UsageError, "none of blob"),
        ({"api": ["blob=127.0.0.1"]}, UsageError, "not an address"),
        ({"api": ["blob=127.0.0.1:1", "store=127.0.0.1:1"]}, ConfigError, "two ports"),
        (
            {"api": ["blob=127.0.0.1:1", "store=127.0.0.1:2", "sos-fetch=127.0.0.1:1"]},
            ConfigError,
            "two ports",
        ),
        ({"http_listen": "127.0.0.1:1", "api": ["blob=127.0.0.1:1"]}, ConfigError, "two ports"),
        *(
            ({"host": ["a.b", host]}, UsageError, "not the name of a host")
            for host in ("a:1", "a/", "@a", "[a", "a]")
        ),
        ({"http_workers": "-1"}, UsageError, "whole number"),
        ({"collect_interval": "0"}, ConfigError, "more than 0"),
        ({"open": True, "token_file": "f"}, ConfigError, "either"),
        ({"tls_cert": "c"}, ConfigError, "one of them"),
        ({"tls_key": "k"}, ConfigError, "one of them"),
        ({"connect_tls_key": "k"}, ConfigError, "certificate"),
        ({"connect_tls_key": "k", "connect_tls_ca": "a"}, ConfigError, "certificate"),
        ({"connect_tls_key": "k", "connect_tls_cert": "c"}, ConfigError, "connect_tls_ca"),
        ({"connect_tls_cert": "c"}, ConfigError, "connect_tls_ca"),
    ],
)
def test_configurations_that_do_not_fit(flags: dict[str, object], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        load_config(flags, {})


def test_ports_that_the_kernel_chooses_are_several() -> None:
    ports = ["blob=127.0.0.1:0", "store=127.0.0.1:0", "blob=127.0.0.1:0"]
    assert len(load_config({"http_listen": "127.0.0.1:0", "api": ports}, {}).listening) == 4


def test_the_lists_of_names_agree() -> None:
    from dataclasses import fields

    import msgspec

    from ingest.engine.server_config import GATEWAY_NAMES
    from ingest.engine.server_config import PARSERS as SERVER

    names = {field.name for field in fields(GatewayConfig)} - {"connect_tls_own"}
    assert set(PARSERS) == names == {field.name for field in msgspec.structs.fields(FileConfig)}
    assert set(GATEWAY_NAMES) == names - set(SERVER)
    assert set(SCHEMA.other_names) == set(SERVER) - names


def test_one_file_and_one_environment_for_server_and_gateway(tmp_path: Path) -> None:
    from ingest.engine.server_config import load_config as load_server

    file = tmp_path / "ingest.toml"
    file.write_text(
        'wal_size = "1GB"\nhttp_listen = "[::1]:1"\napi = ["blob=127.0.0.1:3001"]\nopen = false\n'
    )
    environ = {"INGEST_LAYOUT": "tree", "INGEST_HOST": "a.b, c.d", "INGEST_OPEN": "no"}
    config = load_config({}, environ, file)
    assert config.http_listen == ("::1", 1) and config.api == (("blob", ("127.0.0.1", 3001)),)
    assert config.host == ("a.b", "c.d") and not config.open
    assert load_server({}, environ, file).layout == "tree"
    with pytest.raises(ConfigError, match="did you mean http_listen"):
        file.write_text('http_listn = "[::1]:1"')
        load_config({}, {}, file)


# --- TLS


def tls_contexts(tmp_path: Path) -> tuple[ssl.SSLContext | None, ssl.SSLContext]:
    """Of a gateway and of a client that trusts it."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / "pem")
    pem = str(tmp_path / "pem")
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return http_context(load_config({"tls_cert": pem, "tls_key": pem}, {})), client


def test_handshakes_count_as_connections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest.runtime.wires.HTTP_CONNECTIONS_MAX", 2)
    monkeypatch.setattr("ingest.runtime.wires.HTTP_REFUSED_MAX", 2)
    context, client = tls_contexts(tmp_path)
    with memory_gateway(tls=context) as gateway:
        with ExitStack() as stack:
            silent = [stack.enter_context(gateway.connect()) for _ in range(5)]
            for connection in silent[:3]:
                assert connection.ended()  # they gave way
            busy = [stack.enter_context(Connection(gateway.address, client)) for _ in range(2)]
            for connection in busy:
                connection.send(
                    connection.head("PUT", "/objects/a", {"Content-Length": "1", "Expect": "100-continue"})
                )
                assert connection.answer_head()[0] == 100
            for connection in silent:
                assert connection.ended()
            with Connection(gateway.address, client) as third:
                assert third.request("GET", "/alive").status == 503
            last = [stack.enter_context(gateway.connect()) for _ in range(3)]
            assert last[-1].ended()
        for _ in range(3000):  # until the end of one of them is noticed
            try:
                with Connection(gateway.address, client) as connection:
                    if connection.request("GET", "/alive").status == 200:
                        break
            except (Broken, OSError):
                pass
        with Connection(gateway.address, client) as connection:
            assert connection.request("GET", "/alive").body == b"alive"


def test_plain_http_to_a_port_with_tls_is_told_so(tmp_path: Path) -> None:
    context, client = tls_contexts(tmp_path)
    with memory_gateway(tls=context) as gateway:
        for method in ("GET", "PUT", "DELETE"):
            answer = gateway.request(method, "/objects/a", b"x" * 100_000)
            assert answer.status == 400 and b"https://" in answer.body
        with gateway.connect() as other:
            other.send(b"\x00\x01\x02")
            assert other.ended()
        with Connection(gateway.address, client) as connection:
            assert connection.request("GET", "/alive").body == b"alive"


def test_a_download_over_tls_waits_for_its_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However large its pieces are: what is encrypted would stay in memory, and in no budget."""
    size = 64 << 20  # more than the system takes
    monkeypatch.setattr("memory_store.PIECE", 1 << 20)
    context, client = tls_contexts(tmp_path)
    with memory_gateway(tls=context) as gateway:
        assert gateway.store is not None
        with Connection(gateway.address, client) as connection:
            connection.request("PUT", "/objects/a", bytes(size))
        with Connection(gateway.address, client) as connection:
            connection.send(connection.head("GET", "/objects/a"))
            connection.answer_head()
            with Connection(gateway.address, client) as other:
                assert other.request("GET", "/alive").body == b"alive"
            assert gateway.store.open_downloads == 1
            assert connection.exactly(size) == bytes(size)


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01"])
def test_a_handshake_that_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr("ingest.gateway.http.tls_port.TLS_HANDSHAKE_TIMEOUT_S", 0.2)
    context, client = tls_contexts(tmp_path)
    with memory_gateway(tls=context) as gateway:
        with gateway.connect() as silent:
            silent.send(sent)
            assert silent.ended()
        with Connection(gateway.address, client) as connection:
            assert connection.request("GET", "/alive").body == b"alive"


BEGINNINGS = [b"", b"\x16\x03\x01", b"\x00\x01", b"GET / HTTP/1.1\r\n\r\n", b""]


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])  # which run a task's first step sooner or later
@pytest.mark.parametrize("places", [8, 1])
@pytest.mark.parametrize("end", ["closes", "resets", "is closed"])
def test_a_handshake_that_ends_leaves_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    end: str,
    places: int,
    run: Callable[[Any], None],
) -> None:
    """Whoever ends it, and wherever it is. With one place most of them give way, some before anything is done for them."""
    monkeypatch.setattr("ingest.runtime.wires.HTTP_CONNECTIONS_MAX", places)
    context, _ = tls_contexts(tmp_path)
    assert context is not None

    async def test() -> None:
        loop = asyncio.get_running_loop()
        wires, server = Wires(), web.Server(nobody_asks)
        listening = socket.create_server(("127.0.0.1", 0))
        opened: list[Wire] = []

        def connect() -> Wire:
            opened.append(Wire(wires, HttpConnection(server, loop=loop), lambda: "id"))
            return opened[-1]

        port = TlsPort(listening, context, connect, wires)
        clients = [socket.create_connection(listening.getsockname()) for _ in BEGINNINGS]
        for client, sent in zip(clients, BEGINNINGS, strict=True):
            client.setblocking(False)
            await loop.sock_sendall(client, sent)
        async with asyncio.timeout(60):
            while len(opened) < len(clients):
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.01)  # some way on
            for client in clients if end != "is closed" else []:
                if end == "resets":
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.close()
            if end == "is closed":
                await port.close()
                for client in clients:
                    with suppress(ConnectionError):
                        while await loop.sock_recv(client, 1 << 16):
                            pass
                    client.close()
            while len(wires.guests) or wires.refused or port._opening:
                await asyncio.sleep(0.001)
        assert (wires.open, wires.heads) == (set(), 0)
        await port.close()

    run(test())


@pytest.mark.parametrize(
    ("number", "pauses"),
    [
        (errno.ECONNABORTED, False),
        (errno.ECONNRESET, False),
        (errno.EMFILE, True),
        (errno.ENFILE, True),
        (errno.ENOBUFS, True),
        (errno.ENOMEM, True),
    ],
)
def test_a_port_with_tls_goes_on_after_each_error_of_accepting(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    number: int,
    pauses: bool,
) -> None:
    """And says of those alone that are not the client's, and does not spin on them."""
    context, _ = tls_contexts(tmp_path)
    assert context is not None
    monkeypatch.setattr("ingest.gateway.http.tls_port.ACCEPT_PAUSE_S", 0.001)

    async def test() -> None:
        loop = asyncio.get_running_loop()
        wires, accept = Wires(), loop.sock_accept
        errors, slept = [OSError(number, os.strerror(number)) for _ in range(3)], []
        opened = asyncio.Event()

        async def sleep(seconds: float) -> None:
            slept.append(seconds)

        async def failing(sock: socket.socket) -> Any:
            if errors:
                raise errors.pop()
            return await accept(sock)

        def connect() -> Wire:
            opened.set()
            return Wire(wires, HttpConnection(web.Server(nobody_asks), loop=loop), lambda: "id")

        monkeypatch.setattr(loop, "sock_accept", failing)
        monkeypatch.setattr("ingest.gateway.http.tls_port.asyncio.sleep", sleep)
        port = TlsPort(socket.create_server(("127.0.0.1", 0)), context, connect, wires)
        with socket.create_connection(port._sock.getsockname()):
            await asyncio.wait_for(opened.wait(), 30)
        await port.close()
        assert not errors and slept == [0.001] * 3 * pauses

    asyncio.run(test())
    said = [record for record in caplog.messages if "no connection can be accepted" in record]
    assert len(said) == 3 * pauses


async def nobody_asks(_: web.BaseRequest) -> web.Response:
    raise AssertionError("there is no request")


def test_tls(tmp_path: Path) -> None:
    context, client = tls_contexts(tmp_path)
    client.set_alpn_protocols(["h2", "http/1.1"])
    with memory_gateway(tls=context) as gateway:
        with Connection(gateway.address, client) as connection:
            data = bytes(range(256)) * 10_000
            assert connection.request("PUT", "/objects/a", data, {"Expect": "100-continue"}).interim == [100]
            assert connection.request("GET", "/objects/a").body == data
            assert isinstance(connection.sock, ssl.SSLSocket)
            assert connection.sock.selected_alpn_protocol() == "http/1.1"
        large = data * 4  # goes by aiohttp
        assert len(large) > 2 * HTTP_DIRECT_MIN
        with Connection(gateway.address, client) as connection:
            assert connection.request("PUT", "/objects/b", large).headers["connection"] == "close"
            assert connection.ended()
        with Connection(gateway.address, client) as connection:
            assert connection.request("GET", "/objects/b").body == large
        with Connection(gateway.address, client) as connection:
            assert connection.request("GET", "/alive").body == b"alive"


def test_certificates_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "pem").write_text("no PEM")
    for name in ("none", "pem"):
        path = str(tmp_path / name)
        with pytest.raises(ConfigError, match=name):
            http_context(load_config({"tls_cert": path, "tls_key": path}, {}))
