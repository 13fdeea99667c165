"""Checks a store that no server runs on, every byte that means something, and mends it: `docs/operations.md`.

First everything is looked at, then, with ``repair``, each thing is put aside (`quarantine`), durably, and mended in
place. A pack is replaced whole by a rename. So a repair that is cut off at any point leaves a store that another one
finishes. The log comes last of what holds chunks: when it is damaged, all that can be read of it is brought into the
packs first, durably, and only then are its segments moved away.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ingest import limits, sharding, ticket
from ingest.errors import ConfigError, DiskError, StoreLockedError
from ingest.store.check.chunk_file import read_chunks, write_chunk_file
from ingest.store.check.findings import Problem, Progress, Report, no_progress
from ingest.store.check.identity import STORE_JSON, Identity, identify
from ingest.store.check.log_survey import LoggedPack, LogSurvey
from ingest.store.check.pack_check import (
    Extra,
    Fault,
    PackState,
    Resolved,
    SlotState,
    check_pack,
    check_slots,
    mask_bools,
    mend_pack,
    resolve,
)
from ingest.store.check.quarantine import Piece, Quarantine, replace_file
from ingest.store.check.walk import Walk, walk
from ingest.store.layouts import pack_file
from ingest.store.log.log_writer import sync_directory, syncfs
from ingest.store.store import LOG_ID_FILE, META, explain, lock_holder
from ingest.store.store_json import write_json, write_store_json

PACK_READ_MAX = (
    sharding.slot_offset(limits.ROOT_PACK_SLOTS) + limits.PACK_HEADER_SIZE
)  # a longer file is cut anyway


@contextmanager
def locked(data_dir: Path) -> Iterator[None]:
    """Holds the lock of a store that exists. ConfigError when there is none, StoreLockedError when a server runs on it."""
    meta = data_dir / META
    if meta.is_symlink() or not meta.is_dir():
        raise ConfigError(f"{data_dir} is not a store: there is no directory {META} in it")
    try:
        fd = os.open(meta / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise DiskError(f"{meta / 'lock'}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreLockedError(
                f"{data_dir} is in use by an ingest server{lock_holder(fd)}: stop it first"
            ) from None
        yield
    finally:
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
            check = Fsck(identity, survey, walk(data_dir, identity.layout), repair, progress, data_fd)
            check.run()
        finally:
            survey.close()
    check.report.seconds = time.monotonic() - began
    return check.report


class Fsck:
    """One check, and repair. ``report`` grows while ``run`` goes on. ``data_fd``: see `opened`, from before anything was
    read."""

    def __init__(
        self,
        identity: Identity,
        survey: LogSurvey,
        found: Walk,
        repair: bool,
        progress: Progress,
        data_fd: int,
    ) -> None:
        self.identity = identity
        self.survey = survey
        self.walk = found
        self.repair = repair
        self.progress = progress
        self.data_fd = data_fd
        self.data_dir = identity.data_dir
        self.put_keys = [keys.put for keys in identity.keys]
        self.quarantine = Quarantine(self.data_dir)
        self.report = Report(str(self.data_dir), identity.layout, repaired=repair)
        self.report.log_segments = len(survey.segments)
        self.report.log_batches_pending = survey.batches_pending
        self.report.notes += found.notes
        self._misplaced = False  # packs that only the operator can put where they belong
        self._unverified = 0  # frames that no key fits, while a key is missing

    def run(self) -> None:
        report = self.report
        self._places()
        self._log_problems()
        extras = self._salvage()
        groups = self._groups(extras)
        for i, pack in enumerate(sorted(groups)):
            self.progress("checking", i, len(groups))
            if self.identity.layout == "pack":
                self._one_pack(pack, extras.get(pack))
            else:
                self._chunks(pack, groups[pack], extras.get(pack))
        self.progress("checking", len(groups), len(groups))
        self._identity()
        if self.repair:
            self._mend_log()
            self._mend_identity()
        if self.identity.unchecked:
            report.notes.append(
                f"{STORE_JSON} has no check, an earlier version wrote it: the next start adds one"
            )
        if self.survey.batches_pending:
            report.notes.append(
                f"the packs may lack {self.survey.batches_pending} batches of the log: the next start brings them in"
            )
        if self.survey.torn:
            report.notes.append(
                f"the log ends with bytes that are no batch ({self.survey.torn}): never acknowledged"
            )

    @property
    def _blind(self) -> bool:
        """A key is missing: what fails its checksum may be good."""
        return bool(self.identity.missing) or not self.identity.keys

    def _full_replay(self) -> bool:
        """The log will be gone: the packs have to hold all that it says."""
        return bool(self.survey.faults)

    # --- names and modes

    def _places(self) -> None:
        for problem in self.walk.problems:
            self.report.problems.append(problem)
            if not self.repair:
                continue
            path = self.data_dir / problem.path
            if problem.kind == "mode":
                os.chmod(path, int(problem.repair.rpartition(" ")[2], 8), follow_symlinks=False)
            else:
                problem.copy = self.quarantine.take(problem.path, path, problem.kind, problem.detail)
            problem.repaired = True

    def _groups(self, extras: dict[int, Extra]) -> dict[int, list[int]]:
        """The packs that exist or that the log names, in its bad parts too; in layout tree with the slots that have a
        file."""
        groups: dict[int, list[int]] = defaultdict(list)
        for path in self.walk.objects:
            if self.identity.layout == "pack":
                groups[sharding.pack_of_path(path)] = []
            else:
                index = ticket.parse(ticket.from_tree_path(path))
                groups[sharding.ticket_pack(index)].append(sharding.ticket_slot(index))
        for pack in (*self.survey.packs, *extras):
            groups.setdefault(pack, [])
        return groups

    # --- packs

    def _one_pack(self, pack: int, extra: Extra | None) -> None:
        path = sharding.pack_path(pack)
        file = self.data_dir / path
        logged = self.survey.packs.get(pack) or LoggedPack()
        try:
            content = read_whole(file)
        except FileNotFoundError:
            content = bytearray()
        if not content:  # made, and never written to
            self._missing_pack(pack, path, logged, extra)
            return
        state = PackState(pack, content, self.identity.store_id, self.put_keys)
        self._count(state, 1, len(content))
        faults = self._judged(state, check_pack(state, logged, self.survey.frame))
        problems = self._tell(path, pack, faults)
        if state.belongs:
            self._misplaced = True
        elif self.repair and not self._blind and (faults or self._full_replay()):
            self._mend(state, logged, extra, path, content, faults, problems)

    def _count(self, state: SlotState, files: int, size: int) -> None:
        self.report.files += files
        self.report.bytes += size
        self.report.chunks += int((state.present & ~state.deleted).sum())
        self.report.deleted += int(state.deleted.sum())

    def _judged(self, state: SlotState, faults: list[Fault]) -> list[Fault]:
        """Without all keys nobody can say which frames are bad: they are only counted."""
        if not self._blind:
            return faults
        self._unverified += int((state.present & ~state.deleted & ~state.good).sum()) + state.header_lost
        return [fault for fault in faults if fault.kind not in ("slot", "stale", "header")]

    def _tell(self, path: str, pack: int, faults: list[Fault]) -> list[Problem]:
        problems = []
        for fault in faults:
            name = ticket.format(sharding.slot_ticket(pack, fault.slot)) if fault.slot >= 0 else None
            slot = fault.slot if fault.slot >= 0 else None
            problems.append(Problem(fault.kind, path, fault.detail, fault.repair, slot, name, fault.lost))
        self.report.problems += problems
        return problems

    def _missing_pack(self, pack: int, path: str, logged: LoggedPack, extra: Extra | None) -> None:
        """The log names it, and it is not there: a crash, if nothing of that was ever synced into it."""
        state = PackState(pack, b"", self.identity.store_id, self.put_keys)
        problems: list[Problem] = []
        if logged.settled or logged.noted:
            detail = "is missing, and the log says that it holds chunks"
            problems = [
                Problem(
                    "missing",
                    path,
                    detail,
                    "made again from the log; what that does not hold is marked deleted",
                )
            ]
            self.report.problems += problems
        if self.repair and not self._blind and (problems or self._full_replay()):
            self._mend(state, logged, extra, path, b"", [], problems)

    def _mend(
        self,
        state: PackState,
        logged: LoggedPack,
        extra: Extra | None,
        path: str,
        content: bytes | bytearray,
        faults: list[Fault],
        problems: list[Problem],
    ) -> None:
        mended = mend_pack(state, logged, self.survey.frame, extra)
        # What the log holds back may be in the page cache only: then it is written anew, whatever is read of it.
        if not faults and not problems and not logged.pending and _same(mended, content):
            return
        if faults:
            pieces = [
                Piece(
                    fault.offset,
                    bytes(content[fault.offset : fault.offset + fault.size]),
                    fault.kind,
                    fault.detail,
                    problem.slot,
                    problem.ticket,
                )
                for fault, problem in zip(faults, problems, strict=True)
            ]
            copy = self.quarantine.keep(path, pieces)
            for problem in problems:
                problem.copy = copy
        replace_file(self.data_dir / path, mended, self.quarantine.staging())
        for problem in problems:
            problem.repaired = True

    # --- chunks of layout tree

    def _chunks(self, pack: int, slots: list[int], extra: Extra | None) -> None:
        logged = self.survey.packs.get(pack) or LoggedPack()
        state = read_chunks(self.data_dir, pack, slots, self.put_keys)
        self._count(state, len(slots), int(state.present.sum()) * limits.DATA_SIZE)
        problems: dict[int, list[Problem]] = defaultdict(list)
        for fault in self._judged(state, check_slots(state, logged, self.survey.frame)):
            name = ticket.format(sharding.slot_ticket(pack, fault.slot))
            detail, repair = fault.detail.replace("this pack", "these tickets"), fault.repair
            problem = Problem(fault.kind, ticket.tree_path(name), detail, repair, None, name, fault.lost)
            problems[fault.slot].append(problem)
            self.report.problems.append(problem)
        if not self.repair or self._blind or not (problems or self._full_replay()):
            return
        found = resolve(state, logged, self.survey.frame, extra)
        gone = found.deleted | found.lost
        pending = mask_bools(logged.pending, state.slots)
        for slot in range(state.slots):
            same = state.deleted[slot] == gone[slot] and state.present[slot] == found.present[slot]
            if slot in problems or (self._full_replay() and (pending[slot] or not same)):
                self._write_chunk(pack, slot, found, bool(gone[slot]), problems[slot])

    def _write_chunk(
        self, pack: int, slot: int, found: Resolved, gone: bool, problems: list[Problem]
    ) -> None:
        if not gone and not found.present[slot]:
            return  # free, as it was
        path = ticket.tree_path(ticket.format(sharding.slot_ticket(pack, slot)))
        file = self.data_dir / path
        if problems and os.path.lexists(file):
            piece = Piece(
                0, file.read_bytes(), problems[0].kind, problems[0].detail, None, problems[0].ticket
            )
            copy = self.quarantine.keep(path, [piece], attributes=attributes_of(file))
            for problem in problems:
                problem.copy = copy
        frame = None if gone else found.frames[slot].tobytes()
        write_chunk_file(file, frame, self.quarantine.staging())
        for problem in problems:
            problem.repaired = True

    # --- the log

    def _log_problems(self) -> None:
        for fault in self.survey.faults:
            detail = fault.detail if not fault.offset else f"at offset {fault.offset}: {fault.detail}"
            if fault.batches is not None:
                first, last = fault.batches
                numbers = f"batch {first}" if first == last else f"batches {first} to {last}"
                needed = last > self.survey.synced_to
                detail += f"; {numbers} lost" + (
                    ", which the packs may lack" if needed else ", which the packs hold"
                )
            repair = "the log is put aside when the packs hold all that can be read of it"
            self.report.problems.append(Problem("log", self._log_path(fault.path), detail, repair))
        for index in self.survey.doomed if self._full_replay() else ():
            name = ticket.format(index)
            in_packs = self.identity.layout == "pack"
            path = sharding.pack_path(sharding.ticket_pack(index)) if in_packs else ticket.tree_path(name)
            detail = "a frame of it is in a bad batch of the log and fails its checksum"
            problem = Problem(
                "log_frame", path, detail, "marked deleted, unless it is stored there", None, name, True
            )
            problem.repaired = self.repair and not self._blind
            self.report.problems.append(problem)

    def _log_path(self, path: Path) -> str:
        return str(path.relative_to(self.data_dir)) if path.is_relative_to(self.data_dir) else str(path)

    def _salvage(self) -> dict[int, Extra]:
        """What was found in bad parts of the log, by pack. Every pack that exists gets its share: notes may be lost, of
        which layout tree has none."""
        extras: dict[int, Extra] = {}
        if not self._full_replay():
            return extras
        for path in self.walk.objects if self.identity.layout == "pack" else ():
            extras[sharding.pack_of_path(path)] = Extra({}, adopt=True)
        for index, frame in self.survey.salvaged:
            self._extra(extras, index).frames[sharding.ticket_slot(index)] = frame
        for first, count in self.survey.salvaged_deletes:
            for piece in ticket.TicketRange.of_indices(first, count).split():
                start = piece.indices.start
                mask = ((1 << piece.count) - 1) << sharding.ticket_slot(start)
                self._extra(extras, start).deleted |= mask
        for index in self.survey.doomed:
            self._extra(extras, index).doomed |= 1 << sharding.ticket_slot(index)
        return extras

    @staticmethod
    def _extra(extras: dict[int, Extra], index: int) -> Extra:
        return extras.setdefault(sharding.ticket_pack(index), Extra({}, adopt=True))

    def _mend_log(self) -> None:
        """The packs hold everything: once they do so durably the segments go into the quarantine, and the server makes
        new ones. DiskError when the packs can't be synced."""
        if not self._full_replay() or self._blind or self._misplaced:
            return
        # A pack that was found to be right was read from the page cache: its disk may not have it yet.
        try:
            syncfs(self.data_fd)
        except OSError as error:
            raise DiskError(
                f"{explain(error, self.data_dir)}: what the packs hold could not be synced, so the damaged log stays "
                "where it is; mount the file system anew, that nothing is read from memory, then repair once more"
            ) from error
        copies = {}
        for segment in self.survey.segments:
            detail = "; ".join(f.detail for f in self.survey.faults if f.path == segment.path) or "whole"
            path = self._log_path(segment.path)
            copies[path] = self.quarantine.take(path, segment.path, "log", detail)
        for problem in self.report.problems:
            if problem.kind == "log":
                problem.repaired, problem.copy = True, copies.get(problem.path)

    # --- store.json, log.json, keys

    def _identity(self) -> None:
        identity = self.identity
        key_path = f"{META}/key"
        if identity.key_problem:
            self._operator(key_path, f"{identity.key_problem}: nothing can be verified; put the file back")
        elif identity.missing and self._unverified:
            self._operator(
                key_path,
                f"lacks the key {', '.join(identity.missing)} that signed here: {self._unverified} frames or headers "
                "can't be judged; put it back behind the others",
            )
        elif identity.missing:
            lacking = ", ".join(identity.missing)
            identity.record["keys"] = [key for key in identity.record["keys"] if key not in identity.missing]
            identity.record["keys"] += [
                keys.id for keys in identity.keys[:2] if keys.id not in identity.record["keys"]
            ]
            identity.mend_record(
                f"names the key {lacking}, which is not in the key file and signed nothing that is here"
            )
        self.report.problems += identity.problems

    def _operator(self, path: str, detail: str) -> None:
        self.report.problems.append(Problem("key", path, detail))

    def _mend_identity(self) -> None:
        identity = self.identity
        for problem in identity.problems:
            path = self.data_dir / problem.path
            if os.path.lexists(path):
                problem.copy = self.quarantine.keep_file(problem.path, path, problem.kind, problem.detail)
        if identity.write_record:
            write_store_json(self.data_dir / STORE_JSON, identity.record)
        if identity.write_log_id:
            made_for = str(self.data_dir.resolve())
            write_json(
                identity.wal_dir / LOG_ID_FILE, {"log_id": identity.record["log_id"], "made_for": made_for}
            )
        for problem in identity.problems:
            problem.repaired = True
        sync_directory(self.data_dir)


def attributes_of(path: Path) -> dict[str, str]:
    """The extended attributes of a file, in hex."""
    return {name: os.getxattr(path, name).hex() for name in os.listxattr(path)}


def _same(mended: bytes, content: bytes | bytearray) -> bool:
    """Whether two packs have the same bits and slots."""
    bits = slice(pack_file.PRESENT_OFFSET, pack_file.DIGEST_OFFSET)
    slots = slice(limits.PACK_HEADER_SIZE, None)
    return mended[bits] == content[bits] and mended[slots].rstrip(b"\0") == content[slots].rstrip(b"\0")


def read_whole(path: Path) -> bytearray:
    """The bytes of a pack, a little more than the most that one may have."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(fd, "rb", buffering=0) as file:
        size = os.fstat(fd).st_size
        if size <= PACK_READ_MAX:
            content = bytearray(size)
            view = memoryview(content)
            done = 0
            while done < size and (got := file.readinto(view[done:])):
                done += got
            view.release()
            del content[done:]
            return content
        return bytearray(file.read())
