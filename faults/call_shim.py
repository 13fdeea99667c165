"""The library that lets calls fail (`failing_calls.c`): how it is built, and told what to do."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
from pathlib import Path

from faults.failing_series import SOCKETS, Series


class Control(ctypes.Structure):
    """`struct control` of failing_calls.c."""

    _fields_ = [
        ("armed", ctypes.c_uint32),
        ("error", ctypes.c_int32),
        ("when", ctypes.c_uint64),
        ("onward", ctypes.c_uint32),
        ("unused", ctypes.c_uint32),
        ("count", ctypes.c_uint64),
        ("struck", ctypes.c_uint64),
        ("call", ctypes.c_char * 24),
        ("role", ctypes.c_char * 16),
        ("root", ctypes.c_char * 256),
    ]


class Shim:
    """What the calls of one server are told. This process runs with the library preloaded; its own calls never fail."""

    def __init__(self, path: Path, data: Path, series: Series, k: int) -> None:
        path.write_bytes(bytes(ctypes.sizeof(Control)))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), ctypes.sizeof(Control))
        self._path = path
        self.control = Control.from_buffer(self._map)
        self.control.error, self.control.when, self.control.onward = series.error, k, series.onward
        self.control.call, self.control.role = series.call.encode(), series.role.encode()
        self.control.root = b"" if series.call in SOCKETS else os.fsencode(data)
        self.control.armed = 1

    @property
    def struck(self) -> int:
        """How many calls failed."""
        return int(self.control.struck)

    def disarm(self) -> None:
        self.control.armed = 0

    def follow(self) -> None:
        """From now on the servers that are forked meet this fault. OSError."""
        _follow(os.fsencode(self._path))

    @staticmethod
    def leave() -> None:
        """From now on the servers that are forked meet no fault."""
        _follow(None)


def _follow(path: bytes | None) -> None:
    error = ctypes.CDLL(None).follow_control(path)
    if error:
        raise OSError(error, os.strerror(error), path)


def build(library: Path) -> str:
    """Compiles failing_calls.c; returns why that can't be done, if so."""
    compiler = os.environ.get("CC", "cc").split()
    source = Path(__file__).with_name("failing_calls.c")
    flags = ["-shared", "-fPIC", "-O2", "-U_FORTIFY_SOURCE", "-o", str(library)]
    try:
        built = subprocess.run(
            [*compiler, *flags, str(source), "-ldl"], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return f"there is no C compiler {compiler[0]}"
    return f"the library does not compile: {built.stderr[:200]}" if built.returncode else ""
