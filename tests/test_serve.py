"""`ingest serve`: what its parent refuses before it starts anything, and what the gateway is told of the server."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ingest import limits
from ingest.catalog.catalog_socket import service_lock
from ingest.engine.server_config import ServerConfig
from ingest.errors import ConfigError, IngestError, KeyFileError, PortTakenError, StoreLockedError
from ingest.gateway.process import serve
from ingest.gateway.process.gateway_config import GatewayConfig
from ingest.runtime import listeners, lock_file
from ingest.runtime.supervised import Child
from ingest.store.data_dir import DataDir

HERE = "127.0.0.1"
PID = os.getpid()
OURS = f"127.{PID >> 16 & 63 | 64}.{PID >> 8 & 255}.{PID & 255 or 1}"  # nobody else takes a port of it
PORTS = ("listen", "read_listen", "admin_listen", "http_listen", "api")


def free_ports(count: int) -> list[tuple[str, int]]:
    with ExitStack() as stack:
        return [stack.enter_context(socket.create_server((OURS, 0))).getsockname() for _ in range(count)]


@pytest.fixture
def configs(tmp_path: Path) -> tuple[ServerConfig, GatewayConfig]:
    put, get, admin, http, api = free_ports(5)
    server = ServerConfig(
        data_dir=tmp_path / "data",
        listen=put,
        read_listen=get,
        admin_listen=admin,
        workers=2,
        drain_timeout=3,
    )
    gateway = GatewayConfig(tmp_path / "data", http, api=(("blob", api),), http_workers=2, drain_timeout=4)
    return server, gateway


@pytest.fixture(autouse=True)
def families(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Those that parents would have started: none is."""
    found: list[dict[str, Any]] = []

    def supervisor(ranks: Sequence[Sequence[Child]], patience: float, **more: Any) -> Any:
        family = {"ranks": ranks, "patience": patience, **more}

        class Parent:
            def run(self) -> int:
                found.append(family)
                return 7

        return Parent()

    monkeypatch.setattr(serve, "Supervisor", supervisor)
    monkeypatch.setattr(serve.logs, "start", lambda _: None)
    monkeypatch.setattr(serve.logs, "name_process", lambda _: None)
    return found


def addresses(server: ServerConfig, gateway: GatewayConfig) -> list[listeners.Address]:
    return [server.listen, server.read_listen, server.admin_listen, *gateway.listening]


def test_the_gateway_ends_first_and_the_end_of_each_is_the_end_of_both(
    configs: tuple[ServerConfig, GatewayConfig], families: list[dict[str, Any]]
) -> None:
    server, gateway = configs
    assert serve.run_both(lambda: server, lambda: gateway) == 7
    (family,) = families
    assert [[child.name for child in rank] for rank in family["ranks"]] == [["server"], ["gateway"]]
    assert all(child.stays and child.reloads for rank in family["ranks"] for child in rank)
    assert family["patience"] == 3 + 4 + limits.SERVE_MARGIN_S, "each drains within its own time"
    listeners.close_all(sock for address in addresses(*configs) for sock in listeners.bind_alone(address))


TROUBLES = [
    "another server",
    "another gateway",
    "tokens",
    "certificate",
    "server's certificate",
    "key",
    "one address",
]


@pytest.mark.parametrize("trouble", [*PORTS, *TROUBLES])
def test_a_start_that_is_refused_makes_nothing_and_keeps_no_port(
    configs: tuple[ServerConfig, GatewayConfig], families: list[dict[str, Any]], trouble: str
) -> None:
    """Whichever of the two would be: a server alone would have made a store."""
    server, gateway = configs
    absent, inside = server.data_dir.parent / "absent", DataDir(server.data_dir)
    held: Any = nullcontext()
    expected: type[IngestError] = ConfigError
    if trouble in PORTS:
        held, expected = (
            socket.create_server(addresses(server, gateway)[PORTS.index(trouble)]),
            PortTakenError,
        )
    elif trouble == "another server":
        inside.meta.mkdir(parents=True)
        held, expected = _Locked(inside.lock, inside.meta), StoreLockedError
    elif trouble == "another gateway":
        inside.meta.mkdir(parents=True)
        held, expected = service_lock(server.data_dir), StoreLockedError
    elif trouble == "tokens":
        gateway, expected = replace(gateway, token_file=absent), KeyFileError
    elif trouble == "certificate":
        gateway = replace(gateway, tls_cert=absent, tls_key=absent)
    elif trouble == "server's certificate":
        server = replace(server, tls_cert=absent, tls_key=absent)
    elif trouble == "key":
        server, expected = replace(server, key_file=absent), KeyFileError
    else:
        server = replace(server, read_listen=gateway.http_listen)
    with held:
        before = sorted(server.data_dir.parent.rglob("*"))
        with pytest.raises(expected):
            serve.run_both(lambda: server, lambda: gateway)
        assert sorted(server.data_dir.parent.rglob("*")) == before
    assert not families
    listeners.close_all(sock for address in addresses(*configs) for sock in listeners.bind_alone(address))


class _Locked:
    def __init__(self, path: Path, directory: Path) -> None:
        self._fds = lock_file.acquire(path, directory)

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        for fd in self._fds:
            os.close(fd)


# --- what the gateway is told of the server

WHOLE = {"pid": 11, "put": "0.0.0.0:5", "get": "127.0.0.1:6", "admin": "127.0.0.1:7"}
EARLY: list[dict[str, Any]] = [
    {},
    WHOLE | {"pid": 12},  # of one that ran before
    WHOLE | {"pid": None},
    {key: WHOLE[key] for key in ("put", "get")},
    {key: WHOLE[key] for key in ("pid", "put")},
    {key: WHOLE[key] for key in ("pid", "get")},
]


def says(monkeypatch: pytest.MonkeyPatch, answers: Iterator[dict[str, Any]]) -> list[float]:
    slept: list[float] = []
    monkeypatch.setattr(serve, "announced", lambda _: next(answers))
    monkeypatch.setattr(serve.time, "sleep", slept.append)
    return slept


@pytest.mark.parametrize("early", [*([one] for one in EARLY), EARLY])
def test_the_gateway_waits_for_the_server_beside_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, early: list[dict[str, Any]]
) -> None:
    """For that one, which has bound its ports by then: what stands there is another one's, or not all of it."""
    slept = says(monkeypatch, iter([*early, WHOLE]))
    assert serve._wait_for(tmp_path, 11) == ((HERE, 5), (HERE, 6))
    assert len(slept) == len(early)


def test_the_gateway_has_what_the_server_has_by_now(
    monkeypatch: pytest.MonkeyPatch, configs: tuple[ServerConfig, GatewayConfig], tmp_path: Path
) -> None:
    """At its start, and again at each HUP. Its group is its own: a Ctrl-C is for the parent, who ends the two in order."""
    server, gateway = configs
    cert = tmp_path / "cert"
    cert.write_bytes(b"first")
    server = replace(server, tls_cert=cert, tls_key=tmp_path / "key")
    gateway = replace(gateway, connect=("192.0.2.1", 1), read_connect=("192.0.2.1", 2))
    says(monkeypatch, iter([WHOLE]))
    groups: list[Any] = []
    monkeypatch.setattr(os, "setpgid", lambda *of: groups.append(of))

    def run_gateway(config: GatewayConfig, read: Callable[[], GatewayConfig]) -> int:
        assert config.connect_tls_own is not None and config.connect_tls_own.chain == b"first"
        assert replace(config, connect_tls_own=None) == replace(
            gateway, connect=(HERE, 5), read_connect=(HERE, 6)
        )
        cert.write_bytes(b"second")
        later = read()
        assert later.connect_tls_own is not None and later.connect_tls_own.chain == b"second"
        assert replace(later, connect_tls_own=None) == replace(config, connect_tls_own=None)
        return 5

    monkeypatch.setattr(serve, "run_gateway", run_gateway)
    assert serve._gateway_main(Child("server", lambda: 0, pid=11), lambda: server, lambda: gateway) == 5
    monkeypatch.setattr(serve.server_of, "run_server", lambda config, roles, read: config.drain_timeout)
    assert serve._server_main(server, lambda: server) == 3
    assert groups == [(0, 0)] * 2
