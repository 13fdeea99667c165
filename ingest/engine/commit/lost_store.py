"""What a committer does while its data directory, or a file of its log, is not the one that was opened: it saves nothing,
and says so.

It refuses with BUSY, which is true of whatever a ticket holds: nothing of the frame was stored. It removes nothing, makes
nothing, and goes on when the paths lead to what it has open again, as after a move and a move back. Syncs of what was
acknowledged before go on meanwhile: they need no path.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from ingest import limits
from ingest.engine import _queue
from ingest.engine.commit._bulk import BulkJob
from ingest.engine.commit._committer import Committer
from ingest.engine.commit.refusing import refuse_while
from ingest.engine.node import Node
from ingest.status import Status
from ingest.store.log.log_writer import LogWriter
from ingest.store.store import NO_SEGMENT, holds_packs

log = logging.getLogger(__name__)

MAY_BE_MISSING = "what was acknowledged last may be missing"


class LostStore:
    """Looks, and remembers what it has said. Of one committer, for its own thread."""

    def __init__(self, node: Node, core: Committer) -> None:
        self._queue = node.queue
        self._data_dir = node.store.data_dir
        self._data_fd = node.store.data_fd
        self._possession = node.store.possession()
        self._core = core
        self.is_lost = bool(node.queue.flags & _queue.LOST)  # the last committer said so
        self._was_lost = self.is_lost
        self._told = False  # what a recovery after that says

    def watch(self, log_writer: LogWriter) -> None:
        """It has recovered. Also looks at the log's segments: what is written into one that has no name any more is gone
        with the process."""
        self._possession.add_changing(log_writer.opened, log_writer.opened_in_turn)
        if not log_writer.segments and holds_packs(self._data_fd):
            log.warning("%s %s", log_writer.directory, NO_SEGMENT)
        elif missing := log_writer.missing:
            log.error("%s: %s removed: %s", log_writer.directory, ", ".join(missing), MAY_BE_MISSING)
        elif self._was_lost:
            log.warning(
                "%s: recovered after a loss: if files were removed, %s", self._data_dir, MAY_BE_MISSING
            )
        self._told = True
        if not self.is_lost:
            self._queue.clear_flag(_queue.LOST)

    def look(self) -> bool:
        """Whether it is lost, by a look that is not older than `limits.POSSESSION_INTERVAL_S`."""
        loss = self._possession.look_again()
        if bool(loss) != self.is_lost:
            self.is_lost = bool(loss)
            if loss:
                self._queue.set_flag(_queue.LOST)
                log.error("%s is lost: %s; nothing is saved any more", self._data_dir, loss)
            elif self._told:  # else it is over with a recovery, which says so
                self._queue.clear_flag(_queue.LOST)
                log.warning("%s is there again: frames are saved", self._data_dir)
        return self.is_lost

    def refuse(self, done: Iterable[BulkJob]) -> bool:
        """Answers all that is pending, and jobs that have ended. False when a sync of them failed."""
        synced = [self._core.discard(job) for job in done]
        self._core.refuse(Status.BUSY)
        return all(synced)

    def serve(self, stopping: Callable[[], bool], take_settings: Callable[[], None]) -> None:
        """What a committer does that starts now, instead of a recovery: the log that it would read may be another store's.
        Back when the next one may recover, or it is to stop. ``take_settings``: answers a reload, if there is one."""
        refuse_while(
            lambda: not stopping() and self.look(),
            self._queue,
            self._core,
            take_settings,
            Status.BUSY,
            limits.POSSESSION_IDLE_INTERVAL_S,
        )
