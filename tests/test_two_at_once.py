"""Two rare events at once: each of them alone is tried elsewhere, here every pair of them, in either order."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from blake3 import blake3
from gateway_rig import Gateway, memory_gateway
from msgspec.structs import replace
from node_rig import Connection, running_node
from test_reload import Log, hup, write_keys
from test_supervisor import Rig as SupervisorRig

from ingest import mac, ticket
from ingest.catalog.catalog_reader import CatalogReader
from ingest.catalog.extent import Extent
from ingest.catalog.local_catalog import LocalCatalog
from ingest.client.put_channel import Batch
from ingest.engine import announcement
from ingest.engine._queue import Queue
from ingest.engine.node import Node
from ingest.engine.reload import Reload, Settings
from ingest.engine.server_config import ServerConfig
from ingest.errors import BusyError, ConnectionLostError, IngestError, ProtocolError
from ingest.limits import DATA_SIZE
from ingest.mac import KeyRing
from ingest.objects.chunk_writer import ChunkWriter
from ingest.status import Status
from ingest.store.store import Store

PATIENCE_S = 60.0

# --- what a batch meets: answers, and its end

COUNT = 6
Event = Callable[[Batch, Extent], None]


def answers(status: Status, at: int) -> Event:
    def settle(batch: Batch, place: Extent) -> None:
        batch.settle(place.first + at, 1, status)

    return settle


def lost(batch: Batch, place: Extent) -> None:
    batch.fail(ConnectionLostError("the server went away"), batch.left)


def malformed(batch: Batch, place: Extent) -> None:
    batch.fail(ProtocolError("no ack"), batch.left)


def nothing(batch: Batch, place: Extent) -> None:
    """The rest is answered SAVED."""
    left = batch.left
    batch.settle(place.first + place.count - left, left, Status.SAVED)


class Chunks:
    """A `ChunkStore` whose server does what the test says, all of it in one piece, when all frames are sent: ``script``. A
    batch that is ``held`` is answered by the test."""

    def __init__(self, script: list[Event], in_adding: bool, held: bool = False) -> None:
        self.script, self.in_adding, self.held = script, in_adding, held
        self.sent = asyncio.Event()
        self.batch = Batch(1000)
        self.place = Extent(0, 1)

    def new_batch(self) -> Batch:
        return self.batch

    async def add_range(self, batch: Batch, first: str, data: bytes) -> None:
        batch.left += COUNT
        self.place = Extent(ticket.parse(first), COUNT)
        if self.in_adding:
            self.play()
            if batch.error is not None:
                raise batch.error

    def play(self) -> None:
        for event in self.script:
            event(self.batch, self.place)

    async def finish(self, batch: Batch) -> dict[str, Status]:
        if not self.in_adding and not self.held:
            self.play()
        self.sent.set()
        await batch.wait()
        return batch.refused


class SlowToLearn(LocalCatalog):
    """It is busy when it is told of the first conflict."""

    refusals = 1

    async def conflicted(self, owner: int, index: int, version: int | None = None) -> None:
        if self.refusals:
            self.refusals -= 1
            raise BusyError("try again")
        await super().conflicted(owner, index, version)


async def upload(path: Path, chunks: Chunks, ends: str, catalog_type: type[LocalCatalog]) -> None:
    """The chunk that answered CONFLICT is somebody else's: whatever comes after, it never is garbage."""
    catalog = await catalog_type.open(path)
    owner = await catalog.enter("test")
    place = await catalog.lease(owner, COUNT, "test")
    writer = ChunkWriter(chunks, catalog)  # type: ignore[arg-type]
    refused: dict[str, Status] = {}
    putting = asyncio.create_task(writer.put_chunks(owner, place, bytes(COUNT * DATA_SIZE), refused))
    if chunks.held:
        await chunks.sent.wait()
        if ends == "the owner is given up":
            await catalog.leave(owner)
        if ends != "answered, then cancelled":
            putting.cancel()
        await asyncio.sleep(0)
        chunks.play()
        if ends == "answered, then cancelled":
            putting.cancel()
    with suppress(IngestError, asyncio.CancelledError):
        await putting
    async with asyncio.timeout(PATIENCE_S):
        await writer.settled()
    await writer.close()
    if ends != "the owner is given up":
        await catalog.leave(owner)
    conflicts = {name for name, status in chunks.batch.refused.items() if status is Status.CONFLICT}
    assert refused.items() >= dict.fromkeys(conflicts, Status.CONFLICT).items()
    with CatalogReader(path) as reader:
        garbage = {
            ticket.format(index)
            for item in reader.garbage(100)
            for index in range(item.extent.first, item.extent.stop)
        }
    await catalog.close()
    mine = {ticket.format(index) for index in range(place.first, place.stop)}
    assert garbage == mine - conflicts, "a stranger's chunk is deleted, or one of ours stays for ever"


SECONDS = {"the connection is lost": lost, "the answer is malformed": malformed, "nothing": nothing}
CATALOGS = {"the catalog learns it": LocalCatalog, "the catalog is busy": SlowToLearn}


@pytest.mark.parametrize("catalog", CATALOGS)
@pytest.mark.parametrize("second", SECONDS)
@pytest.mark.parametrize("where", ["adding", "finishing"])
@pytest.mark.parametrize("conflicts", [(0,), (0, 1), ()])
def test_a_conflict_and_what_comes_in_the_same_piece(
    tmp_path: Path, catalog: str, second: str, where: str, conflicts: tuple[int, ...]
) -> None:
    async def run() -> None:
        script = [answers(Status.CONFLICT, at) for at in conflicts]
        chunks = Chunks([*script, SECONDS[second]], where == "adding")
        await upload(tmp_path / "catalog.db", chunks, second, CATALOGS[catalog])

    asyncio.run(run())


@pytest.mark.parametrize("catalog", CATALOGS)
@pytest.mark.parametrize("second", SECONDS)
@pytest.mark.parametrize(
    "ends", ["cancelled, then answered", "answered, then cancelled", "the owner is given up"]
)
def test_a_conflict_and_the_end_of_who_uploads(tmp_path: Path, catalog: str, second: str, ends: str) -> None:
    async def run() -> None:
        script = [answers(Status.CONFLICT, 0), answers(Status.SAVED, 1), answers(Status.CONFLICT, 2)]
        after: Event = SECONDS[second]
        if second == "nothing":
            after = lambda batch, place: batch.settle(place.first + 3, 3, Status.SAVED)  # noqa: E731
        chunks = Chunks([*script, after], False, held=True)
        await upload(tmp_path / "catalog.db", chunks, ends, CATALOGS[catalog])

    asyncio.run(run())


# --- reloads and deaths

OTHERS, WORKERS = ("committer", "admin"), ("worker-0", "worker-1")


class Family:
    """The processes of a server as its `Reload` sees them: lines that end when they die. ``keys``: what each uses."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "keys"
        self.rings = [[bytes([i]) * 32 for i in numbers] for numbers in ((1,), (1, 2), (2, 1, 3))]
        write_keys(self.file, self.rings[0])
        store = Store.open(directory / "data")
        config = ServerConfig(data_dir=directory / "data", key_file=self.file)
        self.node = Node(config, store, KeyRing(self.rings[0]), Queue(1, 16), [])
        self.node.read_config = lambda: config
        self.lines: dict[str, tuple[socket.socket, socket.socket]] = {}
        self.keys: dict[str, list[str]] = {}
        self.dead: set[str] = set()
        self.reload = Reload(self.node, self._lines)
        for name in (*OTHERS, *WORKERS):
            self.start(name)

    def close(self) -> None:
        for name in list(self.lines):
            self.let_die(name)
        self.node.queue.close()
        self.node.store.close()

    def _lines(self, to_workers: bool) -> dict[str, socket.socket]:
        return {name: line for name, (line, _) in self.lines.items() if (name in WORKERS) == to_workers}

    def start(self, name: str) -> None:
        self.dead.discard(name)
        self.lines[name] = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ring = self.node.keys if name in WORKERS else self.node.verifying_keys
        self.keys[name] = ring.ids

    def let_die(self, name: str) -> None:
        """Its end of the line is closed, and nobody has noticed."""
        self.lines[name][1].close()
        self.dead.add(name)

    def bury(self, name: str) -> None:
        """The parent has noticed, perhaps twice: by the line and by the process."""
        line, _ = self.lines.pop(name)
        line.close()
        self.reload.answered(name)
        self.reload.answered(name)

    def take(self, name: str) -> bool:
        """It takes over what it is told, if it is."""
        if name in self.dead:
            return False
        line = self.lines[name][1]
        try:
            message = line.recv(32, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        settings = msgspec.msgpack.decode(self.node.settings_memory[: int(message)], type=Settings)
        self.keys[name] = settings.keys.ids
        if name in WORKERS:
            for other in OTHERS:
                if other in self.lines and other not in self.dead:
                    assert set(settings.keys.ids) <= set(self.keys[other]), (
                        f"{other} can't verify what {name} takes"
                    )
        self.reload.answered(name)
        return True

    def take_all(self) -> None:
        while sum(self.take(name) for name in list(self.lines)):
            pass


MOMENTS = (
    "before the first reload",
    "before it is told",
    "told",
    "after it has answered",
    "when the others have",
)
ORDERS = tuple(itertools.permutations(("second", "buried", "started"), 3))


@pytest.mark.parametrize("victim", [*OTHERS, "worker-0"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_second_reload_while_a_process_dies(tmp_path: Path, victim: str, moment: str) -> None:
    """The second one comes before the death, between it and what the parent sees of it, or after its successor."""
    for number, order in enumerate(
        order for order in ORDERS if order.index("buried") < order.index("started")
    ):
        directory = tmp_path / str(number)
        directory.mkdir()
        family = Family(directory)
        try:
            write_keys(family.file, family.rings[1])
            if moment == "before the first reload":
                family.let_die(victim)
            family.reload.begin()
            if moment == "before it is told":  # of a worker: the others have not answered yet
                family.let_die(victim)
            if moment != "before it is told" and victim in WORKERS:
                for other in OTHERS:
                    family.take(other)
            if moment == "after it has answered":
                family.take(victim)
            if moment == "when the others have":
                for other in family.lines:
                    if other != victim:
                        family.take(other)
            if moment in ("told", "after it has answered", "when the others have"):
                family.let_die(victim)
            for event in order:
                if event == "second":
                    write_keys(family.file, family.rings[2])
                    family.reload.begin()
                elif event == "buried":
                    family.bury(victim)
                else:
                    family.start(victim)
                for name in family.lines:
                    if name != victim:
                        family.take(name)
            family.take_all()
            final = KeyRing(family.rings[2]).ids
            assert family.reload.waiting == frozenset(), order
            assert family.keys == dict.fromkeys((*OTHERS, *WORKERS), final), order
            assert family.node.keys.ids == family.node.verifying_keys.ids == final
            accepted = [keys.id for keys in family.node.keys.accepted]
            assert announcement.announced(directory / "data")["keys"] == accepted
            write_keys(family.file, [*family.rings[2], bytes([9]) * 32])
            family.reload.begin()
            family.take_all()
            assert len(family.node.keys.ids) == 4, "no other reload is possible"
        finally:
            family.close()


def test_a_parent_that_sees_a_death_and_its_line_at_once(tmp_path: Path) -> None:
    """A worker stands still in a reload, and dies while its parent does: both ends come in one look."""
    key_file = tmp_path / "keys"
    keys = [bytes([i]) * 32 for i in (1, 2, 3)]
    write_keys(key_file, keys[:1])
    config = tmp_path / "config.toml"
    config.write_text('log_level = "info"\n')
    with running_node(
        tmp_path / "data", f"--config={config}", f"--key-file={key_file}", "--workers=2"
    ) as rig:
        log = Log(rig)
        hup(rig, log)
        victim = rig.children("ingest-worker")[0]
        os.kill(victim, signal.SIGSTOP)
        write_keys(key_file, keys[:2])
        config.write_text('log_level = "debug"\n')
        hup(rig, log, "SIGHUP: changed: log_level")  # what it says before it tells the workers
        os.kill(rig.pid, signal.SIGSTOP)
        os.kill(victim, signal.SIGKILL)
        wait_for(lambda: state_of(victim) == "Z")
        write_keys(key_file, [keys[1], keys[0], keys[2]])
        os.kill(rig.pid, signal.SIGHUP)
        os.kill(rig.pid, signal.SIGCONT)
        first, second = mac.derive(keys[1]), mac.derive(keys[0])
        expected = f"reloaded: keys {first.id} and {second.id}"
        wait_for(lambda: expected in log or rig.process is None or rig.process.poll() is not None)
        assert expected in log, rig.log()
        log.wait(expected)
        with Connection(rig.put_address, first) as client:
            assert client.put([1]) == {1: Status.SAVED}
        assert rig.stop() == 0


def test_a_reload_while_a_process_rests_between_two_lives(tmp_path: Path) -> None:
    """Of any supervisor: it dies before it is told, or is dead and not started again when the others are told."""
    family = SupervisorRig(tmp_path)
    try:
        family.go_on("root")
        family.until("leaf starts", "branch starts")
        for together in (True, False) * 3:
            family.lines.clear()
            (leaf,) = (
                child
                for child in psutil.Process(family.process.pid).children()
                if child.name() == "ingest-leaf"
            )
            if together:  # its end and the signal come in one look
                family.process.send_signal(signal.SIGSTOP)
                leaf.send_signal(signal.SIGKILL)
                family.hup()
                family.process.send_signal(signal.SIGCONT)
            else:
                leaf.send_signal(signal.SIGKILL)
                wait_for(lambda leaf=leaf: not leaf.is_running())  # type: ignore[misc]
                family.hup()
            family.until("root passes it on", "leaf starts")
        family.go_on("leaf")
        family.until("leaf runs")
        family.lines.clear()
        family.hup()
        family.until("leaf reloads")
    finally:
        family.close()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


# --- a name that changes between a look and an open


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with memory_gateway() as running:
        yield running


OLD, NEW = b"old bytes", b"bytes that came between"
PATH = "/files/a/name"


def change(store: Any, kind: str) -> None:
    key = ("files", "a/name")
    version, _ = store.live[key]
    if kind == "deleted":
        del store.live[key]
        return
    data = OLD if kind == "replaced by the same" else NEW
    digest, later = blake3(data).digest(), version.created + 10
    newer = replace(
        version, number=version.number + 1, size=len(data), digest=digest, created=later, saved=None
    )
    store.live[key] = (newer, data)


def etag(data: bytes) -> str:
    return f'"{blake3(data).hexdigest()}"'


def date(created: float) -> str:
    return time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(created))


@pytest.mark.parametrize("kind", ["replaced", "deleted", "replaced by the same"])
@pytest.mark.parametrize(
    ("field", "value", "when_replaced"),
    [
        ("If-Match", etag(OLD), 412),
        ("If-Match", f"{etag(b'none')}, {etag(OLD)}", 412),
        ("If-None-Match", etag(NEW), 304),
        ("If-None-Match", etag(b"none"), 200),
        ("If-Unmodified-Since", "created", 412),
        ("If-Modified-Since", "before", 200),
    ],
)
@pytest.mark.parametrize("part", [False, True], ids=["whole", "range"])
def test_a_condition_holds_for_the_version_that_is_sent(
    gateway: Gateway,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    field: str,
    value: str,
    when_replaced: int,
    part: bool,
) -> None:
    store: Any = gateway.store
    store.live.clear()
    assert gateway.request("POST", PATH, OLD).status == 200
    created = store.live["files", "a/name"][0].created
    value = {"created": date(created), "before": date(created - 100)}.get(value, value)
    looked = []
    real = store.stat

    async def stat(namespace: str, name: str) -> Any:
        version = await real(namespace, name)
        looked.append(version)
        change(store, kind)
        return version

    monkeypatch.setattr(store, "stat", stat)
    fields = {field: value} | ({"Range": "bytes=2-5"} if part else {})
    answer = gateway.request("GET", PATH, headers=fields)
    assert len(looked) == 1, "nothing came between"
    if kind == "deleted":
        assert answer.status == 404
        return
    same = kind == "replaced by the same"
    expected = when_replaced
    if same:  # of the same bytes: only the time is another one
        expected = 412 if field == "If-Unmodified-Since" else 200
    if expected == 200 and part:
        expected = 206
    assert answer.status == expected, answer
    if expected in (200, 206):
        data = OLD if same else NEW
        assert answer.body == (data[2:6] if part else data)
        assert answer.headers["etag"] == etag(data)
