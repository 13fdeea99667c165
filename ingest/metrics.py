"""What the processes of a server count, and how Prometheus sees it. The rows themselves: `csrc/counters.h`.

Every sample carries the label ``process``, so that sums and single processes are both there. Base units: bytes,
seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from ingest import __version__, _queue, limits
from ingest.status import Status

if TYPE_CHECKING:
    from ingest._queue import Queue

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4


@dataclass(frozen=True)
class Counter:
    """One number of a row. ``name`` is its C name without ``C_``; several may be one metric, told apart by labels."""

    name: str
    role: str  # whose row it is counted in: worker, committer, parent
    metric: str  # without the prefix ``ingest_`` and the suffix ``_total``
    help: str
    labels: dict[str, str] = field(default_factory=dict)
    scale: float = 1  # to the base unit


def _acks() -> Iterator[Counter]:
    for status in Status:
        labels = {"status": status.name.lower()}
        yield Counter(f"ACKS_{status.name}", "worker", "acks", "Acks sent, by status.", labels)


def _worker(name: str, help: str, metric: str = "", **labels: str) -> Counter:
    return Counter(name, "worker", metric or name.lower(), help, labels)


def _committer(name: str, help: str, metric: str = "", scale: float = 1) -> Counter:
    return Counter(name, "committer", metric or name.lower(), help, scale=scale)


_ACCEPTED = "Connections accepted."
_REFUSED = "Connections refused: over the limit, or from a bad peer."
_CLOSED = "Connections that the server closed, by reason."

# In the order of csrc/counters.h.
COUNTERS: tuple[Counter, ...] = (
    _worker("FRAMES_RECEIVED", "Whole frames received."),
    _worker("BYTES_RECEIVED", "Bytes received on the put port."),
    _worker("PARTIAL_FRAMES", "Frames cut off by the end of their connection, and dropped."),
    *_acks(),
    _worker("PUT_ACCEPTED", _ACCEPTED, "connections_accepted", port="put"),
    _worker("PUT_REFUSED", _REFUSED, "connections_refused", port="put"),
    _worker("PUT_CLOSED_BAD", _CLOSED, "connections_closed", port="put", reason="bad_frames"),
    _worker("PUT_CLOSED_TIMEOUT", _CLOSED, "connections_closed", port="put", reason="timeout"),
    _worker("PUT_PASSED", "Accepted connections passed on to a sibling.", "connections_passed", port="put"),
    _worker("GET_ACCEPTED", _ACCEPTED, "connections_accepted", port="get"),
    _worker("GET_REFUSED", _REFUSED, "connections_refused", port="get"),
    _worker("GET_CLOSED_TIMEOUT", _CLOSED, "connections_closed", port="get", reason="timeout"),
    _worker("GET_REQUESTS", "Get and inventory requests."),
    _worker("GET_REQUESTS_BAD", "Get and inventory requests that were malformed or not authentic."),
    _worker("GET_FRAMES", "Frames sent to readers."),
    _worker("GET_BYTES", "Bytes sent to readers."),
    _worker("GET_ERRORS", "Runs answered with ERROR."),
    _committer("COMMITS", "Batches of the log that were synced."),
    _committer("COMMIT_FRAMES", "Frames in those batches."),
    _committer("COMMIT_BYTES", "Bytes written to the log."),
    _committer("COMMIT_NANOSECONDS", "Time from taking a batch to its sync.", "commit_seconds", 1e-9),
    _committer("BULK_RUNS", "Runs written straight to their packs, without the log."),
    _committer("BULK_FRAMES", "Frames in those runs."),
    _committer("PACKS_CREATED", "Pack files created."),
    _committer("FLUSHES", "Syncs of the file system that made packs durable."),
    _committer("FLUSH_NANOSECONDS", "Time that those took.", "flush_seconds", 1e-9),
    _committer("SYNC_FAILURES", "Syncs that failed."),
    _committer("DELETED_TICKETS", "Tickets deleted."),
    _committer("DUPLICATES", "Frames that were stored already, with the same bytes."),
    _committer("RECOVERIES", "Recoveries of the store."),
    _committer("RECOVERED_FRAMES", "Frames that recoveries took from the log."),
    _committer("LOG_STALLS", "Commits that waited for space in the log."),
    Counter("WORKER_RESTARTS", "parent", "worker_restarts", "Workers that died and were replaced."),
    Counter("COMMITTER_RESTARTS", "parent", "committer_restarts", "Committers that died and were replaced."),
    _worker("PUT_CLOSED_HANDSHAKE", _CLOSED, "connections_closed", port="put", reason="tls_handshake"),
    _worker("PUT_CLOSED_NOT_TLS", _CLOSED, "connections_closed", port="put", reason="not_tls"),
    _worker("GET_CLOSED_HANDSHAKE", _CLOSED, "connections_closed", port="get", reason="tls_handshake"),
    _worker("GET_CLOSED_NOT_TLS", _CLOSED, "connections_closed", port="get", reason="not_tls"),
)

INDEX = {counter.name: index for index, counter in enumerate(COUNTERS)}


@dataclass(frozen=True)
class Histogram:
    """Buckets of a row: bucket i counts values above 2^(i-1) and up to 2^i, the last one everything above."""

    start: int
    buckets: int
    metric: str
    help: str
    unit: float  # of the bounds, to the base unit
    sum: str  # the counter that has the sum
    sum_scale: float


_SIZE_BUCKETS = 16
_LATENCY_BUCKETS = 24

HISTOGRAMS = (
    Histogram(
        len(COUNTERS), _SIZE_BUCKETS, "commit_size_frames", "Frames of a batch.", 1, "COMMIT_FRAMES", 1
    ),
    Histogram(
        len(COUNTERS) + _SIZE_BUCKETS,
        _LATENCY_BUCKETS,
        "commit_latency_seconds",
        "From taking the first frame of a batch to its sync.",
        1e-6,
        "COMMIT_NANOSECONDS",
        1e-9,
    ),
)


@dataclass(frozen=True)
class KeyCounters:
    """Counters of the workers by the number of a key, behind the histograms; the last one is ``rest``: (key, reason)."""

    metric: str
    help: str
    rest: tuple[str, str]
    reason: str = ""  # of the others, where they are bad


KEY_COUNTERS = limits.KEYS_COUNTED + 1
_KEY_START = len(COUNTERS) + _SIZE_BUCKETS + _LATENCY_BUCKETS
_BY_KEY = (
    KeyCounters("frames_by_key", "Authentic frames, by the key that signed them.", ("other", "")),
    KeyCounters("bad_frames", "Frames that no accepted key signed.", ("", "unknown_key"), "retired_key"),
    KeyCounters("requests_by_key", "Authentic get and inventory requests, by key.", ("other", "")),
    KeyCounters("bad_requests", "Requests that no accepted key signed.", ("", "unknown_key"), "retired_key"),
)
ROW_LENGTH = _KEY_START + len(_BY_KEY) * KEY_COUNTERS


def row_names(queue: Queue) -> list[tuple[str, str]]:
    """(role, name of the process) of each row."""
    return [
        ("parent", "parent"),
        ("committer", "committer"),
        ("admin", "admin"),
        *(("worker", f"worker-{slot}") for slot in range(queue.workers)),
    ]


def ready_reasons(queue: Queue) -> list[str]:
    """Why the node should be sent nothing now; empty when it serves."""
    flags = queue.flags
    return [
        reason
        for holds, reason in (
            (queue.epoch % 2 == 1, "recovering"),
            (flags & _queue.STARTING, "starting"),
            (flags & _queue.DRAINING, "draining"),
            (flags & _queue.NO_SPACE, "no space"),
            (flags & _queue.FAILING, "failing"),
        )
        if holds
    ]


class QueueCollector(Collector):
    """Reads the shared rows at each scrape."""

    def __init__(self, queue: Queue, log_size: int, key_names: tuple[str, ...] = ()) -> None:
        self._queue = queue
        self._key_names = key_names  # by the numbers of their counters
        self._log_size = log_size

    def collect(self) -> Iterator[Metric]:
        rows = [
            (role, name, self._queue.counter_row(row)[:ROW_LENGTH].tolist())
            for row, (role, name) in enumerate(row_names(self._queue))
        ]
        yield from _counters(rows)
        yield from _histograms(rows)
        yield from _by_key(rows, self._key_names)
        yield from self._gauges()

    def _gauges(self) -> Iterator[Metric]:
        queue = self._queue
        connections = GaugeMetricFamily(
            "ingest_connections", "Connections open now.", labels=["process", "port"]
        )
        pending = GaugeMetricFamily(
            "ingest_queue_pending_runs", "Runs that the committer has not taken yet.", labels=["process"]
        )
        for slot in range(queue.workers):
            process = f"worker-{slot}"
            for port, count in zip(("put", "get"), queue.connections(slot), strict=True):
                connections.add_metric([process, port], count)
            pending.add_metric([process], queue.pending(slot))
        yield connections
        yield pending
        for name, help, value in (
            ("ingest_dirty_packs", "Packs that the log still covers.", queue.dirty_packs),
            ("ingest_log_used_bytes", "Bytes of the log that cover them.", queue.log_used),
            ("ingest_log_size_bytes", "Bytes that the log may have.", self._log_size),
            ("ingest_ready", "1 when /readyz answers 200.", 0 if ready_reasons(queue) else 1),
        ):
            yield GaugeMetricFamily(name, help, value=value)
        yield InfoMetricFamily("ingest_build", "The program.", {"version": __version__})


def _counters(rows: Sequence[tuple[str, str, list[int]]]) -> Iterator[Metric]:
    families: dict[str, CounterMetricFamily] = {}
    for index, counter in enumerate(COUNTERS):
        family = families.get(counter.metric)
        if family is None:
            labels = ["process", *counter.labels]
            family = CounterMetricFamily(f"ingest_{counter.metric}", counter.help, labels=labels)
            families[counter.metric] = family
        for role, name, row in rows:
            if role == counter.role:
                family.add_metric([name, *counter.labels.values()], row[index] * counter.scale)
    yield from families.values()


def _histograms(rows: Sequence[tuple[str, str, list[int]]]) -> Iterator[Metric]:
    for histogram in HISTOGRAMS:
        family = HistogramMetricFamily(f"ingest_{histogram.metric}", histogram.help, labels=["process"])
        for role, name, row in rows:
            if role != "committer":
                continue
            total = 0
            buckets: list[tuple[str, float]] = []
            for i in range(histogram.buckets):
                total += row[histogram.start + i]
                last = i == histogram.buckets - 1
                bound = "+Inf" if last else repr(float(f"{2**i * histogram.unit:.9g}"))
                buckets.append((bound, total))
            family.add_metric([name], buckets, row[INDEX[histogram.sum]] * histogram.sum_scale)
        yield family


def _by_key(rows: Sequence[tuple[str, str, list[int]]], key_names: tuple[str, ...]) -> Iterator[Metric]:
    for index, counters in enumerate(_BY_KEY):
        labels = ["process", "key", *(["reason"] if counters.reason else [])]
        family = CounterMetricFamily(f"ingest_{counters.metric}", counters.help, labels=labels)
        start = _KEY_START + index * KEY_COUNTERS
        numbers = [(number, (name, counters.reason)) for number, name in enumerate(key_names)]
        for role, process, row in rows:
            if role == "worker":
                for number, values in (*numbers, (KEY_COUNTERS - 1, counters.rest)):
                    family.add_metric([process, *values][: len(labels)], row[start + number])
        yield family


def exposition(queue: Queue, log_size: int, key_names: tuple[str, ...] = ()) -> bytes:
    """The text of one scrape, in Prometheus' text format 0.0.4."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(QueueCollector(queue, log_size, key_names))
    return generate_latest(registry)
