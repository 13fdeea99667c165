"""What `ingest loopback` shows people: a bar while it runs, a table when it is done."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from ingest.loadgen.loopback import LoopbackResult
from ingest.loadgen.loopback import Progress as Moment


@contextmanager
def show_progress() -> Iterator[Callable[[Moment], None] | None]:
    """Yields what `loopback.run` is to call; None when stderr is no terminal, where nobody watches a bar."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (
        TextColumn("{task.description:6}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(
            "{task.fields[rate]:,.0f} frames/s  p50 {task.fields[p50]:.2f} ms  p99 {task.fields[p99]:.2f} ms"
        ),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def show(moment: Moment) -> None:
            fields: dict[str, Any] = {"rate": moment.frames_per_s, "p50": moment.p50_ms, "p99": moment.p99_ms}
            task = tasks.get(moment.phase)
            if task is None:
                task = tasks[moment.phase] = bars.add_task(moment.phase, total=moment.total, **fields)
            bars.update(task, completed=moment.done, total=moment.total, **fields)

        yield show


def report_text(result: LoopbackResult) -> str:
    """The result as a table of lines."""
    table = Table(box=None, show_header=False, pad_edge=False)
    statuses = ", ".join(f"{name} {count:,}" for name, count in result.statuses.items())
    rows = [
        ("frames", f"{result.frames:,} from ticket {result.first} on"),
        ("statuses", statuses or "none"),
        ("time", f"{result.seconds:.3f} s"),
        ("rate", f"{result.frames_per_s:,.0f} frames/s, {result.mb_per_s:,.1f} MB/s"),
        ("latency", f"p50 {result.p50_ms:.3f} ms, p99 {result.p99_ms:.3f} ms, p99.9 {result.p999_ms:.3f} ms"),
    ]
    if result.verify:
        rows.append(("verified", f"{result.verified:,} of {result.frames:,}, {result.wrong:,} wrong"))
    for row in rows:
        table.add_row(*row)
    text = io.StringIO()
    Console(file=text, width=110, no_color=True, highlight=False).print(table)
    return "".join(line.rstrip() + "\n" for line in text.getvalue().splitlines())
