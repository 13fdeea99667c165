"""What `strace` saw of a server: its log, line by line, as calls.

The order of the lines is the order in which one tracer saw things begin and end, so "before" is a comparison of line
numbers: what one process did because of what another one had done stands behind it. A call that another one
interrupts has two lines, its beginning (`unfinished`) and its end (`resumed`).

Only the first `STRING_MAX` bytes of what is read or written are in the log. That is enough for the headers of batches,
segments and packs; what came and went through sockets is known from the other end.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

STRING_MAX = 512  # bytes: the whole sector of a pack's header
NAMES = (
    "recvfrom,sendto,pwrite64,fdatasync,fsync,syncfs,mkdirat,openat2,fcntl,fsetxattr,setxattr,renameat2,linkat,fallocate,"
    "ftruncate"
)

_LINE = re.compile(r"(\d+) +(\w+)\((.*)\) += (-?\d+)(?:<.*>| .*)?")
_UNFINISHED = re.compile(r"(\d+) +(\w+)\((.*) <unfinished \.\.\.>")
_RESUMED = re.compile(r"(\d+) +<\.\.\. (\w+) resumed>(.*)\) += (-?\d+)(?:<.*>| .*)?")
_DESCRIPTOR = re.compile(r"(\d+)<([^>]*)>")
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_SIZE_AND_OFFSET = re.compile(r", (\d+), (\d+)$")


def command(log: Path, names: str = NAMES) -> list[str]:
    """To be put before the command that is traced. Its filter has the kernel stop only for the calls that are asked for."""
    return ["strace", "-f", "--seccomp-bpf", "-qq", "-y", "-xx", "-s", str(STRING_MAX), "-e", "signal=none",
            "-e", f"trace={names}", "-o", str(log)]  # fmt: skip


def unusable() -> str:
    """Why strace can't be used here; empty when it can."""
    if shutil.which("strace") is None:
        return "strace is not installed (apt-get install strace)"
    done = subprocess.run([*command(Path("/dev/null")), "true"], capture_output=True, text=True, check=False)
    return f"strace cannot trace here: {done.stderr.strip()}" if done.returncode else ""


@dataclass
class Call:
    """One call. `began` and `ended` are line numbers of the log; `arguments` is text as strace prints it."""

    thread: int
    name: str
    arguments: str
    result: int
    began: int
    ended: int

    @property
    def path(self) -> str:
        """Of the first descriptor: a path, or `socket:[inode]`."""
        match = _DESCRIPTOR.match(self.arguments)
        return _text(match[2]) if match else ""

    @property
    def data(self) -> bytes:
        """The start of what was read or written, or a path that was named."""
        match = _STRING.search(self.arguments)
        return bytes.fromhex(match[1].replace("\\x", "")) if match else b""

    @property
    def size(self) -> int:
        """Of a pwrite64: bytes that it was asked to write."""
        return int(self._size_and_offset[1])

    @property
    def offset(self) -> int:
        """Of a pwrite64."""
        return int(self._size_and_offset[2])

    @property
    def _size_and_offset(self) -> re.Match[str]:
        match = _SIZE_AND_OFFSET.search(self.arguments)
        assert match, self.arguments[-80:]
        return match


def _text(printed: str) -> str:
    return bytes.fromhex(printed.replace("\\x", "")).decode() if printed.startswith("\\x") else printed


def calls(lines: Iterator[str]) -> list[Call]:
    """The finished calls of a log, in the order in which they ended."""
    found: list[Call] = []
    open_: dict[int, tuple[int, str]] = {}
    for number, line in enumerate(lines):
        line = line.rstrip("\n")
        if match := _UNFINISHED.fullmatch(line):
            open_[int(match[1])] = (number, match[3])
        elif match := _RESUMED.fullmatch(line):
            thread, name, rest, result = match.groups()
            began, start = open_.pop(int(thread))
            found.append(Call(int(thread), name, start + rest, int(result), began, number))
        elif match := _LINE.fullmatch(line):
            thread, name, arguments, result = match.groups()
            found.append(Call(int(thread), name, arguments, int(result), number, number))
    return found
