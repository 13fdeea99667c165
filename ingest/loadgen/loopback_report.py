"""What `ingest loopback` shows people: a bar while it runs, a table when it is done."""

from __future__ import annotations

import io

from rich.console import Console
from rich.table import Table

from ingest.loadgen.loopback import LoopbackResult


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
