"""Where the admin port of a gateway's engine is."""

from __future__ import annotations

from ingest.announcement import announced, reachable
from ingest.config import ServerConfig
from ingest.gateway.config import GatewayConfig
from ingest.listeners import Address, parse_address


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
