"""What is wrong with a log, what of its bad parts can be saved, and how it is put aside."""

from __future__ import annotations

from pathlib import Path

from ingest import sharding, ticket
from ingest._hmac import verify
from ingest.errors import DiskError
from ingest.limits import FRAME_SIZE
from ingest.runtime.file_system import sync_everything
from ingest.store.check.examination import Examination
from ingest.store.check.findings import Problem
from ingest.store.check.pack_check import Extra
from ingest.store.log.log_format import BATCH_HEADER_SIZE
from ingest.store.space import explain


class LogRepair:
    """Of the log of one store."""

    def __init__(self, examination: Examination) -> None:
        self._exam = examination

    def tell(self) -> None:
        if self._exam.blind:
            self._exam.unverified += self._unverified()
        for fault in self._exam.survey.faults:
            detail = fault.detail if not fault.offset else f"at offset {fault.offset}: {fault.detail}"
            if fault.batches is not None:
                first, last = fault.batches
                numbers = f"batch {first}" if first == last else f"batches {first} to {last}"
                needed = last > self._exam.survey.synced_to
                detail += f"; {numbers} lost" + (
                    ", which the packs may lack" if needed else ", which the packs hold"
                )
            repair = "the log is put aside when the packs hold all that can be read of it"
            self._exam.report.problems.append(Problem("log", self._path(fault.path), detail, repair))
        for index in self._exam.survey.doomed if self._exam.full_replay else ():
            name = ticket.format(index)
            in_packs = self._exam.in_packs
            path = sharding.pack_path(sharding.ticket_pack(index)) if in_packs else ticket.tree_path(name)
            detail = "a frame of it is in a bad batch of the log and fails its checksum"
            problem = Problem(
                "log_frame", path, detail, "marked deleted, unless it is stored there", None, name, True
            )
            problem.repaired = self._exam.repair and not self._exam.blind
            self._exam.report.problems.append(problem)

    def _unverified(self) -> int:
        """Frames that no key fits: of puts and of deletes, in whole batches, and what is left of bad ones."""
        survey, keys = self._exam.survey, self._exam.identity.keys
        count = len(survey.doomed)
        for segment in survey.segments:
            for offset, batch in segment.batches:
                puts = offset + BATCH_HEADER_SIZE
                deletes = puts + batch.puts * FRAME_SIZE
                notes = deletes + batch.deletes * FRAME_SIZE
                count += _fit_none(segment.view[puts:deletes], [each.put for each in keys])
                count += _fit_none(segment.view[deletes:notes], [each.delete for each in keys])
        return count

    def _path(self, path: Path) -> str:
        return (
            str(path.relative_to(self._exam.data_dir))
            if path.is_relative_to(self._exam.data_dir)
            else str(path)
        )

    def salvage(self) -> dict[int, Extra]:
        """What was found in bad parts of the log, by pack. Every pack that exists gets its share: notes may be lost, of
        which layout tree has none."""
        extras: dict[int, Extra] = {}
        if not self._exam.full_replay:
            return extras
        for path in self._exam.walk.objects if self._exam.in_packs else ():
            extras[sharding.pack_of_path(path)] = Extra({}, adopt=True)
        for index, frame in self._exam.survey.salvaged:
            self._extra(extras, index).frames[sharding.ticket_slot(index)] = frame
        for first, count in self._exam.survey.salvaged_deletes:
            for piece in ticket.TicketRange.of_indices(first, count).split():
                start = piece.indices.start
                mask = ((1 << piece.count) - 1) << sharding.ticket_slot(start)
                self._extra(extras, start).deleted |= mask
        for index in self._exam.survey.doomed:
            self._extra(extras, index).doomed |= 1 << sharding.ticket_slot(index)
        return extras

    @staticmethod
    def _extra(extras: dict[int, Extra], index: int) -> Extra:
        return extras.setdefault(sharding.ticket_pack(index), Extra({}, adopt=True))

    def mend(self) -> None:
        """The packs hold everything: once they do so durably the segments go into the quarantine, and the server makes
        new ones. DiskError when the packs can't be synced."""
        if not self._exam.full_replay or self._exam.blind or self._exam.misplaced:
            return
        # A pack that was found to be right was read from the page cache: its disk may not have it yet.
        try:
            sync_everything(self._exam.data_dir, self._exam.data_fd)
        except OSError as error:
            raise DiskError(
                f"{explain(error, self._exam.data_dir)}: what the packs hold could not be synced, so the damaged log stays "
                "where it is; mount the file system anew, that nothing is read from memory, then repair once more"
            ) from error
        copies = {}
        for segment in self._exam.survey.segments:
            detail = (
                "; ".join(f.detail for f in self._exam.survey.faults if f.path == segment.path) or "whole"
            )
            path = self._path(segment.path)
            copies[path] = self._exam.quarantine.take(path, segment.path, "log", detail)
        for problem in self._exam.report.problems:
            if problem.kind == "log":
                problem.repaired, problem.copy = True, copies.get(problem.path)


def _fit_none(frames: memoryview, keys: list[bytes]) -> int:
    """How many of the frames none of the keys has signed."""
    fit = 0
    for key in keys:
        fit |= int.from_bytes(verify(key, frames), "big")
    return len(frames) // FRAME_SIZE - fit.bit_count()
