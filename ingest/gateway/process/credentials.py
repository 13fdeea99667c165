"""What a gateway reads from files, when it starts and at SIGHUP: tokens and certificates."""

from __future__ import annotations

import re
import ssl

from ingest.errors import ConfigError
from ingest.gateway.http.access import Access, Hosts
from ingest.gateway.http.token_file import read_tokens
from ingest.gateway.process.gateway_config import GatewayConfig
from ingest.tls import Certificates, client_context

_CERTIFICATE = re.compile(rb"^-----BEGIN ((?:X509 )?CERTIFICATE)-----.*?^-----END \1-----", re.M | re.S)


def read_access(config: GatewayConfig) -> Access:
    """KeyFileError."""
    tokens = read_tokens(config.token_file) if config.token_file is not None else None
    return Access(Hosts.of(config.listening, config.host), tokens)


def http_context(config: GatewayConfig) -> ssl.SSLContext | None:
    """Of the HTTP ports; None without TLS. ConfigError."""
    if config.tls_cert is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    load_chain(context, config)
    return context


def load_chain(context: ssl.SSLContext, config: GatewayConfig) -> None:
    """Connections that come from now on see what is in the files now. ConfigError."""
    assert config.tls_cert is not None
    try:
        context.load_cert_chain(config.tls_cert, config.tls_key, password=lambda: b"")
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(
            f"TLS with {config.tls_cert}, {config.tls_key}: {error.strerror or error}"
        ) from None


def engine_context(config: GatewayConfig) -> ssl.SSLContext | None:
    """Of the connections to the engine; None without TLS. ConfigError."""
    if config.connect_tls_own is not None:
        return _pinned(config.connect_tls_own)
    if config.connect_tls_ca is None:
        return None
    return client_context(config.connect_tls_ca, config.connect_tls_cert, config.connect_tls_key)


def _pinned(certificate: Certificates) -> ssl.SSLContext:
    """Trusts this certificate and no other, whatever names are in it: the one of our own server, on this machine. It is the
    first of the file. Who has signed it stands behind it, and has signed those of others too."""
    name = certificate.names[0]
    own = _CERTIFICATE.search(certificate.chain or b"")
    if own is None:
        raise ConfigError(f"TLS with {name}: no certificate in PEM")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_verify_locations(cadata=own[0].decode("ascii", "ignore"))
    except OSError as error:
        raise ConfigError(f"TLS with {name}: {error.strerror or error}") from None
    return context
