"""What a side shows and trusts with TLS, and the context of those who speak it by Python's own ssl.

The frame ports and the load generator speak it by OpenSSL itself: `tls_context`.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path

from ingest import limits
from ingest.errors import ConfigError
from ingest.secret_text import shown

# What became of a connection, as the servers report it.
HANDSHAKE = "TLS handshake failed"
SLOW_HANDSHAKE = "TLS handshake took too long"
NOT_TLS = "sent something else than TLS"


@dataclass(frozen=True)
class Certificates:
    """What a side shows and what it trusts, as PEM: ``chain`` (own certificate first) with its ``key``, and ``ca``."""

    chain: bytes | None = None
    key: bytes | None = field(default=None, repr=False)
    ca: bytes | None = None
    names: tuple[str, str, str] = ("certificate", "key", "CA")  # for messages: where each was read


def read_certificates(chain: Path | None, key: Path | None, ca: Path | None) -> Certificates:
    """ConfigError when one of the files cannot be read. What is in them: `TlsContext`."""
    contents = [None if path is None else _read(path) for path in (chain, key, ca)]
    return Certificates(contents[0], contents[1], contents[2], (str(chain), str(key), str(ca)))


def _read(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            content = file.read(limits.CERTIFICATE_FILE_SIZE_MAX + 1)
    except OSError as error:
        raise ConfigError(f"{shown(path)}: {error.strerror}") from None
    if len(content) > limits.CERTIFICATE_FILE_SIZE_MAX:
        raise ConfigError(
            f"{path}: more than {limits.CERTIFICATE_FILE_SIZE_MAX} bytes, this is no certificate file"
        )
    return content


def client_context(
    ca: str | Path | None = None, cert: str | Path | None = None, key: str | Path | None = None
) -> ssl.SSLContext:
    """A context of Python's ssl for ``Client`` and ``AsyncClient``: it checks the server against ``ca`` (PEM; None: what the
    system trusts) and shows ``cert`` (PEM, with its chain) to a server that asks, whose key is in ``key``. ConfigError."""
    if key is not None and cert is None:
        raise ConfigError(f"{shown(key)}: a key needs its certificate")
    try:
        context = ssl.create_default_context(cafile=ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if cert is not None:
            context.load_cert_chain(cert, key, password=lambda: b"")
    except OSError as error:  # ssl.SSLError is one
        names = ", ".join(shown(name) for name in (ca, cert, key) if name is not None)
        raise ConfigError(f"TLS with {names}: {error.strerror or error}") from None
    return context
