"""A range of tickets piece by piece, with a few pieces on their way before they are asked for."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Iterator
from typing import Any, TypeVar

from ingest import limits
from ingest.ticket import TicketRange

T = TypeVar("T")


def pieces_of(first: str, count: int, count_max: int) -> Iterator[range]:
    """The indices of ``count`` tickets from ``first`` on, at most ``count_max`` at a time. TicketError, at once."""
    tickets = TicketRange(first, count).indices
    return (tickets[at : at + count_max] for at in range(0, len(tickets), count_max))


async def ahead(
    parts: Iterable[range], read: Callable[[range], Coroutine[Any, Any, T]]
) -> AsyncGenerator[T, None]:
    """What ``read`` gives of each part, in order; a few are read ahead of the caller."""
    coming: deque[asyncio.Task[T]] = deque()
    try:
        for part in parts:
            coming.append(asyncio.create_task(read(part)))
            if len(coming) > limits.GET_AHEAD:
                yield await coming.popleft()
        while coming:
            yield await coming.popleft()
    finally:
        for task in coming:  # the caller stopped early, or a part failed
            if task.done() and not task.cancelled():
                task.exception()  # told to nobody: an earlier part comes first
            task.cancel()
