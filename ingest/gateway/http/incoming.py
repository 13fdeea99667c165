"""Bytes that a connection receives straight into the buffers of whoever reads them: large bodies, and raw streams.

Nothing is received while nobody reads: what the client sends then waits in its own machine and the kernel.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ingest.gateway.http.failures import ClientGoneError
from ingest.limits import HTTP_STALL_TIMEOUT_S


class Incoming:
    """``left``: bytes that come, None if only the peer knows that. The owner of the connection calls ``buffer``,
    ``received`` and ``finish``. ``waste``: memory for what is received and not wanted any more."""

    def __init__(self, transport: asyncio.Transport, left: int | None, waste: memoryview) -> None:
        assert left is None or left > 0
        self._transport = transport
        self._left = left
        self._waste = waste
        self._target: memoryview | None = None
        self._filled = 0
        self._least = 1  # bytes for which somebody waits
        self._waiter: asyncio.Future[None] | None = None
        self._lost: str | None = None  # why nothing comes any more, and it is not the end
        self._discarded: Callable[[], None] | None = None
        self._early = bytearray()  # what came while nobody read
        self._came = False  # all of it
        transport.pause_reading()

    # --- the connection

    def buffer(self) -> memoryview:
        """Where what comes next belongs."""
        if self._target is not None:
            return self._target[self._filled :]
        return self._waste

    def received(self, size: int) -> None:
        if self._came:
            return  # more than was said: it belongs to nobody
        if self._left is not None:
            size = min(size, self._left)
            self._left -= size
            self._came = self._left == 0
        if self._target is not None:
            self._filled += size
            if self._filled >= self._least or self._came:
                self._transport.pause_reading()
                self._awake()
        elif self._discarded is None:  # the loop reads on when a connection is new, whoever paused it
            self._early += self._waste[:size]
            self._transport.pause_reading()
        elif self._came:
            self._end_discarding()

    def finish(self, lost: str | None = None) -> None:
        """Nothing comes any more: that is the end, unless ``lost`` or the number of bytes says that it is not."""
        if not self._came and self._lost is None:
            if lost is None and self._left is None:
                self._came = True
            else:
                self._lost = lost or f"the connection ended {self._left} bytes before the body did"
        self._awake()
        self._end_discarding()

    def _end_discarding(self) -> None:
        then, self._discarded = self._discarded, _nothing
        if then is not None:
            then()

    def _awake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # --- its reader

    @property
    def ended(self) -> bool:
        """All of it was given."""
        return self._came and not self._early

    async def fill(self, buffer: memoryview, patience: float | None = None, some: bool = False) -> int:
        """See `Body.fill`. ``some``: one byte is enough. ClientGoneError; TimeoutError when not one byte came for too
        long."""
        if not len(buffer):
            return 0
        if self._early:
            size = min(len(self._early), len(buffer))
            buffer[:size] = self._early[:size]
            del self._early[:size]
            return size + (0 if some else await self.fill(buffer[size:], patience))
        if self._lost is not None:
            raise ClientGoneError(self._lost)
        if self._came:
            return 0
        assert self._target is None, "one reader at a time"
        self._target = buffer if self._left is None else buffer[: self._left]
        self._filled = 0
        self._least = 1 if some else len(self._target)
        self._transport.resume_reading()
        try:
            await self._wait(patience)
            if self._lost is not None:
                raise ClientGoneError(self._lost)
            return self._filled
        finally:
            self._target = self._waiter = None
            if not self._came and self._lost is None:
                self._transport.pause_reading()

    async def _wait(self, patience: float | None) -> None:
        """Until there is enough, or for ``patience`` seconds."""
        loop = asyncio.get_running_loop()
        deadline = None if patience is None else loop.time() + patience
        seen = 0
        while True:
            self._waiter = loop.create_future()
            left = HTTP_STALL_TIMEOUT_S if deadline is None else deadline - loop.time()
            try:
                async with asyncio.timeout(left):
                    await self._waiter
                return
            except TimeoutError:
                if deadline is not None:
                    return
                if self._filled == seen:
                    raise
                seen = self._filled

    def discard(self, then: Callable[[], None]) -> None:
        """What still comes is wanted by nobody; ``then`` is called when nothing comes any more."""
        self._discarded = then
        if self._came or self._lost is not None:
            self._end_discarding()
        else:
            self._transport.resume_reading()


def _nothing() -> None:
    pass
