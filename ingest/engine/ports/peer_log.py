"""The log lines about peers: what their connections did that is worth one, and how many of a kind there may be."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from ingest import limits, tls
from ingest.engine.ports._put_server import BAD_FRAMES, SPEAKS_HTTP, SPEAKS_TLS, STRAY_OUTCOME
from ingest.engine.ports.frame_port import Event, Port
from ingest.runtime import logs, openssl

log = logging.getLogger(__name__)


class PeerLog:
    """``suppressed`` is called for each line that is left out. ``offended``: what is told of the address of a peer whose
    connection was closed for bad frames; it returns for how many seconds that one is refused now."""

    def __init__(self, suppressed: Callable[[], None], offended: Callable[[str], float]) -> None:
        self._lines = logs.LineBudget(limits.PEER_LINES_MAX, limits.PEER_LINES_INTERVAL_S)
        self._suppressed = suppressed
        self._offended = offended

    def report(self, port: Port, events: list[Event] | None) -> None:
        for what, peer, number in events or ():
            if what == BAD_FRAMES:
                self._report_bad(peer, number)
            elif what == STRAY_OUTCOME:
                log.error("the committer gave %d outcomes for frames that nobody waits for", number)
            elif what in (SPEAKS_TLS, SPEAKS_HTTP):
                self._report_foreign(port, what, peer)
            elif what == tls.NOT_TLS:
                self._report_tls(port, what, peer, "this port speaks TLS only (--tls-cert)")
            elif what == tls.HANDSHAKE:
                self._report_tls(port, what, peer, openssl.error_text(number))
            else:
                closed = f"{port.name} connection closed: {what}"
                self.line(closed, logging.INFO, "%s: %s (%d)", peer, closed, number)

    def line(self, kind: str, level: int, text: str, *values: object) -> None:
        """One about something that a peer can do as often as it likes."""
        if not log.isEnabledFor(level):
            return
        if self._lines.take(kind, time.monotonic()):
            log.log(level, text, *values)
        else:
            self._suppressed()

    def tick(self, now: float) -> None:
        """Says how many were left out, when their time is over."""
        for kind, number in self._lines.lapsed(now):
            log.warning("%d more lines about peers were left out: %s", number, kind)

    def _report_foreign(self, port: Port, what: str, peer: str) -> None:
        hint = (
            "this port speaks frames (docs/protocol.md), not HTTP. HTTP is on the port of the gateway (--http-listen) "
            "and on the admin port (--admin-listen)"
        )
        if what == SPEAKS_TLS:
            hint = "this port speaks plain frames, not TLS (--tls-cert)"
        self.line(what, logging.WARNING, "%s: the peer %s on the %s port: %s", peer, what, port.name, hint)

    def _report_tls(self, port: Port, what: str, peer: str, why: str) -> None:
        self.line(what, logging.WARNING, "%s: %s connection closed: %s: %s", peer, port.name, what, why)

    def _report_bad(self, peer: str, bad_frames: int) -> None:
        address = peer.rsplit(":", 1)[0].strip("[]")
        delay = self._offended(address)
        if delay == 0:
            self.line(BAD_FRAMES, logging.WARNING, "%s: closed after %d bad frames", peer, bad_frames)
            return
        self.line(
            BAD_FRAMES,
            logging.WARNING,
            "%s: closed after %d bad frames, %s refused for %g s",
            *(peer, bad_frames, address, delay),
        )
