"""Copies of what a repair is about to change: `docs/format.md`, "Quarantine". Durable before anything is changed.

DATA/.ingest/quarantine/2026-11-21T15-02-11Z/
    0001.copy       the bytes, piece after piece
    0001.json       where each piece came from
"""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ingest.errors import DiskError
from ingest.runtime.durable_files import make_directory, new_file, replacing, sync_directory
from ingest.store.data_dir import DataDir
from ingest.store.store_json import write_json

_ZEROS = bytes(1 << 16)
OWN = "user."  # the namespace of attributes that are this program's
FOREIGN = (errno.EACCES, errno.EPERM, errno.ENOTSUP)  # what another namespace may answer


@dataclass(frozen=True)
class Piece:
    """Bytes of a file from ``offset`` on, and what is wrong with them. ``slot`` and ``ticket`` for those of a slot."""

    offset: int
    data: bytes
    kind: str
    detail: str
    slot: int | None = None
    ticket: str | None = None


class Quarantine:
    """One repair's directory, made with its first copy. Paths in it are named from DATA on."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self._directory: Path | None = None
        self._count = 0

    @property
    def directory(self) -> Path:
        if self._directory is None:
            above = DataDir(self.data_dir).quarantine
            if above.is_symlink():
                raise DiskError(f"{above} is a symbolic link: none is followed inside a data directory")
            stamp = time.strftime("%Y-%m-%dT%H-%M-%SZ", time.gmtime())
            names = [stamp, *(f"{stamp}-{i}" for i in range(2, 10_000))]
            self._directory = next(path for name in names if not os.path.lexists(path := above / name))
            make_directory(self._directory)
        return self._directory

    def keep(self, source: str, pieces: Iterable[Piece], **about: Any) -> str:
        """Copies pieces of the file ``source`` (named from DATA on, or absolute); returns the copy's path from DATA on."""
        base = self._next()
        record: list[dict[str, Any]] = []
        at = 0
        with new_file(base.with_suffix(".copy")) as fd, open(fd, "wb", closefd=False) as file:
            for piece in pieces:
                file.write(piece.data)
                entry = {
                    name: value
                    for name, value in asdict(piece).items()
                    if name != "data" and value is not None
                }
                record.append(entry | {"size": len(piece.data), "at": at})
                at += len(piece.data)
        return self._describe(base, source, pieces=record, **about)

    def keep_file(self, source: str, path: Path, kind: str, detail: str) -> str:
        """Copies a whole file, however large."""
        base = self._next()
        copy = base.with_suffix(".copy")
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(fd, "rb") as old:
            attributes = attributes_of(fd)
            with new_file(copy) as target, open(target, "wb", closefd=False) as new:
                shutil.copyfileobj(old, new, 4 << 20)
        size = copy.stat().st_size
        piece = {"offset": 0, "kind": kind, "detail": detail, "size": size, "at": 0}
        return self._describe(
            base, source, pieces=[piece], **({"attributes": attributes} if attributes else {})
        )

    def take(self, source: str, path: Path, kind: str, detail: str) -> str:
        """Moves what lies at ``path`` (a file, a link, a directory) here. From another file system a file or a link is
        copied and removed; DiskError for anything else."""
        elsewhere = path.lstat().st_dev != self.directory.stat().st_dev
        if elsewhere and not path.is_symlink() and not path.is_file():
            raise DiskError(
                f"{path}: this does not belong there, and is on another file system: move it away"
            )
        if elsewhere and path.is_file() and not path.is_symlink():
            copy = self.keep_file(source, path, kind, detail)
            os.unlink(path)
            sync_directory(path.parent)
            return copy
        base = self._next()
        moved = base.with_suffix(".copy")
        about: dict[str, Any] = {"link_to": os.readlink(path)} if path.is_symlink() else {}
        # The description first: what was moved and not described would be lost among the others.
        name = self._describe(base, source, pieces=[], moved=True, kind=kind, detail=detail, **about)
        if elsewhere and path.is_symlink():
            os.symlink(os.readlink(path), moved)
            os.unlink(path)
        else:
            os.rename(path, moved)
        sync_directory(moved.parent)
        sync_directory(path.parent)
        return name

    def staging(self) -> Path:
        """Where a file is written before it is renamed into its place: on the file system of DATA."""
        return self.directory / "staged"

    def _next(self) -> Path:
        self._count += 1
        return self.directory / f"{self._count:04d}"

    def _describe(self, base: Path, source: str, **about: Any) -> str:
        write_json(base.with_suffix(".json"), {"path": source, **about})
        return str(base.with_suffix(".copy").relative_to(self.data_dir))


def attributes_of(file: Path | int) -> dict[str, str]:
    """The extended attributes of a file, by its path or descriptor, in hex; of foreign namespaces those that may be read.
    A file system without them has none."""
    found = {}
    try:
        for name in os.listxattr(file):
            try:
                found[name] = os.getxattr(file, name).hex()
            except OSError as error:
                # Just removed; or of a namespace that is not for us.
                if error.errno != errno.ENODATA and (name.startswith(OWN) or error.errno not in FOREIGN):
                    raise
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
    return found


def replace_file(path: Path, content: bytes, staging: Path) -> None:
    """Puts ``content`` in the place of a file, durably, whole new or whole old. Blocks of zeros become holes."""
    make_directory(path.parent)
    with replacing(path, staging) as fd:
        write_sparse(fd, content)


def write_sparse(fd: int, content: bytes | memoryview) -> None:
    """Writes a file's content from its start; whole blocks of zeros stay holes."""
    view = memoryview(content)
    block = len(_ZEROS)
    for at in range(0, len(view), block):
        part = view[at : at + block]
        if bytes(part) != _ZEROS:
            done = 0
            while done < len(part):
                done += os.pwrite(fd, part[done:], at + done)
    os.ftruncate(fd, len(view))
