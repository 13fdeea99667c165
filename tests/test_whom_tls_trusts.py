"""Who is trusted is who was named: a file of CAs, or one certificate. Not what the system trusts beside it, nor a relative.

Each context is shown the same certificates. What the system trusts is a CA of the test's own, so that one that slips in is
one that lets somebody in.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import put_rig
import pytest
import trustme
from tls_rig import TlsEnd, certificates, chain, client_context, meet

from ingest import limits, tls
from ingest.client.async_client import AsyncClient
from ingest.client.proof import Expected
from ingest.errors import ConfigError, ConnectionLostError
from ingest.gateway.process.credentials import engine_context
from ingest.gateway.process.gateway_config import GatewayConfig
from ingest.runtime.openssl import library
from ingest.runtime.tls_context import TlsContext, handshake

HOST = "127.0.0.1"
ROOT, SYSTEM = trustme.CA(), trustme.CA()
BETWEEN = ROOT.create_child_ca()  # its chain stands behind the certificate in each file
SHOWN = {
    "own": BETWEEN.issue_cert(HOST),
    "of another host": BETWEEN.issue_cert("elsewhere.example"),
    "a sibling": BETWEEN.issue_cert(HOST),
    "a cousin": ROOT.issue_cert(HOST),
    "of the system": SYSTEM.issue_cert(HOST),
    "of a stranger": trustme.CA().issue_cert(HOST),
}
FAMILY = {"own", "a sibling", "a cousin"}


@dataclass
class Files:
    own: Path  # the certificate, what is above it, and the key
    ca: Path


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    SYSTEM.cert_pem.write_to_path(tmp_path / "system")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "system"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "none"))
    ROOT.cert_pem.write_to_path(tmp_path / "ca")
    key = SHOWN["own"].private_key_pem.bytes()
    (tmp_path / "own").write_bytes(key + b"\nabout it: -----\n" + chain(SHOWN["own"]))
    return Files(tmp_path / "own", tmp_path / "ca")


def server_of(shown: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    shown.configure_cert(context)
    return context


def pinning(path: Path) -> GatewayConfig:
    return GatewayConfig(connect_tls_own=tls.read_certificates(path, None, None))


CONTEXTS: dict[str, tuple[Callable[[Files], ssl.SSLContext | None], set[str]]] = {
    "of `ingest serve`": (lambda files: engine_context(pinning(files.own)), {"own"}),
    "of a gateway": (lambda files: engine_context(GatewayConfig(connect_tls_ca=files.ca)), FAMILY),
    "of a client": (lambda files: tls.client_context(files.ca), FAMILY),
    "of a client without a CA": (lambda files: tls.client_context(), {"of the system"}),
}


@pytest.mark.parametrize("whose", CONTEXTS)
def test_a_context_trusts_who_was_named(files: Files, whose: str) -> None:
    make, trusted = CONTEXTS[whose]
    context = make(files)
    assert context is not None
    assert {name for name, cert in SHOWN.items() if meet(context, server_of(cert), HOST)} == trusted


def test_a_pinned_certificate_is_whatever_host_it_is_for(tmp_path: Path) -> None:
    """It is for who comes from outside; the gateway goes to a loopback address."""
    (tmp_path / "own").write_bytes(chain(SHOWN["of another host"]))
    context = engine_context(pinning(tmp_path / "own"))
    assert context is not None
    found = {name for name, cert in SHOWN.items() if meet(context, server_of(cert), HOST)}
    assert found == {"of another host"}


@pytest.mark.parametrize("content", [None, b"", b"no PEM", b"-----BEGIN CERTIFICATE-----\nAAAA\n", b"cut"])
def test_a_certificate_that_cannot_be_pinned(files: Files, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "spoilt"
    whole = chain(SHOWN["own"])
    if content is not None:
        path.write_bytes(content if content != b"cut" else whole[:200] + whole[260:])
    with pytest.raises(ConfigError, match="spoilt"):
        engine_context(pinning(path))


@pytest.mark.parametrize("ca", [False, True])
def test_a_key_without_its_certificate_is_refused(files: Files, ca: bool) -> None:
    """Nothing would be shown to a server that asks, and the connection would end without a word of why."""
    with pytest.raises(ConfigError, match="own: a key needs its certificate"):
        tls.client_context(files.ca if ca else None, None, files.own)


@pytest.mark.parametrize("which", range(3))
def test_each_file_is_read_whole_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    """A file of CAs that was cut is one that trusts fewer than it says; and none is taken for another."""
    monkeypatch.setattr(limits, "CERTIFICATE_FILE_SIZE_MAX", 1000)
    paths = [tmp_path / name for name in ("chain", "key", "ca")]
    for number, path in enumerate(paths):
        path.write_bytes(b"%d" % number * 1000)
    found = tls.read_certificates(*paths)
    assert (found.chain, found.key, found.ca) == (b"0" * 1000, b"1" * 1000, b"2" * 1000)
    assert found.names == tuple(map(str, paths))
    alone = [path if number == which else None for number, path in enumerate(paths)]
    found = tls.read_certificates(*alone)
    assert [found.chain, found.key, found.ca] == [path and path.read_bytes() for path in alone]
    paths[which].write_bytes(bytes(1001))
    with pytest.raises(ConfigError, match=f"{paths[which].name}: more than 1000 bytes"):
        tls.read_certificates(*paths)
    paths[which].unlink()
    with pytest.raises(ConfigError, match=f"{paths[which].name}: No such file"):
        tls.read_certificates(*paths)


def test_each_connection_of_a_client_speaks_tls(files: Files) -> None:
    """Also those by which it looks who is there: whoever stands between would say what it wants to hear."""
    first: list[bytes] = []

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first.append(await reader.read(1))
        writer.close()

    async def work() -> None:
        server = await asyncio.start_server(note, HOST, 0)
        address = server.sockets[0].getsockname()[:2]
        for put, get in ((address, None), (None, address)):
            client = AsyncClient(put, get, bytes(32), retry_for=0.0, tls=tls.client_context(files.ca))
            client.require(Expected("ZZZZZZZZ", None, "another one"))
            for connect in (client.open, *((client.prove, client.unproven) if get else ())):
                with pytest.raises(ConnectionLostError):
                    await connect()
            await client.close()
        server.close()
        await server.wait_closed()

    asyncio.run(work())
    assert first == [b"\x16"] * 4  # a record of a handshake (RFC 8446, 5.1)


@pytest.mark.parametrize("ports", [("put",), ("get",), ("put", "get")])
def test_a_context_that_is_given_later_is_for_each_connection(files: Files, ports: tuple[str, ...]) -> None:
    """The certificates that a reload has read: a port that keeps the old ones is lost when the server has its new one."""
    met: Counter[str] = Counter()

    async def work() -> None:
        addresses: dict[str, tuple[str, int]] = {}
        for port in ports:

            def note(_: asyncio.StreamReader, writer: asyncio.StreamWriter, port: str = port) -> None:
                met[port] += 1  # its handshake is done
                writer.close()

            server = await asyncio.start_server(note, HOST, 0, ssl=server_of(SHOWN["own"]))
            addresses[port] = server.sockets[0].getsockname()[:2]
        put, get = addresses.get("put"), addresses.get("get")
        client = AsyncClient(put, get, bytes(32), retry_for=0.0, tls=tls.client_context())
        for context in (tls.client_context(), None):  # None: as before
            client.use_tls(context)
            with pytest.raises(ConnectionLostError):
                await client.open()
        assert not met
        client.use_tls(tls.client_context(files.ca))
        await client.open()
        expected = Counter(ports)
        if client.gets:
            await (await client.unproven()).close()
            expected["get"] += 1
        async with asyncio.timeout(20):
            while met != expected:
                await asyncio.sleep(0)
        await client.close()

    asyncio.run(work())


# --- by OpenSSL itself


def loaded(ca: Path | None) -> TlsContext:
    """As the load generator has it."""
    return TlsContext(tls.read_certificates(None, None, ca), is_server=False)


def is_met(context: TlsContext, shown: trustme.LeafCert) -> bool:
    ours, theirs = socket.socketpair()

    def serve() -> None:
        try:
            server_of(shown).wrap_socket(theirs, server_side=True)
        except OSError:
            theirs.close()

    server = threading.Thread(target=serve)
    server.start()
    ours.setblocking(False)
    try:
        library().SSL_free(handshake(context, ours, HOST, 20))
    except ConnectionLostError:
        return False
    finally:
        ours.close()
        server.join()
        theirs.close()
    return True


@pytest.mark.parametrize(("named", "trusted"), [(True, FAMILY), (False, {"of the system"})])
def test_the_load_generator_trusts_who_was_named(files: Files, named: bool, trusted: set[str]) -> None:
    context = loaded(files.ca if named else None)
    assert {name for name, cert in SHOWN.items() if is_met(context, cert)} == trusted


def test_a_server_lets_in_whom_its_ca_has_signed(files: Files) -> None:
    """Clients show certificates, for whatever host."""
    with put_rig.Rig() as rig:
        rig.server.set_tls(TlsContext(certificates(SHOWN["own"], ROOT), is_server=True))
        let_in = set()
        for name, cert in SHOWN.items():
            client = TlsEnd(rig.connect(), client_context(ROOT, cert))
            try:
                client.handshake(lambda: rig.step(0.01))
                rig.send(client, put_rig.frame(10))
                if rig.receive(client, 9) == put_rig.ack(10):
                    let_in.add(name)
            except OSError:
                pass
            client.close()
        assert let_in == FAMILY | {"of another host"}
