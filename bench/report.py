"""What a benchmark found: rows of rounds, held against what must and what should be reached; as JSON and as a table."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
RATIO = "\u00d7"  # the unit of a row that is held against a peer


@dataclass(frozen=True)
class Round:
    """One measurement: `value` in the unit of its row. A ratio has `ours` and `peer`, the two rates, per second."""

    value: float
    ours: float | None = None
    peer: float | None = None
    details: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def ratio(cls, ours: float, peer: float, **details: Any) -> Round:
        return cls(ours / peer, ours, peer, details)


@dataclass
class Row:
    """One line of the table. `must` and `reach` are None for what is only reported; `least`: whether smaller is better."""

    name: str
    what: str
    unit: str  # RATIO, or what `value` counts
    must: float | None = None
    reach: float | None = None
    least: bool = False
    rounds: list[Round] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def median(self) -> float:
        return statistics.median(one.value for one in self.rounds)

    def meets(self, target: float | None) -> bool | None:
        """Whether the median is at least (`least`: at most) `target`; None without one."""
        if target is None:
            return None
        return self.median <= target if self.least else self.median >= target

    def as_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "median": self.median,
            "meets_must": self.meets(self.must),
            "meets_reach": self.meets(self.reach),
        }


def machine(directory: Path, file_system: str) -> dict[str, Any]:
    """What the figures depend on."""
    cpu = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "Model", "CPU part")):
            cpu = line.partition(":")[2].strip()
            break
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "file_system": file_system,
        "python": platform.python_version(),
    }


def commit() -> str:
    """The commit that is measured, with `-dirty` when something was changed since; `unknown` outside of a clone."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


def document(rows: list[Row], about: dict[str, Any], command: str) -> dict[str, Any]:
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": commit(),
        "command": command,
        "machine": about,
        "rows": [row.as_json() for row in rows],
    }


def write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def figure(value: float | None, unit: str = "") -> str:
    """Three digits that matter: 0.573, 8.12 ×, 412 k/s."""
    if value is None:
        return ""
    if unit.endswith("/s") and value >= 1000:
        scale, letter = (1e6, "M") if value >= 1e6 else (1e3, "k")
        return f"{value / scale:.3g} {letter}{unit}"
    text = f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
    return f"{text} {unit}".strip()


def _target(row: Row, target: float | None) -> str:
    return "reported" if target is None else ("≤ " if row.least else "≥ ") + figure(target, row.unit)


def _verdict(row: Row) -> str:
    if row.meets(row.reach):
        return "[green]reached[/]"
    met = row.meets(row.must)
    return "" if met is None else "[green]met[/]" if met else "[red]missed[/]"


def print_table(rows: list[Row], about: dict[str, Any], to: TextIO | None = None) -> None:
    to = to or sys.stdout
    table = Table(
        title=f"{about['cpu']}, {about['cores']} cores, {about['file_system']}, Linux {about['kernel']}"
    )
    for heading in ("what", "median", "must", "reach", "", "each round", "ours", "peer"):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    for row in rows:
        middle = min(row.rounds, key=lambda one: abs(one.value - row.median))
        table.add_row(
            row.what,
            figure(row.median, row.unit),
            _target(row, row.must),
            _target(row, row.reach),
            _verdict(row),
            " ".join(figure(one.value) for one in row.rounds),
            figure(middle.ours, "/s") if middle.ours else "",
            figure(middle.peer, "/s") if middle.peer else "",
        )
    width = None if to.isatty() else 160
    Console(file=to, width=width).print(table)
