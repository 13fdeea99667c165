"""The benchmarks against peers, tiny, where those are installed: all is stored, each row has its figure, nothing is left."""

import json

import pytest

from bench import nats_load, object_peers, peer, peers, plot_peers, report
from bench.peer import PEERS, Nats, Peer, Redis
from bench.report import RATIO, Round, Row
from bench.scratch import Scratch
from bench.sizes import FULL, TINY


def wanted(kind):
    """The first contest of each manner and number of connections that it takes part in."""
    found = {}
    for contest in peers.contests(TINY):
        if contest.peer is kind:
            found.setdefault((contest.manner, contest.connections), contest)
    return list(found.values())


@pytest.mark.parametrize("kind", PEERS, ids=lambda kind: kind.NAME)
def test_a_peer_is_measured_where_it_is_installed(kind, tmp_path, monkeypatch):
    if why := kind.missing():
        pytest.skip(why)
    monkeypatch.setattr(peers, "PIPELINES", (16,))
    monkeypatch.setattr(peers, "IN_FLIGHT", (512,))
    place = tmp_path / "place"
    place.mkdir()
    rows = peers.measure(Scratch(place), TINY, wanted(kind))
    assert [row.name for row in rows if row.notes["manner"] != peers.BEST] == [
        contest.name for contest in wanted(kind)
    ]
    for row in rows:
        (one,) = row.rounds
        assert one.value == one.ours / one.peer > 0
        assert one.details["peer_run"]["disk_bytes_per_record"] > 0
        assert row.notes["version"] and row.notes["client"]
        if kind is Redis and row.notes["manner"] == peers.PIPELINED:
            over = row.notes["connections"]
            assert one.details["peer_run"]["connections"] == one.details["our_run"]["connections"] == over
            assert (
                one.details["our_run"]["window"] == 512 // over and one.details["peer_run"]["pipeline"] == 16
            )
            assert row.notes["depths_tried"]["ours"][over].keys() == {512 // over}
            assert row.notes["depths_tried"]["redis"][over].keys() == {16}
    assert list(place.iterdir()) == [], "a benchmark left something on the disk"

    results = report.document(rows, report.machine(tmp_path, "ext4"), "none")
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results))
    assert plot_peers.main([str(path), str(tmp_path / "peers.png")]) == 0
    assert (tmp_path / "peers.png").read_bytes().startswith(b"\x89PNG")


def test_a_large_object_is_measured_against_seaweedfs_where_it_is_installed(tmp_path):
    if why := object_peers.SeaweedFiler.missing():
        pytest.skip(why)
    rows = object_peers.measure(Scratch(tmp_path), TINY)
    assert [row.name for row in rows] == ["seaweed-large-put-fsync", "seaweed-large-put", "seaweed-large-get"]
    for row in rows:
        (one,) = row.rounds
        assert one.value == one.ours / one.peer > 0
    assert list(tmp_path.iterdir()) == [], "a benchmark left something on the disk"
    path = tmp_path / "results.json"
    path.write_text(json.dumps(report.document(rows, report.machine(tmp_path, "ext4"), "none")))
    assert plot_peers.main([str(path), str(tmp_path / "peers.png")]) == 0
    assert not (tmp_path / "peers.png").exists(), "the picture is of records"


def test_a_peer_that_is_not_there_is_named_with_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(peer, "find_program", lambda name: None)
    assert "redis-server" in Redis.missing() and "apt-get install" in Redis.missing()
    assert peers.measure(Scratch(tmp_path), TINY, wanted(Redis)) == []


def test_a_peer_that_does_not_start_is_an_error_with_its_log(tmp_path):
    if why := Redis.missing():
        pytest.skip(why)
    with pytest.raises(peer.PeerError, match="nonsense"), Redis(tmp_path / "redis", appendfsync="nonsense"):
        pass


def test_every_program_named_is_looked_for_beside_the_interpreter(monkeypatch, tmp_path):
    program = tmp_path / "python"
    (tmp_path / "weed").write_text("")
    (tmp_path / "weed").chmod(0o755)
    monkeypatch.setattr(peer.sys, "executable", str(program))
    assert peer.find_program("weed") == str(tmp_path / "weed")


def test_records_that_nats_refuses_are_an_error(tmp_path):
    if why := Nats.missing():
        pytest.skip(why)
    with Nats(tmp_path / "nats", sync_interval="2m") as server:
        address = ("127.0.0.1", server.port)
        assert nats_load.publish(address, 0.05, 2, 3, 100).records >= 6
        with pytest.raises(nats_load.NatsError):
            nats_load.publish(address, 0.05, 1, 1, 2 << 20)  # its limit is 1 MiB


def test_the_chart_has_ours_once_in_each_panel():
    def row(name, ours, theirs):
        return {
            "name": name,
            "notes": {"manner": "closed", "sync": "disk", "peer": name},
            "rounds": [{"ours": ours, "peer": theirs}, {"ours": ours + 2, "peer": theirs + 2}],
        }

    found = plot_peers.bars([row("a", 10, 5), row("b", 10, 20)], "closed", "disk")
    assert [(bar[0], bar[1], bar[4]) for bar in found] == [
        ("a", 6, False),
        ("ingest, --sync disk", 11, True),
        ("b", 21, False),
    ]


def test_the_chart_has_ours_once_for_each_number_of_pipelined_connections():
    def row(peer, over):
        notes = {"manner": "pipelined", "sync": "disk", "peer": peer, "connections": over}
        return {"notes": notes, "rounds": [{"ours": 100 + over, "peer": over}]}

    found = plot_peers.bars([row("a", 4), row("a", 64), row("b", 64)], "pipelined", "disk")
    assert sorted((bar[0], bar[1]) for bar in found if bar[4]) == [
        ("ingest, --sync disk,\n4 connections", 104),
        ("ingest, --sync disk,\n64 connections", 164),
    ]
    assert [bar[0] for bar in found if not bar[4]] == [
        "a,\n4 connections",
        "a,\n64 connections",
        "b,\n64 connections",
    ]


def test_the_best_row_has_the_fastest_run_of_each_side_in_each_round():
    def row(over, *rates):
        rounds = [
            Round.ratio(ours, peer, our_run={"connections": over}, peer_run={"connections": over})
            for ours, peer in rates
        ]
        return Row(
            f"over-{over}", "", RATIO, rounds=rounds, notes={"connections": over, "manner": "pipelined"}
        )

    found = peers.best([row(4, (600, 100), (300, 210)), row(64, (400, 200), (420, 140))])
    assert [(one.ours, one.peer, one.value) for one in found.rounds] == [(600, 200, 3.0), (420, 210, 2.0)]
    assert [
        (one.details["our_run"]["connections"], one.details["peer_run"]["connections"])
        for one in found.rounds
    ] == [(4, 64), (64, 4)]
    assert (found.must, found.reach, found.notes["connections"]) == (3.0, 6.0, [4, 64])


def test_peers_have_distinct_names_and_contests():
    found = peers.contests(FULL)
    assert len({contest.name for contest in found}) == len(found)
    assert all(issubclass(kind, Peer) for kind in PEERS)
