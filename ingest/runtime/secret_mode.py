"""Who may read a file that holds a secret: its owner, and a group that was meant to.

Kubernetes mounts a Secret as root's, and its mode (0440) lets the group of the pod (`fsGroup`) read it: so does whoever
installs a file for one service. Nobody else may read it, and only its owner may change it.
"""

from __future__ import annotations

import os
import stat

# What `fsGroup` adds at a mount to the mode of each file of a volume that can be written, and of each directory.
_GIVEN = stat.S_IRGRP | stat.S_IWGRP
_GIVEN_DIRECTORY = stat.S_ISGID | stat.S_IRWXG


def openness(status: os.stat_result) -> str | None:
    """What is wrong with the mode of such a file, None when nothing is. ``status``: of the open file."""
    mode = stat.S_IMODE(status.st_mode)
    refused = stat.S_IRWXO | stat.S_IWGRP | stat.S_IXGRP
    if not _is_meant(status):
        refused |= stat.S_IRGRP
    return f"mode {mode:04o} opens it to others" if mode & refused else None


def is_opened_to_group(status: os.stat_result, made: int) -> bool:
    """Whether a file or directory of ours that was made with mode ``made`` has been given to a group of ours since, as
    `fsGroup` does: then nobody has it who is not one of this service."""
    given = _GIVEN_DIRECTORY if stat.S_ISDIR(status.st_mode) else _GIVEN
    return stat.S_IMODE(status.st_mode) == made | given and status.st_uid == os.geteuid() and _is_ours(status)


def _is_meant(status: os.stat_result) -> bool:
    """By root or by us, for a group of ours."""
    return status.st_uid in (0, os.geteuid()) and _is_ours(status)


def _is_ours(status: os.stat_result) -> bool:
    return status.st_gid == os.getegid() or status.st_gid in os.getgroups()
