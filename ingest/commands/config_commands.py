"""The command `check-config`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ingest.commands.options import AS_JSON, CONNECT, GATEWAY, SERVER, add_options, file_option, open_option
from ingest.engine import server_config
from ingest.errors import UsageError

if TYPE_CHECKING:
    from ingest.engine.check_server import CheckedConfig

_WHAT = {"server": "a server", "gateway": "a gateway", "serve": "a server with its gateway"}


@click.command("check-config")
@click.argument("program", metavar="[server|gateway|serve]", type=click.Choice(list(_WHAT)), default="server")
@file_option
@open_option
@add_options((*SERVER, *GATEWAY, *CONNECT))
@AS_JSON
def check_config(program: str, file: Path | None, as_json: bool, **flags: Any) -> None:
    """Prints what `ingest server` would start with, or one of the other two; where each value comes from; and what would
    keep it from starting. Takes the flags of that command.

    Makes and starts nothing. Exits as the start would: 0, 75 (one runs there, a port is taken) or 78.

    \b
    Example:
      ingest check-config --config /etc/ingest.toml
      ingest check-config serve --config /etc/ingest.toml
    """
    checked = _check(program, file, {name: value for name, value in flags.items() if value not in (None, ())})
    if as_json:
        click.echo(json.dumps(checked.as_json()))
    else:
        width = max(len(name) for name in checked.settings)
        most = max(len(value) for value, _ in checked.settings.values())
        for name, (value, source) in checked.settings.items():
            click.echo(f"{name:{width}}  {value:{most}}  {source}")
        for note in checked.notes:
            click.echo(f"note: {note}")
        for problem in checked.problems:
            click.echo(f"problem: {problem.what}")
        click.echo(f"{_WHAT[program]} would {'not ' if checked.problems else ''}start")
    sys.exit(checked.exit_code)


def _check(program: str, file: Path | None, flags: Mapping[str, Any]) -> CheckedConfig:
    """``flags``: those that were given. UsageError for one that the program does not have."""
    from ingest.engine.check_server import check

    of_server = server_config.PARSERS.keys()
    if program == "server":
        _refuse(flags, of_server, program)
        return check(flags, os.environ, file)
    from ingest.gateway.process.check_gateway import ENGINE_NAMES, check_both, check_gateway
    from ingest.gateway.process.gateway_config import PARSERS

    if program == "gateway":
        _refuse(flags, PARSERS.keys(), program)
        return check_gateway(flags, os.environ, file)
    _refuse(flags, (of_server | PARSERS.keys()) - set(ENGINE_NAMES), program)
    server, gateway = (
        {name: flags[name] for name in flags if name in names} for names in (of_server, PARSERS.keys())
    )
    return check_both(server, gateway, os.environ, file)


def _refuse(flags: Mapping[str, Any], known: Set[str], program: str) -> None:
    for name in flags:
        if name not in known:
            raise UsageError(f"--{name.replace('_', '-')}: `ingest {program}` has no such flag")
