"""A gateway from its configuration: the catalog's process, the HTTP processes that share the ports, and the collector."""

from __future__ import annotations

import json
import logging
import os
import secrets
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from ingest import limits
from ingest.catalog.catalog_reserve import CatalogReserve
from ingest.catalog.catalog_service import serve_catalog
from ingest.catalog.catalog_socket import catalog_path, check_place, service_lock
from ingest.catalog.database import migrate
from ingest.engine.reload import use_log_level
from ingest.engine.server import raise_open_files_limit
from ingest.errors import DiskError, IngestError, StoreLockedError
from ingest.gateway.process import credentials
from ingest.gateway.process.gateway_config import GatewayConfig
from ingest.gateway.process.http_process import (
    SHARED,
    HttpRole,
    ReadConfig,
    Sockets,
    collector_main,
    http_main,
)
from ingest.gateway.process.signing_keys import Telling, read_keys
from ingest.runtime import listeners, logs, signals
from ingest.runtime.durable_files import replacing, write_all
from ingest.runtime.heartbeat import Heart
from ingest.runtime.key_file import close_key
from ingest.runtime.lock_file import is_held, open_directory
from ingest.runtime.supervised import Child
from ingest.runtime.supervisor import Supervisor
from ingest.store.data_dir import DataDir
from ingest.store.permission import refuse_absent, refuse_unwritable_meta
from ingest.store.possession import Identity, Possession, identity_of
from ingest.store.space import OUT_OF_SPACE

log = logging.getLogger(__name__)


def run_gateway(config: GatewayConfig, read_config: ReadConfig) -> int:
    """Serves until it is told to end. Returns its exit code; raises IngestError when it cannot serve.

    ``read_config`` reads the configuration once more, at SIGHUP.
    """
    logs.start(config.log_level)
    logs.name_process("gateway")
    raise_open_files_limit()
    check(config)
    refuse_unwritable_meta(config.data_dir)
    refuse_other_gateway(config.data_dir)
    shares = bind(
        config
    )  # before a catalog is made: a start that is refused for its addresses leaves nothing
    with service_lock(
        config.data_dir
    ):  # another gateway that runs here is told of before anything of it is touched
        migrate(catalog_path(config.data_dir))
    possession = possession_of(config)
    announce(config, shares[0])
    link_key = secrets.token_bytes(32)
    latest = _Latest(config, read_config)
    hearts: dict[str, Heart] = {}
    children = [Child("catalog", partial(_catalog_main, latest, shares, possession), reloads=True)]
    for number, sockets in enumerate(shares):
        main = partial(_http_main, latest, shares, sockets, link_key, possession, hearts)
        children.append(Child(f"http-{number}", main, reloads=True, replaced_when_silent=True))
    collector = partial(_collector_main, latest, shares, possession)
    children.append(Child("collector", collector, reloads=True, replaced_when_silent=True))
    hearts |= {child.name: child.heart for child in children}
    try:
        return Supervisor(
            [children[:1], children[1:]],
            config.drain_timeout,
            release=partial(close, shares),
            reload=latest.reload,
        ).run()
    finally:
        with suppress(OSError):
            os.unlink(DataDir(config.data_dir).gateway_json)


class _Latest:
    """The configuration that was good the last time: a process that takes another one's place starts with it."""

    def __init__(self, config: GatewayConfig, read: ReadConfig) -> None:
        self.config = config
        self.read = read
        self.telling = Telling()

    def reload(self, tell: Callable[[], None]) -> None:
        """SIGHUP: the processes are told to read files again when they can use what is in them."""
        try:
            config = self.read()
            check(config)
        except IngestError as error:
            log.error("SIGHUP: nothing is reloaded: %s", error)
            return
        self.config = config
        use_log_level(config.log_level)
        log.info("SIGHUP: tokens, certificates, keys and the log level are read again")
        self.telling.begin()
        tell()
        self.telling.end()


def check(config: GatewayConfig) -> None:
    """That everything can be read which is needed: better now than in each process. IngestError."""
    refuse_absent(config.data_dir)
    check_before(config)
    made = DataDir(config.data_dir).key
    if config.key_file in (None, made):
        close_key(made)
    read_keys(config)


def check_before(config: GatewayConfig) -> None:
    """The part of it that needs no server to have been there."""
    check_place(config.data_dir)
    credentials.read_access(config)
    credentials.http_context(config)
    credentials.engine_context(config)


def refuse_other_gateway(data_dir: Path) -> None:
    """StoreLockedError when another gateway has the catalog. Makes nothing. Who can't look learns more when he opens it."""
    with suppress(OSError):
        if is_held(DataDir(data_dir).catalog_lock, data_dir):
            raise StoreLockedError(f"the catalog of {data_dir} is another gateway's: stop it first")


def possession_of(config: GatewayConfig) -> Possession:
    """Of the data directory and of the catalog that is in it now. Locks are those of other processes, which may have
    new ones when they start anew: they need only be there, the engine's if the engine is here. DiskError."""
    inside = DataDir(config.data_dir)
    try:
        opened: dict[Path, int | Identity] = {
            config.data_dir: open_directory(config.data_dir),
            inside.catalog: identity_of(os.stat(inside.catalog)),
        }
    except OSError as error:
        raise DiskError(f"{error.filename}: {error.strerror}") from error
    return Possession(opened, [path for path in (inside.lock, inside.catalog_lock) if path.exists()])


def worker_count(config: GatewayConfig) -> int:
    """``http_workers``, where 0 means one for each core that this process may use."""
    return config.http_workers or min(len(os.sched_getaffinity(0)), limits.GATEWAY_WORKERS_MAX)


def bind(config: GatewayConfig) -> list[Sockets]:
    """Bound sockets by the name of their port, for each HTTP process. PortTakenError, ConfigError."""
    workers = worker_count(config)
    shares: list[dict[str, socket.socket]] = [{} for _ in range(workers)]
    try:
        for name, address in ((SHARED, config.http_listen), *config.api):
            # `--api` may name an API twice, for two ports.
            key = name if name not in shares[0] else f"{name} {listeners.format_address(address)}"
            for number, sock in enumerate(listeners.bind_shared(address, workers)):
                share = shares[number % workers]
                # A host may have several addresses, of which the first one has the name.
                bound = listeners.format_address(listeners.bound_address(sock))
                share[key if key not in share else f"{name} {bound}"] = sock
    except BaseException:
        close(shares)
        raise
    return list(shares)


def announce(config: GatewayConfig, sockets: Sockets) -> None:
    """Says where the gateway listens, in the log and in DATA/.ingest/gateway.json, for scripts."""
    found = {name: listeners.format_address(listeners.bound_address(sock)) for name, sock in sockets.items()}
    log.info("%s, pid %d", ", ".join(f"{name} {address}" for name, address in found.items()), os.getpid())
    path = DataDir(config.data_dir).gateway_json
    content = json.dumps({"pid": os.getpid(), **found}).encode() + b"\n"
    reserve = CatalogReserve(DataDir(config.data_dir).catalog_reserve)
    while True:
        try:
            with replacing(path, sync=False) as fd:  # of a process that is gone after a power cut
                write_all(fd, memoryview(content), 0)
            return
        except OSError as error:
            # What another gateway left makes way first: it is wrong anyway.
            if error.errno not in OUT_OF_SPACE or not (_unlink(path) or reserve.give()):
                log.error("%s does not say where this gateway listens: %s", path, error.strerror)
                return


def _unlink(path: Path) -> bool:
    """Whether it was there."""
    try:
        os.unlink(path)
    except OSError:
        return False
    return True


# --- the processes: each keeps of the sockets what is its own, because a port refuses only when its last holder closed it


def _catalog_main(latest: _Latest, shares: list[Sockets], possession: Possession) -> int:
    close(shares)
    possession.look()
    possession.check()  # before a lock or a catalog is made in somebody else's directory

    def reload(*_: object) -> None:
        try:
            use_log_level(latest.read().log_level)  # all that it reads is the level
        except IngestError as error:
            log.error("nothing was reloaded: %s", error)

    signal.signal(signal.SIGHUP, reload)
    serve_catalog(latest.config.data_dir, signals.take_reloads)
    return 0


def _http_main(
    latest: _Latest,
    shares: list[Sockets],
    own: Sockets,
    link_key: bytes,
    possession: Possession,
    hearts: dict[str, Heart],
) -> int:
    close([share for share in shares if share is not own])
    possession.look()
    possession.check()
    tells = own is shares[0]  # one is enough: each port has a socket in each process
    return http_main(
        HttpRole(latest.config, own, latest.read, latest.telling, link_key, possession, hearts, tells)
    )


def _collector_main(latest: _Latest, shares: list[Sockets], possession: Possession) -> int:
    close(shares)
    possession.look()
    possession.check()
    return collector_main(latest.config, latest.read, latest.telling, possession)


def close(shares: list[Sockets] | list[dict[str, socket.socket]]) -> None:
    for share in shares:
        listeners.close_all(share.values())
