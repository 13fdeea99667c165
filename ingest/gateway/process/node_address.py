"""What the engine of a gateway says of itself, when it is the server of the gateway's data directory."""

from __future__ import annotations

from typing import Any

from ingest.engine.announcement import reachable, running
from ingest.engine.server_config import ServerConfig
from ingest.gateway.process.gateway_config import GatewayConfig
from ingest.runtime.listeners import Address, parse_address


def engine(config: GatewayConfig) -> dict[str, Any] | None:
    """What the server says that runs on the data directory, if it is the one that chunks are put into, or has not said yet
    where it listens. None when the engine is elsewhere, or does not run."""
    found = running(config.data_dir)
    try:
        if found and parse_address(found["put"])[1] != config.connect[1]:
            return None
    except (KeyError, TypeError, AttributeError, ValueError):  # no address
        return {}
    return found


def admin_address(config: GatewayConfig) -> Address:
    """The admin port of the engine: the one that it says; else the usual port of the machine that chunks are put into."""
    try:
        return reachable((engine(config) or {})["admin"])
    except (KeyError, TypeError, AttributeError, ValueError):
        return config.connect[0], ServerConfig().admin_listen[1]
