"""A process that a parent watches: how it is started, told to end and reaped, and how long it rests before the next one.

state      the process                           what ends the state
EMPTY      was not started yet                   its turn at the start
RUNNING    runs                                  its death
RETIRING   died; others still use what it had    its parent finds that they let go of it
RESTING    died                                  its back-off is over: RUNNING
DONE       ended, and is to stay so              nothing
"""

from __future__ import annotations

import enum
import logging
import os
import resource
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

from ingest import limits
from ingest.errors import CatalogError, CorruptionError, IngestError
from ingest.runtime import heartbeat, listeners, logs, signals
from ingest.runtime.child import EX_CORRUPT, EX_SOFTWARE, die_with
from ingest.runtime.heartbeat import Heart

log = logging.getLogger(__name__)


class State(enum.Enum):
    EMPTY = enum.auto()
    RUNNING = enum.auto()
    RETIRING = enum.auto()
    RESTING = enum.auto()
    DONE = enum.auto()


@dataclass(eq=False)
class Child:
    """One process, and the ones that replace it. ``main`` runs in the process and returns its exit code.

    ``stays``: its end is the end of all, it is not started again. ``reloads``: it gets SIGHUP when the parent does; one
    waits until it has a handler and calls `signals.take_reloads`. ``has_line``: a socket pair joins it and the parent.
    ``replaced_when_silent``: another one can do again what it did, so it is killed when its heart has stopped for long.
    """

    name: str
    main: Callable[[], int]
    stays: bool = False
    reloads: bool = False
    has_line: bool = False
    replaced_when_silent: bool = False
    heart: Heart = field(default_factory=Heart)
    state: State = State.EMPTY
    pid: int = 0
    pidfd: int = -1
    line: socket.socket | None = None  # the parent's end while it runs; in the process itself, its own
    started: float = 0.0  # of the monotonic clock, as all times here
    delay: float = 0.0  # of the last restart
    due: float = 0.0  # RETIRING, RESTING: not started again before
    starts: int = 0  # how many processes there were
    told_to_end: bool = False
    exit_code: int = 0  # of the last one that ended; the negative number of a signal

    def back_off(self, now: float) -> None:
        """RESTING until ``due``: the first delay, then twice the last one each time, until one lived long enough."""
        if self.delay == 0.0 or now - self.started >= limits.RESTART_FORGET_S:
            self.delay = limits.RESTART_DELAY_MIN_S
        else:
            self.delay = min(2 * self.delay, limits.RESTART_DELAY_MAX_S)
        self.due = now + self.delay
        self.state = State.RESTING

    def tell_to_end(self) -> None:
        if self.told_to_end:
            return
        self.told_to_end = True
        if self.state is State.RUNNING:
            signal.pidfd_send_signal(self.pidfd, signals.END)
        else:
            self.state = State.DONE

    def reap(self) -> resource.struct_rusage:
        """Waits for its end, and keeps the ``exit_code``. Returns what the process has used."""
        _, status, used = os.wait4(self.pid, 0)
        self.let_go()
        self.heart.reset()
        self.exit_code = os.waitstatus_to_exitcode(status)
        return used

    def let_go(self) -> None:
        """Closes what the parent has of a process that runs."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1
        if self.line is not None:
            self.line.close()
            self.line = None

    def start(self, leave: Callable[[], None]) -> None:
        """Forks. ``leave`` is called in the new process: it lets go of what the parent has."""
        parent, pid = os.getpid(), 0
        self.started = time.monotonic()
        self.heart.reset()
        ends: tuple[socket.socket, ...] = ()
        # Blocked until the child has its own handlers: a signal to it must not be taken for one to the parent.
        signal.pthread_sigmask(signal.SIG_BLOCK, signals.HANDLED)
        try:
            if self.has_line:
                ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            pid = os.fork()
            if pid == 0:
                self._live(parent, leave, ends)
            self.pid, self.pidfd = pid, os.pidfd_open(pid)
        except OSError as error:  # no process or no descriptor is to be had for the moment
            if pid:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            listeners.close_all(ends)
            log.error("%s does not start: %s", self.name, error.strerror)
            self.back_off(self.started)
            return
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, signals.HANDLED)
        if ends:
            self.line = ends[0]
            ends[1].close()
        self.state = State.RUNNING
        self.starts += 1
        log.info("%s has pid %d", self.name, pid)

    def _live(self, parent: int, leave: Callable[[], None], ends: tuple[socket.socket, ...]) -> NoReturn:
        """The whole life of the process."""
        code = EX_SOFTWARE
        try:
            die_with(parent, self.name)
            logs.name_process(self.name)
            heartbeat.take(self.heart)
            signals.begin_child(self.reloads)
            leave()
            if ends:
                ends[0].close()
                self.line = ends[1]
            code = self.main()
        except (CorruptionError, CatalogError) as error:
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
            try:
                logs.flush()
            finally:
                os._exit(code)
