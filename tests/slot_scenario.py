"""A committer's work on packs whose headers are in each state: new, in the page cache, being flushed, on the disk.

A program, to be run under strace: the flusher's calls come exactly where they are wanted.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from committer_rig import CommitterRig

from ingest import limits
from ingest.limits import PACK_SLOTS
from ingest.runtime.durable_files import syncfs
from ingest.status import Status

FIRST = 36 + 5 * PACK_SLOTS  # slot 0 of pack 5


def run(root: Path) -> None:
    with CommitterRig(root) as rig:
        index = FIRST
        for begun, ended in ((False, False), (True, False), (True, True)):
            packs = [index + i * PACK_SLOTS for i in range(4)]
            for first in packs:
                rig.put(first)
            rig.commit()  # their headers are in the page cache
            if begun:
                rig.packs.flush_begins()
            if ended:
                syncfs(rig.data_fd)
                rig.packs.flush_done()
            cookies = [rig.put_run(packs[0] + 1, 20), rig.put_run(packs[1] + 1, 20)]
            rig.commit()
            # Two packs whose headers nothing of this has made durable, and a new one.
            cookies += [rig.put_run(first, PACK_SLOTS - 1) for first in (packs[2] + 1, packs[3] + 1)]
            cookies.append(rig.put_run(packs[3] + PACK_SLOTS, PACK_SLOTS - 1))
            assert rig.outstanding[0] >= limits.BULK_PENDING_MIN
            assert rig.plan(), "no long run goes past the log"
            rig.write()
            for job in rig.jobs:  # in a thread of its own, as the committer does
                thread = threading.Thread(target=job.run)
                thread.start()
                thread.join()
                assert rig.core.bulk_done(job)
            rig.jobs.clear()
            rig.settle()
            assert {rig.answer(cookie) for cookie in cookies} == {Status.SAVED}
            rig.delete(packs[0], 5)
            rig.delete(packs[1], PACK_SLOTS)
            rig.settle()
            if begun and not ended:
                rig.packs.flush_done()
            index += 5 * PACK_SLOTS


if __name__ == "__main__":
    run(Path(sys.argv[1]))
