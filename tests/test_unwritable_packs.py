"""A pack that can't be written to any more when the log has its batch: whichever of the batch's packs that is, and whatever
it was to get, nothing of the batch is answered as done, and recovery brings all of it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from committer_rig import CommitterRig

from ingest.limits import BULK_PENDING_MIN, PACK_SLOTS
from ingest.status import Status

FIRSTS = tuple(36 + (5 + i) * PACK_SLOTS for i in range(3))
COUNT = BULK_PENDING_MIN // 3 + 1


def make_unwritable(path: Path) -> None:
    """All descriptors of a file that this process has, from now on."""
    reading = os.open(path, os.O_RDONLY)
    for fd in {int(name) for name in os.listdir("/proc/self/fd")} - {reading}:
        if os.path.exists(f"/proc/self/fd/{fd}") and os.path.samefile(f"/proc/self/fd/{fd}", path):
            os.dup2(reading, fd, inheritable=False)
    os.close(reading)


def hand_over(rig: CommitterRig, kind: str) -> list[int]:
    if kind == "delete":
        return [rig.delete(first, 3) for first in FIRSTS]
    count = COUNT if kind == "bulk" else 3
    return [rig.put_run(first + 8, count) for first in FIRSTS]


@pytest.mark.parametrize("victim", range(3))
@pytest.mark.parametrize("kind", ["put", "bulk", "delete"])
def test_nothing_of_its_batch_is_done(tmp_path: Path, kind: str, victim: int) -> None:
    with CommitterRig(tmp_path) as rig:
        for first in FIRSTS:
            rig.put_run(first, 3)
        rig.commit()
        rig.flush()
        cookies = hand_over(rig, kind)
        assert bool(rig.plan()) == (kind == "bulk")
        if kind == "bulk":
            rig.write()
            rig.finish_jobs()
            rig.plan()
        planned = rig.core.round
        planned.write_notes()
        rig.log.append(planned.buffer, planned.puts, planned.delete_frames, planned.notes)
        make_unwritable(rig.path(FIRSTS[victim]))
        assert planned.apply() == errno.EBADF
        planned.answer(failed=True)
        rig.collect()
        assert {rig.answer(cookie) for cookie in cookies} == {Status.ERROR}
        rig.crash()
        for first in FIRSTS:
            assert (rig.stored(first) is Status.DELETED) == (kind == "delete")
            assert (rig.stored(first + 8) is Status.MISSING) == (kind == "delete")
