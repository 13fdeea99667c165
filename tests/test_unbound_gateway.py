"""A gateway whose store has no room for the chunk that binds it: it is reached, reads, deletes, and says what it lacks."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import apsw
import pytest
from gateway_rig import TIMEOUT_S, Gateway, NodeGateway, node_gateway
from node_rig import running_node
from reference_server import Model, ReferenceServer, build_frame
from test_gateway_processes import until

from ingest.catalog.catalog_reader import CatalogReader
from ingest.catalog.extent import FIRST, RESERVED
from ingest.objects import binding
from ingest.runtime.key_file import make_key_file, read_keys, rotate_key_file
from ingest.runtime.listeners import format_address
from ingest.status import Status

WHY = "the engine has no space for the chunk that binds its store to this catalog"


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    path = tmp_path / "data"
    (path / ".ingest").mkdir(parents=True)
    return path


@pytest.fixture
def engine(data_dir: Path) -> Iterator[ReferenceServer]:
    with ReferenceServer([make_key_file(data_dir / ".ingest" / "key")]) as server:
        yield server


@contextmanager
def gateway_of(data_dir: Path, engine: ReferenceServer) -> Iterator[NodeGateway]:
    put, get = (f"{host}:{port}" for host, port in (engine.put_address, engine.get_address))
    flags = (f"--connect={put}", f"--read-connect={get}", "--http-workers=2", "--collect-interval=0.1")
    node = NodeGateway(data_dir, *flags, command="gateway")
    try:
        node.start()
        yield node
    finally:
        node.close()


def is_bound(data_dir: Path) -> bool:
    with CatalogReader(data_dir / ".ingest" / "catalog.db") as reader:
        return reader.identity().bound


def never_bound(data_dir: Path, engine: ReferenceServer) -> None:
    """As the release before left them."""
    db = apsw.Connection(str(data_dir / ".ingest" / "catalog.db"))
    db.execute("UPDATE binding SET bound = 0")
    db.close()
    del engine.model.frames[RESERVED]


def fill(engine: ReferenceServer) -> None:
    engine.faults.answer = lambda index, seen: int(Status.NO_SPACE)


def refuses_uploads(gateway: Gateway) -> None:
    for method, path in (("PUT", "/objects/c"), ("POST", "/store/new"), ("POST", "/blob/new")):
        answer = gateway.request(method, path, b"new")
        assert (answer.status, answer.code) == (507, "no_space"), (path, answer)
        assert WHY in answer.json["message"]


def test_a_store_that_is_ours_by_its_objects_is_read_and_deleted_from(data_dir, engine) -> None:
    with gateway_of(data_dir, engine) as node:
        for name in "ab":
            assert node.gateway.request("PUT", f"/objects/{name}", name.encode() * 3000).status == 200
        assert node.stop() == 0, node.log()
    never_bound(data_dir, engine)
    stored = set(engine.model.frames)
    fill(engine)
    with gateway_of(data_dir, engine) as node:
        assert node.gateway.request("GET", "/healthz").status == 200
        assert node.gateway.request("GET", "/objects/a").body == b"a" * 3000
        assert node.gateway.request("DELETE", "/objects/a").status in (200, 204)
        assert node.gateway.request("GET", "/objects/a").status == 404
        assert node.gateway.request("POST", "/gc").status == 507
        refuses_uploads(node.gateway)
        assert set(engine.model.frames) == stored and not engine.model.deleted and not is_bound(data_dir)
        assert node.says(WHY) and node.says("uploads are answered 507")
        engine.faults.answer = None
        until(
            lambda: all(node.gateway.request("PUT", "/objects/c", b"c").status == 200 for _ in range(20)),
            "both processes take uploads",
        )
        assert is_bound(data_dir) and RESERVED in engine.model.frames
        until(lambda: FIRST in engine.model.deleted, "what was deleted meanwhile is collected")
        assert node.gateway.request("GET", "/objects/b").body == b"b" * 3000
        assert node.stop() == 0, node.log()


def test_a_new_store_without_room_answers_why(data_dir, engine) -> None:
    fill(engine)
    with gateway_of(data_dir, engine) as node:
        answer = node.gateway.request("GET", "/healthz")
        assert answer.status == 507 and WHY in answer.json["message"]
        assert node.gateway.request("GET", "/objects/a").status == 404
        refuses_uploads(node.gateway)
        engine.faults.answer = None
        until(lambda: node.gateway.request("GET", "/healthz").status == 200, "it is ready")
        until(lambda: "uploads go on" in node.log(), "it says so")
        assert node.stop() == 0, node.log()


def use_keys(engine: ReferenceServer, keys: list[bytes]) -> None:
    """As after a rotation: what is stored stays, and the keys of before are accepted no more."""
    model = Model(keys)
    model.frames, model.deleted = engine.model.frames, engine.model.deleted
    engine.model = model
    engine.drop_connections()


def fully_binds(node: NodeGateway, engine: ReferenceServer) -> None:
    """The HTTP processes and the collector."""
    engine.faults.answer = None
    put = partial(node.gateway.request, "PUT", "/objects/a", b"a")
    until(lambda: all(put().status == 200 for _ in range(20)), "both processes take uploads")
    assert node.gateway.request("DELETE", "/objects/a").status in (200, 204)
    until(lambda: bool(engine.model.deleted), "what was deleted is collected")
    assert node.stop() == 0, node.log()


@pytest.mark.parametrize("told", [True, False])
def test_keys_are_rotated_while_there_is_no_room(data_dir, engine, told: bool) -> None:
    """None of those that it began with is accepted in the end."""
    key_file = data_dir / ".ingest" / "key"
    fill(engine)
    with gateway_of(data_dir, engine) as node:
        refuses_uploads(node.gateway)
        for _ in range(3):
            use_keys(engine, rotate_key_file(key_file)[:2])
            if told:
                assert node.process is not None
                node.process.send_signal(signal.SIGHUP)
        fully_binds(node, engine)


def test_a_key_file_that_cannot_be_read_while_there_is_no_room(data_dir, engine) -> None:
    """It outlives that, and says in its log what keeps it from more. The engine that refuses its key may be another one."""
    key_file = data_dir / ".ingest" / "key"
    away = key_file.with_name("away")
    fill(engine)
    with gateway_of(data_dir, engine) as node:
        refuses_uploads(node.gateway)
        key_file.rename(away)
        use_keys(engine, rotate_key_file(away)[1:])
        until(lambda: node.log().count("the keys of before are used") == 3, "each process looks for it")
        until(lambda: node.log().count("the store is not bound yet") == 3, "each process says why it waits")
        answer = node.gateway.request("GET", "/objects/a")
        assert (answer.status, answer.headers.get("retry-after")) == (503, "1")
        away.rename(key_file)
        use_keys(engine, read_keys(key_file))
        fully_binds(node, engine)


def test_a_store_that_somebody_else_binds_meanwhile_is_left(data_dir, engine) -> None:
    fill(engine)
    with gateway_of(data_dir, engine) as node:
        (key,) = read_keys(data_dir / ".ingest" / "key")
        engine.model.frame(build_frame(key, RESERVED, binding.serialize(b"\x10" * 16)))
        assert node.process is not None
        assert node.process.wait(TIMEOUT_S) == 78, node.log()
        assert re.search(r"belongs to the catalog (10)+", node.log())


# --- an engine that is not there, does not answer, or refuses

OBJECT = b"a" * 3000


def bound(data_dir: Path, engine: ReferenceServer) -> None:
    """With an object in it."""
    with gateway_of(data_dir, engine) as node:
        assert node.gateway.request("PUT", "/objects/a", OBJECT).status == 200
        assert node.stop() == 0, node.log()


def asks_to_wait(gateway: Gateway, method: str, path: str) -> None:
    answer = gateway.request(method, path, b"new" if method in ("PUT", "POST") else None)
    assert (answer.status, answer.code) == (503, "engine_unreachable"), (path, answer)
    assert "retry-after" in answer.headers and "waiting for the engine" in answer.json["message"]


def goes_on(node: NodeGateway) -> None:
    until(lambda: node.gateway.request("GET", "/healthz").status == 200, "it is ready")
    until(
        lambda: all(node.gateway.request("PUT", "/objects/c", b"c").status == 200 for _ in range(20)),
        "both processes take uploads",
    )
    assert node.gateway.request("GET", "/objects/a").body == OBJECT
    assert node.stop() == 0, node.log()


def test_while_nothing_is_where_the_engine_was(tmp_path: Path) -> None:
    """Its port answers all the same, and what the catalog knows."""
    with running_node(tmp_path / "data") as server:
        put, get = (format_address(address) for address in (server.put_address, server.get_address))
        flags = (f"--connect={put}", f"--read-connect={get}", "--http-workers=2")
        with node_gateway(tmp_path / "data", *flags, command="gateway") as node:
            assert node.gateway.request("PUT", "/objects/a", OBJECT).status == 200
            assert node.stop() == 0, node.log()
        assert server.stop() == 0
        with node_gateway(tmp_path / "data", *flags, command="gateway") as node:
            for method, path in (
                ("PUT", "/objects/b"),
                ("POST", "/gc"),
                ("GET", "/objects/a"),
                ("GET", "/healthz"),
            ):
                asks_to_wait(node.gateway, method, path)
            asks_to_wait(node.gateway, "GET", "/00/00/00/00/obj")
            assert [one["name"] for one in node.gateway.request("GET", "/objects/").json["objects"]] == ["a"]
            assert node.says("serving on http://")
            server.flags = (f"--listen={put}", f"--read-listen={get}")
            server.start()
            goes_on(node)


@pytest.mark.parametrize("status", [Status.ERROR, Status.BUSY, Status.BAD_CHECKSUM])
def test_an_engine_that_refuses_puts(data_dir: Path, engine: ReferenceServer, status: Status) -> None:
    """The store has shown whose it is: it is read."""
    bound(data_dir, engine)
    engine.faults.answer = lambda index, seen: int(status)
    with gateway_of(data_dir, engine) as node:
        assert node.gateway.request("GET", "/objects/a").body == OBJECT
        assert node.gateway.request("GET", "/healthz").status == 200
        asks_to_wait(node.gateway, "PUT", "/objects/b")
        asks_to_wait(node.gateway, "POST", "/gc")
        engine.faults.answer = None
        node.stop()


def test_a_store_of_somebody_else_is_never_read_or_written(data_dir: Path, engine: ReferenceServer) -> None:
    """It comes to where the engine was, while the gateway waits."""
    bound(data_dir, engine)
    engine.faults.answer = lambda index, seen: int(Status.ERROR)
    with gateway_of(data_dir, engine) as node:
        (key,) = read_keys(data_dir / ".ingest" / "key")
        del engine.model.frames[RESERVED]
        engine.model.frame(build_frame(key, RESERVED, binding.serialize(b"\x10" * 16)))
        stored = set(engine.model.frames)
        engine.faults.answer = None
        assert node.process is not None
        assert node.process.wait(TIMEOUT_S) == 78, node.log()
        assert set(engine.model.frames) == stored
