"""What is done to two engines and their gateways. A move begins and ends with both gateways serving at their own engines."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from faults.catalog_history import ABSENT
from faults.catalog_load import (
    NAMES,
    TRY_AGAIN,
    bound_to,
    check_served,
    code_of,
    delete,
    identity,
    load,
    name_of,
    put,
    refused,
    serves_again,
    wait_for_acks,
    writing,
)
from faults.catalog_side import (
    ADVICE,
    BOUND_S,
    PATIENCE_S,
    WHOSE,
    LossError,
    Side,
    everything,
    flags_of,
    until,
)
from ingest.catalog.catalog_reader import CatalogReader
from ingest.store.layouts.layout import LAYOUTS

SLACK_TICKETS = 1296 * 64  # behind what a catalog has given: what processes may take meanwhile


@dataclass
class Moves:
    """`side`: to which it happens; `other`: whose engine it may meet."""

    side: Side
    other: Side
    chance: random.Random
    counts: Counter[str]

    # --- a life

    def load_both(self) -> None:
        with load([self.side, self.other], self.chance):
            for side in (self.side, self.other):
                wait_for_acks(side, self.chance.randrange(5, 40))

    def collect(self) -> None:
        host, port = self.side.gateway.gateway.address
        with writing(self.side, self.chance):
            wait_for_acks(self.side, 10)
            self.side.command("gc", f"--gateway=http://{host}:{port}", code=(0, 75))
        self.counts["collections"] += 1

    def kill_gateway(self) -> None:
        gateway = self.side.gateway
        with load([self.side, self.other], self.chance):
            wait_for_acks(self.side, self.chance.randrange(1, 20))
            choice = self.chance.choice(("all", "parent", "child"))
            family = [process.pid for process in gateway.family()]
            if choice == "child":
                os.kill(self.chance.choice(family[1:]), signal.SIGKILL)
            else:
                gateway.end(family if choice == "all" else family[:1])
                self.side.history.append("quiet")
                self.start_again(self.side)
            wait_for_acks(self.side, 5)
        self.counts["gateway_kills"] += 1
        check_served(self.side)

    def start_again(self, side: Side) -> None:
        """In a third of the cases it is killed once more on its way."""
        if self.chance.random() < 0.3:
            side.gateway.begin(flags_of(side.place))
            time.sleep(self.chance.random())
            side.gateway.kill()
            self.counts["gateway_kills"] += 1
        side.start()

    def kill_engine(self) -> None:
        engine = self.side.engine
        with load([self.side, self.other], self.chance):
            wait_for_acks(self.side, self.chance.randrange(1, 20))
            choice = self.chance.choice(("all", "parent", "worker", "committer"))
            if choice in ("all", "parent"):
                engine.kill_all() if choice == "all" else engine.kill_parent()
                self.side.start_engine()
            elif pids := engine.children(f"ingest-{choice}"):
                os.kill(self.chance.choice(pids), signal.SIGKILL)
            wait_for_acks(self.side, 5)
        self.counts["engine_kills"] += 1
        check_served(self.side)

    # --- strangers

    def upto(self) -> int:
        with CatalogReader(self.side.catalog) as mine, CatalogReader(self.other.catalog) as theirs:
            return max(mine.next_ticket(), theirs.next_ticket()) + SLACK_TICKETS

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """The other engine, whose gateway does not run, has the same bytes under each ticket before and behind the body."""
        upto = self.upto()
        before = everything(self.other.engine, self.other.keys, upto)
        yield
        after = everything(self.other.engine, self.other.keys, upto)
        for index in sorted(before.keys() | after.keys()):
            was, found = before.get(index), after.get(index)
            if was != found:
                raise LossError(
                    f"a stranger changed ticket {index} of the engine of {self.other.history.catalog}:"
                    f" expected {was and was[0].name}, found {found and found[0].name}"
                )
        self.counts["tickets_untouched"] += len(before)

    def stranger_starts(self) -> None:
        """With the addresses of the other engine, or with one port of it."""
        alone = self.chance.random() < 0.5
        self.side.stop()
        if not alone:
            self.stranger_is_refused()
        else:
            self.other.stop()
            with self.untouched():
                self.stranger_is_refused()
            self.other.start()
        self.side.start()
        check_served(self.side)
        check_served(self.other)

    def stranger_is_refused(self) -> None:
        gateway, own, foreign = self.side.gateway, self.side.place, self.other.place
        addresses = flags_of(*self.chance.choice([(foreign,), (foreign,), (foreign, own), (own, foreign)]))
        if self.chance.random() < 0.3:
            gateway.begin(addresses)
            time.sleep(self.chance.random())
            gateway.kill()
        gateway.begin(addresses)
        if gateway.serves():
            raise LossError(f"a gateway serves at the engine of another catalog:\n{gateway.said()[-3000:]}")
        self.counts["refused_starts"] += 1
        file = gateway.data_dir.parent / "stranger.txt"
        file.write_bytes(b"a stranger's")
        here = (f"--data-dir={gateway.data_dir}", f"--key-file={self.side.key_file}")
        put_port, get_port = flags_of(foreign)
        command = self.chance.choice(
            [
                ("put", str(file), *here, put_port),
                ("get", name_of(0), "-o", str(file), *here, get_port),
                ("gc", *here, put_port),
            ]
        )
        said = self.side.command(*command, code=(78,))
        if not WHOSE.search(said) or ADVICE not in said:
            raise LossError(f"ingest {command[0]} is refused without the words of the documents:\n{said}")
        self.counts["refused_commands"] += 1

    def both_at_one_engine(self) -> None:
        """At the same moment: the one that is bound there serves, the other one is refused."""
        self.side.stop()
        self.other.stop()
        for side in self.chance.sample([self.side, self.other], 2):
            side.gateway.begin(flags_of(self.side.place))
        if not self.side.gateway.serves() or self.other.gateway.serves():
            raise LossError(
                f"not the gateway of the engine serves there:\n{self.side.gateway.said()[-3000:]}"
            )
        self.counts["refused_starts"] += 1
        self.other.start()

    # --- another engine at the address

    def takeover(self, bound: bool = True) -> None:
        """The other engine comes to the address of this one while the gateway runs. `bound`: it has a catalog of its own."""
        with writing(self.side, self.chance):
            wait_for_acks(self.side, 5)
        if bound:
            self.other.stop()
        with self.untouched():
            for side in (self.side, self.other):
                side.engine.kill_all() if self.chance.random() < 0.5 else side.stop_engine()
            self.other.start_engine(self.side.place)
            self.meet_a_stranger()
        if not bound and (found := bound_to(self.other)) is not None:
            raise LossError(f"a stranger bound an engine to its catalog, {found.hex()}")
        self.other.stop_engine()
        self.other.start_engine()
        self.side.start_engine()
        if self.side.gateway.runs:
            serves_again(self.side)
        else:
            self.side.history.append("quiet")
            self.side.start()
        if bound:
            self.other.start()
            check_served(self.other)
        check_served(self.side)
        self.counts["takeovers"] += 1

    def meet_a_stranger(self) -> None:
        """What the gateway answers, and how it ends when one of its processes starts, at another one's engine."""
        gateway, catalog = self.side.gateway, self.side.history.catalog

        def said_so() -> bool:
            answer = put(self.side, self.chance.randrange(NAMES), self.chance.randrange(1, 400_000))
            if answer is not None and answer.status == 200:
                raise LossError(f"{catalog}: an upload is acknowledged at another catalog's engine")
            if answer is None or code_of(answer) != "foreign_store":
                if answer is not None:
                    refused(answer, catalog)
                return False
            if answer.status != 503 or not WHOSE.match(answer.json["message"]):
                raise LossError(f"{catalog}: an upload is refused with {answer.body!r}")
            return True

        for _ in range(self.chance.randrange(1, 4)):
            until(said_so, f"{catalog}: an upload is answered foreign_store", BOUND_S)
        for number in range(3):
            if (version := served_by_stranger(self.side, name_of(number))) is not None:
                raise LossError(f"{catalog}: version {version} of {name_of(number)} is served by a stranger")
        delete(self.side, self.chance.randrange(NAMES))
        until(
            lambda: "the engine's store" in gateway.said(),
            f"{catalog}: the collector says why it stands",
            BOUND_S,
        )
        until(  # each process of a gateway knows it when a request to it has met the stranger
            lambda: (
                (gateway.ask("GET", "/healthz").status, gateway.ask("GET", "/alive").status) == (503, 200)
            ),
            f"{catalog}: /healthz says 503 at another catalog's engine, and /alive 200",
            BOUND_S,
        )
        self.counts["foreign_store_answers"] += 1
        ending = self.chance.choice(("", "process", "all"))
        if ending == "all":
            gateway.kill()
            gateway.begin(flags_of(self.side.place))
        elif ending == "process":
            children = [one for one in gateway.family()[1:] if one.name() != "ingest-catalog"]
            self.chance.choice(children).kill()
        if ending:
            assert gateway.process is not None
            until(
                lambda: not gateway.runs,
                f"{catalog}: a process that starts at a stranger's ends it",
                PATIENCE_S,
            )
            gateway.require_refusal(gateway.process.returncode, gateway.said())
            self.counts["refused_starts"] += 1

    # --- catalogs and stores that come from elsewhere

    def stop_or_kill(self) -> None:
        """The gateway and then the engine."""
        if self.chance.random() < 0.5:
            self.side.gateway.kill()
            self.side.history.append("quiet")
        else:
            self.side.stop()
        self.side.engine.kill_all() if self.chance.random() < 0.5 else self.side.stop_engine()

    def go_on(self, id_: bytes) -> None:
        if (found := identity(self.side.gateway).id) != id_:
            raise LossError(f"the catalog's id was {id_.hex()} and is {found.hex()}")
        self.side.start_engine()
        self.side.start()
        check_served(self.side)

    def backup(self) -> None:
        """A copy of the live catalog is put back: at once, or after some changes, or by a rebuild on top of it."""
        id_ = identity(self.side.gateway).id
        history = self.side.history
        with writing(self.side, self.chance):
            wait_for_acks(self.side, 5)
            history.append("mark")
            copy = self.side.copy_of_catalog()
            history.append("marked")
            if self.chance.random() < 0.6:
                wait_for_acks(self.side, self.chance.randrange(1, 20))
        self.stop_or_kill()
        self.side.put_catalog(copy)
        history.append("stale")
        self.counts["backups_put_back"] += 1
        if self.chance.random() < 0.3:
            self.make_again(replace=True)
        self.go_on(id_)

    def rebuild(self) -> None:
        id_ = identity(self.side.gateway).id
        with writing(self.side, self.chance):
            wait_for_acks(self.side, self.chance.randrange(1, 20))
            self.stop_or_kill()
        self.make_again(replace=self.chance.random() < 0.5)
        self.go_on(id_)

    def make_again(self, replace: bool) -> None:
        """`ingest catalog rebuild` works on the engine's data directory: the catalog is carried there and back."""
        target = self.side.engine.data_dir / ".ingest" / "catalog.db"
        if replace:
            shutil.copy(self.side.copy_of_catalog(), target)
        flags = ("--replace",) if replace else ()
        said = self.side.command(
            "catalog", "rebuild", *flags, f"--data-dir={target.parent.parent}", code=(0, 1)
        )
        if "problem: " in said:
            raise LossError(f"a rebuild has a problem:\n{said}")
        self.side.put_catalog(target)
        for file in target.parent.glob("catalog.*"):
            file.unlink()
        self.side.history.append("rebuilt")
        self.counts["rebuilds"] += 1

    def move(self) -> None:
        """The store and its catalog go to another place; or come back from a copy; or the store is exported."""
        side, id_ = self.side, identity(self.side.gateway).id
        self.stop_or_kill()
        how = self.chance.choice(("renamed", "restored", "exported"))
        engine, gateway = side.engine.data_dir, side.gateway.data_dir
        side.copies += 1
        new = {
            path: path.with_name(f"{path.name.split('-at-')[0]}-at-{side.copies}")
            for path in (engine, gateway)
        }
        if how == "exported":
            side.layout = self.chance.choice(LAYOUTS)
            side.command("export", str(engine), str(new[engine]), f"--layout={side.layout}")
            gateway.rename(new[gateway])
            shutil.rmtree(engine)
        elif how == "renamed":
            for path, target in new.items():
                path.rename(target)
        else:
            for path, target in new.items():
                copy_all(path, target)
            side.history.append("save")
            side.start_engine()
            side.start()
            with writing(side, self.chance):
                wait_for_acks(side, self.chance.randrange(1, 20))
                self.stop_or_kill()
            for path in new:
                shutil.rmtree(path)
            side.history.append("restored")
        side.engine.data_dir = new[engine]
        side.gateway.moved(new[gateway])
        self.counts[f"stores_{how}"] += 1
        self.go_on(id_)


def copy_all(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)


def served_by_stranger(side: Side, name: str) -> int | None:
    """Which version (or -1) is served while the engine is another one's. None: nothing, as it should be. LossError."""
    answer = side.gateway.ask("GET", f"/objects/{name}")
    if answer.status == 200:
        return side.history.known.identify(side.history.catalog, name, answer.body) or -1
    known = answer.status == 404 and ABSENT in side.history.known.may(name)  # the catalog says that
    if not known and code_of(answer) not in ("foreign_store", *TRY_AGAIN):
        raise LossError(
            f"{side.history.catalog}: GET {name} is answered {answer.status} at a stranger's engine"
        )
    return None


ALL: tuple[Callable[[Moves], None], ...] = (
    Moves.load_both,
    Moves.collect,
    Moves.kill_gateway,
    Moves.kill_engine,
    Moves.stranger_starts,
    Moves.both_at_one_engine,
    Moves.takeover,
    Moves.backup,
    Moves.rebuild,
    Moves.move,
)
