"""A data directory: its identity and its lock. `docs/format.md`, "The data directory".

DATA/AA/BB/CC/obj      packs, or in layout tree a chunk each
DATA/.ingest/          everything else, 0700
    store.json         what the store is; written once, then only to add keys
    lock               held (flock), as this directory is, by the parent and, inherited, by all its processes
    key                the shared keys, unless they are elsewhere
    wal/               the log, unless it is elsewhere
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingest.errors import ConfigError, KeyFileError, StoreFormatError, StoreLockedError
from ingest.mac import KeyRing
from ingest.runtime.durable_files import make_directory, sync_directory
from ingest.runtime.lock_file import acquire, holder, is_held, open_directory
from ingest.store.data_dir import LOG_ID_FILE, META, DataDir
from ingest.store.layouts import tree_file
from ingest.store.layouts.layout import LAYOUTS
from ingest.store.permission import refusal
from ingest.store.possession import Possession
from ingest.store.space import existing
from ingest.store.store_json import (
    CHECK,
    FORMAT_VERSION,
    is_id,
    read_store_json,
    write_json,
    write_store_json,
)

# Of a log's directory. A new store has none either until the first frame comes.
NO_SEGMENT = (
    "holds no segment of the log, although the store has chunks: so it is after `ingest fsck --repair`; "
    "if it was somebody else who removed them, what was acknowledged last may be missing"
)


@dataclass
class Store:
    """An open (locked) data directory. Made by `Store.open` in the parent, before it forks.

    ``data_fd`` is opened before recovery and kept: a syncfs on it reports each write-back error once.
    """

    data_dir: Path
    wal_dir: Path
    data_fd: int
    lock_fd: int
    meta_fd: int  # locked too, where directories can be
    wal_fd: int
    store_id: bytes
    log_id: bytes
    layout: str
    key_ids: list[str]

    @classmethod
    def open(cls, data_dir: Path, *, wal_dir: Path | None = None, layout: str = "pack") -> Store:
        """Locks `data_dir` and reads what it is; makes it on first use.

        Raises StoreLockedError (another server has it), StoreFormatError (a version or layout that is not ours),
        ConfigError (the log is elsewhere, a directory is none or not ours to write), DiskError.
        """
        if layout not in LAYOUTS:
            raise ConfigError(f"layout {layout!r} is not in this version; it knows: {', '.join(LAYOUTS)}")
        try:
            fds = _open_and_lock(data_dir)
        except OSError as error:
            raise refusal(error, data_dir, "the data directory") from error
        try:
            return cls._open_locked(data_dir, wal_dir, layout, fds)
        except BaseException as error:
            _close(fds)
            if isinstance(error, OSError):
                elsewhere = wal_dir is not None and str(error.filename).startswith(str(wal_dir))
                raise refusal(error, wal_dir if elsewhere and wal_dir else data_dir) from error
            raise

    @classmethod
    def _open_locked(
        cls, data_dir: Path, wal_dir: Path | None, layout: str, fds: tuple[int, int, int]
    ) -> Store:
        path = DataDir(data_dir).store_json
        wal = wal_dir if wal_dir is not None else DataDir(data_dir).wal
        if path.exists():
            _refuse_unfinished(data_dir)
        else:
            check_new(data_dir, wal, layout)
            log_id = _make_log_directory(wal, data_dir)
            write_store_json(
                path,
                {
                    "format": FORMAT_VERSION,
                    "layout": layout,
                    "store_id": secrets.token_hex(16),
                    "log_id": log_id,
                    "keys": [],
                },
            )
            sync_directory(data_dir)
        store = cls._read(data_dir, wal, layout, fds)
        store.wal_fd = open_directory(wal)
        return store

    @classmethod
    def read(cls, data_dir: Path, *, wal_dir: Path | None = None, layout: str = "pack") -> Store:
        """As `open`, of a store that exists, but without its lock, and without changing anything: for looking only."""
        _refuse_unfinished(data_dir)
        wal = wal_dir if wal_dir is not None else DataDir(data_dir).wal
        return cls._read(data_dir, wal, layout, (-1, -1, -1))

    @classmethod
    def _read(cls, data_dir: Path, wal: Path, layout: str, fds: tuple[int, int, int]) -> Store:
        path = DataDir(data_dir).store_json
        record = read_store_json(path)
        if record["layout"] != layout:
            raise ConfigError(
                f"{path}: this store has layout {record['layout']!r}, not {layout!r}; it is fixed for good"
            )
        found = _read_log_id(wal) if wal.is_dir() else None
        if found is None and (wal / LOG_ID_FILE).is_file():
            state = "damaged" if (wal / LOG_ID_FILE).stat().st_size else "empty"
            raise ConfigError(f"{wal / LOG_ID_FILE} is {state}: `ingest fsck --repair` writes it again")
        if found != record["log_id"]:
            there = "holds no log" if found is None else "holds the log of another store"
            raise ConfigError(
                f"the log of {data_dir} is not in {wal}, which {there}: start with the --wal-dir that it was made with"
            )
        return cls(
            data_dir,
            wal,
            *fds,
            -1,
            bytes.fromhex(record["store_id"]),
            bytes.fromhex(record["log_id"]),
            record["layout"],
            list(record["keys"]),
        )

    def check_keys(self, keys: KeyRing) -> None:
        """Every key that ever signed here must be among `keys`; those that are new are remembered, durably. Gives a
        description that has no check yet, because an earlier version wrote it, one.

        Raises KeyFileError when one lacks: what it signed could not be verified any more.
        """
        self.require_keys(keys)
        accepted = [subkeys.id for subkeys in keys.accepted if subkeys.id not in self.key_ids]
        path = DataDir(self.data_dir).store_json
        record = read_store_json(path)
        if accepted:
            record["keys"] = [*self.key_ids, *accepted]
            write_store_json(path, record)
            self.key_ids = record["keys"]
        elif CHECK not in record:
            with suppress(OSError):  # a server must start on a full disk: the next one adds it
                write_store_json(path, record)

    def require_keys(self, keys: KeyRing) -> None:
        """KeyFileError when a key that ever signed here is not among `keys`."""
        missing = [key_id for key_id in self.key_ids if key_id not in keys.ids]
        if missing:
            raise KeyFileError(
                f"the key file lacks the key {', '.join(missing)} that signed what is stored in {self.data_dir}: "
                "add it behind the others"
            )

    def close(self) -> None:
        """Gives up the lock, if no child holds it."""
        _close((self.data_fd, self.lock_fd, self.meta_fd, self.wal_fd))

    def possession(self) -> Possession:
        """Whether the paths still lead to what is open here. For one process: it remembers what it saw."""
        inside = DataDir(self.data_dir)
        return Possession(
            {
                self.data_dir: self.data_fd,
                inside.meta: self.meta_fd,
                inside.lock: self.lock_fd,
                self.wal_dir: self.wal_fd,
            }
        )


def check_new(data_dir: Path, wal: Path, layout: str) -> None:
    """Whether a store can be made in `data_dir` with its log in `wal`, neither of which need be there yet. Leaves
    nothing behind.

    Raises ConfigError (a link, an export that was cut off, another store's log, no extended attributes for layout
    tree), StoreFormatError (packs of a store that has lost its description), OSError.
    """
    _refuse_unfinished(data_dir)
    if data_dir.exists():
        _refuse_foreign_files(data_dir)
    _refuse_other_log(wal, data_dir)
    if layout == "tree":
        tree_file.check_file_system(existing(DataDir(data_dir).meta))


def refuse_locked(data_dir: Path) -> None:
    """StoreLockedError when another server has it. Makes nothing. Who can't look learns more when he opens it."""
    inside = DataDir(data_dir)
    with suppress(OSError):
        if is_held(inside.lock, inside.meta):
            raise _locked(data_dir)


def _locked(data_dir: Path) -> StoreLockedError:
    return StoreLockedError(f"{data_dir} is in use by another ingest server{holder(DataDir(data_dir).lock)}")


def _refuse_unfinished(data_dir: Path) -> None:
    _refuse_links(data_dir)
    if DataDir(data_dir).export_mark.exists():
        raise ConfigError(f"{data_dir} holds an export that was cut off: remove it, then export again")


def _refuse_links(data_dir: Path) -> None:
    for inside in (DataDir(data_dir).store_json, DataDir(data_dir).wal):
        if inside.is_symlink():
            raise ConfigError(
                f"{inside} is a symbolic link: none is followed inside a data directory; use --wal-dir"
            )


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)


def _open_and_lock(data_dir: Path) -> tuple[int, int, int]:
    """Descriptors of the directory, of the lock and of `.ingest`."""
    make_directory(data_dir)
    meta = DataDir(data_dir).meta
    make_directory(meta)
    if meta.is_symlink():
        raise OSError(errno.ELOOP, f"{meta} is a symbolic link")
    data_fd = os.open(data_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    lock_path = DataDir(data_dir).lock
    try:
        return data_fd, *acquire(lock_path, meta)
    except BlockingIOError as error:
        os.close(data_fd)
        raise _locked(data_dir) from error
    except OSError:
        os.close(data_fd)
        raise


def holds_packs(data_dir: Path | int) -> str:
    """The first name in a data directory that is one of the packs' directories, "" when there is none."""
    names = os.listdir(data_dir)
    return min((name for name in names if name == "obj" or re.fullmatch(r"[0-9A-Z]{1,2}", name)), default="")


def _refuse_foreign_files(data_dir: Path) -> None:
    """A new store is made in a directory with nothing else in it, so that nobody's files get among the packs."""
    packs = holds_packs(data_dir)
    if packs:
        raise StoreFormatError(
            f"{data_dir} holds packs ({packs}) but no {META}/store.json: restore that file, or use an empty directory"
        )


def _make_log_directory(wal: Path, data_dir: Path) -> str:
    """The id of the log of a new store on `data_dir`. One that a start which was cut short has made is taken over."""
    make_directory(wal)
    log_id = _read_log_id(wal)
    if log_id is None:
        log_id = secrets.token_hex(16)
        write_json(wal / LOG_ID_FILE, {"log_id": log_id, "made_for": str(data_dir.resolve())})
    return log_id


def _refuse_other_log(wal: Path, data_dir: Path) -> None:
    if any(wal.glob("*.log")):
        raise ConfigError(f"{wal} holds the log of another store: give each store its own --wal-dir")
    if _read_log_id(wal) is not None and _read_log_record(wal).get("made_for") != str(data_dir.resolve()):
        raise ConfigError(
            f"{wal} was made for another store, see {LOG_ID_FILE} there: give each store its own --wal-dir"
        )


def _read_log_record(wal: Path) -> dict[str, Any]:
    try:
        record = json.loads((wal / LOG_ID_FILE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _read_log_id(wal: Path) -> str | None:
    log_id = _read_log_record(wal).get("log_id")
    return str(log_id) if is_id(log_id) else None
