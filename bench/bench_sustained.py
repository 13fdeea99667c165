"""Sustained puts with `--sync disk`: new frames over four connections, against the disk's limit and against the raw sink.

The clock runs from the first connection until the server, told to end after the last ack, has made its packs durable
and exited with 0: its flush then has nothing left to hide, and what ends a server is counted too. The log and
the packs lie on the same disk, which is what a server does by default.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from bench import disk_limit, load
from bench.conftest import Take
from bench.process import MemoryWatch, Peak
from bench.report import RATIO, Round, Row
from bench.scratch import Scratch, sync
from bench.server import Server
from bench.sizes import Sizes

CONNECTIONS = 4


def test_sustained(take: Take) -> None:
    take(measure)


def measure(scratch: Scratch, sizes: Sizes) -> list[Row]:
    frames = sizes.sustained
    what = f"sustained --sync disk, {CONNECTIONS} connections, window {sizes.window:,}, {frames:,} frames"
    disk = Row("sustained-disk", f"{what}, packs synced, against the disk's limit", RATIO, 0.6, 0.85)
    raw = Row("sustained-sink", "the same against a raw TCP sink", RATIO, 0.2, 0.5)
    memory = Row(
        "memory", "memory of the largest process at that load, RssAnon + RssShmem", "MB", 200, 100, least=True
    )
    flat = Row(
        "memory-flat",
        "its peak in the second half of that load over that in the first",
        RATIO,
        1.1,
        1.02,
        least=True,
    )
    workers = len(os.sched_getaffinity(0))

    scratch.warm_page_cache(sizes.warm_size)
    limits = disk_limit.Limit(scratch.directory / "limit", sizes.log_segments)
    way, rates = limits.best_way(sizes.calibration, frames)
    disk.notes = {
        "limit": str(way),
        "limit_frames_per_s_by_way": rates,
        "limit_log_only_frames_per_s": round(limits.rate(sizes.calibration, way, packs=False)),
        "limit_packs_only_frames_per_s": round(limits.rate(sizes.calibration, way, log=False)),
        "clock": "from the first connection until the server exited with 0 after TERM",
        "page_cache": f"warmed with {sizes.warm_size >> 20} MiB before each side",
    }
    for _ in range(sizes.rounds):
        scratch.warm_page_cache(sizes.warm_size)
        limit = limits.rate(frames, way)
        sync(scratch.directory)
        scratch.warm_page_cache(sizes.warm_size)
        with scratch.round() as directory:
            ours, details, peaks = _serve(directory, sizes)
        with load.sink(workers) as address:
            dropped = load.put(
                load.options(address, bytes(32), connections=CONNECTIONS, window=sizes.window, frames=frames)
            )
        disk.rounds.append(Round.ratio(ours, limit, **details))
        raw.rounds.append(Round.ratio(ours, dropped.frames_per_s))
        largest = peaks[0]
        memory.rounds.append(Round(largest.total / 1e6, details={peak.name: _sizes(peak) for peak in peaks}))
        flat.rounds.append(Round(max(peak.second_half / peak.first_half for peak in peaks)))
    return [disk, raw, memory, flat]


def _sizes(peak: Peak) -> dict[str, float]:
    return {
        "anonymous_mb": round(peak.anonymous / 1e6, 1),
        "shared_mb": round(peak.shared / 1e6, 1),
        "first_half_mb": round(peak.first_half / 1e6, 1),
        "second_half_mb": round(peak.second_half / 1e6, 1),
    }


def _serve(directory: Path, sizes: Sizes) -> tuple[float, dict[str, Any], list[Peak]]:
    """Frames per second until all is synced, what else there is to say, and the memory of the processes."""
    with Server(directory / "data", "--sync", "disk") as server:
        how = load.options(
            server.put_address,
            server.shared_key,
            connections=CONNECTIONS,
            window=sizes.window,
            frames=sizes.sustained,
        )
        with MemoryWatch(server) as watch:
            began = time.perf_counter()
            result = load.put(how)
            acked = time.perf_counter() - began
        # The watch ends within the clock: at most one of its samples, a millisecond.
        ending = server.stop()
        seconds = time.perf_counter() - began
        checked = load.check_packs(server.data_dir, how, result, server)
    details = {
        "saved": result.saved,
        "acked_frames_per_s": round(result.frames / acked),
        "ending_s": round(ending, 3),
        "p50_ms": result.p50_ms,
        "p99_ms": result.p99_ms,
        "client_build_ns": round(result.build_ns),
        "client_send_ns": round(result.send_ns),
        "checked_on_disk": checked,
    }
    return result.frames / seconds, details, watch.peaks()
