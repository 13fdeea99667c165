"""Many connections: one frame in flight on each, against the raw sink; and a thousand of them, of which none may starve."""

from __future__ import annotations

import os

from bench import load
from bench.conftest import Take
from bench.report import RATIO, Round, Row
from bench.scratch import Scratch
from bench.server import Server
from bench.sizes import Sizes

CROWD_WINDOW = 16


def test_closed_loop(take: Take) -> None:
    take(measure_closed_loop)


def test_crowd(take: Take) -> None:
    take(measure_crowd)


def measure_closed_loop(scratch: Scratch, sizes: Sizes) -> list[Row]:
    """With one frame in flight each, the round trip is what counts, and whatever commits wait for."""
    row = Row(
        "closed-loop",
        f"{sizes.closed_connections} connections, one frame in flight each, against a raw sink",
        RATIO,
        0.4,
        0.7,
    )
    for _ in range(sizes.rounds):
        with load.sink(len(os.sched_getaffinity(0))) as address:
            peer = load.put(
                load.options(
                    address,
                    bytes(32),
                    connections=sizes.closed_connections,
                    window=1,
                    duration=sizes.closed_s,
                )
            )
        with scratch.round() as directory, Server(directory / "data") as server:
            how = load.options(
                server.put_address,
                server.shared_key,
                connections=sizes.closed_connections,
                window=1,
                duration=sizes.closed_s,
            )
            ours = load.put(how)
            server.stop()
            load.check_packs(server.data_dir, how, ours, server)
        row.rounds.append(
            Round.ratio(
                ours.frames_per_s,
                peer.frames_per_s,
                p50_ms=ours.p50_ms,
                p99_ms=ours.p99_ms,
                p999_ms=ours.p999_ms,
                sink_p50_ms=peer.p50_ms,
                sink_p99_ms=peer.p99_ms,
            )
        )
    return [row]


def measure_crowd(scratch: Scratch, sizes: Sizes) -> list[Row]:
    """All send for the same time; the slowest connection's frames over the mean of all."""
    row = Row(
        "crowd",
        f"{sizes.crowd_connections:,} connections, window {CROWD_WINDOW}: the slowest over the mean",
        RATIO,
        0.2,
        0.5,
    )
    for _ in range(sizes.rounds):
        with scratch.round() as directory, Server(directory / "data") as server:
            how = load.options(
                server.put_address,
                server.shared_key,
                connections=sizes.crowd_connections,
                window=CROWD_WINDOW,
                duration=sizes.crowd_s,
            )
            result = load.put(how)
            server.stop()
            load.check_packs(server.data_dir, how, result, server)
        counts = result.connection_frames
        mean = sum(counts) / len(counts)
        row.rounds.append(
            Round(
                min(counts) / mean,
                details={
                    "slowest_frames": min(counts),
                    "mean_frames": round(mean),
                    "fastest_frames": max(counts),
                    "frames_per_s": round(result.frames_per_s),
                    "p99_ms": result.p99_ms,
                },
            )
        )
    return [row]
