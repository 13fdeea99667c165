"""The worst that tickets can do: one frame for each of a million packs, in random order; then SIGKILL, and a new start."""

from __future__ import annotations

import random
import time
from pathlib import Path

from bench.conftest import Take
from bench.random_tickets import RandomTickets
from bench.report import Round, Row
from bench.scratch import Scratch
from bench.server import Server
from bench.sizes import Sizes

CONNECTIONS = 4
CHECKED = 200  # acked frames read back after the new start


def test_random_tickets(take: Take) -> None:
    take(measure)


def measure(scratch: Scratch, sizes: Sizes) -> list[Row]:
    rate = Row(
        "random-tickets",
        f"tickets in random order over {sizes.packs:,} packs, {CONNECTIONS} connections",
        "/s",
    )
    start = Row("random-restart", "start after kill -9 in the middle of it", "s", 5.0, 2.0, least=True)
    for number in range(sizes.rounds):
        with scratch.round() as directory:
            one, two = _round(directory, sizes, seed=number)
        rate.rounds.append(one)
        start.rounds.append(two)
    return [rate, start]


def _round(directory: Path, sizes: Sizes, seed: int) -> tuple[Round, Round]:
    with Server(directory / "data") as server:
        load = RandomTickets(
            server.put_address, server.shared_key, packs=sizes.packs, connections=CONNECTIONS, seed=seed
        )
        began = time.perf_counter()
        load.start()
        load.wait(sizes.random_s)
        acked = load.acked
        seconds = time.perf_counter() - began
        log_used = server.metric("ingest_log_used_bytes")
        dirty = server.metric("ingest_dirty_packs")
        load.expect_the_end()
        server.kill()
        positions = load.join()
        assert acked > 0, "the server was killed before it had acked anything"
        started = server.start()
        for position in random.Random(seed).sample(positions, min(CHECKED, len(positions))):
            server.expect_frame(load.frame(position))
        server.stop()
    return (
        Round(acked / seconds, details={"frames": acked, "seconds": round(seconds, 2)}),
        Round(started, details={"log_used_mib": round(log_used / 2**20), "dirty_packs": round(dirty)}),
    )
