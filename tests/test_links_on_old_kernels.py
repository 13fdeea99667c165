"""No symbolic link below DATA is followed, also where the kernel, or a sandbox, lets nobody ask for that in one call."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

STRACE = shutil.which("strace")
PROGRAM = Path(__file__).parent / "links_of_stores.py"
PARTS = {"pack": 4, "tree": 5}  # of a path


@pytest.mark.parametrize("error", ["none", "ENOSYS", "EPERM"])
def test_no_link_is_followed(tmp_path: Path, error: str) -> None:
    command = [sys.executable, str(PROGRAM), str(tmp_path)]
    if error != "none":
        if STRACE is None:
            pytest.skip("strace is not installed")
        trace = ["-o", os.devnull, "--seccomp-bpf", "-f", "-e", f"inject=openat2:error={error}"]
        command = [STRACE, *trace, *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    found = [tuple(json.loads(line)) for line in done.stdout.splitlines()]
    expected = [
        (layout, what, what == "none", what != "none", True)
        for layout, parts in PARTS.items()
        for what in ("none", *range(parts), "fifo")
    ]
    assert found == expected, done.stderr
