"""Everything that lies below DATA, without following a link: which of it is ours, and who may read it."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ingest import sharding, ticket
from ingest.errors import TicketError
from ingest.runtime.secret_mode import is_opened_to_group
from ingest.store.check.findings import Problem
from ingest.store.data_dir import META, DataDir

_PIECE = re.compile(r"[0-9A-Z]{1,2}")
DEPTHS = {"pack": 3, "tree": 4}  # directories above an obj
_META_DIRECTORIES = ("wal", "quarantine")
_META_LINKS_REFUSED = ("store.json", "lock", "key", *_META_DIRECTORIES)


@dataclass
class Walk:
    """``objects``: paths of packs, or of chunks in layout tree, from DATA on, in order."""

    objects: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    group_count: int = 0  # files and directories that their group may use too, as `fsGroup` makes them


def walk(data_dir: Path, layout: str) -> Walk:
    """Looks at every name below DATA, but not into files."""
    found = Walk()
    _meta(found, data_dir)
    _directory(found, data_dir, "", layout)
    found.objects.sort()
    if found.group_count:
        found.notes.append(
            f"{found.group_count} files and directories were given to their group, one of ours: by fsGroup of Kubernetes?"
        )
    return found


def is_object(path: str, layout: str) -> bool:
    """Whether a path from DATA on is where that layout keeps chunks."""
    try:
        sharding.pack_of_path(path) if layout == "pack" else ticket.from_tree_path(path)
    except TicketError:
        return False
    return True


def _entries(path: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(path) as entries:
        yield from sorted(entries, key=lambda entry: entry.name)


def _directory(found: Walk, data_dir: Path, inside: str, layout: str) -> None:
    for entry in _entries(data_dir / inside):
        path = f"{inside}{entry.name}"
        ours = entry.name == "obj" or _PIECE.fullmatch(entry.name)
        if not inside and not ours:
            if entry.name != META:
                found.notes.append(f"{path}: not a part of the store")
            continue
        if entry.is_dir(follow_symlinks=False) and _may_be_directory(path, layout):
            _mode(found, entry, path, 0o700)
            _directory(found, data_dir, path + "/", layout)
        elif entry.is_file(follow_symlinks=False) and is_object(path, layout):
            _mode(found, entry, path, 0o600)
            found.objects.append(path)
        else:
            found.problems.append(_unexpected(entry, path))


def _may_be_directory(path: str, layout: str) -> bool:
    pieces = path.split("/")
    whole = all(len(piece) == 2 for piece in pieces[:-1]) and bool(_PIECE.fullmatch(pieces[-1]))
    return whole and len(pieces) <= DEPTHS[layout]


def _unexpected(entry: os.DirEntry[str], path: str) -> Problem:
    if entry.is_symlink():
        detail = f"a symbolic link to {os.readlink(entry.path)}: none is followed inside a store"
    elif entry.is_dir(follow_symlinks=False):
        detail = "a directory that no ticket leads to"
    elif entry.is_file(follow_symlinks=False):
        detail = "a file that no ticket leads to"
    else:
        detail = "neither a file nor a directory"
    return Problem("unexpected", path, detail, "moved into the quarantine")


def _mode(found: Walk, entry: os.DirEntry[str], path: str, mode: int) -> None:
    _check_mode(found, entry.stat(follow_symlinks=False), entry.path, path, mode)


def _check_mode(found: Walk, status: os.stat_result, file: str, path: str, mode: int) -> None:
    """Others may use what only the server's user should, or that user may not. ``file`` is ``path`` with DATA before it."""
    have = stat.S_IMODE(status.st_mode)
    if is_opened_to_group(status, mode, file):
        found.group_count += 1
        return
    # A directory made in one of those has their S_ISGID, which lets nobody in.
    inherited = stat.S_ISGID if stat.S_ISDIR(status.st_mode) else 0
    if have & ~inherited != mode:
        found.problems.append(
            Problem("mode", path, f"has mode {have:04o}, expected {mode:04o}", f"set to {mode:04o}")
        )


def _meta(found: Walk, data_dir: Path) -> None:
    """.ingest itself; what lies in it is looked at by those whose files they are."""
    meta = DataDir(data_dir).meta
    _check_mode(found, meta.stat(follow_symlinks=False), str(meta), META, 0o700)
    for entry in _entries(meta):
        path = f"{META}/{entry.name}"
        if entry.is_symlink() and entry.name in _META_LINKS_REFUSED:
            found.problems.append(_unexpected(entry, path))
        elif entry.is_dir(follow_symlinks=False):
            if entry.name in _META_DIRECTORIES:
                _mode(found, entry, path, 0o700)
        elif entry.is_file(follow_symlinks=False):
            _mode(found, entry, path, 0o600)
    wal = meta / "wal"
    if wal.is_dir() and not wal.is_symlink():
        for entry in _entries(wal):
            if entry.is_file(follow_symlinks=False):
                _mode(found, entry, f"{META}/wal/{entry.name}", 0o600)
            elif entry.is_symlink():
                found.problems.append(_unexpected(entry, f"{META}/wal/{entry.name}"))
