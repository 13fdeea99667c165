"""Where the server of a data directory listens: it says so in DATA/.ingest/lock."""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path
from typing import Any

from ingest.config import ServerConfig
from ingest.gateway.config import GatewayConfig
from ingest.listeners import Address, parse_address
from ingest.store.store import META


def announced(data_dir: Path) -> dict[str, Any]:
    """`pid`, and the addresses `put`, `get` and `admin` as text; nothing while no server has said so."""
    try:
        found = json.loads((data_dir / META / "lock").read_bytes())
    except (OSError, ValueError):  # not there yet, or about to be written
        return {}
    return found if isinstance(found, dict) else {}


def reachable(text: str) -> Address:
    """Where to connect to for an address that is listened on: a wildcard is reached at loopback. ValueError."""
    host, port = parse_address(text)
    address = ipaddress.ip_address(host.partition("%")[0])
    if address.is_unspecified:
        host = "127.0.0.1" if address.version == 4 else "::1"
    return host, port


def admin_address(config: GatewayConfig) -> Address:
    """The admin port of the engine: what the server of the data directory says, when it is the one that chunks are put into;
    else the usual port of the machine that they are put into."""
    found = announced(config.data_dir)
    try:
        if parse_address(found["put"])[1] == config.connect[1]:
            return reachable(found["admin"])
    except (KeyError, TypeError, AttributeError, ValueError):  # nothing there, or no address
        pass
    return config.connect[0], ServerConfig().admin_listen[1]
