"""Copies a store that no server runs on into a new one, of either layout. Every frame is verified before it is written.

What the log has and the packs may lack is copied too. Until all of it is durable the new store holds a mark with
which no server starts on it.
"""

from __future__ import annotations

import json
import os
import secrets
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ingest import limits, sharding, ticket
from ingest.errors import ConfigError, KeyFileError
from ingest.store import tree
from ingest.store.chunk_file import read_chunks, write_chunk_file
from ingest.store.findings import Progress, no_progress
from ingest.store.fsck import locked, read_whole
from ingest.store.identity import Identity, identify
from ingest.store.log_survey import LoggedPack, LogSurvey
from ingest.store.log_writer import sync_directory, syncfs
from ingest.store.pack_check import (
    PackState,
    Resolved,
    SlotState,
    header_may_be_unwritten,
    pack_bytes,
    resolve,
)
from ingest.store.quarantine import write_sparse
from ingest.store.store import EXPORT_MARK, LOG_ID_FILE, META, make_directory
from ingest.store.store_json import FORMAT_VERSION, write_json, write_store_json
from ingest.store.walk import walk


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
    with locked(source):
        identity = identify(source, wal_dir, key_file)
        _check_source(identity)
        survey = LogSurvey(identity.wal_dir, identity.log_id, identity.keys, segment_size)
        try:
            if survey.faults:
                raise ConfigError(
                    f"{survey.faults[0].path}: {survey.faults[0].detail}: run `ingest fsck {source}` before the export"
                )
            target_store = _Target(target, layout, identity, source)
            with locked(target):
                _copy(identity, survey, target_store, progress)
                target_store.finish()
        finally:
            survey.close()
    return target_store.result


def _check_source(identity: Identity) -> None:
    if identity.problems:
        problem = identity.problems[0]
        raise ConfigError(
            f"{problem.path} {problem.detail}: run `ingest fsck {identity.data_dir}` before the export"
        )
    if identity.key_problem:
        raise KeyFileError(identity.key_problem)
    if identity.missing:
        raise KeyFileError(f"the key file lacks the key {', '.join(identity.missing)} that signed here")


def _copy(identity: Identity, survey: LogSurvey, target: _Target, progress: Progress) -> None:
    groups = _groups(identity, survey)
    put_keys = [keys.put for keys in identity.keys]
    for done, pack in enumerate(sorted(groups)):
        progress("copying", done, len(groups))
        state = _read(identity, pack, groups[pack], put_keys)
        logged = survey.packs.get(pack) or LoggedPack()
        found = resolve(state, logged, survey.frame)
        lost = found.lost
        if state.header_lost and not header_may_be_unwritten(state, logged):
            target.result.problems.append(
                f"{sharding.pack_path(pack)}: its header is lost: only slots with a valid frame are copied"
            )
            lost = lost & (state.frames[:, :8] != 0).any(axis=1)
        for slot in np.flatnonzero(lost):
            name = ticket.format(sharding.slot_ticket(pack, int(slot)))
            target.result.problems.append(
                f"{sharding.pack_path(pack)}, slot {slot}, ticket {name}: no valid frame, not copied"
            )
        target.write(pack, found)
    progress("copying", len(groups), len(groups))


def _groups(identity: Identity, survey: LogSurvey) -> dict[int, list[int]]:
    """The packs that anything is known of; in layout tree with the slots that have a file."""
    groups: dict[int, list[int]] = defaultdict(list)
    for path in walk(identity.data_dir, identity.layout).objects:
        if identity.layout == "pack":
            groups[sharding.pack_of_path(path)] = []
        else:
            index = ticket.parse(ticket.from_tree_path(path))
            groups[sharding.ticket_pack(index)].append(sharding.ticket_slot(index))
    for pack in survey.packs:
        groups.setdefault(pack, [])
    return groups


def _read(identity: Identity, pack: int, slots: Iterable[int], put_keys: list[bytes]) -> SlotState:
    if identity.layout == "tree":
        return read_chunks(identity.data_dir, pack, slots, put_keys)
    try:
        content = read_whole(identity.data_dir / sharding.pack_path(pack))
    except FileNotFoundError:
        content = bytearray()
    return PackState(pack, content, identity.store_id, put_keys)


class _Target:
    """The store that is being made."""

    def __init__(self, path: Path, layout: str, source: Identity, source_dir: Path) -> None:
        self.path = path
        self.layout = layout
        self.meta = path / META
        _check_target(path, self.meta)
        self.store_id = secrets.token_bytes(16)
        self.result = Exported(str(source_dir), str(path), layout, self.store_id.hex())
        make_directory(path)
        self.fd = os.open(
            path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        )  # before the first write: it reports errors
        make_directory(self.meta)
        write_json(self.meta / EXPORT_MARK, {"source": str(source_dir.resolve()), "layout": layout})
        if layout == "tree":
            tree.check_file_system(self.meta)
        self.log_id = secrets.token_hex(16)
        make_directory(self.meta / "wal")
        write_json(self.meta / "wal" / LOG_ID_FILE, {"log_id": self.log_id, "made_for": str(path.resolve())})
        self.key_ids = source.record["keys"]
        self._copy_key(source)

    def _copy_key(self, source: Identity) -> None:
        """The key file, if it is the store's own; one that lies elsewhere stays there."""
        own = source.data_dir / META / "key"
        if not own.is_file():
            return
        fd = os.open(self.meta / "key", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(own.read_bytes())
            file.flush()
            os.fsync(fd)
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
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
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
        syncfs(self.fd)
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
        os.unlink(self.meta / EXPORT_MARK)
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
    if (meta / EXPORT_MARK).exists():
        try:
            begun = json.loads((meta / EXPORT_MARK).read_bytes())["source"]
        except (OSError, ValueError, TypeError, KeyError):
            begun = "another store"
        raise ConfigError(f"{path} holds an export of {begun} that was cut off: remove it, then start again")
    if any(path.iterdir()):
        raise ConfigError(f"{path} is not empty: an export makes a new store")
