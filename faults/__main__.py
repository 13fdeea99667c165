"""`python -m faults --part N`: one part in its long form; its result goes to `faults/results/` and into `docs/faults.md`."""

from __future__ import annotations

import importlib
import json
import random
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import click

from bench import report
from bench.scratch import file_system
from faults import progress
from faults.outcome import Outcome
from faults.stacked import STACKS, stacked, what_lacks

HERE = Path(__file__).parent
RESULTS = HERE / "results"
DOCUMENT = HERE.parent / "docs" / "faults.md"
PARTS = (  # part 1 first
    "kill",
    "steps",
    "power_cut",
    "call_order",
    "failing_calls",
    "corruption",
    "wire",
    "hung",
    "full_disk",
    "two_catalogs",
)
POWER_CUT = 3
STACKED_SHARE = (
    5  # on another file system a fifth of the cases: each one has the syncs, which are what differs there
)
STACKED_PARTS_MAX = 4  # in later parts calls fail, or files are damaged: that is the same on any file system
BEGIN, END = "<!-- results: written by python -m faults -->\n", "<!-- end of results -->\n"


def part(number: int) -> ModuleType:
    """The module of part `number`."""
    return importlib.import_module(f"faults.{PARTS[number - 1]}")


def table(results: list[dict[str, Any]]) -> str:
    """The results as a table in Markdown."""
    lines = [
        "| part | what | cases | losses | seconds | seed | what was really tested | date, commit, machine |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        counts = ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in result["counts"].items())
        losses = f"NOT RUN: {result['not_run']}" if result["not_run"] else str(len(result["losses"]))
        machine = result["machine"]
        lines.append(
            f"| {result['part']} | {result['title']} | {result['cases']:,} | {losses} | {result['seconds']:.0f} "
            f"| {result['seed']} | {counts} | {result['date']}, {result['commit']}, {machine['cpu']}, "
            f"{machine['cores']} cores, {machine['file_system']}, Linux {machine['kernel']} |"
        )
    return "\n".join(lines) + "\n"


def write_document() -> None:
    """Puts the table of all committed results into `docs/faults.md`, between its two marks."""
    results = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("part-*.json"))]
    results.sort(key=lambda result: int(result["part"]))
    before, _, rest = DOCUMENT.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    DOCUMENT.write_text(before + BEGIN + table(results) + END + after)


def run_on(stack: str | None, module: ModuleType, seed: int, cases: int, place: Path) -> Outcome:
    """Runs a part with its data in the directory `place`, or in `stack` mounted there. In part 3 that is on the disk which
    loses power."""
    if stack is None:
        return cast(Outcome, module.run(seed, cases, place))
    if module.NUMBER == POWER_CUT:
        return cast(Outcome, module.run(seed, cases, place, file_systems=[f"ext4+{stack}"]))
    if reason := what_lacks(stack, place):
        return Outcome(seed, 0, not_run=reason)
    below, point = place / "below", place / "mounted"
    below.mkdir()
    point.mkdir()
    with stacked(stack, below, point):
        return cast(Outcome, module.run(seed, cases, point))


@click.command()
@click.option(
    "--part",
    "number",
    type=click.IntRange(1, len(PARTS)),
    required=True,
    help=f"Which part, 1 to {len(PARTS)}.",
)
@click.option("--seed", type=int, help="Repeat a run; by default one is drawn and printed.")
@click.option("--cases", type=click.IntRange(min=1), help="How many, instead of the long run's number.")
@click.option("--directory", type=click.Path(path_type=Path, file_okay=False), help="Where the data go.")
@click.option(
    "--on", "stack", type=click.Choice(STACKS), help="With the data on such a file system: parts 1 to 4."
)
def main(number: int, seed: int | None, cases: int | None, directory: Path | None, stack: str | None) -> None:
    """Runs one part of the proof. Exits with 1 on a loss, and when the part could not run."""
    if stack and number > STACKED_PARTS_MAX:
        raise click.UsageError(f"--on is for parts 1 to {STACKED_PARTS_MAX}")
    module = part(number)
    long_run = cases is None
    if cases is None:
        cases = module.CASES // STACKED_SHARE if stack and number < STACKED_PARTS_MAX else module.CASES
    seed = random.SystemRandom().randrange(1 << 31) if seed is None else seed
    click.echo(f"part {number}, {module.TITLE}: seed {seed}, {cases} cases")
    began = time.monotonic()
    progress.begin()
    with tempfile.TemporaryDirectory(dir=directory, prefix="ingest-faults-") as place:
        about = report.machine(Path(place), file_system(Path(place)))
        outcome = run_on(stack, module, seed, cases, Path(place))
    seconds = time.monotonic() - began
    for loss in outcome.losses:
        click.echo(f"LOSS: {loss}")
    if outcome.not_run:
        click.echo(f"NOT RUN: {outcome.not_run}")
    counts = ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in outcome.counts.items())
    click.echo(
        f"part {number}: {outcome.cases} cases in {seconds:.0f} s, {len(outcome.losses)} losses ({counts}), seed {seed}"
    )
    if long_run and not outcome.not_run:
        result = {
            "part": number,
            "title": module.TITLE + (f", on {stack}" if stack else ""),
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "commit": report.commit(),
            "command": f"make faults PART={number}{f' ON={stack}' if stack else ''} SEED={seed}",
            "machine": about,
            "seconds": round(seconds, 1),
            "seed": seed,
            "cases": outcome.cases,
            "losses": outcome.losses,
            "counts": outcome.counts,
            "not_run": outcome.not_run,
        }
        report.write(RESULTS / f"part-{number}{f'-{stack}' if stack else ''}.json", result)
        write_document()
    raise SystemExit(0 if outcome.passed else 1)


if __name__ == "__main__":
    main()
