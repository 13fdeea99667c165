"""Which calls fail, and how: the table of part 5."""

from __future__ import annotations

import errno
from dataclasses import dataclass

SHORT = -1  # not an errno: the call does only a part of what it was asked for
COMMITTER_NAME, WORKER_NAME = "ingest-committe", "ingest-worker-0"  # as the kernel cuts them


@dataclass(frozen=True)
class Series:
    """A kind of call of one process that fails in one way; a case is its k-th call."""

    scenario: str  # fresh, again
    role: str
    call: str
    error: int  # an errno, or SHORT
    onward: bool
    layout: str = "pack"

    def name(self, k: int) -> str:
        how = "short" if self.error == SHORT else errno.errorcode[self.error]
        onward = " and all after it" if self.onward else ""
        return f"{self.layout}, {self.scenario}: {self.role} {self.call} {how} at call {k}{onward}"


_FILES = (errno.EMFILE, errno.ENFILE, errno.EIO, errno.ENOSPC, errno.EINTR)
# What each process calls, and how that may fail. EINTR and EDQUOT come once: nobody is interrupted for ever.
COMMITTER = {
    "openat": _FILES,
    "openat2": (*_FILES, errno.EDQUOT),
    "dup": (errno.EMFILE,),
    "mkdirat": (errno.ENOSPC, errno.EDQUOT, errno.EIO),
    "pwrite": (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EINTR, SHORT),
    "pread": (errno.EIO, errno.EINTR, SHORT),
    "fdatasync": (errno.EIO, errno.ENOSPC, errno.EINTR),
    "fsync": (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EINTR),
    "syncfs": (errno.EIO, errno.ENOSPC, errno.EINTR),
    "sync_file_range": (errno.EIO, errno.EINTR),
    "fallocate": (errno.EIO, errno.ENOSPC, errno.EINTR),
    "ftruncate": (errno.EIO, errno.EINTR),
    "fstat": (errno.EIO,),
    "statvfs": (errno.EIO, errno.EINTR),
    "unlink": (errno.EIO,),
}
WORKER = {
    "openat2": (errno.EMFILE, errno.ENFILE, errno.EIO, errno.EINTR),
    "pread": (errno.EIO, errno.EINTR, SHORT),
    "accept4": (errno.EMFILE, errno.ENFILE, errno.EINTR),
    "recv": (errno.EINTR,),  # never short while more is there: epoll(7), and the server goes by it
    "send": (errno.EINTR, SHORT),
}
# Of layout tree, what it does in other ways than layout pack does.
TREE = {
    "openat": (errno.EMFILE, errno.EIO, errno.ENOSPC),
    "openat2": (errno.EMFILE, errno.EIO, errno.ENOSPC, errno.EINTR),
    "mkdirat": (errno.ENOSPC, errno.EIO),
    "pwrite": (errno.EIO, errno.ENOSPC, errno.EINTR, SHORT),
    "pread": (errno.EIO, SHORT),
    "ftruncate": (errno.EIO,),
    "fsetxattr": (errno.EIO, errno.ENOSPC),
    "fgetxattr": (errno.EIO,),
    "syncfs": (errno.EIO,),
}
SOCKETS = ("accept4", "recv", "send")
ONCE = (errno.EINTR, errno.EDQUOT)


def all_series() -> list[Series]:
    kinds = (
        ("pack", COMMITTER_NAME, COMMITTER, ("fresh", "again")),
        ("pack", WORKER_NAME, WORKER, ("fresh",)),
        ("tree", COMMITTER_NAME, TREE, ("fresh", "again")),
    )
    return [
        Series(scenario, role, call, error, onward, layout)
        for layout, role, calls, scenarios in kinds
        for call, errors in calls.items()
        for error in errors
        for onward in (False, True)
        if not (onward and error in ONCE)
        for scenario in scenarios
    ]
