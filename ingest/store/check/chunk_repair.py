"""Checks the chunks of a store, pack by pack or file by file, and mends them."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

from ingest import limits, sharding, ticket
from ingest.store.check.chunk_file import read_chunks, write_chunk_file
from ingest.store.check.examination import Examination
from ingest.store.check.findings import Problem
from ingest.store.check.log_survey import LoggedPack
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
from ingest.store.check.quarantine import Piece, attributes_of, replace_file
from ingest.store.layouts import pack_file

PACK_READ_MAX = (
    sharding.slot_offset(limits.ROOT_PACK_SLOTS) + limits.PACK_HEADER_SIZE
)  # a longer file is cut anyway


class ChunkRepair:
    """Of the packs, or in layout tree of the chunks' files, of one store."""

    def __init__(self, examination: Examination) -> None:
        self._exam = examination

    def check_pack_file(self, pack: int, extra: Extra | None) -> None:
        path = sharding.pack_path(pack)
        file = self._exam.data_dir / path
        logged = self._exam.survey.packs.get(pack) or LoggedPack()
        try:
            content = read_whole(file)
        except FileNotFoundError:
            content = bytearray()
        if not content:  # made, and never written to
            self._missing_pack(pack, path, logged, extra)
            return
        state = PackState(pack, content, self._exam.identity.store_id, self._exam.put_keys)
        self._count(state, 1, len(content))
        faults = self._judged(state, check_pack(state, logged, self._exam.survey.frame))
        problems = self._tell(path, pack, faults)
        if state.belongs:
            self._exam.misplaced = True
        elif self._exam.repair and not self._exam.blind and (faults or self._exam.full_replay):
            self._mend(state, logged, extra, path, content, faults, problems)

    def _count(self, state: SlotState, files: int, size: int) -> None:
        self._exam.report.files += files
        self._exam.report.bytes += size
        self._exam.report.chunks += int((state.present & ~state.deleted).sum())
        self._exam.report.deleted += int(state.deleted.sum())

    def _judged(self, state: SlotState, faults: list[Fault]) -> list[Fault]:
        """Without all keys nobody can say which frames are bad: they are only counted. So are slots that the log says were
        written, whose bits a power cut has taken: their frames may be whole under that key."""
        if not self._exam.blind:
            return faults
        self._exam.unverified += int((state.present & ~state.deleted & ~state.good).sum()) + state.header_lost
        self._exam.unverified += sum(fault.kind == "stale" and fault.lost for fault in faults)
        return [fault for fault in faults if fault.kind not in ("slot", "stale", "header")]

    def _tell(self, path: str, pack: int, faults: list[Fault]) -> list[Problem]:
        problems = []
        for fault in faults:
            name = ticket.format(sharding.slot_ticket(pack, fault.slot)) if fault.slot >= 0 else None
            slot = fault.slot if fault.slot >= 0 else None
            problems.append(Problem(fault.kind, path, fault.detail, fault.repair, slot, name, fault.lost))
        self._exam.report.problems += problems
        return problems

    def _missing_pack(self, pack: int, path: str, logged: LoggedPack, extra: Extra | None) -> None:
        """The log names it, and it is not there: a crash, if nothing of that was ever synced into it."""
        state = PackState(pack, b"", self._exam.identity.store_id, self._exam.put_keys)
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
            self._exam.report.problems += problems
        if self._exam.repair and not self._exam.blind and (problems or self._exam.full_replay):
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
        mended = mend_pack(state, logged, self._exam.survey.frame, extra)
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
            copy = self._exam.quarantine.keep(path, pieces)
            for problem in problems:
                problem.copy = copy
        replace_file(self._exam.data_dir / path, mended, self._exam.quarantine.staging())
        for problem in problems:
            problem.repaired = True

    # --- chunks of layout tree

    def check_chunks(self, pack: int, slots: list[int], extra: Extra | None) -> None:
        logged = self._exam.survey.packs.get(pack) or LoggedPack()
        state = read_chunks(self._exam.data_dir, pack, slots, self._exam.put_keys)
        self._count(state, len(slots), int(state.present.sum()) * limits.DATA_SIZE)
        problems: dict[int, list[Problem]] = defaultdict(list)
        for fault in self._judged(state, check_slots(state, logged, self._exam.survey.frame)):
            name = ticket.format(sharding.slot_ticket(pack, fault.slot))
            detail, repair = fault.detail.replace("this pack", "these tickets"), fault.repair
            problem = Problem(fault.kind, ticket.tree_path(name), detail, repair, None, name, fault.lost)
            problems[fault.slot].append(problem)
            self._exam.report.problems.append(problem)
        if not self._exam.repair or self._exam.blind or not (problems or self._exam.full_replay):
            return
        found = resolve(state, logged, self._exam.survey.frame, extra)
        gone = found.deleted | found.lost
        pending = mask_bools(logged.pending, state.slots)
        for slot in range(state.slots):
            same = state.deleted[slot] == gone[slot] and state.present[slot] == found.present[slot]
            if slot in problems or (self._exam.full_replay and (pending[slot] or not same)):
                self._write_chunk(pack, slot, found, bool(gone[slot]), problems[slot])

    def _write_chunk(
        self, pack: int, slot: int, found: Resolved, gone: bool, problems: list[Problem]
    ) -> None:
        if not gone and not found.present[slot]:
            return  # free, as it was
        path = ticket.tree_path(ticket.format(sharding.slot_ticket(pack, slot)))
        file = self._exam.data_dir / path
        if problems and os.path.lexists(file):
            piece = Piece(
                0, file.read_bytes(), problems[0].kind, problems[0].detail, None, problems[0].ticket
            )
            copy = self._exam.quarantine.keep(path, [piece], attributes=attributes_of(file))
            for problem in problems:
                problem.copy = copy
        frame = None if gone else found.frames[slot].tobytes()
        write_chunk_file(file, frame, self._exam.quarantine.staging())
        for problem in problems:
            problem.repaired = True


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
