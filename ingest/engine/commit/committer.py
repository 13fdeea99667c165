"""The committer: one process that owns the log, the packs, the tombstones and the flusher. `docs/architecture.md`.

`CommitLoop` is its loop. Everything that decides runs in its one thread; other threads do only what may block without
anybody waiting for it: a bulk job's writes and syncs, the flusher's syncs, making a log segment ahead of its need.
Each ends by ringing the doorbell.

    step            | what has happened when it is over
    ----------------|--------------------------------------------------------------------------
    take            | runs moved from the workers' rings
    plan            | slots claimed; duplicates, conflicts, tombstones answered; bulk jobs made
    log written,    | the batch is durable; a sync that fails answers ERROR to all of it, ends this process, and the
    log synced      | pool starts another one through recovery
    apply           | slots written, then bits set: readers see them
    answer          | outcomes to the workers, who ack
    flush           | syncs: the packs hold everything up to a noted batch; the log behind it is free again
"""

from __future__ import annotations

import errno
import logging
import os
import resource
import select
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from ingest import limits
from ingest.disk_wait import DiskWait
from ingest.engine import _queue, reload
from ingest.engine.commit._bulk import BulkJob
from ingest.engine.commit._commit_counters import CommitCounters
from ingest.engine.commit._committer import Committer
from ingest.engine.commit._round import Round
from ingest.engine.commit.damage_log import tell_of_damage
from ingest.engine.commit.lost_store import LostStore
from ingest.engine.commit.refusing import until_room
from ingest.engine.node import Node
from ingest.errors import CorruptionError, IngestError
from ingest.runtime import _failpoints, heartbeat, signals
from ingest.store.layouts import layout
from ingest.store.log.log_format import BATCH_HEADER_SIZE, BLOCK_SIZE, NOTE_SIZE, BatchHeader
from ingest.store.log.recovery import recover
from ingest.store.space import OUT_OF_SPACE, Space, explain

log = logging.getLogger(__name__)

EX_CORRUPT = 65  # durable bytes are not what they were: a new committer would find the same, the server stops
EX_SYNC_FAILED = 74  # the disk failed us: the pool starts a new committer, through recovery

OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)
BATCH_BYTES_MAX = BATCH_HEADER_SIZE + limits.BATCH_FRAMES_MAX * limits.FRAME_SIZE + 1024 * NOTE_SIZE
HOUSEKEEPING_INTERVAL_NS = 1_000_000  # while commits follow each other


class SyncFailedError(IngestError):
    """The disk failed a write or sync that durability needs: only recovery can tell what is stored."""


class CommitLoop:
    """The committer's loop. `run` returns the process's exit code."""

    def __init__(self, node: Node) -> None:
        self.config = node.config
        self.node = node
        self.store = node.store
        self.queue = node.queue
        self.sync = node.config.sync == "disk"
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        open_max = max(limits.OPEN_PACKS_MIN, min(limits.OPEN_PACKS_MAX, descriptors // 2))
        self.packs = layout.make_table(node.store, open_max)
        self.put_keys = [keys.put for keys in node.verifying_keys.all]
        self.core = Committer(node.queue, self.packs, self.put_keys, sync=self.sync)
        self.counters = CommitCounters(node.queue)
        self.heart = heartbeat.own()
        self.lost = LostStore(node, self.core)
        self.space = Space(
            node.store.data_dir,
            node.store.data_fd,
            node.store.wal_dir,
            node.config.reserve,
            self.packs.inodes_reserve,
        )
        self.threads = ThreadPoolExecutor(limits.BULK_JOBS + 2, thread_name_prefix="committer")
        self.stopping = False
        self._jobs: dict[Future[None], BulkJob] = {}
        self._flush: Future[None] | None = None
        self._flush_note = 0
        self._flush_began = 0
        self._flushed_at = time.monotonic()
        self._erased_behind = 0  # while deletes are being erased: the last batch before theirs
        self._spare: Future[None] | None = None
        self._grow_again_at = 0.0  # when making a segment failed
        self._growth_errno = 0  # of that failure, until the log grew again
        self._has_space = True
        # The last committer's: this one looks for itself.
        self.queue.clear_flag(_queue.NO_SPACE | _queue.NO_LOG)
        self._space_checked_at = 0.0
        self._housekeep_at = 0  # ns
        self._poll = select.poll()
        self._poll.register(self.queue.committer_doorbell, select.POLLIN)
        self._settings_at = 0.0  # when the parent's line was looked at
        if node.control is not None:
            self._poll.register(node.control, select.POLLIN)

    def stop(self, *_: object) -> None:
        """Answer what was handed over, flush, end. Safe in a signal handler."""
        self.stopping = True
        self.queue.wake_committer()

    def run(self) -> int:
        try:
            if self.lost.look():
                self.lost.serve(lambda: self.stopping, self._take_settings)
                return EX_SYNC_FAILED  # also when it is told to end: what the log has is not in the packs
            self._recover()
            self.heart.beat()
            self.queue.committer_ready()
            try:
                self._serve()
            except OSError as error:  # that no step expects: what it leaves behind is not known here either
                raise SyncFailedError(f"{self.store.data_dir}: {error}") from error
        except CorruptionError as error:
            log.critical("%s", error)
            return EX_CORRUPT
        except SyncFailedError as error:
            log.error("%s; saving stops until recovery", error)
            self.counters.sync_failure()
            until_room(self.space, self.queue, self.core, lambda: self.stopping, self._take_settings)
            return EX_SYNC_FAILED
        return 0

    def _recover(self) -> None:
        began = time.monotonic()
        try:
            recovered = recover(
                self.packs,
                self.store.wal_dir,
                self.store.log_id,
                self.put_keys,
                log_size=self.config.wal_size,
                sync=self.sync,
            )
        except OSError as error:
            if error.errno in OUT_OF_SPACE:
                self.queue.set_flag(_queue.NO_SPACE)
            why = explain(error, self.store.data_dir)
            raise SyncFailedError(f"recovery of {self.store.data_dir} failed: {why}") from error
        self.log = recovered.writer
        self.lost.watch(self.log)
        seconds = time.monotonic() - began
        self.counters.recovery(recovered.frames, int(seconds * 1e9))
        log.info(
            "recovered %d frames and %d deletes of %d batches in %.3f s%s",
            recovered.frames,
            recovered.deletes,
            recovered.batches,
            seconds,
            f"; the log ends torn ({recovered.torn})" if recovered.torn.startswith("batch") else "",
        )

    def _serve(self) -> None:
        while True:
            self.heart.wait(DiskWait.PACK_FILES)  # until something more exact is said
            taken_at = time.monotonic_ns()
            waiting = self.core.take()
            any_ended = any(future.done() for future in self._jobs)
            progressed = (waiting > 0 or any_ended) and self._commit(taken_at)
            if self.core.erasing:
                self._settle(self.core.round.erase())
                progressed = True
            held_up = not progressed and (waiting or self._jobs)
            self.heart.stall(self._held_up_by() if held_up else DiskWait.NOTHING)
            if progressed and taken_at < self._housekeep_at:
                continue  # commits follow each other within 0.2 ms: not after each of them
            self._housekeep_at = taken_at + HOUSEKEEPING_INTERVAL_NS
            self._housekeep()
            if progressed:
                continue
            if self.stopping and not waiting and not self._jobs:
                break
            self._sleep()
        self._end()

    def _held_up_by(self) -> DiskWait:
        """Why nothing moves of what was taken."""
        if self._jobs:
            return DiskWait.BULK_WRITE
        return DiskWait.PACKS_SYNC if self._flush is not None else DiskWait.LOG_SEGMENT

    # --- one commit ---------------------------------------------------------------------------

    def _commit(self, taken_at: int) -> bool:
        """One round of the steps in the module's table. Returns whether anything moved."""
        core = self.core
        if self.lost.look():
            self._end_jobs(not self.lost.refuse(self._ended_jobs()))
            return True
        if not self._log_has_room():
            self.counters.log_stall()
            self._begin_flush()
            return self._refuse()
        self._end_flush()  # first: it may have heard of a write that failed, and then nothing counts as durable
        synced = [core.bulk_done(job) for job in self._ended_jobs()]
        self._end_jobs(not all(synced))
        pending = core.pending_frames
        planned = core.plan(not self._out_of_space())
        if planned.jobs or planned.puts or planned.delete_frames:
            _failpoints.passed(_failpoints.CLAIMED, _failpoints.BULK if planned.jobs else _failpoints.LOG)
        for job in planned.jobs:
            future = self._submit(job.run)
            self._jobs[future] = job
        planned.write_notes()
        if planned.empty:
            planned.answer()
            if planned.stalled:
                self._begin_flush()
            # Duplicates, for one, need no batch.
            return bool(planned.jobs) or planned.looking or core.pending_frames < pending
        self._write_batch(planned, taken_at)
        if planned.stalled:
            self._begin_flush()
        return True

    def _ended_jobs(self) -> list[BulkJob]:
        ended = [future for future in self._jobs if future.done()]
        for future in ended:
            future.result()  # a job keeps disk errors to itself; anything else is a defect and ends the process
        return [self._jobs.pop(future) for future in ended]

    def _end_jobs(self, failed: bool) -> None:
        if failed:
            self.core.wake()
            tell_of_damage(self.core, self.store.data_dir)
            raise SyncFailedError(f"syncing packs of {self.store.data_dir} failed")

    def _write_batch(self, planned: Round, taken_at: int) -> None:
        puts, deletes, notes = planned.puts, planned.delete_frames, planned.notes
        if deletes:
            self._erased_behind = self.log.number
        size = BATCH_HEADER_SIZE + BatchHeader.payload_size(puts, deletes, notes)
        planned.begin_slots()
        try:
            self.log.append(planned.buffer, puts, deletes, notes)
        except OSError as error:
            planned.answer(failed=True)
            raise SyncFailedError(f"writing the log failed: {explain(error, self.store.wal_dir)}") from error
        failure = planned.apply()
        if not failure:
            _failpoints.passed(_failpoints.BITS_SET, _failpoints.BULK if notes else _failpoints.LOG)
        self._settle(failure)
        self.counters.commit(puts + deletes, size, time.monotonic_ns() - taken_at)

    def _settle(self, failure: int) -> None:
        """Answers what was applied; after an errno, only recovery can tell what became of it."""
        self.core.round.answer(failed=failure != 0)
        if failure:
            why = explain(OSError(failure, os.strerror(failure)), self.store.data_dir)
            raise SyncFailedError(f"writing chunks failed: {why}")

    def _submit(self, work: Callable[[], None]) -> Future[None]:
        """Runs `work` in a thread and rings when the future is done (not before: it would be looked at in vain)."""
        future = self.threads.submit(work)
        future.add_done_callback(lambda _: self.queue.wake_committer())
        return future

    def _log_has_room(self) -> bool:
        """Whether the log takes any batch now. Makes a segment or waits for one, if it must: that fails no batch."""
        if self.log.has_room(BATCH_BYTES_MAX):
            return True
        self.heart.wait(DiskWait.LOG_SEGMENT)
        self._end_spare(wait=True)
        if not self.log.has_room(BATCH_BYTES_MAX) and self._may_grow():
            self._grow(self.log.make_spare)
        self.heart.wait(DiskWait.PACK_FILES)
        return self.log.has_room(BATCH_BYTES_MAX)

    def _may_grow(self) -> bool:
        waits = self.lost.is_lost or time.monotonic() < self._grow_again_at
        return self._spare is None and self.log.needs_spare and not waits

    def _refuse(self) -> bool:
        """Where the log has not even one segment and can't get it, no flush helps: answers what would need the log.

        Returns whether anything moved. Without descriptors frames wait: the packs have just given some back.
        """
        if self.log.segments or not self._growth_errno or self._growth_errno in OUT_OF_DESCRIPTORS:
            return False
        before = self.core.pending_frames
        self.core.plan(False, self._growth_errno).answer()
        return self.core.pending_frames < before

    # --- housekeeping --------------------------------------------------------------------------

    def _housekeep(self) -> None:
        self._end_flush()
        now = time.monotonic()
        if now - self._settings_at >= limits.SETTINGS_INTERVAL_S:
            self._settings_at = now
            self._take_settings()
        if self._flush is None and self._needs_flush():
            urgent = (
                self.packs.wants_flush
                or self.log.used > self.config.wal_size // 2
                or now - self._flushed_at >= limits.FLUSH_INTERVAL_S
            )
            if urgent:
                self._begin_flush()
        self._end_spare()
        if (self.log.number or self._growth_errno) and self._may_grow():
            self._spare = self._submit(self.log.make_spare)
        tell_of_damage(self.core, self.store.data_dir)
        self.counters.publish(
            self.packs, self.core.pending_frames, self.core.bulk_running, self.log.used, self.log.allocated
        )

    def _take_settings(self) -> None:
        """What the parent has reloaded: from now on stored frames count that a new key has signed."""
        settings = reload.receive(self.node) if self.node.control is not None else None
        if settings is not None:
            self.core.set_put_keys([keys.put for keys in settings.keys.all])
            reload.use_log_level(settings.log_level)
            reload.confirm(self.node)

    def _end_spare(self, wait: bool = False) -> None:
        if self._spare is None or not (wait or self._spare.done()):
            return
        spare, self._spare = self._spare, None
        self._grow(spare.result)

    def _grow(self, make: Callable[[], None]) -> None:
        """Makes a segment, or takes the result of that. When it fails the log goes on with what it has."""
        try:
            make()
            if self._growth_errno:
                log.warning("%s: the log grows again", self.store.wal_dir)
            self._growth_errno = 0
            self.queue.clear_flag(_queue.NO_LOG)
        except OSError as error:
            code = error.errno or errno.EIO
            delay = limits.LOG_GROW_RETRY_S if self.log.segments else limits.LOG_START_RETRY_S
            if code in OUT_OF_DESCRIPTORS:
                delay = limits.LOG_DESCRIPTOR_RETRY_S
                self.packs.give_back(limits.COMMITTER_DESCRIPTORS)
            self._grow_again_at = time.monotonic() + delay
            if code != self._growth_errno:
                has = "it goes on with what it has" if self.log.segments else "and has no segment yet"
                log.error("the log does not grow, %s: %s", has, explain(error, self.store.wal_dir))
            self._growth_errno = code
            if not self.log.segments:
                self.queue.set_flag(_queue.NO_LOG)  # whoever watches the node sees that nothing is stored

    def _out_of_space(self) -> bool:
        now = time.monotonic()
        if now - self._space_checked_at >= limits.SPACE_CHECK_INTERVAL_S:
            self._space_checked_at = now
            reason = self.space.check(self.log.unallocated, self.log.lacks)
            self.packs.room = self.space.tombstones
            if reason is None and not self.log.segments and self._growth_errno in OUT_OF_SPACE:
                reason = f"{self.store.wal_dir}: the log gets no segment: {os.strerror(self._growth_errno)}"
            if (reason is None) != self._has_space:
                self._has_space = reason is None
                if reason is None:
                    self.queue.clear_flag(_queue.NO_SPACE)
                    log.warning("%s: there is room again, new frames are stored", self.store.data_dir)
                else:
                    self.queue.set_flag(_queue.NO_SPACE)
                    log.error("%s: no space: %s; new frames are refused", self.store.data_dir, reason)
        return not self._has_space

    @property
    def _applied(self) -> int:
        """The last batch that, with all before it, is wholly in its slots."""
        return self._erased_behind if self.core.erasing else self.log.number

    def _needs_flush(self) -> bool:
        return self._applied > self.log.synced_to

    def _begin_flush(self) -> None:
        """Starts making durable what the packs have got so far. Only between commits, when bits match the log."""
        if self._flush is not None or not self._needs_flush():
            return
        self._flush_note = self._applied
        self._flush_began = time.monotonic_ns()
        self.packs.flush_begins()
        self._flush = self._submit(self.packs.sync)

    def _end_flush(self, wait: bool = False) -> None:
        if self._flush is None or not (wait or self._flush.done()):
            return
        try:
            self._flush.result()
        except OSError as error:
            raise SyncFailedError(
                f"syncing the packs of {self.store.data_dir} failed: {error}; the log keeps them"
            ) from error
        _failpoints.passed(_failpoints.PACKS_SYNCED)
        self._flush = None
        self._flushed_at = time.monotonic()
        self.packs.flush_done()
        self.log.recycle(self._flush_note)
        _failpoints.passed(_failpoints.LOG_RECYCLED)
        self.counters.flush(time.monotonic_ns() - self._flush_began)

    def _sleep(self) -> None:
        """Until somebody rings, or a flush or a look at the disk's space is due. What ended in a thread has rung."""
        core = self.core
        core.sleeping(True)
        if not core.work_waiting():
            timeout = 1.0
            if self._needs_flush() and self._flush is None:
                timeout = max(0.001, self._flushed_at + limits.FLUSH_INTERVAL_S - time.monotonic())
            # Also while nothing is put: whoever watches the node wants to know before the next put fails.
            if self.lost.look() | self._out_of_space():  # both look
                timeout = min(timeout, 0.25)
            if not self.log.segments and self._growth_errno:
                timeout = max(0.001, min(timeout, self._grow_again_at - time.monotonic()))
            self.heart.wait(DiskWait.NOTHING)
            self._poll.poll(timeout * 1000)
            self._take_settings()
        core.sleeping(False)

    def _end(self) -> None:
        """A clean stop: the packs hold everything, and the log says so, so that the next start does nothing again."""
        self.heart.wait(DiskWait.PACKS_SYNC)
        self._end_flush(wait=True)
        self._begin_flush()
        self._end_flush(wait=True)
        self._end_spare(wait=True)
        if self.log.recorded < self.log.synced_to and self.log.has_room(BLOCK_SIZE):
            try:
                self.log.append(self.core.round.buffer, 0, 0, 0)
            except OSError as error:
                raise SyncFailedError(
                    f"writing the log failed: {explain(error, self.store.wal_dir)}"
                ) from error
        self.threads.shutdown()
        self.log.close()
        self.packs.close()
        log.info("flushed")


def committer_main(node: Node) -> int:
    """The committer's process: recovery, then commits until it is told to end. Returns its exit code."""
    loop = CommitLoop(node)
    signal.signal(signals.end(), loop.stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return loop.run()
