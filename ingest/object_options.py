"""Flags that several of the object commands have, with the variables of the server; and how results are printed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from ingest.listeners import Address, parse_address
from ingest.store_commands import PATH

NAMESPACE_DEFAULT = "objects"  # that of the gateway's API of this name
Command = Callable[..., None]


def _address(_: click.Context, __: click.Parameter, text: str) -> Address:
    try:
        return parse_address(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


DATA_DIR = click.option(
    "--data-dir",
    type=PATH,
    metavar="DIR",
    default=".",
    show_default=True,
    envvar="INGEST_DATA_DIR",
    help="The server's.",
)
KEY_FILE = click.option(
    "--key-file",
    type=PATH,
    metavar="FILE",
    envvar="INGEST_KEY_FILE",
    help="The server's. [default: DIR/.ingest/key]",
)
NAMESPACE = click.option(
    "--namespace", metavar="S", default=NAMESPACE_DEFAULT, show_default=True, help="Where the names are."
)


def _port(flag: str, default: str, text: str) -> Callable[[Command], Command]:
    variable = "INGEST_" + flag.strip("-").replace("-", "_").upper()
    return click.option(
        flag,
        callback=_address,
        metavar="HOST:PORT",
        default=default,
        show_default=True,
        envvar=variable,
        help=text,
    )


CONNECT = _port("--connect", "127.0.0.1:5000", "Put port.")
READ_CONNECT = _port("--read-connect", "127.0.0.1:5005", "Get port.")


def tls_options(command: Command) -> Command:
    for flag, text in (
        ("--connect-tls-key", "its key."),
        ("--connect-tls-cert", "Own certificate for it, PEM, and"),
        ("--connect-tls-ca", "Speak TLS with the server; CAs of its certificate, PEM."),
    ):
        variable = "INGEST_" + flag.strip("-").replace("-", "_").upper()
        name = flag.removeprefix("--connect-").replace("-", "_")
        command = click.option(flag, name, type=PATH, metavar="FILE", envvar=variable, help=text)(command)
    return command


def print_result(content: Mapping[str, Any], lines: Sequence[str], as_json: bool) -> None:
    """One JSON object, or the lines."""
    if as_json:
        click.echo(json.dumps(content))
    else:
        for line in lines:
            click.echo(line)
