"""Part 1: kill -9 of a random worker, the committer, the parent, or all, under load, and again during recovery.

A cycle: so many acks, a kill, the server is there again without a hand (a parent that died is started again by us, in a
third of the cases after a second kill in the middle of the start), everything acknowledged in the cycle is read back. After
`STAGE` cycles everything of the history is read back, before and after a clean restart, and a new store begins.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path

from node_rig import NodeRig

from faults import progress
from faults.history import MIXED, SMALL, Load
from faults.outcome import Outcome
from ingest.store.layouts.layout import LAYOUTS

NUMBER, TITLE, CASES = 1, "kill -9 under load and in recovery", 500
STAGE = 25  # cycles of one store at most: bounds the disk that a run takes
ACKS_MAX = {"pack": 20_000, "tree": 3_000}  # of one cycle: in layout tree each is a file


def kill_something(rig: NodeRig, choice: str, chance: random.Random) -> bool:
    """Whether there was something to kill."""
    if choice == "all":
        rig.kill_all()
    elif choice == "parent":
        rig.kill_parent()
    else:
        pids = rig.children(f"ingest-{choice}")
        if not pids:
            return False
        os.kill(chance.choice(pids), signal.SIGKILL)
    return True


def start_again(rig: NodeRig, chance: random.Random) -> int:
    """Starts a server whose parent is gone; kills it once more on its way in a third of the cases. Returns kills."""
    rig.start(wait=False)
    kills = 0
    if chance.random() < 0.3:
        time.sleep(chance.random() * 0.3)  # a random place in the start, which takes about as long
        if rig.process is not None:
            rig.process.kill()
            rig.wait_gone()
            kills = 1
        rig.start(wait=False)
    rig.wait_until_ready()
    return kills


def stage(
    layout: str, cycles: int, chance: random.Random, directory: Path, counts: dict[str, int]
) -> list[str]:
    """`cycles` cycles on one new store. Returns the losses, after which it ends."""
    rig = NodeRig(directory / "data", f"--layout={layout}", "--reserve=0")
    load: Load | None = None
    try:
        rig.start()
        mix = MIXED if layout == "pack" else SMALL
        load = Load(rig, directory / "history.txt", chance.randrange(1 << 30), mix)
        for _ in range(cycles):
            wanted = load.acks + chance.randrange(1, ACKS_MAX[layout])
            if losses := load.until(lambda w=wanted: load.acks >= w, "puts no longer get through"):  # type: ignore[misc]
                return losses
            choice = chance.choice(("worker", "committer", "parent", "all"))
            counts[f"{choice}_kills"] += kill_something(rig, choice, chance)
            if choice in ("parent", "all"):
                counts["kills_in_a_start"] += start_again(rig, chance)
            losses = load.check_new()
            progress.done(1, losses)
            if losses:
                return [f"after a kill of {choice}: {loss}" for loss in losses]
        load.end()
        counts["acks"] += load.acks
        counts["deletes"] += load.deletes
        for _ in range(2):
            losses, seen = load.check_all()
            if losses:
                return losses
            if code := rig.stop():
                return [f"a clean stop ended with {code}:\n{rig.log()}"]
            rig.start()
        counts["tickets_read_back"] += seen
        rig.stop()
        return []
    finally:
        if load is not None and not load.writers[0].ended.is_set():
            load.end()
        rig.close()


def run(seed: int, cases: int, directory: Path) -> Outcome:
    chance = random.Random(seed)
    counts = dict.fromkeys(
        ("acks", "deletes", "tickets_read_back", "worker_kills", "committer_kills", "parent_kills",
         "all_kills", "kills_in_a_start"), 0,
    )  # fmt: skip
    done = number = 0
    while done < cases:
        layout = LAYOUTS[number % len(LAYOUTS)]
        cycles = min(STAGE, cases - done, max(1, cases // len(LAYOUTS)))
        home = directory / f"stage-{number}"
        home.mkdir()
        try:
            losses = stage(layout, cycles, chance, home, counts)
        except (OSError, AssertionError) as error:
            losses = [f"{type(error).__name__}: {error}"]
        done, number = done + cycles, number + 1
        if losses:
            return Outcome(
                seed, done, [f"stage {number}, layout {layout}: {loss}" for loss in losses[:20]], counts
            )
        shutil.rmtree(home)
    return Outcome(seed, done, [], counts)
