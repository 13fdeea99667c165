"""What a flush counts as flushed, whenever it comes: the committer's own loop, in this process, step by step.

The packs are what they were when the last flush that ended had begun, the log is whole: so a power cut leaves them at
worst. What was answered has to be there then.
"""

from __future__ import annotations

import shutil
import time
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import pytest
from committer_process import FIRST, CommitterProcess
from committer_rig import SEGMENT_SIZE
from put_rig import frame

from faults.damaged_store import copy_file
from ingest import limits, ticket
from ingest.engine.commit import committer as loop_module
from ingest.engine.commit.committer import CommitLoop
from ingest.status import Status
from ingest.store.data_dir import META
from ingest.store.layouts.tree_file import TreeFile
from ingest.store.log.recovery import recover

S, D = Status.SAVED, Status.DELETED
A_STEP = 2  # tickets that one step of a delete erases here
COUNT = 2 * A_STEP  # tickets of a delete, all of which are stored
STEPS = ("delete", "put", "erase")


class Stepped(CommitterProcess):
    """`flush_begins` and `flush_ends` are the loop's, with the disk's part played by a copy of the packs."""

    def __init__(self, data_dir: Path, layout: str) -> None:
        data_dir.parent.mkdir()
        super().__init__(data_dir, layout=layout)
        self.data_dir = data_dir
        self.durable = data_dir.with_name("durable")
        self.syncing = data_dir.with_name("syncing")
        self.durable.mkdir()
        self.loop: CommitLoop | None = None
        self.synced: Future[None] = Future()  # what the loop takes for the sync of its packs

    def begin(self) -> None:
        self.queue.committer_gone()
        self.loop = CommitLoop(self.node)
        self.synced = Future()
        self.loop._submit = lambda work: self.synced  # type: ignore[method-assign]
        self.loop._recover()
        self.queue.committer_ready()
        self.wait_ready()

    def __exit__(self, *_: object) -> None:
        self.die()
        super().__exit__()

    def die(self) -> None:
        """Nothing is flushed, nothing is said."""
        if self.loop is not None:
            self.loop.threads.shutdown()
            self.loop.log.close()
            self.loop.packs.close()
            self.loop = None

    def commit(self) -> None:
        assert self.loop is not None
        self.loop.core.take()
        self.loop._commit(time.monotonic_ns())
        self._collect()

    def erase(self) -> None:
        assert self.loop is not None
        assert self.loop.core.erasing
        self.loop._settle(self.loop.core.round.erase())
        self._collect()

    def flush_begins(self) -> None:
        assert self.loop is not None
        shutil.rmtree(self.syncing, ignore_errors=True)
        copy_packs(self.data_dir, self.syncing)
        self.loop._begin_flush()
        assert self.loop._flush is self.synced

    def flush_ends(self) -> None:
        assert self.loop is not None
        self.synced.set_result(None)
        self.loop._end_flush()
        shutil.rmtree(self.durable)
        self.syncing.rename(self.durable)

    def cut_power(self) -> None:
        self.die()
        for path in self.data_dir.iterdir():
            if path.name != META:
                shutil.rmtree(path)
        copy_packs(self.durable, self.data_dir)

    def stored(self, index: int) -> bytes | Status:
        path = self.data_dir / ticket.tree_path(ticket.format(index))
        if not path.exists():
            return Status.MISSING
        with path.open("rb") as file:
            held = TreeFile.read(file.fileno())
        return held.frame(ticket.format(index)) if held.status is Status.SAVED else held.status


def copy_packs(source: Path, target: Path) -> None:
    ignore = shutil.ignore_patterns(META)
    shutil.copytree(source, target, ignore=ignore, copy_function=copy_file, dirs_exist_ok=True)


def play(committer: Stepped, begins: int, ends: int) -> dict[int, bytes | Status]:
    """Puts, a large delete, and puts between its steps. A flush begins and ends before the steps of these numbers.
    Returns what each ticket holds by what was answered."""
    extra = FIRST + 100
    cookies = [committer.put(FIRST, COUNT), committer.put(extra)]
    committer.commit()
    for number, step in enumerate((*STEPS, "put")):
        if number == begins:
            committer.flush_begins()
        if number == ends:
            committer.flush_ends()  # the next batch says so in the log
        if step == "delete":
            delete = committer.delete(FIRST, COUNT)
            committer.commit()
        elif step == "put":
            extra += 1
            cookies.append(committer.put(extra))
            committer.commit()
        else:
            committer.erase()
    assert committer.wait(delete, *cookies) == [{D}] + [{S}] * len(cookies)
    held: dict[int, bytes | Status] = dict.fromkeys(range(FIRST, FIRST + COUNT), D)
    return held | {index: frame(index, b"data") for index in range(FIRST + 100, extra + 1)}


@pytest.mark.layout("tree")  # in the other one a delete is through in one step
@pytest.mark.parametrize("begins", range(len(STEPS) + 1))
def test_a_power_cut_takes_nothing_that_was_answered(tmp_path, monkeypatch, layout, begins):
    """However a large delete and a flush overlap: what the log is said to need no more is wholly in its slots."""
    monkeypatch.setattr(limits, "BATCH_ERASED_FILES_MAX", A_STEP)
    monkeypatch.setattr(loop_module, "recover", partial(recover, segment_size=SEGMENT_SIZE))  # made faster
    for ends in range(begins, len(STEPS) + 1):
        with Stepped(tmp_path / f"{ends}" / "data", layout=layout) as committer:
            committer.begin()
            held = play(committer, begins, ends)
            assert {index: committer.stored(index) for index in held} == held
            committer.cut_power()
            committer.begin()
            assert {index: committer.stored(index) for index in held} == held, (
                f"the flush ended before step {ends}"
            )
        shutil.rmtree(tmp_path / f"{ends}")
