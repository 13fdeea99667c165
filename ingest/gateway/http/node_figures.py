"""The live figures of the node, for the page: what a browser may not ask the engine's admin port for itself.

They are counters and levels, as Prometheus sees them: who asks twice has the rates. Each is the sum over all processes of a
node. What they mean: `docs/operations.md`, "Metrics".
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any, Self

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from ingest.errors import ConnectionLostError, PeerError
from ingest.gateway.http.shared_look import SharedLook
from ingest.limits import FIGURES_KEPT_S, FIGURES_SIZE_MAX, FIGURES_TIMEOUT_S
from ingest.runtime.listeners import Address, format_address

_HISTOGRAM = "ingest_commit_latency_seconds"
_NAMES = (
    "ingest_ready",
    "ingest_frames_received_total",
    "ingest_bytes_received_total",
    "ingest_get_frames_total",
    "ingest_get_bytes_total",
    "ingest_outstanding_frames",
    "ingest_queue_places",
    "ingest_log_used_bytes",
    "ingest_log_size_bytes",
    "ingest_disk_free_bytes",
    "ingest_disk_size_bytes",
    "ingest_disk_reserve_bytes",
    f"{_HISTOGRAM}_bucket",
    f"{_HISTOGRAM}_count",
    f"{_HISTOGRAM}_sum",
)


def parse_figures(text: str) -> dict[str, Any]:
    """Of what `/metrics` says. ValueError when something is missing or is no number."""
    sums = dict.fromkeys(_NAMES, 0.0)
    samples = dict.fromkeys(_NAMES, 0)
    buckets: dict[str, float] = {}
    for family in text_string_to_metric_families(_of_interest(text)):
        for sample in family.samples:
            if sample.labels.get("file_system", "data") != "data" or sample.name not in sums:
                continue
            sums[sample.name] += sample.value
            samples[sample.name] += 1
            if sample.name == f"{_HISTOGRAM}_bucket":
                bound = sample.labels.get("le", "")
                buckets[bound] = buckets.get(bound, 0.0) + sample.value
    missing = [name for name in _NAMES if not samples[name]]
    if missing:
        raise ValueError(f"there is no {missing[0]}")
    number = {name.removeprefix("ingest_"): int(value) for name, value in sums.items()}
    return {
        "ready": bool(number["ready"]),
        "received": {"frames": number["frames_received_total"], "bytes": number["bytes_received_total"]},
        "sent": {"frames": number["get_frames_total"], "bytes": number["get_bytes_total"]},
        "queue": {
            "frames": number["outstanding_frames"],
            # The places of one worker, times the workers.
            "places": number["queue_places"] * samples["ingest_outstanding_frames"],
        },
        "commits": {
            "count": number["commit_latency_seconds_count"],
            "seconds": sums[f"{_HISTOGRAM}_sum"],
            "latency": [
                [None if bound == "+Inf" else float(bound), int(count)] for bound, count in buckets.items()
            ],
        },
        "log": {"used": number["log_used_bytes"], "size": number["log_size_bytes"]},
        "disk": {
            "free": number["disk_free_bytes"],
            "size": number["disk_size_bytes"],
            "reserve": number["disk_reserve_bytes"],
        },
    }


def _of_interest(text: str) -> str:
    """The samples that are summed, and their types: a tenth of it, and the parser is slow."""
    wanted = (*_NAMES, _HISTOGRAM)
    lines = text.splitlines(keepends=True)
    return "".join(line for line in lines if line.removeprefix("# TYPE ").startswith(wanted))


class NodeFigures:
    """Asks the admin port that ``address`` finds, once for all who ask within `FIGURES_KEPT_S`, also when that fails.

    ``prove``: looks whether the engine is the one that is meant, and raises ForeignStoreError if it is not."""

    def __init__(
        self, address: Callable[[], Address], prove: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        self._address = address
        self._prove = prove
        self._session: aiohttp.ClientSession | None = None
        self._shared = SharedLook(self._read, FIGURES_KEPT_S)

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(FIGURES_TIMEOUT_S))
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._session is not None
        await self._session.close()

    async def read(self) -> dict[str, Any]:
        """`parse_figures`, and ``time``: of the machine's monotonic clock, in seconds, at which they were read.
        ConnectionLostError when the port can't be reached, PeerError when what answers there is no node, ForeignStoreError
        when the engine is another one."""
        return await self._shared.read()

    async def _read(self) -> dict[str, Any]:
        assert self._session is not None
        if self._prove is not None:
            with contextlib.suppress(PeerError, TimeoutError):  # then the figures say how the engine is
                async with asyncio.timeout(FIGURES_TIMEOUT_S):
                    await self._prove()
        address = format_address(self._address())
        body = bytearray()
        try:
            async with self._session.get(f"http://{address}/metrics", allow_redirects=False) as response:
                now = time.monotonic()
                async for piece in response.content.iter_any():
                    body += piece
                    if len(body) > FIGURES_SIZE_MAX:
                        raise PeerError(f"what answers at {address} is no admin port of a node")
            return {"time": now, **parse_figures(body.decode())}
        except (aiohttp.ClientError, TimeoutError) as error:
            number = error.errno if isinstance(error, OSError) else None
            reason = os.strerror(number) if number else "it does not answer"
            raise ConnectionLostError(
                f"the admin port of the node, {address}, can't be reached: {reason.lower()}"
            ) from error
        except ValueError as error:
            raise PeerError(f"what answers at {address} is no admin port of a node: {error}") from error
