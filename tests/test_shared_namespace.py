"""Blobs and content are one namespace, whose objects lie in two (`ingest.objects.shared_namespace`)."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Coroutine, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from blake3 import blake3
from gateway_rig import Gateway, memory_gateway, node_gateway
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_store import MemoryStore
from msgspec import structs
from test_cli import run

from ingest.catalog.version import ABSENT, ANY, PRESENT, SAME, Condition
from ingest.errors import IngestError, NameTakenError, NotFoundError, PreconditionError
from ingest.limits import LIST_PAGE_MAX
from ingest.objects.body import Body, IteratedBody
from ingest.objects.shared_namespace import SharedNamespace

T = TypeVar("T")
OWN = {"X-Mime-Type": "image/png", "X-Author": "Jürgen", "X-Forwarded-For": "10.0.0.1"}


def wait(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def body(data: bytes) -> IteratedBody:
    async def pieces() -> Any:
        yield data

    return IteratedBody(pieces())


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with memory_gateway() as running:
        yield running


def sha1(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


def old(gateway: Gateway, data: bytes, headers: dict[str, str] | None = None, name: str | None = None) -> str:
    """Content as an earlier version stored it."""
    name = name or sha1(data)
    assert gateway.store is not None
    wait(gateway.store.put("sos", name, body(data), headers=headers or {}))
    return name


@pytest.mark.parametrize("path", ["/blob/%s", "/fetch/%s", "/fetch/%s.png"])
def test_headers_come_back_from_wherever_it_was_stored(gateway: Gateway, path: str) -> None:
    ids = [gateway.request("POST", "/upload", b"content", OWN).json["id"]]
    ids += [gateway.request("POST", "/blob/chosen", b"blob", OWN).json["id"]]
    ids += [old(gateway, b"old", {"X-Mime-Type": "image/png", "X-Author": "Jürgen"})]
    for id_ in ids:
        for method in ("GET", "HEAD"):
            answer = gateway.request(method, path % id_)
            assert answer.status == 200
            assert answer.headers["content-type"] == "image/png"
            assert (answer.headers["x-author"], answer.headers["x-mime-type"]) == ("Jürgen", "image/png")
            assert "x-forwarded-for" not in answer.headers


def test_what_is_listed_can_be_copied(gateway: Gateway) -> None:
    """What the replicating scripts of the field do: each name of /blobs, with its headers, to another server."""
    gateway.request("POST", "/upload", b"content", OWN)
    gateway.request("POST", "/blob/chosen", b"blob", OWN)
    old(gateway, b"old", {"X-Author": "me"})
    names = gateway.request("GET", "/blobs").json
    assert names == sorted([sha1(b"content"), "chosen", sha1(b"old")])
    with memory_gateway() as mirror:
        for name in names:
            found = gateway.request("GET", f"/blob/{name}")
            own = {key: value for key, value in found.headers.items() if key.startswith("x-a")}
            assert mirror.request("POST", f"/blob/{name}", found.body, own).status == 200
            assert mirror.request("GET", f"/fetch/{name}").headers.get("x-author") == own.get("x-author")
        assert mirror.request("GET", "/blobs").json == names


@pytest.mark.parametrize("path", ["/blob", "/blobs"])
def test_each_name_is_listed_however_many_pages_there_are(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    page = SharedNamespace.page

    def small_page(self: SharedNamespace, namespace: str, prefix: str = "", after: str = "", limit: int = 3):
        return page(self, namespace, prefix, after, min(limit, 3))

    monkeypatch.setattr(SharedNamespace, "page", small_page)
    monkeypatch.setattr("ingest.gateway.http.listing.LIST_PAGE_MAX", 3)
    names: list[str] = []
    for number in range(10):
        assert gateway.request("GET", path).json == sorted(names)
        names.append(old(gateway, b"%d" % number) if number % 3 == 1 else f"{number}")
        if number % 3 != 1:
            gateway.request("POST", f"/blob/{number}", b"x")


def test_new_objects_lie_in_one_place(gateway: Gateway) -> None:
    gateway.request("POST", "/upload", b"content")
    assert gateway.request("GET", "/catalog/namespaces").json == {"namespaces": ["blob"]}


@pytest.mark.parametrize("path", ["/upload", f"/blob/{sha1(b'content')}"])
def test_old_content_again(gateway: Gateway, path: str) -> None:
    id_ = old(gateway, b"content", {"X-Author": "the first"})
    answer = gateway.request("POST", path, b"content", {"X-Author": "the second"})
    assert (answer.status, answer.json) == (200, {"id": id_, "size": 7, "status": "OK"})
    assert gateway.request("GET", f"/fetch/{id_}").headers["x-author"] == "the first"
    assert gateway.request("GET", "/blobs").json == [id_]
    assert gateway.store is not None
    assert list(gateway.store.live) == [("sos", id_)]


@pytest.mark.parametrize("data", [b"", b"other bytes", bytes(300_000)])
def test_other_bytes_under_an_old_name(gateway: Gateway, data: bytes) -> None:
    for path, name in ((f"/blob/{sha1(b'old')}", sha1(b"old")), ("/upload", sha1(data))):
        old(gateway, b"old", name=name)  # the second: of a collision
        refused = gateway.request("POST", path, data)
        assert (refused.status, refused.code) == (409, "name_taken")
        assert gateway.request("GET", f"/blob/{name}").body == b"old"


def test_of_two_the_new_one_counts(gateway: Gateway) -> None:
    gateway.request("POST", "/blob/both", b"new")
    old(gateway, b"old", name="both")
    for path in ("/blob/both", "/fetch/both", "/catalog/object?namespace=sos&name=both"):
        assert gateway.request("GET", path).body == b"new"
    assert gateway.request("GET", "/blobs").json == ["both"]
    for namespace in ("blob", "sos"):
        (entry,) = gateway.request("GET", f"/catalog/objects?namespace={namespace}").json["objects"]
        assert entry["size"] == 3
    assert gateway.request("POST", "/blob/both", b"new").status == 200
    assert gateway.request("POST", "/blob/both", b"old").status == 409


@settings(max_examples=60, deadline=None)
@given(
    new=st.sets(st.text("abc1", min_size=1, max_size=3)),
    earlier=st.sets(st.text("abc1", min_size=1, max_size=3)),
    limit=st.integers(1, 5),
    prefix=st.sampled_from(["", "a", "b1"]),
)
def test_pages_have_each_name_once_in_order(
    new: set[str], earlier: set[str], limit: int, prefix: str
) -> None:
    async def pages() -> list[str]:
        inner = MemoryStore()
        for namespace, names in (("blob", new), ("sos", earlier)):
            for name in names:
                await inner.put(namespace, name, body(namespace.encode()))
        store = SharedNamespace(inner)
        found: list[str] = []
        while page := await store.page("sos", prefix, found[-1] if found else "", limit):
            assert len(page) <= limit
            for entry in page:
                where = "blob" if entry.name in new else "sos"
                assert entry.etag == (await store.stat("blob", entry.name)).etag
                assert entry.etag == (await inner.stat(where, entry.name)).etag
            found += [entry.name for entry in page]
        return found

    assert wait(pages()) == sorted(name for name in new | earlier if name.startswith(prefix))


@pytest.mark.parametrize("limit", [999, 1000, 1001, 5000])
def test_a_page_of_both_has_no_more_names_than_one_of_either(limit: int) -> None:
    async def main() -> None:
        inner = MemoryStore()
        for i in range(1400):
            await inner.put("sos" if i % 2 else "blob", f"{i:05}", body(b"x"))
        page = await SharedNamespace(inner).page("blob", limit=limit)
        assert [entry.name for entry in page] == [f"{i:05}" for i in range(min(limit, LIST_PAGE_MAX))]

    wait(main())


@pytest.mark.parametrize("namespace", ["blob", "sos"])
@pytest.mark.parametrize(
    ("condition", "error"),
    [
        (SAME, None),
        (ANY, None),
        (PRESENT, None),
        (ABSENT, NameTakenError),
        (Condition(none_of=frozenset("*")), PreconditionError),
        (Condition(etags=frozenset(["other"])), PreconditionError),
        (Condition(etags=frozenset("*"), same=True), None),
    ],
)
def test_conditions_are_about_what_is_found(
    namespace: str, condition: Condition, error: type[Exception] | None
) -> None:
    async def put() -> None:
        inner = MemoryStore()
        await inner.put("sos", "name", body(b"bytes"))
        store = SharedNamespace(inner)
        if error is not None:
            with pytest.raises(error):
                await store.check(namespace, "name", condition)
            with pytest.raises(error):
                await store.put(namespace, "name", body(b"bytes"), condition=condition)
        else:
            await store.check(namespace, "name", condition)
            version = await store.put(namespace, "name", body(b"bytes"), condition=condition)
            assert version.etag == (await store.stat(namespace, "name")).etag
            assert version.namespace == ("sos" if condition.same else "blob")

    wait(put())


@pytest.mark.parametrize("namespace", ["blob", "sos"])
def test_a_delete_leaves_nothing_behind(namespace: str) -> None:
    async def delete() -> None:
        inner = MemoryStore()
        store = SharedNamespace(inner)
        for where in (("sos",), ("blob",), ("sos", "blob")):
            for one in where:
                await inner.put(one, "name", body(one.encode()))
            with pytest.raises(PreconditionError):
                await store.delete(namespace, "name", Condition(etags=frozenset(["other"])))
            assert (await store.stat(namespace, "name")).namespace == where[-1]
            await store.delete(namespace, "name")
            with pytest.raises(NotFoundError):
                await store.open(namespace, "name")
            assert not inner.live
        steps = await store.history(namespace, "name")
        assert len(steps) == 12
        assert [step.time for step in steps] == sorted((step.time for step in steps), reverse=True)

    wait(delete())


def test_a_second_is_shared_by_what_both_names_pointed_to_in_it() -> None:
    async def delete() -> None:
        inner = MemoryStore()
        store = SharedNamespace(inner)
        while True:  # until both are of one second
            old = await inner.put("sos", "name", body(b"old"))
            await store.delete("blob", "name")
            new = await store.put("blob", "name", body(b"new"))
            if old.modified == new.modified:
                break
            await store.delete("blob", "name")
        assert await store.shares_second(old) and await store.shares_second(new)
        other = await store.put("objects", "name", body(b"new"))
        assert not await store.shares_second(other)

    wait(delete())


def test_on_a_node(tmp_path: Path) -> None:
    """Old content is found and listed, and is not stored again: with a real catalog, small and large."""
    with node_gateway(tmp_path / "data") as node:
        for size in (10, 1_000_000):
            data = bytes(range(251)) * (size // 251) + bytes(size % 251)
            file = tmp_path / f"file{size}"
            file.write_bytes(data)
            flags = ["--data-dir", str(tmp_path / "data"), "--namespace", "sos", "--name", sha1(data)]
            stored = run("put", str(file), *flags)
            assert stored.returncode == 0, stored.stderr
            for path in ("/upload", f"/blob/{sha1(data)}"):
                assert node.gateway.request("POST", path, data).json["id"] == sha1(data)
                for found in (f"/blob/{sha1(data)}", f"/fetch/{sha1(data)}.bin"):
                    assert node.gateway.request("GET", found).body == data
            assert node.gateway.request("POST", f"/blob/{sha1(data)}", data[:-1]).status == 409
            assert sha1(data) in node.gateway.request("GET", "/blobs").json
        new = node.gateway.request("POST", "/upload", b"new").json["id"]
        assert node.gateway.request("GET", "/catalog/namespaces").json["namespaces"] == ["blob", "sos"]
        assert len(node.gateway.request("GET", "/blobs").json) == 3
        assert node.gateway.request("GET", f"/fetch/{new}").body == b"new"
        assert node.stop() == 0, node.log()


# --- conditions of a version that lies in the old name


def gated(data: bytes, gate: asyncio.Event, began: asyncio.Event) -> IteratedBody:
    """Its last byte comes when the gate is open."""

    async def pieces() -> Any:
        yield data[:-1]
        began.set()
        await gate.wait()
        yield data[-1:]

    return IteratedBody(pieces())


@pytest.mark.parametrize("lies_in", ["blob", "sos"])
def test_of_two_puts_that_match_one_is_stored(lies_in: str) -> None:
    async def work() -> None:
        inner = MemoryStore()
        await inner.put(lies_in, "name", body(b"old"))
        store = SharedNamespace(inner)
        old = await store.stat("blob", "name")
        condition = Condition(etags=frozenset([old.etag]))
        gate = asyncio.Event()

        async def put(data: bytes) -> asyncio.Task[Any]:
            began = asyncio.Event()
            task = asyncio.create_task(
                store.put("blob", "name", gated(data, gate, began), condition=condition)
            )
            await began.wait()
            return task

        tasks = [await put(data) for data in (b"first", b"second")]
        gate.set()
        first, second = await asyncio.gather(*tasks, return_exceptions=True)
        assert not isinstance(first, Exception)
        assert isinstance(second, PreconditionError)
        assert (await store.stat("blob", "name")).digest == first.digest

    wait(work())


@pytest.mark.parametrize("lies_in", ["blob", "sos"])
@pytest.mark.parametrize("condition", ["etag", "*", "present"])
def test_one_that_was_deleted_meanwhile_is_not_replaced(lies_in: str, condition: str) -> None:
    async def work() -> None:
        inner = MemoryStore()
        await inner.put(lies_in, "name", body(b"old"))
        store = SharedNamespace(inner)
        etag = (await store.stat("blob", "name")).etag
        asked = {
            "etag": Condition(etags=frozenset([etag])),
            "*": Condition(etags=frozenset("*")),
            "present": PRESENT,
        }[condition]
        gate, began = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(store.put("blob", "name", gated(b"new", gate, began), condition=asked))
        await began.wait()
        await store.delete("blob", "name")
        gate.set()
        with pytest.raises((PreconditionError, NotFoundError)):
            await task
        with pytest.raises(NotFoundError):
            await store.stat("blob", "name")

    wait(work())


def test_puts_without_a_condition_replace_each_other() -> None:
    async def work() -> None:
        inner = MemoryStore()
        await inner.put("sos", "name", body(b"old"))
        store = SharedNamespace(inner)
        gate, began = asyncio.Event(), asyncio.Event()
        late = asyncio.create_task(store.put("blob", "name", gated(b"late", gate, began)))
        await began.wait()
        await store.put("blob", "name", body(b"early"))
        gate.set()
        replaced = await late
        assert (await store.stat("blob", "name")).digest == replaced.digest

    wait(work())


# --- one namespace under two names is told from no other one by any condition


OLD_BYTES = b"old"
ETAG, OTHER = blake3(OLD_BYTES).hexdigest(), blake3(b"other").hexdigest()
LONG_AGO = 1_000_000_000  # when the old version came, in seconds since 1970
CONDITIONS = [
    replace(Condition(same=same), **asked)
    for same in (False, True)
    for asked in (
        {},
        {"exists": True},
        {"exists": False},
        {"etags": frozenset([ETAG])},
        {"etags": frozenset([OTHER])},
        {"etags": frozenset("*")},
        {"etags": frozenset()},
        {"none_of": frozenset([ETAG])},
        {"none_of": frozenset([OTHER])},
        {"none_of": frozenset("*")},
        {"unmodified_since": LONG_AGO - 1},
        {"unmodified_since": LONG_AGO},
        {"exists": True, "unmodified_since": LONG_AGO},
        {"etags": frozenset([ETAG]), "none_of": frozenset([OTHER])},
        {"none_of": frozenset([OTHER]), "unmodified_since": LONG_AGO},
    )
]


def test_each_field_of_a_condition_is_among_those_that_are_tried() -> None:
    tried = {f.name for f in fields(Condition) for one in CONDITIONS if getattr(one, f.name) != f.default}
    assert tried == {f.name for f in fields(Condition)}


class SlowStore(MemoryStore):
    """Whose bytes have still to be written when the last one came, as those of a real one have. ``written``: they are."""

    def __init__(self) -> None:
        super().__init__()
        self.came, self.written = asyncio.Event(), asyncio.Event()
        self.slow = False

    async def _gather(self, source: Body, size: int | None) -> bytearray:
        data = await super()._gather(source, size)
        if self.slow:
            self.slow = False
            self.came.set()
            await self.written.wait()
        return data


async def history(
    lies_in: str, namespace: str, condition: Condition, data: bytes, event: str, moment: str
) -> tuple[type[Exception] | None, bytes | None]:
    """A put with a condition, and what comes at a moment of it. Returns its error, and which bytes the name has then."""
    inner = SlowStore()
    store = SharedNamespace(inner)
    version = await inner.put(lies_in, "name", body(OLD_BYTES))
    inner.live[lies_in, "name"] = structs.replace(version, created=float(LONG_AGO)), OLD_BYTES
    inner.slow = moment == "behind its last byte"
    gate, began = asyncio.Event(), asyncio.Event()
    late = inner.slow
    if late:
        gate.set()
    task = asyncio.create_task(store.put(namespace, "name", gated(data, gate, began), condition=condition))
    reached = asyncio.create_task((inner.came if late else began).wait())
    await asyncio.wait([task, reached], return_when=asyncio.FIRST_COMPLETED)
    inner.slow = False
    if event == "replaced":
        await store.put(namespace, "name", body(b"other"))
    elif event == "replaced by the same":
        await store.put(namespace, "name", body(OLD_BYTES))
    elif event == "deleted":
        await store.delete(namespace, "name")
    elif event == "deleted and put again":
        await store.delete(namespace, "name")
        await store.put(namespace, "name", body(b"other"))
    gate.set()
    inner.written.set()
    (outcome,) = await asyncio.gather(task, return_exceptions=True)
    reached.cancel()
    try:
        left = inner.live[(await store.stat(namespace, "name")).namespace, "name"][1]
    except NotFoundError:
        left = None
    return (type(outcome) if isinstance(outcome, Exception) else None), left


@pytest.mark.parametrize("moment", ["before its last byte", "behind its last byte"])
@pytest.mark.parametrize(
    "event", ["nothing", "replaced", "replaced by the same", "deleted", "deleted and put again"]
)
@pytest.mark.parametrize("lies_in", ["blob", "sos"])
def test_no_condition_tells_a_put_there_from_one_elsewhere(lies_in: str, event: str, moment: str) -> None:
    """Whichever field a condition has, and whatever comes meanwhile: it is as where all lies in one place, except that

    a put may be refused, and changes nothing, beside one that replaced the old version;
    with the last byte it is decided whether the same bytes are there, and whether the old version is."""

    async def work() -> None:
        for number, condition in enumerate(CONDITIONS):
            for data in (OLD_BYTES, b"new bytes"):
                namespace = ("blob", "sos")[number % 2]
                expected = await history("objects", "objects", condition, data, event, moment)
                found = await history(lies_in, namespace, condition, data, event, moment)
                case = (condition, data)
                late = lies_in == "sos" and moment == "behind its last byte"
                if late and (condition.same or event == "deleted"):
                    at_last_byte = await history("objects", "objects", condition, data, "nothing", moment)
                    assert found[0] is at_last_byte[0], case
                    continue
                if lies_in == "sos" and event != "nothing" and found[0] is PreconditionError:
                    untouched = OLD_BYTES if event == "replaced by the same" else b"other"
                    assert found[1] == (None if event == "deleted" else untouched), case
                    continue
                assert found == expected, case

    wait(work())


@pytest.mark.parametrize("lies_in", [(), ("blob",), ("sos",), ("sos", "blob")], ids="-".join)
def test_no_condition_tells_a_check_or_a_delete_there_from_one_elsewhere(lies_in: tuple[str, ...]) -> None:
    async def outcomes(places: tuple[str, ...], namespace: str, condition: Condition) -> list[Any]:
        inner = MemoryStore()
        store = SharedNamespace(inner)
        for place in places:
            data = OLD_BYTES if place == places[-1] else b"behind another one"
            version = await inner.put(place, "name", body(data))
            inner.live[place, "name"] = structs.replace(version, created=float(LONG_AGO)), data
        found: list[Any] = []
        for call in (store.check, store.delete):
            try:
                await call(namespace, "name", condition)
                found.append("done")
            except IngestError as error:
                found.append(type(error))
        left = {data for _, data in inner.live.values()}
        return [*found, left and left >= {OLD_BYTES} and len(inner.live) == len(places)]

    async def work() -> None:
        for condition in CONDITIONS:
            expected = await outcomes(("objects",) if lies_in else (), "objects", condition)
            for namespace in ("blob", "sos"):
                assert await outcomes(lies_in, namespace, condition) == expected, condition

    wait(work())
