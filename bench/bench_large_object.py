"""One large object: PUT and GET of a file with curl, against `ingest loopback` putting and reading as many chunks.

Both go to the same server, in turns, each when the disk is idle. The load generator signs what it puts, and compares what it
reads; over HTTP the gateway does that. What is read was read, and compared, once before, on both sides.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace

import pytest

from bench import curl, load
from bench.conftest import Take
from bench.gateway import Gateway
from bench.process import MemoryWatch
from bench.report import RATIO, Round, Row
from bench.scratch import Scratch, sync
from bench.server import Server
from bench.sizes import Sizes
from ingest.catalog.extent import chunks_needed
from ingest.loadgen import loopback
from ingest.loadgen.load_share import Loader
from ingest.status import Status

CONNECTIONS = 4
PATH = "/objects/large"


def test_large_object(take: Take) -> None:
    if why := curl.missing():
        print(f"large-put and large-get are left out: {why}", file=sys.stderr)
        pytest.skip(why)
    take(measure)


def measure(scratch: Scratch, sizes: Sizes) -> list[Row]:
    chunks = chunks_needed(sizes.large_size)
    what = f"of a file of {sizes.large_size >> 20:,} MiB with curl, against `ingest loopback`"
    put = Row("large-put", f"PUT {what} putting {chunks:,} chunks", RATIO, 0.4, 0.7)
    get = Row("large-get", f"GET {what} reading them", RATIO, 0.3, 0.6)
    put.notes = {"loopback": f"{CONNECTIONS} connections, window {sizes.window:,}"}
    get.notes = {"loopback": "one connection, which compares", "page_cache": "all was read once before"}
    scratch.warm_page_cache(sizes.warm_size)
    with curl.large_file(scratch.directory, sizes.large_size) as file:
        for number in range(sizes.rounds):
            with (
                scratch.round() as directory,
                Server(directory / "data") as server,
                Gateway(server) as gateway,
            ):
                # In turns, so that neither side always comes first.
                theirs = _loopback(scratch, server, chunks, sizes) if number % 2 else None
                with MemoryWatch(gateway) as watch:
                    ours = curl.put_and_get(scratch, file, gateway.url(PATH))
                theirs = theirs or _loopback(scratch, server, chunks, sizes)
                gateway.stop()
                server.stop()
            largest = round(watch.peaks()[0].total / 1e6, 1)
            for row, our, rate in zip((put, get), ours, theirs, strict=True):
                row.rounds.append(
                    Round.ratio(our.rate, rate, our_run=our.details(), largest_process_mb=largest)
                )
    return [put, get]


def _loopback(scratch: Scratch, server: Server, chunks: int, sizes: Sizes) -> tuple[float, float]:
    """Frames per second put, and read."""
    how = load.options(
        server.put_address, server.shared_key, connections=CONNECTIONS, window=sizes.window, frames=chunks
    )
    (share,) = loopback.plan(replace(how, read_connect=server.get_address))
    worker = Loader(share)
    try:
        worker.connect()
        sync(scratch.directory)
        worker.start(time.monotonic_ns())
        while not worker.step():
            pass
        report = worker.report()
        assert report.statuses == {Status.SAVED: chunks}, f"not all SAVED: {report.statuses}"
        put = chunks / max(seconds for _, _, seconds in report.connections)
        _read(worker, chunks)
        sync(scratch.directory)
        return put, chunks / _read(worker, chunks)
    finally:
        worker.close()


def _read(worker: Loader, chunks: int) -> float:
    """Seconds. Every frame must come back as it was put."""
    before = worker.report().verified
    began = time.perf_counter()
    for _ in worker.verify():
        pass
    seconds = time.perf_counter() - began
    report = worker.report()
    assert report.verified - before == chunks and not report.wrong, f"read back: {report.problems}"
    return seconds
