"""Starts processes, watches them, and ends them. None of their work is done here.

The parent is one thread that sleeps in poll() on the pidfds of its children and on signals. Its children have ranks: they
are started from the first rank on, and ended from the last one, each rank when the one behind it has ended. Once a second
it listens to their hearts (`heartbeat`). What a child is, and its states: `supervised`. A parent with more to decide than
that is a subclass: the one of a server (`pool`).
"""

from __future__ import annotations

import gc
import logging
import os
import resource
import select
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from ingest import limits
from ingest.disk_wait import DiskWait
from ingest.errors import BusyError, ConfigError, CorruptionError, IngestError
from ingest.runtime import heartbeat, signals
from ingest.runtime.child import (
    EX_BUSY,
    EX_CONFIG,
    EX_CORRUPT,
    IN_THE_KERNEL,
    STOPPED,
    adopts_orphans,
    describe_exit,
    reap_orphans,
    state_of,
)
from ingest.runtime.supervised import Child, State

log = logging.getLogger(__name__)

# What another process in its place would end with too. A process that takes the place of another may be told BUSY by who
# holds something for a while only: it is started again.
_FINAL: dict[int, type[IngestError]] = {
    EX_BUSY: BusyError,
    EX_CONFIG: ConfigError,
    EX_CORRUPT: CorruptionError,
}


def _is_final(child: Child) -> bool:
    return child.exit_code in _FINAL and not (child.exit_code == EX_BUSY and child.starts > 1)


def require_pidfds() -> None:
    """ConfigError where no process can be watched: rather than starting children again and again."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        raise ConfigError(
            f"pidfd_open: {error.strerror}: this takes Linux 5.3 or later, and a container that allows the call"
        ) from error


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
        self._listeners = {child.name: heartbeat.Listener(child.heart) for child in self._children}
        self._listened_at = time.monotonic()
        self._draining = False
        self._deadline = 0.0  # of the drain
        self._clean = True
        self._error: IngestError | None = None
        self._handled: tuple[int, ...] = ()  # the signals
        self._signals_read = self._signals_write = -1

    def run(self) -> int:
        """Until a signal that drains: 0 when all children ended as they should. Raises what none of them can live with."""
        require_pidfds()
        heartbeat.own().wait(DiskWait.NOTHING)
        gc.collect()
        gc.freeze()  # what is there by now is never freed: collections in the children do not copy its pages
        handlers = self._catch_signals()
        adopts = adopts_orphans()
        try:
            self._begin()
            while any(child.state is not State.DONE for child in self._children):
                if not self._wait():
                    self._clean = False
                    break
                self._step(time.monotonic())
                if adopts:
                    reap_orphans({child.pid for child in self._children if child.state is State.RUNNING})
        finally:
            self._kill_all()
            self._release_signals(handlers)
        if self._error is not None:
            raise self._error
        return 0 if self._clean else 1

    # --- what a subclass adds to: each is one decision of a parent

    def _begin(self) -> None:
        """Starts those that need not wait for others."""
        for child in self._children:
            self._start(child)

    def _calls(self) -> dict[int, Callable[[], None]]:
        """What to call when a descriptor is readable: a pidfd is when its process has ended."""
        return {
            child.pidfd: partial(self._ended, child)
            for child in self._children
            if child.state is State.RUNNING
        }

    def _moments(self, now: float) -> list[float]:
        """When to look again although nothing happened."""
        moments = [child.due for child in self._children if child.state is State.RESTING]
        moments.append(self._listened_at + limits.HEART_LISTEN_INTERVAL_S)
        return [*moments, self._deadline] if self._draining else moments

    def _step(self, now: float) -> None:
        """Moves on every child that only had to wait, and the drain."""
        self._listen(now)
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

    def _hang_up(self) -> None:
        """SIGHUP came."""
        if not self._draining:
            self._reload(self._signal_reload)

    def _drain(self) -> None:
        """The first signal to drain came, or an end that is the end of all."""
        self._draining = True
        self._deadline = time.monotonic() + self._drain_timeout
        self._release()

    def _tell_to_end(self, child: Child) -> None:
        """The turn of its rank has come in the drain; it is called again until the whole rank has ended."""
        child.tell_to_end()

    def _settle(self, child: Child, expected: bool) -> None:
        """It has ended and rests: decides whether it stays so, and what that means to the others."""
        if child.told_to_end:
            child.state = State.DONE
            self._clean &= expected
        elif child.stays or _is_final(child):
            child.state = State.DONE
            self._clean = False
            if child.exit_code in _FINAL and self._error is None:
                self._error = _FINAL[child.exit_code](f"{child.name} cannot run, the log above says why")
            if not self._draining:
                self._drain()

    def _reap(self, child: Child) -> resource.struct_rusage:
        return child.reap()

    # --- hearts

    def _listen(self, now: float) -> None:
        passed = now - self._listened_at
        if passed < limits.HEART_LISTEN_INTERVAL_S:
            return
        self._listened_at = now
        heartbeat.own().beat()
        # A machine that was suspended, a group that was stopped: then nobody else could beat either.
        counts = passed if passed < limits.HEART_LISTEN_INTERVAL_S + limits.HEART_LATE_S else 0.0
        for child in self._children:
            if child.state is State.RUNNING:
                self._judge(child, self._listeners[child.name].listen(counts))
            self._miss(child, time.monotonic_ns())

    def _miss(self, child: Child, now: int) -> None:
        """Tells once of one that is started again and again and never gets to its first beat, or that cannot be started.
        One that runs is starting."""
        listener, seconds = self._listeners[child.name], child.heart.missing(now)
        ended = child.state in (State.RESTING, State.RETIRING)
        if ended and seconds >= limits.HEART_UNREADY_S and not listener.told_missing:
            listener.told_missing = True
            retires = child.state is State.RETIRING
            why = "others still use what the last one had" if retires else "it ends before it does anything"
            log.error("%s has not run for %.0f s: %s", child.name, seconds, why)
        elif listener.told_missing and child.heart.last_beat:
            listener.told_missing = False
            log.warning("%s (pid %d) runs again", child.name, child.pid)

    def _judge(self, child: Child, silent: float) -> None:
        """``silent``: for how many seconds it has been."""
        said, listener = (child.name, child.pid), self._listeners[child.name]
        wait, waited = child.heart.waiting(time.monotonic_ns())
        disk = f"; it waits for the disk: {wait.words} for {waited:.0f} s" if wait else ""
        late = max(silent, waited)
        if late >= limits.HEART_UNREADY_S and not listener.told:
            log.warning("%s (pid %d) has answered nothing for %.0f s%s", *said, late, disk)
        elif late < limits.HEART_UNREADY_S and listener.told:
            log.warning("%s (pid %d) answers again", *said)
        listener.told = late >= limits.HEART_UNREADY_S
        if child.replaced_when_silent and silent >= listener.patience:
            listener.patience += limits.HEART_SILENCE_MAX_S  # what is held by a disk is named once in a while
            state = state_of(child.pid)
            said_so = wait is not DiskWait.NOTHING and state not in STOPPED
            if said_so or state == IN_THE_KERNEL:
                disk = disk or "; the kernel holds it: it waits for a disk"
                log.error(
                    "%s (pid %d) has answered nothing for %.0f s%s; another one would wait too: it is left alone",
                    *(*said, silent, disk),
                )
            else:
                log.error("%s (pid %d) has answered nothing for %.0f s: killing it", *said, silent)
                signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)

    # --- the loop

    def _wait(self) -> bool:
        """Sleeps until something happened, and takes note of it. False: end at once."""
        calls = self._calls()
        poll = select.poll()
        for fd in (self._signals_read, *calls):
            poll.register(fd, select.POLLIN)
        for fd, _ in poll.poll(self._timeout_ms(time.monotonic())):
            if fd in calls:
                calls[fd]()
            elif not self._take_signals():
                return False
        return True

    def _timeout_ms(self, now: float) -> int | None:
        moments = self._moments(now)
        return max(0, int((min(moments) - now) * 1000) + 1) if moments else None

    def _take_signals(self) -> bool:
        for number in os.read(self._signals_read, 512):
            if number == signal.SIGHUP:
                self._hang_up()
            elif number == signal.SIGCHLD:
                pass  # it has ended the sleep, the pidfds say the rest
            elif number == signals.END:  # once, from a parent that waits for this one as long as it wants to
                if not self._draining:
                    log.info("told to end: draining")
                    self._drain()
            elif self._draining:
                log.warning("%s again: ending at once", signal.Signals(number).name)
                return False
            else:
                log.info("%s: draining", signal.Signals(number).name)
                self._drain()
        return True

    def _signal_reload(self) -> None:
        for child in self._children:
            if child.reloads and child.state is State.RUNNING:
                signal.pidfd_send_signal(child.pidfd, signal.SIGHUP)

    def _start(self, child: Child) -> None:
        child.start(self._leave)

    def _leave(self) -> None:
        """In a process that was forked: what is here is the parent's."""
        os.close(self._signals_read)
        os.close(self._signals_write)
        for child in self._children:
            child.let_go()

    def _ended(self, child: Child) -> None:
        self._reap(child)
        child.back_off(time.monotonic())
        code = child.exit_code
        expected = child.told_to_end and code in (0, -signals.END)
        (log.info if expected else log.error)("%s (pid %d) %s", child.name, child.pid, describe_exit(code))
        self._settle(child, expected)

    def _kill_all(self) -> None:
        running = [child for child in self._children if child.state is State.RUNNING]
        for child in running:
            signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
        for child in running:
            self._reap(child)
        for child in self._children:
            child.state = State.DONE

    def _catch_signals(self) -> list[object]:
        self._signals_read, self._signals_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # The C handler writes the number into the pipe; nothing is left to do in Python.
        signal.set_wakeup_fd(self._signals_write, warn_on_full_buffer=False)
        self._handled = (*signals.ends(), signal.SIGHUP, signal.SIGCHLD)
        handlers: list[object] = [signal.signal(number, lambda *_: None) for number in self._handled]
        signals.take_reloads()
        return handlers

    def _release_signals(self, handlers: Iterable[object]) -> None:
        for number, handler in zip(self._handled, handlers, strict=True):
            signal.signal(number, handler)  # type: ignore[arg-type]
        signal.set_wakeup_fd(-1)
        os.close(self._signals_read)
        os.close(self._signals_write)
