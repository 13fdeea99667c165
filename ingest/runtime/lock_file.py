"""Lock files: one process has it, and whoever wants to know sees whether, and what that process wrote there.

A lock is a flock(2): it ends with the last process that has a copy of the descriptor, however that ends.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from contextlib import suppress
from pathlib import Path

from ingest import limits


def open_lock(path: Path) -> int:
    """The descriptor of a lock file, which is made (0600) when it is not there. Nobody has it by that. OSError."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def take(fd: int) -> None:
    """BlockingIOError when another process has the lock."""
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def take_patiently(fd: int) -> None:
    """Likewise; but whoever only looks whether somebody has it (`is_held`) is gone in a moment."""
    for _ in range(limits.LOCK_TRIES - 1):
        with suppress(BlockingIOError):
            take(fd)
            return
        time.sleep(limits.LOCK_TRY_INTERVAL_S)
    take(fd)


def is_held(path: Path) -> bool:
    """Whether a process has it. It looks for a moment whether it could have the lock itself. OSError when the file cannot be
    opened: FileNotFoundError when there is none."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def holder(path: Path) -> str:
    """Who has it, from what it wrote there, for the end of a sentence; empty when that is not readable."""
    try:
        record = json.loads(path.read_bytes()[:4096])
        return f" (process {int(record['pid'])})"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""
