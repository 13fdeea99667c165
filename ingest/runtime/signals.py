"""What signals do to a process of ours: set when it starts, and not left to who starts it.

What is ignored, and the mask, pass through fork and exec. A shell ignores INT for what it runs in the background, nohup
ignores HUP. A daemon may ignore CHLD, which hides the end of children. A thread that starts programs may block everything.

signal                                 a server                          its children           a command
TERM, INT, QUIT, PWR                   drains                            nothing                as started
`END`                                  nothing                           ends, or drains        nothing
HUP                                    reloads                           told by the parent     as started
CHLD                                   a child, or an orphan, ended      default                default
PIPE, XFSZ                             the call fails (EPIPE, EFBIG)     likewise               likewise
what `_MEANINGLESS` names, real-time   nothing                           nothing                as started

A service manager may send TERM to all processes of a server at once (systemd's KillMode=control-group does), a terminal
sends INT so. The processes end in an order, each after those that ask it: so only who has no parent of ours takes these
signals, and each parent tells its children with a signal that nobody else sends.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

# INT and QUIT are what a terminal sends; PWR is how a power supply and some containers ask for the end.
DRAINS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGPWR)
# How a parent of ours tells a child to end. SIGRTMIN itself, +3 to +6 and the last ones mean something to init programs.
END = signal.SIGRTMIN + 1
HANDLED = (*DRAINS, END, signal.SIGHUP, signal.SIGCHLD)  # what a parent or its child may have handlers for

_FAILS_THE_CALL = (signal.SIGPIPE, signal.SIGXFSZ)
# The default of each ends a process; that of TTOU stops one in the background that writes its log to a terminal. Scripts
# that rotate logs send USR1 and USR2. A timer that somebody set before exec goes on, and sends ALRM, VTALRM or PROF.
_MEANINGLESS = (
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGVTALRM,
    signal.SIGPROF,
    signal.SIGIO,
    signal.SIGTTOU,
)

_has_parent = False  # of ours: this process ends when it is told to


def ends() -> tuple[int, ...]:
    """What tells this process to end."""
    return (END,) if _has_parent else DRAINS


def end() -> int:
    """The one that a process without children listens to: TERM where it was started alone."""
    return END if _has_parent else signal.SIGTERM


def begin() -> None:
    """At the start of every program. INT, HUP and the like stay as whoever started it wants them for a command."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def begin_server() -> None:
    """At the start of a server, before it reads anything. SIGHUP waits until `take_reloads`: what comes before there is a
    handler would end the process, or be lost although files were read before."""
    signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGHUP})
    for number in (*DRAINS, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    if os.getpid() == 1:  # the kernel drops what process 1 has no handler for
        for number in DRAINS:
            signal.signal(number, _end_at_once)
    _ignore_the_rest()


def begin_child(reloads: bool) -> None:
    """In a process that a parent of ours forked with `HANDLED` blocked. One that ``reloads`` must not set SIGHUP to be
    ignored, which would drop one that waits: it stays blocked until `take_reloads`."""
    global _has_parent
    _has_parent = True
    signal.set_wakeup_fd(-1)
    for number in DRAINS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if not reloads:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    _ignore_the_rest()
    signal.signal(END, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGHUP} if reloads else ())


def take_reloads() -> None:
    """There is a handler: it is called now for the SIGHUP that has been waiting, and for the next ones."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})


def _ignore_the_rest() -> None:
    for number in (*_FAILS_THE_CALL, *_MEANINGLESS, *range(signal.SIGRTMIN, signal.SIGRTMAX + 1)):
        if number != END or not _has_parent:  # one that waits would be dropped
            signal.signal(number, signal.SIG_IGN)


def _end_at_once(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)
