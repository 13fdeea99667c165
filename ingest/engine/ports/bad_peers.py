"""Whom a worker refuses for a while, because connections of that address were closed for bad frames."""

from __future__ import annotations

from dataclasses import dataclass

from ingest import limits


@dataclass
class _Peer:
    delay: float  # seconds, of the last offence
    until: float  # refused before this moment


class BadPeers:
    """Addresses and how long each is refused. Times in seconds of a clock that the caller reads.

    The first offence costs ``delay`` seconds, each further one twice as much as the one before, up to
    ``BAD_PEER_DELAY_MAX_S``. An address that stays away for as long as it was refused, after that, is forgotten. A
    ``delay`` of 0 refuses nobody.
    """

    def __init__(self, delay: float) -> None:
        self._delay = delay
        self._peers: dict[str, _Peer] = {}

    def __len__(self) -> int:
        return len(self._peers)

    def offended(self, address: str, now: float) -> float:
        """A connection from ``address`` was closed for bad frames; returns how long it is refused."""
        if self._delay <= 0:
            return 0.0
        known = self._peers.pop(address, None)
        lapsed = known is None or now >= known.until + known.delay
        delay = self._delay if known is None or lapsed else 2 * known.delay
        delay = min(delay, max(self._delay, limits.BAD_PEER_DELAY_MAX_S))
        if len(self._peers) >= limits.BAD_PEERS_MAX:
            self._make_room(now)
        self._peers[address] = _Peer(delay, now + delay)
        return delay

    def refused(self, address: str, now: float) -> bool:
        known = self._peers.get(address)
        return known is not None and now < known.until

    def _make_room(self, now: float) -> None:
        """Forgets those whose time is over; when there are none, the one whose refusal ends first."""
        over = [address for address, peer in self._peers.items() if now >= peer.until + peer.delay]
        for address in over or [min(self._peers, key=lambda address: self._peers[address].until)]:
            del self._peers[address]
