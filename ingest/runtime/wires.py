"""All connections of the HTTP ports of a process: who has a place, and what they may take of it together."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import time
from collections import Counter
from typing import Any, Protocol

from ingest.limits import (
    HTTP_CONNECTIONS_MAX,
    HTTP_DESCRIPTORS_KEPT,
    HTTP_RECEIVE_SIZE,
    HTTP_RECEIVE_SIZE_MIN,
    HTTP_RECEIVED_MAX,
    HTTP_REFUSED_MAX,
    HTTP_SHARE_MAX,
    HTTP_UNREAD_TIMEOUT_S,
)
from ingest.runtime.admission import Admission, Guest
from ingest.runtime.logs import LineBudget

log = logging.getLogger(__name__)


class Watched(Protocol):
    """An open connection."""

    def check(self, now: float) -> None:
        """Ends it if its client took nothing for too long."""


class Wires:
    """All connections of the HTTP ports of a process. Ends those whose clients take nothing: see `watch`. ``guests``: them,
    those in their handshake, and raw streams."""

    def __init__(self) -> None:
        self.open: set[Watched] = set()
        places, self._refused_max = _places()
        share = HTTP_SHARE_MAX if places == HTTP_CONNECTIONS_MAX else max(1, places * 3 // 4)
        self.guests = Admission(places, share)
        self.refused: set[object] = set()  # who is told that there are too many
        self._lines = LineBudget(1, HTTP_UNREAD_TIMEOUT_S / 4)
        self.heads = 0  # bytes of heads beyond what each connection may have
        self.unfinished: dict[Guest, int] = {}  # whose heads have come in part, and such bytes of each
        self._memory = memoryview(bytearray(HTTP_RECEIVE_SIZE))
        # For one receive, which is copied out of it at once: the more connections there are, the less each may have waiting.
        self.scratch = self._memory

    def count(self) -> None:
        """To be called when there are more connections, or fewer."""
        fair = HTTP_RECEIVED_MAX // max(1, len(self.open))
        self.scratch = self._memory[: max(HTTP_RECEIVE_SIZE_MIN, min(fair, HTTP_RECEIVE_SIZE))]

    def may_refuse(self, guest: object) -> bool:
        """One for which there is no place is told so, unless many are. It is `dismissed` in the end."""
        if len(self.refused) < self._refused_max:
            self.refused.add(guest)
        return guest in self.refused

    def dismissed(self, guest: Guest) -> None:
        """It has ended, however it was received."""
        self.guests.leave(guest)
        self.refused.discard(guest)

    def tell_of_tls(self, peer: Any) -> None:
        """A line for each is what a client could fill a disk with."""
        if self.may_say("spoke TLS to a port of plain HTTP"):
            log.warning("%s: the client speaks TLS to a port of plain HTTP (--tls-cert)", peer)

    def may_say(self, kind: str) -> bool:
        """Whether there may be a line about what any client can cause at will. ``kind``: of those who did, told with their
        number when there were more."""
        return self._lines.take(kind, time.monotonic())

    def has_room(self, guest: Guest, more: int, size: int) -> bool:
        """Whether ``guest`` may have ``more`` bytes of the ``size`` that there are for heads, perhaps those of others."""
        while self.heads + more > size:
            if not self._give_way(guest, more):
                return False
        return True

    def _give_way(self, guest: Guest, more: int) -> bool:
        """Ends the connection with the largest unfinished head, of the address that has most of such bytes. False when
        ``guest``'s own address would have most with ``more``, or nobody else is unfinished."""
        shares: Counter[str] = Counter()
        for one, size in self.unfinished.items():
            shares[self.guests.network(one)] += size
        mine = self.guests.network(guest)
        network, most = max(shares.items(), key=lambda share: share[1], default=(mine, 0))
        if network == mine or most <= shares[mine] + more:
            return False
        old = max(
            (one for one in self.unfinished if self.guests.network(one) == network),
            key=self.unfinished.__getitem__,
        )
        self.dismissed(old)
        old.evict()
        return True

    async def watch(self) -> None:
        """Ends the connections of clients that took not one byte for too long: what they were sent would stay in memory, and
        the version that they download pinned, for ever.

        What counts is what the client's machine has acknowledged. The kernel takes megabytes more, and lets us write again
        only when a third of them are gone, which takes a slow client longer than any patience.
        """
        while True:
            await asyncio.sleep(HTTP_UNREAD_TIMEOUT_S / 4)
            for kind, number in self._lines.lapsed(time.monotonic()):
                log.warning("%d more clients %s", number, kind)
            now = asyncio.get_running_loop().time()
            for wire in list(self.open):
                wire.check(now)


def _places() -> tuple[int, int]:
    """For how many connections this process has descriptors, and how many more it may tell that there are too many. Where
    accepting one fails nobody gives way, so that silent ones would keep everybody out."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return HTTP_CONNECTIONS_MAX, HTTP_REFUSED_MAX
    try:
        own = len(os.listdir("/proc/self/fd"))
    except OSError:  # no /proc here
        own = HTTP_DESCRIPTORS_KEPT
    room = max(2, limit - own - HTTP_DESCRIPTORS_KEPT)
    refused = min(HTTP_REFUSED_MAX, room // 8)
    places = min(HTTP_CONNECTIONS_MAX, room - refused)
    if places < HTTP_CONNECTIONS_MAX:
        log.warning(
            "this process may open %d files: so %d connections have a place, not %d (ulimit -n, LimitNOFILE=)",
            *(limit, places, HTTP_CONNECTIONS_MAX),
        )
    return places, refused
