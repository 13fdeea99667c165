"""The picture of a run of `make peers`: python -m bench.plot_peers RESULTS.json PICTURE.png"""

from __future__ import annotations

import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes

from bench.report import figure
from ingest.limits import DATA_SIZE

OURS, THEIRS = "#1b6ca8", "#b9c0c8"
PANELS = (
    ("closed", "disk", "one put in flight on each of {} connections\nanswered when it is on the disk"),
    ("closed", "os", "one put in flight on each of {} connections\nanswered before it is on the disk"),
    ("pipelined", "disk", "pipelined\nanswered when it is on the disk"),
    ("pipelined", "os", "pipelined\nanswered before it is on the disk"),
)


Bar = tuple[str, float, float, float, bool]


def connections(row: dict[str, Any]) -> int:
    return int(row["notes"].get("connections", 64))  # results that do not say it are older: all had 64


def bars(rows: list[dict[str, Any]], manner: str, sync: str) -> list[Bar]:
    """(name, median rate, lowest, highest, whether it is ours) of one panel, the slowest first."""
    found = []
    ours: dict[str, list[float]] = {}  # the same in all rows of as many connections
    for row in rows:
        if (row["notes"]["manner"], row["notes"]["sync"]) != (manner, sync):
            continue
        peer = [one["peer"] for one in row["rounds"]]
        over = f",\n{connections(row)} connections" if manner == "pipelined" else ""
        name = row["notes"]["peer"].replace("the same Redis, ", "Redis, appendfsync always,\n") + over
        found.append((name, statistics.median(peer), min(peer), max(peer), False))
        ours[f"ingest, --sync {sync}{over}"] = [one["ours"] for one in row["rounds"]]
    for name, rates in ours.items():
        found.append((name, statistics.median(rates), min(rates), max(rates), True))
    return sorted(found, key=lambda bar: bar[1])


def draw_panel(axes: Axes, found: list[Bar], title: str) -> None:
    names, rates, lows, highs, ours = zip(*found, strict=True)
    spread = [
        [rate - low for rate, low in zip(rates, lows, strict=True)],
        [high - rate for rate, high in zip(rates, highs, strict=True)],
    ]
    colors = [OURS if mine else THEIRS for mine in ours]
    axes.barh(names, rates, color=colors, height=0.62)
    axes.errorbar(rates, names, xerr=spread, fmt="none", ecolor="#4a4f55", elinewidth=1, capsize=3)
    for name, rate, high in zip(names, rates, highs, strict=True):
        axes.annotate(
            figure(rate, "/s"), (high, name), xytext=(6, 0), textcoords="offset points", va="center", size=9
        )
    axes.set_xscale("log")
    axes.set_title(title, loc="left", size=10)
    axes.grid(axis="x", which="major", color="#e3e6e9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0, labelsize=9)
    axes.tick_params(axis="x", labelsize=8)


def drawn(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that are in the picture."""
    return [row for row in results["rows"] if row["notes"].get("manner") in ("closed", "pipelined")]


def draw(results: dict[str, Any], to: Path) -> None:
    """One panel for each manner and promise that was measured."""
    rows = drawn(results)
    closed = {connections(row) for row in rows if row["notes"]["manner"] == "closed"}
    panels = [
        (found, title.format(*closed))
        for manner, sync, title in PANELS
        if (found := bars(rows, manner, sync))
    ]
    heights = [0.8 + 0.16 * sum(2 + bar[0].count("\n") for bar in found) for found, _ in panels]
    picture, grid = pyplot.subplots(
        len(panels),
        1,
        sharex=True,
        squeeze=False,
        figsize=(9, sum(heights) + 1.2),
        height_ratios=heights,
        layout="constrained",
    )
    for axes, (found, title) in zip(grid[:, 0], panels, strict=True):
        draw_panel(axes, found, title)
    lowest = min(bar[2] for found, _ in panels for bar in found)
    highest = max(bar[3] for found, _ in panels for bar in found)
    # Bars on a logarithmic axis start where we say: a decade below the shortest. The last figure needs room.
    grid[0, 0].set_xlim(10 ** (math.floor(math.log10(lowest)) - 0.3), highest * 3.5)
    grid[-1, 0].set_xlabel("records per second (logarithmic)", size=9)
    about = results["machine"]
    cpu = about["cpu"].replace("(R)", "")
    picture.suptitle(
        f"records of {DATA_SIZE} bytes: ingest against peers\n"
        f"{cpu}, {about['cores']} cores shared with the client, {about['file_system']}, Linux {about['kernel']}\n"
        f"median of {len(rows[0]['rounds'])} rounds in turns, lowest and highest; "
        f"{results['date'][:10]}, commit {results['commit']}",
        size=9.5,
        x=0.01,
        ha="left",
    )
    to.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(to, dpi=130)
    pyplot.close(picture)


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    source, to = map(Path, arguments)
    results = json.loads(source.read_text())
    if not drawn(results):
        print("nothing to draw: no peer took records")
        return 0
    draw(results, to)
    print(f"drawn to {to}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
