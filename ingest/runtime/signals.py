"""What signals do to a process of ours: set when it starts, and not left to who starts it.

What is ignored, and the mask, pass through fork and exec. A shell ignores INT for what it runs in the background, nohup
ignores HUP. A daemon may ignore CHLD, which hides the end of children. A thread that starts programs may block everything.

signal                                 a server                          its children           a command
TERM, INT, QUIT, PWR                   drains                            TERM ends, or drains   as started
HUP                                    reloads                           told by the parent     as started
CHLD                                   a child, or an orphan, ended      default                default
PIPE, XFSZ                             the call fails (EPIPE, EFBIG)     likewise               likewise
what `_MEANINGLESS` names, real-time   nothing                           nothing                as started
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

# INT and QUIT are what a terminal sends; PWR is how a power supply and some containers ask for the end.
DRAINS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGPWR)
HANDLED = (*DRAINS, signal.SIGHUP, signal.SIGCHLD)  # what a parent has handlers for

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
    signal.set_wakeup_fd(-1)
    for number in DRAINS:
        # A Ctrl-C goes to the whole group: it is the parent who decides what it means.
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if not reloads:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    _ignore_the_rest()
    signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGHUP} if reloads else ())


def take_reloads() -> None:
    """There is a handler: it is called now for the SIGHUP that has been waiting, and for the next ones."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})


def _ignore_the_rest() -> None:
    for number in (*_FAILS_THE_CALL, *_MEANINGLESS, *range(signal.SIGRTMIN, signal.SIGRTMAX + 1)):
        signal.signal(number, signal.SIG_IGN)


def _end_at_once(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)
