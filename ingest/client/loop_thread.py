"""An event loop in a thread of its own: how code without one uses what is asynchronous."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import CancelledError
from typing import Any, TypeVar

from ingest.errors import ConnectionLostError, ForkedError
from ingest.runtime.fork_guard import ForkGuard

T = TypeVar("T")


class LoopThread:
    """An event loop that runs in a daemon thread, of the process that made it."""

    def __init__(self) -> None:
        self._guard = ForkGuard("this client")
        self._loop = asyncio.new_event_loop()
        self._lock = threading.Lock()  # nothing is given to the loop once it was told to stop
        self._stopped = False
        self._thread = threading.Thread(target=self._loop.run_forever, name="ingest client", daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        return not self._stopped and not self._guard.forked

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What ``work`` returns. An interrupt of the caller cancels it. ForkedError, ConnectionLostError once it ended."""
        try:
            self._guard.check()  # before the lock: a thread that is not here may have held it
        except ForkedError:
            work.close()
            raise
        with self._lock:
            if self._stopped:
                work.close()
                raise ConnectionLostError("the client is closed")
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except CancelledError:
            raise ConnectionLostError("the client was closed") from None
        finally:
            future.cancel()

    def stop(self, last: Coroutine[Any, Any, None] | None = None) -> None:
        """Runs ``last``, cancels what is left, ends the thread. Does nothing the second time, and nothing after a fork: the
        loop is the other process's."""
        if self._guard.forked:
            if last is not None:
                last.close()
            return
        with self._lock:
            if self._stopped:
                if last is not None:
                    last.close()
                return
            self._stopped = True
        asyncio.run_coroutine_threadsafe(self._end(last), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self, last: Coroutine[Any, Any, None] | None) -> None:
        if last is not None:
            await last
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
