"""What every process of ours does when it is started or forked, and how its end is told."""

from __future__ import annotations

import ctypes
import os
import signal

EX_CORRUPT = 65  # it found corruption: another one would find it too
EX_SOFTWARE = 70  # it ended by an exception that nobody expected
EX_BUSY = 75
EX_CONFIG = 78

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15


def die_with(parent: int, name: str) -> None:
    """The kernel kills this process when its parent ends, however that ends. It is called `ingest-NAME` from now on."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it ended before the line above
        os._exit(1)
    libc.prctl(_PR_SET_NAME, f"ingest-{name}".encode()[:15], 0, 0, 0)


def hold_reloads() -> None:
    """SIGHUP waits until `take_reloads`: what comes before there is a handler would end the process, or be lost although
    files were read before. A process that is forked meanwhile inherits that; it must not set SIGHUP to be ignored, which
    would drop one that waits."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})


def take_reloads() -> None:
    """There is a handler: it is called now for the SIGHUP that has been waiting, and for the next ones."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})


def describe_exit(code: int) -> str:
    """Of an exit code as `os.waitstatus_to_exitcode` gives it: the negative number of a signal."""
    if code < 0:
        return f"was killed by signal {-code} ({signal.strsignal(-code)})"
    return f"exited with {code}"
