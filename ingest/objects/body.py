"""The bytes of an upload on their way in: they are written into the buffers of the receiver, a piece at a time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterable, AsyncIterator
from typing import Protocol


class Body(Protocol):
    @property
    def ended(self) -> bool:
        """It is known that nothing more comes."""

    async def fill(self, buffer: memoryview, patience: float | None = None) -> int:
        """Writes the next bytes to the start of ``buffer`` and returns their number: as many as it takes, fewer only when
        the body has ended, or when they did not come within ``patience`` seconds. What it raises, fails the upload."""

    async def close(self) -> None:
        """Nobody fills anything from it any more."""


class IteratedBody:
    """Of pieces as they come from anywhere."""

    def __init__(self, pieces: AsyncIterable[bytes]) -> None:
        self.ended = False
        self._pieces: AsyncIterator[bytes] = aiter(pieces)
        self._rest = memoryview(b"")  # of the last piece, not given yet
        self._coming: asyncio.Task[memoryview] | None = (
            None  # the next piece, when patience ended before it came
        )

    async def fill(self, buffer: memoryview, patience: float | None = None) -> int:
        deadline = None if patience is None else asyncio.get_running_loop().time() + patience
        filled = 0
        while filled < len(buffer):
            if not self._rest:
                if self.ended or not await self._next(deadline):
                    break
                continue
            here = min(len(buffer) - filled, len(self._rest))
            buffer[filled : filled + here] = self._rest[:here]
            self._rest = self._rest[here:]
            filled += here
        return filled

    async def _next(self, deadline: float | None) -> bool:
        """Whether the next piece came before the deadline."""
        try:
            if deadline is None and self._coming is None:
                self._rest = await self._take()
                return True
            self._coming = self._coming or asyncio.create_task(self._take())
            left = None if deadline is None else deadline - asyncio.get_running_loop().time()
            await asyncio.wait([self._coming], timeout=left)
            if not self._coming.done():
                return False
            task, self._coming = self._coming, None
            self._rest = task.result()
        except StopAsyncIteration:
            self.ended = True
        return not self.ended

    async def _take(self) -> memoryview:
        return memoryview(await anext(self._pieces))

    async def close(self) -> None:
        task, self._coming = self._coming, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(
                asyncio.CancelledError, Exception
            ):  # of a body that nobody wants any more
                await task


def as_body(source: Body | AsyncIterable[bytes]) -> Body:
    return IteratedBody(source) if isinstance(source, AsyncIterable) else source
