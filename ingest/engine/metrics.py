"""What the processes of a server count: the table of it. The rows themselves: `csrc/counters.h`; `exposition` shows them.

Each process has its own row, and its samples carry the label ``process``; `sum without (process) (...)` adds them up. A
row outlives its process, so that no counter goes back when one is replaced. Base units: bytes, seconds. The list for
operators is in `docs/operations.md`, "Metrics", and a test holds it against this module.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ingest import limits
from ingest.status import Status

if TYPE_CHECKING:
    from ingest.engine._queue import Queue


@dataclass(frozen=True)
class Counter:
    """One number of a row. ``name`` is its C name without ``C_``; several may be one metric, told apart by labels."""

    name: str
    role: str  # whose row it is counted in: worker, committer, parent, any
    metric: str  # without the prefix ``ingest_`` and the suffix ``_total``; empty: not shown by itself
    help: str
    labels: dict[str, str] = field(default_factory=dict)
    scale: float = 1  # to the base unit
    is_level: bool = False  # goes up and down: a gauge


def _acks() -> Iterator[Counter]:
    for status in Status:
        labels = {"status": status.name.lower()}
        yield Counter(f"ACKS_{status.name}", "worker", "acks", "Acks sent, by status.", labels)


def _worker(name: str, help: str, metric: str = "", **labels: str) -> Counter:
    return Counter(name, "worker", metric or name.lower(), help, labels)


def _committer(name: str, help: str, metric: str = "", scale: float = 1) -> Counter:
    return Counter(name, "committer", metric or name.lower(), help, scale=scale)


def _parent(name: str, help: str) -> Counter:
    return Counter(name, "parent", name.lower(), help)


def _level(name: str, role: str, metric: str, help: str) -> Counter:
    return Counter(name, role, metric, help, is_level=True)


def _hidden(name: str, role: str, help: str) -> Counter:
    return Counter(name, role, "", help)


_REFUSED = {"REFUSED": "limit", "REFUSED_BAD_PEER": "bad_peer", "REFUSED_RESOURCES": "resources"}
_CLOSED = {
    "put": {
        "CLOSED_BAD": "bad_frames",
        "CLOSED_UNREAD": "unread_acks",
        "CLOSED_PARTIAL": "partial_frame",
        "CLOSED_IDLE": "idle",
    },
    "get": {
        "CLOSED_BAD": "bad_request",
        "CLOSED_UNREAD": "unread_replies",
        "CLOSED_PARTIAL": "partial_request",
        "CLOSED_IDLE": "idle",
    },
}


def _connections(port: str) -> Iterator[Counter]:
    prefix = port.upper()
    yield _worker(f"{prefix}_ACCEPTED", "Connections accepted.", "connections_accepted", port=port)
    for name, reason in _REFUSED.items():
        help = "Connections refused, by reason."
        yield _worker(f"{prefix}_{name}", help, "connections_refused", port=port, reason=reason)
    for name, reason in _CLOSED[port].items():
        yield _worker(f"{prefix}_{name}", _CLOSED_HELP, "connections_closed", port=port, reason=reason)


_CLOSED_HELP = "Connections that the server closed, by reason."
_FOREIGN = "Connections that began like another protocol."

# In the order of csrc/counters.h.
COUNTERS: tuple[Counter, ...] = (
    _worker("FRAMES_RECEIVED", "Whole frames received."),
    _worker("BYTES_RECEIVED", "Bytes received on the put port."),
    _worker("PARTIAL_FRAMES", "Frames cut off by the end of their connection, and dropped."),
    *_acks(),
    *_connections("put"),
    _worker("PUT_PASSED", "Accepted connections passed on to a sibling.", "connections_passed", port="put"),
    *_connections("get"),
    _worker("GET_REQUESTS", "Get and inventory requests."),
    _worker("GET_REQUESTS_BAD", "Get and inventory requests that were malformed or not authentic."),
    _worker("GET_FRAMES", "Frames sent to readers."),
    _worker("GET_BYTES", "Bytes sent to readers."),
    _worker("GET_ERRORS", "Runs answered with ERROR."),
    _worker("FOREIGN_TLS", _FOREIGN, "foreign_protocol_connections", protocol="tls"),
    _worker("FOREIGN_HTTP", _FOREIGN, "foreign_protocol_connections", protocol="http"),
    _worker("LINES_SUPPRESSED", "Log lines about peers that were left out.", "log_lines_suppressed"),
    _hidden("ACK_MICROSECONDS", "worker", "The sum of ingest_ack_latency_seconds."),
    _level("OUTSTANDING_FRAMES", "worker", "outstanding_frames", "Frames received and not answered yet."),
    _committer("COMMITS", "Batches of the log that were synced and answered."),
    _committer("COMMIT_FRAMES", "Frames in those batches."),
    _committer("COMMIT_BYTES", "Bytes written to the log."),
    _hidden("COMMIT_NANOSECONDS", "committer", "The sum of ingest_commit_latency_seconds."),
    _committer("BULK_JOBS", "Jobs that wrote long runs straight to their packs."),
    _committer("BULK_RUNS", "Runs written straight to their packs, without the log."),
    _committer("BULK_FRAMES", "Frames in those runs."),
    _committer("PACKS_CREATED", "Pack files created."),
    _committer("FLUSHES", "Syncs of the file system that made packs durable."),
    _hidden("FLUSH_NANOSECONDS", "committer", "The sum of ingest_flush_duration_seconds."),
    _committer("SYNC_FAILURES", "Syncs that failed."),
    _committer("DELETED_TICKETS", "Tickets deleted, whether anything was stored under them or not."),
    _committer("DELETED_BYTES", "Bytes of the frames that were stored under them: dead from then on."),
    _committer("RECLAIMED_BYTES", "Bytes that deletes gave back to the file system."),
    _committer("DUPLICATES", "Frames that were stored already, with the same bytes."),
    _committer("RECOVERIES", "Recoveries of the store."),
    _committer("RECOVERED_FRAMES", "Frames that recoveries took from the log."),
    _committer("RECOVERY_NANOSECONDS", "Time that recoveries took.", "recovery_seconds", 1e-9),
    _committer("LOG_STALLS", "Commits that waited for space in the log."),
    _level(
        "PENDING_FRAMES", "committer", "pending_frames", "Frames that the committer has not decided about."
    ),
    _level("BULK_RUNNING", "committer", "bulk_jobs_running", "Bulk jobs under way."),
    _level("LOG_ALLOCATED", "committer", "log_allocated_bytes", "Bytes of the log's segments."),
    _parent("WORKER_RESTARTS", "Workers that died and were replaced."),
    _parent("COMMITTER_RESTARTS", "Committers that died and were replaced."),
    _parent("ADMIN_RESTARTS", "Admin processes that died and were replaced."),
    _hidden("PID", "any", "The process that has this row now."),
    _hidden(
        "PAST_CPU_MICROSECONDS", "any", "What those before it used: part of ingest_process_cpu_seconds_total."
    ),
    _worker("PUT_CLOSED_HANDSHAKE", _CLOSED_HELP, "connections_closed", port="put", reason="tls_handshake"),
    _worker("PUT_CLOSED_NOT_TLS", _CLOSED_HELP, "connections_closed", port="put", reason="not_tls"),
    _worker("GET_CLOSED_HANDSHAKE", _CLOSED_HELP, "connections_closed", port="get", reason="tls_handshake"),
    _worker("GET_CLOSED_NOT_TLS", _CLOSED_HELP, "connections_closed", port="get", reason="not_tls"),
)

INDEX = {counter.name: index for index, counter in enumerate(COUNTERS)}


@dataclass(frozen=True)
class Histogram:
    """Buckets of a row: bucket i counts values above 2^(i-1) and up to 2^i units, the last one everything above."""

    role: str
    start: int
    buckets: int
    metric: str
    help: str
    unit: float  # of the bounds, to the base unit
    sum: str  # the counter that has the sum
    sum_scale: float


def _histograms_of() -> Iterator[Histogram]:
    start = len(COUNTERS)
    for role, buckets, metric, help, unit, sum, scale in (
        ("committer", 16, "commit_size_frames", "Frames of a batch.", 1, "COMMIT_FRAMES", 1),
        (
            *("committer", 22, "commit_latency_seconds", "From taking a batch to its frames answered."),
            *(16e-6, "COMMIT_NANOSECONDS", 1e-9),
        ),
        (
            *("committer", 22, "flush_duration_seconds", "Time of a sync that made packs durable."),
            *(16e-6, "FLUSH_NANOSECONDS", 1e-9),
        ),
        (
            *("worker", 22, "ack_latency_seconds", "From a frame's receipt to its ack given to the socket."),
            *(16e-6, "ACK_MICROSECONDS", 1e-6),
        ),
    ):
        yield Histogram(role, start, buckets, metric, help, unit, sum, scale)
        start += buckets


HISTOGRAMS = tuple(_histograms_of())


@dataclass(frozen=True)
class KeyCounters:
    """Counters of the workers by the number of a key, behind the histograms; the last one is ``rest``: (key, reason)."""

    metric: str
    help: str
    rest: tuple[str, str]
    reason: str = ""  # of the others, where they are bad


KEY_COUNTERS = limits.KEYS_COUNTED + 1
KEY_START = HISTOGRAMS[-1].start + HISTOGRAMS[-1].buckets
BY_KEY = (
    KeyCounters("frames_by_key", "Authentic frames, by the key that signed them.", ("other", "")),
    KeyCounters("bad_frames", "Frames that no accepted key signed.", ("", "unknown_key"), "retired_key"),
    KeyCounters("requests_by_key", "Authentic get and inventory requests, by key.", ("other", "")),
    KeyCounters("bad_requests", "Requests that no accepted key signed.", ("", "unknown_key"), "retired_key"),
)
ROW_LENGTH = KEY_START + len(BY_KEY) * KEY_COUNTERS


def row_names(queue: Queue) -> list[tuple[str, str]]:
    """(role, name of the process) of each row."""
    return [
        ("parent", "parent"),
        ("committer", "committer"),
        ("admin", "admin"),
        *(("worker", f"worker-{slot}") for slot in range(queue.workers)),
    ]
