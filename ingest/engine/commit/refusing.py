"""A committer that cannot save, and says so: it answers all that comes with one status, and looks at nothing of it.

Because its store is lost (`lost_store`), or because its recovery finds no room on the disk: somebody else took the
reserve faster than the server looks, so that chunks of the log's last batch have no place. Without an answer clients
would wait for as long as the disk is full. Readers go on.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable

from ingest import limits
from ingest.engine import _queue
from ingest.engine._queue import Queue
from ingest.engine.commit._committer import Committer
from ingest.runtime import heartbeat
from ingest.status import Status
from ingest.store.space import Space


def refuse_while(
    holds: Callable[[], bool],
    queue: Queue,
    core: Committer,
    take_settings: Callable[[], None],
    status: Status,
    interval_s: float,
) -> None:
    """Serves so while `holds`, which is asked with each answer and every `interval_s`. ``take_settings``: answers a
    reload, if there is one."""
    heartbeat.own().beat()
    queue.committer_ready()  # frames come from then on
    poll = select.poll()
    poll.register(queue.committer_doorbell, select.POLLIN)
    while holds():
        heartbeat.own().beat()
        take_settings()
        core.take()
        core.refuse(status)
        core.sleeping(True)
        if not core.work_waiting():
            poll.poll(interval_s * 1000)
        core.sleeping(False)


def until_room(
    space: Space,
    queue: Queue,
    core: Committer,
    stopping: Callable[[], bool],
    take_settings: Callable[[], None],
) -> None:
    """Refuses with NO_SPACE after a recovery that found no room, for `limits.RECOVERY_RETRY_S` or until the reserve is
    free again.

    Only where workers serve already. At a start nobody may read yet: after a power cut the packs may lack what was
    acknowledged.
    """
    if queue.epoch % 2 == 0 or queue.flags & _queue.STARTING or not queue.flags & _queue.NO_SPACE:
        return
    began = time.monotonic()

    def still_full() -> bool:
        try:
            full = space.check(0) is not None
        except OSError:
            full = False  # recovery says it
        # Without a reserve a full disk looks like one with room.
        wait_s = limits.RECOVERY_RETRY_S if full else limits.RECOVERY_RETRY_MIN_S
        return not stopping() and time.monotonic() - began < wait_s

    refuse_while(still_full, queue, core, take_settings, Status.NO_SPACE, limits.FULL_DISK_LOOK_S)
