"""One server from its configuration: store, keys, sockets and queue come together here, and `pool` runs them."""

from __future__ import annotations

import logging
import os
import resource
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from ingest import limits
from ingest.engine import reload
from ingest.engine._queue import Queue
from ingest.engine.announcement import addresses, announce
from ingest.engine.node import Node
from ingest.engine.pool import Pool, Roles
from ingest.engine.server_config import ServerConfig
from ingest.errors import ConfigError, KeyFileError
from ingest.mac import KeyRing
from ingest.runtime import failpoints, listeners, logs
from ingest.runtime.file_system import file_system, refuse_unsuitable
from ingest.runtime.key_file import close_key, make_key_file, read_keys
from ingest.store.data_dir import DataDir
from ingest.store.permission import refuse_unwritable
from ingest.store.space import existing
from ingest.store.store import Store, check_new, refuse_locked

log = logging.getLogger(__name__)


def run_server(
    config: ServerConfig, roles: Roles, read_config: Callable[[], ServerConfig] | None = None
) -> int:
    """Runs a server until it is told to end. Returns its exit code; raises IngestError when it cannot serve.

    ``read_config`` reads the configuration once more, at SIGHUP.

    What is opened here stays open until this process ends: its children use it, and its lock must outlive them.
    """
    logs.start(config.log_level)
    failpoints.arm(os.environ)
    raise_open_files_limit()
    check_file_size_limit()
    certificates = reload.read_certificates(config)
    check_before(config)
    ports = bind(config)  # before anything is made: a start that is refused for its addresses leaves nothing
    store = Store.open(config.data_dir, wal_dir=config.wal_dir, layout=config.layout)
    keys = load_keys(config, store)
    node = Node(
        config=config,
        store=store,
        keys=keys,
        queue=Queue(worker_count(config), limits.BLOCK_PLACES * limits.ARENA_BLOCKS),
        admin_sockets=ports.admin,
        put_sockets=ports.put,
        get_sockets=ports.get,
        passing=passing_pairs(worker_count(config)),
        certificates=certificates,
        key_names=reload.name_keys(keys),
        read_config=read_config,
    )
    for sock in node.admin_sockets:
        listeners.listen(sock, limits.LISTEN_BACKLOG)
    node.addresses = addresses(node)
    log.info(
        "put %s, get %s, admin %s, data %s, pid %d",
        *node.addresses.values(),
        os.path.abspath(config.data_dir),
        os.getpid(),
    )
    log.info("%s is on %s", os.path.abspath(config.data_dir), file_system(store.data_fd))
    shown = set(node.addresses.values())
    bound = (*node.put_sockets, *node.get_sockets, *node.admin_sockets)
    others = {listeners.format_address(listeners.bound_address(sock)) for sock in bound} - shown
    if others:
        log.info("also at %s", ", ".join(sorted(others)))
    announce(node, keys.accepted)
    return Pool(node, roles).run()


def worker_count(config: ServerConfig) -> int:
    """``--workers``, where 0 means one for each core that this process may use."""
    return config.workers or min(len(os.sched_getaffinity(0)), limits.WORKERS_MAX)


def load_keys(config: ServerConfig, store: Store) -> KeyRing:
    """The keys of the key file, which is made at the first start when nobody named one. KeyFileError."""
    made = DataDir(config.data_dir).key
    path = config.key_file
    if path is None:
        path = made
        if not os.path.lexists(path):
            if store.key_ids:  # a new key would be of no use: what is stored could not be verified
                raise KeyFileError(f"key file {path} is gone, which signed what is stored here: put it back")
            make_key_file(path)
            log.info("made the key file %s: clients need a copy", path)
    if path == made:
        close_key(path)
    keys = KeyRing(read_keys(path, data_dir=config.data_dir, own=path == made))
    store.check_keys(keys)
    return keys


def check_before(config: ServerConfig) -> None:
    """What can be refused before anything is made: the file systems, another server on this directory, a key file that was
    named, what keeps a store from being made. ConfigError, StoreFormatError, StoreLockedError, DiskError."""
    refuse_unwritable(config.data_dir, config.wal_dir)
    refuse_file_systems(config)
    refuse_locked(config.data_dir)
    inside = DataDir(config.data_dir)
    with suppress(OSError):  # what can't be looked at is said by whoever opens it
        if not inside.store_json.exists():
            check_new(config.data_dir, config.wal_dir or inside.wal, config.layout)
    if config.key_file is not None:
        if config.key_file == inside.key:
            close_key(inside.key)
        KeyRing(read_keys(config.key_file, data_dir=config.data_dir, own=config.key_file == inside.key))


@dataclass
class Ports:
    """The bound sockets of a server, which do not listen yet: `Node` says which is whose."""

    put: list[socket.socket] = field(default_factory=list)
    get: list[socket.socket] = field(default_factory=list)
    admin: list[socket.socket] = field(default_factory=list)

    def close(self) -> None:
        listeners.close_all((*self.put, *self.get, *self.admin))


def bind(config: ServerConfig) -> Ports:
    """A put and a get socket for each worker, and the admin port. PortTakenError, ConfigError."""
    workers = worker_count(config)
    ports = Ports()
    try:
        ports.admin += listeners.bind_alone(config.admin_listen)
        ports.put += listeners.bind_shared(config.listen, workers)
        ports.get += listeners.bind_shared(config.read_listen, workers)
    except BaseException:
        ports.close()
        raise
    return ports


def passing_pairs(workers: int) -> list[tuple[socket.socket, socket.socket]]:
    """Through which workers pass connections on."""
    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(workers)]
    for pair in pairs:
        for end in pair:
            end.setblocking(False)
    return pairs


def refuse_file_systems(config: ServerConfig) -> None:
    """ConfigError where packs or the log could not be written, or not made durable though `config` says that they are."""
    for path in {config.data_dir, config.wal_dir or config.data_dir}:
        with suppress(OSError):  # what can't be looked at is said by whoever opens it
            refuse_unsuitable(existing(path), durable=config.sync == "disk")


def check_file_size_limit() -> None:
    """A log segment is the largest file that a server writes. ConfigError when it may not."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit != resource.RLIM_INFINITY and limit < limits.LOG_SEGMENT_SIZE:
        raise ConfigError(
            f"files may have {limit} bytes here (ulimit -f), "
            f"a segment of the log has {limits.LOG_SEGMENT_SIZE}: raise the limit"
        )


def raise_open_files_limit() -> None:
    """Connections are descriptors: the soft limit of 1024 is for programs that use select()."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
