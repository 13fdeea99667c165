"""Syncs that end before the committer looks again, and some of them failed: the committer's own loop, step by step."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path

import pytest
from committer_process import FIRST
from test_flushed import Stepped

from ingest import sharding
from ingest.engine.commit.committer import SyncFailedError
from ingest.limits import PACK_SLOTS
from ingest.status import Status

PACKS = 6  # the first job takes four of them
JOBS = 2


class Held(Stepped):
    """What the loop hands to a thread is run when the test says so: `jobs` have what, and the future of it."""

    def begin(self) -> None:
        super().begin()
        assert self.loop is not None
        self.jobs: list[tuple[Callable[[], None], Future[None]]] = []
        self.loop._submit = self._hold  # type: ignore[method-assign]

    def _hold(self, work: Callable[[], None]) -> Future[None]:
        self.jobs.append((work, Future()))
        return self.jobs[-1][1]

    def end_jobs(self) -> None:
        for work, future in self.jobs:
            work()
            future.set_result(None)


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Held]:
    with Held(tmp_path / "node" / "data", "pack") as committer:
        committer.begin()
        yield committer


def fail_sync_of(path: Path) -> None:
    """Whoever has this file open for writing alone, as a job has it, writes into nothing from now on: that takes no sync."""
    null = os.open("/dev/null", os.O_RDWR)
    for fd in map(int, os.listdir("/proc/self/fd")):
        with suppress(OSError):
            at = os.readlink(f"/proc/self/fd/{fd}")
            if at == str(path.resolve()) and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY:
                os.dup2(null, fd, inheritable=False)
    os.close(null)


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("failing", list(itertools.product((False, True), repeat=JOBS)))
def test_one_job_that_failed_ends_the_committer_whichever_others_ended_with_it(
    held: Held, failing: tuple[bool, ...], lost: bool
) -> None:
    """Also while the store is lost: a sync that failed is never forgotten."""
    firsts = [FIRST + i * PACK_SLOTS for i in range(PACKS)]
    cookies = [held.put(first, PACK_SLOTS) for first in firsts]
    held.commit()
    assert held.loop is not None and len(held.jobs) == JOBS
    for first, fails in zip((firsts[0], firsts[-1]), failing, strict=True):
        if fails:
            fail_sync_of(held.data_dir / sharding.pack_path(sharding.ticket_pack(first)))
    held.end_jobs()
    if lost:
        assert held.loop.lost.refuse(held.loop._ended_jobs()) is not any(failing)
    elif any(failing):
        with pytest.raises(SyncFailedError):
            held.commit()
    else:
        held.commit()
    held._collect()
    saved = [cookie for cookie in cookies if Status.SAVED in held.answers[cookie]]
    assert saved == (cookies if not lost and not any(failing) else [])


@pytest.mark.parametrize("waiting", ["puts", "a delete", "a job that has ended"])
def test_nothing_is_saved_once_a_flush_has_failed(held: Held, waiting: str) -> None:
    """It may have heard of a write that failed, of a pack that a job has synced as well."""
    first = held.put(FIRST)
    held.commit()
    assert held.loop is not None and held.answers[first] == [Status.SAVED]
    if waiting == "a job that has ended":
        cookies = [held.put(FIRST + (1 + i) * PACK_SLOTS, PACK_SLOTS) for i in range(2)]
        held.commit()
        held.end_jobs()
    else:
        cookies = [held.delete(FIRST, 1) if waiting == "a delete" else held.put(FIRST + 1)]
    held.jobs.clear()
    held.loop._begin_flush()
    held.jobs[0][1].set_exception(OSError(errno.EIO, "the disk"))
    before = held.loop.log.number
    with pytest.raises(SyncFailedError):
        held.commit()
    held._collect()
    assert held.loop.log.number == before
    assert {status for cookie in cookies for status in held.answers[cookie]} <= {None, Status.ERROR}
