"""Part 5: calls of the committer or of a worker fail, at the k-th and from the k-th on, for k = 1, 2, … until none is left.

A small library (`failing_calls.c`, built here with the C compiler) is preloaded into a real server. It counts the calls of
one kind that one of its processes makes on files of the data directory (or on sockets) and lets the k-th fail, or do only a
part of what it was asked for. strace could not do that: its `inject=…:retval=` returns a number for a write that never was.

A case (`failing_case.py`): a server starts with the fault in place, on an empty directory (`fresh`) or on one that was
killed with work in its log (`again`: recovery meets the fault), and takes a fixed sequence of puts (small, and long enough
for the bulk path), duplicates, rivals, deletes and gets. A fault that persists is ended when nothing moves any more. Then
the server must become ready by itself, take what it had not taken, and end cleanly; and a start without any fault must have
exactly what was acknowledged.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from faults import failing_case, progress
from faults.call_shim import build
from faults.failing_series import Series, all_series
from faults.outcome import Outcome
from ingest.store.layouts.layout import LAYOUTS

NUMBER = 5
TITLE = "calls that fail"
CASES = 100_000  # more than there are: each series ends when its fault does not strike any more

PROCESSES = 4  # run cases at a time: they wait more than they work
LOSSES_MAX = 50  # more of them say nothing new
SAMPLE_K_MAX = 12  # of a case of a short run


def run(seed: int, cases: int, directory: Path) -> Outcome:
    """All series until they are clean when `cases` allows, else a sample of so many cases."""
    series = all_series()
    chance = random.Random(seed)
    if cases < len(series):
        sample = [(chance.choice(series), chance.randint(1, SAMPLE_K_MAX)) for _ in range(cases)]
        return run_cases(sample, directory, seed)
    chance.shuffle(series)

    def whole(proof: Proof, one: Series) -> None:
        k = 1
        while proof.open and proof.case(one, k):
            k += 1

    return _run(directory, seed, cases, [partial(whole, one=one) for one in series])


def run_cases(cases: list[tuple[Series, int]], directory: Path, seed: int = 0) -> Outcome:
    """These cases: the series, and which of its calls."""

    def one(proof: Proof, series: Series, k: int) -> None:
        proof.case(series, k)

    return _run(directory, seed, len(cases), [partial(one, series=series, k=k) for series, k in cases])


def _run(directory: Path, seed: int, cases_max: int, jobs: list[Callable[[Proof], None]]) -> Outcome:
    library = directory / "failing_calls.so"
    not_run = build(library)
    if not_run:
        return Outcome(seed, 0, not_run=not_run)
    templates = {layout: failing_case.make_template(directory, layout) for layout in LAYOUTS}
    proof = Proof(library, directory, templates, cases_max)
    with ThreadPoolExecutor(min(PROCESSES, len(jobs))) as threads:
        try:
            for future in [threads.submit(job, proof) for job in jobs]:
                future.result()
        finally:
            proof.end()
    for template in templates.values():
        shutil.rmtree(template)
    return Outcome(seed, proof.cases, proof.losses, proof.counts)


class Runner:
    """A process that runs one case after the other, with the library preloaded (`failing_case.main`)."""

    def __init__(self, library: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "faults.failing_case"],
            env=os.environ | {"LD_PRELOAD": str(library), "PYTHONPATH": os.pathsep.join(sys.path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, case: failing_case.Case) -> tuple[bool, str]:
        """What `Case.run` returns."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(case.to_json() + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the process of {case.series.name(case.k)} ended with {self._process.wait()}")
        struck, loss = json.loads(answer)
        return struck, loss

    def close(self) -> None:
        """Ends it when its case is done."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


class Proof:
    """Runs cases, from several threads, and keeps what they found."""

    def __init__(self, library: Path, directory: Path, templates: dict[str, Path], cases_max: int) -> None:
        self.cases = 0
        self.losses: list[str] = []
        self.counts = {"faults_that_struck": 0, "kinds_of_call": 0}
        self._library = library
        self._directory = directory
        self._templates = templates
        self._cases_max = cases_max
        self._kinds: set[tuple[str, str]] = set()
        self._begun = 0
        self._ended = False
        self._lock = threading.Lock()
        self._idle: list[Runner] = []

    @property
    def open(self) -> bool:
        """Whether another case may be begun. Stops early when something is badly wrong."""
        return not self._ended and self._begun < self._cases_max and len(self.losses) < LOSSES_MAX

    def case(self, series: Series, k: int) -> bool:
        """Whether the fault struck."""
        with self._lock:
            self._begun += 1
            directory = self._directory / f"case-{self._begun}"
            runner = self._idle.pop() if self._idle else None
        template = self._templates[series.layout] if series.scenario == "again" else None
        runner = runner or Runner(self._library)
        struck, loss = runner.run(failing_case.Case(series, k, directory, template))
        with self._lock:
            self._idle.append(runner)
            self.cases += 1
            if struck:
                self.counts["faults_that_struck"] += 1
                self._kinds.add((series.role, series.call))
                self.counts["kinds_of_call"] = len(self._kinds)
            if loss:
                self.losses.append(loss)
            progress.done(1, [loss] if loss else [])
        return struck

    def end(self) -> None:
        """No case is begun any more; the processes that are idle end."""
        self._ended = True
        with self._lock:
            for runner in self._idle:
                runner.close()
            self._idle.clear()
