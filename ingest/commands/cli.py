"""The command line: flags to calls. Results go to stdout, logs and errors to stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

import ingest
from ingest.commands.catalog_commands import COMMANDS as CATALOG_COMMANDS
from ingest.commands.config_commands import check_config
from ingest.commands.gateway_commands import gateway, serve
from ingest.commands.object_commands import COMMANDS as OBJECT_COMMANDS
from ingest.commands.options import server_options
from ingest.commands.store_commands import export, fsck, inspect
from ingest.engine import server_config
from ingest.errors import ConfigError, IngestError, UsageError
from ingest.runtime import logs, signals
from ingest.runtime.child import hold_standard_descriptors
from ingest.runtime.listeners import Address, parse_address
from ingest.secret_text import without_keys

_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


@click.group(context_settings=_SETTINGS)
@click.version_option(ingest.__version__, prog_name="ingest")
def cli() -> None:
    """Takes small records off the network, checks who sent them, and says SAVED when they are durable."""


@cli.command()
@server_options
def server(file: Path | None, **flags: str | None) -> None:
    """Runs a server until TERM, INT, QUIT or PWR, which drain it; a second one ends it at once.

    HUP reloads keys, certificates and the log level.

    A flag goes before its variable (INGEST_DATA_DIR for --data-dir), that before the file, that before the default.

    \b
    Example:
      ingest server --data-dir /var/lib/ingest --listen 0.0.0.0:5000
    """

    def read_config() -> server_config.ServerConfig:
        return server_config.load_config(flags, os.environ, file)

    signals.begin_server()
    settings = read_config()
    # Not before it is needed: the other commands start without it.
    from ingest import workers
    from ingest.engine import admin, pool
    from ingest.engine.commit import committer
    from ingest.engine.server import run_server

    roles = pool.Roles(admin.admin_main, committer.committer_main, workers.worker_main)
    sys.exit(run_server(settings, roles, read_config))


def _address(_: click.Context, __: click.Parameter, text: str) -> Address:
    try:
        return parse_address(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@cli.command()
@click.option(
    "--connect",
    callback=_address,
    metavar="HOST:PORT",
    default="127.0.0.1:5000",
    show_default=True,
    help="Put port.",
)
@click.option(
    "--read-connect",
    callback=_address,
    metavar="HOST:PORT",
    default="127.0.0.1:5005",
    show_default=True,
    help="Get port.",
)
@click.option(
    "--key-file", "key", required=True, metavar="FILE", type=click.Path(path_type=Path), help="The server's."
)
@click.option("--frames", type=int, metavar="N", help="How many in all, or")
@click.option("--duration", type=float, metavar="S", help="for how many seconds.")
@click.option("--connections", type=int, default=4, show_default=True, metavar="C", help="In all.")
@click.option(
    "--window",
    type=int,
    default=1024,
    show_default=True,
    metavar="W",
    help="In flight on each; 1: closed loop.",
)
@click.option(
    "--processes", type=int, default=1, show_default=True, metavar="P", help="That share the connections."
)
@click.option("--rate", type=float, metavar="R", help="Frames/s in all. [default: as fast as acks come]")
@click.option("--first", metavar="TICKET", help="Where to begin. [default: random, 7 characters]")
@click.option("--verify", is_flag=True, help="Read everything back and compare.")
@click.option(
    "--tls-ca", type=click.Path(path_type=Path), metavar="FILE", help="Speak TLS; CAs of the server, PEM."
)
@click.option("--tls-cert", type=click.Path(path_type=Path), metavar="FILE", help="Own certificate, PEM, and")
@click.option("--tls-key", type=click.Path(path_type=Path), metavar="FILE", help="its key.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def loopback(as_json: bool, **options: Any) -> None:
    """Puts frames into a server as fast as it takes them, and says how fast that was. Exits with 1 unless all were SAVED.

    \b
    Example:
      ingest loopback --key-file data/.ingest/key --frames 1000000 --verify
    """
    from ingest.commands.progress_bars import load_bar
    from ingest.loadgen.loopback import LoopbackOptions, run
    from ingest.loadgen.loopback_report import report_text

    chosen = LoopbackOptions(**options)
    with load_bar() as progress:
        result = run(chosen, progress)
    for problem in result.problems:
        click.echo(f"ingest: {problem}", err=True)
    if as_json:
        click.echo(json.dumps(result.as_json()))
    else:
        click.echo(report_text(result), nl=False)
    sys.exit(0 if result.ok else 1)


@cli.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--rotate", is_flag=True, help="Put a new key into FILE, which exists: one step of a rotation.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def keygen(file: Path, rotate: bool, as_json: bool) -> None:
    """Makes FILE with one new random key; only its owner can read it. An existing file is never overwritten.

    With --rotate the second key of FILE becomes the first, the first one is not accepted from the network any more, and a
    new one comes second, for the next time. A file with one key gets its second. HUP tells the server; docs/operations.md
    says when.

    \b
    Example:
      ingest keygen /etc/ingest/key
      ingest keygen --rotate /etc/ingest/key
    """
    from ingest.mac import KeyRing, derive
    from ingest.runtime.key_file import make_key_file, rotate_key_file

    if not rotate:
        key_id = derive(make_key_file(file)).id
        _print({"key_file": str(file), "id": key_id}, f"{file}: key {key_id}", as_json)
        return
    keys = KeyRing(rotate_key_file(file))
    accepted = [key.id for key in keys.accepted]
    known = list(keys.ids[len(accepted) :])
    text = f"{file}: accepted are {' and '.join(accepted)}"
    _print(
        {"key_file": str(file), "id": keys.signing.id, "accepted": accepted, "known": known},
        f"{text}; known only: {', '.join(known)}" if known else text,
        as_json,
    )


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def version(as_json: bool) -> None:
    """Prints the version.

    \b
    Example:
      ingest version --json
    """
    _print({"version": ingest.__version__}, f"ingest {ingest.__version__}", as_json)


for _command in (check_config, fsck, inspect, export, gateway, serve, *OBJECT_COMMANDS, *CATALOG_COMMANDS):
    cli.add_command(_command)


def _print(content: dict[str, Any], text: str, as_json: bool) -> None:
    click.echo(json.dumps(content) if as_json else text)


def run(command: click.Command, name: str, arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code. Errors that are expected are one line on stderr."""
    try:
        result = command.main(arguments, prog_name=name, standalone_mode=False)
        sys.stdout.flush()
    except IngestError as error:
        about_what_was_given = error.exit_code in (UsageError.exit_code, ConfigError.exit_code)
        return _complain(without_keys(str(error)) if about_what_was_given else str(error), error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        return _complain(without_keys(error.format_message()), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return _complain("interrupted", 130)
    except BrokenPipeError:
        # Who read our results has gone. Python flushes stdout once more when it ends: that must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _complain(str(error), 1)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return result if isinstance(result, int) else 0


def _complain(text: str, code: int) -> int:
    print("ingest: " + " ".join(text.split()), file=sys.stderr)
    return code


def main() -> NoReturn:
    """The command `ingest`."""
    _play(cli, "ingest")


def server_main() -> NoReturn:
    """The command `ingest-server`, which is `ingest server`."""
    _play(server, "ingest-server")


def _play(command: click.Command, name: str) -> NoReturn:
    """The whole life of a process of ours that is started by others."""
    hold_standard_descriptors()
    signals.begin()
    code = run(command, name)
    logs.flush()
    sys.exit(code)
