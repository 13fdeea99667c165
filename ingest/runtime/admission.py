"""Who has a place among the connections of a process, when more come than there are places.

A connection without a request costs its client nothing, so those give way: of the address that has most of them the one
that has been so longest. An address has a share. When it has that, its own idle connections give way first. When all of
them have requests it is refused, though there are places: those are for others. A proxy before the process is one address.

A burst of one address would evict its own connections before their requests have come. So within a share who has been idle
for a moment only stays, and the newcomer is refused. Between addresses that does not count: silent ones give way at once.
"""

from __future__ import annotations

import ipaddress
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

from ingest.limits import HTTP_FRESH_S

NETWORK_BITS = 64  # of an IPv6 address: what one client has of them


class Guest(Protocol):
    """A connection."""

    def evict(self) -> None:
        """It has given way, and ends at once. It is told once."""


class Admission:
    """``places``: for how many connections; ``share``: how many of them one address may have. A guest is idle until it is
    busy. ``clock``: seconds, never going back."""

    def __init__(self, places: int, share: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.places = places
        self.share = share
        self._clock = clock
        self._networks: dict[Guest, str] = {}
        self._idle: dict[Guest, float] = {}  # since when; the one that has been so longest is the first
        self._counts: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._networks)

    def __contains__(self, guest: Guest) -> bool:
        return guest in self._networks

    def admit(self, guest: Guest, peer: Any) -> bool:
        """Whether there is a place, perhaps that of another one. ``peer``: the address of a socket."""
        assert guest not in self._networks
        network = network_of(peer)
        if self._counts[network] >= self.share:
            old = next((idle for idle in self._idle if self._networks[idle] == network), None)
            if old is not None and self._clock() - self._idle[old] < HTTP_FRESH_S:
                old = None
        elif len(self._networks) >= self.places:
            old = max(self._idle, key=lambda idle: self._counts[self._networks[idle]], default=None)
        else:
            old = guest
        if old is None:
            return False
        if old is not guest:
            self.leave(old)
            old.evict()
        self._networks[guest] = network
        self._idle[guest] = self._clock()
        self._counts[network] += 1
        return True

    def leave(self, guest: Guest) -> None:
        """A guest, or one that was never admitted, or has given way."""
        network = self._networks.pop(guest, None)
        self._idle.pop(guest, None)
        if network is not None:
            self._counts[network] -= 1
            if not self._counts[network]:
                del self._counts[network]

    def network(self, guest: Guest) -> str:
        """Of a guest; "" of who has left."""
        return self._networks.get(guest, "")

    def busy(self, guest: Guest) -> None:
        """It has a request, and its place until that is answered."""
        self._idle.pop(guest, None)

    def idle(self, guest: Guest) -> None:
        """It has none any more."""
        if guest in self._networks:
            self._idle[guest] = self._clock()


def network_of(peer: Any) -> str:
    """Of one client: an IPv4 address, or the first half of an IPv6 address; "" of what has none."""
    host = peer[0] if isinstance(peer, tuple) and peer else ""
    if ":" not in host:
        return host
    address = ipaddress.IPv6Address(host.partition("%")[0])
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((address, NETWORK_BITS), strict=False))
