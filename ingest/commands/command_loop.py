"""How an asynchronous command runs: in an event loop that signals end."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Coroutine
from typing import Any


def run_loop(work: Coroutine[Any, Any, Any]) -> Any:
    """An event loop for one command. TERM ends it as INT does: what was begun is undone."""

    async def until_done() -> Any:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await work

    try:
        return asyncio.run(until_done())
    except asyncio.CancelledError:
        sys.exit(128 + signal.SIGTERM)
