"""One large object against SeaweedFS: the same file, put and got with curl, through our gateway and through its filer.

As in `peers.py` each pair makes the same promise, each measurement starts fresh servers in an empty directory, and both
sides run in turns. What is got was got, and compared, once before.
"""

from __future__ import annotations

import socket
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench import curl
from bench.bench_large_object import PATH
from bench.conftest import Take
from bench.curl import Transfer
from bench.gateway import Gateway
from bench.peer import Seaweed, free_ports
from bench.process import memory
from bench.report import RATIO, Round, Row
from bench.scratch import Scratch, sync
from bench.server import Server
from bench.sizes import Sizes

SYNC = "?fsync=true"  # of a PUT: it is answered when the volumes are synced


@dataclass(frozen=True)
class Run:
    """``memory_mb``: of all processes of the servers, when all is done."""

    put: Transfer
    get: Transfer
    memory_mb: float


def test_object_peers(take: Take) -> None:
    if why := SeaweedFiler.missing():
        print(why, file=sys.stderr)
        pytest.skip(why)
    take(measure)


class SeaweedFiler(Seaweed):
    """SeaweedFS with its filer, which has names and large files; the metadata are in its default store."""

    NAME = "SeaweedFS filer"
    PROGRAMS = ("weed", curl.PROGRAM)
    GET = f"{Seaweed.GET}, {curl.GET_CURL}"
    CLIENT = "curl"

    def command(self) -> list[str]:
        command = super().command()
        self.filer, filer_grpc = free_ports(2)
        return [
            *(*command, "-filer", f"-filer.port={self.filer}", f"-filer.port.grpc={filer_grpc}"),
            "-filer.localSocket=filer.sock",
        ]

    def ready(self) -> bool:
        """It stores a file, and so has volumes."""
        with socket.create_connection(("127.0.0.1", self.filer)):
            pass
        probe = self.directory / "probe"
        probe.write_bytes(b"probe")
        try:
            curl.put(probe, self.url("/probe"))
        except curl.CurlError:
            return False
        return True

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.filer}{path}"


def measure(scratch: Scratch, sizes: Sizes) -> list[Row]:
    synced = _row("seaweed-large-put-fsync", sizes, "PUT", "disk", "SeaweedFS, fsync")
    put = _row("seaweed-large-put", sizes, "PUT", "os", "SeaweedFS, no fsync")
    get = _row("seaweed-large-get", sizes, "GET", "os", "SeaweedFS")
    with curl.large_file(scratch.directory, sizes.large_size) as file:
        for number in range(sizes.peer_rounds):
            for how, query, rows in (("disk", SYNC, [synced]), ("os", "", [put, get])):
                # Who comes first changes: what a run leaves behind on the machine falls on both.
                ours = _ours(scratch, file, how) if number % 2 == 0 else None
                theirs = _theirs(scratch, file, query)
                ours = ours or _ours(scratch, file, how)
                for row in rows:
                    row.rounds.append(_round(ours, theirs, row is get))
    return [synced, put, get]


def _row(name: str, sizes: Sizes, method: str, how: str, peer: str) -> Row:
    what = f"{method} of a file of {sizes.large_size >> 20:,} MiB with curl, --sync {how}, against {peer}"
    row = Row(name, what, RATIO, reach=1.5)
    row.notes = {
        "peer": peer,
        "sync": how,
        "version": SeaweedFiler.version(),
        "client": "curl, on both sides",
    }
    return row


def _round(ours: Run, theirs: Run, is_get: bool) -> Round:
    our, their = (run.get if is_get else run.put for run in (ours, theirs))
    return Round.ratio(
        our.rate,
        their.rate,
        our_run=our.details() | {"memory_mb": ours.memory_mb},
        peer_run=their.details() | {"memory_mb": theirs.memory_mb},
    )


def _ours(scratch: Scratch, file: Path, how: str) -> Run:
    sync(scratch.directory)
    with (
        scratch.round() as directory,
        Server(directory / "data", "--sync", how) as server,
        Gateway(server) as gateway,
    ):
        put, get = curl.put_and_get(scratch, file, gateway.url(PATH))
        pids = [*server.pids(), *gateway.pids()]
        resident = sum(found.total for pid in pids if (found := memory(pid)))
        gateway.stop()
        server.stop()
    return Run(put, get, round(resident / 1e6, 1))


def _theirs(scratch: Scratch, file: Path, query: str) -> Run:
    sync(scratch.directory)
    with scratch.round() as directory, SeaweedFiler(directory / "peer") as server:
        put, get = curl.put_and_get(scratch, file, server.url(PATH), query)
        return Run(put, get, round(server.resident() / 1e6, 1))
