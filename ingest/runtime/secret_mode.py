"""Who may read a file that holds a secret: its owner, and a group that was meant to.

Kubernetes mounts a Secret as root's, and its mode (0440) lets the group of the pod (`fsGroup`) read it: so does whoever
installs a file for one service. Nobody else may read it, and only its owner may change it.

An access control list may name others besides. Then the mode's bits for the group are the most that any of those gets, and
say nothing of who they are.
"""

from __future__ import annotations

import errno
import os
import stat
import struct

# What `fsGroup` adds at a mount to the mode of each file of a volume that can be written, and of each directory.
_GIVEN = stat.S_IRGRP | stat.S_IWGRP
_GIVEN_DIRECTORY = stat.S_ISGID | stat.S_IRWXG

# An access control list, as linux/posix_acl_xattr.h has it.
_LIST = "system.posix_acl_access"
_LIST_VERSION = 2
_ENTRY = struct.Struct("<HHI")  # tag, permissions, id
_NAMED = (0x02, 0x08)  # tags of a user and of a group that are named
_MASK = 0x10  # the tag of what the named ones get at most


def openness(status: os.stat_result, file: int | str) -> str | None:
    """What is wrong with the mode of such a file, None when nothing is. ``file``: its descriptor, or its path without links;
    ``status``: of the same. OSError when its access control list can't be read."""
    mode = stat.S_IMODE(status.st_mode)
    refused = stat.S_IRWXO | stat.S_IWGRP | stat.S_IXGRP
    if not _is_meant(status):
        refused |= stat.S_IRGRP
    if mode & refused:
        return f"mode {mode:04o} opens it to others"
    if mode & stat.S_IRWXG and _names_others(file):
        return "an access control list opens it to others"
    return None


def is_opened_to_group(status: os.stat_result, made: int, file: int | str) -> bool:
    """Whether a file or directory of ours that was made with mode ``made`` has been given to a group of ours since, as
    `fsGroup` does: then nobody has it who is not one of this service. The rest as for `openness`."""
    given = _GIVEN_DIRECTORY if stat.S_ISDIR(status.st_mode) else _GIVEN
    if stat.S_IMODE(status.st_mode) != made | given or status.st_uid != os.geteuid() or not _is_ours(status):
        return False
    return not _names_others(file)


def _is_meant(status: os.stat_result) -> bool:
    """By root or by us, for a group of ours."""
    return status.st_uid in (0, os.geteuid()) and _is_ours(status)


def _names_others(file: int | str) -> bool:
    """Whether an access control list gives anything to anybody by name."""
    try:
        found = os.getxattr(file, _LIST, follow_symlinks=isinstance(file, int))
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return False  # it has none, or the file system knows none
        raise
    return gives_by_name(found)


def gives_by_name(found: bytes) -> bool:
    """The same of a list as the kernel gives it. One of another form does, for all we know."""
    size = struct.calcsize("<I")
    if found[:size] != struct.pack("<I", _LIST_VERSION) or (len(found) - size) % _ENTRY.size:
        return True
    entries = list(_ENTRY.iter_unpack(found[size:]))
    most = next((permissions for tag, permissions, _ in entries if tag == _MASK), stat.S_IRWXO)
    return any(tag in _NAMED and permissions & most for tag, permissions, _ in entries)


def _is_ours(status: os.stat_result) -> bool:
    return status.st_gid == os.getegid() or status.st_gid in os.getgroups()
