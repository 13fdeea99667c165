"""Each benchmark, tiny: it works from end to end, all is SAVED and comes back, each row has its figure. Never how fast."""

import json
import socket
import threading

import numpy as np
import pytest

from bench import (
    bench_catalog,
    bench_connections,
    bench_get,
    bench_large_object,
    bench_random_tickets,
    bench_restart,
    bench_small_objects,
    bench_sustained,
    bench_tls,
    bench_tree,
    bench_verify,
    curl,
    disk_limit,
    load,
    process,
    raw_source,
    reader,
    report,
    scratch,
    server,
)
from bench.disk_limit import DiskLimit, Ring, Way
from bench.random_tickets import FIRST_PACK, RandomTickets, wire_tickets
from bench.report import RATIO, Round, Row
from bench.sizes import TINY
from ingest import _hmac, limits, mac, sharding, ticket
from ingest.status import Status

BENCHMARKS = {
    bench_verify.measure: [f"verify-{path}" for path in _hmac.paths()],
    bench_sustained.measure: ["sustained-disk", "sustained-sink", "memory", "memory-flat"],
    bench_connections.measure_closed_loop: ["closed-loop"],
    bench_connections.measure_crowd: ["crowd"],
    bench_get.measure: ["get-sequential", "get-random"],
    bench_random_tickets.measure: ["random-tickets", "random-restart"],
    bench_restart.measure: ["restart"],
    bench_tls.measure: ["tls-put", "tls-get"],
    bench_tree.measure: ["tree"],
    bench_large_object.measure: ["large-put", "large-get"],
    bench_small_objects.measure: ["small-put", "small-get"],
    bench_catalog.measure_listing: ["listing-worst", "listing-median"],
    bench_catalog.measure_start: ["gateway-start"],
}


@pytest.fixture
def place(tmp_path):
    """Any file system will do for what is tiny."""
    return scratch.Scratch(tmp_path)


@pytest.mark.parametrize(
    ("measure", "names"), BENCHMARKS.items(), ids=lambda value: getattr(value, "__module__", "")
)
def test_benchmark_runs(measure, names, place):
    if measure is bench_large_object.measure and (why := curl.missing()):
        pytest.skip(why)
    rows = measure(place, TINY)
    assert [row.name for row in rows] == names
    for row in rows:
        assert len(row.rounds) == TINY.rounds
        for one in row.rounds:
            assert one.value > 0
            if one.peer is not None:
                assert row.unit == RATIO and one.value == one.ours / one.peer
    assert list(place.directory.iterdir()) == [], "a benchmark left something on the disk"
    json.dumps(report.document(rows, {}, "none"))


def test_the_path_that_was_in_use_is_again_after_the_benchmark(place):
    before = _hmac.path()
    bench_verify.measure(place, TINY)
    assert _hmac.path() == before


def test_no_benchmark_went_missing():
    names = {name for names in BENCHMARKS.values() for name in names}
    assert len(names) >= 14


# --- the limit of the disk -----------------------------------------------------------------------


@pytest.mark.parametrize("way", disk_limit.WAYS, ids=str)
@pytest.mark.parametrize("frames", [1, limits.PACK_SLOTS + 1, 3 * disk_limit.BATCH_FRAMES])
def test_disk_limit_writes_every_pack(way, frames, tmp_path):
    ring = Ring.make(tmp_path, segments=2)
    try:
        DiskLimit(tmp_path, ring, frames, way).run()
    finally:
        ring.close()
    packs = sorted(tmp_path.rglob("obj"))
    assert len(packs) == -(-frames // limits.PACK_SLOTS)
    slots = frames - (len(packs) - 1) * limits.PACK_SLOTS
    sizes = sorted(pack.stat().st_size for pack in packs)
    assert sizes[0] >= limits.PACK_HEADER_SIZE + slots * limits.FRAME_SIZE
    assert all(size == disk_limit.PACK_SIZE for size in sizes[1:])
    last = sharding.pack_path(FIRST_PACK + len(packs) - 1)
    assert (tmp_path / last).exists(), "the packs lie where a server's would"


@pytest.mark.parametrize("way", [Way(0, True), Way(2, True)], ids=str)
def test_disk_limit_recycles_a_log_much_smaller_than_what_it_logs(way, tmp_path):
    frames = 5 * disk_limit.SEGMENT_BATCHES * disk_limit.BATCH_FRAMES
    ring = Ring.make(tmp_path, segments=2)
    try:
        DiskLimit(tmp_path, ring, frames, way).run()
    finally:
        ring.close()
    assert all(log.stat().st_size == limits.LOG_SEGMENT_SIZE for log in tmp_path.glob("*.log"))
    assert len(list(tmp_path.glob("*.log"))) == 2


def test_disk_limit_says_what_failed(tmp_path):
    (tmp_path / sharding.pack_path(FIRST_PACK)).parent.mkdir(parents=True)
    (tmp_path / sharding.pack_path(FIRST_PACK)).touch()
    ring = Ring.make(tmp_path, segments=2)
    try:
        with pytest.raises(FileExistsError):
            DiskLimit(tmp_path, ring, 10_000, Way(1, True)).run()
    finally:
        ring.close()


def test_log_and_packs_alone_write_nothing_else(tmp_path):
    limit = disk_limit.Limit(tmp_path / "limit", segments=2)
    assert limit.rate(3000, Way(1, True), packs=False) > 0
    assert limit.rate(3000, Way(1, True), log=False) > 0
    assert list(tmp_path.iterdir()) == []


# --- where it is measured ------------------------------------------------------------------------


def test_memory_is_no_disk(monkeypatch):
    monkeypatch.setenv(scratch.VARIABLE, "/dev/shm")
    if scratch.file_system("/dev/shm") not in scratch.IN_MEMORY:
        pytest.skip("/dev/shm is a disk here")
    with pytest.raises(scratch.ScratchError, match="in memory"), scratch.scratch():
        pass


def test_a_directory_that_is_not_there_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv(scratch.VARIABLE, str(tmp_path / "none"))
    with pytest.raises(scratch.ScratchError, match="none"), scratch.scratch():
        pass


def test_a_round_is_deleted_also_when_it_fails(place):
    with pytest.raises(ValueError, match="half"), place.round() as directory:
        (directory / "file").write_bytes(b"x")
        raise ValueError("half way")
    assert list(place.directory.iterdir()) == []


def test_a_server_that_cannot_start_is_an_error_with_its_log(place):
    with place.round() as directory:
        broken = server.Server(directory / "data", "--sync", "never")
        with pytest.raises(process.ServerError, match="sync"), broken:
            pass


# --- loads ---------------------------------------------------------------------------------------


def test_random_tickets_come_once_a_pack():
    listener = socket.create_server(("127.0.0.1", 0))
    made = RandomTickets(listener.getsockname(), bytes(32), packs=5000, connections=1, seed=3)
    frames = made._frames(0, 5000)
    packs = [sharding.ticket_pack(ticket.index_from_wire(frame[:8].tobytes())) for frame in frames]
    assert sorted(packs) == list(range(FIRST_PACK, FIRST_PACK + 5000))
    assert packs != sorted(packs)
    assert _hmac.verify(mac.derive(bytes(32)).put, frames.reshape(-1).data) == b"\1" * 5000
    assert len({frame[16:].tobytes() for frame in frames}) == 5000, "every frame has data of its own"
    assert made.frame(4321) == frames[4321].tobytes()
    made.expect_the_end()
    made.start()
    listener.close()
    assert made.join() == []


def test_random_tickets_notice_what_is_not_saved():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        made = RandomTickets(listener.getsockname(), bytes(32), packs=10, connections=1, seed=3)
        made.start()
        connection, _ = listener.accept()
        with connection:
            frame = connection.recv(limits.FRAME_SIZE, socket.MSG_WAITALL)
            connection.sendall(frame[:8] + bytes([Status.CONFLICT]))
            with pytest.raises(AssertionError, match="CONFLICT"):
                made.join()


def test_wire_tickets_are_those_of_the_protocol():
    first = ticket.parse("0000000")
    last = ticket.parse("ZZZZZZZ")
    indices = np.array([first, first + 1, first + 36, ticket.parse("5K0ZA9B"), last])
    assert [bytes(row) for row in wire_tickets(indices)] == [ticket.index_to_wire(int(i)) for i in indices]


def test_wire_tickets_have_one_length():
    with pytest.raises(AssertionError, match="lengths"):
        wire_tickets(np.array([35, 36]))


def test_the_sink_saves_everything():
    with load.sink(2) as address:
        result = load.put(load.options(address, bytes(32), connections=3, window=64, frames=5000))
    assert result.saved == 5000 and len(result.connection_frames) == 3


# --- readers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, limits.PACK_SLOTS, 3 * reader.RANGE_FRAMES + 17])
def test_the_source_sends_what_is_asked_for(count):
    received = 0

    def look(at, part):
        nonlocal received
        assert at == received
        received += len(part)

    with raw_source.source() as address:
        reader.read_sequence(address, bytes(32), ticket.parse("5000000"), count, look)
    assert received == count * limits.FRAME_SIZE


def test_single_reads_of_the_source():
    with raw_source.source() as address:
        sizes = []
        indices = ticket.parse("5000000") + np.arange(100)
        reader.read_single(
            address,
            bytes(32),
            indices,
            connections=1,
            in_flight=7,
            look=lambda _, part: sizes.append(len(part)),
        )
    assert sum(sizes) == 100 * reader.REPLY_SIZE


def answering(reply):
    """The address of a peer that sends `reply` to the first request and then ends the connection."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        with listener:
            connection, _ = listener.accept()
            with connection:
                connection.recv(limits.REQUEST_SIZE, socket.MSG_WAITALL)
                connection.sendall(reply)

    threading.Thread(target=serve, daemon=True).start()
    return listener.getsockname()


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        raw_source.run_header(b"5000000\0", 1)[:9],
        raw_source.run_header(b"5000000\0", 1) + bytes(limits.FRAME_SIZE - 1),
        b"5000000\0" + bytes([Status.MISSING, 0, 0, 0, 0, 0, 0, 1]),
        raw_source.run_header(b"5000000\0", 0),
        raw_source.run_header(b"5000000\0", 2) + bytes(2 * limits.FRAME_SIZE),
    ],
    ids=["nothing", "half a header", "half a frame", "missing", "an empty run", "more than asked"],
)
def test_a_sequence_that_is_not_what_was_asked_for_is_an_error(reply):
    with pytest.raises(reader.ReadError):
        reader.read_sequence(answering(reply), bytes(32), ticket.parse("5000000"), 1)


@pytest.mark.parametrize(
    "reply",
    [b"", bytes(reader.REPLY_SIZE), bytes(reader.REPLY_SIZE - 1)],
    ids=["nothing", "not SAVED", "half a frame"],
)
def test_a_single_get_that_fails_is_an_error(reply):
    indices = ticket.parse("5000000") + np.arange(1)
    with pytest.raises(reader.ReadError):
        reader.read_single(answering(reply), bytes(32), indices, connections=1, in_flight=1)


# --- the report ----------------------------------------------------------------------------------


def row(*values, must=None, reach=None, least=False):
    return Row("name", "what", RATIO, must, reach, least, [Round(value) for value in values])


def test_the_median_is_of_all_rounds():
    assert row(3.0, 1.0, 2.0).median == 2.0


@pytest.mark.parametrize(
    ("value", "least", "meets"),
    [(0.5, False, False), (0.6, False, True), (0.7, False, True), (0.5, True, True), (0.7, True, False)],
)
def test_a_row_meets_its_target(value, least, meets):
    assert row(value, must=0.6, least=least).meets(0.6) is meets


def test_a_row_without_a_target_is_only_reported():
    assert row(1.0).meets(None) is None
    assert row(1.0).as_json()["meets_must"] is None


def test_the_table_has_every_row_and_its_verdict(capsys):
    rows = [
        row(0.7, must=0.6, reach=0.9),
        row(0.5, must=0.6, reach=0.9),
        row(0.9, must=0.6, reach=0.9),
        row(4.0),
    ]
    report.print_table(rows, {"cpu": "C", "cores": 2, "file_system": "ext4", "kernel": "6"})
    shown = capsys.readouterr().out
    assert [word for word in shown.split() if word in ("met", "missed", "reached")] == [
        "met",
        "missed",
        "reached",
    ]


def test_the_document_names_machine_commit_and_command(tmp_path):
    about = report.machine(tmp_path, "ext4")
    report.write(tmp_path / "a" / "b.json", report.document([row(1.0, 2.0, 3.0)], about, "make bench"))
    read = json.loads((tmp_path / "a" / "b.json").read_text())
    assert read["command"] == "make bench" and read["commit"] and read["machine"]["cores"] >= 1
    assert [one["value"] for one in read["rows"][0]["rounds"]] == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.5731, RATIO, "0.573 " + RATIO),
        (412_345.0, "/s", "412 k/s"),
        (1_234_567, "/s", "1.23 M/s"),
        (1.5, "s", "1.5 s"),
        (1234, "MB", "1,234 MB"),
        (None, "s", ""),
    ],
)
def test_figures_are_short(value, unit, text):
    assert report.figure(value, unit) == text
