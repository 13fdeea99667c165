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
from bench.process import memory
from bench.reader import read_single
from bench.report import RATIO, Round, Row
from bench.scratch import Scratch, sync
from bench.server import Server
from bench.sizes import Sizes
from ingest import mac, ticket

DISK, OS = "disk", "os"  # our --sync
CLOSED, PIPELINED, READ, BEST = "closed", "pipelined", "read", "best"
PIPELINES = (16, 256)  # of Redis, on each connection: the fastest is taken for each number of connections
IN_FLIGHT = (4096, 16_384, 65_536)  # of ours, on all connections together, likewise
NATS_WINDOW = {"always": 16, "2m": 128}  # more of them would wait longer than the run takes, or be refused

Tried = dict[str, dict[int, dict[int, int]]]  # by side, connections and depth: records per second


def test_peers(take: Take) -> None:
    missing = [why for peer in PEERS if (why := peer.missing())]
    for why in missing:
        print(why, file=sys.stderr)
    if len(missing) == len(PEERS):
        pytest.skip("no peer is installed")
    take(measure)


@dataclass(frozen=True)
class Depth:
    """The connections of either side, and how many are on their way on each: `window` of ours, `pipeline` of Redis's."""

    connections: int
    window: int = 1
    pipeline: int = 1


@dataclass(frozen=True)
class Contest:
    """One row: what a peer does, against what ours does at the same promise (`sync`) and in the same `manner`."""

    name: str
    what: str
    sync: str
    manner: str
    connections: int
    peer: type[Peer]
    settings: dict[str, str]
    run: Callable[[Any, Sizes, Depth], Load]
    must: float | None = None
    reach: float | None = None


def _set(redis: Redis, sizes: Sizes, depth: Depth) -> Load:
    records = sizes.peer_closed if depth.pipeline == 1 else sizes.peer_pipelined
    return redis.set(records, depth.connections, depth.pipeline)


def _publish(nats: Nats, sizes: Sizes, depth: Depth) -> Load:
    window = 1 if depth.window == 1 else NATS_WINDOW[nats.settings["sync_interval"]]
    return nats.publish(sizes.peer_s, depth.connections, window)


def _write(seaweed: Seaweed, sizes: Sizes, depth: Depth) -> Load:
    return seaweed.write(sizes.peer_files, depth.connections)


def _write_fsync(seaweed: Seaweed, sizes: Sizes, depth: Depth) -> Load:
    return seaweed.write(sizes.peer_files // 4, depth.connections, fsync=True)


def _read(seaweed: Seaweed, sizes: Sizes, depth: Depth) -> Load:
    return seaweed.write_and_read(sizes.peer_files, depth.connections)[1]


ALWAYS = {"appendfsync": "always"}
EVERYSEC = {"appendfsync": "everysec"}
NO_REWRITE = {"auto_aof_rewrite_percentage": "0"}
SYNC = {"sync_interval": "always"}
NO_SYNC = {"sync_interval": "2m"}
PLAIN = "Redis, appendfsync always"
BARE = "the same Redis, never rewriting its file"
EACH_SECOND = "Redis, appendfsync everysec"
SYNCED = "NATS JetStream, sync always"
UNSYNCED = "NATS JetStream, sync every 2 min"
MANNERS = {
    CLOSED: "{} connections, one put in flight each, --sync {}, against {}",
    PIPELINED: "{} connections, pipelined, --sync {}, against {}",
    READ: "{0} connections, one get in flight each, against {2}",
}


def contests(sizes: Sizes) -> list[Contest]:
    """All of them. Neighbours with the same promise, manner and connections share one measurement of ours."""
    n = sizes.closed_connections
    few, many = sizes.pipelined_connections
    bare = ALWAYS | NO_REWRITE
    return [
        Contest("redis-always", PLAIN, DISK, CLOSED, n, Redis, ALWAYS, _set, 1.1, 1.6),
        Contest("redis-always-no-rewrite", BARE, DISK, CLOSED, n, Redis, bare, _set),
        Contest("nats-always", SYNCED, DISK, CLOSED, n, Nats, SYNC, _publish),
        Contest("seaweed-fsync", "SeaweedFS, fsync", DISK, CLOSED, n, Seaweed, {}, _write_fsync),
        Contest("redis-everysec", EACH_SECOND, OS, CLOSED, n, Redis, EVERYSEC, _set),
        Contest("nats-default", UNSYNCED, OS, CLOSED, n, Nats, NO_SYNC, _publish),
        Contest("seaweed", "SeaweedFS, no fsync", OS, CLOSED, n, Seaweed, {}, _write),
        Contest(f"redis-always-pipelined-{few}", PLAIN, DISK, PIPELINED, few, Redis, ALWAYS, _set),
        Contest(f"redis-always-no-rewrite-pipelined-{few}", BARE, DISK, PIPELINED, few, Redis, bare, _set),
        Contest(
            f"redis-always-pipelined-{many}", PLAIN, DISK, PIPELINED, many, Redis, ALWAYS, _set, 3.0, 6.0
        ),
        Contest(f"redis-always-no-rewrite-pipelined-{many}", BARE, DISK, PIPELINED, many, Redis, bare, _set),
        Contest("nats-always-pipelined", SYNCED, DISK, PIPELINED, many, Nats, SYNC, _publish),
        Contest(f"redis-everysec-pipelined-{few}", EACH_SECOND, OS, PIPELINED, few, Redis, EVERYSEC, _set),
        Contest(f"redis-everysec-pipelined-{many}", EACH_SECOND, OS, PIPELINED, many, Redis, EVERYSEC, _set),
        Contest("nats-default-pipelined", UNSYNCED, OS, PIPELINED, many, Nats, NO_SYNC, _publish),
        Contest("seaweed-read", "SeaweedFS", OS, READ, n, Seaweed, {}, _read),
    ]


def measure(scratch: Scratch, sizes: Sizes, wanted: Sequence[Contest] | None = None) -> list[Row]:
    """The rows of those contests (None: of all) whose peer is installed, and `best` of those that are in it."""
    found = [one for one in (contests(sizes) if wanted is None else wanted) if one.peer.missing() is None]
    left_out = [why for peer in PEERS if (why := peer.missing())]
    bench = _Bench(scratch, sizes)
    depths, tried = bench.depths([contest for contest in found if contest.manner == PIPELINED])
    rows = {contest.name: _row(contest) for contest in found}
    for number in range(sizes.peer_rounds):
        for (how, manner, connections), group in groupby(
            found, lambda one: (one.sync, one.manner, one.connections)
        ):
            depth = depths[connections] if manner == PIPELINED else Depth(connections)
            # Who comes first changes: what a run leaves behind on the machine falls on both.
            ours = bench.ours(how, manner, depth) if number % 2 == 0 else None
            theirs = [(contest, bench.theirs(contest, depth)) for contest in group]
            ours = ours or bench.ours(how, manner, depth)
            for contest, (rate, details) in theirs:
                rows[contest.name].rounds.append(
                    Round.ratio(ours[0], rate, our_run=ours[1], peer_run=details)
                )
    several = [rows[one.name] for one in found if one.manner == PIPELINED and one.what == PLAIN]
    result = [*rows.values(), *([best(several)] if several else [])]
    for row in result:
        row.notes |= {"depths_tried": tried} if row.notes["manner"] in (PIPELINED, BEST) else {}
        row.notes |= {"left_out": left_out} if left_out else {}
    return result


def best(rows: Sequence[Row]) -> Row:
    """Of the same contest over several numbers of connections: in each round our fastest run against the peer's fastest.

    Each side may be at another number of connections. It has the same targets as the row of many connections each.
    """
    counts = [one.notes["connections"] for one in rows]
    either = " or ".join(map(str, counts))
    what = f"{either} connections, pipelined, each side at its best of them, --sync {DISK}, against {PLAIN}"
    row = Row("redis-always-pipelined-best", what, RATIO, must=3.0, reach=6.0)
    row.notes = rows[0].notes | {"manner": BEST, "connections": counts}
    for runs in zip(*(one.rounds for one in rows), strict=True):
        ours = max(runs, key=lambda run: run.ours or 0.0)
        peer = max(runs, key=lambda run: run.peer or 0.0)
        assert ours.ours is not None and peer.peer is not None, "each run of a contest has two rates"
        row.rounds.append(
            Round.ratio(
                ours.ours, peer.peer, our_run=ours.details["our_run"], peer_run=peer.details["peer_run"]
            )
        )
    return row


def _row(contest: Contest) -> Row:
    what = MANNERS[contest.manner].format(contest.connections, contest.sync, contest.what)
    row = Row(contest.name, what, RATIO, contest.must, contest.reach)
    row.notes = {
        "manner": contest.manner,
        "sync": contest.sync,
        "connections": contest.connections,
        "peer": contest.what,
        "version": contest.peer.version(),
        "settings": contest.settings,
        "client": getattr(contest.peer, "CLIENT", ""),
        "our_client": "ingest loopback (C, one thread): signs each frame",
    }
    return row


def _fastest(rates: dict[int, int]) -> int:
    return max(rates, key=rates.__getitem__, default=1)


@dataclass(frozen=True)
class _Bench:
    scratch: Scratch
    sizes: Sizes

    def depths(self, pipelined: Sequence[Contest]) -> tuple[dict[int, Depth], Tried]:
        """For each number of connections of these contests, the depths at which either side is fastest, by runs half
        as long; and the rates of all that were tried: by side, number of connections and depth."""
        tried: Tried = {"ours": {}, "redis": {}}
        found = {}
        for connections in sorted({contest.connections for contest in pipelined}):
            redis = any(one.peer is Redis and one.connections == connections for one in pipelined)
            ours = self._try_windows(connections)
            theirs = self._try_pipelines(connections) if redis else {}
            tried["ours"][connections], tried["redis"][connections] = ours, theirs
            found[connections] = Depth(connections, _fastest(ours), _fastest(theirs))
        return found, tried

    def _try_windows(self, connections: int) -> dict[int, int]:
        rates = {}
        for window in (total // connections for total in IN_FLIGHT):
            rate, _ = self.ours(DISK, PIPELINED, Depth(connections, window), share=2)
            rates[window] = round(rate)
        return rates

    def _try_pipelines(self, connections: int) -> dict[int, int]:
        rates = {}
        for pipeline in PIPELINES:
            with self._directory() as directory, Redis(directory / "redis", **ALWAYS) as server:
                done = server.set(self.sizes.peer_pipelined // 2, connections, pipeline)
            rates[pipeline] = round(done.rate)
        return rates

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
            details |= {"connections": depth.connections, "pipeline": depth.pipeline}
        return done.rate, details

    def ours(self, how: str, manner: str, depth: Depth, share: int = 1) -> tuple[float, dict[str, Any]]:
        """Rate and details; `share`: of a run, for one that is that much shorter."""
        with self._directory() as directory, Server(directory / "data", "--sync", how) as server:
            if manner == READ:
                return self._read(server, depth.connections)
            amount: dict[str, float] = (
                {"duration": self.sizes.peer_s}
                if manner == CLOSED
                else {"frames": self.sizes.pipelined // share}
            )
            options = load.options(
                server.put_address,
                server.shared_key,
                connections=depth.connections,
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
            "connections": depth.connections,
            "window": depth.window,
            "p50_ms": result.p50_ms,
            "p99_ms": result.p99_ms,
            "memory_mb": round(resident / 1e6, 1),
            "disk_bytes_per_record": round(packs / result.frames),
            "log_mb": round(log / 1e6),
        }

    def _read(self, server: Server, connections: int) -> tuple[float, dict[str, Any]]:
        sizes = self.sizes
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
