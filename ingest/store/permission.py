"""Whether this process may make and write what a store needs. The kernel is asked; nothing is made.

A start and `ingest check-config` ask here, so that both say the same of a directory, in the words of the same errno.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from ingest.errors import ConfigError, DiskError
from ingest.runtime.file_system import check_access
from ingest.store.data_dir import DataDir
from ingest.store.space import existing, explain

# Of what somebody has to set up differently. All others are a disk's.
_SET_UP = frozenset(
    (
        errno.EACCES,
        errno.EEXIST,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EPERM,
        errno.EROFS,
    )
)


def refuse_unwritable(data_dir: Path, wal_dir: Path | None) -> None:
    """ConfigError or DiskError when a store in ``data_dir``, with its log in ``wal_dir``, can be neither made nor written.
    What is not there yet is made below the nearest directory that is."""
    inside = DataDir(data_dir)
    _refuse(data_dir, "the data directory")
    refuse_unwritable_meta(data_dir)
    _refuse(wal_dir if wal_dir is not None else inside.wal, "the directory of the log")
    if inside.lock.is_file():
        try:
            check_access(inside.lock, os.R_OK | os.W_OK)
        except OSError as error:
            raise refusal(error, inside.lock) from error


def refuse_unwritable_meta(data_dir: Path) -> None:
    """The same of what is beside the chunks: a catalog needs no more."""
    _refuse(DataDir(data_dir).meta, "the data directory")


def refuse_absent(data_dir: Path) -> None:
    """ConfigError or DiskError when there is no store in it."""
    meta = DataDir(data_dir).meta
    try:
        os.listdir(meta)
    except FileNotFoundError:
        raise ConfigError(f"{data_dir} holds no store: start `ingest server` on it first") from None
    except OSError as error:
        raise refusal(error, meta, "the data directory") from error


def refusal(error: OSError, path: Path, what: str = "") -> ConfigError | DiskError:
    """What is raised for ``error`` of a file of a store; ``what`` must be a directory, when that is what was tried."""
    text = explain(error, existing(path))
    if error.errno not in _SET_UP:
        return DiskError(text)
    return ConfigError(f"{text}; {what} must be a directory that we may write" if what else text)


def _refuse(path: Path, what: str) -> None:
    try:
        _check(path)
    except OSError as error:
        raise refusal(error, path, what) from error


def _check(path: Path) -> None:
    """OSError. A link that leads nowhere cannot be made into a directory."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        if os.path.lexists(path) or path.parent == path:
            raise
        _check(path.parent)
        return
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    check_access(path, os.R_OK | os.W_OK | os.X_OK)
