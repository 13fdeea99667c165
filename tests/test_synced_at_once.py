"""A chunk's file for which a flush has no place is synced when it is written: if that fails, so does the write."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

STRACE = shutil.which("strace")
SCRIPT = """
import os, sys
from put_rig import frame
from ingest import ticket
from ingest.sharding import ticket_pack, ticket_slot
from ingest.store.layouts._tree_table import TreeTable
table = TreeTable(os.open(sys.argv[1], os.O_RDONLY), bytes(16), 2)
table.sync_each_file()
first = ticket.parse("SYNC000")
table.replay_puts(frame(first))  # has the only place
for name, write in (
    ("put", lambda: table.replay_puts(frame(first + 1))),
    ("delete", lambda: table.replay_delete(ticket_pack(first), ticket_slot(first) + 2, 1)),
):
    try:
        write()
    except OSError as error:
        print(name, error.errno == 5)
    else:
        print(name, "passed")
"""


@pytest.mark.skipif(STRACE is None, reason="strace is not installed")
@pytest.mark.parametrize("which", ["1+", "2+2", "100"], ids=["the_file", "its_directories", "nothing"])
def test_a_sync_that_fails_is_an_error_of_the_write(tmp_path: Path, which: str) -> None:
    trace = [
        str(STRACE),
        "-o",
        os.devnull,
        "--seccomp-bpf",
        "-f",
        "-e",
        f"inject=fsync:error=EIO:when={which}",
    ]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run(
        [*trace, sys.executable, "-c", SCRIPT, str(tmp_path)],
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    said = "passed" if which == "100" else "True"
    assert done.stdout.split() == ["put", said, "delete", said], done.stderr
