"""One look for all who ask: anybody may ask as often as he likes, and each look costs another process something."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from ingest.errors import ForeignStoreError, PeerError

T = TypeVar("T")


class SharedLook(Generic[T]):
    """``look``: one at a time. What it returns, or raises of PeerError and ForeignStoreError, is told to all who ask within
    ``kept`` seconds."""

    def __init__(self, look: Callable[[], Awaitable[T]], kept: float) -> None:
        self._look = look
        self._kept = kept
        self._looking = asyncio.Lock()
        self._found: tuple[T] | PeerError | ForeignStoreError | None = None
        self._kept_until = 0.0  # seconds of the machine's monotonic clock

    async def read(self) -> T:
        """Who waits behind another one is told the same at once, not after as long."""
        async with self._looking:
            if self._found is None or time.monotonic() >= self._kept_until:
                try:
                    self._found = (await self._look(),)
                except (PeerError, ForeignStoreError) as error:
                    self._found = error
                self._kept_until = time.monotonic() + self._kept
            if isinstance(self._found, (PeerError, ForeignStoreError)):
                raise self._found.with_traceback(None)  # it would grow with each who asks
            return self._found[0]
