"""What a client of ours asks a server's certificate for, and whom a server says that it lets in."""

from __future__ import annotations

import ctypes
import socket
import ssl
import threading

import pytest
import trustme

from ingest.errors import ConnectionLostError
from ingest.runtime import openssl
from ingest.runtime.tls_context import TlsContext, handshake
from ingest.tls import Certificates

CA, OTHER = trustme.CA(), trustme.CA()
PEM = CA.cert_pem.bytes()
CERT = CA.issue_cert("localhost", "bücher.example", "127.0.0.1", "::1", "fe80::1")


def meets(host: str) -> tuple[bool, list[str | None]]:
    """Whether a server is taken for ``host``, and what it was asked for by name."""
    asked: list[str | None] = []
    shown = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    CERT.configure_cert(shown)
    shown.sni_callback = lambda _, name, __: asked.append(name)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)

    def serve() -> None:
        theirs.settimeout(30)
        try:
            shown.wrap_socket(theirs, server_side=True).close()
        except OSError:
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        session = handshake(TlsContext(Certificates(ca=PEM), is_server=False), ours, host, 30)
        openssl.library().SSL_free(session)
    except ConnectionLostError:
        return False, asked
    finally:
        ours.close()
        thread.join()
    return True, asked


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("localhost", "localhost"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("127.0.0.1", None),  # an address is no name: RFC 6066, 3
        ("::1", None),
        ("fe80::1%lo", None),  # the zone is this machine's, and no part of the address
    ],
)
def test_a_server_is_asked_for_by_its_name_and_shows_that_one(host: str, name: str | None) -> None:
    """A port may have several certificates: without the name it shows another one's."""
    assert meets(host) == (True, [name])


@pytest.mark.parametrize("host", ["elsewhere.example", "127.0.0.2", "::2", "fe80::2%lo", "host.localhost"])
def test_no_other_name_or_address_will_do(host: str) -> None:
    assert not meets(host)[0]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_server_names_each_ca_whose_clients_it_lets_in(count: int) -> None:
    """A client that has several certificates chooses one by that, as browsers and Java do."""
    pem = b"".join(ca.cert_pem.bytes() for ca in (CA, OTHER, trustme.CA())[:count])
    shown = CERT.private_key_and_cert_chain_pem.bytes()
    context = TlsContext(Certificates(shown, shown, pem), is_server=True)
    handle = openssl.library()._handle
    names = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(("SSL_CTX_get_client_CA_list", handle))
    size = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(("OPENSSL_sk_num", handle))
    assert size(names(context._context)) == count
