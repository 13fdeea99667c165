"""Where each file is synced by itself, whatever was written to a pack keeps it open until a flush has synced it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from committer_rig import CommitterRig

from ingest.engine import _queue, metrics
from ingest.limits import PACK_SLOTS

FIRST = 36 + 5 * PACK_SLOTS  # slot 0 of pack 5


def put_one(rig: CommitterRig) -> None:
    rig.put(FIRST + 1)


def put_beside_the_log(rig: CommitterRig) -> None:
    rig.put_run(FIRST + 1, 20)


def put_past_the_log(rig: CommitterRig) -> None:
    """So much goes past it only together with another pack's."""
    rig.put_run(FIRST + 1, PACK_SLOTS - 1)
    rig.put_run(FIRST + PACK_SLOTS, PACK_SLOTS)


def delete_one(rig: CommitterRig) -> None:
    rig.delete(FIRST, 1)


def delete_what_is_free(rig: CommitterRig) -> None:
    rig.delete(FIRST + 10, 3)


WRITES = [put_one, put_beside_the_log, put_past_the_log, delete_one, delete_what_is_free]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[CommitterRig]:
    """One chunk, in a pack that is durable and closed."""
    with CommitterRig(tmp_path) as rig:
        rig.packs.sync_each_file()
        rig.put(FIRST)
        rig.commit()
        flush(rig)
        assert open_packs(rig) == 0
        yield rig


def open_packs(rig: CommitterRig) -> int:
    """Those that may not be closed for others."""
    rig.packs.give_back(99)
    return len(rig.packs)


def generations(rig: CommitterRig) -> list[int]:
    """How often the header of each pack was written."""
    return [
        rig.header(pack).generation if (rig.path(FIRST + i * PACK_SLOTS)).exists() else 0
        for i, pack in enumerate((5, 6))
    ]


def flush(rig: CommitterRig) -> None:
    rig.packs.flush_begins()
    rig.packs.sync()
    rig.packs.flush_done()


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("open_before", [False, True])
def test_a_pack_that_was_written_to(
    rig: CommitterRig, write: Callable[[CommitterRig], None], open_before: bool
) -> None:
    if open_before:
        rig.put(FIRST)  # a duplicate: opens the pack and writes nothing
        rig.commit()
        assert len(rig.packs) == 1
    write(rig)
    rig.commit()
    bulk_jobs = rig.queue.counter_row(_queue.ROW_COMMITTER)[metrics.INDEX["BULK_JOBS"]]
    assert bool(bulk_jobs) == (write is put_past_the_log)
    written = 2 if write is put_past_the_log else 1
    assert open_packs(rig) == written
    rig.packs.flush_begins()
    assert open_packs(rig) == written
    rig.packs.sync()
    rig.packs.flush_done()
    assert open_packs(rig) == 0


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("during", WRITES)
def test_what_is_written_while_a_flush_runs_waits_for_the_next(
    rig: CommitterRig, write: Callable[[CommitterRig], None], during: Callable[[CommitterRig], None]
) -> None:
    write(rig)
    rig.commit()
    rig.packs.flush_begins()
    rig.packs.sync()
    before = generations(rig)
    during(rig)
    rig.commit()
    changed = sum(one != other for one, other in zip(before, generations(rig), strict=True))
    rig.packs.flush_done()
    assert open_packs(rig) == changed
    flush(rig)
    assert open_packs(rig) == 0


def test_a_duplicate_keeps_no_pack_open(rig: CommitterRig) -> None:
    rig.put(FIRST)
    rig.commit()
    assert open_packs(rig) == 0
