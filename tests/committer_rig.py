"""A committer without its process: queue, packs and log on real files, each step of a commit a call of the test's."""

from __future__ import annotations

import os
from pathlib import Path

from put_rig import DELETE, KEYS, PUT, delete_frame, frame

from ingest import limits, sharding, ticket
from ingest.engine._queue import Queue
from ingest.engine.commit._bulk import BulkJob
from ingest.engine.commit._committer import Committer
from ingest.limits import FRAME_SIZE
from ingest.status import Status
from ingest.store.layouts.layout import make_table
from ingest.store.layouts.pack_file import PackHeader, bit
from ingest.store.layouts.tree_file import TreeFile
from ingest.store.log.log_format import BATCH_HEADER_SIZE, NOTE_SIZE, BatchHeader
from ingest.store.log.recovery import Recovered, recover

STORE_ID = bytes(range(16))
LOG_ID = bytes(range(16, 32))
SEGMENT_SIZE = 8 << 20  # bytes: the smallest round size that takes the largest batch
BATCH_BYTES_MAX = BATCH_HEADER_SIZE + limits.BATCH_FRAMES_MAX * FRAME_SIZE + 1024 * NOTE_SIZE


class CommitterRig:
    """`submit` hands runs over as worker `worker` does, `commit` does what the committer's process does in one round.

    `answers`: {cookie: [Status of each frame, None where there is no answer yet]}.
    """

    def __init__(
        self,
        root: Path,
        *,
        workers: int = 1,
        places: int = 8192,
        open_max: int = 256,
        put_keys: list[bytes] | None = None,
        sync: bool = True,
        log_size: int = 4 * SEGMENT_SIZE,
        layout: str = "pack",
    ) -> None:
        self.data = root / "data"
        self.wal = root / "wal"
        self.data.mkdir(exist_ok=True)
        self.wal.mkdir(exist_ok=True)
        self.workers, self.places, self.open_max, self.sync = workers, places, open_max, sync
        self.put_keys = put_keys or [KEYS.put]
        self.log_size = log_size
        self.layout, self.store_id = layout, STORE_ID
        self.cookie = 0
        self.open()

    def open(self) -> None:
        self.data_fd = os.open(self.data, os.O_RDONLY | os.O_DIRECTORY)
        self.queue = Queue(self.workers, self.places)
        self.queue.committer_gone()
        self.packs = make_table(self, self.open_max)
        self.erased_behind = 0
        self.core = Committer(self.queue, self.packs, self.put_keys, sync=self.sync)
        self.recovered: Recovered = recover(
            self.packs,
            self.wal,
            LOG_ID,
            self.put_keys,
            log_size=self.log_size,
            segment_size=SEGMENT_SIZE,
            sync=self.sync,
        )
        self.log = self.recovered.writer
        self.queue.committer_ready()
        for worker in range(self.workers):
            self.queue.empty_rings(worker)
            self.queue.attend(worker)
        self.next_place = [0] * self.workers
        self.outstanding = [0] * self.workers
        self.runs: dict[int, tuple[int, int]] = {}  # cookie: (worker, first place)
        self.answers: dict[int, list[Status | None]] = {}
        self.jobs: list[BulkJob] = []

    def close(self) -> None:
        """Ends as kill -9 does: nothing is flushed, nothing is said."""
        self.log.close()
        self.packs.close()
        self.queue.close()
        os.close(self.data_fd)

    def crash(self) -> None:
        self.close()
        self.open()

    def __enter__(self) -> CommitterRig:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- the worker's side

    def submit(self, first: int, frames: bytes, worker: int = 0, kind: int = PUT) -> int:
        """Hands one run over; returns its cookie."""
        count = len(frames) // FRAME_SIZE
        if self.outstanding[worker] == 0:
            self.next_place[worker] = 0
        place = self.next_place[worker]
        assert place + count <= self.places, "the arena is full"
        self.queue.frames(worker, place, count)[:] = frames
        self.next_place[worker] += count
        self.outstanding[worker] += count
        self.cookie += 1
        self.runs[self.cookie] = (worker, place)
        self.answers[self.cookie] = [None] * count
        self.queue.submit(worker, first, place, count, kind, self.cookie)
        return self.cookie

    def put(self, index: int, data: bytes = b"data", worker: int = 0, key: bytes = KEYS.put) -> int:
        return self.submit(index, frame(index, data, key), worker)

    def put_run(self, first: int, count: int, data: bytes = b"data", worker: int = 0) -> int:
        return self.submit(first, b"".join(frame(first + i, data) for i in range(count)), worker)

    def delete(self, first: int, count: int, worker: int = 0) -> int:
        return self.submit(first, delete_frame(first, count), worker, DELETE)

    def collect(self) -> None:
        """Takes the outcomes and holds them against what was submitted: each frame exactly once."""
        for worker in range(self.workers):
            for cookie, place, count, status in self.queue.take_outcomes(worker):
                owner, first = self.runs[cookie]
                assert owner == worker
                answers = self.answers[cookie]
                for i in range(place - first, place - first + count):
                    assert answers[i] is None, "a frame was answered twice"
                    answers[i] = Status(status)
                self.outstanding[worker] -= count

    def answer(self, cookie: int) -> Status | None:
        (status,) = set(self.answers[cookie])
        return status

    # --- the committer's side

    def plan(self, space: bool = True) -> list[BulkJob]:
        if not self.log.has_room(BATCH_BYTES_MAX):
            self.log.make_spare()
        if not self.log.has_room(BATCH_BYTES_MAX):
            self.flush()
        self.core.take()
        self.packs.room = 1 << 20
        jobs = self.core.plan(space).jobs
        self.jobs += jobs
        self.core.check()
        return jobs

    def write(self) -> None:
        """The rest of a commit: log, slots, bits, answers."""
        core = self.core
        core.round.write_notes()
        core.check()
        if not core.round.empty:
            puts, deletes, notes = core.round.puts, core.round.delete_frames, core.round.notes
            assert self.log.has_room(BatchHeader.payload_size(puts, deletes, notes) + BATCH_HEADER_SIZE)
            if deletes:
                self.erased_behind = self.log.number
            core.round.begin_slots()
            self.log.append(core.round.buffer, puts, deletes, notes)
            assert core.round.apply() == 0
        core.round.answer()
        core.check()
        self.collect()

    def erase(self) -> None:
        """One more step of the deletes that were not through in their commit."""
        assert self.core.round.erase() == 0
        self.core.round.answer()
        self.core.check()
        self.collect()

    def finish_jobs(self) -> None:
        for job in self.jobs:
            job.run()
            assert self.core.bulk_done(job)
        self.jobs.clear()

    def commit(self, space: bool = True) -> None:
        """One round in which the bulk jobs and the deletes that it starts also end."""
        self.plan(space)
        self.write()
        if self.jobs:
            self.finish_jobs()
            self.plan(space)
            self.write()
            self.finish_jobs()
        while self.core.erasing:
            self.erase()

    def settle(self, space: bool = True) -> None:
        """Commits until every frame is answered."""
        for _ in range(128):
            self.commit(space)
            if not any(self.outstanding):
                return
            if self.core.round.stalled:
                self.flush()
        raise AssertionError(f"{self.outstanding} frames are never answered")

    def flush(self) -> None:
        """As the flusher, but for the syncfs: what a file system loses is the log's tests' matter."""
        note = self.erased_behind if self.core.erasing else self.log.number
        self.packs.flush_begins()
        self.packs.flush_done()
        self.log.recycle(note)

    # --- what is stored

    def path(self, index: int) -> Path:
        """The file that a ticket lies in."""
        if self.layout == "tree":
            return self.data / ticket.tree_path(ticket.format(index))
        return self.data / sharding.pack_path(sharding.ticket_pack(index))

    def spoil(self, index: int, data: bytes) -> None:
        """Writes other data (1458 bytes) over those of a ticket, behind the server's back."""
        with self.path(index).open("r+b") as file:
            if self.layout == "pack":
                file.seek(sharding.slot_offset(sharding.ticket_slot(index)) + FRAME_SIZE - len(data))
            file.write(data)

    def header(self, pack: int) -> PackHeader:
        with (self.data / sharding.pack_path(pack)).open("rb") as file:
            return PackHeader.parse(file.read(512))

    def stored(self, index: int) -> bytes | Status:
        """The frame that the disk has under a ticket, or MISSING or DELETED."""
        pack, slot = sharding.ticket_pack(index), sharding.ticket_slot(index)
        path = self.path(index)
        if not path.exists():
            return Status.MISSING
        if self.layout == "pack" and path.stat().st_size == 0:
            return Status.MISSING  # planned, and not in the log yet
        if self.layout == "tree":
            with path.open("rb") as file:
                held = TreeFile.read(file.fileno())
            return held.frame(ticket.format(index)) if held.status is Status.SAVED else held.status
        header = self.header(pack)
        if bit(header.deleted, slot):
            return Status.DELETED
        if not bit(header.present, slot):
            return Status.MISSING
        with path.open("rb") as file:
            file.seek(sharding.slot_offset(slot))
            return file.read(FRAME_SIZE)
