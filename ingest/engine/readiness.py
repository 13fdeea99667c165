"""Whether a node should be sent anything now: the flags of its queue, and whether its processes answer."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ingest.engine import _queue

if TYPE_CHECKING:
    from ingest.engine._queue import Queue
    from ingest.runtime.heartbeat import Heart

NO_WORKER = "no worker"


def reasons(queue: Queue, hearts: Mapping[str, Heart]) -> list[str]:
    """Why not; empty when somebody serves each port and the committer answers.

    Each worker has its share of the connections to come, so one that stands still is as bad as none. One that is being
    replaced is not: its connections wait, for less than `limits.HEART_UNREADY_S`. ``hearts`` is empty where nobody
    listens to them.
    """
    now = time.monotonic_ns()
    found = of_the_queue(queue)
    workers = {name: heart for name, heart in hearts.items() if name.startswith("worker-")}
    if queue.flags & _queue.STARTING:
        workers = {}  # their turn has not come
    elif workers and not any(heart.last_beat for heart in workers.values()):
        found.append(NO_WORKER)
        workers = {}
    watched = {name: hearts[name] for name in ("parent", "committer") if name in hearts} | workers
    if queue.epoch % 2:  # it recovers: that is said already, and takes as long as it takes
        watched.pop("committer", None)
    return found + [text for name, heart in watched.items() if (text := heart.trouble(name, now))]


def of_the_queue(queue: Queue) -> list[str]:
    """What its flags say."""
    flags = queue.flags
    return [
        reason
        for holds, reason in (
            (queue.epoch % 2 == 1, "recovering"),
            (flags & _queue.STARTING, "starting"),
            (flags & _queue.DRAINING, "draining"),
            (flags & _queue.NO_SPACE, "no space"),
            (flags & _queue.FAILING, "failing"),
            (flags & _queue.NO_LOG, "no log"),
            (flags & _queue.LOST, "data directory lost"),
        )
        if holds
    ]
