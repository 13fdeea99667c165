"""A catalog of many objects: pages of its listing over HTTP, and the start of a gateway on it."""

from __future__ import annotations

import json
import os
import statistics
import time
from contextlib import ExitStack
from urllib.parse import quote

from bench import full_catalog
from bench.conftest import Take
from bench.gateway import Gateway
from bench.http_load import Ask, Connection
from bench.report import Round, Row
from bench.scratch import Scratch, sync
from bench.server import Server
from bench.sizes import Sizes
from ingest.catalog.catalog_socket import catalog_path

PAGE = 1000  # names
PAGE_SIZE_MAX = 1 << 20  # bytes of its JSON


def test_listing(take: Take) -> None:
    take(measure_listing)


def test_gateway_start(take: Take) -> None:
    take(measure_start)


def measure_listing(scratch: Scratch, sizes: Sizes) -> list[Row]:
    """All names, page after page, over one connection. Each must be there once, in order."""
    names = sizes.listed_names
    what = f"of a listing of {names:,} names over HTTP, {PAGE:,} a page"
    worst = Row("listing-worst", f"slowest page {what}", "ms", 20, 5, least=True)
    median = Row("listing-median", f"median page {what}", "ms", 20, 5, least=True)
    worst.notes = median.notes = {"clock": "from the request until the last byte of its answer"}
    with scratch.round() as directory, Server(directory / "data") as server:
        full_catalog.make(server.data_dir, names)
        full_catalog.bind(server.data_dir, server.put_address)
        sync(scratch.directory)
        with Gateway(server) as gateway:
            for _ in range(sizes.rounds):
                times = _list(gateway.address, names)
                ranked = sorted(times)
                details = {"pages": len(times), "p99_ms": round(ranked[len(ranked) * 99 // 100], 2)}
                worst.rounds.append(Round(ranked[-1], details=details))
                median.rounds.append(Round(statistics.median(ranked), details=details))
            gateway.stop()
        server.stop()
    return [worst, median]


def _list(address: tuple[str, int], count: int) -> list[float]:
    """Milliseconds of each page."""
    after = ""
    connection = Connection(address, Ask(lambda _: _page_request(after), None, PAGE_SIZE_MAX))
    times: list[float] = []
    number = 0
    with connection.sock:
        while True:
            connection.send(len(times))
            body = connection.receive()
            while body is None:
                body = connection.receive()
            times.append((time.perf_counter() - connection.sent_at) * 1000)
            page = json.loads(bytes(body))
            for entry in page["objects"]:
                number += 1
                assert entry["name"] == full_catalog.name(number), f"{entry['name']} is no. {number}"
            if page["next"] is None:
                break
            after = page["next"]
    assert number == count, f"{number} of {count} names were listed"
    return times


def _page_request(after: str) -> bytes:
    path = f"/objects/?after={quote(after)}&limit={PAGE}"
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()


def measure_start(scratch: Scratch, sizes: Sizes) -> list[Row]:
    """Beside a server that runs. The first answer is about an object in the middle, which only the catalog knows."""
    count = sizes.start_objects
    what = (
        f"start of a gateway with {count:,} objects in its catalog, until a HEAD of one of them is answered"
    )
    row = Row("gateway-start", what, "s", 2.0, 0.5, least=True)
    with scratch.round() as directory, Server(directory / "data") as server:
        full_catalog.make(server.data_dir, count)
        full_catalog.bind(server.data_dir, server.put_address)
        path = catalog_path(server.data_dir)
        row.notes = {
            "clock": "from the exec of the gateway; the engine runs",
            "page_cache": "nothing of the catalog is in it",
            "catalog_mb": round(path.stat().st_size / 1e6),
        }
        gateway = Gateway(server, f"/objects/{full_catalog.name(count // 2)}")
        for _ in range(sizes.start_rounds):
            sync(scratch.directory)
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            with ExitStack() as ends:
                ends.push(gateway)
                row.rounds.append(Round(gateway.start()))
                gateway.stop()
        server.stop()
    return [row]
