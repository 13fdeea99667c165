"""The names of the counters against csrc/counters.h, and what a scrape shows of them."""

import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

import ingest
from ingest import _queue, metrics
from ingest._queue import Queue

HEADER = Path(ingest.__file__).parent / "csrc" / "counters.h"


def header_names() -> list[str]:
    body = re.search(r"enum counter \{(.*?)\};", HEADER.read_text(), re.S)
    assert body
    without_comments = re.sub(r"/\*.*?\*/", "", body[1], flags=re.S)
    return [entry.split("=")[0].strip() for entry in without_comments.split(",")]


@pytest.fixture
def queue() -> Queue:
    return Queue(2, 4)


def scrape(queue: Queue) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text = metrics.exposition(queue, 1 << 29).decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(queue: Queue, name: str, **labels: str) -> float:
    return scrape(queue)[name, frozenset(labels.items())]


def test_the_counters_are_those_of_the_header_in_its_order() -> None:
    names = header_names()
    singles = names[: names.index("C_COMMIT_SIZE_BUCKET")]
    assert [f"C_{counter.name}" for counter in metrics.COUNTERS] == singles
    assert names[len(singles) :] == ["C_COMMIT_SIZE_BUCKET", "C_COMMIT_LATENCY_BUCKET", "C_COUNTERS"]


def test_the_histograms_are_those_of_the_header() -> None:
    sizes = re.findall(r"C_COMMIT_\w+_BUCKET \+ (\d+)", HEADER.read_text())
    assert [histogram.buckets for histogram in metrics.HISTOGRAMS] == [int(size) for size in sizes]
    assert metrics.HISTOGRAMS[0].start == len(metrics.COUNTERS)
    assert metrics.HISTOGRAMS[1].start == metrics.HISTOGRAMS[0].start + metrics.HISTOGRAMS[0].buckets
    last = metrics.HISTOGRAMS[-1]
    assert metrics.ROW_LENGTH == last.start + last.buckets <= len(Queue(1, 1).counter_row(0))


def test_counters_of_one_metric_have_the_same_labels_and_help() -> None:
    for name in {counter.metric for counter in metrics.COUNTERS}:
        same = [counter for counter in metrics.COUNTERS if counter.metric == name]
        assert len({(counter.help, counter.role, tuple(counter.labels)) for counter in same}) == 1
        assert len({tuple(counter.labels.values()) for counter in same}) == len(same)


def test_names_are_prefixed_and_in_base_units(queue: Queue) -> None:
    text = metrics.exposition(queue, 1).decode()
    names = re.findall(r"^# TYPE (\S+) (\S+)$", text, re.M)
    assert len({name for name, _ in names}) == len(names) > 30
    for name, kind in names:
        assert re.fullmatch(r"ingest_[a-z_]+", name)
        assert not re.search(r"nanoseconds|_ms|kib|mib", name)
        assert (kind == "counter") == name.endswith("_total")


def test_each_row_is_its_process(queue: Queue) -> None:
    queue.counter_row(_queue.ROW_WORKER)[metrics.INDEX["FRAMES_RECEIVED"]] = 5
    queue.counter_row(_queue.ROW_WORKER + 1)[metrics.INDEX["FRAMES_RECEIVED"]] = 7
    queue.counter_row(_queue.ROW_WORKER + 1)[metrics.INDEX["ACKS_BAD_TICKET"]] = 2
    queue.counter_row(_queue.ROW_WORKER)[metrics.INDEX["PUT_CLOSED_BAD"]] = 3
    queue.counter_row(_queue.ROW_COMMITTER)[metrics.INDEX["COMMITS"]] = 11
    queue.counter_row(_queue.ROW_PARENT)[metrics.INDEX["WORKER_RESTARTS"]] = 13
    assert value(queue, "ingest_frames_received_total", process="worker-0") == 5
    assert value(queue, "ingest_frames_received_total", process="worker-1") == 7
    assert value(queue, "ingest_acks_total", process="worker-1", status="bad_ticket") == 2
    assert value(queue, "ingest_acks_total", process="worker-0", status="bad_ticket") == 0
    labels = {"process": "worker-0", "port": "put", "reason": "bad_frames"}
    assert value(queue, "ingest_connections_closed_total", **labels) == 3
    assert value(queue, "ingest_commits_total", process="committer") == 11
    assert value(queue, "ingest_worker_restarts_total", process="parent") == 13
    owners = {
        counter.metric: "worker" if counter.role == "worker" else counter.role for counter in metrics.COUNTERS
    }
    for name, labels_of in scrape(queue):
        owner = owners.get(name.removeprefix("ingest_").removesuffix("_total"))
        if owner:
            assert dict(labels_of)["process"].startswith(owner)


def test_nanoseconds_are_shown_as_seconds(queue: Queue) -> None:
    queue.counter_row(_queue.ROW_COMMITTER)[metrics.INDEX["FLUSH_NANOSECONDS"]] = 1_500_000_000
    assert value(queue, "ingest_flush_seconds_total", process="committer") == 1.5


def test_buckets_accumulate(queue: Queue) -> None:
    row = queue.counter_row(_queue.ROW_COMMITTER)
    size, latency = metrics.HISTOGRAMS
    row[size.start] = 1  # one frame
    row[size.start + 3] = 2  # 5 to 8
    row[size.start + 15] = 4  # more than 2^14
    row[metrics.INDEX["COMMIT_FRAMES"]] = 60_000
    row[latency.start + 10] = 1  # 513 to 1024 µs
    row[metrics.INDEX["COMMIT_NANOSECONDS"]] = 1_000_000

    def bucket(name: str, bound: str) -> float:
        return value(queue, f"ingest_{name}_bucket", process="committer", le=bound)

    assert [bucket("commit_size_frames", le) for le in ("1.0", "4.0", "8.0", "16384.0", "+Inf")] == [
        1,
        1,
        3,
        3,
        7,
    ]
    assert value(queue, "ingest_commit_size_frames_count", process="committer") == 7
    assert value(queue, "ingest_commit_size_frames_sum", process="committer") == 60_000
    assert (bucket("commit_latency_seconds", "0.000512"), bucket("commit_latency_seconds", "0.001024")) == (
        0,
        1,
    )
    assert value(queue, "ingest_commit_latency_seconds_sum", process="committer") == pytest.approx(0.001)


def test_gauges(queue: Queue) -> None:
    assert value(queue, "ingest_connections", process="worker-1", port="get") == 0
    assert value(queue, "ingest_queue_pending_runs", process="worker-0") == 0
    assert value(queue, "ingest_log_size_bytes") == 1 << 29
    assert value(queue, "ingest_build_info", version=ingest.__version__) == 1
    assert value(queue, "ingest_ready") == 0
    queue.committer_ready()
    assert value(queue, "ingest_ready") == 1


def test_reasons(queue: Queue) -> None:
    assert metrics.ready_reasons(queue) == ["recovering"]
    queue.committer_ready()
    assert metrics.ready_reasons(queue) == []
    flags = (_queue.STARTING, _queue.DRAINING, _queue.NO_SPACE, _queue.FAILING)
    for flag, reason in zip(flags, ("starting", "draining", "no space", "failing"), strict=True):
        queue.set_flag(flag)
        assert metrics.ready_reasons(queue) == [reason]
        queue.clear_flag(flag)
    queue.committer_gone()
    for flag in flags:
        queue.set_flag(flag)
    assert len(metrics.ready_reasons(queue)) == 5
