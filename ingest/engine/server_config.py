"""The configuration of a server: flag > `INGEST_*` variable > TOML file > default. Unknown keys are errors.

The TOML file has the names of the fields of `ServerConfig` as keys, in one flat table:

    data_dir = "/var/lib/ingest"
    listen = "0.0.0.0:5000"
    wal_size = "1GiB"
"""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from ingest import limits
from ingest.errors import ConfigError, UsageError
from ingest.runtime import logs
from ingest.runtime.listeners import Address, format_address, parse_address

PREFIX = "INGEST_"
CONFIG_VARIABLE = "INGEST_CONFIG"  # the file, when no --config names it

# Variables that other parts of ingest read; every other INGEST_ name is a mistake.
OTHER_VARIABLES = (
    CONFIG_VARIABLE,
    "INGEST_GATEWAY",  # object commands: the URL of a gateway …
    "INGEST_TOKEN",  # … what it lets us in with …
    "INGEST_TLS_CA",  # … and whom to trust there
    "INGEST_DEBUG",  # setup.py: build with bounds checks
    "INGEST_MAC_PATH",  # mac: force one of the SIMD paths
)


# Settings of the gateway (`gateway_config`): a server leaves them alone, in variables and in the file, because one file
# may be for both, and `ingest serve` is.
GATEWAY_NAMES = (
    "http_listen", "connect", "read_connect", "api", "token_file", "open", "host", "http_workers", "connect_tls_ca",
    "connect_tls_cert", "connect_tls_key", "collect_interval",
)  # fmt: skip

C = TypeVar("C")


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


_UNITS = {"": 1, "B": 1} | {
    f"{letter}{suffix}": base**power
    for suffix, base in (("B", 1000), ("iB", 1024))
    for power, letter in enumerate("KMGT", 1)
}
_SIZE = re.compile(r"([0-9]{1,18})(?:\.([0-9]{1,6}))? ?([A-Za-z]*)")


def parse_size(value: str | int) -> int:
    """Bytes of `512MiB`, `1.5 GB`, `1048576` or a plain number. ValueError for anything else."""
    text = str(value)
    match = _SIZE.fullmatch(text)
    unit = {name.lower(): size for name, size in _UNITS.items()}.get(match[3].lower()) if match else None
    if match is None or unit is None:
        raise ValueError(f"{text!r} is not a size: a number of bytes or one with {', '.join(_UNITS)[2:]} is")
    size: int = int(match[1]) * unit
    if match[2]:
        size += int(match[2]) * unit // 10 ** len(match[2])
    return size


def one_of(*choices: str) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        if value not in choices:
            raise ValueError(f"{value!r} is none of {', '.join(choices)}")
        return str(value)

    return parse


def count(least: int, most: int) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        text = str(value)
        if not re.fullmatch(r"-?[0-9]{1,18}", text) or not least <= int(text) <= most:
            raise ValueError(f"{text!r} is not a whole number of {least} to {most}")
        return int(text)

    return parse


def seconds_of(value: Any) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= 86_400:
        raise ValueError(f"{value!r} is not a number of seconds, 0 to 86400")
    return seconds


def path_of(value: Any) -> Path:
    text = os.fspath(value)
    if not text or "\0" in text:
        raise ValueError(f"{text!r} is not a path")
    return Path(text)


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


@dataclass(frozen=True)
class Schema(Generic[C]):
    """The settings of one program: their class, how each is parsed, what the file may hold, and what must be true of all
    of them together. ``other_names``: settings of another program, which may stand beside them."""

    config: type[C]
    parsers: Mapping[str, Callable[[Any], Any]]
    file: type[msgspec.Struct]
    check: Callable[[C], None]
    other_names: tuple[str, ...] = ()

    def resolve(
        self, flags: Mapping[str, Any] | None, environ: Mapping[str, str], file: Path | None
    ) -> tuple[C, dict[str, str]]:
        """See `resolve`."""
        flags = {name: value for name, value in (flags or {}).items() if value is not None}
        assert flags.keys() <= self.parsers.keys(), flags.keys() - self.parsers.keys()
        variables = self._read_environment(environ)
        if file is None and environ.get(CONFIG_VARIABLE):
            file = Path(environ[CONFIG_VARIABLE])
        written = self._read_file(file) if file is not None else {}
        values: dict[str, Any] = {}
        sources = dict.fromkeys(self.parsers, "default")
        # In the order of precedence, so that what is overridden is checked all the same.
        for name, parse in self.parsers.items():
            if name in written:
                values[name] = _parse(parse, written[name], f"{file}: {name}", ConfigError)
                sources[name] = str(file)
            if name in variables:
                sources[name] = PREFIX + name.upper()
                values[name] = _parse(parse, variables[name], sources[name], ConfigError)
            if name in flags:
                sources[name] = "--" + name.replace("_", "-")
                values[name] = _parse(parse, flags[name], sources[name], UsageError)
        config = self.config(**values)
        self.check(config)
        return config, sources

    def _read_environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        names = {PREFIX + name.upper(): name for name in self.parsers}
        others = (*OTHER_VARIABLES, *(PREFIX + name.upper() for name in self.other_names))
        found = {}
        for variable in sorted(environ):
            if not variable.startswith(PREFIX) or variable in others:
                continue
            if variable not in names:
                raise ConfigError(f"unknown variable {variable}{_nearest(variable, [*names, *others])}")
            if environ[variable] != "":  # an empty one is how a script unsets it
                found[names[variable]] = environ[variable]
        return found

    def _read_file(self, path: Path) -> dict[str, Any]:
        try:
            table = msgspec.toml.decode(path.read_bytes())
        except OSError as error:
            raise ConfigError(f"configuration file {path}: {error.strerror}") from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"configuration file {path}: not TOML: {error}") from error
        for key in table:
            if key not in self.parsers and key not in self.other_names:
                nearest = _nearest(key, [*self.parsers, *self.other_names])
                raise ConfigError(f"configuration file {path}: unknown key {key}{nearest}")
        try:
            checked = msgspec.convert({key: table[key] for key in table if key in self.parsers}, self.file)
        except msgspec.ValidationError as error:
            raise ConfigError(f"configuration file {path}: {error}") from error
        return {name: value for name in self.parsers if (value := getattr(checked, name)) is not None}


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


def check_config(config: ServerConfig) -> None:
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


def _parse(
    parse: Callable[[Any], Any], value: Any, source: str, error: type[ConfigError] | type[UsageError]
) -> Any:
    try:
        return parse(value)
    except ValueError as problem:
        raise error(f"{source}: {problem}") from None


def _nearest(name: str, known: Iterable[str]) -> str:
    matches = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {matches[0]}?)" if matches else ""


SCHEMA = Schema(ServerConfig, PARSERS, FileConfig, check_config, GATEWAY_NAMES)
