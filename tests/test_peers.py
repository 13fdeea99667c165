"""The benchmarks against peers, tiny, where those are installed: all is stored, each row has its figure, nothing is left."""

import json

import pytest

from bench import nats_load, peer, peers, plot_peers, report
from bench.peer import PEERS, Nats, Peer, Redis
from bench.scratch import Scratch
from bench.sizes import TINY


def wanted(kind):
    """The first contest of each manner that it takes part in."""
    by_manner = {}
    for contest in peers.CONTESTS:
        if contest.peer is kind:
            by_manner.setdefault(contest.manner, contest)
    return list(by_manner.values())


@pytest.mark.parametrize("kind", PEERS, ids=lambda kind: kind.NAME)
def test_a_peer_is_measured_where_it_is_installed(kind, tmp_path, monkeypatch):
    if why := kind.missing():
        pytest.skip(why)
    monkeypatch.setattr(peers, "DEPTHS", (16,))
    monkeypatch.setattr(peers, "WINDOWS", (64,))
    place = tmp_path / "place"
    place.mkdir()
    rows = peers.measure(Scratch(place), TINY, wanted(kind))
    assert [row.name for row in rows] == [contest.name for contest in wanted(kind)]
    for row in rows:
        (one,) = row.rounds
        assert one.value == one.ours / one.peer > 0
        assert one.details["peer_run"]["disk_bytes_per_record"] > 0
        assert row.notes["version"] and row.notes["client"]
    assert list(place.iterdir()) == [], "a benchmark left something on the disk"

    results = report.document(rows, report.machine(tmp_path, "ext4"), "none")
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results))
    assert plot_peers.main([str(path), str(tmp_path / "peers.png")]) == 0
    assert (tmp_path / "peers.png").read_bytes().startswith(b"\x89PNG")


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


def test_peers_have_distinct_names_and_contests():
    assert len({contest.name for contest in peers.CONTESTS}) == len(peers.CONTESTS)
    assert all(issubclass(kind, Peer) for kind in PEERS)
