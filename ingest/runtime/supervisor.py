"""Starts processes, watches them, and ends them. None of their work is done here.

The parent is one thread that sleeps in poll() on the pidfds of its children and on signals, as the one of a server does
(`pool`). Its children have ranks: they are started from the first rank on, and ended from the last one, each rank
when the one behind it has ended.

    state    the process                 what ends the state
    RUNNING  runs                        its death
    RESTING  died                        its back-off is over: RUNNING
    DONE     ended, and is to stay so    nothing
"""

from __future__ import annotations

import enum
import gc
import logging
import os
import select
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from ingest import limits
from ingest.errors import BusyError, CatalogError, ConfigError, CorruptionError, IngestError
from ingest.runtime import logs
from ingest.runtime.child import (
    EX_BUSY,
    EX_CONFIG,
    EX_CORRUPT,
    EX_SOFTWARE,
    describe_exit,
    die_with,
    take_reloads,
)

log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# What another process in its place would end with too.
_FINAL: dict[int, type[IngestError]] = {
    EX_BUSY: BusyError,
    EX_CONFIG: ConfigError,
    EX_CORRUPT: CorruptionError,
}


class State(enum.Enum):
    RUNNING = enum.auto()
    RESTING = enum.auto()
    DONE = enum.auto()


@dataclass(eq=False)
class Child:
    """``main`` runs in the process and returns its exit code. ``stays``: its end is the end of all, it is not started again.
    ``reloads``: it gets SIGHUP when the parent does; one waits until it has a handler and calls `child.take_reloads`.
    """

    name: str
    main: Callable[[], int]
    stays: bool = False
    reloads: bool = False
    state: State = State.DONE
    pid: int = 0
    pidfd: int = -1
    started: float = 0.0  # of the monotonic clock, as all times here
    delay: float = 0.0
    due: float = 0.0
    told_to_end: bool = False

    def back_off(self, now: float) -> None:
        """Sets ``due``: the first delay, then twice the last one each time, until one lived long enough."""
        if self.delay == 0.0 or now - self.started >= limits.RESTART_FORGET_S:
            self.delay = limits.RESTART_DELAY_MIN_S
        else:
            self.delay = min(2 * self.delay, limits.RESTART_DELAY_MAX_S)
        self.due = now + self.delay


class Supervisor:
    """``run`` is called once, in the main thread of a process that has no other.

    ``release``: lets go of what the children have by now (sockets), when they are to end. ``reload``: at SIGHUP,
    with what passes it on to the children: looks at the configuration before they do, and whether they shall.
    """

    def __init__(
        self,
        ranks: Sequence[Sequence[Child]],
        drain_timeout: float,
        release: Callable[[], None] = lambda: None,
        reload: Callable[[Callable[[], None]], None] = lambda tell: tell(),
    ) -> None:
        self._ranks = ranks
        self._children = [child for rank in ranks for child in rank]
        self._drain_timeout = drain_timeout
        self._release = release
        self._reload = reload
        self._draining = False
        self._deadline = 0.0
        self._clean = True
        self._error: IngestError | None = None
        self._signals_read = self._signals_write = -1

    def run(self) -> int:
        """Until TERM or INT: 0 when all children ended as they should. Raises what none of them can live with."""
        gc.collect()
        gc.freeze()  # collections in the children do not copy what is there by now
        handlers = self._catch_signals()
        try:
            for child in self._children:
                self._start(child)
            while any(child.state is not State.DONE for child in self._children):
                if not self._wait():
                    self._clean = False
                    break
                self._step(time.monotonic())
        finally:
            self._kill_all()
            for number, handler in zip(_SIGNALS, handlers, strict=True):
                signal.signal(number, handler)  # type: ignore[arg-type]
            signal.set_wakeup_fd(-1)
            os.close(self._signals_read)
            os.close(self._signals_write)
        if self._error is not None:
            raise self._error
        return 0 if self._clean else 1

    # --- waiting

    def _wait(self) -> bool:
        """Sleeps until something happened, and takes note of it. False: end at once."""
        poll = select.poll()
        poll.register(self._signals_read, select.POLLIN)
        running = {child.pidfd: child for child in self._children if child.state is State.RUNNING}
        for pidfd in running:
            poll.register(pidfd, select.POLLIN)
        for fd, _ in poll.poll(self._timeout_ms(time.monotonic())):
            if fd in running:
                self._ended(running[fd])
            elif not self._take_signals():
                return False
        return True

    def _timeout_ms(self, now: float) -> int | None:
        moments = [child.due for child in self._children if child.state is State.RESTING]
        if self._draining:
            moments.append(self._deadline)
        return max(0, int((min(moments) - now) * 1000) + 1) if moments else None

    def _take_signals(self) -> bool:
        for number in os.read(self._signals_read, 512):
            name = signal.Signals(number).name
            if number == signal.SIGHUP:
                if not self._draining:
                    self._reload(self._signal_reload)
            elif self._draining:
                log.warning("%s again: ending at once", name)
                return False
            else:
                log.info("%s: draining", name)
                self._drain()
        return True

    def _signal_reload(self) -> None:
        for child in self._children:
            if child.reloads and child.state is State.RUNNING:
                signal.pidfd_send_signal(child.pidfd, signal.SIGHUP)

    def _step(self, now: float) -> None:
        for child in self._children:
            if child.state is State.RESTING and now >= child.due:
                self._start(child)
        if not self._draining:
            return
        for rank in reversed(self._ranks):
            for child in rank:
                self._tell_to_end(child)
            if any(child.state is not State.DONE for child in rank):
                break
        late = [child.name for child in self._children if child.state is not State.DONE]
        if late and now >= self._deadline:
            log.error("the drain took longer than %g s: killing %s", self._drain_timeout, ", ".join(late))
            self._clean = False
            self._kill_all()

    # --- ends

    def _ended(self, child: Child) -> None:
        _, status = os.waitpid(child.pid, 0)
        os.close(child.pidfd)
        child.pidfd = -1
        code = os.waitstatus_to_exitcode(status)
        expected = child.told_to_end and code in (0, -signal.SIGTERM)
        (log.info if expected else log.error)("%s (pid %d) %s", child.name, child.pid, describe_exit(code))
        if child.told_to_end:
            child.state = State.DONE
            self._clean &= expected
        elif child.stays or code in _FINAL:
            child.state = State.DONE
            self._clean = False
            if code in _FINAL and self._error is None:
                self._error = _FINAL[code](f"{child.name} cannot run, the log above says why")
            if not self._draining:
                self._drain()
        else:
            child.state = State.RESTING
            child.back_off(time.monotonic())

    def _drain(self) -> None:
        self._draining = True
        self._deadline = time.monotonic() + self._drain_timeout
        self._release()

    @staticmethod
    def _tell_to_end(child: Child) -> None:
        if child.told_to_end:
            return
        child.told_to_end = True
        if child.state is State.RUNNING:
            signal.pidfd_send_signal(child.pidfd, signal.SIGTERM)
        else:
            child.state = State.DONE

    def _kill_all(self) -> None:
        running = [child for child in self._children if child.state is State.RUNNING]
        for child in running:
            signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
        for child in running:
            os.waitpid(child.pid, 0)
            os.close(child.pidfd)
            child.pidfd = -1
        for child in self._children:
            child.state = State.DONE

    # --- starts

    def _start(self, child: Child) -> None:
        parent, pid = os.getpid(), 0
        child.started = time.monotonic()
        # Blocked until the child has its own handlers: a signal to it must not be taken for one to the parent.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            pid = os.fork()
            if pid == 0:
                self._become(child, parent)
            child.pid, child.pidfd = pid, os.pidfd_open(pid)
        except OSError as error:  # no process or no descriptor is to be had for the moment
            if pid:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            log.error("%s does not start: %s", child.name, error.strerror)
            child.state = State.RESTING
            child.back_off(child.started)
            return
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        child.state = State.RUNNING
        log.info("%s has pid %d", child.name, pid)

    def _become(self, child: Child, parent: int) -> NoReturn:
        """The child's whole life."""
        code = EX_SOFTWARE
        try:
            die_with(parent, child.name)
            logs.name_process(child.name)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            # A Ctrl-C goes to the whole group: it is the parent who decides what it means.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            held = {signal.SIGHUP} if child.reloads else set()
            if not child.reloads:  # else one may be waiting by now, and to ignore it would drop it
                signal.signal(signal.SIGHUP, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {*_SIGNALS} - held)
            os.close(self._signals_read)
            os.close(self._signals_write)
            for other in self._children:
                if other.pidfd >= 0:
                    os.close(other.pidfd)
            code = child.main()
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
            os._exit(code)

    def _catch_signals(self) -> list[object]:
        self._signals_read, self._signals_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # The C handler writes the number into the pipe; nothing is left to do in Python.
        signal.set_wakeup_fd(self._signals_write, warn_on_full_buffer=False)
        handlers: list[object] = [signal.signal(number, lambda *_: None) for number in _SIGNALS]
        take_reloads()
        return handlers
