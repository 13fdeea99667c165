"""Links to one object each, which are good for some minutes and need no token.

A browser that follows a link writes a file of any size to the disk by itself, but sends no token then. So who has one asks
for a link first. Its signature says that this gateway made it: the key is drawn by the parent of all HTTP processes.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Mapping
from urllib.parse import urlencode

import msgspec
from blake3 import blake3

from ingest.gateway.http.failures import Failure
from ingest.limits import LINK_LIFE_S

PATH = "/download"
PARAMETERS = frozenset(("namespace", "name", "until", "signature"))


class DownloadLinks:
    """``key``: 32 bytes, of all processes that serve the port. ``clock``: seconds since 1970."""

    def __init__(self, key: bytes, clock: Callable[[], float] = time.time) -> None:
        assert len(key) == 32, len(key)
        self._key = key
        self._clock = clock

    def make(self, namespace: str, name: str) -> str:
        """Path and query."""
        until = str(int(self._clock() + LINK_LIFE_S))
        signature = self._sign(namespace, name, until)
        query = {"namespace": namespace, "name": name, "until": until, "signature": signature}
        return f"{PATH}?{urlencode(query)}"

    def check(self, query: Mapping[str, str]) -> tuple[str, str]:
        """Namespace and name. Failure 403."""
        if query.keys() != PARAMETERS:
            raise _refusal("a link to a download has a namespace, a name, a time and a signature")
        namespace, name, until = query["namespace"], query["name"], query["until"]
        signature = self._sign(namespace, name, until)
        if not hmac.compare_digest(signature.encode(), query["signature"].encode("utf-8", "surrogateescape")):
            raise _refusal("this gateway has not made this link, or it was started again since")
        if int(until) < self._clock():
            raise _refusal("this link has had its time: ask for another one")
        return namespace, name

    def _sign(self, namespace: str, name: str, until: str) -> str:
        return blake3(msgspec.json.encode([namespace, name, until]), key=self._key).hexdigest()


def _refusal(message: str) -> Failure:
    return Failure(403, "bad_link", message)
