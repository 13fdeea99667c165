"""What is told of peers: each event has its line, each kind of line its budget, and no budget keeps a bad peer in."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from ingest import limits, tls
from ingest.engine.ports._get_server import BAD_REQUEST, PARTIAL_REQUEST, UNREAD_REPLIES
from ingest.engine.ports._put_server import (
    BAD_FRAMES,
    IDLE,
    PARTIAL_FRAME,
    SPEAKS_HTTP,
    SPEAKS_TLS,
    STRAY_OUTCOME,
    UNREAD_ACKS,
)  # fmt: skip
from ingest.engine.ports.bad_peers import BadPeers
from ingest.engine.ports.frame_port import Port
from ingest.engine.ports.peer_log import PeerLog

PUT, GET = (Port(kind, [], cast(Any, None)) for kind in (b"P", b"G"))
PEER = "192.0.2.7:4711"
CLOSED = [
    (port, what)
    for port, names in (
        (PUT, (UNREAD_ACKS, PARTIAL_FRAME, IDLE, tls.SLOW_HANDSHAKE)),
        (GET, (BAD_REQUEST, UNREAD_REPLIES, PARTIAL_REQUEST, IDLE, tls.SLOW_HANDSHAKE)),
    )
    for what in names
]
KINDS = [
    *CLOSED,
    *[(port, what) for port in (PUT, GET) for what in (SPEAKS_TLS, SPEAKS_HTTP, tls.NOT_TLS, tls.HANDSHAKE)],
    (PUT, BAD_FRAMES),
]


def name_of(value: Port | str) -> str:
    return value if isinstance(value, str) else value.name


class Rig:
    """Lines of `level` and above are told; `refused_for`: what the offences of a peer cost it."""

    def __init__(self, records: list[logging.LogRecord], refused_for: float = 0.0) -> None:
        self.suppressed = 0
        self.offenders: list[str] = []
        self.refused_for = refused_for
        self.records = records
        self.log = PeerLog(self._suppress, self._offended)

    def _suppress(self) -> None:
        self.suppressed += 1

    def _offended(self, address: str) -> float:
        self.offenders.append(address)
        return self.refused_for

    def report(self, port: Port, what: str, peer: str = PEER, number: int = 3) -> list[tuple[int, str]]:
        """(level, text) of what is told."""
        self.records.clear()
        self.log.report(port, [(what, peer, number)])
        return [(record.levelno, record.getMessage()) for record in self.records]


@pytest.fixture
def make(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Rig]]:
    monkeypatch.setattr("time.monotonic", lambda: 100.0)  # one interval

    def make(level: int = logging.INFO, **options: float) -> Rig:
        caplog.set_level(level)
        return Rig(caplog.records, **options)

    yield make


@pytest.mark.parametrize(("port", "what"), CLOSED, ids=name_of)
def test_what_a_connection_was_closed_for(make, port, what):
    assert make().report(port, what) == [(logging.INFO, f"{PEER}: {port.name} connection closed: {what} (3)")]


@pytest.mark.parametrize("port", [PUT, GET], ids=name_of)
def test_who_speaks_another_protocol_is_told_which_port_it_wanted(make, port):
    for what, hint in ((SPEAKS_HTTP, "--http-listen"), (SPEAKS_TLS, "--tls-cert")):
        ((level, text),) = make().report(port, what)
        assert text.startswith(f"{PEER}: the peer {what} on the {port.name} port: ") and hint in text
        assert level == logging.WARNING
    for what, why in ((tls.NOT_TLS, "--tls-cert"), (tls.HANDSHAKE, "")):
        ((level, text),) = make().report(port, what)
        assert text.startswith(f"{PEER}: {port.name} connection closed: {what}: ") and why in text
        assert level == logging.WARNING


def test_what_no_peer_can_cause_is_told_each_time(make):
    rig = make()
    for _ in range(3 * limits.PEER_LINES_MAX):
        ((level, text),) = rig.report(PUT, STRAY_OUTCOME, "committer", 5)
        assert level == logging.ERROR and " 5 outcomes" in text
    assert rig.suppressed == 0


@pytest.mark.parametrize("refused_for", [0.0, 2.5])
@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("192.0.2.7:4711", "192.0.2.7"),
        ("[2001:db8::7]:4711", "2001:db8::7"),
        ("[fe80::1%eth0]:4711", "fe80::1%eth0"),
    ],
)
def test_who_sent_bad_frames_is_named_as_whom_a_worker_refuses(make, peer, address, refused_for):
    rig = make(refused_for=refused_for)
    refused = f", {address} refused for 2.5 s" if refused_for else ""
    assert rig.report(PUT, BAD_FRAMES, peer) == [
        (logging.WARNING, f"{peer}: closed after 3 bad frames{refused}")
    ]
    assert rig.offenders == [address]


@pytest.mark.parametrize("level", [logging.INFO, logging.ERROR], ids=["told", "not told"])
def test_a_flood_of_lines_keeps_nobody_from_being_refused(make, level):
    rig = make(level, refused_for=1.0)
    offenders = [f"192.0.2.{i}" for i in range(2 * limits.PEER_LINES_MAX)]
    for address in offenders:
        rig.report(PUT, BAD_FRAMES, f"{address}:1")
    assert rig.offenders == offenders
    assert rig.suppressed == (limits.PEER_LINES_MAX if level == logging.INFO else 0)


@pytest.mark.parametrize(("port", "what"), KINDS, ids=name_of)
def test_a_flood_of_one_kind_hides_no_other(make, port, what):
    """And what was left out is counted, and told once, under a name that says which it was."""
    rig = make()
    told = [len(rig.report(port, what)) for _ in range(limits.PEER_LINES_MAX + 2)]
    assert told == [1] * limits.PEER_LINES_MAX + [0, 0]
    assert rig.suppressed == 2
    foreign = what in (SPEAKS_TLS, SPEAKS_HTTP, tls.NOT_TLS, tls.HANDSHAKE)
    for other_port, other in KINDS:
        if other != what or (other_port is not port and not foreign):  # those have one budget for both ports
            assert len(rig.report(other_port, other)) == 1, (other_port.name, other)
    assert rig.suppressed == 2
    for now, lines in ((100.0, 0), (100.0 + limits.PEER_LINES_INTERVAL_S, 1), (10_000.0, 0)):
        rig.records.clear()
        rig.log.tick(now)
        assert len(rig.records) == lines
        assert all(
            record.getMessage().startswith("2 more lines about peers were left out: ")
            and record.getMessage().endswith(what)
            for record in rig.records
        )


def test_a_line_that_is_not_asked_for_is_none_that_was_left_out(make, caplog):
    """With --log-level warning, what is told at level info counts nowhere: nobody misses it."""
    rig = make(logging.WARNING)
    for _ in range(3 * limits.PEER_LINES_MAX):
        assert rig.report(PUT, IDLE) == []
    assert rig.suppressed == 0
    rig.log.tick(10_000.0)
    assert rig.records == []
    caplog.set_level(logging.INFO)
    assert len(rig.report(PUT, IDLE)) == 1


def make_full(monkeypatch: pytest.MonkeyPatch, offences: dict[str, int]) -> BadPeers:
    """A full table, at 0.0: each peer with so many offences, all made at the same moment, in this order."""
    monkeypatch.setattr(limits, "BAD_PEERS_MAX", len(offences))
    peers = BadPeers(1.0)
    for address, times in offences.items():
        for _ in range(times):
            peers.offended(address, 0.0)  # refused for 1, 2, 4, 8 … seconds
    return peers


@pytest.mark.parametrize("shortest", range(4))
def test_when_the_table_is_full_whose_refusal_ends_first_is_let_in_first(monkeypatch, shortest):
    """Wherever that one stands: who came with many addresses must not get the worst of them out with a new one."""
    names = [f"peer {i}" for i in range(4)]
    peers = make_full(monkeypatch, {name: 1 if i == shortest else 4 for i, name in enumerate(names)})
    peers.offended("new", 0.5)
    assert [peers.refused(name, 0.5) for name in names] == [i != shortest for i in range(4)]
    assert peers.refused("new", 0.5) and len(peers) == 4


@pytest.mark.parametrize("again", range(4))
def test_an_offence_of_one_who_is_in_the_full_table_lets_nobody_out(monkeypatch, again):
    names = [f"peer {i}" for i in range(4)]
    peers = make_full(monkeypatch, dict.fromkeys(names, 2))
    assert peers.offended(names[again], 0.5) == 4.0
    assert [peers.refused(name, 1.9) for name in names] == [True] * 4
    assert [peers.refused(name, 2.0) for name in names] == [i == again for i in range(4)]


def test_making_room_forgets_no_offence_that_counts_yet(monkeypatch):
    """A peer that may come again, and would be refused for longer then, goes after those that are forgotten anyway."""
    peers = make_full(monkeypatch, {"forgotten": 1, "may come": 2, "refused": 4})
    # At 3.0: over since 2.0 (and as long again), over since 2.0 of 4.0, refused until 8.0.
    peers.offended("new", 3.0)
    assert len(peers) == 3
    assert peers.refused("refused", 3.0) and peers.refused("new", 3.0)
    assert peers.offended("may come", 3.5) == 4.0
