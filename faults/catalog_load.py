"""Clients of a gateway that remember what they were told, and the judgement of what is there in the end."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from gateway_rig import Answer, Broken

from faults.catalog_history import ABSENT, BROKEN, bytes_of, read
from faults.catalog_side import BOUND_S, PATIENCE_S, Gateway, LossError, Side, read_store, until
from ingest import ticket
from ingest.catalog.catalog_reader import CatalogReader, Identity
from ingest.limits import DATA_SIZE
from ingest.objects import binding
from ingest.status import Status

NAMES = 10  # of one catalog, so that most uploads replace something
SIZES = ((1, 3_000), (1, 3_000), (3_000, 60_000), (300_000, 700_000))  # bytes; the last ones go the long way
TRY_AGAIN = ("busy", "engine_unreachable", "engine_failed", "upload_lost", "not_ready")
LOST = (OSError, Broken, ValueError)  # of a connection: nobody knows what became of the request


def name_of(number: int) -> str:
    return f"object-{number}"


def code_of(answer: Answer) -> str:
    """The gateway's word for a refusal. LossError for one that no fault of this part can be the cause of."""
    try:
        return str(answer.code)
    except (ValueError, KeyError, TypeError):
        raise LossError(f"status {answer.status} without a code: {answer.body[:200]!r}") from None


def refused(answer: Answer, what: str) -> None:
    """LossError unless it says that one may try again, to somebody whose engine is the right one."""
    if code_of(answer) not in TRY_AGAIN:
        raise LossError(
            f"{what}: status {answer.status}, {answer.json['code']}: {answer.json.get('message', '')}"
        )


def put(side: Side, number: int, size: int) -> Answer | None:
    """An upload. None: the connection was lost."""
    name = name_of(number)
    version, data = side.history.put(name, size)
    try:
        answer = side.gateway.ask("PUT", f"/objects/{name}", data)
    except LOST:
        return None
    if answer.status == 200:
        side.history.append(f"ok {name} {version}")
    elif code_of(answer) == "foreign_store":
        side.history.append(f"no {name} {version}")
    return answer


def delete(side: Side, number: int) -> Answer | None:
    name = name_of(number)
    might_be_absent = ABSENT in side.history.known.may(name)
    side.history.append(f"del {name}")
    try:
        answer = side.gateway.ask("DELETE", f"/objects/{name}")
    except LOST:
        return None
    if answer.status == 404 and not might_be_absent:
        raise LossError(f"{side.history.catalog}: {name} was acknowledged, and a delete finds it absent")
    if answer.status in (200, 204, 404):
        side.history.append(f"gone {name}")
    return answer


def look(side: Side, name: str) -> int | None:
    """Which version is served: one that may be there. None: it can't be known now. LossError."""
    try:
        answer = side.gateway.ask("GET", f"/objects/{name}")
    except LOST:
        return None
    known, catalog = side.history.known, side.history.catalog
    if answer.status == 200:
        version = known.identify(catalog, name, answer.body)
        if version is None:
            raise LossError(f"{catalog}: {name} has {len(answer.body)} bytes that nobody put there")
    elif answer.status == 404 and BROKEN not in known.may(name):
        version = ABSENT
    elif BROKEN in known.may(name):
        return BROKEN
    else:
        refused(answer, f"{catalog}: GET {name}")
        return None
    if version not in known.may(name):
        raise LossError(
            f"{catalog}: {name} is version {version} (0: absent), expected one of {sorted(known.may(name))}"
        )
    return version


class Writer(threading.Thread):
    """Uploads, overwrites, deletes and reads, one after the other, until it is told to end. `wrong`: what ended it."""

    def __init__(self, side: Side, seed: int) -> None:
        super().__init__(name=f"writer-{side.history.catalog}", daemon=True)
        self.side = side
        self.chance = random.Random(seed)
        self.ended = threading.Event()
        self.wrong: LossError | None = None

    def run(self) -> None:
        try:
            while not self.ended.is_set():
                answer = self.step()
                if answer is None or answer.status not in (200, 204, 404):
                    self.ended.wait(0.01)
                if answer is not None and answer.status not in (200, 204, 404):
                    refused(answer, self.side.history.catalog)
        except LossError as error:
            self.wrong = error

    def step(self) -> Answer | None:
        number, kind = self.chance.randrange(NAMES), self.chance.random()
        if kind < 0.6:
            return put(self.side, number, self.chance.randint(*self.chance.choice(SIZES)))
        if kind < 0.8:
            return delete(self.side, number)
        look(self.side, name_of(number))
        return None


@contextmanager
def writing(side: Side, chance: random.Random) -> Iterator[None]:
    """While the body runs a writer is at work. What it found is raised in the end."""
    writer = Writer(side, chance.randrange(1 << 30))
    writer.start()
    try:
        yield
    finally:
        writer.ended.set()
        writer.join(2 * PATIENCE_S)
        if writer.is_alive():
            raise LossError(f"{side.history.catalog}: a request did not end")
        if writer.wrong is not None:  # rather than what the body waits for in vain
            raise writer.wrong


@contextmanager
def load(sides: list[Side], chance: random.Random) -> Iterator[None]:
    with ExitStack() as stack:
        for side in sides:
            stack.enter_context(writing(side, chance))
        yield


def wait_for_acks(side: Side, more: int) -> None:
    wanted = side.history.acks + more
    until(
        lambda: side.history.acks >= wanted,
        f"{side.history.catalog}: uploads and deletes no longer get through",
    )


def serves_again(side: Side) -> None:
    """The engine of a gateway that runs is there: an upload must get through, and soon."""

    def stored() -> bool:
        answer = put(side, 0, 1000)
        if answer is not None and answer.status != 200 and code_of(answer) != "foreign_store":
            refused(answer, side.history.catalog)
        return answer is not None and answer.status == 200

    side.waits.append(
        until(stored, f"{side.history.catalog}: serves again after its engine is back", BOUND_S)
    )


def check_served(side: Side) -> int:
    """Reads all names through the gateway; how many were there. What is read once must stay so. LossError."""
    there = 0
    for name in sorted(side.history.known.now):
        deadline = time.monotonic() + PATIENCE_S
        while (version := look(side, name)) is None:
            if time.monotonic() > deadline:
                raise LossError(f"{side.history.catalog}: {name} can't be read for {PATIENCE_S:.0f} s")
            time.sleep(0.02)
        there += version > ABSENT
        if version != BROKEN and name not in side.history.known.open:
            side.history.append(f"seen {name} {version}")
    return there


def identity(gateway: Gateway) -> Identity:
    with CatalogReader(gateway.data_dir / ".ingest" / "catalog.db") as reader:
        return reader.identity()


def bound_to(side: Side) -> bytes | None:
    """The id of the catalog that the engine's store carries."""
    (run,) = read_store(side.engine, side.keys, ticket.LAST, 1)
    if run.status is Status.MISSING:
        return None
    if run.status is not Status.SAVED:
        raise LossError(f"ticket {binding.TICKET} is {run.status.name}, expected SAVED")
    return binding.parse(run.data(ticket.LAST))


def check_binding(side: Side) -> None:
    """The engine carries the id of its catalog, which knows that. LossError."""
    found, own = bound_to(side), identity(side.gateway)
    if found != own.id or not own.bound:
        raise LossError(
            f"the engine of {side.history.catalog}, {own.id.hex()} (bound: {own.bound}), carries the id"
            f" {'of nobody' if found is None else found.hex()}"
        )


def check_stored(side: Side) -> int:
    """Each chunk of each object that is surely there is SAVED in the engine with its bytes. Returns how many. LossError."""
    history = read(side.history.path)
    if history.now != side.history.known.now:
        raise LossError(f"{side.history.path} does not say what its writer remembers")
    chunks = 0
    with CatalogReader(side.catalog) as reader:
        for name, may in history.now.items():
            (version, *others) = may
            if others or version <= ABSENT:
                continue
            found = reader.lookup("objects", name)
            if found is None:
                raise LossError(f"{side.history.catalog}: {name} is served, and not in the catalog")
            data, stored = (
                bytes_of(side.history.catalog, name, version, history.sizes[name, version]),
                bytearray(),
            )
            for extent in found.extents:
                for run in read_store(side.engine, side.keys, extent.first, extent.count):
                    if run.status is not Status.SAVED:
                        raise LossError(
                            f"{side.history.catalog}: a chunk of {name}, {ticket.format(run.first)}, is {run.status.name}"
                        )
                    for index in range(run.first, run.first + run.count):
                        stored += run.data(index)
                chunks += extent.count
            wanted = data.ljust(-(-len(data) // DATA_SIZE) * DATA_SIZE, b"\0")
            if stored[: len(wanted)] != wanted:
                raise LossError(
                    f"{side.history.catalog}: the chunks of {name} hold other bytes than it was put with"
                )
    return chunks
