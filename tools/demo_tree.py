"""The second half of `make demo`: a directory tree through a gateway, with curl and with `ingest put`, and back after a
restart. What comes back is compared by its BLAKE3."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

from blake3 import blake3
from rich.console import Console

# Of the standard library, with directories in directories. `ingest put` is a process for each file here: it gets few.
CURL_PACKAGES = ("asyncio", "email", "importlib", "json", "xml")
COMMAND_PACKAGES = ("concurrent",)
COMMAND_TIMEOUT_S = 60.0
PROCESSES = 4  # of `ingest put` and `ingest get` at a time


class TreeError(Exception):
    pass


class Server(Protocol):
    """What is started and stopped. ``http``: HOST:PORT of its gateway, while it runs."""

    http: str

    def start(self) -> float: ...

    def stop(self) -> float: ...


def tree(packages: Iterable[str]) -> dict[str, Path]:
    """Files by the names that they get."""
    library = Path(sysconfig.get_path("stdlib"))
    found = {
        str(path.relative_to(library)): path
        for package in packages
        for path in sorted((library / package).rglob("*.py"))
    }
    if not found:
        raise TreeError(f"there is nothing in {', '.join(packages)} of {library}")
    return found


def digest(path: Path) -> str:
    return blake3(path.read_bytes()).hexdigest()


# --- two ways to store and to fetch ----------------------------------------------------------------


class Way(Protocol):
    """``packages``: what is stored in this way."""

    packages: tuple[str, ...]
    stores: str
    fetches: str

    def put(self, http: str, files: Mapping[str, Path]) -> None: ...

    def get(self, http: str, names: Iterable[str], target: Path) -> None:
        """Each into a file of its name in a directory."""


class Curl:
    """One process for all, which reads from stdin what it is to do."""

    packages: tuple[str, ...] = CURL_PACKAGES
    stores, fetches = "curl", "curl"

    def put(self, http: str, files: Mapping[str, Path]) -> None:
        self._run(
            [
                {"url": self._url(http, name), "upload-file": str(path), "output": "/dev/null"}
                for name, path in files.items()
            ]
        )

    def get(self, http: str, names: Iterable[str], target: Path) -> None:
        self._run([{"url": self._url(http, name), "output": str(target / name)} for name in names])

    @staticmethod
    def _url(http: str, name: str) -> str:
        return f"http://{http}/objects/{quote(name)}"

    @staticmethod
    def _run(transfers: Sequence[Mapping[str, str]]) -> None:
        # A proxy would not find the loopback of this machine.
        always = 'fail\nsilent\nshow-error\ncreate-dirs\nnoproxy = "*"\n'
        parts = [always + "".join(f'{key} = "{value}"\n' for key, value in one.items()) for one in transfers]
        # -q: not what the user's ~/.curlrc says.
        run(["curl", "-q", "--fail-early", "--config", "-"], "next\n".join(parts))


class Commands:
    """A process for each file."""

    packages: tuple[str, ...] = COMMAND_PACKAGES
    stores, fetches = "ingest put", "ingest get"

    def put(self, http: str, files: Mapping[str, Path]) -> None:
        self._run(http, [("put", str(path), "--name", name) for name, path in files.items()])

    def get(self, http: str, names: Iterable[str], target: Path) -> None:
        calls = []
        for name in names:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            calls.append(("get", name, "-o", str(target / name)))
        self._run(http, calls)

    @staticmethod
    def _run(http: str, calls: Sequence[Sequence[str]]) -> None:
        gateway = ("--gateway", f"http://{http}")
        with ThreadPoolExecutor(PROCESSES) as pool:
            for _ in pool.map(lambda call: run([sys.executable, "-m", "ingest", *call, *gateway]), calls):
                pass  # what one of them raised is raised here


def run(command: Sequence[str], stdin: str = "") -> None:
    """TreeError when it fails."""
    environment = {name: text for name, text in os.environ.items() if not name.startswith("INGEST_")}
    done = subprocess.run(
        command,
        input=stdin,
        env=environment,
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        raise TreeError(f"{command[0]} ended with {done.returncode}: {done.stderr.strip()}")


def ways(console: Console) -> list[Way]:
    """Those that this machine has."""
    if shutil.which("curl") is not None:
        return [Curl(), Commands()]
    console.print("there is no curl on this machine (apt-get install curl): its part is left out")
    return [Commands()]


# --- the story -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """What of the tree is stored in one way."""

    way: Way
    files: Mapping[str, Path]
    digests: Mapping[str, str]

    @classmethod
    def of(cls, way: Way) -> Part:
        files = tree(way.packages)
        return cls(way, files, {name: digest(path) for name, path in files.items()})

    def put(self, http: str) -> str:
        """Stores it, and says so."""
        started = time.monotonic()
        self.way.put(http, self.files)
        taken = time.monotonic() - started
        size = sum(path.stat().st_size for path in self.files.values())
        return f"{self.way.stores}: {len(self.files)} files, {size:,} bytes, stored in {taken:.2f} s"

    def get(self, http: str, target: Path) -> str:
        """Fetches it into a directory that is not there yet, and says so. TreeError when it is not what was stored."""
        started = time.monotonic()
        self.way.get(http, list(self.files), target)
        taken = time.monotonic() - started
        check(self.digests, target)
        files = f"{len(self.files)} files"
        return f"{self.way.fetches}: {files} fetched in {taken:.2f} s, each with the digest that it had"


def tell(server: Server, directory: Path, console: Console) -> None:
    """``directory``: where fetched files go. TreeError when one of them is not what was stored."""
    ready = server.start()
    console.print(f"ingest serve on the same data: a gateway after {ready:.2f} s on http://{server.http}")
    parts = [Part.of(way) for way in ways(console)]
    for part in parts:
        console.print(part.put(server.http))
    console.print(f"stopped it with SIGTERM: gone after {server.stop():.2f} s")
    console.print(f"started it again: ready after {server.start():.2f} s")
    for part in parts:
        console.print(part.get(server.http, directory / part.way.fetches))
    console.print(f"stopped it: gone after {server.stop():.2f} s")


def check(digests: Mapping[str, str], target: Path) -> None:
    """TreeError unless a directory holds these files and no others."""
    found = {str(path.relative_to(target)): digest(path) for path in target.rglob("*") if path.is_file()}
    if found != digests:
        wrong = sorted(name for name in found.keys() | digests.keys() if found.get(name) != digests.get(name))
        raise TreeError(f"{len(wrong)} files did not come back as they were stored, {wrong[0]} is the first")
