"""How much the log still covers is counted pack by pack, or file by file: who stays within the bounds of a flush goes by
it, and operators see it. Whatever wrote, and whatever was counted before the last flush."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from committer_rig import CommitterRig

from ingest.engine.commit._commit_counters import CommitCounters
from ingest.limits import BULK_PENDING_MIN, PACK_SLOTS

FIRST = 36 + 5 * PACK_SLOTS  # slot 0 of pack 5


def put_one(rig: CommitterRig, round: int) -> tuple[int, int]:
    """Writes what was not there; how many packs, and how many files."""
    rig.put(FIRST + 100 + round)
    return 1, 1


def put_a_run(rig: CommitterRig, round: int) -> tuple[int, int]:
    rig.put_run(FIRST + 200 + 20 * round, 20)
    return 1, 20


def put_over_a_border(rig: CommitterRig, round: int) -> tuple[int, int]:
    for at in (FIRST + round, FIRST + PACK_SLOTS + round, FIRST + 50 + round):
        rig.put(at)
    return 2, 3


def put_past_the_log(rig: CommitterRig, round: int) -> tuple[int, int]:
    for pack in range(20 + 4 * round, 24 + 4 * round):
        rig.put_run(FIRST + pack * PACK_SLOTS, BULK_PENDING_MIN // 4)
    return 4, 0


def delete_stored(rig: CommitterRig, round: int) -> tuple[int, int]:
    rig.delete(FIRST + 700 + 2 * round, 2)
    return 1, 2


def delete_of_two_packs(rig: CommitterRig, round: int) -> tuple[int, int]:
    rig.delete(FIRST + 3 * PACK_SLOTS - 5 - 10 * round, 5)
    rig.delete(FIRST + 3 * PACK_SLOTS + 10 * round, 5)
    return 2, 10


WRITES = [put_one, put_a_run, put_over_a_border, put_past_the_log, delete_stored, delete_of_two_packs]


@pytest.fixture(params=["pack", "tree"])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[CommitterRig]:
    with CommitterRig(tmp_path, layout=request.param) as rig:
        yield rig


def shown(rig: CommitterRig) -> int:
    """What operators see."""
    CommitCounters(rig.queue).publish(rig.packs, 0, 0, 0, 0)
    return rig.queue.dirty_packs


@pytest.mark.parametrize("write", WRITES)
def test_what_was_written_counts_until_a_flush_has_made_it_durable(
    rig: CommitterRig, write: Callable[[CommitterRig, int], tuple[int, int]]
) -> None:
    """Three rounds in the same pack, or packs; in all but the first more is written while the flush is under way."""
    if rig.layout == "tree" and write is put_past_the_log:
        pytest.skip("nothing goes past the log there")
    which = 1 if rig.layout == "tree" else 0
    assert shown(rig) == 0
    for round in range(3):
        count = write(rig, round)[which]
        rig.settle()
        assert rig.packs.dirty_count == shown(rig) == count
        rig.packs.flush_begins()
        assert (rig.packs.dirty_count, shown(rig)) == (0, count), "until the flush has ended"
        more = put_one(rig, 10 + round)[which] if round else 0
        rig.settle()
        assert (rig.packs.dirty_count, shown(rig)) == (more, count + more)
        rig.packs.flush_done()
        assert shown(rig) == more
        rig.flush()
        assert shown(rig) == 0
