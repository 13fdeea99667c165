"""Flags that several commands have. Those of servers stay text: `settings_schema` reads flags, variables and file alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import click

from ingest import limits
from ingest.engine import server_config
from ingest.runtime import logs

Command = Callable[..., None]
PATH = click.Path(path_type=Path)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
Row = tuple[str, str, str]  # flag, what it takes, help

_SERVER = server_config.ServerConfig()
SERVER: tuple[Row, ...] = (
    ("--data-dir", "DIR", "Where everything is stored. [default: .]"),
    ("--listen", "HOST:PORT", "Put port. [default: 127.0.0.1:5000]"),
    ("--read-listen", "HOST:PORT", "Get port. [default: 127.0.0.1:5005]"),
    ("--admin-listen", "HOST:PORT", "HTTP: health, metrics. [default: 127.0.0.1:5080]"),
    ("--workers", "N", "Worker processes, 0 for one a core. [default: 0]"),
    ("--layout", "pack|tree", "How chunks lie on disk, fixed when DIR is made. [default: pack]"),
    ("--sync", "disk|os", "What SAVED survives: power loss, or kill -9 only. [default: disk]"),
    (
        "--key-file",
        "FILE",
        "One key a line, 64 hex digits. [default: DIR/.ingest/key, made if absent]",
    ),
    ("--wal-dir", "DIR", "The write-ahead log, may be another disk. [default: DIR/.ingest/wal]"),
    ("--wal-size", "SIZE", f"Most bytes of it. [default: {_SERVER.wal_size >> 20}MiB]"),
    ("--reserve", "SIZE", f"Bytes of the disk to leave free. [default: {_SERVER.reserve >> 20}MiB]"),
    ("--drain-timeout", "S", f"Seconds to end in. [default: {_SERVER.drain_timeout:g}]"),
    (
        "--bad-frame-limit",
        "N",
        f"Bad frames that end a connection. [default: {_SERVER.bad_frame_limit}]",
    ),
    ("--bad-peer-delay", "S", "Seconds to refuse a bad peer for, growing. [default: 0, off]"),
    (
        "--tls-cert",
        "FILE",
        "Certificate of the frame ports and its chain, PEM: they then speak TLS only.",
    ),
    ("--tls-key", "FILE", "Its private key, PEM, without a password."),
    ("--tls-client-ca", "FILE", "CAs, PEM: clients must show a certificate that one of them signed."),
    ("--log-level", "|".join(logs.LEVELS), "[default: info]"),
)
GATEWAY: tuple[Row, ...] = (
    ("--http-listen", "HOST:PORT", "HTTP: all APIs. [default: 127.0.0.1:8080]"),
    ("--api", "NAME=HOST:PORT", "Serve one API alone, too; repeatable. NAME: see docs/http.md."),
    ("--http-workers", "N", "HTTP processes, 0 for one a core. [default: 0]"),
    ("--token-file", "FILE", "Who may use it: `read-only TOKEN` or `read-write TOKEN` a line."),
    ("--host", "NAME", "A name by which it is reached, beside its addresses; repeatable."),
    (
        "--collect-interval",
        "S",
        f"Seconds between collections of garbage. [default: {limits.COLLECT_INTERVAL_S:g}]",
    ),
)
CONNECT: tuple[Row, ...] = (
    ("--connect", "HOST:PORT", "Put port of the engine. [default: 127.0.0.1:5000]"),
    ("--read-connect", "HOST:PORT", "Get port of the engine. [default: 127.0.0.1:5005]"),
    ("--connect-tls-ca", "FILE", "Speak TLS with the engine; CAs of its certificate, PEM."),
    ("--connect-tls-cert", "FILE", "Own certificate for it, PEM, and"),
    ("--connect-tls-key", "FILE", "its key."),
)
COMMON: tuple[Row, ...] = (
    ("--data-dir", "DIR", "The server's: catalog and key lie in DIR/.ingest. [default: .]"),
    ("--key-file", "FILE", "The server's. [default: DIR/.ingest/key]"),
    ("--tls-cert", "FILE", "Certificate of the HTTP ports and its chain, PEM: they then speak HTTPS only."),
    ("--tls-key", "FILE", "Its private key, PEM, without a password."),
    ("--drain-timeout", "S", f"Seconds to end in. [default: {limits.DRAIN_TIMEOUT_S:g}]"),
    ("--log-level", "|".join(logs.LEVELS), "[default: info]"),
)
_REPEATABLE = ("--api", "--host")


def add_options(rows: Iterable[Row]) -> Callable[[Command], Command]:
    """The flags of ``rows``, in their order."""

    def decorate(command: Command) -> Command:
        for flag, metavar, text in reversed(tuple(rows)):
            if flag in _REPEATABLE:
                command = click.option(flag, metavar=metavar, help=text, multiple=True)(command)
            else:
                command = click.option(flag, metavar=metavar, help=text)(command)
        return command

    return decorate


def file_option(command: Command) -> Command:
    text = "TOML file with these names, data_dir for --data-dir. [default: $INGEST_CONFIG]"
    option = click.option("--config", "file", metavar="FILE", type=click.Path(path_type=Path), help=text)
    return option(command)


def open_option(command: Command) -> Command:
    return click.option("--open", is_flag=True, default=None, help="Let everybody in, on any address.")(
        command
    )


def server_options(command: Command) -> Command:
    """The flags of A6."""
    return file_option(add_options(SERVER)(command))
