"""What a gateway, or a server with its gateway, would start with, and what would keep it from starting. Starts and makes
nothing. The server's part: `ingest.engine.check_server`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ingest.catalog.catalog_socket import catalog_path
from ingest.engine import check_server, server_config
from ingest.engine.check_server import CheckedConfig, Problem, check_address
from ingest.errors import BusyError, ConfigError
from ingest.gateway.process.gateway_config import SCHEMA, GatewayConfig
from ingest.gateway.process.gateway_processes import check_before
from ingest.gateway.process.serve import beside
from ingest.gateway.process.signing_keys import read_keys
from ingest.runtime.listeners import format_address
from ingest.runtime.lock_file import is_held
from ingest.secret_text import shown
from ingest.store.data_dir import DataDir

Flags = Mapping[str, Any]
# Of a gateway alone: in `ingest serve` the engine is the server beside it.
ENGINE_NAMES = ("connect", "read_connect", "connect_tls_ca", "connect_tls_cert", "connect_tls_key")


def check_gateway(flags: Flags, environ: Mapping[str, str], file: Path | None) -> CheckedConfig:
    """As `check_server.check`, for `ingest gateway`: the data directory, keys, tokens, certificates, addresses. Not
    whether its engine answers: it waits for that."""
    config, sources = SCHEMA.resolve(flags, environ, file)
    checked = CheckedConfig({name: (_text(config, name), source) for name, source in sources.items()})
    checked.attempt(_data_dir, config, checked)
    checked.attempt(read_keys, config)
    checked.attempt(_gateway, config, checked)
    return checked


def check_both(
    server_flags: Flags, flags: Flags, environ: Mapping[str, str], file: Path | None
) -> CheckedConfig:
    """The same for `ingest serve`: all that a server needs, and what its gateway needs beside it."""
    checked = check_server.check(server_flags, environ, file)
    config, sources = SCHEMA.resolve(flags, environ, file)
    server, _ = server_config.resolve(server_flags, environ, file)
    for name, source in sources.items():
        if name not in checked.settings and name not in ENGINE_NAMES:
            checked.settings[name] = _text(config, name), source
    checked.attempt(beside, server, config)
    checked.attempt(_gateway, config, checked)
    return checked


def _text(config: GatewayConfig, name: str) -> str:
    value = getattr(config, name)
    if value is None:
        return str(DataDir(config.data_dir).key) if name == "key_file" else "-"
    if name == "api":
        return ", ".join(f"{api}={format_address(address)}" for api, address in value) or "-"
    if name == "host":
        return ", ".join(value) or "-"
    if isinstance(value, bool):
        return str(value).lower()
    if name.endswith(("_file", "_key")):
        return shown(value)
    return format_address(value) if isinstance(value, tuple) else str(value)


def _data_dir(config: GatewayConfig, checked: CheckedConfig) -> None:
    if not DataDir(config.data_dir).meta.is_dir():
        raise ConfigError(f"{config.data_dir} holds no store: start `ingest server` on it first")
    if not catalog_path(config.data_dir).exists():
        checked.notes.append(f"{config.data_dir} holds no catalog yet: an empty one will be made")


def _gateway(config: GatewayConfig, checked: CheckedConfig) -> None:
    """What a gateway needs wherever its engine is."""
    checked.attempt(check_before, config)
    runs = _runs(config.data_dir)
    if runs:
        checked.problems.append(Problem(f"a gateway runs on {config.data_dir}", BusyError.exit_code))
    own = _announced(config.data_dir) if runs else set()
    check_address("http_listen", config.http_listen, own, checked)
    for name, address in config.api:
        check_address(f"api {name}", address, own, checked)


def _runs(data_dir: Path) -> bool:
    """Whether a gateway has the catalog."""
    try:
        return is_held(DataDir(data_dir).catalog_lock, data_dir)
    except FileNotFoundError:
        return False


def _announced(data_dir: Path) -> set[str]:
    """Where the gateway of a data directory says that it listens."""
    try:
        found = json.loads(DataDir(data_dir).gateway_json.read_bytes())
    except (OSError, ValueError):  # it is about to end
        return set()
    return {text for text in found.values() if isinstance(text, str)} if isinstance(found, dict) else set()
