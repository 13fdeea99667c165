"""A large file, and curl that puts and gets it over HTTP."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench import load
from bench.peer import LOAD_TIMEOUT_S, find_program
from bench.scratch import Scratch, sync
from ingest.limits import DATA_SIZE

PROGRAM = "curl"
GET_CURL = "apt-get install curl"
PART_SIZE = 8 << 20  # bytes of a file that are made or compared together


class CurlError(Exception):
    """curl did not do it; the message has what it said."""


@dataclass(frozen=True)
class Transfer:
    """``seconds``: from the connection until the end of the answer, as curl counts them."""

    size: int  # bytes of the object
    seconds: float

    @property
    def rate(self) -> float:
        """Chunks per second: the unit of what it is compared with."""
        return -(-self.size // DATA_SIZE) / self.seconds

    def details(self) -> dict[str, Any]:
        return {"seconds": round(self.seconds, 3), "mb_per_s": round(self.size / self.seconds / 1e6, 1)}


def missing() -> str | None:
    """What to do before curl can be used; None when it is there."""
    return f"there is no {PROGRAM}; {GET_CURL}" if find_program(PROGRAM) is None else None


@contextmanager
def large_file(directory: Path, size: int) -> Iterator[Path]:
    """A file of random bytes, which the page cache has."""
    path = directory / "file"
    draw = np.random.default_rng(load.SEED)
    try:
        with open(path, "wb", buffering=0) as file:
            for at in range(0, size, PART_SIZE):
                file.write(draw.bytes(min(PART_SIZE, size - at)))
        yield path
    finally:
        path.unlink(missing_ok=True)


def put_and_get(scratch: Scratch, file: Path, url: str, query: str = "") -> tuple[Transfer, Transfer]:
    """PUT with an idle disk, then GET with one; in between all of it is got and compared. ``query``: of the PUT.
    CurlError."""
    sync(scratch.directory)
    stored = put(file, url + query)
    compare(url, file)
    sync(scratch.directory)
    return stored, get(url, file.stat().st_size)


def put(path: Path, url: str) -> Transfer:
    """CurlError."""
    said = _run("--upload-file", str(path), "--output", os.devnull, url)
    size = path.stat().st_size
    if said["size_upload"] != size:
        raise CurlError(f"{url}: {said['size_upload']} of {size} bytes were sent")
    return Transfer(size, said["time_total"])


def get(url: str, size: int) -> Transfer:
    """The bytes go nowhere; there must be ``size`` of them. CurlError."""
    said = _run("--output", os.devnull, url)
    if said["size_download"] != size:
        raise CurlError(f"{url}: {said['size_download']} bytes came where {size} were expected")
    return Transfer(size, said["time_total"])


def compare(url: str, path: Path) -> None:
    """Gets it once more, and compares every byte with the file. CurlError."""
    with (
        open(path, "rb", buffering=0) as file,
        subprocess.Popen(
            [_program(), "--silent", "--show-error", "--fail", url], stdout=subprocess.PIPE
        ) as process,
    ):
        assert process.stdout is not None
        at = 0
        while part := process.stdout.read(PART_SIZE):
            if part != file.read(len(part)):
                process.kill()
                raise CurlError(f"{url}: other bytes than were put, behind byte {at}")
            at += len(part)
        if process.wait() or at != path.stat().st_size:
            raise CurlError(f"{url}: curl ended with {process.returncode} after {at} bytes")


def _run(*arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [_program(), "--silent", "--show-error", "--fail", "--write-out", "%{json}", *arguments],
        capture_output=True, text=True, timeout=LOAD_TIMEOUT_S,
    )  # fmt: skip
    if done.returncode:
        raise CurlError(f"{' '.join(arguments)}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def _program() -> str:
    found = find_program(PROGRAM)
    assert found is not None, missing()
    return found
