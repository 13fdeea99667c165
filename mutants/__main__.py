"""`python -m mutants [NAME …]`: makes each fault in a copy of the tree, and asks whether its test notices.

The control comes first: a change that is no fault must survive all of these tests. A mutant must build and pass
`make smoke`; then one of its tests must fail by an assertion. A test that is skipped here (strace, say) decides nothing.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import click

from bench import report
from bench.scratch import file_system
from mutants.catalogue import CONTROL, MUTANTS
from mutants.mutant import Mutant
from mutants.scratch import ROOT, Scratch, ScratchError

DOCUMENT = ROOT / "docs" / "faults.md"
BEGIN, END = "<!-- mutants: written by python -m mutants -->\n", "<!-- end of mutants -->\n"


def first_line(text: str) -> str:
    return text.strip().splitlines()[0][:160]


def judge(mutant: Mutant, directory: Path) -> tuple[str, str]:
    """What became of it (killed, survived, broken, not run), and the assertion or reason that says so."""
    try:
        scratch = Scratch(directory)
        scratch.apply(mutant)
        scratch.smoke()
        tested = scratch.test(mutant.killed_by)
    except (ValueError, ScratchError) as error:
        return "broken", str(error)
    if tested.broken:
        return "broken", tested.broken[0]
    if tested.asserted:
        return "killed", tested.asserted[0]
    if tested.skipped:
        return "not run", tested.skipped[0]
    return "survived", f"{len(tested.passed)} tests passed"


def check(mutants: tuple[Mutant, ...]) -> int:
    """Prints which of them no longer fit the source. Returns how many."""
    bad = 0
    for mutant in mutants:
        for edit in mutant.edits:
            try:
                edit.find(ROOT)
            except ValueError as error:
                bad += 1
                click.echo(f"{mutant.name}: {error}")
    click.echo(f"{len(mutants)} mutants, {bad} places that do not fit the source")
    return bad


def table(rows: list[tuple[Mutant, str, str, float]]) -> str:
    about = report.machine(ROOT, file_system(ROOT))
    lines = [
        f"{time.strftime('%Y-%m-%d', time.gmtime())}, commit {report.commit()}, {about['cpu']}, {about['cores']} cores: "
        f"{sum(row[3] for row in rows):.0f} s.\n",
        "| mutant | the fault | became | shown by |",
        "|---|---|---|---|",
    ]
    for mutant, became, _, _ in rows:
        tests = (
            "all of these tests" if mutant is CONTROL else ", ".join(f"`{test}`" for test in mutant.killed_by)
        )
        lines.append(f"| {mutant.name} | {mutant.fault} | {became} | {tests} |")
    return "\n".join(lines) + "\n"


def write_document(rows: list[tuple[Mutant, str, str, float]]) -> None:
    before, _, rest = DOCUMENT.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    DOCUMENT.write_text(before + BEGIN + table(rows) + END + after)


@click.command()
@click.argument("names", nargs=-1)
@click.option("--check", "only_check", is_flag=True, help="Only say which no longer fit the source.")
def main(names: tuple[str, ...], only_check: bool) -> None:
    """Judges the mutants of these names, all by default. Exits with 1 unless all are killed and the control survives."""
    everything = (CONTROL, *MUTANTS)
    unknown = set(names) - {mutant.name for mutant in everything}
    if unknown:
        raise click.UsageError(f"there is no mutant {', '.join(sorted(unknown))}")
    chosen = tuple(mutant for mutant in everything if not names or mutant.name in names)
    if only_check:
        raise SystemExit(1 if check(chosen) else 0)
    rows = []
    for mutant in chosen:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="ingest-mutant-") as directory:
            became, why = judge(mutant, Path(directory))
        rows.append((mutant, became, why, time.monotonic() - began))
        good = became == ("survived" if mutant is CONTROL else "killed")
        expected = ", as it must" if mutant is CONTROL and good else ""
        click.echo(
            f"{mutant.name}: {became}{expected} ({rows[-1][3]:.0f} s): {why if not good else first_line(why)}"
        )
        if mutant is CONTROL and not good:
            raise SystemExit(
                "the tests fail without a fault: nothing that they say of the others would count"
            )
    if not names:
        write_document(rows)
    alive = [mutant.name for mutant, became, _, _ in rows if mutant is not CONTROL and became != "killed"]
    click.echo(f"{len(rows)} mutants, not killed: {', '.join(alive) if alive else 'none but the control'}")
    raise SystemExit(1 if alive else 0)


if __name__ == "__main__":
    main()
