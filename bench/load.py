"""The load generator as the rows use it, against a server and the raw sink, and a look at what came of it on disk."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import raw_sink
from bench.server import Server
from ingest import limits, mac, sharding
from ingest.loadgen import loopback
from ingest.loadgen._load_content import Content
from ingest.loadgen.loopback import LoopbackOptions, LoopbackResult

FIRST = "5000000"  # starts a pack; no probe goes there
SEED = 20_261_121
CHECKED = 256  # frames read from the packs afterwards


@contextmanager
def sink(workers: int) -> Iterator[tuple[str, int]]:
    """The address of a raw sink of so many processes."""
    port, stop = raw_sink.start(workers)
    try:
        yield ("127.0.0.1", port)
    finally:
        stop()


def options(
    connect: tuple[str, int], key: bytes, *, connections: int, window: int, **how: float
) -> LoopbackOptions:
    """``frames=`` or ``duration=``. The same tickets and data in each round: each has a directory of its own."""
    frames, duration = how.get("frames"), how.get("duration")
    return LoopbackOptions(
        connect=connect,
        key=key,
        frames=None if frames is None else int(frames),
        duration=duration,
        connections=connections,
        window=window,
        first=FIRST,
        seed=SEED,
    )


def put(load: LoopbackOptions) -> LoopbackResult:
    """Runs it. Every frame must be SAVED: what is not stored has no rate."""
    result = loopback.run(load)
    assert result.ok and result.frames > 0, f"not all SAVED: {result.statuses}"
    return result


def check_packs(data_dir: Path, load: LoopbackOptions, result: LoopbackResult, server: Server) -> int:
    """Reads frames at random places straight from the packs of a server that has ended, and compares them with
    what was sent. Returns how many."""
    content = Content(SEED)
    key = mac.derive(server.shared_key).put
    firsts = [first for share in loopback.plan(load) for first in share.firsts]
    draw = random.Random(SEED)
    for _ in range(CHECKED):
        connection = draw.randrange(len(firsts))
        if result.connection_frames[connection] == 0:
            continue
        index = firsts[connection] + draw.randrange(result.connection_frames[connection])
        path = data_dir / sharding.pack_path(sharding.ticket_pack(index))
        with open(path, "rb") as file:
            file.seek(sharding.slot_offset(sharding.ticket_slot(index)))
            stored = file.read(limits.FRAME_SIZE)
        assert stored == bytes(content.frames(key, index, 1)), (
            f"{path}: ticket {index} holds other bytes than were SAVED"
        )
    return CHECKED
