"""`make bench`: takes the rows one after the other, prints them as a table and writes them as JSON."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench import report
from bench.report import Row
from bench.scratch import Scratch, ScratchError, file_system, scratch
from bench.sizes import FULL, Sizes

Measure = Callable[[Scratch, Sizes], list[Row]]
Take = Callable[[Measure], None]

_ROWS = pytest.StashKey[list[Row]]()
_MACHINE = pytest.StashKey[dict[str, object]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rows", default="", help="which benchmarks, separated by commas; all by default")
    parser.addoption("--command", default="make bench", help="what was typed, for the results")
    parser.addoption(
        "--results", type=Path, help="where the JSON goes; default bench/results/local/TIME-COMMIT.json"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_ROWS] = []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = [name for name in config.getoption("--rows").split(",") if name]
    if not wanted:
        return
    known = {item.name.removeprefix("test_") for item in items}
    unknown = set(wanted) - known
    if unknown:
        raise pytest.UsageError(
            f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}"
        )
    config.hook.pytest_deselected(
        items=[item for item in items if item.name.removeprefix("test_") not in wanted]
    )
    items[:] = [item for item in items if item.name.removeprefix("test_") in wanted]


@pytest.fixture(scope="session")
def place(pytestconfig: pytest.Config) -> Iterator[Scratch]:
    """The directory on the disk, and as many descriptors as there may be: a thousand connections have one each."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with scratch() as found:
            pytestconfig.stash[_MACHINE] = report.machine(found.directory, file_system(found.directory))
            yield found
    except ScratchError as error:
        pytest.exit(str(error), returncode=2)


@pytest.fixture
def take(benchmark: BenchmarkFixture, place: Scratch, pytestconfig: pytest.Config) -> Take:
    """Measures rows at full size. pytest-benchmark times the whole, preparations included; the figures are in the rows."""

    def take_rows(measure: Measure) -> None:
        rows: list[Row] = benchmark.pedantic(measure, args=(place, FULL), rounds=1)  # type: ignore[no-untyped-call]
        benchmark.extra_info.update({row.name: row.median for row in rows})
        pytestconfig.stash[_ROWS] += rows

    return take_rows


def pytest_sessionfinish(session: pytest.Session) -> None:
    config = session.config
    rows = config.stash.get(_ROWS, [])
    if not rows:
        return
    about = config.stash[_MACHINE]
    chosen = config.getoption("--rows")
    content = report.document(
        rows, about, config.getoption("--command") + (f" ROWS={chosen}" if chosen else "")
    )
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{content['commit']}.json"
    path = config.getoption("--results") or Path(__file__).parent / "results" / "local" / name
    report.write(path, content)
    print()
    report.print_table(rows, about)
    print(f"written to {os.path.relpath(path)}")
