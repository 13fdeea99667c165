"""Files that the object commands read and write: whole or not at all, interruptible, with a digest of every byte."""

from __future__ import annotations

import asyncio
import os
import secrets
import stat
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from blake3 import blake3

from ingest.errors import DiskError, UsageError
from ingest.limits import FILE_READ_SIZE
from ingest.runtime.durable_files import sync_directory
from ingest.store.space import explain

STDIN = 0
STDOUT = 1


def shown(text: str) -> str:
    """A name for a terminal or a line: what could move the cursor or end the line is written as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@dataclass
class Source:
    """A file that is put, or stdin (``path`` is None), read once from its beginning to its end."""

    path: Path | None
    size: int | None = None  # of a regular file: what it had when it was opened
    read: int = 0  # bytes so far
    hash: Any = field(default_factory=blake3)
    _fd: int = STDIN

    def open(self) -> Self:
        """UsageError for what can't be read."""
        if self.path is not None:
            try:
                self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise UsageError(f"{shown(str(self.path))}: {error.strerror}") from error
        found = os.fstat(self._fd)
        if stat.S_ISDIR(found.st_mode):
            self.close()
            raise UsageError(f"{self}: a directory; only files can be put")
        if stat.S_ISREG(found.st_mode) and found.st_size and self.path is not None:  # /proc's files claim 0
            self.size = found.st_size
        return self

    def close(self) -> None:
        if self.path is not None:
            os.close(self._fd)

    def __str__(self) -> str:
        return "stdin" if self.path is None else shown(str(self.path))

    async def pieces(self, progress: Callable[[int], None]) -> AsyncIterator[bytes]:
        """Its bytes; ``progress`` is told the size of each piece. DiskError."""
        waits = await _can_wait(self._fd)
        while True:
            try:
                if waits:
                    await _readable(self._fd)  # a thread that reads a silent pipe could not be interrupted
                    part = os.read(self._fd, FILE_READ_SIZE)
                else:
                    part = await asyncio.to_thread(os.read, self._fd, FILE_READ_SIZE)
            except OSError as error:
                raise DiskError(f"{self}: {error.strerror}") from error
            if not part:
                return
            self.hash.update(part)
            self.read += len(part)
            progress(len(part))
            yield part


async def _can_wait(fd: int) -> bool:
    """Whether the event loop can wait for it: a pipe, a socket, a terminal; not a file of a disk."""
    loop = asyncio.get_running_loop()
    try:
        loop.add_reader(fd, lambda: None)
    except OSError:
        return False
    loop.remove_reader(fd)
    return True


async def _readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def wake() -> None:
        loop.remove_reader(fd)
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(fd, wake)
    try:
        await ready
    finally:
        loop.remove_reader(fd)


class Target:
    """Where an object is written to, as a context: a temporary file beside ``path`` that takes its place with `keep` and is
    gone otherwise. What is no regular file, a pipe or /dev/null, is written as it is; so is stdout (``path`` is None)."""

    def __init__(self, path: Path | None) -> None:
        self.path = path if path is None else Path(os.path.realpath(path))  # a link stays one
        self._temporary: Path | None = None
        self._fd = STDOUT

    def __enter__(self) -> Self:
        """DiskError, UsageError."""
        if self.path is None:
            return self
        if self.path.is_dir():
            raise UsageError(f"{shown(str(self.path))} is a directory: name the file")
        new = self.path.with_name(f".ingest-{secrets.token_hex(8)}.part")
        try:
            if self.path.exists() and not self.path.is_file():
                self._fd = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
            else:
                self._fd, self._temporary = _open_beside(self.path, new), new
        except OSError as error:
            raise DiskError(explain(error, self.path.parent)) from error
        return self

    async def write(self, data: bytes | memoryview) -> None:
        """DiskError; BrokenPipeError when who read stdout has gone."""
        try:
            await asyncio.to_thread(self._write, data)
        except BrokenPipeError:
            raise
        except OSError as error:
            if self.path is None:  # its disk, if there is one, is not that of the working directory
                raise DiskError(f"stdout: {error.strerror or error}") from error
            if not self._temporary:  # a device or a pipe takes no room of the directory that names it
                raise DiskError(f"{shown(str(self.path))}: {error.strerror or error}") from error
            raise DiskError(explain(error, self._directory)) from error

    def _write(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]

    def keep(self) -> None:
        """All of it is written: it gets its name when it is on the disk. DiskError."""
        if self.path is None or self._temporary is None:
            return
        try:
            os.fsync(self._fd)
            os.rename(self._temporary, self.path)
            self._temporary = None
            sync_directory(self._directory)
        except OSError as error:
            raise DiskError(explain(error, self._directory)) from error

    @property
    def _directory(self) -> Path:
        return Path() if self.path is None else self.path.parent

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.path is None:
            return
        os.close(self._fd)
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)


def _open_beside(path: Path, new: Path) -> int:
    """Makes ``new``, for those whom ``path`` is for: with its owner, group and mode where it is there, else as the umask
    says. OSError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        old = os.stat(path)
    except FileNotFoundError:
        return os.open(new, flags, 0o666)
    fd = os.open(new, flags, 0o600)  # nobody else's before it is known whose it is
    try:
        mode = old.st_mode & 0o777
        if not _give(fd, -1, old.st_gid):
            mode &= ~0o070  # the group is another one
        _give(fd, old.st_uid, -1)  # who may not do this has a file of his own then
        os.fchmod(fd, mode)
    except BaseException:
        os.close(fd)
        os.unlink(new)
        raise
    return fd


def _give(fd: int, user: int, group: int) -> bool:
    """Whether the file has this owner or group now; -1 is as it is."""
    found = os.fstat(fd)
    if user in (-1, found.st_uid) and group in (-1, found.st_gid):
        return True
    try:
        os.fchown(fd, user, group)
    except PermissionError:
        return False
    return True
