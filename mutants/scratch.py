"""A copy of the tree in which a fault may be made, built and tested."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path

from mutants.mutant import Mutant

ROOT = Path(__file__).parent.parent
# `build` is: setuptools compares with what lies there, and without it would compile everything.
NOT_COPIED = shutil.ignore_patterns(
    ".git", ".venv", "results", "__pycache__", ".*_cache", ".hypothesis", "*.egg-info", ".benchmarks"
)
TIMEOUT_S = 900
ASSERTIONS = ("AssertionError", "assert ", "Failed: DID NOT RAISE")


class ScratchError(Exception):
    """The copy could not be built, or not be tested at all."""


@dataclass
class Tested:
    """What became of tests, by name: `passed`, `skipped`; `asserted` failed by an assertion, `broken` by anything else."""

    passed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    asserted: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


class Scratch:
    """A copy of the tree below `directory`, with what was built: only what a fault touches is compiled again."""

    def __init__(self, directory: Path, source: Path = ROOT) -> None:
        self.root = directory / "tree"
        shutil.copytree(source, self.root, ignore=NOT_COPIED, symlinks=True)
        compiler = {"CC": "ccache gcc"} if shutil.which("ccache") and "CC" not in os.environ else {}
        self.environment = (
            os.environ | compiler | {"PYTHONPATH": f"{self.root}{os.pathsep}{self.root / 'tests'}"}
        )

    def apply(self, mutant: Mutant) -> None:
        """Makes the fault and builds. ValueError when it does not fit the source, ScratchError when it does not build."""
        changed = [edit.apply(self.root) for edit in mutant.edits]
        for path in self.compiled_from(changed):
            path.touch()
        if any(path.suffix != ".py" for path in changed):
            self.run([sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"], "building")

    def compiled_from(self, changed: list[Path]) -> list[Path]:
        """The Cython modules that are made from these files, also by way of other headers."""
        names = {path.name for path in changed if path.suffix in (".h", ".c", ".pxd")}
        headers = list((self.root / "ingest" / "csrc").iterdir())
        while more := {
            path.name
            for path in headers
            if path.name not in names and any(n in path.read_text() for n in names)
        }:
            names |= more
        return [
            path for path in self.root.rglob("ingest/**/*.pyx") if any(n in path.read_text() for n in names)
        ]

    def smoke(self) -> None:
        """`make smoke`; ScratchError when it fails. Its prerequisites are here already."""
        self.run(["make", "--silent", "--assume-old=dev", "smoke", f"RUN={sys.executable}"], "make smoke")

    def run(self, command: list[str], what: str) -> None:
        done = subprocess.run(
            command,
            cwd=self.root,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        if done.returncode:
            raise ScratchError(f"{what} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}")

    def test(self, tests: tuple[str, ...]) -> Tested:
        """Runs tests by their ids. ScratchError when pytest could not run them."""
        report = self.root / "report.xml"
        report.unlink(missing_ok=True)
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            f"--junitxml={report}",
            *tests,
        ]
        done = subprocess.run(
            command,
            cwd=self.root,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        if done.returncode not in (0, 1) or not report.exists():
            raise ScratchError(f"pytest ended with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}")
        return read_report(report)


def read_report(path: Path) -> Tested:
    """What a junit report of pytest says. A time-out is a failure too, but no assertion."""
    tested = Tested()
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        problems = {child.tag: child.get("message") or "" for child in case}
        if "error" in problems:
            tested.broken.append(f"{name}: {problems['error']}")
        elif "failure" in problems:
            message = problems["failure"]
            (tested.asserted if message.startswith(ASSERTIONS) else tested.broken).append(
                f"{name}: {message}"
            )
        elif "skipped" in problems:
            tested.skipped.append(f"{name}: {problems['skipped']}")
        else:
            tested.passed.append(name)
    return tested
