"""The live line of the load generator on a terminal: frames, rate, latencies so far."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import TaskID

    from ingest.loopback import Progress


@contextmanager
def live_progress(stream: IO[str] | None = None) -> Iterator[Callable[[Progress], None] | None]:
    """What to give to ``loopback.run`` as ``progress``; None when ``stream`` (stderr by default) is no terminal."""
    stream = stream if stream is not None else sys.stderr
    if not stream.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description:>6}"),
        BarColumn(),
        TextColumn("{task.fields[words]}"),
        TimeElapsedColumn(),
    )
    with Bars(*columns, console=Console(file=stream)) as bars:
        tasks: dict[str, TaskID] = {}

        def watch(progress: Progress) -> None:
            if progress.phase not in tasks:
                tasks[progress.phase] = bars.add_task(progress.phase, total=None, words="")
            of_total = f"/{progress.total:,}" if progress.total is not None else ""
            words = f"{progress.done:,}{of_total}"
            if progress.phase == "put":
                words += (
                    f" · {progress.frames_per_s:,.0f} frames/s"
                    f" · p50 {progress.p50_ms:.3f} ms · p99 {progress.p99_ms:.3f} ms"
                )
            bars.update(tasks[progress.phase], completed=progress.done, total=progress.total, words=words)
            bars.refresh()

        yield watch
