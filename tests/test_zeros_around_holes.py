"""Where the file system makes no more holes, deleted slots are written over with zeros: all of them, however many holes
that it made before lie among them, and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packs import frame

from ingest import sharding
from ingest.limits import FRAME_SIZE, PACK_SLOTS

STRACE = shutil.which("strace")
FIRST = 36 + 5 * PACK_SLOTS  # slot 0 of pack 5
SLOTS = 60
SCRIPT = """
import os, sys
from packs import frame
from ingest.store.layouts._pack_table import PackTable
from test_zeros_around_holes import FIRST, SLOTS
table = PackTable(os.open(sys.argv[1], os.O_RDONLY), bytes(16), 4)
table.replay_puts(b"".join(frame(FIRST + i) for i in range(SLOTS)))
table.write_headers()
for text in sys.argv[2:]:
    slot, count = map(int, text.split("+"))
    table.replay_delete(5, slot, count)
table.close()
"""


@pytest.mark.skipif(STRACE is None, reason="strace is not installed")
@pytest.mark.parametrize(
    ("holes", "zeroed"),
    [
        ([], "10+30"),
        (["20+6"], "10+30"),
        (["10+6"], "10+30"),
        (["34+6"], "10+30"),
        (["14+6", "24+6", "34+5"], "10+31"),
        (["1+7", "50+9"], "1+58"),
        (["20+20"], "20+20"),
    ],
    ids=str,
)
def test_all_that_was_deleted_is_zeros(tmp_path: Path, holes: list[str], zeroed: str) -> None:
    inject = f"inject=fallocate:error=EOPNOTSUPP:when={len(holes) + 1}+"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run(
        [str(STRACE), "-o", os.devnull, "--seccomp-bpf", "-f", "-e", inject,
         sys.executable, "-c", SCRIPT, str(tmp_path), *holes, zeroed],
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    content = (tmp_path / sharding.pack_path(5)).read_bytes()
    slot, count = map(int, zeroed.split("+"))
    for i in range(SLOTS):
        start = sharding.slot_offset(i)
        held = content[start : start + FRAME_SIZE]
        assert held == (bytes(FRAME_SIZE) if slot <= i < slot + count else frame(FIRST + i)), i
