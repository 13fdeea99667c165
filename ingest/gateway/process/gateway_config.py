"""The configuration of a gateway: flag > `INGEST_*` variable > TOML file > default, by `settings_schema`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import msgspec

from ingest import limits
from ingest.engine import server_config
from ingest.errors import ConfigError
from ingest.gateway.process.api_table import APIS
from ingest.runtime import logs
from ingest.runtime.listeners import Address, format_address, is_loopback, parse_address
from ingest.runtime.settings_schema import Schema, count, one_of, path_of, seconds_of
from ingest.tls import Certificates

API_NAMES = (*APIS, "stream")
Ports = tuple[tuple[str, Address], ...]


@dataclass(frozen=True)
class GatewayConfig:
    """Times in seconds, addresses as (host, port)."""

    data_dir: Path = Path()
    http_listen: Address = ("127.0.0.1", 8080)
    connect: Address = ("127.0.0.1", 5000)
    read_connect: Address = ("127.0.0.1", 5005)
    api: Ports = ()  # APIs that are served alone, and where
    http_workers: int = 0  # 0: one a core
    key_file: Path | None = None  # None: DATA/.ingest/key
    token_file: Path | None = None
    open: bool = False
    host: tuple[str, ...] = ()  # names that are served beside the addresses
    tls_cert: Path | None = None  # None: HTTP, not HTTPS
    tls_key: Path | None = None
    connect_tls_ca: Path | None = None  # None: the engine speaks plainly
    connect_tls_cert: Path | None = None
    connect_tls_key: Path | None = None
    # No setting: the certificate of the server in `ingest serve`, to be pinned, as it was read when the server read it. Its
    # file may have the next one already, which the server shows after a HUP.
    connect_tls_own: Certificates | None = None
    collect_interval: float = limits.COLLECT_INTERVAL_S
    drain_timeout: float = limits.DRAIN_TIMEOUT_S
    log_level: str = "info"

    @property
    def listening(self) -> list[Address]:
        """All addresses, the shared one first."""
        return [self.http_listen, *(address for _, address in self.api)]


class FileConfig(msgspec.Struct):
    """What may stand in the TOML file."""

    data_dir: str | None = None
    http_listen: str | None = None
    connect: str | None = None
    read_connect: str | None = None
    api: list[str] | None = None
    http_workers: int | None = None
    key_file: str | None = None
    token_file: str | None = None
    open: bool | None = None
    host: list[str] | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    connect_tls_ca: str | None = None
    connect_tls_cert: str | None = None
    connect_tls_key: str | None = None
    collect_interval: float | None = None
    drain_timeout: float | None = None
    log_level: str | None = None


def _words(value: Any) -> list[str]:
    """A list, or text with blanks or commas between."""
    return value.replace(",", " ").split() if isinstance(value, str) else [str(item) for item in value]


def parse_api(value: Any) -> Ports:
    """`NAME=HOST:PORT`, several of them. ValueError."""
    ports = []
    for text in _words(value):
        name, equals, address = text.partition("=")
        if not equals:
            raise ValueError(f"{text!r} is not NAME=HOST:PORT")
        if name not in API_NAMES:
            raise ValueError(f"{name!r} is none of {', '.join(API_NAMES)}")
        ports.append((name, parse_address(address)))
    return tuple(ports)


def _hosts(value: Any) -> tuple[str, ...]:
    hosts = tuple(_words(value))
    for host in hosts:
        if not host or any(c in "/:@[]" for c in host):
            raise ValueError(f"{host!r} is not the name of a host; a port does not belong to it")
    return hosts


def _truth(value: Any) -> bool:
    known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    try:
        return known[str(value).lower()]
    except KeyError:
        raise ValueError(f"{value!r} is neither true nor false") from None


PARSERS: dict[str, Callable[[Any], Any]] = {
    "data_dir": path_of,
    "http_listen": parse_address,
    "connect": parse_address,
    "read_connect": parse_address,
    "api": parse_api,
    "http_workers": count(0, limits.GATEWAY_WORKERS_MAX),
    "key_file": path_of,
    "token_file": path_of,
    "open": _truth,
    "host": _hosts,
    "tls_cert": path_of,
    "tls_key": path_of,
    "connect_tls_ca": path_of,
    "connect_tls_cert": path_of,
    "connect_tls_key": path_of,
    "collect_interval": seconds_of,
    "drain_timeout": seconds_of,
    "log_level": one_of(*logs.LEVELS),
}


def check_gateway_config(config: GatewayConfig) -> None:
    """ConfigError for values that do not go together, and for a gateway that strangers could use."""
    if (config.tls_cert is None) != (config.tls_key is None):
        raise ConfigError(
            "tls_cert and tls_key: one of them is not enough, TLS needs the certificate and its key"
        )
    if config.connect_tls_key is not None and config.connect_tls_cert is None:
        raise ConfigError("connect_tls_key: a key needs its certificate, connect_tls_cert")
    if config.connect_tls_cert is not None and config.connect_tls_ca is None:
        raise ConfigError("connect_tls_cert: the engine is spoken to with TLS only with connect_tls_ca")
    if config.collect_interval <= 0:
        raise ConfigError("collect_interval: more than 0 seconds")
    if config.token_file is not None and config.open:
        raise ConfigError("token_file and open: either a token is needed or everybody is let in")
    seen: set[Address] = set()
    for address in config.listening:
        if address[1] and address in seen:
            raise ConfigError(f"{format_address(address)}: two ports with one address")
        seen.add(address)
    if config.open:
        return
    for name, address in (("http_listen", config.http_listen), *config.api):
        if is_local(address):
            continue
        if name == "stream":
            raise ConfigError(
                f"api: stream on {format_address(address)} knows no tokens and lets everybody in: "
                "listen on a loopback address, or say --open"
            )
        if config.token_file is None:
            raise ConfigError(
                f"{format_address(address)} is not a loopback address: say who may use this gateway with --token-file, "
                "or --open for everybody"
            )


def is_local(address: Address) -> bool:
    """Whether only this machine reaches it, as far as its text says: a name but `localhost` may be any address."""
    return address[0].lower() == "localhost" or is_loopback(address[0])


SCHEMA = Schema(
    GatewayConfig,
    PARSERS,
    FileConfig,
    check_gateway_config,
    tuple({field.name for field in fields(server_config.ServerConfig)} - PARSERS.keys()),
)


def load_config(
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] = os.environ,
    file: Path | None = None,
) -> GatewayConfig:
    """Puts together what the four sources say, as `ingest.engine.server_config.load_config`. ConfigError, UsageError."""
    return SCHEMA.resolve(flags, environ, file)[0]
