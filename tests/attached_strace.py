"""strace on a running process, to make its calls fail."""

from __future__ import annotations

import shutil
import subprocess

import pytest

STRACE = shutil.which("strace")


def attach_strace(pid: int, *arguments: str) -> subprocess.Popen[bytes]:
    """strace on a running process; returns when it is attached."""
    assert STRACE
    tracer = subprocess.Popen(
        [STRACE, "-f", "-p", str(pid), "-o", "/dev/null", *arguments], stderr=subprocess.PIPE
    )
    assert tracer.stderr is not None
    line = tracer.stderr.readline()
    if b"attached" not in line:
        tracer.kill()
        tracer.wait()
        pytest.skip(f"strace cannot attach here: {line.decode().strip()}")
    return tracer
