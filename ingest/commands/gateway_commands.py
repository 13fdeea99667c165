"""The commands `gateway` and `serve`."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ingest.commands.options import COMMON, CONNECT, GATEWAY, SERVER, add_options, file_option, open_option
from ingest.engine import server_config
from ingest.runtime import signals

if TYPE_CHECKING:
    from ingest.gateway.process.gateway_config import GatewayConfig


@click.command()
@file_option
@open_option
@add_options((*COMMON[:2], *CONNECT[:2], *GATEWAY, *COMMON[2:4], *CONNECT[2:], *COMMON[4:]))
def gateway(file: Path | None, **flags: Any) -> None:
    """Serves files of any size over HTTP, stored in a server beside it, until TERM, INT, QUIT or PWR; docs/http.md.

    HUP reads tokens, certificates, keys and the log level again. On an address that is not loopback it starts only with
    --token-file or --open.

    \b
    Example:
      ingest gateway --data-dir /var/lib/ingest --http-listen 127.0.0.1:8080
    """
    from ingest.gateway.process.gateway_processes import run_gateway

    def read_config() -> GatewayConfig:
        return _gateway_config(flags, file)

    signals.begin_server()
    sys.exit(run_gateway(read_config(), read_config))


@click.command()
@file_option
@open_option
@add_options((*SERVER, *GATEWAY))
def serve(file: Path | None, **flags: Any) -> None:
    """Runs a server and its gateway: files in and out over HTTP, with nothing beside it.

    Takes the flags of `ingest server` and of `ingest gateway`; --tls-cert and --tls-key are for the ports of both.

    \b
    Example:
      ingest serve --data-dir /var/lib/ingest
    """
    from ingest.gateway.process.serve import run_both

    signals.begin_server()
    server_flags = {name: flags[name] for name in server_config.PARSERS}
    sys.exit(
        run_both(
            lambda: server_config.load_config(server_flags, os.environ, file),
            lambda: _gateway_config(flags, file),
        )
    )


def _gateway_config(flags: Mapping[str, Any], file: Path | None) -> GatewayConfig:
    from ingest.gateway.process import gateway_config

    # A flag that may be repeated is an empty list when it is not there.
    given = {name: value for name, value in flags.items() if name in gateway_config.PARSERS and value != ()}
    return gateway_config.load_config(given, os.environ, file)
