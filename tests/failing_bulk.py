"""Bulk jobs of which the k-th write or sync fails, for each k. A program, run with `faults/failing_calls.c` preloaded.

Prints a line of JSON for each: [the call, k, the errno, whether it struck, whether the job counts as done, the answer
of each run].
"""

from __future__ import annotations

import errno
import itertools
import json
import sys
from pathlib import Path

from committer_rig import CommitterRig

from faults.call_shim import Shim
from faults.failing_series import Series
from ingest.limits import PACK_SLOTS
from ingest.status import Status

FIRSTS = tuple(
    36 + pack * PACK_SLOTS for pack in (5, 6, 40, 50_000)
)  # in directories of one, two and three levels


def case(root: Path, call: str, k: int, error: int) -> tuple[bool, bool, list[Status | None]]:
    root.mkdir()
    role = Path("/proc/self/comm").read_text().strip()
    with CommitterRig(root) as rig:
        rig.put(FIRSTS[0])
        rig.commit()
        cookies = [rig.put_run(first + 1, 600) for first in FIRSTS]
        (job,) = rig.plan()
        rig.write()
        shim = Shim(root / "control", rig.data.resolve(), Series("fresh", role, call, error, False), k)
        shim.follow()
        job.run()
        shim.disarm()
        Shim.leave()
        done = rig.core.bulk_done(job)
        if done:
            rig.jobs.clear()
            rig.settle()
        else:
            rig.write()
        return shim.struck > 0, done, [rig.answer(cookie) for cookie in cookies]


if __name__ == "__main__":
    disk, full = (errno.EIO,), (errno.EIO, errno.ENOSPC, errno.EDQUOT)
    for name, errors in (("fsync", disk), ("fdatasync", disk), ("pwrite", full)):
        for number in itertools.count(1):
            error = errors[number % len(errors)]
            struck, done, answers = case(Path(sys.argv[1]) / f"{name} {number}", name, number, error)
            print(json.dumps([name, number, error, struck, done, answers]))
            if not struck:
                break
