"""Where the catalog's service listens: `DATA/.ingest/catalog.sock`, for this user's processes alone."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ingest.errors import ConnectionLostError, DiskError, StoreLockedError
from ingest.limits import LISTEN_BACKLOG
from ingest.store.store import META

CATALOG = "catalog.db"
SOCKET = "catalog.sock"
LOCK = "catalog.lock"


def catalog_path(data_dir: Path) -> Path:
    return data_dir / META / CATALOG


@contextmanager
def service_lock(data_dir: Path) -> Iterator[None]:
    """Held by the one service of a data directory. StoreLockedError when another one runs, DiskError."""
    path = data_dir / META / LOCK
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise DiskError(f"{path}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreLockedError(f"the catalog of {data_dir} is another gateway's: stop it first") from None
        yield
    finally:
        os.close(fd)


def listen(data_dir: Path) -> socket.socket:
    """A listening socket in the place of one that a dead service left. By who holds `service_lock`. DiskError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    temporary = f"{SOCKET}.new"
    try:
        with _short_path(data_dir / META) as short:
            try:
                os.unlink(f"{short}/{temporary}")
            except FileNotFoundError:
                pass
            listener.bind(f"{short}/{temporary}")
            os.chmod(f"{short}/{temporary}", 0o600)
            listener.listen(LISTEN_BACKLOG)
            os.rename(f"{short}/{temporary}", f"{short}/{SOCKET}")
    except OSError as error:
        listener.close()
        raise DiskError(f"{data_dir / META / SOCKET}: {error.strerror}") from error
    return listener


def connect(data_dir: Path) -> socket.socket:
    """A connection to the service, which does not block. ConnectionLostError when there is none."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        with _short_path(data_dir / META) as short:
            sock.connect(f"{short}/{SOCKET}")
    except OSError as error:
        sock.close()
        reason = "its backlog is full" if error.errno == errno.EAGAIN else error.strerror
        raise ConnectionLostError(
            f"{data_dir / META / SOCKET}: {reason}; does a gateway run on {data_dir}?"
        ) from error
    return sock


@contextmanager
def _short_path(directory: Path) -> Iterator[str]:
    """A name of a directory that fits into an address of 108 bytes, however long its own is."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)
