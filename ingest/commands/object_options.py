"""Flags that several of the object commands have: where the objects are, with the variables of the server; and how results
are printed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from functools import wraps
from typing import Any

import click
from click.core import ParameterSource

from ingest.commands.backend import Backend
from ingest.commands.local_backend import LocalBackend, LocalNode
from ingest.commands.options import PATH
from ingest.errors import UsageError
from ingest.runtime.listeners import Address, parse_address

NAMESPACE_DEFAULT = "objects"  # that of the gateway's API of this name
Command = Callable[..., None]


def _address(_: click.Context, __: click.Parameter, text: str | None) -> Address | None:
    if text is None:
        return None
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


def _port(flag: str, text: str) -> Callable[[Command], Command]:
    variable = "INGEST_" + flag.strip("-").replace("-", "_").upper()
    return click.option(
        flag,
        callback=_address,
        metavar="HOST:PORT",
        envvar=variable,
        help=f"{text} [default: where the server of DIR says that it listens]",
    )


CONNECT = _port("--connect", "Put port.")
READ_CONNECT = _port("--read-connect", "Get port.")


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


_GATEWAY = click.option(
    "--gateway",
    metavar="URL",
    envvar="INGEST_GATEWAY",
    help="Of a gateway, instead of all that is the server's: http://HOST:PORT, https://HOST:PORT.",
)
_TOKEN_FILE = click.option(
    "--token-file", type=PATH, metavar="FILE", help="The token for it. [default: $INGEST_TOKEN]"
)
_TLS_CA = click.option(
    "--tls-ca",
    "gateway_ca",
    type=PATH,
    metavar="FILE",
    envvar="INGEST_TLS_CA",
    help="CAs of its certificate, PEM. [default: the system's]",
)
_OF_GATEWAY = ("gateway", "token_file", "gateway_ca")


def backend_options(*more: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """The flags that say where the objects are: --data-dir with ``more`` of its server's, or --gateway with its own. The
    command gets what they mean as ``backend``."""

    def decorate(command: Command) -> Command:
        @wraps(command)
        def chosen(**options: Any) -> None:
            context = click.get_current_context()
            own = {name: options.pop(name) for name in _OF_GATEWAY}
            named = {field.name for field in fields(LocalNode)} & options.keys()
            node = {name: options.pop(name) for name in sorted(named)}
            command(backend=_backend(context, own, node), **options)

        options: tuple[Callable[[Command], Command], ...] = (_GATEWAY, _TOKEN_FILE, _TLS_CA, DATA_DIR, *more)
        found: Command = chosen
        for option in reversed(options):
            found = option(found)
        return found

    return decorate


def _backend(context: click.Context, own: Mapping[str, Any], node: Mapping[str, Any]) -> Backend:
    """A flag goes before a variable; a variable of a gateway, which nothing else needs, before the server's. UsageError for
    flags of both."""

    def flags(names: Iterable[str]) -> list[str]:
        given = (name for name in names if context.get_parameter_source(name) is ParameterSource.COMMANDLINE)
        options = {parameter.name: parameter.opts[0] for parameter in context.command.params}
        return [options[name] for name in given]

    server, gateway = flags(node), flags(own)
    if server and gateway:
        raise UsageError(f"{server[0]} and {gateway[0]}: the objects are a server's or a gateway's")
    if server or own["gateway"] is None:
        if gateway:
            raise UsageError(f"{gateway[0]} is for a gateway: --gateway says which")
        return LocalBackend(LocalNode(**node))
    from ingest.commands.gateway_backend import GatewayBackend
    from ingest.commands.gateway_client import GatewayAddress
    from ingest.gateway.http.token_file import check_token, read_token

    token = None
    if own["token_file"] is not None:
        token = read_token(own["token_file"])
    elif os.environ.get("INGEST_TOKEN"):  # read here: --help would show the value of a flag's variable
        token = check_token(os.environ["INGEST_TOKEN"], "INGEST_TOKEN")
    return GatewayBackend(GatewayAddress(own["gateway"], token, own["gateway_ca"]))


def print_result(content: Mapping[str, Any], lines: Sequence[str], as_json: bool) -> None:
    """One JSON object, or the lines."""
    if as_json:
        click.echo(json.dumps(content))
    else:
        for line in lines:
            click.echo(line)
