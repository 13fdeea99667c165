"""The names of the counters against csrc/counters.h, and what a scrape shows of them."""

import io
import itertools
import os
import re
import signal
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from node_rig import NodeRig, running_node
from prometheus_client.parser import text_string_to_metric_families

import ingest
from ingest import limits
from ingest.engine import _queue, exposition, metrics, readiness
from ingest.engine._queue import Queue
from ingest.runtime import machine
from ingest.runtime.heartbeat import SINCE, Heart
from ingest.status import Status

HEADER = Path(ingest.__file__).parent / "csrc" / "counters.h"


def header_names() -> list[str]:
    body = re.search(r"enum counter \{(.*?)\};", HEADER.read_text(), re.S)
    assert body
    without_comments = re.sub(r"/\*.*?\*/", "", body[1], flags=re.S)
    return [entry.split("=")[0].strip() for entry in without_comments.split(",")]


@pytest.fixture
def queue() -> Queue:
    return Queue(2, 4)


def text_of(queue: Queue) -> str:
    places = exposition.DiskUse(
        Path("/"), Path("/nowhere/at/all"), reserve=1 << 28, log_size=1 << 29, reserve_inodes=8192
    )
    return exposition.Exposition(queue, places).text().decode()


Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(queue: Queue) -> Samples:
    return parse(text_of(queue))


def parse(text: str) -> Samples:
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
    assert names[len(singles) :] == [
        "C_COMMIT_SIZE_BUCKET",
        "C_COMMIT_LATENCY_BUCKET",
        "C_FLUSH_LATENCY_BUCKET",
        "C_ACK_LATENCY_BUCKET",
        "C_KEY_FRAMES",
        "C_KEY_BAD_FRAMES",
        "C_KEY_REQUESTS",
        "C_KEY_BAD_REQUESTS",
        "C_COUNTERS",
    ]


def test_the_histograms_are_those_of_the_header() -> None:
    sizes = re.findall(r"C_\w+_BUCKET \+ (\d+)", HEADER.read_text())
    assert [histogram.buckets for histogram in metrics.HISTOGRAMS] == [int(size) for size in sizes]
    start = len(metrics.COUNTERS)
    for histogram in metrics.HISTOGRAMS:
        assert histogram.start == start
        start += histogram.buckets
    keys = 4 * int(re.findall(r"#define KEY_COUNTERS (\d+)", HEADER.read_text())[0])  # behind them
    assert keys == metrics.KEY_COUNTERS * 4
    assert metrics.ROW_LENGTH == start + keys <= len(Queue(1, 1).counter_row(0))


def test_counters_of_one_metric_have_the_same_labels_and_help() -> None:
    for name in {counter.metric for counter in metrics.COUNTERS if counter.metric}:
        same = [counter for counter in metrics.COUNTERS if counter.metric == name]
        assert len({(counter.help, counter.role, tuple(counter.labels)) for counter in same}) == 1
        assert len({tuple(counter.labels.values()) for counter in same}) == len(same)


def test_names_are_prefixed_and_in_base_units(queue: Queue) -> None:
    text = text_of(queue)
    names = re.findall(r"^# TYPE (\S+) (\S+)$", text, re.M)
    assert len({name for name, _ in names}) == len(names) > 30
    for name, kind in names:
        assert re.fullmatch(r"ingest_[a-z_]+", name)
        assert not re.search(r"nanoseconds|_ms|kib|mib", name)
        assert (kind == "counter") == name.endswith("_total")
        assert re.search(rf"^# HELP {name} \S", text, re.M)


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


def numbered(queue: Queue) -> dict[str, list[int]]:
    """Every place of every row has a number of its own. By the names of processes."""
    rows = {}
    for number, (_, name) in enumerate(metrics.row_names(queue)):
        row = queue.counter_row(number)
        for place in range(metrics.ROW_LENGTH):
            row[place] = 10_000_000 * (number + 1) + place
        rows[name] = row[: metrics.ROW_LENGTH].tolist()
    return rows


def test_every_counter_shows_its_own_place(queue: Queue) -> None:
    rows, found = numbered(queue), scrape(queue)
    shown: set[tuple[str, frozenset[tuple[str, str]]]] = set()
    for place, counter in enumerate(metrics.COUNTERS):
        name = f"ingest_{counter.metric}" + ("" if counter.is_level else "_total")
        for role, process in metrics.row_names(queue) if counter.metric else ():
            sample = name, frozenset({("process", process), *counter.labels.items()})
            if role == counter.role:
                assert found[sample] == rows[process][place] * counter.scale, sample
                assert sample not in shown
                shown.add(sample)
            else:
                assert sample not in found


@pytest.mark.parametrize("count", [0, 1, 2, limits.KEYS_COUNTED])
def test_every_counter_of_a_key_shows_its_own_place(queue: Queue, count: int) -> None:
    """Those of the keys that are counted by themselves, and the last one, for all others, wherever their names end."""
    rows = numbered(queue)
    names = tuple(f"key{number}" for number in range(count))
    places = exposition.DiskUse(Path("/"), Path("/"), 0, 0, 0)
    found = parse(exposition.Exposition(queue, places, names).text().decode())
    last = metrics.KEY_COUNTERS - 1
    for number, counters in enumerate(metrics.BY_KEY):
        start = metrics.KEY_START + number * metrics.KEY_COUNTERS
        expected = {}
        for process, row in rows.items():
            for place, (key, reason) in [
                *((place, (key, counters.reason)) for place, key in enumerate(names)),
                (last, counters.rest),
            ]:
                labels = {"process": process, "key": key} | ({"reason": reason} if reason else {})
                if process.startswith("worker-"):
                    expected[frozenset(labels.items())] = row[start + place]
        metric = f"ingest_{counters.metric}_total"
        assert {labels: number for (name, labels), number in found.items() if name == metric} == expected


def test_every_bucket_shows_all_up_to_its_own_place(queue: Queue) -> None:
    rows, found = numbered(queue), scrape(queue)
    for histogram in metrics.HISTOGRAMS:
        name = f"ingest_{histogram.metric}"
        for role, process in metrics.row_names(queue):
            if role != histogram.role:
                continue
            row, mine = rows[process], frozenset({("process", process)})
            buckets = {
                float(dict(labels)["le"]): number
                for (metric, labels), number in found.items()
                if metric == f"{name}_bucket" and mine <= labels
            }
            counts = row[histogram.start : histogram.start + histogram.buckets]
            assert [buckets[bound] for bound in sorted(buckets)] == list(itertools.accumulate(counts))
            assert max(buckets) == float("inf")
            assert found[f"{name}_count", mine] == sum(counts)
            total = row[metrics.INDEX[histogram.sum]] * histogram.sum_scale
            assert found[f"{name}_sum", mine] == pytest.approx(total)


def test_nanoseconds_are_shown_as_seconds(queue: Queue) -> None:
    queue.counter_row(_queue.ROW_COMMITTER)[metrics.INDEX["RECOVERY_NANOSECONDS"]] = 1_500_000_000
    assert value(queue, "ingest_recovery_seconds_total", process="committer") == 1.5


def test_buckets_accumulate(queue: Queue) -> None:
    row = queue.counter_row(_queue.ROW_COMMITTER)
    size, latency = metrics.HISTOGRAMS[:2]
    row[size.start] = 1  # one frame
    row[size.start + 3] = 2  # 5 to 8
    row[size.start + 15] = 4  # more than 2^14
    row[metrics.INDEX["COMMIT_FRAMES"]] = 60_000
    row[latency.start + 6] = 1  # 513 to 1024 µs
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
    (build,) = (dict(labels) for name, labels in scrape(queue) if name == "ingest_build_info")
    assert build["version"] == ingest.__version__ and build.keys() == {"version", "python", "blake3"}
    assert value(queue, "ingest_disk_reserve_bytes") == 1 << 28
    assert value(queue, "ingest_ready") == 0
    queue.committer_ready()
    assert value(queue, "ingest_ready") == 1


def test_reasons(queue: Queue) -> None:
    assert readiness.of_the_queue(queue) == ["recovering"]
    queue.committer_ready()
    assert readiness.of_the_queue(queue) == []
    flags = (
        *(_queue.STARTING, _queue.DRAINING, _queue.NO_SPACE, _queue.FAILING, _queue.NO_LOG),
        _queue.LOST,
    )
    names = ("starting", "draining", "no space", "failing", "no log", "data directory lost")
    for flag, reason in zip(flags, names, strict=True):
        queue.set_flag(flag)
        assert readiness.of_the_queue(queue) == [reason]
        queue.clear_flag(flag)
    queue.committer_gone()
    for flag in flags:
        queue.set_flag(flag)
    assert len(readiness.of_the_queue(queue)) == 7


def test_the_disks(queue: Queue) -> None:
    root = machine.file_system_use("/")
    assert root is not None
    assert value(queue, "ingest_disk_size_bytes", file_system="data") == root.size_bytes
    assert value(queue, "ingest_disk_inodes", file_system="data") == root.inodes
    assert 0 < value(queue, "ingest_disk_free_bytes", file_system="data") <= root.size_bytes
    # One that does not answer is left out, and the rest is there all the same.
    assert ("ingest_disk_size_bytes", frozenset({("file_system", "log")})) not in scrape(queue)


def test_a_process_is_one_of_ours_or_not_there(queue: Queue) -> None:
    index = metrics.INDEX["PID"]
    queue.counter_row(_queue.ROW_PARENT)[index] = os.getpid()
    assert value(queue, "ingest_process_resident_memory_bytes", process="parent") > 1 << 20
    assert value(queue, "ingest_process_open_fds", process="parent") >= 3
    assert machine.process_use(os.getpid(), os.getpid()) is not None
    assert machine.process_use(os.getppid(), os.getpid()) is None
    queue.counter_row(_queue.ROW_WORKER)[index] = os.getppid()  # a number that somebody else has by now
    processes = {
        dict(labels)["process"] for name, labels in scrape(queue) if name == "ingest_process_open_fds"
    }
    assert processes == {"parent"}


def test_each_figure_of_a_process_is_where_proc_5_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name may look like what stands behind it. Of both times, its own and that in the kernel, each counts."""
    ticks, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    before = ["S", "4711", *["8"] * 9]  # state, ppid, and what stands between them and the times
    files = {"statm": "11 22 33 44 0 55 0"}
    monkeypatch.setattr(
        machine, "open", lambda path, **_: io.StringIO(files[path.rpartition("/")[2]]), raising=False
    )
    for user, system in ((300, 0), (0, 300), (7, 40)):
        times = [str(user), str(system), "1000", "2000"]  # those of its children come behind
        files["stat"] = f"5 (a) S 9 (b) {' '.join([*before, *times])} 20 0\n"
        found = machine.process_use(os.getpid(), 4711)
        assert found is not None
        assert (found.cpu_seconds, found.resident_bytes) == ((user + system) / ticks, 22 * page)
        assert machine.process_use(os.getpid(), 9) is None, "its parent stands behind its whole name"


def test_each_figure_of_a_file_system_is_what_we_may_have_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root has more, and blocks are counted in fragments."""
    kernel = {"f_bsize": 4096, "f_frsize": 512, "f_blocks": 100, "f_bfree": 50, "f_bavail": 40}
    kernel |= {"f_files": 30, "f_ffree": 20, "f_favail": 10}
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(**kernel))
    assert machine.file_system_use("/") == machine.FileSystemUse(40 * 512, 100 * 512, 10, 30)
    monkeypatch.undo()
    assert machine.file_system_use("/nowhere") is None


def test_the_time_of_replaced_processes_counts_on(queue: Queue) -> None:
    places = exposition.DiskUse(Path("/"), Path("/"), 0, 0, 0)
    shown = exposition.Exposition(queue, places)
    row = queue.counter_row(_queue.ROW_WORKER)
    row[metrics.INDEX["PAST_CPU_MICROSECONDS"]] = 2_500_000
    name = "ingest_process_cpu_seconds_total", frozenset({("process", "worker-0")})
    assert parse(shown.text().decode())[name] == 2.5
    row[metrics.INDEX["PAST_CPU_MICROSECONDS"]] = 2_400_000
    assert parse(shown.text().decode())[name] == 2.5


# --- whether a node is ready

PROCESSES = ("parent", "admin", "committer", "worker-0", "worker-1")
ASKED = tuple(name for name in PROCESSES if name != "admin")  # it answers itself


@pytest.fixture
def hearts(queue: Queue) -> dict[str, Heart]:
    """Of a server that is ready."""
    queue.committer_ready()
    made = {name: Heart() for name in PROCESSES}
    for heart in made.values():
        heart.reset()
        heart.beat()
    return made


def falls_silent(heart: Heart) -> None:
    heart.words[0] -= 60_000_000_000  # its last beat


def never_ran(heart: Heart) -> None:
    heart.reset()
    heart.words[SINCE] -= 60_000_000_000


def said(queue: Queue, hearts: dict[str, Heart]) -> list[str]:
    """Of processes their names."""
    found = readiness.reasons(queue, hearts)
    return [reason.split()[0] if reason.split()[0] in PROCESSES else reason for reason in found]


@pytest.mark.parametrize("fails", [falls_silent, never_ran])
@pytest.mark.parametrize(
    "names", [*((name,) for name in PROCESSES), ("parent", "worker-1"), ("committer", "worker-0")]
)
def test_each_process_that_fails_is_a_reason(
    queue: Queue, hearts: dict[str, Heart], names: tuple[str, ...], fails: Callable[[Heart], None]
) -> None:
    assert said(queue, hearts) == []
    for name in names:
        fails(hearts[name])
    assert sorted(said(queue, hearts)) == [name for name in sorted(names) if name in ASKED]


def test_workers_whose_turn_has_not_come_are_no_reason(queue: Queue, hearts: dict[str, Heart]) -> None:
    queue.set_flag(_queue.STARTING)
    for name in ("worker-0", "worker-1"):
        hearts[name] = Heart()
    assert said(queue, hearts) == ["starting"]
    falls_silent(hearts["parent"])
    assert said(queue, hearts) == ["starting", "parent"]


def test_a_recovery_takes_as_long_as_it_takes(queue: Queue, hearts: dict[str, Heart]) -> None:
    queue.committer_gone()
    falls_silent(hearts["committer"])
    assert said(queue, hearts) == ["recovering"]
    falls_silent(hearts["worker-1"])
    assert said(queue, hearts) == ["recovering", "worker-1"]
    queue.committer_ready()
    assert said(queue, hearts) == ["committer", "worker-1"]


def test_a_worker_that_is_being_replaced_is_no_reason_and_none_at_all_is_one(
    queue: Queue, hearts: dict[str, Heart]
) -> None:
    hearts["worker-0"].reset()
    assert said(queue, hearts) == []
    hearts["worker-1"].reset()
    assert said(queue, hearts) == ["no worker"]
    hearts["worker-0"].beat()
    assert said(queue, hearts) == []


def test_that_there_is_no_worker_is_said_once(queue: Queue, hearts: dict[str, Heart]) -> None:
    """However long none has been there; one that beat is asked for alone."""
    for name in ("worker-0", "worker-1"):
        never_ran(hearts[name])
    assert said(queue, hearts) == ["no worker"]
    hearts["worker-0"].beat()
    assert said(queue, hearts) == ["worker-1"]


# --- a real server


def scrape_node(node: NodeRig) -> Samples:
    host, port = node.admin_address
    with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=30) as response:
        return parse(response.read().decode())


def total(samples: Samples, name: str, **labels: str) -> float:
    """The sum over processes."""
    return sum(
        number for (other, found), number in samples.items() if other == name and labels.items() <= set(found)
    )


def wait_for(node: NodeRig, condition: Callable[[Samples], bool]) -> Samples:
    deadline = time.monotonic() + 30
    while True:
        samples = scrape_node(node)
        if condition(samples):
            return samples
        assert time.monotonic() < deadline, samples
        time.sleep(0.02)  # between two looks


def is_counter(name: str) -> bool:
    return name.endswith(("_total", "_bucket", "_count", "_sum"))


def test_no_counter_goes_back_when_a_process_is_replaced(tmp_path: Path) -> None:
    with running_node(tmp_path / "data", "--workers=1") as node:
        with node.connect() as connection:
            assert set(connection.put(range(36, 1336)).values()) == {Status.SAVED}
            assert set(connection.put(range(36, 40), version=1).values()) == {Status.CONFLICT}
            assert connection.delete(36, 1296) is Status.DELETED
            assert [status for status, _ in node.get(36, 1300)][-4:] == [Status.SAVED] * 4
        before = wait_for(
            node,
            lambda samples: (
                total(samples, "ingest_flushes_total") >= 1
                and total(samples, "ingest_dirty_packs") == 0
                and total(samples, "ingest_outstanding_frames") == 0
            ),
        )
        acks = total(before, "ingest_acks_total")
        assert acks == 1305 == total(before, "ingest_ack_latency_seconds_count")
        assert 0 < total(before, "ingest_ack_latency_seconds_sum") < 30 * 1305
        assert (
            total(before, "ingest_commit_latency_seconds_count") == total(before, "ingest_commits_total") > 0
        )
        assert total(before, "ingest_flush_duration_seconds_count") == total(before, "ingest_flushes_total")
        assert total(before, "ingest_deleted_bytes_total") == 1296 * limits.FRAME_SIZE
        assert total(before, "ingest_reclaimed_bytes_total") > 1200 * limits.FRAME_SIZE
        processes = {"parent", "committer", "admin", "worker-0"}
        for name in ("cpu_seconds_total", "resident_memory_bytes", "open_fds"):
            found = {dict(labels)["process"] for other, labels in before if other == f"ingest_process_{name}"}
            assert found == processes, name
        assert total(before, "ingest_log_allocated_bytes") >= limits.LOG_SEGMENT_SIZE

        for role in ("worker", "committer", "admin"):
            (pid,) = node.children(f"ingest-{role}")
            os.kill(pid, signal.SIGKILL)
            restarts = f"ingest_{role}_restarts_total"
            retry(lambda name=restarts: wait_for(node, lambda samples: total(samples, name) == 1))
        after = wait_for(node, lambda samples: total(samples, "ingest_recoveries_total") == 2)
        with node.connect() as connection:
            assert set(connection.put([40_000]).values()) == {Status.SAVED}
        for samples in (after, wait_for(node, lambda samples: total(samples, "ingest_acks_total") > acks)):
            back = {
                name: (number, samples.get(name))
                for name, number in before.items()
                if is_counter(name[0])
                and samples.get(name, -1.0) < number
                and not name[0].startswith(
                    "ingest_process_cpu"
                )  # /proc counts in ticks, wait4 in microseconds
            }
            assert back == {}


def retry(look: Callable[[], Samples]) -> Samples:
    """While the admin port has nobody who answers."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return look()
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.02)
