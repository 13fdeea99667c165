"""File systems whose files lie on another one, where syncing the whole does not do: overlayfs, and one in user space.

The one in user space (FUSE) passes everything through to a directory. The kernel gives it each fsync of a file or directory,
and no syncfs: so what nobody synced by name may be lost below in a power cut.
"""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from faults.block_recorder import end_with_parent, mounted

STACKS = ("overlay", "fuse")
STACKED = tuple(f"ext4+{stack}" for stack in STACKS)  # the file system of a disk, and what is mounted on that
START_TIMEOUT_S = 10.0
UNMOUNT_TIMEOUT_S = 30.0


@contextmanager
def stacked(stack: str, below: Path, point: Path) -> Iterator[None]:
    """Mounts `stack` (one of STACKS) on the directory `point`, with its files in the directory `below`. Needs root.

    CalledProcessError or OSError: it can't be mounted here.
    """
    with overlay(below, point) if stack == "overlay" else pass_through(below, point):
        try:
            yield
        finally:
            unmount(point)


def disk_of(file_system: str) -> str:
    """What is on the disk: `ext4` of `ext4+overlay`."""
    return file_system.partition("+")[0]


@contextmanager
def laid(device: Path, point: Path, file_system: str) -> Iterator[None]:
    """Mounts a disk's file system, or one of STACKED, from an image file. As `mounted` and `stacked` say."""
    stack = file_system.partition("+")[2]
    if not stack:
        with mounted(device, point, file_system):
            yield
        return
    below = point.with_name(f"{point.name}-below")
    below.mkdir(exist_ok=True)
    with mounted(device, below, disk_of(file_system)), stacked(stack, below, point):
        yield


def what_lacks(stack: str, directory: Path) -> str:
    """Why `stack` can't be mounted in `directory`, or nothing."""
    below, point = directory / "try-below", directory / "try-point"
    below.mkdir()
    point.mkdir()
    try:
        with stacked(stack, below, point):
            return ""
    except subprocess.CalledProcessError as error:
        return f"{stack} can't be mounted: {str(error.stderr).strip()}"
    except (OSError, ImportError, AttributeError) as error:
        return f"{stack} can't be mounted: {error}"
    finally:
        subprocess.run(["rm", "-rf", str(below), str(point)], check=True)


def unmount(point: Path) -> None:
    deadline = time.monotonic() + UNMOUNT_TIMEOUT_S
    while (done := subprocess.run(["umount", str(point)], capture_output=True, text=True)).returncode:
        if time.monotonic() > deadline or "busy" not in done.stderr:
            raise OSError(f"{point} can't be unmounted: {done.stderr.strip()}")
        time.sleep(0.02)


def overlay(below: Path, point: Path) -> nullcontext[None]:
    """An overlay with nothing in its lower directory: a container without a volume."""
    parts = {name: below / name for name in ("lower", "upper", "work")}
    for part in parts.values():
        part.mkdir(exist_ok=True)
    options = ",".join(f"{name}dir={part}" for name, part in parts.items())
    subprocess.run(
        ["mount", "-t", "overlay", "overlay", "-o", options, str(point)],
        check=True,
        capture_output=True,
        text=True,
    )
    return nullcontext()


@contextmanager
def pass_through(below: Path, point: Path) -> Iterator[None]:
    """Serves `below` at `point` from a process of its own, until it is unmounted there."""
    pid = os.fork()
    if pid == 0:
        try:
            end_with_parent()
            from faults.pass_through import serve  # only here is libfuse needed

            serve(below, point)
            os._exit(0)
        except BaseException as error:
            os.write(2, f"the file system in user space ended: {error!r}\n".encode())
        finally:
            os._exit(1)
    deadline = time.monotonic() + START_TIMEOUT_S
    while not os.path.ismount(point):
        if os.waitpid(pid, os.WNOHANG)[0]:
            raise OSError(
                errno.ENODEV, "the file system in user space did not start: what it said stands above"
            )
        if time.monotonic() > deadline:
            raise OSError(errno.ETIMEDOUT, "the file system in user space did not start")
        time.sleep(0.005)
    yield
    os.waitpid(pid, 0)
