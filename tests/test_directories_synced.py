"""Where each file is synced by itself, all directories on the way to what was written are synced, too: also those of which
another one that was written to is the beginning. A flush that can not open one of them says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from committer_rig import CommitterRig

from ingest import sharding, ticket
from ingest.limits import BULK_PENDING_MIN

# Tickets whose packs, or files, lie in directories of which some begin alike, or in one another.
TICKETS = ("AAAA", "AAAAA", "AAAAAA", "AABAA", "AABAAA", "AABAAAAA", "ABAAAA", "BAAA", "BAAAA")


def above(pack: str) -> list[str]:
    """The directories on the way to a pack."""
    path = Path(sharding.pack_path(sharding.pack_id(pack)))
    return [str(parent) for parent in path.parents if str(parent) != "."]


@pytest.fixture
def rig(tmp_path: Path, layout: str) -> Iterator[CommitterRig]:
    with CommitterRig(tmp_path, layout=layout) as rig:
        rig.packs.sync_each_file()
        yield rig


def directories(rig: CommitterRig) -> list[Path]:
    return sorted(path for path in rig.data.rglob("*") if path.is_dir())


def fails_without(directory: Path, sync: Callable[[], bool]) -> bool:
    """Whether `sync` fails while there is no such directory."""
    away = directory.with_name("away")
    directory.rename(away)
    try:
        return sync()
    finally:
        away.rename(directory)


def sync_fails(rig: CommitterRig) -> bool:
    try:
        rig.packs.sync()
    except OSError:
        return True
    return False


@pytest.mark.parametrize("order", [1, -1])
def test_a_flush_syncs_each_directory_of_what_is_new(rig: CommitterRig, order: int) -> None:
    sync = partial(sync_fails, rig)
    for text in TICKETS[::order]:
        rig.put(ticket.parse(text))
    rig.settle()
    rig.packs.flush_begins()
    assert not sync()
    found = directories(rig)
    assert len(found) > len(TICKETS)
    assert [path for path in found if not fails_without(path, sync)] == []
    assert not sync()
    rig.packs.flush_done()


@pytest.mark.parametrize("first", TICKETS)
def test_what_is_new_while_a_flush_runs_is_for_the_next(rig: CommitterRig, first: str) -> None:
    sync = partial(sync_fails, rig)
    rig.put(ticket.parse(first))
    rig.commit()
    before = directories(rig)
    rig.packs.flush_begins()
    assert not sync()
    for text in TICKETS:
        rig.put(ticket.parse(text))
    rig.settle()
    rig.packs.flush_done()
    found = [path for path in directories(rig) if path not in before]
    rig.packs.flush_begins()
    assert [path for path in found if not fails_without(path, sync)] == []
    rig.packs.flush_done()


# A job goes on behind the pack that the last one ended with, and comes to the first ones after that.
JOBS = [
    ("Q", ("1", "AA")),
    ("Q", ("A", "AA", "AB")),
    ("AAAB", ("AAA", "AAAA", "AAB", "AABA")),
    ("AAAB", ("A", "AAA", "AAAC")),
]
PLACES = [(job, name) for job in JOBS for name in sorted({path for pack in job[1] for path in above(pack)})]


@pytest.mark.layout("pack")
@pytest.mark.parametrize(("job", "name"), PLACES, ids=str)
def test_a_long_run_syncs_each_directory_of_its_packs(
    rig: CommitterRig, job: tuple[str, tuple[str, ...]], name: str
) -> None:
    before, packs = job
    for several in (("2", before), packs):
        for pack in several:
            rig.put_run(ticket.parse(pack + "00"), BULK_PENDING_MIN // len(several) + 1)
        if several is not packs:
            rig.commit()
    (running,) = rig.plan()

    def run() -> bool:
        running.run()
        return not rig.core.bulk_done(running)

    assert fails_without(rig.data / name, run), "what it may have lost is noted as saved"
