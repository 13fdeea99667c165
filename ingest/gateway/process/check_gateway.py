"""What a gateway, or a server with its gateway, would start with, and what would keep it from starting. Starts and makes
nothing. The server's part: `ingest.engine.check_server`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ingest import limits
from ingest.catalog.catalog_socket import catalog_path
from ingest.engine import check_server
from ingest.engine.check_server import CheckedConfig, check_addresses
from ingest.errors import StoreLockedError
from ingest.gateway.process.gateway_config import SCHEMA, GatewayConfig
from ingest.gateway.process.gateway_processes import check_before, refuse_other_gateway
from ingest.gateway.process.serve import beside
from ingest.gateway.process.signing_keys import read_keys
from ingest.runtime import key_file
from ingest.runtime.listeners import Address, format_address
from ingest.secret_text import shown
from ingest.store.data_dir import DataDir
from ingest.store.permission import refuse_absent, refuse_unwritable_meta
from ingest.store.space import existing

Flags = Mapping[str, Any]
# Of a gateway alone: in `ingest serve` the engine is the server beside it.
ENGINE_NAMES = ("connect", "read_connect", "connect_tls_ca", "connect_tls_cert", "connect_tls_key")


def check_gateway(flags: Flags, environ: Mapping[str, str], file: Path | None) -> CheckedConfig:
    """As `check_server.check`, for `ingest gateway`: the data directory, keys, tokens, certificates, addresses. Not
    whether its engine answers: it waits for that."""
    config, sources = SCHEMA.resolve(flags, environ, file)
    checked = CheckedConfig({name: (_text(config, name), source) for name, source in sources.items()})
    checked.attempt(_data_dir, config, checked)
    if not checked.problems:  # else nothing can be said of what is in it
        checked.attempt(read_keys, config)
    elif config.key_file is not None and not config.key_file.is_relative_to(config.data_dir):
        checked.attempt(key_file.read_keys, config.key_file)
    checked.attempt(_gateway, config, checked)
    check_addresses(_addresses(config), _announced(config.data_dir), checked)
    return checked


def check_both(
    server_flags: Flags, flags: Flags, environ: Mapping[str, str], file: Path | None
) -> CheckedConfig:
    """The same for `ingest serve`: all that a server needs, and what its gateway needs beside it."""
    server, checked = check_server.check_all_but_addresses(server_flags, environ, file)
    config, sources = SCHEMA.resolve(flags, environ, file)
    for name, source in sources.items():
        if name not in checked.settings and name not in ENGINE_NAMES:
            checked.settings[name] = _text(config, name), source
    checked.attempt(beside, server, config)
    checked.attempt(_gateway, config, checked)
    own = check_server.held_addresses(config.data_dir) | _announced(config.data_dir)
    check_addresses([*check_server.addresses_of(server), *_addresses(config)], own, checked)
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
    refuse_absent(config.data_dir)
    refuse_unwritable_meta(config.data_dir)
    if not catalog_path(config.data_dir).exists():
        checked.notes.append(f"{config.data_dir} holds no catalog yet: an empty one will be made")


def _gateway(config: GatewayConfig, checked: CheckedConfig) -> None:
    """What a gateway needs wherever its engine is."""
    checked.attempt(check_before, config)
    checked.attempt(refuse_other_gateway, config.data_dir)
    checked.attempt(_space, config, checked)


def _space(config: GatewayConfig, checked: CheckedConfig) -> None:
    """A note when the disk has no room for what the catalog takes in advance."""
    path = DataDir(config.data_dir).catalog_reserve
    found = os.statvfs(existing(path.parent))
    free, taken = found.f_bavail * found.f_frsize, path.stat().st_size if path.exists() else 0
    if free < limits.CATALOG_RESERVE_SIZE - taken:
        what = (
            "new objects would be refused" if catalog_path(config.data_dir).exists() else "none can be made"
        )
        checked.notes.append(
            f"no space: the file system of {config.data_dir}: {free >> 20} MiB are free, "
            f"the reserve of the catalog is {limits.CATALOG_RESERVE_SIZE >> 20} MiB; {what}"
        )


def _addresses(config: GatewayConfig) -> list[tuple[str, Address]]:
    return [("http_listen", config.http_listen), *((f"api {name}", address) for name, address in config.api)]


def _announced(data_dir: Path) -> set[str]:
    """Where the gateway that runs on a data directory says that it listens."""
    try:
        refuse_other_gateway(data_dir)
        return set()
    except StoreLockedError:
        pass
    try:
        found = json.loads(DataDir(data_dir).gateway_json.read_bytes())
    except (OSError, ValueError):  # it is about to end
        return set()
    return {text for text in found.values() if isinstance(text, str)} if isinstance(found, dict) else set()
