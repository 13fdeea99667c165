"""One server from its configuration: store, keys, sockets and queue come together here, and `pool` runs them."""

from __future__ import annotations

import logging
import os
import resource
import socket
from collections.abc import Callable
from contextlib import suppress

from ingest import limits
from ingest.engine import reload
from ingest.engine._queue import Queue
from ingest.engine.announcement import addresses, announce
from ingest.engine.node import Node
from ingest.engine.pool import Pool, Roles
from ingest.engine.server_config import ServerConfig
from ingest.errors import DiskError, KeyFileError
from ingest.mac import KeyRing
from ingest.runtime import failpoints, listeners, logs
from ingest.runtime.file_system import file_system, refuse_unsuitable
from ingest.runtime.key_file import close_key, make_key_file, read_keys
from ingest.store.data_dir import DataDir
from ingest.store.space import existing
from ingest.store.store import Store

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
    refuse_file_systems(config)
    store = Store.open(config.data_dir, wal_dir=config.wal_dir, layout=config.layout)
    keys = load_keys(config, store)
    node = Node(
        config=config,
        store=store,
        keys=keys,
        queue=Queue(worker_count(config), limits.BLOCK_PLACES * limits.ARENA_BLOCKS),
        admin_sockets=listeners.bind_alone(config.admin_listen),
        certificates=certificates,
        key_names=reload.name_keys(keys),
        read_config=read_config,
    )
    bind_frame_sockets(node)
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


def bind_frame_sockets(node: Node) -> None:
    """A put and a get socket for each worker, and the pairs through which they pass connections on."""
    workers = node.queue.workers
    node.put_sockets += listeners.bind_shared(node.config.listen, workers)
    node.get_sockets += listeners.bind_shared(node.config.read_listen, workers)
    for _ in range(workers):
        pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in pair:
            end.setblocking(False)
        node.passing.append(pair)


def refuse_file_systems(config: ServerConfig) -> None:
    """ConfigError where packs or the log could not be written, or not made durable though `config` says that they are."""
    for path in {config.data_dir, config.wal_dir or config.data_dir}:
        with suppress(OSError):  # what can't be looked at is said by whoever opens it
            refuse_unsuitable(existing(path), durable=config.sync == "disk")


def check_file_size_limit() -> None:
    """A log segment is the largest file that a server writes. DiskError when it may not."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit != resource.RLIM_INFINITY and limit < limits.LOG_SEGMENT_SIZE:
        raise DiskError(
            f"files may have {limit} bytes here (ulimit -f), "
            f"a segment of the log has {limits.LOG_SEGMENT_SIZE}: raise the limit"
        )


def raise_open_files_limit() -> None:
    """Connections are descriptors: the soft limit of 1024 is for programs that use select()."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
