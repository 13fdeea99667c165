"""Against peers: the same records, as many clients, the same disk, in turns with ours. `make peers`.

Each pair makes the same promise: ours with `--sync disk` against peers that sync before they answer, ours with `--sync os`
against peers that answer first. Every measurement starts a fresh server in an empty directory, with an idle disk.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import load
from bench.conftest import Take
from bench.peer import PEERS, Load, Nats, Peer, Redis, Seaweed, disk_size
from bench.reader import read_single
from bench.report import RATIO, Round, Row
from bench.scratch import Scratch, sync
from bench.server import Server, memory
from bench.sizes import Sizes
from ingest import mac, ticket

DISK, OS = "disk", "os"  # our --sync
CLOSED, PIPELINED, READ = "closed", "pipelined", "read"
DEPTHS = (16, 64, 256)  # requests on their way on each connection, of which the fastest is taken
WINDOWS = (64, 256, 1024)  # the same of ours
NATS_WINDOW = {"always": 16, "2m": 128}  # more of them would wait longer than the run takes, or be refused


def test_peers(take: Take) -> None:
    missing = [why for peer in PEERS if (why := peer.missing())]
    for why in missing:
        print(why, file=sys.stderr)
    if len(missing) == len(PEERS):
        pytest.skip("no peer is installed")
    take(measure)


@dataclass(frozen=True)
class Depth:
    """How many are on their way on each connection: `window` of ours, `pipeline` of Redis's."""

    window: int = 1
    pipeline: int = 1


@dataclass(frozen=True)
class Contest:
    """One row: what a peer does, against what ours does at the same promise (`sync`) and in the same `manner`."""

    name: str
    what: str
    sync: str
    manner: str
    peer: type[Peer]
    settings: dict[str, str]
    run: Callable[[Any, Sizes, Depth], Load]
    must: float | None = None
    reach: float | None = None


def _set(redis: Redis, sizes: Sizes, depth: Depth) -> Load:
    records = sizes.peer_closed if depth.pipeline == 1 else sizes.peer_pipelined
    return redis.set(records, sizes.closed_connections, depth.pipeline)


def _publish(nats: Nats, sizes: Sizes, depth: Depth) -> Load:
    window = 1 if depth.window == 1 else NATS_WINDOW[nats.settings["sync_interval"]]
    return nats.publish(sizes.peer_s, sizes.closed_connections, window)


def _write(seaweed: Seaweed, sizes: Sizes, _: Depth) -> Load:
    return seaweed.write(sizes.peer_files, sizes.closed_connections)


def _write_fsync(seaweed: Seaweed, sizes: Sizes, _: Depth) -> Load:
    return seaweed.write(sizes.peer_files // 4, sizes.closed_connections, fsync=True)


def _read(seaweed: Seaweed, sizes: Sizes, _: Depth) -> Load:
    return seaweed.write_and_read(sizes.peer_files, sizes.closed_connections)[1]


ALWAYS = {"appendfsync": "always"}
EVERYSEC = {"appendfsync": "everysec"}
NO_REWRITE = {"auto_aof_rewrite_percentage": "0"}
SYNC = {"sync_interval": "always"}
NO_SYNC = {"sync_interval": "2m"}
PLAIN = "Redis, appendfsync always"
BARE = "the same Redis, never rewriting its file"
# Neighbours with the same promise and manner share one measurement of ours.
CONTESTS = (
    Contest("redis-always", PLAIN, DISK, CLOSED, Redis, ALWAYS, _set, 1.1, 1.6),
    Contest("redis-always-no-rewrite", BARE, DISK, CLOSED, Redis, ALWAYS | NO_REWRITE, _set),
    Contest("nats-always", "NATS JetStream, sync always", DISK, CLOSED, Nats, SYNC, _publish),
    Contest("seaweed-fsync", "SeaweedFS, fsync", DISK, CLOSED, Seaweed, {}, _write_fsync),
    Contest("redis-everysec", "Redis, appendfsync everysec", OS, CLOSED, Redis, EVERYSEC, _set),
    Contest("nats-default", "NATS JetStream, sync every 2 min", OS, CLOSED, Nats, NO_SYNC, _publish),
    Contest("seaweed", "SeaweedFS, no fsync", OS, CLOSED, Seaweed, {}, _write),
    Contest("redis-always-pipelined", PLAIN, DISK, PIPELINED, Redis, ALWAYS, _set, 3.0, 6.0),
    Contest("redis-always-no-rewrite-pipelined", BARE, DISK, PIPELINED, Redis, ALWAYS | NO_REWRITE, _set),
    Contest("nats-always-pipelined", "NATS JetStream, sync always", DISK, PIPELINED, Nats, SYNC, _publish),
    Contest("redis-everysec-pipelined", "Redis, appendfsync everysec", OS, PIPELINED, Redis, EVERYSEC, _set),
    Contest(
        "nats-default-pipelined", "NATS JetStream, sync every 2 min", OS, PIPELINED, Nats, NO_SYNC, _publish
    ),
    Contest("seaweed-read", "SeaweedFS", OS, READ, Seaweed, {}, _read),
)
MANNERS = {
    CLOSED: "{} connections, one put in flight each, --sync {}, against {}",
    PIPELINED: "{} connections, pipelined, --sync {}, against {}",
    READ: "{0} connections, one get in flight each, against {2}",
}


def measure(scratch: Scratch, sizes: Sizes, wanted: Sequence[Contest] = CONTESTS) -> list[Row]:
    """The rows of those contests whose peer is installed."""
    contests = [contest for contest in wanted if contest.peer.missing() is None]
    left_out = [why for peer in PEERS if (why := peer.missing())]
    bench = _Bench(scratch, sizes)
    depths = Depth()
    tried: dict[str, dict[int, int]] = {}
    if any(contest.manner == PIPELINED for contest in contests):
        depths, tried = bench.depths(any(contest.peer is Redis for contest in contests))
    rows = {contest.name: _row(contest, sizes) for contest in contests}
    for row in rows.values():
        row.notes |= {"depths_tried": tried} if row.notes["manner"] == PIPELINED else {}
        row.notes |= {"left_out": left_out} if left_out else {}
    for number in range(sizes.peer_rounds):
        for (how, manner), group in groupby(contests, lambda contest: (contest.sync, contest.manner)):
            depth = depths if manner == PIPELINED else Depth()
            # Who comes first changes: what a run leaves behind on the machine falls on both.
            ours = bench.ours(how, manner, depth) if number % 2 == 0 else None
            theirs = [(contest, bench.theirs(contest, depth)) for contest in group]
            ours = ours or bench.ours(how, manner, depth)
            for contest, (rate, details) in theirs:
                rows[contest.name].rounds.append(
                    Round.ratio(ours[0], rate, our_run=ours[1], peer_run=details)
                )
    return list(rows.values())


def _row(contest: Contest, sizes: Sizes) -> Row:
    what = MANNERS[contest.manner].format(sizes.closed_connections, contest.sync, contest.what)
    row = Row(contest.name, what, RATIO, contest.must, contest.reach)
    row.notes = {
        "manner": contest.manner,
        "sync": contest.sync,
        "peer": contest.what,
        "version": contest.peer.version(),
        "settings": contest.settings,
        "client": getattr(contest.peer, "CLIENT", ""),
        "our_client": "ingest loopback (C, one thread): signs each frame",
    }
    return row


@dataclass(frozen=True)
class _Bench:
    scratch: Scratch
    sizes: Sizes

    def depths(self, redis: bool) -> tuple[Depth, dict[str, dict[int, int]]]:
        """The depths at which either side is fastest, by shorter runs, and what those were."""
        tried: dict[str, dict[int, int]] = {"ours": {}, "redis": {}}
        for window in WINDOWS:
            rate, _ = self.ours(DISK, PIPELINED, Depth(window), share=2)
            tried["ours"][window] = round(rate)
        for pipeline in DEPTHS if redis else ():
            with self._directory() as directory, Redis(directory / "redis", **ALWAYS) as server:
                done = server.set(self.sizes.peer_pipelined // 2, self.sizes.closed_connections, pipeline)
                tried["redis"][pipeline] = round(done.rate)
        best = {side: max(rates, key=lambda depth: rates[depth], default=1) for side, rates in tried.items()}
        return Depth(best["ours"], best["redis"]), tried

    def _directory(self) -> AbstractContextManager[Path]:
        """An empty directory; the disk has written what was before."""
        sync(self.scratch.directory)
        return self.scratch.round()

    def theirs(self, contest: Contest, depth: Depth) -> tuple[float, dict[str, Any]]:
        with self._directory() as directory:
            data = directory / "peer"
            with contest.peer(data, **contest.settings) as server:
                done = contest.run(server, self.sizes, depth)
                resident = server.resident()
                taken = disk_size(data)
        details = done.details() | {
            "memory_mb": round(resident / 1e6, 1),
            "disk_bytes_per_record": round(taken / done.records),
        }
        if contest.manner == PIPELINED and contest.peer is Redis:
            details["pipeline"] = depth.pipeline
        return done.rate, details

    def ours(self, how: str, manner: str, depth: Depth, share: int = 1) -> tuple[float, dict[str, Any]]:
        """Rate and details; `share`: of a run, for one that is that much shorter."""
        with self._directory() as directory, Server(directory / "data", "--sync", how) as server:
            if manner == READ:
                return self._read(server)
            amount: dict[str, float] = (
                {"duration": self.sizes.peer_s}
                if manner == CLOSED
                else {"frames": self.sizes.peer_pipelined // share}
            )
            options = load.options(
                server.put_address,
                server.shared_key,
                connections=self.sizes.closed_connections,
                window=depth.window,
                **amount,
            )
            result = load.put(options)
            resident = sum(found.total for pid in server.pids() if (found := memory(pid)))
            server.stop()
            load.check_packs(server.data_dir, options, result, server)
            log = disk_size(server.data_dir / ".ingest")
            packs = disk_size(server.data_dir) - log
        return result.frames_per_s, {
            "records": result.frames,
            "window": depth.window,
            "p50_ms": result.p50_ms,
            "p99_ms": result.p99_ms,
            "memory_mb": round(resident / 1e6, 1),
            "disk_bytes_per_record": round(packs / result.frames),
            "log_mb": round(log / 1e6),
        }

    def _read(self, server: Server) -> tuple[float, dict[str, Any]]:
        sizes = self.sizes
        connections = sizes.closed_connections
        load.put(
            load.options(
                server.put_address, server.shared_key, connections=1, window=1024, frames=sizes.peer_files
            )
        )
        draw = np.random.default_rng(load.SEED)
        indices = ticket.parse(load.FIRST) + draw.integers(0, sizes.peer_files, 4 * sizes.peer_files)
        key = mac.derive(server.shared_key).get
        seconds = read_single(
            server.get_address, key, indices, connections=connections, in_flight=connections
        )
        server.stop()
        return len(indices) / seconds, {"records": len(indices)}
