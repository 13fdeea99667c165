"""The bars of long commands, on stderr when that is a terminal: where nobody watches, nothing is drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from ingest.commands.object_files import shown

if TYPE_CHECKING:
    from ingest.loadgen.loopback import Progress as Moment
    from ingest.store.check import findings


@contextmanager
def steps_bar() -> Iterator[findings.Progress]:
    """Yields what a long call reports its steps to: what, how many are done, of how many (0: nobody knows)."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda *_: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total or None)
            bars.update(tasks[what], completed=done, total=total or None)

        yield show


@contextmanager
def transfer_bar(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Yields what is told of each piece how many bytes it has. The bar has rate and time left."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task(shown(what), total=total)
        yield lambda size: bars.advance(task, size)


@contextmanager
def load_bar() -> Iterator[Callable[[Moment], None] | None]:
    """Yields what `loopback.run` is to call; None when there is no bar."""
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
