"""The commands that work on a store's files: fsck, inspect, export. Flags to calls, results to lines."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ingest.commands.options import AS_JSON, PATH
from ingest.commands.progress_bars import steps_bar
from ingest.store.check.findings import Report

RANGES_SHOWN = 64  # of tickets, as text: a pack of every second slot has 648


@click.command()
@click.argument("directory", metavar="DIR", type=PATH)
@click.option("--repair", is_flag=True, help="Mend what can be mended; everything is copied aside before.")
@click.option("--key-file", metavar="FILE", type=PATH, help="[default: DIR/.ingest/key]")
@click.option("--wal-dir", metavar="DIR", type=PATH, help="The log. [default: DIR/.ingest/wal]")
@AS_JSON
def fsck(directory: Path, repair: bool, key_file: Path | None, wal_dir: Path | None, as_json: bool) -> None:
    """Checks every byte of the store in DIR, on which no server may run. Exits with 0 when it is clean, else with 1.

    With --repair the bad parts are copied to DIR/.ingest/quarantine, then mended: from a copy that verifies, or
    marked deleted where there is none, because a ticket that was used must not become free.

    \b
    Example:
      ingest fsck /var/lib/ingest
      ingest fsck /var/lib/ingest --repair --json
    """
    from ingest.store.check import fsck as checker

    with steps_bar() as progress:
        report = checker.fsck(directory, repair=repair, key_file=key_file, wal_dir=wal_dir, progress=progress)
    click.echo(json.dumps(report.as_json()) if as_json else fsck_text(report))
    sys.exit(0 if report.clean else 1)


def fsck_text(report: Report) -> str:
    """Problems one a line, then notes, then what was looked at."""
    lines = [f"{problem.kind}: {problem}" for problem in report.problems]
    lines += [f"note: {note}" for note in report.notes]
    objects = "packs" if report.layout == "pack" else "files"
    lines.append(
        f"{report.data_dir}: layout {report.layout}, {report.files:,} {objects}, {report.chunks:,} chunks, "
        f"{report.deleted:,} deleted, {report.bytes:,} bytes, {report.log_segments} log segments, "
        f"read in {report.seconds:.2f} s ({report.mb_per_s:,.0f} MB/s)"
    )
    lines.append(verdict(report))
    return "\n".join(lines)


def verdict(report: Report) -> str:
    """The last line: what it comes to."""
    if report.clean:
        return "clean"
    count = len(report.problems)
    lost = sum(problem.lost for problem in report.problems)
    text = f"{count} problem{'s' if count > 1 else ''}"
    if lost:
        text += f", {lost} chunk{'s' if lost > 1 else ''} without a copy"
    if not report.repaired:
        mendable = sum(bool(problem.repair) for problem in report.problems)
        return text + (
            f"; `ingest fsck {report.data_dir} --repair` mends {mendable} of them" if mendable else ""
        )
    left = sum(not problem.repaired for problem in report.problems)
    return text + (
        f", {left} not repaired" if left else ", all repaired; the copies are in .ingest/quarantine"
    )


@click.command()
@click.argument("file", metavar="FILE", type=PATH)
@AS_JSON
def inspect(file: Path, as_json: bool) -> None:
    """Says what FILE of a store is and what stands in it: a pack, a chunk, a log segment, store.json, log.json, lock
    or key file.

    Reads only, so a server may run. Of keys it shows the identifiers, never the bytes. Exits with 1 when the file is
    damaged.

    \b
    Example:
      ingest inspect /var/lib/ingest/AA/BB/CC/obj
      ingest inspect /var/lib/ingest/.ingest/wal/0000.log --json
    """
    from ingest.store.check.inspection import inspect as look

    found = look(file)
    click.echo(json.dumps(found) if as_json else inspection_text(found), nl=as_json)
    sys.exit(1 if "problem" in found else 0)


def inspection_text(found: dict[str, Any]) -> str:
    """What `inspection.inspect` found, one field a line, then a table of what there are many of."""
    lists = {name: value for name, value in found.items() if isinstance(value, list)}
    record = found.get("record", {})
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in {**found, **record}.items():
        if name in ("record", *lists):
            continue
        table.add_row(name.replace("_", " "), Text(f"{value:,}" if type(value) is int else str(value)))
    for name in ("present_tickets", "deleted_tickets"):
        if lists.get(name):
            table.add_row(name.replace("_", " "), Text(_ranges(lists.pop(name))))
    text = io.StringIO()
    console = Console(file=text, width=110, no_color=True, highlight=False)
    console.print(table)
    for name, rows in lists.items():
        if rows and isinstance(rows[0], dict):
            many = Table(
                *(column.replace("_", " ") for column in rows[0]), box=None, pad_edge=False, title=name
            )
            for row in rows:
                many.add_row(*(f"{value:,}" if type(value) is int else str(value) for value in row.values()))
            console.print(many)
    return "".join(line.rstrip() + "\n" for line in text.getvalue().splitlines())


def _ranges(ranges: list[list[str]]) -> str:
    shown = [first if first == last else f"{first}…{last}" for first, last in ranges[:RANGES_SHOWN]]
    more = (
        f" and {len(ranges) - RANGES_SHOWN} more ranges (--json shows all)"
        if len(ranges) > RANGES_SHOWN
        else ""
    )
    return " ".join(shown) + more


@click.command()
@click.argument("directory", metavar="DIR", type=PATH)
@click.argument("target", metavar="DEST", type=PATH)
@click.option("--layout", type=click.Choice(["pack", "tree"]), required=True, help="Of the new store.")
@click.option("--key-file", metavar="FILE", type=PATH, help="[default: DIR/.ingest/key]")
@click.option("--wal-dir", metavar="DIR", type=PATH, help="The log of DIR. [default: DIR/.ingest/wal]")
@AS_JSON
def export(
    directory: Path, target: Path, layout: str, key_file: Path | None, wal_dir: Path | None, as_json: bool
) -> None:
    """Copies the store in DIR, on which no server may run, into a new one in DEST, which must not exist or be empty.

    Every chunk is verified before it is written; one that fails is named and left out, and the exit code is 1. Deleted
    tickets stay deleted. The key file is copied if it is DIR/.ingest/key.

    \b
    Example:
      ingest export /var/lib/ingest /var/lib/ingest-tree --layout tree
    """
    from ingest.store.check import export as exporter

    with steps_bar() as progress:
        result = exporter.export(
            directory, target, layout, key_file=key_file, wal_dir=wal_dir, progress=progress
        )
    if as_json:
        click.echo(json.dumps(result.as_json()))
    else:
        for problem in result.problems:
            click.echo(problem)
        click.echo(
            f"{target}: layout {layout}, {result.chunks:,} chunks ({result.bytes:,} bytes), "
            f"{result.deleted:,} deleted tickets"
            + (
                f", {len(result.problems)} problems: `ingest fsck {directory}` tells more"
                if result.problems
                else ""
            )
        )
        if not result.key_copied:
            click.echo(f"the key file was not copied: start the server with --key-file {key_file or 'FILE'}")
    sys.exit(1 if result.problems else 0)
