"""The configuration of a server: flag > `INGEST_*` variable > TOML file > default. Unknown keys are errors.

The TOML file has the names of the fields of `ServerConfig` as keys, in one flat table:

    data_dir = "/var/lib/ingest"
    listen = "0.0.0.0:5000"
    wal_size = "1GiB"
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ingest import limits
from ingest.errors import ConfigError
from ingest.runtime import logs
from ingest.runtime.listeners import Address, format_address, parse_address
from ingest.runtime.settings_schema import Schema, count, one_of, parse_size, path_of, seconds_of

# Settings of the gateway (`gateway_config`): a server leaves them alone, in variables and in the file, because one file
# may be for both, and `ingest serve` is.
GATEWAY_NAMES = (
    "http_listen", "connect", "read_connect", "api", "token_file", "open", "host", "http_workers", "connect_tls_ca",
    "connect_tls_cert", "connect_tls_key", "collect_interval",
)  # fmt: skip


@dataclass(frozen=True)
class ServerConfig:
    """Sizes in bytes, times in seconds, addresses as (host, port)."""

    data_dir: Path = Path()
    listen: tuple[str, int] = ("127.0.0.1", 5000)
    read_listen: tuple[str, int] = ("127.0.0.1", 5005)
    admin_listen: tuple[str, int] = ("127.0.0.1", 5080)
    workers: int = 0  # 0: one a core
    layout: str = "pack"
    sync: str = "disk"  # or "os"
    key_file: Path | None = None  # None: DATA/.ingest/key
    wal_dir: Path | None = None  # None: DATA/.ingest/wal
    wal_size: int = limits.LOG_SIZE_DEFAULT
    reserve: int = limits.RESERVE_DEFAULT
    drain_timeout: float = limits.DRAIN_TIMEOUT_S
    bad_frame_limit: int = limits.BAD_FRAME_LIMIT
    bad_peer_delay: float = 0.0
    tls_cert: Path | None = None  # None: the frame ports speak plainly
    tls_key: Path | None = None
    tls_client_ca: Path | None = None  # None: clients need no certificate
    log_level: str = "info"

    @property
    def certificate_files(self) -> tuple[Path, Path, Path | None] | None:
        """Chain, its key, and the CA of clients; None without TLS."""
        if self.tls_cert is None or self.tls_key is None:
            return None
        return self.tls_cert, self.tls_key, self.tls_client_ca


class FileConfig(msgspec.Struct, forbid_unknown_fields=True):
    """What may stand in the TOML file. Sizes are bytes, or text with a unit."""

    data_dir: str | None = None
    listen: str | None = None
    read_listen: str | None = None
    admin_listen: str | None = None
    workers: int | None = None
    layout: str | None = None
    sync: str | None = None
    key_file: str | None = None
    wal_dir: str | None = None
    wal_size: int | str | None = None
    reserve: int | str | None = None
    drain_timeout: float | None = None
    bad_frame_limit: int | None = None
    bad_peer_delay: float | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_client_ca: str | None = None
    log_level: str | None = None


# Each takes what a flag, a variable (text) or the file gives, and raises ValueError for what it cannot use.
PARSERS: dict[str, Callable[[Any], Any]] = {
    "data_dir": path_of,
    "listen": parse_address,
    "read_listen": parse_address,
    "admin_listen": parse_address,
    "workers": count(0, limits.WORKERS_MAX),
    "layout": one_of("pack", "tree"),
    "sync": one_of("disk", "os"),
    "key_file": path_of,
    "wal_dir": path_of,
    "wal_size": parse_size,
    "reserve": parse_size,
    "drain_timeout": seconds_of,
    "bad_frame_limit": count(1, 1_000_000),
    "bad_peer_delay": seconds_of,
    "tls_cert": path_of,
    "tls_key": path_of,
    "tls_client_ca": path_of,
    "log_level": one_of(*logs.LEVELS),
}


def load_config(
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] = os.environ,
    file: Path | None = None,
) -> ServerConfig:
    """Puts together what the four sources say. ``flags`` has a value, or None, by field name.

    ConfigError names the source and the key; UsageError for a flag that means nothing.
    """
    return resolve(flags, environ, file)[0]


def resolve(
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] = os.environ,
    file: Path | None = None,
) -> tuple[ServerConfig, dict[str, str]]:
    """As `load_config`, and where the value of each field comes from: its flag, its variable, the file, or `default`."""
    return SCHEMA.resolve(flags, environ, file)


def check_server_config(config: ServerConfig) -> None:
    """ConfigError for values that are fine by themselves but not for this version, or not together."""
    if config.wal_size < limits.LOG_SIZE_MIN:
        raise ConfigError(f"wal_size: {config.wal_size} bytes, at least {limits.LOG_SIZE_MIN} are needed")
    if (config.tls_cert is None) != (config.tls_key is None):
        raise ConfigError(
            "tls_cert and tls_key: one of them is not enough, TLS needs the certificate and its key"
        )
    if config.tls_client_ca is not None and config.tls_cert is None:
        raise ConfigError(
            "tls_client_ca: clients can be asked for certificates only with tls_cert and tls_key"
        )
    addresses: dict[Address, str] = {}
    for name in ("listen", "read_listen", "admin_listen"):
        address: Address = getattr(config, name)
        if address[1] and address in addresses:
            raise ConfigError(f"{name}: {format_address(address)} is the address of {addresses[address]} too")
        addresses[address] = name


SCHEMA = Schema(ServerConfig, PARSERS, FileConfig, check_server_config, GATEWAY_NAMES)
