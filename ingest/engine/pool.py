"""Starts the processes of a server, watches them, and ends them. None of the work is done here.

The parent is one thread that sleeps in poll() on the pidfds of its children and on signals. It forks, in this
order, the admin process, the committer, and, once the store has recovered and the frame ports listen, the
workers. Each of them has a place, and a place is in one of these states:

    state      the process                          what ends the state
    EMPTY      was not started yet                  its turn at the start
    RUNNING    runs                                 its death
    RETIRING   worker: died; the committer may      the committer released the arena
               still read its arena
    RESTING    died                                 its back-off is over: RUNNING
    DONE       ended in the drain                   nothing

A committer that died makes the queue's epoch odd; its replacement recovers and makes it even. Workers keep their frames
meanwhile and submit them again.

Each child has a line to the parent, a socket pair made when it starts: what it says there is the business of `reload`.
"""

from __future__ import annotations

import enum
import gc
import logging
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from ingest import limits
from ingest.engine import _queue, metrics
from ingest.engine.reload import Reload
from ingest.errors import ConfigError, CorruptionError, IngestError
from ingest.runtime import listeners, logs
from ingest.runtime.child import EX_CONFIG, EX_CORRUPT, EX_SOFTWARE, describe_exit, die_with, take_reloads

if TYPE_CHECKING:
    from ingest.engine.node import Node

log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True)
class Roles:
    """What the processes do. Each function runs in its own process and returns its exit code."""

    admin: Callable[[Node], int]
    committer: Callable[[Node], int]
    worker: Callable[[Node, int], int]


class State(enum.Enum):
    EMPTY = enum.auto()
    RUNNING = enum.auto()
    RETIRING = enum.auto()
    RESTING = enum.auto()
    DONE = enum.auto()


@dataclass(eq=False)
class Place:
    """One process of the server, and the ones that replace it. Times are of the monotonic clock."""

    name: str
    main: Callable[[], int]
    slot: int = -1  # of a worker
    state: State = State.EMPTY
    pid: int = 0
    pidfd: int = -1
    started: float = 0.0
    delay: float = 0.0  # of the last restart
    due: float = 0.0  # RETIRING, RESTING: not started again before
    line: socket.socket | None = None  # the parent's end, while it runs
    told_to_end: bool = False
    exit_code: int = 0  # of the last one that ended; the negative number of a signal

    def back_off(self, now: float) -> None:
        """Sets ``due``: the first delay, then twice the last one each time, until one lived long enough."""
        if self.delay == 0.0 or now - self.started >= limits.RESTART_FORGET_S:
            self.delay = limits.RESTART_DELAY_MIN_S
        else:
            self.delay = min(2 * self.delay, limits.RESTART_DELAY_MAX_S)
        self.due = now + self.delay


class Pool:
    """Supervision of one server. ``run`` is called once, in the main thread of a process that has no other."""

    def __init__(self, node: Node, roles: Roles) -> None:
        self._node = node
        self._queue = node.queue
        self._admin = Place("admin", lambda: roles.admin(node))
        self._committer = Place("committer", lambda: roles.committer(node))
        self._workers = [self._worker_place(roles, slot) for slot in range(node.queue.workers)]
        self._listening = False
        self._serving = False  # the present committer has recovered
        self._draining = False
        self._deadline = 0.0  # of the drain
        self._clean = True
        self._signals_read = self._signals_write = -1
        self._reload = Reload(node, self._lines)

    def _lines(self, to_workers: bool) -> dict[str, socket.socket]:
        """To the workers that run, or to the other processes that do."""
        return {
            place.name: place.line
            for place in self._places
            if place.state is State.RUNNING and place.line is not None and (place.slot >= 0) == to_workers
        }

    def _worker_place(self, roles: Roles, slot: int) -> Place:
        return Place(f"worker-{slot}", lambda: roles.worker(self._node, slot), slot)

    @property
    def _places(self) -> list[Place]:
        return [*self._workers, self._committer, self._admin]

    def run(self) -> int:
        """Serves until TERM or INT; returns the exit code: 0 when everything received was answered and flushed.

        CorruptionError or ConfigError when the committer says that it is no use to start another one.
        """
        self._queue.set_flag(_queue.STARTING)
        # What is there by now is never freed: collections in the children then do not copy its pages.
        gc.collect()
        gc.freeze()
        self._queue.counter_row(_queue.ROW_PARENT)[metrics.INDEX["PID"]] = os.getpid()
        handlers = self._catch_signals()
        try:
            self._start(self._admin)
            self._start(self._committer)
            while any(place.state is not State.DONE for place in self._places):
                if not self._wait():
                    return 1
                self._step(time.monotonic())
        finally:
            self._kill_all()
            self._release_signals(handlers)
        return 0 if self._clean else 1

    # --- waiting ---------------------------------------------------------------------------------

    def _wait(self) -> bool:
        """Sleeps until something happened, and takes note of it. False: end at once."""
        poll = select.poll()
        poll.register(self._signals_read, select.POLLIN)
        running = {place.pidfd: place for place in self._places if place.state is State.RUNNING}
        for pidfd in running:
            poll.register(pidfd, select.POLLIN)
        lines = {
            place.line.fileno(): place
            for place in running.values()
            if place.line is not None and place.name in self._reload.waiting
        }
        for line in lines:
            poll.register(line, select.POLLIN)
        for fd, _ in poll.poll(self._timeout_ms(time.monotonic())):
            if fd in lines:
                self._take_answer(lines[fd])
            elif fd in running:
                self._ended(running[fd])
            elif not self._take_signals():
                return False
        return True

    def _take_answer(self, place: Place) -> None:
        if place.line is None:  # it was reaped in the same round
            return
        try:
            if place.line.recv(32, socket.MSG_DONTWAIT):
                self._reload.answered(place.name)
                return
        except BlockingIOError:
            return
        except OSError as error:
            log.debug("%s: %s", place.name, error.strerror)
        self._reload.answered(place.name)  # it has ended: what takes its place knows the rest

    def _timeout_ms(self, now: float) -> int | None:
        moments = [place.due for place in self._places if place.state is State.RESTING]
        if self._draining:
            moments.append(self._deadline)
        looks_at_memory = (self._committer.state is State.RUNNING and not self._serving) or any(
            place.state is State.RETIRING for place in self._workers
        )
        if looks_at_memory:
            moments.append(now + limits.SUPERVISION_INTERVAL_S)
        return max(0, int((min(moments) - now) * 1000) + 1) if moments else None

    def _take_signals(self) -> bool:
        for number in os.read(self._signals_read, 512):
            name = signal.Signals(number).name
            if number == signal.SIGHUP:
                if self._draining:
                    log.warning("SIGHUP: nothing was reloaded, the server is ending")
                else:
                    self._reload.begin()
            elif self._draining:
                log.warning("%s again: ending at once", name)
                return False
            else:
                log.info("%s: draining", name)
                self._drain()
        return True

    def _step(self, now: float) -> None:
        """Moves every place on that only had to wait, and the drain."""
        if not self._serving and self._committer.state is State.RUNNING and self._queue.epoch % 2 == 0:
            self._committer_is_ready(now)
        for worker in self._workers:
            if worker.state is State.RETIRING and self._queue.is_retired(worker.slot):
                self._queue.reset_ring(worker.slot)
                worker.state = State.RESTING
        for place in self._places:
            if place.state is State.RESTING and now >= place.due:
                self._start(place)
        if self._draining:
            self._drain_on(now)

    def _committer_is_ready(self, now: float) -> None:
        self._serving = True
        self._queue.clear_flag(_queue.FAILING)
        log.info("the store has recovered, %.3f s after its committer started", now - self._committer.started)
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

    def _ended(self, place: Place) -> None:
        code = place.exit_code = self._reap(place)
        place.state = State.RESTING
        place.back_off(time.monotonic())
        expected = self._draining and code in (0, -signal.SIGTERM)
        (log.info if expected else log.error)("%s (pid %d) %s", place.name, place.pid, describe_exit(code))
        self._reload.answered(place.name)
        if place is self._committer:
            self._committer_ended(code)
        elif place is self._admin:
            if self._draining:
                place.state = State.DONE
            else:
                self._count("ADMIN_RESTARTS")
        elif self._draining:
            place.state = State.DONE
            self._clean &= expected
        else:
            self._count("WORKER_RESTARTS")
            place.state = State.RETIRING
            self._queue.retire(place.slot)

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
        place = self._committer
        recovered = self._queue.epoch % 2 == 0
        self._queue.committer_gone()
        self._serving = False
        if code == EX_CORRUPT:
            raise CorruptionError(self._what_to_do())
        if code == EX_CONFIG:
            raise ConfigError("the store cannot be opened as configured, the log above says why")
        if place.told_to_end:
            # Ended before its recovery was over, it had acked nothing that the log does not have.
            self._clean &= code == 0 or (code == -signal.SIGTERM and not recovered)
            place.state = State.DONE
        else:
            # In a drain too, as long as workers wait for their acks.
            self._queue.set_flag(_queue.FAILING)
            self._count("COMMITTER_RESTARTS")

    def _count(self, counter: str) -> None:
        self._queue.counter_row(_queue.ROW_PARENT)[metrics.INDEX[counter]] += 1

    def _row(self, place: Place) -> memoryview:
        """The counters of a place, which its processes have one after the other."""
        if place.slot >= 0:
            return self._queue.counter_row(_queue.ROW_WORKER + place.slot)
        return self._queue.counter_row(_queue.ROW_COMMITTER if place is self._committer else _queue.ROW_ADMIN)

    # --- the drain -------------------------------------------------------------------------------

    def _drain(self) -> None:
        """Workers first, then the committer, which flushes what they handed over, then the admin port."""
        self._draining = True
        self._deadline = time.monotonic() + self._node.config.drain_timeout
        self._queue.set_flag(_queue.DRAINING)
        for worker in self._workers:
            self._tell_to_end(worker)
        # With the copies of the workers, who close theirs, these are the last: connections are refused from then on.
        listeners.close_all((*self._node.put_sockets, *self._node.get_sockets))

    def _drain_on(self, now: float) -> None:
        for before, place in (
            (self._workers, self._committer),
            ([self._committer], self._admin),
        ):
            if all(other.state is State.DONE for other in before) and not place.told_to_end:
                if place is self._committer and place.state is not State.RUNNING and place.exit_code != 0:
                    self._clean = False  # nobody is there to flush: the log has it, the packs may not
                self._tell_to_end(place)
        late = [place.name for place in self._places if place.state is not State.DONE]
        if now >= self._deadline and late:
            log.error(
                "the drain took longer than %g s: killing %s",
                self._node.config.drain_timeout,
                ", ".join(late),
            )
            self._clean = False
            self._kill_all()

    @staticmethod
    def _tell_to_end(place: Place) -> None:
        place.told_to_end = True
        if place.state is State.RUNNING:
            signal.pidfd_send_signal(place.pidfd, signal.SIGTERM)
        else:
            place.state = State.DONE

    def _kill_all(self) -> None:
        running = [place for place in self._places if place.state is State.RUNNING]
        for place in running:
            signal.pidfd_send_signal(place.pidfd, signal.SIGKILL)
        for place in running:
            self._reap(place)
        for place in self._places:
            place.state = State.DONE

    # --- processes -------------------------------------------------------------------------------

    def _start(self, place: Place) -> None:
        parent = os.getpid()
        pid = 0
        place.started = time.monotonic()
        ends: tuple[socket.socket, ...] = ()
        # Blocked until the child has its own handlers: a signal to it must not be taken for one to the parent.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            pid = os.fork()
            if pid == 0:
                self._node.control = ends[1]
                ends[0].close()
                self._become(place, parent)
            place.pid, place.pidfd = pid, os.pidfd_open(pid)
            place.line, childs = ends
            childs.close()
        except OSError as error:  # no process or no descriptor is to be had for the moment
            if pid:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            listeners.close_all(ends)
            log.error("%s does not start: %s", place.name, error.strerror)
            place.state = State.RESTING
            place.back_off(place.started)
            return
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        place.state = State.RUNNING
        log.info("%s has pid %d", place.name, pid)

    def _become(self, place: Place, parent: int) -> NoReturn:
        """The child's whole life."""
        code = EX_SOFTWARE
        try:
            die_with(parent, place.name)
            logs.name_process(place.name)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            # A Ctrl-C goes to the whole group: it is the parent who decides what it means.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            self._close_what_is_not_of(place)
            self._row(place)[metrics.INDEX["PID"]] = os.getpid()
            code = place.main()
        except CorruptionError as error:
            log.critical("%s", error)
            code = EX_CORRUPT
        except IngestError as error:
            log.critical("%s", error)
            code = error.exit_code
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException:
            log.critical("unexpected", exc_info=True)
        finally:
            os._exit(code)

    def _close_what_is_not_of(self, place: Place) -> None:
        """A port refuses connections when its last holder closed it: nobody holds it by chance."""
        os.close(self._signals_read)
        os.close(self._signals_write)
        for other in self._places:
            if other.pidfd >= 0:
                os.close(other.pidfd)
            if other.line is not None:
                other.line.close()
        if place is not self._admin:
            self._node.admin_socket.close()
        for sockets in (self._node.put_sockets, self._node.get_sockets):
            listeners.close_all(sock for slot, sock in enumerate(sockets) if slot != place.slot)

    def _reap(self, place: Place) -> int:
        _, status, used = os.wait4(place.pid, 0)
        self._row(place)[metrics.INDEX["PAST_CPU_MICROSECONDS"]] += int((used.ru_utime + used.ru_stime) * 1e6)
        os.close(place.pidfd)
        place.pidfd = -1
        if place.line is not None:
            place.line.close()
            place.line = None
        return os.waitstatus_to_exitcode(status)

    # --- signals ---------------------------------------------------------------------------------

    def _catch_signals(self) -> list[object]:
        self._signals_read, self._signals_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # The C handler writes the number into the pipe; nothing is left to do in Python.
        signal.set_wakeup_fd(self._signals_write, warn_on_full_buffer=False)
        handlers: list[object] = [signal.signal(number, lambda *_: None) for number in _SIGNALS]
        take_reloads()
        return handlers

    def _release_signals(self, handlers: Iterable[object]) -> None:
        for number, handler in zip(_SIGNALS, handlers, strict=True):
            signal.signal(number, handler)  # type: ignore[arg-type]
        signal.set_wakeup_fd(-1)
        os.close(self._signals_read)
        os.close(self._signals_write)
