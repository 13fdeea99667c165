"""Small file systems of their own for tests: files with ext4 on loop devices. Takes root, or the test is skipped."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

BALLAST = "ballast"


@contextmanager
def small_disk(
    root: Path, name: str, mib: int, *, inodes: int = 0, block: int = 0, image_root: Path | None = None
) -> Iterator[Path]:
    """An empty ext4 of `mib` MiB with so many inodes, and blocks of so many bytes (0: as mkfs chooses), mounted below
    `root`. Its image lies in `image_root`, or beside it."""
    mount = root / name
    fd, made = tempfile.mkstemp(".img", f"{name}-", image_root or root)
    os.close(fd)
    image = Path(made)
    try:
        yield from _mounted(image, mount, mib, inodes, block)
    finally:
        image.unlink()


def _mounted(image: Path, mount: Path, mib: int, inodes: int, block: int) -> Iterator[Path]:
    mount.mkdir()
    with image.open("wb") as file:
        file.truncate(mib << 20)
    # No blocks are kept for root: what is free for one is free for all.
    chosen = [*(["-N", str(inodes)] if inodes else []), *(["-b", str(block)] if block else [])]
    make = ["mkfs.ext4", "-q", "-m", "0", *chosen, str(image)]
    for command in (make, ["mount", "-o", "loop", str(image), str(mount)]):
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            pytest.skip(f"no file system whose size a test may choose: there is no {command[0]}")
        if done.returncode:
            pytest.skip(f"no file system whose size a test may choose: {done.stderr.strip()}")
    try:
        yield mount
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)


def fill(mount: Path, leave: int = 0) -> Path:
    """Takes all room on `mount` but for `leave` bytes, in a file that gives it back when it is removed."""
    ballast = mount / BALLAST
    with ballast.open("ab") as file:
        for size in (1 << 20, 4096):  # the last blocks one by one: a large request fails as a whole
            while True:
                stat = os.statvfs(mount)
                if stat.f_bavail * stat.f_frsize < leave + size:
                    break
                try:
                    os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), size)
                except OSError:
                    break
        os.fsync(file.fileno())
    return ballast
