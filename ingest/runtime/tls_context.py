"""TLS of the frame ports and of the load generator: contexts of OpenSSL, for `csrc/tls.h`, and a client's handshake.

TLS 1.2 is the least that is spoken. Sessions are not resumed: connections live long, and nothing has to be remembered.
"""

from __future__ import annotations

import ctypes
import ipaddress
import select
import socket
import ssl
import time

from ingest import limits
from ingest.errors import ConfigError, ConnectionLostError
from ingest.runtime.openssl import Library, library
from ingest.tls import Certificates

# Of OpenSSL's interface, the same since 1.1.1.
_CTRL_MODE, _CTRL_READ_AHEAD, _CTRL_SESSION_CACHE = 33, 41, 44
_CTRL_SERVER_NAME, _CTRL_CHAIN_CERT, _CTRL_MIN_VERSION = 55, 89, 123
_TLS_1_2 = 0x0303
# Any number of bytes of a write is progress · its buffer may move · buffers of a quiet connection are given back.
_MODE = 0x1 | 0x2 | 0x10
# FIN without close_notify is the end of the stream: frames have checksums of their own, a cut one is dropped.
_OPTIONS = ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION | 1 << 7
_VERIFY_PEER, _VERIFY_FAIL_IF_NO_CERTIFICATE = 1, 2

# Called when a private key is encrypted: nobody is there to be asked for its password.
_NO_PASSWORD = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_void_p)(
    lambda *_: -1
)


class TlsContext:
    """What all connections of one side share. A session keeps what it needs of it."""

    def __init__(self, certificates: Certificates, *, is_server: bool) -> None:
        """ConfigError, which names the file, for certificates or a key that cannot be used.

        A server needs a chain and its key, and asks clients for a certificate when there is a ``ca``. A client checks the
        server against ``ca``, or against what the system trusts when there is none.
        """
        self.is_server = is_server
        self._lib = lib = library()
        self.library = lib.table
        lib.ERR_clear_error()  # of the whole thread, so of others too
        self._context: int | None = lib.SSL_CTX_new(
            lib.TLS_server_method() if is_server else lib.TLS_client_method()
        )
        if not self._context:
            raise ConfigError(f"no TLS context: {lib.reason()}")
        lib.SSL_CTX_set_options(self._context, int(_OPTIONS))
        lib.SSL_CTX_set_num_tickets(self._context, 0)
        lib.SSL_CTX_set_default_read_buffer_len(self._context, limits.TLS_READ_BUFFER_SIZE)
        for command, value in (
            (_CTRL_MIN_VERSION, _TLS_1_2),
            (_CTRL_MODE, _MODE),
            (_CTRL_READ_AHEAD, 1),
            (_CTRL_SESSION_CACHE, 0),
        ):
            lib.SSL_CTX_ctrl(self._context, command, value, None)
        if certificates.chain is not None:
            self._use_chain(certificates)
        self._trust(certificates)

    def __del__(self) -> None:
        if getattr(self, "_context", None):
            self._lib.SSL_CTX_free(self._context)
            self._context = None

    def _use_chain(self, certificates: Certificates) -> None:
        lib, context = self._lib, self._context
        chain_name, key_name, _ = certificates.names
        assert certificates.chain is not None
        own, *above = self._certificates(certificates.chain, chain_name)
        try:
            if lib.SSL_CTX_use_certificate(context, own) != 1:
                raise ConfigError(f"{chain_name}: {lib.reason()}")
            for certificate in above:
                if lib.SSL_CTX_ctrl(context, _CTRL_CHAIN_CERT, 1, certificate) != 1:
                    raise ConfigError(f"{chain_name}: {lib.reason()}")
        finally:
            for certificate in (own, *above):
                lib.X509_free(certificate)
        with _memory(lib, certificates.key or b"") as bio:
            key = lib.PEM_read_bio_PrivateKey(bio, None, _NO_PASSWORD, None)
        if not key:
            raise ConfigError(f"{key_name}: no private key in PEM without a password: {lib.reason()}")
        fits = lib.SSL_CTX_use_PrivateKey(context, key) == 1 and lib.SSL_CTX_check_private_key(context) == 1
        lib.EVP_PKEY_free(key)
        if not fits:
            raise ConfigError(f"{key_name} is not the key of the certificate in {chain_name}: {lib.reason()}")

    def _trust(self, certificates: Certificates) -> None:
        lib, context = self._lib, self._context
        if certificates.ca is None:
            if not self.is_server:
                lib.SSL_CTX_set_default_verify_paths(context)
                lib.SSL_CTX_set_verify(context, _VERIFY_PEER, None)
            return
        store = lib.SSL_CTX_get_cert_store(context)
        for certificate in self._certificates(certificates.ca, certificates.names[2]):
            lib.X509_STORE_add_cert(store, certificate)
            if self.is_server:
                lib.SSL_CTX_add_client_CA(context, certificate)
            lib.X509_free(certificate)
        lib.SSL_CTX_set_verify(
            context, _VERIFY_PEER | (_VERIFY_FAIL_IF_NO_CERTIFICATE if self.is_server else 0), None
        )

    def _certificates(self, pem: bytes, name: str) -> list[int]:
        """All certificates in ``pem``, at least one, as addresses that the caller frees."""
        lib = self._lib
        found: list[int] = []
        with _memory(lib, pem) as bio:
            while certificate := lib.PEM_read_bio_X509(bio, None, _NO_PASSWORD, None):
                found.append(certificate)
        reason = lib.reason()  # the end of the file is one too
        if reason != "no start line":  # one that is cut or garbled: what stands behind it is not read
            while found:
                lib.X509_free(found.pop())
        if not found:
            raise ConfigError(f"{name}: no certificate in PEM: {reason}")
        return found

    def session(self, fd: int, host: str | None = None) -> int:
        """The address of a new SSL of the socket ``fd``, which stays the caller's. ``host``: what a server's certificate
        must be for. MemoryError."""
        lib = self._lib
        session: int | None = lib.SSL_new(self._context)
        if not session:
            raise MemoryError(lib.reason())
        if lib.SSL_set_fd(session, fd) != 1 or (host is not None and not self._expect(session, host)):
            lib.SSL_free(session)
            raise MemoryError(lib.reason())
        (lib.SSL_set_accept_state if self.is_server else lib.SSL_set_connect_state)(session)
        return session

    def _expect(self, session: int, host: str) -> bool:
        lib = self._lib
        try:
            address = ipaddress.ip_address(host.partition("%")[0])
        except ValueError:
            name = host.encode("idna")
            lib.SSL_ctrl(session, _CTRL_SERVER_NAME, 0, ctypes.cast(ctypes.c_char_p(name), ctypes.c_void_p))
            return bool(lib.SSL_set1_host(session, name) == 1)
        parameters = lib.SSL_get0_param(session)
        return bool(lib.X509_VERIFY_PARAM_set1_ip_asc(parameters, str(address).encode()) == 1)


def handshake(context: TlsContext, sock: socket.socket, host: str, timeout_s: float) -> int:
    """Does a client's handshake on a connected non-blocking socket. The address of its SSL, which is the caller's.

    ConnectionLostError, with OpenSSL's reason, when the other end is not a server that ``context`` trusts for ``host``, does
    not trust us, or is silent for ``timeout_s``.
    """
    lib = library()
    session = context.session(sock.fileno(), host)
    deadline = time.monotonic() + timeout_s
    try:
        while True:
            lib.ERR_clear_error()
            if (result := lib.SSL_do_handshake(session)) == 1:
                return session
            wanted = {2: select.POLLIN, 3: select.POLLOUT}.get(lib.SSL_get_error(session, result))
            if wanted is None:
                raise ConnectionLostError(f"{host}: TLS handshake failed: {lib.reason()}")
            poll = select.poll()
            poll.register(sock, wanted)
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise ConnectionLostError(f"{host}: no TLS handshake within {timeout_s:g} s")
    except BaseException:
        lib.SSL_free(session)
        raise


class _memory:
    """A BIO over bytes, for as long as the block runs."""

    def __init__(self, lib: Library, content: bytes) -> None:
        self._lib, self._content = lib, content

    def __enter__(self) -> int:
        bio: int | None = self._lib.BIO_new_mem_buf(self._content, len(self._content))
        if not bio:
            raise MemoryError
        self._bio = bio
        return bio

    def __exit__(self, *_: object) -> None:
        self._lib.BIO_free(self._bio)
