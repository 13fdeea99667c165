"""Reads: one connection over whole ranges against a raw source, and single tickets at random."""

from __future__ import annotations

import numpy as np

from bench import load
from bench.conftest import Take
from bench.raw_source import source
from bench.reader import REPLY_SIZE, ReadError, read_sequence, read_single
from bench.report import RATIO, Round, Row
from bench.scratch import Scratch
from bench.server import Server
from bench.sizes import Sizes
from ingest import limits, mac, ticket
from ingest.loadgen._load_content import Content

CONNECTIONS = 4
IN_FLIGHT = 64
FIRST = ticket.parse(load.FIRST)


def test_get(take: Take) -> None:
    take(measure)


def measure(scratch: Scratch, sizes: Sizes) -> list[Row]:
    sequential = Row(
        "get-sequential", f"sequential get of {sizes.get:,} frames, against a raw source", RATIO, 0.4, 0.8
    )
    single = Row(
        "get-random",
        f"random single gets, {IN_FLIGHT} in flight over {CONNECTIONS} connections",
        "/s",
        100_000,
        300_000,
    )
    sequential.notes = {"page_cache": "every frame was read, and checked, once before"}
    draw = np.random.default_rng(load.SEED)
    with scratch.round() as directory, Server(directory / "data") as server:
        keys = mac.derive(server.shared_key)
        load.put(
            load.options(
                server.put_address, server.shared_key, connections=1, window=sizes.window, frames=sizes.get
            )
        )
        _check(server, keys, sizes.get)
        for _ in range(sizes.rounds):
            sequential.rounds.append(_sequential(server, keys, sizes))
        for _ in range(sizes.rounds):
            indices = FIRST + draw.integers(0, sizes.get, sizes.random_gets)
            seconds = read_single(
                server.get_address, keys.get, indices, connections=CONNECTIONS, in_flight=IN_FLIGHT
            )
            single.rounds.append(Round(sizes.random_gets / seconds))
        server.stop()
    return [sequential, single]


def _sequential(server: Server, keys: mac.SubKeys, sizes: Sizes) -> Round:
    """Passes in turns, so that what else the machine does falls on both."""
    ours = peer = 0.0
    with source() as address:
        for _ in range(sizes.get_passes):
            peer += read_sequence(address, keys.get, FIRST, sizes.get)
            ours += read_sequence(server.get_address, keys.get, FIRST, sizes.get)
    frames = sizes.get_passes * sizes.get
    return Round.ratio(frames / ours, frames / peer)


def _check(server: Server, keys: mac.SubKeys, count: int) -> None:
    """Both readers once over the data, comparing every byte. ReadError."""
    content = Content(load.SEED)
    rest = bytearray()
    checked = 0

    def look(_: int, part: memoryview) -> None:
        nonlocal checked
        rest.extend(part)
        whole = len(rest) // limits.FRAME_SIZE
        if whole:
            size = whole * limits.FRAME_SIZE
            if 0 in content.check((keys.put,), bytes(rest[:size]), FIRST + checked):
                raise ReadError(f"other bytes than were put, among frames {checked} to {checked + whole}")
            checked += whole
            del rest[:size]

    read_sequence(server.get_address, keys.get, FIRST, count, look)
    assert checked == count and not rest

    indices = FIRST + np.random.default_rng(load.SEED).integers(0, count, min(count, 2000))
    expected = [iter(indices[i::CONNECTIONS].tolist()) for i in range(CONNECTIONS)]

    def look_single(connection: int, replies: memoryview) -> None:
        for at in range(0, len(replies), REPLY_SIZE):
            index = next(expected[connection])
            if replies[at + limits.RUN_HEADER_SIZE : at + REPLY_SIZE] != content.frames(keys.put, index, 1):
                raise ReadError(f"ticket {ticket.format(index)}: other bytes than were put")

    read_single(
        server.get_address, keys.get, indices, connections=CONNECTIONS, in_flight=IN_FLIGHT, look=look_single
    )
    assert all(next(left, None) is None for left in expected), "replies are missing"
