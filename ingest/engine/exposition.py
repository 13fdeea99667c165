"""What the admin port shows of a server to Prometheus: the shared rows of counters, /proc, and the file systems."""

from __future__ import annotations

import platform
import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
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

from ingest import __version__, _hmac
from ingest.disk_wait import DiskWait
from ingest.engine import _queue
from ingest.engine.metrics import (
    BY_KEY,
    COUNTERS,
    HISTOGRAMS,
    INDEX,
    KEY_COUNTERS,
    KEY_START,
    ROW_LENGTH,
    row_names,
)
from ingest.engine.readiness import reasons
from ingest.runtime import machine

if TYPE_CHECKING:
    from ingest.engine._queue import Queue
    from ingest.runtime.heartbeat import Heart

COMMITTER_WAITS = tuple(what for what in DiskWait if what not in (DiskWait.NOTHING, DiskWait.TRANSACTION))
CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4


@dataclass(frozen=True)
class DiskUse:
    """Where a node keeps what it stores, and how much of the disk it leaves free or may take: bytes, and inodes."""

    data: int | Path  # or an open descriptor
    log: Path
    reserve: int
    log_size: int
    reserve_inodes: int


class Exposition(Collector):
    """Reads the shared rows, /proc and the file systems at each scrape. For one thread at a time."""

    def __init__(
        self,
        queue: Queue,
        disk: DiskUse,
        key_names: tuple[str, ...] = (),
        hearts: Mapping[str, Heart] | None = None,
    ) -> None:
        self._queue = queue
        self._hearts = hearts or {}
        self._disk = disk
        self.key_names = key_names  # by the numbers of their counters
        self._cpu_seconds: dict[str, float] = {}  # shown last

    def text(self) -> bytes:
        """One scrape, in Prometheus' text format 0.0.4."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return generate_latest(registry)

    def collect(self) -> Iterator[Metric]:
        rows = [
            (role, name, self._queue.counter_row(row)[:ROW_LENGTH].tolist())
            for row, (role, name) in enumerate(row_names(self._queue))
        ]
        yield from _counters(rows)
        yield from _histograms(rows)
        yield from _by_key(rows, self.key_names)
        yield from self._queue_gauges()
        yield from _heart_gauges(self._hearts)
        yield from self._disk_gauges()
        yield from self._processes(rows)
        yield InfoMetricFamily(
            "ingest_build",
            "The program, and what it runs on.",
            {"version": __version__, "python": platform.python_version(), "blake3": _hmac.path()},
        )

    def _queue_gauges(self) -> Iterator[Metric]:
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
            (
                "ingest_queue_places",
                "Frames that each worker may have received and not answered.",
                queue.places,
            ),
            ("ingest_dirty_packs", "Packs that the log still covers.", queue.dirty_packs),
            ("ingest_log_used_bytes", "Bytes of the log that cover them.", queue.log_used),
            ("ingest_log_size_bytes", "Bytes that the log may have.", self._disk.log_size),
            ("ingest_ready", "1 when /readyz answers 200.", 0 if reasons(queue, self._hearts) else 1),
        ):
            yield GaugeMetricFamily(name, help, value=value)

    def _disk_gauges(self) -> Iterator[Metric]:
        labels = ["file_system"]
        free = GaugeMetricFamily("ingest_disk_free_bytes", "Bytes free for this server.", labels=labels)
        size = GaugeMetricFamily("ingest_disk_size_bytes", "Bytes of the file system.", labels=labels)
        free_inodes = GaugeMetricFamily("ingest_disk_free_inodes", "Inodes free.", labels=labels)
        inodes = GaugeMetricFamily("ingest_disk_inodes", "Inodes; 0 where they have no bound.", labels=labels)
        for name, path in (("data", self._disk.data), ("log", self._disk.log)):
            use = machine.file_system_use(path)
            if use is not None:
                free.add_metric([name], use.free_bytes)
                size.add_metric([name], use.size_bytes)
                free_inodes.add_metric([name], use.free_inodes)
                inodes.add_metric([name], use.inodes)
        yield from (free, size, free_inodes, inodes)
        help = "Below so many free bytes new frames get NO_SPACE; the log may take log_size - log_allocated on top."
        yield GaugeMetricFamily("ingest_disk_reserve_bytes", help, value=self._disk.reserve)
        help = "Below so many free inodes new frames get NO_SPACE."
        yield GaugeMetricFamily("ingest_disk_reserve_inodes", help, value=self._disk.reserve_inodes)

    def _processes(self, rows: Sequence[tuple[str, str, list[int]]]) -> Iterator[Metric]:
        labels = ["process"]
        cpu = CounterMetricFamily("ingest_process_cpu_seconds", "CPU time, user and system.", labels=labels)
        resident = GaugeMetricFamily(
            "ingest_process_resident_memory_bytes", "Resident memory.", labels=labels
        )
        descriptors = GaugeMetricFamily("ingest_process_open_fds", "Open descriptors.", labels=labels)
        for _, name, row in rows:
            # The last one to be replaced may be added up or gone already in this moment: never show less than before.
            seconds = row[INDEX["PAST_CPU_MICROSECONDS"]] * 1e-6
            pid, parent = row[INDEX["PID"]], rows[_queue.ROW_PARENT][2][INDEX["PID"]]
            use = machine.process_use(pid, parent) if pid else None
            if use is not None:
                seconds += use.cpu_seconds
                resident.add_metric([name], use.resident_bytes)
                if use.open_descriptors is not None:
                    descriptors.add_metric([name], use.open_descriptors)
            self._cpu_seconds[name] = max(seconds, self._cpu_seconds.get(name, 0.0))
            cpu.add_metric([name], self._cpu_seconds[name])
        yield from (cpu, resident, descriptors)
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        yield GaugeMetricFamily("ingest_process_max_fds", "Descriptors that each may open.", value=limit)


def _heart_gauges(hearts: Mapping[str, Heart]) -> Iterator[Metric]:
    now = time.monotonic_ns()
    help = (
        "Time since a process came round its loop the last time. One that starts, or does not run, has none."
    )
    ages = GaugeMetricFamily("ingest_heartbeat_age_seconds", help, labels=["process"])
    for name, heart in hearts.items():
        age = heart.age(now)
        if age is not None:
            ages.add_metric([name], age)
    yield ages
    help = "How long the committer, or what it was given, has been waiting for the disk; 0: it is not."
    waits = GaugeMetricFamily("ingest_committer_wait_seconds", help, labels=["what"])
    waiting, seconds = hearts["committer"].waiting(now) if "committer" in hearts else (DiskWait.NOTHING, 0.0)
    for what in COMMITTER_WAITS:
        waits.add_metric([what.name.lower()], seconds if what is waiting else 0.0)
    yield waits


def _counters(rows: Sequence[tuple[str, str, list[int]]]) -> Iterator[Metric]:
    families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
    for index, counter in enumerate(COUNTERS):
        if not counter.metric:
            continue
        family = families.get(counter.metric)
        if family is None:
            make = GaugeMetricFamily if counter.is_level else CounterMetricFamily
            family = make(f"ingest_{counter.metric}", counter.help, labels=["process", *counter.labels])
            families[counter.metric] = family
        for role, name, row in rows:
            if role == counter.role:
                family.add_metric([name, *counter.labels.values()], row[index] * counter.scale)
    yield from families.values()


def _histograms(rows: Sequence[tuple[str, str, list[int]]]) -> Iterator[Metric]:
    for histogram in HISTOGRAMS:
        family = HistogramMetricFamily(f"ingest_{histogram.metric}", histogram.help, labels=["process"])
        for role, name, row in rows:
            if role != histogram.role:
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
    for index, counters in enumerate(BY_KEY):
        labels = ["process", "key", *(["reason"] if counters.reason else [])]
        family = CounterMetricFamily(f"ingest_{counters.metric}", counters.help, labels=labels)
        start = KEY_START + index * KEY_COUNTERS
        numbers = [(number, (name, counters.reason)) for number, name in enumerate(key_names)]
        for role, process, row in rows:
            if role == "worker":
                for number, values in (*numbers, (KEY_COUNTERS - 1, counters.rest)):
                    family.add_metric([process, *values][: len(labels)], row[start + number])
        yield family
