"""Where the catalog's service listens: `DATA/.ingest/catalog.sock`, for this user's processes alone."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ingest.catalog.catalog_reserve import CatalogReserve
from ingest.errors import ConfigError, ConnectionLostError, DiskError, StoreLockedError
from ingest.limits import LISTEN_BACKLOG
from ingest.runtime.lock_file import acquire
from ingest.store.data_dir import DataDir
from ingest.store.possession import Possession
from ingest.store.space import OUT_OF_SPACE

_ADDRESS_SIZE = 108  # bytes of sun_path, with a NUL at its end: unix(7)
_DESCRIPTORS = "/proc/self/fd"


def catalog_path(data_dir: Path) -> Path:
    return DataDir(data_dir).catalog


@contextmanager
def service_lock(data_dir: Path) -> Iterator[Possession]:
    """Held by the one service of a data directory: a lock on a file, and on that directory: the engine's is on
    `.ingest`. Gives what was opened by that. StoreLockedError when another one runs, DiskError."""
    path = DataDir(data_dir).catalog_lock
    try:
        fds = acquire(path, data_dir)
    except BlockingIOError:
        raise StoreLockedError(f"the catalog of {data_dir} is another gateway's: stop it first") from None
    except OSError as error:
        raise DiskError(f"{path}: {error.strerror}") from error
    try:
        yield Possession({path: fds[0], data_dir: fds[1]})
    finally:
        for fd in fds:
            os.close(fd)


def listen(data_dir: Path) -> socket.socket:
    """A listening socket in the place of one that a dead service left. By who holds `service_lock`.

    Where the disk has no inode for another name, the dead one makes way first, and then the catalog's reserve does.

    DiskError; ConfigError when no socket there can be named.
    """
    check_place(data_dir)
    name = DataDir(data_dir).catalog_socket.name
    temporary = _temporary(data_dir).name
    reserve = CatalogReserve(DataDir(data_dir).catalog_reserve)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _short_path(data_dir) as short:
            _remove(f"{short}/{temporary}")
            while True:
                try:
                    listener.bind(f"{short}/{temporary}")
                    break
                except OSError as error:
                    if error.errno not in OUT_OF_SPACE or not (_remove(f"{short}/{name}") or reserve.give()):
                        raise
            os.chmod(f"{short}/{temporary}", 0o600)
            listener.listen(LISTEN_BACKLOG)
            os.rename(f"{short}/{temporary}", f"{short}/{name}")
    except OSError as error:
        listener.close()
        raise DiskError(f"{DataDir(data_dir).catalog_socket}: {error.strerror}") from error
    return listener


def _remove(path: str) -> bool:
    """Whether it was there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True


def connect(data_dir: Path) -> socket.socket:
    """A connection to the service, which does not block. ConnectionLostError when there is none, ConfigError."""
    check_place(data_dir)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        with _short_path(data_dir) as short:
            sock.connect(f"{short}/{DataDir(data_dir).catalog_socket.name}")
    except OSError as error:
        sock.close()
        reason = "its backlog is full" if error.errno == errno.EAGAIN else error.strerror
        raise ConnectionLostError(
            f"{DataDir(data_dir).catalog_socket}: {reason}; does a gateway run on {data_dir}?"
        ) from error
    return sock


def check_place(data_dir: Path) -> None:
    """That a socket in this data directory can be named. ConfigError."""
    if not _fits(data_dir) and not os.path.isdir(_DESCRIPTORS):
        raise ConfigError(
            f"/proc is not mounted: without it {_temporary(data_dir)} is too long for the address of a socket. "
            f"Mount /proc, or choose a data directory with a name of {_longest()} bytes at most"
        )


def _temporary(data_dir: Path) -> Path:
    path = DataDir(data_dir).catalog_socket
    return path.with_name(f"{path.name}.new")


def _fits(data_dir: Path) -> bool:
    return len(os.fsencode(_temporary(data_dir))) < _ADDRESS_SIZE


def _longest() -> int:
    """Bytes of the longest name of a data directory whose sockets have short ones."""
    return _ADDRESS_SIZE - 1 - len(os.fsencode(_temporary(Path("/d")))) + len("/d")


@contextmanager
def _short_path(data_dir: Path) -> Iterator[str]:
    """A name of the sockets' directory that fits into an address, however long its own is."""
    directory = DataDir(data_dir).meta
    if _fits(data_dir):
        yield str(directory)
        return
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"{_DESCRIPTORS}/{fd}"
    finally:
        os.close(fd)
