"""Part 10: two engines with one key, two gateways with catalogs of their own, and every way in which they may meet.

A case: both gateways start on one new engine at the same moment, while something dies; the one that is refused gets the
other engine. Then come `MOVES` random moves (`catalog_moves`), and in the end all is read back, through HTTP and from the
get ports. `docs/objects.md`, "The binding", says what must be so.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil
from node_rig import NodeRig

from faults import progress
from faults.catalog_history import CatalogHistory
from faults.catalog_load import (
    bound_to,
    check_binding,
    check_served,
    check_stored,
    identity,
    load,
    wait_for_acks,
)
from faults.catalog_moves import ALL, Moves
from faults.catalog_side import Gateway, LossError, Side, flags_of, until
from faults.outcome import Outcome
from ingest.runtime.key_file import make_key_file
from ingest.store.layouts.layout import LAYOUTS

NUMBER, TITLE, CASES = 10, "two catalogs and one store", 36
MOVES = 5
STEPS = ("received", "verified", "claimed", "log_written", "log_synced", "slots_written", "bits_set", "acked")
WAYS = ("kill", "kill-parent", "kill-node")
DYING = ("nothing", "step", "step", "gateway", "gateway_when_bound", "child", "engine")  # in the contest
LOSSES_MAX = 20


def address_of(number: int) -> str:
    """A loopback address for one engine of this process: nobody takes its ports while it is down."""
    return f"127.{10 + os.getpid() % 200}.{os.getpid() // 200 % 250}.{number + 1}"


def make_side(directory: Path, number: int, key: Path, workers: int) -> Side:
    """A new engine, which runs, and a gateway that does not."""
    data_dir = directory / f"engine-{number}"
    (data_dir / ".ingest").mkdir(parents=True)
    shutil.copy(key, data_dir / ".ingest" / "key")
    name = f"catalog-{number}"
    gateway = Gateway(directory / name, key, workers)
    side = Side(NodeRig(data_dir), gateway, CatalogHistory(directory / f"{name}.txt", name), key)
    host = address_of(number)
    side.place = ((host, 0), (host, 0))
    return side


def first_start(side: Side, environment: dict[str, str]) -> None:
    """The engine keeps the addresses that it finds, as one that is configured."""
    side.engine.environment = environment
    side.start_engine()
    side.place = (side.engine.put_address, side.engine.get_address)


def strike(choice: str, sides: list[Side], chance: random.Random) -> None:
    """Something dies while both gateways start on the engine of the first side. A `step` kills the engine by itself."""
    victim = chance.choice(sides).gateway
    if choice == "gateway_when_bound":
        with suppress(LossError, OSError):  # the engine may be slow
            until(lambda: bound_to(sides[0]) is not None or not victim.runs, "it is bound")
        victim.kill()
    if choice not in ("gateway", "child", "engine"):
        return
    time.sleep(chance.random() * 1.5)
    if choice == "gateway":
        victim.kill()
    elif choice == "engine":
        sides[0].engine.kill_all()
    elif victim.runs:
        with suppress(psutil.NoSuchProcess):
            if children := victim.family()[1:]:
                chance.choice(children).kill()


def settled(sides: list[Side], counts: Counter[str]) -> dict[str, bool]:
    """Starts again what died, until each gateway serves (True) or was refused (False)."""
    engine = sides[0].engine
    outcomes: dict[str, bool] = {}

    def decided() -> bool:
        assert engine.process is not None
        if engine.process.poll() is not None:
            counts["engine_deaths_in_a_binding"] += 1
            engine.wait_gone()
            engine.environment = {}
            sides[0].start_engine()
        for side in sides:
            process = side.gateway.process
            assert process is not None
            if process.poll() == -signal.SIGKILL:
                counts["gateway_deaths_in_a_binding"] += 1
                side.gateway.begin(flags_of(sides[0].place))
            if (outcome := side.gateway.outcome()) is not None:
                outcomes[side.history.catalog] = outcome
        return len(outcomes) == len(sides)

    try:
        until(decided, "which of two gateways serves")
    except LossError as error:
        logs = "\n".join(side.gateway.log() for side in sides)
        raise LossError(f"{error}, decided is {outcomes}:\n{logs}") from None
    return outcomes


def contest(sides: list[Side], choice: str, chance: random.Random, counts: Counter[str]) -> Side:
    """Both gateways start on the engine of the first side at the same moment, and something dies. Who is bound serves."""
    for side in chance.sample(sides, 2):
        side.gateway.begin(flags_of(sides[0].place))
    strike(choice, sides, chance)
    try:
        outcomes = settled(sides, counts)
    except LossError as error:
        raise LossError(f"while {choice} dies: {error}") from None
    if sorted(outcomes.values()) != [False, True]:
        raise LossError(f"while {choice} dies: of two gateways at one engine these serve: {outcomes}")
    counts["bindings_contested"] += 1
    winner, loser = sorted(sides, key=lambda side: not outcomes[side.history.catalog])
    own = identity(winner.gateway)
    if bound_to(sides[0]) != own.id or not own.bound:
        raise LossError("the engine does not carry the id of the gateway that serves")
    if identity(loser.gateway).bound:
        raise LossError("a catalog that was refused says that it is bound")
    if sides[0].engine.environment:  # the step may be passed later
        sides[0].engine.kill_all()
        sides[0].engine.environment = {}
        sides[0].start_engine()
    return winner


def case(seed: int, directory: Path, counts: Counter[str], moves: int = MOVES) -> None:
    """LossError."""
    chance = random.Random(seed)
    key = directory / "key"
    make_key_file(key)
    sides: list[Side] = []
    try:
        for number in range(2):
            sides.append(make_side(directory, number, key, chance.randrange(1, 3)))
            sides[-1].layout = chance.choice(LAYOUTS)
        choice = chance.choice(DYING)
        point = f"{chance.choice(STEPS)}={chance.choice(WAYS)}@{chance.randrange(1, 3)}"
        first_start(sides[0], {"FAILPOINTS": point} if choice == "step" else {})
        first_start(sides[1], {})
        if contest(sides, choice, chance, counts) is sides[1]:  # whose engine it is from now on
            sides[0].gateway, sides[1].gateway = sides[1].gateway, sides[0].gateway
            sides[0].history, sides[1].history = sides[1].history, sides[0].history
        if chance.random() < 0.3:
            Moves(sides[0], sides[1], chance, counts).takeover(bound=False)
        sides[1].start()
        with load(sides, chance):
            for side in sides:
                wait_for_acks(side, 10)
        for _ in range(moves):
            side, other = chance.sample(sides, 2)
            move = chance.choice(ALL)
            counts["moves"] += 1
            try:
                move(Moves(side, other, chance, counts))
                for one in sides:
                    check_binding(one)
            except LossError as error:
                raise LossError(f"{move.__name__} of {side.history.catalog}: {error}") from None
        for side in sides:
            counts["objects_read_back"] += check_served(side)
            counts["chunks_read_back"] += check_stored(side)
            counts["acks"] += side.history.acks
            counts["longest_wait_ms"] = max(
                [counts["longest_wait_ms"], *(int(1000 * one) for one in side.waits)]
            )
        for side in sides:
            side.stop()
            side.stop_engine()
    finally:
        for side in sides:
            side.close()


def run(seed: int, cases: int, directory: Path, moves: int = MOVES) -> Outcome:
    chance = random.Random(seed)
    counts: Counter[str] = Counter()
    losses: list[str] = []
    for number in range(cases):
        home = directory / f"case-{number}"
        home.mkdir()
        found = []
        try:
            case(chance.randrange(1 << 31), home, counts, moves)
        except (LossError, OSError, AssertionError) as error:
            found = [
                f"case {number} of seed {seed}: {error if isinstance(error, LossError) else repr(error)}"
            ]
        progress.done(1, found)
        losses += found
        if len(losses) >= LOSSES_MAX:
            return Outcome(seed, number + 1, losses, dict(counts))
        shutil.rmtree(home, ignore_errors=True)
    return Outcome(seed, cases, losses, dict(counts))
