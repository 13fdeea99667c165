"""Checks a store that no server runs on, every byte that means something, and mends it: `docs/operations.md`.

First everything is looked at, then, with ``repair``, each thing is put aside (`quarantine`), durably, and mended in
place. A pack is replaced whole by a rename. So a repair that is cut off at any point leaves a store that another one
finishes. The log comes last of what holds chunks: when it is damaged, all that can be read of it is brought into the
packs first, durably, and only then are its segments moved away.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ingest import limits, sharding, ticket
from ingest.errors import ConfigError, DiskError, StoreLockedError
from ingest.runtime.lock_file import acquire, holder
from ingest.store.check.chunk_repair import ChunkRepair
from ingest.store.check.examination import Examination
from ingest.store.check.findings import Progress, Report, no_progress
from ingest.store.check.identity import STORE_JSON, identify
from ingest.store.check.identity_repair import IdentityRepair
from ingest.store.check.log_repair import LogRepair
from ingest.store.check.log_survey import LogSurvey
from ingest.store.check.pack_check import Extra
from ingest.store.check.walk import walk
from ingest.store.data_dir import META, DataDir
from ingest.store.store import NO_SEGMENT


@contextmanager
def locked(data_dir: Path) -> Iterator[None]:
    """Holds the lock of a store that exists. ConfigError when there is none, StoreLockedError when a server runs on it."""
    inside = DataDir(data_dir)
    meta = inside.meta
    if meta.is_symlink() or not meta.is_dir():
        raise ConfigError(f"{data_dir} is not a store: there is no directory {META} in it")
    try:
        fds = acquire(inside.lock, meta)
    except BlockingIOError:
        raise StoreLockedError(
            f"{data_dir} is in use by an ingest server{holder(inside.lock)}: stop it first"
        ) from None
    except OSError as error:
        raise DiskError(f"{inside.lock}: {error.strerror}") from error
    try:
        yield
    finally:
        for fd in fds:
            os.close(fd)


@contextmanager
def opened(data_dir: Path) -> Iterator[int]:
    """A descriptor of ``data_dir``: a syncfs on it reports each write-back that failed since it was opened."""
    fd = os.open(data_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def fsck(
    data_dir: Path,
    *,
    repair: bool = False,
    key_file: Path | None = None,
    wal_dir: Path | None = None,
    progress: Progress = no_progress,
    segment_size: int = limits.LOG_SEGMENT_SIZE,
) -> Report:
    """Checks the store in ``data_dir``; with ``repair`` also mends it. The report says which problem was repaired.

    Raises ConfigError (no store, its log is elsewhere, an unknown format version, a key file that was named and cannot be
    used), StoreLockedError, DiskError or OSError.
    """
    began = time.monotonic()
    with locked(data_dir), opened(data_dir) as data_fd:
        identity = identify(data_dir, wal_dir, key_file)
        progress("reading the log", 0, 0)
        survey = LogSurvey(identity.wal_dir, identity.log_id, identity.keys, segment_size)
        try:
            report = Report(str(data_dir), identity.layout, repaired=repair)
            found = walk(data_dir, identity.layout)
            Fsck(Examination(identity, survey, found, repair, progress, data_fd, report)).run()
        finally:
            survey.close()
    report.seconds = time.monotonic() - began
    return report


class Fsck:
    """One check, and repair: in which order the parts are looked at and mended."""

    def __init__(self, examination: Examination) -> None:
        self._exam = examination
        self._log = LogRepair(examination)
        self._chunks = ChunkRepair(examination)
        self._identity = IdentityRepair(examination)

    def run(self) -> None:
        exam, report = self._exam, self._exam.report
        report.log_segments = len(exam.survey.segments)
        report.log_batches_pending = exam.survey.batches_pending
        report.notes += exam.walk.notes
        self._places()
        self._log.tell()
        extras = self._log.salvage()
        groups = self._groups(extras)
        for i, pack in enumerate(sorted(groups)):
            exam.progress("checking", i, len(groups))
            if exam.in_packs:
                self._chunks.check_pack_file(pack, extras.get(pack))
            else:
                self._chunks.check_chunks(pack, groups[pack], extras.get(pack))
        exam.progress("checking", len(groups), len(groups))
        self._identity.tell()
        if exam.repair:
            self._identity.mend()  # before the segments go: without them and log.json nobody knows the log's place
            self._log.mend()
        self._take_notes()

    def _take_notes(self) -> None:
        survey, notes = self._exam.survey, self._exam.report.notes
        if self._exam.identity.unchecked:
            notes.append(f"{STORE_JSON} has no check, an earlier version wrote it: the next start adds one")
        if not survey.segments and self._exam.walk.objects:
            notes.append(f"{self._exam.identity.wal_dir} {NO_SEGMENT}")
        if survey.batches_pending:
            notes.append(
                f"the packs may lack {survey.batches_pending} batches of the log: the next start brings them in"
            )
        if survey.torn:
            notes.append(f"the log ends with bytes that are no batch ({survey.torn}): never acknowledged")

    def _places(self) -> None:
        for problem in self._exam.walk.problems:
            self._exam.report.problems.append(problem)
            if not self._exam.repair:
                continue
            path = self._exam.data_dir / problem.path
            if problem.kind == "mode":
                os.chmod(path, int(problem.repair.rpartition(" ")[2], 8), follow_symlinks=False)
            else:
                problem.copy = self._exam.quarantine.take(problem.path, path, problem.kind, problem.detail)
            problem.repaired = True

    def _groups(self, extras: dict[int, Extra]) -> dict[int, list[int]]:
        """The packs that exist or that the log names, in its bad parts too; in layout tree with the slots that have a
        file."""
        groups: dict[int, list[int]] = defaultdict(list)
        for path in self._exam.walk.objects:
            if self._exam.in_packs:
                groups[sharding.pack_of_path(path)] = []
            else:
                index = ticket.parse(ticket.from_tree_path(path))
                groups[sharding.ticket_pack(index)].append(sharding.ticket_slot(index))
        for pack in (*self._exam.survey.packs, *extras):
            groups.setdefault(pack, [])
        return groups
