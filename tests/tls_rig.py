"""Certificates that tests make, and client ends of TLS over sockets that do not wait."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import trustme

from ingest.tls import Certificates


def chain(cert: trustme.LeafCert) -> bytes:
    return b"".join(blob.bytes() for blob in cert.cert_chain_pems)


def certificates(cert: trustme.LeafCert, ca: trustme.CA | None = None) -> Certificates:
    """As a server has them, with the CA of its clients."""
    return Certificates(chain(cert), cert.private_key_pem.bytes(), ca.cert_pem.bytes() if ca else None)


@dataclass
class Files:
    """The same on disk, in a directory."""

    directory: Path
    ca: trustme.CA

    def write(self, name: str, cert: trustme.LeafCert) -> tuple[Path, Path]:
        paths = self.directory / f"{name}.pem", self.directory / f"{name}.key"
        paths[0].write_bytes(chain(cert))
        paths[1].write_bytes(cert.private_key_pem.bytes())
        return paths

    def ca_path(self) -> Path:
        path = self.directory / "ca.pem"
        path.write_bytes(self.ca.cert_pem.bytes())
        return path

    def server_flags(self, *, client_ca: bool = False) -> list[str]:
        cert, key = self.write("server", self.ca.issue_cert("127.0.0.1", "localhost"))
        flags = [f"--tls-cert={cert}", f"--tls-key={key}"]
        return [*flags, f"--tls-client-ca={self.ca_path()}"] if client_ca else flags


def client_context(ca: trustme.CA, cert: trustme.LeafCert | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    ca.configure_trust(context)
    if cert is not None:
        cert.configure_cert(context)
    return context


def meet(client: ssl.SSLContext, server: ssl.SSLContext, host: str = "127.0.0.1") -> bool:
    """Whether the two have done a handshake, without a socket. ``host``: where the client believes to be."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=host),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    try:
        while ends:
            try:
                ends[0].do_handshake()
                ends.pop(0)
            except ssl.SSLWantReadError:
                ends.reverse()
    except ssl.SSLError:
        return False
    return True


class TlsEnd:
    """A client's end of TLS over a non-blocking socket that behaves like one itself; its errors are OSErrors."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, host: str = "127.0.0.1") -> None:
        self._sock = context.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)

    def handshake(self, step: Callable[[], object]) -> None:
        """``step`` lets the other end work. ssl.SSLError when it fails."""
        while True:
            try:
                self._sock.do_handshake()
                return
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                step()

    def send(self, data: bytes | memoryview) -> int:
        try:
            return self._sock.send(data)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise BlockingIOError from None

    def recv(self, size: int) -> bytes:
        try:
            return self._sock.recv(size)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise BlockingIOError from None

    def half_close(self, step: Callable[[], object]) -> None:
        """Sends close_notify, and waits for that of the other end."""
        while True:
            try:
                self._sock.unwrap()
                return
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                step()

    def close(self) -> None:
        self._sock.close()
