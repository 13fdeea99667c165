"""Copies a store that no server runs on into a new one, of either layout. Every frame is verified before it is written.

What the log has and the packs may lack is copied too. Until all of it is durable the new store holds a mark with
which no server starts on it.
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ingest import limits, sharding, ticket
from ingest.errors import ConfigError
from ingest.runtime.durable_files import make_directory, new_file, open_new, sync_directory, write_all
from ingest.runtime.file_system import sync_everything
from ingest.store.check.chunk_file import write_chunk_file
from ingest.store.check.contents import Contents, opened_at_rest
from ingest.store.check.findings import Progress, no_progress
from ingest.store.check.fsck import locked
from ingest.store.check.identity import Identity
from ingest.store.check.pack_check import (
    Resolved,
    pack_bytes,
)
from ingest.store.check.quarantine import write_sparse
from ingest.store.data_dir import LOG_ID_FILE, DataDir
from ingest.store.layouts import tree_file
from ingest.store.store_json import FORMAT_VERSION, write_json, write_store_json


@dataclass
class Exported:
    """What came of it. ``problems``: a line for each chunk that was not copied because no verified frame of it is left."""

    source: str
    target: str
    layout: str
    store_id: str = ""
    chunks: int = 0
    deleted: int = 0
    bytes: int = 0
    key_copied: bool = False
    problems: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return dict(vars(self))


def export(
    source: Path,
    target: Path,
    layout: str,
    *,
    key_file: Path | None = None,
    wal_dir: Path | None = None,
    progress: Progress = no_progress,
    segment_size: int = limits.LOG_SEGMENT_SIZE,
) -> Exported:
    """Copies the store in ``source`` to ``target``, which must not exist or be empty.

    Returned means durable. Raises ConfigError (no store, the target is not empty, damage that only fsck mends),
    KeyFileError (a key is missing), StoreLockedError, OSError; what was begun stays, marked.
    """
    with opened_at_rest(source, key_file, wal_dir, segment_size) as contents:
        target_store = _Target(target, layout, contents.identity, source)
        with locked(target):
            _copy(contents, target_store, progress)
            target_store.finish()
    return target_store.result


def _copy(contents: Contents, target: _Target, progress: Progress) -> None:
    packs = sorted(contents.packs)
    for done, pack in enumerate(packs):
        progress("copying", done, len(packs))
        found = contents.read(pack)
        target.result.problems += contents.losses()
        target.write(pack, found)
    progress("copying", len(packs), len(packs))


class _Target:
    """The store that is being made."""

    def __init__(self, path: Path, layout: str, source: Identity, source_dir: Path) -> None:
        self.path = path
        self.layout = layout
        self.meta = DataDir(path).meta
        _check_target(path, self.meta)
        self.store_id = secrets.token_bytes(16)
        self.result = Exported(str(source_dir), str(path), layout, self.store_id.hex())
        make_directory(path)
        self.fd = os.open(
            path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        )  # before the first write: it reports errors
        make_directory(self.meta)
        write_json(DataDir(self.path).export_mark, {"source": str(source_dir.resolve()), "layout": layout})
        if layout == "tree":
            tree_file.check_file_system(self.meta)
        self.log_id = secrets.token_hex(16)
        make_directory(self.meta / "wal")
        write_json(self.meta / "wal" / LOG_ID_FILE, {"log_id": self.log_id, "made_for": str(path.resolve())})
        self.key_ids = source.record["keys"]
        self._copy_key(source)

    def _copy_key(self, source: Identity) -> None:
        """The key file, if it is the store's own; one that lies elsewhere stays there."""
        own = DataDir(source.data_dir).key
        if not own.is_file():
            return
        with new_file(self.meta / "key") as fd:
            write_all(fd, memoryview(own.read_bytes()), 0)
        self.result.key_copied = True

    def write(self, pack: int, found: Resolved) -> None:
        chunks, deleted = int(found.present.sum()), int(found.deleted.sum())
        if not chunks and not deleted:
            return
        if self.layout == "pack":
            self._write_pack(pack, found)
        else:
            self._write_chunks(pack, found)
        self.result.chunks += chunks
        self.result.deleted += deleted
        self.result.bytes += chunks * limits.DATA_SIZE

    def _write_pack(self, pack: int, found: Resolved) -> None:
        content = pack_bytes(pack, self.store_id, 1, found.frames, found.present, found.deleted)
        path = self.path / sharding.pack_path(pack)
        _make_directories(path.parent)
        fd = open_new(path)
        try:
            write_sparse(fd, content)
        finally:
            os.close(fd)

    def _write_chunks(self, pack: int, found: Resolved) -> None:
        staging = self.meta / "staged"
        for slot in np.flatnonzero(found.present | found.deleted):
            path = self.path / ticket.tree_path(ticket.format(sharding.slot_ticket(pack, int(slot))))
            _make_directories(path.parent)
            frame = found.frames[slot].tobytes() if found.present[slot] else None
            write_chunk_file(path, frame, staging, sync=False)

    def finish(self) -> None:
        """Makes it durable, then makes it a store."""
        sync_everything(self.path, self.fd)
        write_store_json(
            self.meta / "store.json",
            {
                "format": FORMAT_VERSION,
                "layout": self.layout,
                "store_id": self.store_id.hex(),
                "log_id": self.log_id,
                "keys": self.key_ids,
            },
        )
        os.unlink(DataDir(self.path).export_mark)
        sync_directory(self.meta)
        os.close(self.fd)


def _make_directories(path: Path) -> None:
    """As `make_directory`, but made durable by the one sync at the end."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    except FileNotFoundError:
        _make_directories(path.parent)
        os.mkdir(path, 0o700)


def _check_target(path: Path, meta: Path) -> None:
    if not os.path.lexists(path):
        return
    if not path.is_dir():
        raise ConfigError(f"{path} is there and is no directory")
    if DataDir(path).export_mark.exists():
        try:
            begun = json.loads(DataDir(path).export_mark.read_bytes())["source"]
        except (OSError, ValueError, TypeError, KeyError):
            begun = "another store"
        raise ConfigError(f"{path} holds an export of {begun} that was cut off: remove it, then start again")
    found = next((entry.name for entry in path.iterdir() if not _is_made_by_mkfs(entry)), None)
    if found is not None:
        raise ConfigError(f"{path} is not empty ({found!r} is there): an export makes a new store")


def _is_made_by_mkfs(path: Path) -> bool:
    """Whether it is the directory that is in each new ext4 file system, and nothing was found and put there."""
    if path.name != "lost+found" or path.is_symlink() or not path.is_dir():
        return False
    try:
        return not any(path.iterdir())
    except PermissionError:  # it is root's
        return True
