"""Layout tree: deletes as files see them. How many files one commit looks at is bounded, each commit has that anew; what was
deleted stays so, whatever comes again and wherever a delete is cut off."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from committer_rig import STORE_ID, CommitterRig
from packs import KEYS, frame

from ingest import limits, ticket
from ingest.limits import PACK_SLOTS
from ingest.status import Status
from ingest.store.layouts._tree_reader import TreeReader
from ingest.store.layouts._tree_table import TreeTable

FIRST = 36 + 5 * PACK_SLOTS  # slot 0 of pack 5
STRACE = shutil.which("strace")
SCRIPT = """
import os, sys
from packs import frame
from ingest.store.layouts._tree_table import TreeTable
from test_deletes_in_files import FIRST
table = TreeTable(os.open(sys.argv[1], os.O_RDONLY), bytes(16), 2)
table.replay_puts(frame(FIRST))
try:
    table.replay_delete(5, 0, 1)
except OSError:
    print("failed")
"""


def test_each_commit_looks_at_as_many_files_as_the_last(tmp_path: Path) -> None:
    """Without space nothing is stored there to delete, which is found out by looking: that leaves no files behind."""
    with CommitterRig(tmp_path, layout="tree") as rig:
        a_commit_s = limits.DELETE_LOOKS_MAX // PACK_SLOTS + 1
        for round in range(2):
            packs = range(round * 3 * a_commit_s, (round + 1) * 3 * a_commit_s)
            cookies = [rig.delete(FIRST + i * PACK_SLOTS, PACK_SLOTS) for i in packs]
            for done in (1, 2, 3):
                rig.commit(space=False)
                assert rig.core.round.looking == (done < 3)
                answers = [rig.answer(cookie) for cookie in cookies]
                assert answers.count(Status.NO_SPACE) == done * a_commit_s
        last = rig.delete(FIRST + 3 * PACK_SLOTS + 1, 1)
        rig.packs.close()
        rig.commit()
        assert rig.answer(last) is Status.DELETED


@pytest.mark.parametrize("opened_anew", [False, True])
@pytest.mark.parametrize("gone", [(0,), (2,), (4,), (0, 4), (1, 2, 3), (0, 1, 2, 3, 4)], ids=str)
def test_what_was_deleted_is_not_replayed(tmp_path: Path, gone: tuple[int, ...], opened_anew: bool) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    table = TreeTable(fd, STORE_ID, 4)
    for slot in gone:
        table.replay_delete(5, slot, 1)
    if opened_anew:
        table.close()
    table.replay_puts(b"".join(frame(FIRST + i) for i in range(5)))
    reader = TreeReader(fd, [KEYS])
    for i in range(5):
        path = tmp_path / ticket.tree_path(ticket.format(FIRST + i))
        wanted = Status.DELETED if i in gone else Status.SAVED
        assert reader.read_chunk(FIRST + i)[0] == wanted
        assert path.stat().st_size == (0 if i in gone else limits.DATA_SIZE)
    reader.close()
    table.close()
    os.close(fd)


@pytest.mark.skipif(STRACE is None, reason="strace is not installed")
@pytest.mark.parametrize(
    "call", ["fsetxattr:error=EIO:when=2", "ftruncate:error=EIO", "fremovexattr:error=EIO"]
)
def test_a_delete_that_was_cut_off_left_the_chunk_or_its_tombstone(tmp_path: Path, call: str) -> None:
    trace = [str(STRACE), "-o", os.devnull, "--seccomp-bpf", "-f", "-e", f"inject={call}"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run(
        [*trace, sys.executable, "-c", SCRIPT, str(tmp_path)],
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["failed"], done.stderr
    fd = os.open(tmp_path, os.O_RDONLY)
    status, held = TreeReader(fd, [KEYS]).read_chunk(FIRST)
    os.close(fd)
    if call.startswith("fsetxattr"):
        assert (status, held) == (Status.SAVED, frame(FIRST))
    else:
        assert status is Status.DELETED
