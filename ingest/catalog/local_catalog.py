"""The catalog changed within the process, for those who have no service: a command beside a stopped gateway, or tests.

SQLite works in a thread of its own, so that the event loop does not wait for the disk; what is asked while it commits
goes into the next transaction together.
"""

from __future__ import annotations

import asyncio
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

from ingest.catalog.catalog_caller import CatalogCaller
from ingest.catalog.catalog_calls import Call, run_together
from ingest.catalog.catalog_changes import Catalog
from ingest.errors import ConnectionLostError, IngestError
from ingest.limits import CATALOG_BATCH_MAX


class LocalCatalog(CatalogCaller):
    """Made by ``await LocalCatalog.open(path)``. `CatalogAccess`; other processes may change the catalog beside it."""

    def __init__(self, catalog: Catalog, thread: ThreadPoolExecutor) -> None:
        super().__init__()
        self._catalog = catalog
        self._thread = thread
        self._queue: deque[tuple[Call, asyncio.Future[Any]]] = deque()
        self._running: asyncio.Task[None] | None = None
        self._closed = False

    @classmethod
    async def open(cls, path: Path) -> Self:
        """The catalog at ``path``, made if there never was one. CatalogError, DiskError."""
        thread = ThreadPoolExecutor(1, "catalog")
        try:
            return cls(await asyncio.get_running_loop().run_in_executor(thread, Catalog, path), thread)
        except BaseException:
            thread.shutdown(wait=False)
            raise

    async def close(self) -> None:
        self._closed = True
        if self._running is not None:
            await self._running
        await asyncio.get_running_loop().run_in_executor(self._thread, self._catalog.close_whole)
        self._thread.shutdown()

    async def _ask(self, kind: Any, call: str, *arguments: Any) -> Any:
        if self._closed:
            raise ConnectionLostError("the catalog is closed")
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._queue.append(((call, arguments), answer))
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        return await answer

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._queue:
            batch = [self._queue.popleft() for _ in range(min(len(self._queue), CATALOG_BATCH_MAX))]
            calls = [call for call, _ in batch]
            outcomes = await loop.run_in_executor(self._thread, run_together, self._catalog, calls)
            for (_, answer), outcome in zip(batch, outcomes, strict=True):
                if answer.done():
                    continue  # its caller was cancelled
                if isinstance(outcome, IngestError):
                    answer.set_exception(outcome)
                else:
                    answer.set_result(outcome)
        self._running = None
