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


EACH = 6  # syncs of one write: its file, DATA, and the four directories on the way


def run(root: Path, which: str) -> list[str]:
    """What became of the put and of the delete when these syncs fail."""
    inject = f"inject=fsync:error=EIO:when={which}"
    trace = [str(STRACE), "-o", os.devnull, "--seccomp-bpf", "-f", "-e", inject]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run(
        [*trace, sys.executable, "-c", SCRIPT, str(root)],
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.skipif(STRACE is None, reason="strace is not installed")
@pytest.mark.parametrize("which", ["1+", "2+2", "100"], ids=["the_file", "its_directories", "nothing"])
def test_a_sync_that_fails_is_an_error_of_the_write(tmp_path: Path, which: str) -> None:
    said = "passed" if which == "100" else "True"
    assert run(tmp_path, which) == ["put", said, "delete", said]


@pytest.mark.skipif(STRACE is None, reason="strace is not installed")
@pytest.mark.parametrize("which", [1, 2, EACH, EACH + 1, 2 * EACH, 2 * EACH + 1])
def test_one_that_fails_alone_is_an_error_of_its_write_alone(tmp_path: Path, which: int) -> None:
    """The first, which is the file's, and the last one of each; one more is of neither."""
    put, delete = which <= EACH, EACH < which <= 2 * EACH
    assert run(tmp_path, str(which)) == [
        "put", "True" if put else "passed",
        "delete", "True" if delete else "passed",
    ]  # fmt: skip
