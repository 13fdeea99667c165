"""What belongs to a process says so in one that was forked from it, at once (`ingest.runtime.fork_guard`)."""

import asyncio
import os
import signal
import traceback
import warnings
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from catalog_rig import ServiceRig
from gateway_rig import memory_gateway
from reference_server import ReferenceServer

from ingest import AsyncClient, Client
from ingest.catalog.catalog_client import CatalogClient
from ingest.commands.gateway_client import GatewayAddress, GatewayClient
from ingest.errors import ForkedError
from ingest.runtime.fork_guard import ForkGuard

KEY = bytes(range(32))
PATIENCE_S = 20  # of a forked process that hangs: then it ends, and says nothing


def in_fork(work: Callable[[], Any]) -> str:
    """What ``work`` returns or raises in a process that is forked here."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # there are threads: that is what this is about
        child = os.fork()
    if not child:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(PATIENCE_S)
        try:
            said = repr(work())
        except ForkedError as error:
            said = f"ForkedError: {error}"
        except BaseException:
            said = traceback.format_exc()
        os.write(writing, said.encode()[:4096])
        os._exit(0)
    os.close(writing)
    with open(reading) as file:
        said = file.read()
    os.waitpid(child, 0)
    return said


@pytest.fixture
def server() -> Iterator[ReferenceServer]:
    with ReferenceServer([KEY]) as running:
        yield running


def refused(said: str) -> None:
    assert said.startswith("ForkedError: "), said
    assert str(os.getpid()) in said
    assert "after the fork" in said


CALLS: dict[str, Callable[[Client], Any]] = {
    "put": lambda client: client.put("A", b"2"),
    "put_record": lambda client: client.put_record("A", b"2"),
    "put_many": lambda client: client.put_many([("A", b"2")]),
    "put_range": lambda client: client.put_range("A", b"2"),
    "delete": lambda client: client.delete("A"),
    "get": lambda client: client.get("A"),
    "get_record": lambda client: client.get_record("A"),
    "get_range": lambda client: list(client.get_range("A", 1)),
    "get_records": lambda client: list(client.get_records("A", 1)),
    "read_range": lambda client: client.read_range("A", 1),
    "read_pieces": lambda client: list(client.read_pieces("A", 1)),
    "inventory": lambda client: client.inventory("A", 1),
}


@pytest.mark.parametrize("call", CALLS)
def test_each_call_of_a_client(server: ReferenceServer, call: str) -> None:
    with Client.connect(server.put_address, server.get_address, KEY) as client:
        refused(in_fork(lambda: CALLS[call](client)))


def test_the_parent_goes_on_and_the_child_makes_its_own(server: ReferenceServer) -> None:
    def own() -> bytes:
        with Client.connect(server.put_address, server.get_address, KEY) as mine:
            mine.put_record("B", b"of the child")
            return mine.get_record("A")

    with Client.connect(server.put_address, server.get_address, KEY) as client:
        client.put_record("A", b"of the parent")
        assert in_fork(own) == repr(b"of the parent")
        assert client.get_record("B") == b"of the child"


def test_closing_in_a_fork_leaves_the_parents_connection(server: ReferenceServer) -> None:
    with Client.connect(server.put_address, server.get_address, KEY) as client:
        client.put("A", b"1")
        assert in_fork(client.close) == "None"
        assert in_fork(lambda: client.__exit__(None, None, None)) == "None"
        client.put("B", b"1")
        assert client.get("B")[:1] == b"1"


def test_a_lock_that_is_held_by_a_thread_of_the_parent(server: ReferenceServer) -> None:
    with Client.connect(server.put_address, server.get_address, KEY) as client:
        with client._loop._lock:
            refused(in_fork(lambda: client.get("A")))
            assert in_fork(client.close) == "None"
        client.put("A", b"1")


def test_an_iteration_that_the_parent_began(server: ReferenceServer) -> None:
    with Client.connect(server.put_address, server.get_address, KEY) as client:
        client.put_range("A", bytes(1458 * 2000))
        pieces = client.read_pieces("A", 2000)
        next(pieces)
        refused(in_fork(lambda: next(pieces)))
        assert sum(map(len, pieces)) == 1458 * (2000 - 512)


ASYNC_CALLS: dict[str, Callable[[AsyncClient], Coroutine[Any, Any, Any]]] = {
    "put": lambda client: client.put("A", b"2"),
    "put_records": lambda client: client.put_records("A", [b"2"]),
    "delete": lambda client: client.delete("A"),
    "get": lambda client: client.get("A"),
    "read_range": lambda client: client.read_range("A", 1),
    "inventory": lambda client: client.inventory("A", 1),
}


@pytest.mark.parametrize("call", ASYNC_CALLS)
def test_each_call_of_an_asynchronous_client(server: ReferenceServer, call: str) -> None:
    async def forked() -> str:
        async with await AsyncClient.connect(server.put_address, server.get_address, KEY) as client:
            await client.put("A", b"1")
            said = in_fork(lambda: asyncio.run(ASYNC_CALLS[call](client)))
            assert in_fork(lambda: asyncio.run(client.close())) == "None"
            assert await client.get("A")
            return said

    refused(asyncio.run(forked()))


def test_a_batch_that_the_parent_began(server: ReferenceServer) -> None:
    async def forked() -> str:
        async with await AsyncClient.connect(server.put_address, None, KEY) as client:
            batch = client.new_batch()
            await client.add(batch, [("A", b"1")])
            said = in_fork(lambda: asyncio.run(client.finish(batch)))
            assert await client.finish(batch) == {}
            return said

    refused(asyncio.run(forked()))


def test_a_client_of_a_gateway() -> None:
    async def forked(url: str) -> str:
        async with GatewayClient(GatewayAddress(url)) as client:
            assert await client.ask(dict, "/")
            said = in_fork(lambda: asyncio.run(client.ask(dict, "/")))
            assert in_fork(lambda: asyncio.run(client.__aexit__(None, None, None))) == "None"
            assert await client.ask(dict, "/")
            return said

    with memory_gateway() as gateway:
        refused(asyncio.run(forked(f"http://127.0.0.1:{gateway.address[1]}")))


def test_the_connection_to_a_catalog(tmp_path: Path) -> None:
    async def forked() -> str:
        client = await CatalogClient.connect(tmp_path)
        assert len(await client.reserve(1)) == 1
        said = in_fork(lambda: asyncio.run(client.reserve(1)))
        assert in_fork(lambda: asyncio.run(client.close())) == "None"
        assert len(await client.reserve(1)) == 1
        await client.close()
        return said

    service = ServiceRig(tmp_path)
    service.start()
    try:
        refused(asyncio.run(forked()))
    finally:
        service.close()


def test_forks_of_forks() -> None:
    guard = ForkGuard("it")
    assert not guard.forked
    assert in_fork(lambda: in_fork(lambda: guard.forked)) == repr("True")
    assert in_fork(lambda: ForkGuard("it").forked) == "False"
