"""What every process of ours does when it is started or forked, and how its end is told."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Container

EX_CORRUPT = 65  # it found corruption: another one would find it too
EX_SOFTWARE = 70  # it ended by an exception that nobody expected
EX_BUSY = 75
EX_CONFIG = 78

# States of a process, proc(5).
IN_THE_KERNEL = "D"  # an uninterruptible sleep: nearly always for a disk
STOPPED = ("T", "t")  # by a signal, by a debugger

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_GET_CHILD_SUBREAPER = 37


def hold_standard_descriptors() -> None:
    """Where stdin, stdout or stderr are closed, /dev/null takes their places: else the next file that is opened does, and
    what is said there goes into that."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest number that is free
            if fd == 1:
                sys.stdout = os.fdopen(fd, "w", closefd=False)
            elif fd == 2:
                sys.stderr = os.fdopen(fd, "w", closefd=False)


def die_with(parent: int, name: str) -> None:
    """The kernel kills this process when its parent ends, however that ends. It is called `ingest-NAME` from now on."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it ended before the line above
        os._exit(1)
    libc.prctl(_PR_SET_NAME, f"ingest-{name}".encode()[:15], 0, 0, 0)


def state_of(pid: int) -> str:
    """The letter of the state of a process's main thread; empty where /proc does not say."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return (
                file.read().rpartition(b")")[2][1:2].decode()
            )  # a name may have anything in it, also spaces
    except OSError:
        return ""


def adopts_orphans() -> bool:
    """Whether processes whose parent has ended become children of this one: it is process 1 of a container, or whoever
    started it has made it a subreaper."""
    adopts = ctypes.c_int(0)
    libc = ctypes.CDLL(None, use_errno=True)
    return os.getpid() == 1 or (
        libc.prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(adopts), 0, 0, 0) == 0 and adopts.value != 0
    )


def reap_orphans(own: Container[int]) -> None:
    """Of children that have ended, takes those that this process did not start: nobody else will. It stops at the first
    one of its ``own`` process ids, which is left to who waits for it: call this once more when that is done."""
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if found is None or found.si_pid in own:
            return
        os.waitpid(found.si_pid, 0)


def describe_exit(code: int) -> str:
    """Of an exit code as `os.waitstatus_to_exitcode` gives it: the negative number of a signal."""
    if code < 0:
        return f"was killed by signal {-code} ({signal.strsignal(-code)})"
    return f"exited with {code}"
