"""A store that is lost while long runs go past its log: what they wrote counts for nothing, as if they had not run."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
from committer_rig import CommitterRig
from put_rig import frame
from test_committer import no_growth

from ingest import sharding
from ingest.engine.commit._bulk import BulkJob
from ingest.limits import PACK_SLOTS
from ingest.status import Status

FIRSTS = tuple(36 + (5 + i) * PACK_SLOTS for i in range(3))
COUNT = 700
EARLIER = (99, errno.EIO)  # of a pack that has nothing to do with them


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[CommitterRig]:
    with CommitterRig(tmp_path) as rig:
        rig.core.disk_errors.append(EARLIER)
        yield rig


def run(rig: CommitterRig, fails: tuple[bool, ...], data: bytes) -> tuple[BulkJob, list[int]]:
    """A job of a run in each pack, of which some can't be written; and the cookies of the runs."""
    at = [
        first + (PACK_SLOTS - COUNT if failing else 0) for first, failing in zip(FIRSTS, fails, strict=True)
    ]
    cookies = [rig.put_run(first, COUNT, data) for first in at]
    (job,) = rig.plan()
    rig.write()
    with no_growth(sharding.slot_offset(COUNT)):
        job.run()
    rig.jobs.clear()
    return job, cookies


@pytest.mark.parametrize("fails", [*product((False, True), repeat=3)])
def test_all_of_it_is_refused_and_may_come_again(rig: CommitterRig, fails: tuple[bool, ...]) -> None:
    job, cookies = run(rig, fails, b"lost")
    assert rig.core.discard(job), "no sync failed"
    assert rig.core.disk_errors == [EARLIER], "the disk had no part in it"
    rig.core.check()
    rig.collect()
    assert {rig.answer(cookie) for cookie in cookies} == {Status.ERROR}
    rig.plan()
    rig.write()
    assert (rig.packs.claimed, rig.core.bulk_running) == (0, 0)
    assert {rig.stored(first) for first in FIRSTS} == {Status.MISSING}
    again = [rig.put_run(first, PACK_SLOTS, b"again") for first in FIRSTS]
    rig.settle()
    assert {rig.answer(cookie) for cookie in again} == {Status.SAVED}
    rig.crash()
    for first, slot in product(FIRSTS, (0, COUNT - 1, PACK_SLOTS - 1)):
        assert rig.stored(first + slot) == frame(first + slot, b"again")


@pytest.mark.parametrize("discarded", [0, 1])
def test_a_job_that_was_done_before_is_none_of_it(rig: CommitterRig, discarded: int) -> None:
    """It is in the log or will be, and is answered as what it is."""
    cookies, jobs = [], []
    for pack in (8, 11):
        cookies.append([rig.put_run(36 + (pack + i) * PACK_SLOTS, COUNT) for i in range(3)])
        jobs += rig.plan()
    assert len(jobs) == 2
    for job in jobs:
        job.run()
    rig.jobs.clear()
    ends = [rig.core.bulk_done, rig.core.bulk_done]
    ends[discarded] = rig.core.discard
    for end, job in zip(ends, jobs, strict=True):
        assert end(job)
    rig.core.check()
    rig.plan()
    rig.write()
    rig.settle()
    answers = [{rig.answer(cookie) for cookie in some} for some in cookies]
    assert (answers[discarded], answers[1 - discarded]) == ({Status.ERROR}, {Status.SAVED})
    rig.crash()
    for pack, saved in zip((8, 11), (discarded == 1, discarded == 0), strict=True):
        index = 36 + pack * PACK_SLOTS
        assert rig.stored(index) == (frame(index, b"data") if saved else Status.MISSING)
