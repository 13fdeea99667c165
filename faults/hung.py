"""Part 8: processes of `ingest serve` stand still (SIGSTOP) under load of frames and of objects.

A case: one or two processes, or all of them, stop at a random moment, for a moment or for longer than a silent process is
left in peace; in some of them another one is killed meanwhile, SIGHUP comes, or the whole is ended and started again. What
stands still, who must go on and what must be said of it: `bystanders`, `hung_watch`. After `STAGE` cases everything of the
histories is read back, before and after a clean restart, and a new store begins.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from faults import progress
from faults.bystanders import Bystanders
from faults.history import Load, Mix
from faults.hung_watch import Said, Watch, ask_ready, judge
from faults.object_load import LARGE, LARGE_IN_FILES, ObjectLoad
from faults.outcome import Outcome
from faults.served_node import HTTP, NAMES, PARENT_OF, REPLACED, WORKERS, ServedNode, until
from ingest.store.layouts.layout import LAYOUTS

NUMBER, TITLE, CASES = 8, "processes that stand still", 70
STAGE = 10  # cases of one store at most: bounds the disk that a run takes
# Of frames: what the log, the bulk path and layout tree have to do, and a disk that is not full after ten cases.
MIXES = {
    "pack": Mix(counts=(*(1, 3, 64) * 8, 700, 700, 3000), pause_s=0.2),
    "tree": Mix(counts=(1, 3, 64), pause_s=0.2),
}
LARGES = {"pack": LARGE, "tree": LARGE_IN_FILES}  # of objects
UNREADY_S, SILENCE_S, LISTEN_S = 2.0, 5.0, 0.5
# `ingest.limits` of the service: what takes a minute there takes seconds here, in the same proportions.
SHORT = {
    "HEART_INTERVAL_S": 0.25,
    "HEART_LISTEN_INTERVAL_S": LISTEN_S,
    "HEART_LATE_S": 0.5,
    "HEART_UNREADY_S": UNREADY_S,
    "HEART_SILENCE_MAX_S": SILENCE_S,
    "TICK_INTERVAL_S": 0.25,
    "COLLECT_INTERVAL_S": 0.5,
}
# And in every second stage: an owner that is given up before a silent process is.
SHORT_OWNERS = {"OWNER_DEADLINE_S": 2.0, "OWNER_RENEW_S": 0.5}
MOMENT_S = (0.0, 1.0)  # from, to: nobody notices
WHILE_S = (2.2, 3.0)  # longer than UNREADY_S and the owners' deadline: nobody is replaced
MARGIN_S = 15.0  # for a machine that has much to do, beyond the limits of the service
READY_S = 60.0  # after the end of a case: restarts with their delays, a recovery
STEP_S = (
    25.0  # and then for one more answer to each writer: less than the time-out of a client, which begins anew
)
KILLABLE = tuple(name for name in NAMES if name not in PARENT_OF.values())
OFTEN = (*NAMES, *WORKERS, *HTTP, *HTTP, "committer", "catalog", "catalog")  # whose stop others feel
ENGINE = ("committer", *WORKERS, "server")  # who makes `/readyz` say 503
GATEWAY = ("catalog", *HTTP)  # … and `/healthz`


@dataclass(frozen=True)
class Plan:
    """``length``: moment, while, long. ``beside``: nothing, hang up, kill, end, crash."""

    still: tuple[str, ...]
    length: str
    beside: str
    killed: str = ""

    def __str__(self) -> str:
        more = f", {self.beside} {self.killed}".rstrip() if self.beside != "nothing" else ""
        return (
            f"{'all' if self.still == NAMES else ' and '.join(self.still)} stood still, {self.length}{more}"
        )

    @property
    def away(self) -> frozenset[str]:
        return frozenset((*self.still, self.killed))


def draw(chance: random.Random) -> Plan:
    first, second = chance.choice(OFTEN), chance.choice(OFTEN)
    still: tuple[str, ...] = (first,) if first == second or chance.random() < 0.7 else (first, second)
    length = chance.choices(("moment", "while", "long"), (3, 2, 5))[0]
    beside = chance.choices(("nothing", "hang up", "kill", "end", "crash"), (5, 2, 2, 1, 1))[0]
    if chance.random() < 0.08:
        still, beside = NAMES, "nothing"
    elif chance.random() < 0.1:  # with its parent
        child = chance.choice(REPLACED)
        still, length = (PARENT_OF[child], child), "long"
    killed = chance.choice([name for name in KILLABLE if name not in still]) if beside == "kill" else ""
    return Plan(still, length, beside, killed)


class Case:
    """One plan, carried out."""

    def __init__(
        self, service: ServedNode, plan: Plan, chance: random.Random, number: int, objects: ObjectLoad
    ) -> None:
        self.service = service
        self.plan = plan
        self.chance = chance
        self.objects = objects
        self.counts = dict.fromkeys(COUNTS, 0)
        self.before = service.processes()
        self.log_at = service.log_size()
        self.bystanders = Bystanders(service, plan.away, number)
        self.bystanders.prepare(objects.aside)

    def run(self) -> list[str]:
        """The losses. All goes on at the end, or is started again."""
        pids = [self.before[name] for name in self.plan.still]
        time.sleep(self.chance.random() * 0.3)
        try:
            for pid in pids:
                self.service.send([pid], signal.SIGSTOP)
                if len(pids) == 2:
                    time.sleep(self.chance.random() * 0.2)
            if self.plan.beside in ("end", "crash"):
                return self._restart(pids)
            if self.plan.length == "long":
                return self._long()
            for _ in range(2):
                time.sleep(self.chance.uniform(*(WHILE_S if self.plan.length == "while" else MOMENT_S)) / 2)
                self._beside()
            return []
        finally:
            self.chance.shuffle(pids)
            self.service.go_on(pids)

    def _beside(self) -> None:
        """The first time that it is called."""
        if self.plan.beside == "hang up" and not self.counts["hang_ups"]:
            os.kill(self.service.pid, signal.SIGHUP)
            self.counts["hang_ups"] += 1
        elif self.plan.beside == "kill" and not self.counts["kills"]:
            self.service.send([self.before[self.plan.killed]], signal.SIGKILL)
            self.counts["kills"] += 1

    def _restart(self, pids: list[int]) -> list[str]:
        time.sleep(self.chance.uniform(*MOMENT_S))
        number = signal.SIGTERM if self.plan.beside == "end" else signal.SIGKILL
        serve = [self.service.pid] if "serve" in self.plan.still else []
        losses = self.service.end(number, lambda: self.service.go_on(serve))
        pids.clear()
        self.counts["restarts"] += 1
        if not losses:
            self.service.start()
        return losses

    # --- longer than a silent process is left in peace

    def _long(self) -> list[str]:
        began = time.monotonic()
        watch = Watch(self.service, self.bystanders.witness)
        watch.start()
        try:
            self._beside()
            losses = self._ask()
            for name in self.plan.still:
                losses += self._named(name)
            for name in self.plan.still:
                losses += self._replaced(name) if self._is_replaced(name) else []
            time.sleep(max(0.0, began + SILENCE_S + 2 * LISTEN_S - time.monotonic()))
        finally:
            watch.end()
        losses += self._said(watch)
        present = self.service.processes()
        for name in self.plan.still:
            if not self._is_replaced(name) and present.get(name) != self.before[name]:
                losses.append(f"{name} was replaced: it may not be\n{self._log()}")
        return losses + self._parent_first()

    def _ask(self) -> list[str]:
        """What bystanders did not get. A disk that is so slow that the service says so keeps them all waiting."""
        losses, asked = self.bystanders.ask(self.objects.aside)
        self.counts["bystanders_answered"] += asked - len(losses)
        if (
            "committer" not in self.plan.still
            and f"committer (pid {self.before['committer']}) has" in self._log()
        ):
            self.counts["bystanders_of_a_slow_disk"] += len(losses)
            return []
        return losses

    def _listens(self, name: str) -> bool:
        """Whether somebody does to this one's heart."""
        return name in PARENT_OF and PARENT_OF[name] not in self.plan.still

    def _is_replaced(self, name: str) -> bool:
        return name in REPLACED and self._listens(name)

    def _named(self, name: str) -> list[str]:
        """The log says that it is silent."""
        if not self._listens(name):
            return []
        line = f"{name} (pid {self.before[name]}) has answered nothing for"
        if until(lambda: line in self._log(), UNREADY_S + MARGIN_S):
            self.counts["named"] += 1
            return []
        return [f"the log does not name {name}, pid {self.before[name]}:\n{self._log()}"]

    def _replaced(self, name: str) -> list[str]:
        """It is killed, and unless the committer that has its arena stands still too, another one is there."""
        pid = self.before[name]
        waits = name in WORKERS and "committer" in self.plan.still

        def is_done() -> bool:
            found = self.service.processes().get(name)
            return found != pid and (waits or found is not None)

        if until(is_done, SILENCE_S + MARGIN_S):
            self.counts["replaced"] += 1
            return []
        return [f"{name}, pid {pid}, was not replaced:\n{self._log()}"]

    def _said(self, watch: Watch) -> list[str]:
        still = self.plan.still
        losses = []
        if "admin" not in self.plan.away and not (self.plan.killed and self.plan.killed in ENGINE):
            losses += judge(watch.readyz, "/readyz", still, ENGINE)
            self.counts["readyz_judged"] += 1
        engine = any(
            name in self.plan.away for name in ENGINE
        )  # what it says of the gateway waits for the engine
        if self.bystanders.witness is not None and not engine:
            losses += judge(watch.healthz, "/healthz", still, GATEWAY)
            self.counts["healthz_judged"] += 1
        return losses

    def _parent_first(self) -> list[str]:
        """A parent that goes on, and that its child was silent for as long as itself: it has to listen anew."""
        losses: list[str] = []
        for child in self.plan.still if len(self.plan.still) == 2 else ():
            parent = PARENT_OF.get(child, "")
            if child not in REPLACED or parent not in self.plan.still:
                continue
            self.service.go_on([self.before[parent]])
            time.sleep(SILENCE_S * self.chance.uniform(0.1, 0.5))
            self.counts["parents_first"] += 1
            if self.service.processes().get(child) != self.before[child]:
                losses.append(f"{parent} stood still, and replaced {child} when it went on:\n{self._log()}")
        return losses

    def _log(self) -> str:
        return self.service.log_from(self.log_at)

    # --- after it

    def after(self, frames: Load) -> list[str]:
        """Everything is there again, within a bound, and nobody was replaced who was well."""
        losses = ready(self.service, READY_S) or progressed(self.service, frames, self.objects)
        if losses or self.plan.beside in ("end", "crash"):
            return losses
        long = self.plan.length == "long"
        may = {name for name in self.plan.still if long and self._is_replaced(name)} | {self.plan.killed}
        present = self.service.processes()
        wrong = [name for name in NAMES if name not in may and present.get(name) != self.before[name]]
        losses += [f"{name} was replaced, and it was well:\n{self._log()}" for name in wrong]
        if self.plan.beside == "hang up":
            losses += self._hung_up()
        return losses

    def _hung_up(self) -> list[str]:
        lines = ("SIGHUP: reloaded: keys", "SIGHUP: tokens, certificates, keys")
        if until(lambda: all(line in self._log() for line in lines), READY_S):
            return []
        return [f"SIGHUP was not heeded:\n{self._log()}"]


def ready(service: ServedNode, seconds: float) -> list[str]:
    """Waits until each process is there, none stands still, and both sides say that they are well."""
    said = Said()
    missing: Collection[str] = ()

    def is_ready() -> bool:
        nonlocal missing
        found = service.processes()
        missing = [name for name in NAMES if name not in found] + service.stopped()
        return not missing and ask_ready(service, said) and is_healthy(service)

    if until(is_ready, seconds):
        return []
    return [
        f"not ready after {seconds:.0f} s: missing or stopped: {', '.join(missing) or 'none'}, /readyz said "
        f"{sorted(said.statuses)} {sorted(said.reasons)}:\n{service.log()}"
    ]


def is_healthy(service: ServedNode) -> bool:
    try:
        return bool(service.node.gateway.request("GET", "/healthz").status == 200)
    except (OSError, AssertionError, ValueError):
        return False


def progressed(service: ServedNode, frames: Load, objects: ObjectLoad) -> list[str]:
    """Waits until each client was answered once more."""
    acks = [writer.acks for writer in frames.writers]
    done = [client.done for client in objects.all]

    def late() -> list[str]:
        writers = [w.name for w, old in zip(frames.writers, acks, strict=True) if w.acks <= old]
        return writers + [w.name for w, old in zip(objects.all, done, strict=True) if w.done <= old]

    def is_over() -> bool:
        return bool(frames.wrong or objects.wrong) or not late()

    if until(is_over, STEP_S):
        return frames.wrong + objects.wrong
    return [f"not answered for {STEP_S:.0f} s after all was ready: {', '.join(late())}:\n{service.log()}"]


COUNTS = (
    "acks", "deletes", "tickets_read_back", "object_puts", "object_deletes", "object_gets", "slow_object_gets",
    "objects_read_back", "processes_stopped", "long", "named", "replaced", "bystanders_answered",
    "bystanders_of_a_slow_disk", "readyz_judged", "healthz_judged", "parents_first", "all_at_once", "kills",
    "hang_ups", "restarts",
)  # fmt: skip


def stage(
    number: int, cases: int, chance: random.Random, directory: Path, counts: dict[str, int]
) -> list[str]:
    """`cases` cases on one new store. Returns the losses, after which it ends."""
    layout = LAYOUTS[number % len(LAYOUTS)]
    settings = SHORT | (SHORT_OWNERS if number // len(LAYOUTS) % 2 else {})
    service = ServedNode(directory / "data", settings, f"--layout={layout}")
    frames: Load | None = None
    objects: ObjectLoad | None = None
    try:
        service.start()
        frames = Load(service, directory / "history.txt", chance.randrange(1 << 30), MIXES[layout])
        objects = ObjectLoad(service, directory, chance.randrange(1 << 20), LARGES[layout])
        losses = ready(service, READY_S)
        for at in range(cases):
            if losses:
                return losses
            losses = one(service, draw(chance), chance, at, frames, objects, counts)
            progress.done(1, losses)
        frames.end()
        objects.end()
        return losses or end_of_stage(service, frames, objects, counts)
    finally:
        service.close()
        for load in (frames, objects):
            if load is not None and not load.writers[0].ended.is_set():
                load.end()


def one(
    service: ServedNode, plan: Plan, chance: random.Random, at: int, frames: Load, objects: ObjectLoad,
    counts: dict[str, int],
) -> list[str]:  # fmt: skip
    case = Case(service, plan, chance, at, objects)
    try:
        losses = case.run()
        losses += case.after(frames)
    finally:
        case.bystanders.close(frames)
    losses = losses or frames.check_new() + objects.check_new()
    for name, value in case.counts.items():
        counts[name] += value
    counts["processes_stopped"] += len(plan.still)
    counts["long"] += plan.length == "long"
    counts["all_at_once"] += plan.still == NAMES
    return [f"case {at + 1}, {plan}: {loss}" for loss in losses]


def end_of_stage(service: ServedNode, frames: Load, objects: ObjectLoad, counts: dict[str, int]) -> list[str]:
    """Everything of the histories, before and after a clean restart."""
    counts["acks"] += frames.acks
    counts["deletes"] += frames.deletes
    counts["object_puts"] += sum(client.puts for client in objects.clients)
    counts["object_deletes"] += sum(client.deletes for client in objects.clients)
    counts["object_gets"] += sum(client.gets for client in objects.clients)
    counts["slow_object_gets"] += sum(reader.done for reader in objects.readers)
    seen = seen_objects = 0
    for again in (True, False):
        losses, seen = frames.check_all()
        found, seen_objects = objects.check_all()
        losses += found
        if code := service.node.stop():
            losses.append(f"a clean stop ended with {code}:\n{service.log()}")
        if losses:
            return losses
        if again:
            service.start()
    counts["tickets_read_back"] += seen
    counts["objects_read_back"] += seen_objects
    return []


def run(seed: int, cases: int, directory: Path) -> Outcome:
    chance = random.Random(seed)
    counts = dict.fromkeys(COUNTS, 0)
    done = number = 0
    while done < cases:
        now = min(STAGE, cases - done)
        home = directory / f"stage-{number}"
        home.mkdir()
        try:
            losses = stage(number, now, chance, home, counts)
        except (OSError, AssertionError) as error:
            losses = [f"{type(error).__name__}: {error}"]
        done, number = done + now, number + 1
        if losses:
            return Outcome(seed, done, [f"stage {number}: {loss}" for loss in losses[:20]], counts)
        shutil.rmtree(home)
    return Outcome(seed, done, [], counts)
