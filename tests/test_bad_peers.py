"""Whom a worker refuses: what making room in its table may forget, at each moment."""

from __future__ import annotations

import copy

import pytest

from ingest import limits
from ingest.engine.ports.bad_peers import BadPeers

DELAY = 4.0


def is_forgotten(peers: BadPeers, address: str, now: float) -> bool:
    """Its next offence would cost as much as a first one."""
    return copy.deepcopy(peers).offended(address, now) == DELAY


@pytest.mark.parametrize("now", [moment / 2 for moment in range(2, 70)])
@pytest.mark.parametrize("offences", [(1, 1, 1), (1, 2, 3), (3, 3, 1), (2, 1, 2)])
def test_room_is_made_by_those_who_are_forgotten_or_by_one(
    monkeypatch: pytest.MonkeyPatch, offences: tuple[int, ...], now: float
) -> None:
    """All those whose time is over, to the moment: else the next one to come would push out one who is refused."""
    monkeypatch.setattr(limits, "BAD_PEERS_MAX", len(offences))
    peers = BadPeers(DELAY)
    names = [f"peer {number}" for number in range(len(offences))]
    for name, count in zip(names, offences, strict=True):
        for _ in range(count):
            peers.offended(name, 1.0)
    stay = [name for name in names if not is_forgotten(peers, name, now)]
    refused = {name for name in names if peers.refused(name, now)}
    peers.offended("another", now)
    assert len(peers) == 1 + min(len(stay), limits.BAD_PEERS_MAX - 1)
    let_in = {name for name in refused if not peers.refused(name, now)}
    assert len(let_in) <= (len(stay) == len(names))
    assert peers.refused("another", now)
