"""Bulk jobs in which some packs can't be written, for each choice of the first three. A program, to be run under strace.

Prints a line of JSON for each job: [where DATA is, {the path of each pack: what the pack's run was answered}].
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

from committer_rig import CommitterRig
from test_committer import no_growth

from ingest import sharding, ticket
from ingest.limits import PACK_SLOTS
from ingest.status import Status

COUNT = 600
# Neighbours in directories of three levels, then one that shares only the first of them.
FIRSTS = (*(ticket.parse("FSYNC00") + i * PACK_SLOTS for i in range(3)), ticket.parse("FSZZZ00"))


def case(root: Path, failing: tuple[bool, ...]) -> tuple[str, dict[str, Status]]:
    """No file grows past its first runs: those further behind fail."""
    root.mkdir()
    with CommitterRig(root) as rig:
        places = {first: first + COUNT * fails for first, fails in zip(FIRSTS, failing, strict=True)}
        cookies = {first: rig.put_run(place, COUNT) for first, place in places.items()}
        (job,) = rig.plan()
        rig.write()
        with no_growth(sharding.slot_offset(COUNT)):
            job.run()
        assert rig.core.bulk_done(job)
        rig.jobs.clear()
        rig.settle()
        answers = {str(rig.path(first).resolve()): rig.answer(cookie) for first, cookie in cookies.items()}
        return str(rig.data.resolve()), answers


if __name__ == "__main__":
    for number, failing in enumerate(itertools.product((False, True), (False, True), (False, True), (False,))):
        print(json.dumps(case(Path(sys.argv[1]) / str(number), failing)))
