"""What a file system does when it is told to sync: whether all of it can be trusted to say that it failed.

syncfs(2) reports a write-back that failed since Linux 5.8, and only where the file system takes part in that. Overlayfs has
its files on another one, and hears nothing of them. To FUSE the kernel passes fsync on, and no syncfs. There each file is
synced by itself.
"""

from __future__ import annotations

import ctypes
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ingest.errors import ConfigError
from ingest.runtime.durable_files import sync_directory, sync_file, syncfs

_libc = ctypes.CDLL(None, use_errno=True)

# statfs(2) and linux/magic.h.
_NAMES = {
    0xEF53: "ext4",
    0x58465342: "xfs",
    0x9123683E: "btrfs",
    0x01021994: "tmpfs",
    0x794C7630: "overlayfs",
    0x65735546: "FUSE",
    0x6969: "NFS",
    0x2FC12FC1: "zfs",
    0xF2F52010: "f2fs",
    0xFF534D42: "CIFS",
    0xFE534D42: "SMB2",
    0x01021997: "9p",
}
# Whose syncfs writes everything back and reports what failed: they keep errors of write-back for the whole file system.
_REPORTING = ("ext4", "xfs", "btrfs", "tmpfs")
_SYNCFS_REPORTS = (5, 8)  # Linux: syncfs(2), "Versions"
_VOLATILE = {"volatile", "fsync=volatile"}  # overlayfs, mount options: what old kernels and new ones call it
_AT_FDCWD, _AT_EACCESS = -100, 0x200  # linux/fcntl.h
BLOCK_SIZE_MAX = 4096  # bytes; direct writes of ours are multiples of it


@dataclass(frozen=True)
class FileSystem:
    """What lies under a directory. ``doubt``: why a syncfs there is not enough, empty when it is."""

    name: str
    doubt: str
    volatile: bool  # mounted so that it ignores every sync
    block_size: int  # of its disk, in bytes: the smallest direct write; 0 when that is not to be had

    @property
    def syncs_files(self) -> bool:
        """Whether each file must be synced by itself."""
        return bool(self.doubt)

    def __str__(self) -> str:
        if self.name == "tmpfs":
            return "tmpfs, which is memory: nothing of it outlives this machine's next restart"
        if self.doubt:
            return f"{self.name}; each file is synced by itself, as {self.doubt}"
        return f"{self.name}, synced as a whole"


def file_system(fd: int) -> FileSystem:
    """Of an open file or directory. One that does not answer is doubted."""
    try:
        name = _NAMES.get(magic := _magic(fd), f"a file system of type {magic:#x}")
    except OSError as error:
        name = f"a file system that does not say what it is ({error.strerror})"
    doubt = doubt_of(name, os.uname().release)
    volatile = name == "overlayfs" and not _VOLATILE.isdisjoint(_mount_options(fd))
    return FileSystem(name, doubt, volatile, _block_size(fd))


def doubt_of(name: str, release: str) -> str:
    """Why a syncfs is not enough on a file system of this name, on the Linux of this release ("6.1.0-13-amd64"); or ""."""
    kernel = kernel_version(release)
    doubt = ""
    if name not in _REPORTING:
        doubt = "its syncfs does not report every write that failed"
    elif kernel < _SYNCFS_REPORTS:
        doubt = f"syncfs does not report writes that failed before Linux {_dotted(_SYNCFS_REPORTS)}"
    return doubt


def refuse_unsuitable(path: Path, *, durable: bool) -> None:
    """ConfigError where files below ``path``, which is there, can't be written as we do: on a disk whose blocks are larger
    than what is written at a time; and, if they are to be ``durable``, on a volatile overlay. OSError when it can't be
    looked at."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = file_system(fd)
    finally:
        os.close(fd)
    if durable and found.volatile:
        raise ConfigError(
            f"{path} is on an overlay that is mounted volatile, which ignores every sync: use a volume, or --sync os"
        )
    if found.block_size > BLOCK_SIZE_MAX:
        raise ConfigError(
            f"{path} is on a disk with logical blocks of {found.block_size} bytes; at most {BLOCK_SIZE_MAX} are supported"
        )


def check_access(path: Path, mode: int) -> None:
    """OSError when this process may not do with ``path`` what ``mode`` says: `os.R_OK` and so on. It asks as who it is in
    effect, and unlike `os.access` it tells why: a file system may be read-only."""
    if _libc.faccessat(_AT_FDCWD, os.fsencode(path), mode, _AT_EACCESS) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(path))


def sync_everything(path: Path, fd: int) -> None:
    """Makes all files below the directory ``path``, and their names, durable, whoever wrote them. ``fd``: of that directory,
    open since before they were written. OSError: something is not durable."""
    syncfs(fd)
    if not file_system(fd).syncs_files:
        return
    for directory, _, names in os.walk(path, onerror=_raise):
        for name in names:
            if Path(directory, name).is_file() and not Path(directory, name).is_symlink():
                sync_file(Path(directory, name))
        sync_directory(Path(directory))


def kernel_version(release: str) -> tuple[int, int]:
    """(5, 8) of "5.8.0-rc1+"; (0, 0) of what is none."""
    found = re.match(r"(\d+)\.(\d+)", release)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def _raise(error: OSError) -> None:
    raise error


def _magic(fd: int) -> int:
    """The type of its file system: the first field of what statfs(2) answers."""
    answer = ctypes.create_string_buffer(512)
    if _libc.fstatfs(fd, answer) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return ctypes.c_long.from_buffer(answer).value & 0xFFFFFFFF


def _mount_options(fd: int) -> list[str]:
    """Of the mount that ``fd`` is on, those of the mount and of the file system (proc(5), mountinfo); none without /proc."""
    with suppress(OSError, ValueError, StopIteration):
        info = Path(f"/proc/self/fdinfo/{fd}").read_text(encoding="ascii")
        mount = next(line.split()[1] for line in info.splitlines() if line.startswith("mnt_id:"))
        for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            fields = line.split()
            if fields[0] == mount:
                return fields[5].split(",") + fields[-1].split(",")
    return []


def _block_size(fd: int) -> int:
    """The logical block size of the disk of ``fd``, or of the disk that it is a partition of; 0 when none is known."""
    try:
        device = os.fstat(fd).st_dev
    except OSError:
        return 0
    base = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    for queue in (base / "queue", base / ".." / "queue"):
        with suppress(OSError, ValueError):
            return int((queue / "logical_block_size").read_text(encoding="ascii"))
    return 0


__all__ = [
    "FileSystem",
    "check_access",
    "doubt_of",
    "file_system",
    "kernel_version",
    "refuse_unsuitable",
    "sync_everything",
]
