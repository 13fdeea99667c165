"""The processes of a server: which of them there are, what each one's death means to the others, and how they end.

How a process is started, watched and ended is `supervisor`'s business. The parent forks, in this order, the admin
process, the committer, and, once the store has recovered and the frame ports listen, the workers. A worker that died is
RETIRING as long as the committer may still read its arena: another one starts when that is released. While there is no
committer process the parent releases it.

A committer that died makes the queue's epoch odd; its replacement recovers and makes it even. Workers keep their frames
meanwhile and submit them again.

Each child has a line to the parent, a socket pair made when it starts: what it says there is the business of `reload`.
"""

from __future__ import annotations

import logging
import os
import resource
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from ingest import limits
from ingest.engine import _queue, metrics
from ingest.engine.reload import Reload
from ingest.errors import ConfigError, CorruptionError
from ingest.runtime import heartbeat, listeners, signals
from ingest.runtime.child import EX_CONFIG, EX_CORRUPT
from ingest.runtime.supervised import Child, State
from ingest.runtime.supervisor import Supervisor

if TYPE_CHECKING:
    from ingest.engine.node import Node

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Roles:
    """What the processes do. Each function runs in its own process and returns its exit code."""

    admin: Callable[[Node], int]
    committer: Callable[[Node], int]
    worker: Callable[[Node, int], int]


class Pool(Supervisor):
    """Supervision of one server. ``run`` is called once, in the main thread of a process that has no other."""

    def __init__(self, node: Node, roles: Roles) -> None:
        self._node = node
        self._queue = node.queue
        self._admin = self._child("admin", partial(roles.admin, node), replaced_when_silent=True)
        self._committer = self._child("committer", partial(roles.committer, node))
        self._workers = [
            self._child(f"worker-{slot}", partial(roles.worker, node, slot), replaced_when_silent=True)
            for slot in range(node.queue.workers)
        ]
        super().__init__([[self._admin], [self._committer], self._workers], node.config.drain_timeout)
        # Of ends that are seen at once, the workers' come first, as in the drain.
        self._children = [*self._workers, self._committer, self._admin]
        node.hearts = {child.name: child.heart for child in self._children} | {"parent": heartbeat.own()}
        self._listening = False
        self._serving = False  # the present committer has recovered
        self._reloads = Reload(node, self._lines)

    def _child(self, name: str, role: Callable[[], int], replaced_when_silent: bool = False) -> Child:
        child = Child(
            name,
            lambda: self._play(child, role),
            has_line=True,
            replaced_when_silent=replaced_when_silent,
        )
        return child

    def _play(self, child: Child, role: Callable[[], int]) -> int:
        """In the child."""
        self._node.control = child.line
        self._close_what_is_not_of(child)
        self._row(child)[metrics.INDEX["PID"]] = os.getpid()
        return role()

    def _close_what_is_not_of(self, child: Child) -> None:
        """A port refuses connections when its last holder closed it: nobody holds it by chance."""
        if child is not self._admin:
            listeners.close_all(self._node.admin_sockets)
        for number, worker in enumerate(self._workers):
            if worker is not child:
                for sockets in self._node.sockets_of(number):
                    listeners.close_all(sockets)

    def _lines(self, to_workers: bool) -> dict[str, socket.socket]:
        """To the workers that run, or to the other processes that do."""
        return {
            child.name: child.line
            for child in self._children
            if child.state is State.RUNNING
            and child.line is not None
            and (child in self._workers) == to_workers
        }

    def run(self) -> int:
        """Serves until it is told to drain; returns the exit code: 0 when everything received was answered and flushed.

        CorruptionError or ConfigError when the committer says that it is no use to start another one.
        """
        self._queue.set_flag(_queue.STARTING)
        self._queue.counter_row(_queue.ROW_PARENT)[metrics.INDEX["PID"]] = os.getpid()
        return super().run()

    def _begin(self) -> None:
        self._start(self._admin)
        self._start(self._committer)

    # --- waiting ---------------------------------------------------------------------------------

    def _calls(self) -> dict[int, Callable[[], None]]:
        answers: dict[int, Callable[[], None]] = {
            child.line.fileno(): partial(self._take_answer, child)
            for child in self._children
            if child.line is not None and child.name in self._reloads.waiting
        }
        return super()._calls() | answers

    def _take_answer(self, child: Child) -> None:
        if child.line is None:  # it was reaped in the same round
            return
        try:
            if child.line.recv(32, socket.MSG_DONTWAIT):
                self._reloads.answered(child.name)
                return
        except BlockingIOError:
            return
        except OSError as error:
            log.debug("%s: %s", child.name, error.strerror)
        self._reloads.answered(child.name)  # it has ended: what takes its place knows the rest

    def _moments(self, now: float) -> list[float]:
        looks_at_memory = (self._committer.state is State.RUNNING and not self._serving) or any(
            worker.state is State.RETIRING for worker in self._workers
        )
        moments = super()._moments(now)
        return [*moments, now + limits.SUPERVISION_INTERVAL_S] if looks_at_memory else moments

    def _hang_up(self) -> None:
        if self._draining:
            log.warning("SIGHUP: nothing was reloaded, the server is ending")
        else:
            self._reloads.begin()

    def _step(self, now: float) -> None:
        if not self._serving and self._committer.state is State.RUNNING and self._queue.epoch % 2 == 0:
            self._committer_is_ready(now)
        for slot, worker in enumerate(self._workers):
            if worker.state is not State.RETIRING:
                continue
            if self._committer.state is not State.RUNNING and self._queue.is_retiring(slot):
                # Nobody reads the arena: the last committer is reaped, and this thread starts the next one.
                self._queue.release(slot)
            if self._queue.is_retired(slot):
                self._queue.reset_ring(slot)
                worker.state = State.RESTING
        super()._step(now)

    def _committer_is_ready(self, now: float) -> None:
        self._serving = True
        self._queue.clear_flag(_queue.FAILING)
        if not self._queue.flags & (_queue.LOST | _queue.NO_SPACE):  # else it may only refuse
            seconds = now - self._committer.started
            log.info("the store has recovered, %.3f s after its committer started", seconds)
        if self._listening or self._draining:
            return
        for sock in (*self._node.put_sockets, *self._node.get_sockets):
            listeners.listen(sock, limits.LISTEN_BACKLOG)
        self._listening = True
        self._queue.clear_flag(_queue.STARTING)
        for worker in self._workers:
            self._start(worker)
        log.info("serving with %d workers", len(self._workers))

    # --- deaths ----------------------------------------------------------------------------------

    def _settle(self, child: Child, expected: bool) -> None:
        self._reloads.answered(child.name)
        if child is self._committer:
            self._committer_ended(child.exit_code)
        elif child is self._admin:
            if self._draining:
                child.state = State.DONE
            else:
                self._count("ADMIN_RESTARTS")
        elif self._draining:
            child.state = State.DONE
            self._clean &= expected
        else:
            self._count("WORKER_RESTARTS")
            child.state = State.RETIRING
            self._queue.retire(self._workers.index(child))

    def _what_to_do(self) -> str:
        """What ends a server on a corrupt store says to its operator."""
        config = self._node.config
        where = f"--wal-dir {config.wal_dir} " if config.wal_dir is not None else ""
        text = (
            f"the store is corrupt, the log above says where: `ingest fsck {where}{config.data_dir}` says what is wrong, "
            "with --repair it mends that, and puts what it changes aside"
        )
        if config.sync == "os":
            text += "; with --sync os a power cut can leave a store so, and takes what was acknowledged shortly before it"
        return text

    def _committer_ended(self, code: int) -> None:
        committer = self._committer
        recovered = self._queue.epoch % 2 == 0
        self._queue.committer_gone()
        self._serving = False
        if code == EX_CORRUPT:
            raise CorruptionError(self._what_to_do())
        if code == EX_CONFIG:
            raise ConfigError("the store cannot be opened as configured, the log above says why")
        if committer.told_to_end:
            # Ended before its recovery was over, it had acked nothing that the log does not have.
            self._clean &= code == 0 or (code == -signals.END and not recovered)
            committer.state = State.DONE
        else:
            # In a drain too, as long as workers wait for their acks.
            self._queue.set_flag(_queue.FAILING)
            self._count("COMMITTER_RESTARTS")

    def _count(self, counter: str) -> None:
        self._queue.counter_row(_queue.ROW_PARENT)[metrics.INDEX[counter]] += 1

    def _row(self, child: Child) -> memoryview:
        """The counters of a child, which its processes have one after the other."""
        if child in self._workers:
            return self._queue.counter_row(_queue.ROW_WORKER + self._workers.index(child))
        return self._queue.counter_row(_queue.ROW_COMMITTER if child is self._committer else _queue.ROW_ADMIN)

    def _reap(self, child: Child) -> resource.struct_rusage:
        used = super()._reap(child)
        self._row(child)[metrics.INDEX["PAST_CPU_MICROSECONDS"]] += int((used.ru_utime + used.ru_stime) * 1e6)
        return used

    # --- the drain -------------------------------------------------------------------------------

    def _drain(self) -> None:
        """Workers first, then the committer, which flushes what they handed over, then the admin port."""
        super()._drain()
        self._queue.set_flag(_queue.DRAINING)
        for worker in self._workers:
            self._tell_to_end(worker)
        # With the copies of the workers, who close theirs, these are the last: connections are refused from then on.
        listeners.close_all((*self._node.put_sockets, *self._node.get_sockets))

    def _tell_to_end(self, child: Child) -> None:
        its_turn = child is self._committer and not child.told_to_end
        if its_turn and child.state is not State.RUNNING and child.exit_code != 0:
            self._clean = False  # nobody is there to flush: the log has it, the packs may not
        super()._tell_to_end(child)
