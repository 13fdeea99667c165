"""Bulk jobs of packs that share directories, to see which of these are synced. A program, to be run under strace.

In one kind some packs can't be written: each choice of the first three. In the other a job goes on from high packs to
low ones, whose directories have names that begin those before. Prints a line of JSON for each job: [where DATA is,
{the path of each pack: what the pack's run was answered}].
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from committer_rig import CommitterRig
from test_committer import no_growth

from ingest import sharding, ticket
from ingest.limits import PACK_SLOTS
from ingest.status import Status

COUNT = 600
# Neighbours in directories of three levels, then one that shares only the first of them.
FIRSTS = (*(ticket.parse("FSYNC00") + i * PACK_SLOTS for i in range(3)), ticket.parse("FSZZZ00"))
ROUND = (("F00", "FS00"), ("FSY00", "FSYN00"), ("FSYNC00", "FSYNCD00"))


def run_job(rig: CommitterRig, places: Mapping[int, int]) -> dict[str, Status | None]:
    """`places`: where the run of each pack starts, by its first ticket. Runs behind the first COUNT slots fail."""
    cookies = {first: rig.put_run(place, COUNT) for first, place in places.items()}
    (job,) = rig.plan()
    rig.write()
    with no_growth(sharding.slot_offset(COUNT)):
        job.run()
    assert rig.core.bulk_done(job)
    rig.jobs.clear()
    rig.settle()
    return {str(rig.path(first).resolve()): rig.answer(cookie) for first, cookie in cookies.items()}


def partly_failing(rig: CommitterRig, failing: tuple[bool, ...]) -> dict[str, Status | None]:
    return run_job(rig, {first: first + COUNT * fails for first, fails in zip(FIRSTS, failing, strict=True)})


def going_round(rig: CommitterRig, low: int, high: int) -> dict[str, Status | None]:
    between = [low + i * PACK_SLOTS for i in range(1, 5)]
    run_job(rig, {first: first for first in between})
    return run_job(rig, {first: first for first in (low, *(high + i * PACK_SLOTS for i in (-2, -1, 0)))})


if __name__ == "__main__":
    for failing in itertools.product((False, True), (False, True), (False, True), (False,)):
        root = Path(sys.argv[1]) / "".join("x" if fails else "o" for fails in failing)
        root.mkdir()
        with CommitterRig(root) as rig:
            print(json.dumps([str(rig.data.resolve()), partly_failing(rig, failing)]))
    for low, high in ROUND:
        root = Path(sys.argv[1]) / low
        root.mkdir()
        with CommitterRig(root) as rig:
            found = going_round(rig, ticket.parse(low), ticket.parse(high))
            print(json.dumps([str(rig.data.resolve()), found]))
