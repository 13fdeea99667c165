"""What an HTTP process does, or refuses, by what it knows of its engine's store; and that it looks again."""

from __future__ import annotations

import asyncio
import itertools
import logging
from types import SimpleNamespace
from typing import Any

import pytest

from ingest import limits
from ingest.engine.server_config import ServerConfig
from ingest.errors import (
    BusyError,
    ConnectionLostError,
    ForeignStoreError,
    IngestError,
    KeyFileError,
    NoSpaceError,
    ReadOnlyError,
    RefusedError,
)
from ingest.gateway.process import http_process, node_address, upstream
from ingest.gateway.process.gateway_config import GatewayConfig
from ingest.gateway.process.upstream import Binding
from ingest.objects.collector import Collected
from ingest.status import Status

TROUBLES = [None, ConnectionLostError("away"), NoSpaceError("full"), ReadOnlyError("read-only")]


class Store:
    """``shown``: why nothing may be read; ``bound``: why nothing may be stored."""

    def __init__(
        self, shown: IngestError | None = None, bound: IngestError | None = None, newest: int = 0
    ) -> None:
        self.asked: list[str] = []
        self.binding: Any = SimpleNamespace(
            check=lambda: self._raise("check", bound), check_shown=lambda: self._raise("check_shown", shown)
        )
        self.reader: Any = SimpleNamespace(
            newest=lambda count: self._note("newest", [1] * min(newest, count)),
            garbage_size=lambda: self._note("garbage_size", (2, 30)),
        )
        self.client: Any = SimpleNamespace(get=self._get)

    def _note(self, what: str, found: Any) -> Any:
        self.asked.append(what)
        return found

    def _raise(self, what: str, error: IngestError | None) -> None:
        self.asked.append(what)
        if error is not None:
            raise error

    async def _get(self, name: str) -> bytes:
        self.asked.append(f"get {name}")
        return b"data"


@pytest.mark.parametrize(("shown", "bound"), [*itertools.product(TROUBLES, TROUBLES)])
@pytest.mark.parametrize("newest", [0, 1, 2])
def test_it_is_ready_as_long_as_there_is_anything_to_answer(
    shown: IngestError | None, bound: IngestError | None, newest: int
) -> None:
    """Where nothing can be stored, what is there is still read: if the store is ours, and anything is there."""
    store = Store(shown, bound, newest)
    expected = shown or (bound if not newest else None)
    if expected is None:
        http_process._check_ready(store.reader, store.binding)
    else:
        with pytest.raises(IngestError) as caught:
            http_process._check_ready(store.reader, store.binding)
        assert caught.value is expected
    assert ("newest" in store.asked) == (shown is None and bound is not None), "a bound store asks no catalog"


@pytest.mark.parametrize("shown", TROUBLES)
def test_a_chunk_is_read_from_a_store_that_has_shown_itself_alone(shown: IngestError | None) -> None:
    store = Store(shown, ConnectionLostError("not bound"))
    read = http_process._read_chunk(store.client, store.binding)
    if shown is None:
        assert asyncio.run(read("A")) == b"data"  # type: ignore[arg-type]
        assert store.asked == ["check_shown", "get A"]
    else:
        with pytest.raises(type(shown)):
            asyncio.run(read("A"))  # type: ignore[arg-type]
        assert store.asked == ["check_shown"]


@pytest.mark.parametrize("bound", TROUBLES)
@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("done", [Collected(entries=1), None])
def test_nothing_is_collected_in_a_store_that_may_be_somebody_else_s(
    monkeypatch: pytest.MonkeyPatch, bound: IngestError | None, dry_run: bool, done: Collected | None
) -> None:
    """What would be collected is told all the same. Who is refused because another one is at work hears that."""
    store, made = Store(None, bound), []

    class Collector:
        def __init__(self, *arguments: Any) -> None:
            made.append(arguments)

        async def run(self) -> Collected | None:
            return done

    monkeypatch.setattr(http_process, "Collector", Collector)
    catalog, possession = object(), object()
    collect: Any = http_process._collect_once(
        store.client,
        catalog,  # type: ignore[arg-type]
        store.reader,
        store.binding,
        possession,  # type: ignore[arg-type]
    )
    if dry_run:
        assert asyncio.run(collect(True)) == Collected(entries=2, tickets=30)
        assert store.asked == ["garbage_size"] and not made
    elif bound is not None:
        with pytest.raises(type(bound)):
            asyncio.run(collect(False))
        assert not made
    else:
        if done is None:
            with pytest.raises(BusyError, match="another collector"):
                asyncio.run(collect(False))
        else:
            assert asyncio.run(collect(False)) is done
        assert made == [(store.client, catalog, store.reader, possession)]


@pytest.mark.parametrize("answer", [None, ForeignStoreError("another one's"), ConnectionLostError("away")])
def test_an_engine_that_was_met_is_looked_at_once_for_all_who_ask(answer: IngestError | None) -> None:
    looks: list[int] = []

    async def prove() -> None:
        looks.append(1)
        await asyncio.sleep(0)
        if answer is not None:
            raise answer

    async def work() -> None:
        client: Any = SimpleNamespace(met_foreign=False, prove=prove)
        ask = http_process._proving(client)
        await ask()
        assert not looks, "nobody was met"
        client.met_foreign = True
        found = await asyncio.gather(*(ask() for _ in range(5)), return_exceptions=True)
        assert found == [answer] * 5 and len(looks) == 1
        client.met_foreign = False
        await ask()

    asyncio.run(work())


def test_it_looks_again_and_again_whether_its_directory_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "POSSESSION_IDLE_INTERVAL_S", 0.0)

    async def work() -> None:
        looks, loop, often = 0, asyncio.get_running_loop(), asyncio.Event()

        def look() -> None:
            nonlocal looks
            looks += 1
            if looks == 3:
                loop.call_soon_threadsafe(often.set)

        possession: Any = SimpleNamespace(look=look)
        looking = asyncio.create_task(http_process._look_at(possession))
        async with asyncio.timeout(60):
            await often.wait()
        looking.cancel()
        await asyncio.wait([looking])

    asyncio.run(work())


# --- what is in the log of a store that is not bound

KINDS = [
    ConnectionLostError("away"),
    NoSpaceError("full"),
    ReadOnlyError("read-only"),
    RefusedError("0", Status.BAD_CHECKSUM),
]


def binding(monkeypatch: pytest.MonkeyPatch, answers: list[IngestError | None], **more: Any) -> Binding:
    """Each try of which ends so; behind the last one it is bound."""

    async def nothing(*_: Any) -> None: ...

    async def bind(client: Any, catalog: Any, reader: Any, show: Any) -> None:
        if answers and (error := answers.pop(0)) is not None:
            raise error

    for delay in ("RETRY_DELAY_MIN_S", "RETRY_DELAY_MAX_S"):
        monkeypatch.setattr(limits, delay, 0.0)
    monkeypatch.setattr(upstream, "CatalogReader", lambda path: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(upstream, "bind", bind)
    client: Any = SimpleNamespace(open=nothing)
    keys: Any = SimpleNamespace(load_changed=more.get("load_changed", lambda: None))
    return Binding(GatewayConfig(), client, client, keys)


async def bound(one: Binding) -> None:
    await one.begin()
    await one.wait()
    await one.close()


@pytest.mark.parametrize("patience", [0.0, 3600.0])
@pytest.mark.parametrize("order", [*itertools.permutations(KINDS, 2)])
def test_each_kind_of_why_is_told_once_however_often_it_comes(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    order: tuple[IngestError, IngestError],
    patience: float,
) -> None:
    """And the next kind too, if it lasts: who repairs the first one has to hear of it. A full disk is told at once."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(limits, "WAIT_TOLD_S", patience)
    first, second = order
    asyncio.run(bound(binding(monkeypatch, [first, first, second, first, second, second])))
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    for error in order:
        lines = [line for line in told if str(error) in line]
        again = [line for line in lines if not line.startswith("waiting for the engine")]
        assert len(again) <= 1 and bool(lines) == (patience == 0 or isinstance(error, NoSpaceError)), told
    room = "there is room again" in caplog.text
    assert room == any(isinstance(error, NoSpaceError) for error in order)


def test_keys_that_cannot_be_read_are_told_once_for_each_reason(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limits, "WAIT_TOLD_S", 3600.0)
    troubles = ["absent", "absent", "malformed", "malformed", "absent"]

    def load_changed() -> None:
        loads.append(troubles[len(loads)])
        raise KeyFileError(loads[-1])

    loads: list[str] = []
    answers: list[IngestError | None] = [KINDS[0]] * len(troubles)
    asyncio.run(bound(binding(monkeypatch, answers, load_changed=load_changed)))
    assert loads == troubles
    told = [
        record.getMessage().rpartition(": ")[2] for record in caplog.records if "keys of before" in record.msg
    ]
    assert told == ["absent", "malformed", "absent"]


def test_where_there_is_no_room_it_serves_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there is read and deleted, which may make room: it is not waited for as an engine is that comes up."""
    monkeypatch.setattr(limits, "WAIT_TOLD_S", 3600.0)
    one = binding(monkeypatch, [NoSpaceError("full")] * 1_000_000)

    async def work() -> None:
        async with asyncio.timeout(60):
            await one.begin()
        with pytest.raises(NoSpaceError):
            one.check()
        await one.close()
        one.raise_failure()  # it was told to end: that is none
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(work())


OPENED = ["keys", "client", "catalog", "reader"]


@pytest.mark.parametrize("trouble", ["no catalog", "a foreign store", "an error behind it", None])
def test_however_its_connections_end_none_of_them_is_left(
    monkeypatch: pytest.MonkeyPatch, trouble: str | None
) -> None:
    """Nor what tries to bind them: it would go on with what is closed."""
    ended: list[str] = []

    def closes(name: str) -> Any:
        async def close() -> None:
            ended.append(name)

        return close

    async def connect(_: Any) -> Any:
        if trouble == "no catalog":
            raise ConnectionLostError("no catalog")
        return SimpleNamespace(close=closes("catalog"))

    async def bind(*_: Any) -> None:
        if trouble == "a foreign store":
            raise ForeignStoreError("another one's")
        await asyncio.Event().wait()

    async def nothing() -> None: ...

    monkeypatch.setattr(limits, "WAIT_TOLD_S", 0.001 if trouble != "a foreign store" else 3600.0)
    client: Any = SimpleNamespace(open=nothing, close=closes("client"))
    keys: Any = SimpleNamespace(load=lambda _: None, close=lambda: ended.append("keys"))
    reader: Any = SimpleNamespace(close=lambda: ended.append("reader"))
    monkeypatch.setattr(upstream, "AsyncClient", lambda *_, **__: client)
    monkeypatch.setattr(upstream, "SigningKeys", lambda *_: keys)
    monkeypatch.setattr(upstream, "CatalogReader", lambda _: reader)
    monkeypatch.setattr(upstream, "read_keys", lambda _: [])
    monkeypatch.setattr(upstream, "bind", bind)
    monkeypatch.setattr(upstream, "CatalogClient", SimpleNamespace(connect=connect))

    async def work() -> None:
        try:
            async with upstream.connected(GatewayConfig(), upstream.Telling()):
                if trouble is not None:
                    raise ZeroDivisionError
        except (IngestError, ZeroDivisionError):
            assert trouble is not None
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(work())
    assert sorted(ended) == sorted(OPENED[:2] if trouble == "no catalog" else OPENED)
    assert ended[-1] == "client", "what uses it has ended before"


# --- where its engine is

ELSEWHERE = ("192.0.2.7", 0)  # as nobody says where the admin port is: the usual one, there


@pytest.mark.parametrize(
    ("said", "found", "admin"),
    [
        (None, None, ELSEWHERE),
        ({}, {}, ELSEWHERE),
        ({"put": "0.0.0.0:6001"}, None, ELSEWHERE),
        ({"put": "0.0.0.0:6000", "admin": "0.0.0.0:9"}, ..., ("127.0.0.1", 9)),
        ({"put": "[::]:6000", "admin": "[::1]:9"}, ..., ("::1", 9)),
        ({"put": "0.0.0.0:6001", "admin": "0.0.0.0:9"}, None, ELSEWHERE),
        ({"put": "0.0.0.0:6000"}, ..., ELSEWHERE),
        *(({"put": put, "admin": "0.0.0.0:9"}, {}, ELSEWHERE) for put in (None, 6000, "", "6000", [])),
        *(({"put": "0.0.0.0:6000", "admin": admin}, ..., ELSEWHERE) for admin in (None, 9, "", "9", "a:b")),
    ],
)
def test_what_is_known_of_the_engine(
    monkeypatch: pytest.MonkeyPatch, said: dict[str, Any] | None, found: Any, admin: tuple[str, int]
) -> None:
    """By what the server of this directory says, if that is the one that chunks are put into."""
    monkeypatch.setattr(node_address, "running", lambda _: said)
    config = GatewayConfig(connect=("192.0.2.7", 6000))
    assert node_address.engine(config) == (said if found is ... else found)
    expected = (admin[0], ServerConfig().admin_listen[1]) if admin is ELSEWHERE else admin
    assert node_address.admin_address(config) == expected
