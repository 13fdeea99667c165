"""Small objects over HTTP: new ones, then random ones of those, against a bare aiohttp handler, by the same client.

Every object has bytes of its own, and every byte that comes back is compared; the handler answers with the same bytes each
time. Both share the port among as many processes. The gateway's answer to a PUT comes when the object is durable.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from itertools import count

import numpy as np

from bench import http_load, load
from bench.bare_http import bare_handler
from bench.conftest import Take
from bench.gateway import Gateway
from bench.http_load import Ask, Done
from bench.process import MemoryWatch
from bench.report import RATIO, Round, Row
from bench.scratch import Scratch, sync
from bench.server import Server
from bench.sizes import Sizes

SIZE = 1024  # bytes of an object
ANSWER_SIZE_MAX = 2048  # bytes of the answer to a PUT
NUMBER = b"%012d"
# Not one percent sign among them: bodies are made with the operator %.
FILLER = random.Random(load.SEED).randbytes(SIZE // 2).hex().encode()[: SIZE - len(NUMBER % 0)]
BODY = NUMBER + FILLER
PUT_REQUEST = (
    b"PUT /objects/small/"
    + NUMBER
    + b" HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n" % SIZE
    + BODY
)
GET_REQUEST = b"GET /objects/small/" + NUMBER + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"

PUT = Ask(lambda number: PUT_REQUEST % (number, number), None, ANSWER_SIZE_MAX)
GET = Ask(lambda number: GET_REQUEST % number, lambda number: BODY % number, SIZE)
GET_BARE = Ask(lambda number: GET_REQUEST % number, lambda _: BODY % 0, SIZE)


def test_small_objects(take: Take) -> None:
    take(measure)


def measure(scratch: Scratch, sizes: Sizes) -> list[Row]:
    clients = sizes.small_clients
    processes = len(os.sched_getaffinity(0))
    what = f"objects of {SIZE:,} bytes, {clients} clients"
    put = Row("small-put", f"{what}: new ones, against a bare aiohttp handler", RATIO, 0.06, 0.25)
    get = Row("small-get", f"{what}: random GETs of them, against the same", RATIO, 0.2, 0.6)
    for row in (put, get):
        row.notes = {
            "client": "bench/http_load.py (Python, one thread: epoll, prepared requests), the same on both sides",
            "processes": f"{processes} share the port by SO_REUSEPORT, on both sides, and the machine with the client",
        }
    for number in range(sizes.rounds):
        bare = _bare(sizes, processes) if number % 2 == 0 else None
        with scratch.round() as directory, Server(directory / "data") as server:
            ours = _ours(scratch, server, sizes)
            server.stop()
        bare = bare or _bare(sizes, processes)
        for row, our, theirs in zip((put, get), ours[:2], bare, strict=True):
            details = {"our_run": our.details(), "peer_run": theirs.details()}
            row.rounds.append(Round.ratio(our.rate, theirs.rate, **details))
        put.rounds[-1].details["largest_process_mb"] = ours[2]
    return [put, get]


def _ours(scratch: Scratch, server: Server, sizes: Sizes) -> tuple[Done, Done, float]:
    """What came of the PUTs and of the GETs, and the memory of the largest process of the gateway, MB."""
    with Gateway(server) as gateway:
        sync(scratch.directory)
        with MemoryWatch(gateway) as watch:
            put = http_load.load(gateway.address, sizes.small_clients, sizes.small_s, PUT, count())
            sync(scratch.directory)
            numbers = _random(put.requests)
            get = http_load.load(gateway.address, sizes.small_clients, sizes.small_s, GET, numbers)
        gateway.stop()
    return put, get, round(watch.peaks()[0].total / 1e6, 1)


def _bare(sizes: Sizes, processes: int) -> tuple[Done, Done]:
    with bare_handler(processes, BODY % 0) as address:
        put = http_load.load(address, sizes.small_clients, sizes.small_s, PUT, count())
        get = http_load.load(address, sizes.small_clients, sizes.small_s, GET_BARE, _random(put.requests))
    return put, get


def _random(below: int) -> Iterator[int]:
    draw = np.random.default_rng(load.SEED)
    while True:
        yield from draw.integers(0, below, 4096).tolist()
