"""The key file on disk: who may read it, and how it comes into being. What stands in it: `mac.parse_keys`.

Messages name files and lines, never what stands there, nor what was given as a file's name and could be a key.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ingest import mac
from ingest.errors import KeyFileError
from ingest.limits import KEY_FILE_SIZE_MAX
from ingest.runtime.secret_mode import is_opened_to_group, openness
from ingest.secret_text import shown

log = logging.getLogger(__name__)
MODE = 0o600


def read_keys(path: Path, *, data_dir: Path | None = None, own: bool = False) -> list[bytes]:
    """The keys in ``path``, 32 bytes each, at least one, in the order of the lines.

    A file below ``data_dir`` is reached without following a symbolic link; elsewhere (mounted secrets are
    links) links are followed. ``own``: it is the one that a store made for itself, so that a group of ours to which it was
    given since is no reason to refuse it: `close_key`. KeyFileError when it is missing, no regular file, open to others,
    or malformed.
    """
    try:
        fd = _open(path, data_dir)
    except OSError as error:
        raise KeyFileError(f"key file {shown(path)}: {_reason(error)}") from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise KeyFileError(f"key file {path}: not a regular file")
        open_to = None if own and is_opened_to_group(status, MODE, fd) else openness(status, fd)
        if open_to is not None:
            raise KeyFileError(f"key file {path}: {open_to}: chmod 600 {path}")
        content = _read(fd)
    except OSError as error:
        raise KeyFileError(f"key file {shown(path)}: {_reason(error)}") from None
    finally:
        os.close(fd)
    if len(content) > KEY_FILE_SIZE_MAX:
        raise KeyFileError(f"key file {path}: more than {KEY_FILE_SIZE_MAX} bytes")
    try:
        text = content.decode("ascii")
    except UnicodeDecodeError:
        raise KeyFileError(f"key file {path}: not text, expected one key of 64 hex digits a line") from None
    return mac.parse_keys(text, f"key file {path}")


def close_key(path: Path) -> None:
    """Takes the key file that a store made for itself away from its group again, to which `fsGroup` of Kubernetes gives
    every file of a volume at each mount. What cannot be looked at, or not changed, is left to `read_keys`."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or not is_opened_to_group(status, MODE, fd):
            return
        os.fchmod(fd, MODE)
    except OSError as error:
        log.warning("key file %s: its group may use it: %s", path, error.strerror)
    else:
        log.warning(
            "key file %s: it had mode %04o, and has %04o again", path, stat.S_IMODE(status.st_mode), MODE
        )
    finally:
        os.close(fd)


def make_key_file(path: Path) -> bytes:
    """Makes ``path`` (0600) with one new random key, durable and whole or not there at all. Returns the key.

    KeyFileError when something is there already, which stays untouched, or when it cannot be written.
    """
    key = secrets.token_bytes(mac.SHARED_KEY_SIZE)
    try:
        _write_new(path, mac.format_keys([key]).encode("ascii"))
    except FileExistsError:
        raise KeyFileError(f"key file {path}: exists already and is never overwritten") from None
    except OSError as error:
        raise KeyFileError(f"key file {shown(path)}: {_reason(error)}") from None
    return key


def rotate_key_file(path: Path) -> list[bytes]:
    """One step of a rotation: replaces ``path``, durably, whole old or whole new. Returns the keys in their new order.

    One key alone gets a new one behind it, which is accepted from then on. Of several the second becomes the first, the
    first is not accepted any more (all that it signed stays readable), and a new one is accepted for the next rotation:
    clients sign with the second key before this is done. KeyFileError as for ``read_keys``, or when it cannot be written.
    """
    keys = read_keys(path)
    path = Path(os.path.realpath(path))  # a mounted secret is a link: it stays one
    new = secrets.token_bytes(mac.SHARED_KEY_SIZE)
    keys = [keys[0], new] if len(keys) == 1 else [keys[1], new, keys[0], *keys[2:]]
    content = mac.format_keys(keys).encode("ascii")
    if len(content) > KEY_FILE_SIZE_MAX:
        raise KeyFileError(f"key file {path}: with one more key it has more than {KEY_FILE_SIZE_MAX} bytes")
    try:
        _replace(path, content)
    except OSError as error:
        raise KeyFileError(f"key file {shown(path)}: {_reason(error)}") from None
    return keys


def _open(path: Path, data_dir: Path | None) -> int:
    # O_NONBLOCK: a FIFO under this name must not hold the start up.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
    path = Path(os.path.abspath(path))
    inside = Path(os.path.abspath(data_dir)) if data_dir is not None else None
    if inside is None or not path.is_relative_to(inside):
        return os.open(path, flags)
    *directories, name = path.relative_to(inside).parts or (".",)
    directory = os.open(inside, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in directories:
            below = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            os.close(directory)
            directory = below
        return os.open(name, flags | os.O_NOFOLLOW, dir_fd=directory)
    finally:
        os.close(directory)


def _read(fd: int) -> bytes:
    pieces = []
    size = 0
    while size <= KEY_FILE_SIZE_MAX and (piece := os.read(fd, KEY_FILE_SIZE_MAX + 1 - size)):
        pieces.append(piece)
        size += len(piece)
    return b"".join(pieces)


def _write_new(path: Path, content: bytes) -> None:
    """A crash leaves no half file under the name: the bytes are durable before it is linked."""
    with _draft(path, content) as (draft, directory):
        os.link(draft, path.name, src_dir_fd=directory, dst_dir_fd=directory)


def _replace(path: Path, content: bytes) -> None:
    """Likewise, for a file that exists: its owner stays the same, and its mode."""
    before = os.stat(path)
    with _draft(path, content) as (draft, directory):
        if (before.st_uid, before.st_gid) != (os.geteuid(), os.getegid()):
            os.chown(draft, before.st_uid, before.st_gid, dir_fd=directory)
        os.chmod(draft, stat.S_IMODE(before.st_mode), dir_fd=directory)
        os.rename(draft, path.name, src_dir_fd=directory, dst_dir_fd=directory)


@contextmanager
def _draft(path: Path, content: bytes) -> Iterator[tuple[str, int]]:
    """A durable file beside ``path`` (0600) under a name of its own, which is gone in the end, and its directory. What the
    caller did there is durable afterwards."""
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        draft = f".{path.name}.{secrets.token_hex(8)}"
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory)
        try:
            with open(fd, "wb") as file:
                os.fchmod(fd, 0o600)  # whatever the umask is
                file.write(content)
                file.flush()
                os.fsync(fd)
            yield draft, directory
        finally:
            with suppress(FileNotFoundError):  # it may have got the other name
                os.unlink(draft, dir_fd=directory)
        os.fsync(directory)
    finally:
        os.close(directory)


def _reason(error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return "there is no such file"
    if error.errno == errno.ELOOP:
        return "a symbolic link, and none is followed here"
    return error.strerror or str(error)
