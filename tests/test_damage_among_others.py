"""A stored chunk that is damaged, and one that can't be read, among others in one run of duplicates: each is judged by
itself, and what the log is told of it is not told of a neighbour."""

from __future__ import annotations

import itertools
import os
import stat
from pathlib import Path

import pytest
from committer_rig import CommitterRig

from ingest import sharding
from ingest.limits import DATA_SIZE, PACK_SLOTS
from ingest.status import Status

FIRST = 36 + 5 * PACK_SLOTS  # slot 0 of pack 5
FINE, SPOILT, UNREADABLE = "fine", "spoilt", "unreadable"
RUNS = [
    states
    for length in (1, 2, 3, 4)
    for states in itertools.product((FINE, SPOILT, UNREADABLE), repeat=length)
]


def damage(rig: CommitterRig, index: int, state: str) -> None:
    if state == SPOILT:
        rig.spoil(index, bytes(DATA_SIZE))
    elif (
        state == UNREADABLE
    ):  # there is no such device, or it may not be opened: neither says anything of a chunk
        path = rig.path(index)
        path.unlink()
        try:
            os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(10, 250))
        except PermissionError:
            pytest.skip("no device can be made here")


@pytest.mark.parametrize("data", [b"data", b"rival"])
def test_each_chunk_of_a_run_is_judged_by_itself(tmp_path: Path, data: bytes) -> None:
    with CommitterRig(tmp_path, layout="tree") as rig:
        at = {states: FIRST + 8 * i for i, states in enumerate(RUNS)}
        for states, first in at.items():
            rig.put_run(first, len(states))
        rig.commit()
        for states, first in at.items():
            for i, state in enumerate(states):
                damage(rig, first + i, state)
        wanted = Status.SAVED if data == b"data" else Status.CONFLICT
        for states, first in at.items():
            again = rig.put_run(first, len(states), data)
            rig.core.corrupt.clear()
            rig.core.disk_errors.clear()
            rig.commit()
            assert rig.answers[again] == [wanted if state == FINE else Status.ERROR for state in states], (
                states
            )
            slots = [sharding.ticket_slot(first + i) for i, state in enumerate(states) if state == SPOILT]
            assert rig.core.corrupt == [(5, slot) for slot in slots], states
            assert bool(rig.core.disk_errors) == (UNREADABLE in states), states
