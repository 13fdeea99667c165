"""Part 2: SIGKILL at every named step, by the server's own failpoints (`ingest/runtime/failpoints.py`).

A case is one failpoint on a random passing, under load, on one of three ways: `log` (frames through the log), `bulk` (long
runs past it), `recovery` (the server starts with what a kill of everything left, and ends itself in the middle of its
recovery). The action is drawn: the process that passes, the parent, or the whole node. The server's log must say
that the failpoint struck; a case in which it did not is none, and is tried again. After it the server is there again, and
everything that was acknowledged since the case before is read back; after a stage everything of its history is.
"""

from __future__ import annotations

import random
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from node_rig import NodeRig

from faults import progress
from faults.history import BULK, DELETES, MIXED, SMALL, Load, Mix
from faults.outcome import Outcome
from ingest.runtime import failpoints
from ingest.store.layouts.layout import LAYOUTS

NUMBER, TITLE = 2, "kill -9 at every named step"
EACH = 25  # cases of each step and way

# Which steps a way has: a long run past the log has no slots in the log to write, a recovery acks nothing.
WAYS = {
    "log": ("received", "verified", "claimed", "log_written", "log_synced", "slots_written", "bits_set", "acked",
            "packs_synced", "log_recycled", "tombstone_written"),
    "bulk": ("claimed", "slots_written", "packs_synced", "log_written", "log_synced", "bits_set"),
    "recovery": ("log_written", "log_synced", "slots_written", "bits_set", "tombstone_written"),
}  # fmt: skip
# Once a second or so, or once in a recovery: there a later passing than this is waited for in vain.
RARE = {
    ("log", "packs_synced"): 3,
    ("log", "log_recycled"): 3,
    ("recovery", "log_written"): 1,
    ("recovery", "log_synced"): 1,
}
PASSINGS_MAX = 30  # the K of a failpoint is drawn up to here
TRIES = 6  # of a case whose failpoint does not strike
ACKS_BEFORE = 5_000  # a recovery has about so much to do at least


@dataclass(frozen=True)
class Case:
    layout: str
    way: str
    step: str


def all_cases(each: int) -> list[Case]:
    """`each` cases of every step and way; the layouts take turns, but for long runs: only packs take them past the log."""
    return [
        Case("pack" if way == "bulk" else LAYOUTS[i % len(LAYOUTS)], way, step)
        for i in range(each)
        for way, steps in WAYS.items()
        for step in steps
    ]


CASES = len(all_cases(EACH))


def mix_for(case: Case) -> Mix:
    if case.step == "tombstone_written":
        return DELETES
    if case.way == "bulk":
        return BULK
    return SMALL if case.layout == "tree" or case.way == "log" else MIXED


class Stage:
    """Cases on one store of one layout."""

    def __init__(self, layout: str, directory: Path, seed: int, counts: dict[str, int]) -> None:
        self.layout = layout
        self.counts = counts
        self.chance = random.Random(seed)
        # As small a log as possible: it is recycled every second or so.
        self.rig = NodeRig(directory / "data", f"--layout={layout}", "--reserve=0", "--wal-size=96MiB")
        self.rig.start()
        self.load = Load(self.rig, directory / "history.txt", seed)

    def case(self, case: Case) -> list[str]:
        """Tries until the failpoint struck. Returns the losses."""
        for attempt in range(TRIES):
            most = min(RARE.get((case.way, case.step), PASSINGS_MAX), max(1, PASSINGS_MAX >> attempt))
            action = self.chance.choice(failpoints.ACTIONS)
            point = f"{case.step}={action}@{self.chance.randint(1, most)}"
            struck, losses = self.strike(case, point if case.way == "log" else f"{case.way}:{point}", action)
            if losses:
                return [f"{case.way}, {point}, layout {case.layout}: {loss}" for loss in losses]
            if struck:
                self.counts[f"struck_{case.way}"] += 1
                return []
        return [f"{case.way}, {case.step}, layout {case.layout}: not a case, the failpoint never struck"]

    def strike(self, case: Case, point: str, action: str) -> tuple[bool, list[str]]:
        """One try: a start with the failpoint, the blow, the server that is there again, what was acknowledged."""
        self.load.mixes(mix_for(case))
        if case.way == "recovery" and (losses := self.give_it_work(case)):
            return False, losses
        self.rig.kill_all()
        begin = self.rig.log_path.stat().st_size
        self.rig.environment = {failpoints.VARIABLE: point}
        self.rig.start(wait=False)
        self.rig.environment = {}
        struck, losses = self.await_strike(case, begin)
        if losses:
            return struck, losses
        if not struck or action != "kill":
            if self.rig.process is not None and not struck:
                self.rig.process.kill()
            self.rig.wait_gone()
            self.rig.start(wait=False)
        self.rig.wait_until_ready()
        acks = self.load.acks
        if losses := self.load.until(lambda: self.load.acks > acks, "puts no longer get through"):
            return struck, losses
        return struck, self.load.check_new()

    def give_it_work(self, case: Case) -> list[str]:
        """Load for a recovery to do again; for its tombstones, a few deletes."""
        acks = self.load.acks + (ACKS_BEFORE if case.layout == "pack" else ACKS_BEFORE // 10)
        deletes = self.load.deletes + 3

        def enough() -> bool:
            return (
                self.load.deletes >= deletes if case.step == "tombstone_written" else self.load.acks >= acks
            )

        return self.load.until(enough, "puts no longer get through")

    def await_strike(self, case: Case, begin: int) -> tuple[bool, list[str]]:
        """Waits until the server's log says that the failpoint struck; for a recovery, at most until that is over."""
        found = re.compile(rf"^failpoint {case.step}: kill", re.M)

        def log() -> str:
            with self.rig.log_path.open("rb") as file:
                file.seek(begin)
                return str(file.read(), errors="replace")

        def over() -> bool:
            return bool(found.search(log())) or (case.way == "recovery" and "serving with" in log())

        if case.way != "recovery":
            try:
                self.rig.wait_until_ready()  # the writers need the new ports
            except AssertionError:
                if not found.search(log()):  # else it struck with the first batch, before anybody had looked
                    return False, [f"the server did not start:\n{self.rig.log()}"]
        losses = self.load.until(over, "the failpoint never struck, or the server never served")
        return bool(found.search(log())), losses

    def end(self) -> list[str]:
        """Everything of the history once more, before and after a clean stop."""
        self.load.end()
        self.counts["acks"] += self.load.acks
        self.counts["deletes"] += self.load.deletes
        losses, seen = self.load.check_all()
        self.counts["tickets_read_back"] += seen
        if losses:
            return losses
        if code := self.rig.stop():
            return [f"a clean stop ended with {code}:\n{self.rig.log()}"]
        self.rig.start()
        losses, _ = self.load.check_all()
        self.rig.stop()
        return losses

    def close(self) -> None:
        if not self.load.writers[0].ended.is_set():
            self.load.end()
        self.rig.close()


def run(seed: int, cases: int, directory: Path) -> Outcome:
    """The first `cases` of all of them in a random order (all, when `cases` says so), by layout, in stages."""
    chance = random.Random(seed)
    chosen = all_cases(max(1, -(-cases // len(all_cases(1)))))
    if cases < CASES:
        chosen = chance.sample(chosen, min(cases, len(chosen)))
    counts = dict.fromkeys(
        ("struck_log", "struck_bulk", "struck_recovery", "acks", "deletes", "tickets_read_back"), 0
    )
    done = 0
    for layout in LAYOUTS:
        mine = [case for case in chosen if case.layout == layout]
        chance.shuffle(mine)
        for start in range(0, len(mine), EACH):
            home = directory / f"stage-{layout}-{start}"
            home.mkdir()
            stage = Stage(layout, home, chance.randrange(1 << 30), counts)
            losses: list[str] = []
            try:
                for case in mine[start : start + EACH]:
                    losses = stage.case(case)
                    done += 1
                    progress.done(1, losses)
                    if losses:
                        break
                losses = losses or stage.end()
            except (OSError, AssertionError) as error:
                losses = [f"{type(error).__name__}: {error}"]
            finally:
                stage.close()
            if losses:
                return Outcome(seed, done, losses[:20], counts)
            shutil.rmtree(home)
    return Outcome(seed, done, [], counts)
