"""`ingest serve`: a server and its gateway under one parent, which starts both and ends both, the gateway first."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ingest import limits, workers
from ingest.engine import admin, pool
from ingest.engine import server as server_of
from ingest.engine.announcement import announced, reachable
from ingest.engine.commit import committer
from ingest.engine.server_config import ServerConfig
from ingest.errors import ConfigError
from ingest.gateway.process.gateway_config import GatewayConfig
from ingest.gateway.process.gateway_processes import (
    bind,
    check_before,
    close,
    refuse_other_gateway,
    run_gateway,
)
from ingest.runtime import logs
from ingest.runtime.listeners import Address, format_address
from ingest.runtime.supervised import Child
from ingest.runtime.supervisor import Supervisor
from ingest.tls import read_certificates

log = logging.getLogger(__name__)

ReadServer = Callable[[], ServerConfig]
ReadGateway = Callable[[], GatewayConfig]


def run_both(read_server: ReadServer, read_gateway: ReadGateway) -> int:
    """Until it is told to drain. Returns the exit code; raises IngestError when one of them cannot serve."""
    server_config, gateway_config = read_server(), beside(read_server(), read_gateway())
    logs.start(server_config.log_level)
    logs.name_process("serve")
    check_before(gateway_config)
    server_of.check_before(server_config)
    refuse_other_gateway(gateway_config.data_dir)
    _refuse_addresses(server_config, gateway_config)
    server = Child("server", lambda: _server_main(server_config, read_server), stays=True, reloads=True)
    gateway = Child(
        "gateway", lambda: _gateway_main(server, read_server, read_gateway), stays=True, reloads=True
    )
    # Each of them drains within its own time-out.
    patience = server_config.drain_timeout + gateway_config.drain_timeout + limits.SERVE_MARGIN_S
    return Supervisor([[server], [gateway]], patience).run()


def _refuse_addresses(server: ServerConfig, gateway: GatewayConfig) -> None:
    """All of them are bound at once, and let go again: the gateway binds its own only when the server has made a store.
    PortTakenError, ConfigError."""
    ports = server_of.bind(server)
    try:
        close(bind(gateway))
    finally:
        ports.close()


def beside(server: ServerConfig, gateway: GatewayConfig) -> GatewayConfig:
    """The gateway's configuration when the engine is this server. ConfigError."""
    if server.tls_client_ca is not None:
        raise ConfigError(
            "tls_client_ca: a gateway then needs a certificate of its own: "
            "run `ingest server` and `ingest gateway --connect-tls-ca … --connect-tls-cert …`"
        )
    for name in ("listen", "read_listen", "admin_listen"):
        address: Address = getattr(server, name)
        if address[1] and address in gateway.listening:
            raise ConfigError(f"{name}: {format_address(address)} is an address of the gateway too")
    own = None if server.tls_cert is None else read_certificates(server.tls_cert, None, None)
    return replace(gateway, connect_tls_own=own)


def _server_main(config: ServerConfig, read_config: ReadServer) -> int:
    _leave_the_terminal()
    roles = pool.Roles(admin.admin_main, committer.committer_main, workers.worker_main)
    return server_of.run_server(config, roles, read_config)


def _gateway_main(server: Child, read_server: ReadServer, read_gateway: ReadGateway) -> int:
    _leave_the_terminal()
    data_dir = read_gateway().data_dir
    put, get = _wait_for(data_dir, server.pid)

    def read_config() -> GatewayConfig:
        return replace(beside(read_server(), read_gateway()), connect=put, read_connect=get)

    return run_gateway(read_config(), read_config)


def _leave_the_terminal() -> None:
    """A Ctrl-C goes to the group of the parent, who ends the two in their order."""
    os.setpgid(0, 0)


def _wait_for(data_dir: Path, pid: int) -> tuple[Address, Address]:
    """Where the server with this pid puts and gets: it says so when its ports are bound. Its end ends this process too."""
    while True:
        found = announced(data_dir)
        if found.get("pid") == pid and "put" in found and "get" in found:
            return reachable(found["put"]), reachable(found["get"])
        time.sleep(limits.SUPERVISION_INTERVAL_S)
