"""TERM to all processes at once, as a service manager sends it: each ends in its turn, and what was begun is answered."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from gateway_rig import TIMEOUT_S, NodeGateway, node_gateway
from node_rig import running_node

from ingest.limits import SMALL_OBJECT_MAX
from ingest.status import Status

LARGE = random.Random(5).randbytes(3 * SMALL_OBJECT_MAX)
BELOW_A_GATEWAY = {"ingest-catalog", "ingest-http-0", "ingest-collecto"}


def tell_all(pid: int, number: int, root_first: bool) -> list[psutil.Process]:
    """Each of them, also the ones that a process told before has ended meanwhile. Returns who there was."""
    root = psutil.Process(pid)
    below = root.children(recursive=True)
    family = [root, *below] if root_first else [*reversed(below), root]
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)
    return family


def complaints(log: str) -> list[str]:
    return [
        line for line in log.splitlines() if " ERROR " in line or " WARNING " in line or "at once" in line
    ]


@contextmanager
def running(command: str, data_dir: Path) -> Iterator[NodeGateway]:
    """`serve`, or a `gateway` whose engine is not told anything."""
    if command == "serve":
        with node_gateway(data_dir, "--http-workers=1") as node:
            yield node
        return
    with running_node(data_dir) as server:
        put, get = server.put_address, server.get_address
        flags = [f"--connect={put[0]}:{put[1]}", f"--read-connect={get[0]}:{get[1]}", "--http-workers=1"]
        with node_gateway(data_dir, *flags, command="gateway") as node:
            yield node


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("root_first", [True, False])
@pytest.mark.parametrize("command", ["serve", "gateway"])
def test_an_upload_is_answered(tmp_path: Path, command: str, root_first: bool, number: int) -> None:
    with running(command, tmp_path / "data") as node, node.gateway.connect() as busy:
        assert node.gateway.request("PUT", "/objects/before", LARGE).status == 200
        headers = {"Content-Length": str(len(LARGE)), "Expect": "100-continue"}
        busy.send(busy.head("PUT", "/objects/late", headers))
        assert busy.answer_head()[0] == 100
        busy.send(LARGE[:1000])
        assert node.process is not None
        family = tell_all(node.process.pid, number, root_first)
        assert {process.pid for process in family} >= {node.process.pid}
        busy.send(LARGE[1000:])
        assert busy.answer().status == 200, node.log()
        assert node.process.wait(TIMEOUT_S) == 0, node.log()
        assert not complaints(node.log())
        _, alive = psutil.wait_procs(family, TIMEOUT_S)
        assert not alive


@pytest.mark.parametrize("root_first", [True, False])
@pytest.mark.parametrize("command", ["serve", "gateway"])
def test_idle(tmp_path: Path, command: str, root_first: bool) -> None:
    with running(command, tmp_path / "data") as node:
        assert node.gateway.request("PUT", "/objects/before", LARGE).status == 200
        deadline = time.monotonic() + TIMEOUT_S
        while not {process.name() for process in node.family()} >= BELOW_A_GATEWAY:
            assert time.monotonic() < deadline
        assert node.process is not None
        tell_all(node.process.pid, signal.SIGTERM, root_first)
        assert node.process.wait(TIMEOUT_S) == 0, node.log()
        assert not complaints(node.log())


@pytest.mark.parametrize("root_first", [True, False])
def test_a_server(tmp_path: Path, root_first: bool) -> None:
    with running_node(tmp_path / "data", "--workers=2") as node, node.connect() as connection:
        assert set(connection.put(range(100)).values()) == {Status.SAVED}
        assert node.process is not None
        tell_all(node.process.pid, signal.SIGTERM, root_first)
        assert node.process.wait(TIMEOUT_S) == 0, node.log()
        assert "flushed" in node.log() and not complaints(node.log())


def test_who_is_told_alone_goes_on(tmp_path: Path) -> None:
    """A child ends when its parent says so, and for nobody else."""
    with node_gateway(tmp_path / "data", "--http-workers=1") as node:
        root, *below = node.family()
        for process in below:
            process.send_signal(signal.SIGTERM)
        assert node.gateway.request("PUT", "/objects/after", LARGE).status == 200
        assert {process.pid for process in node.family()} >= {process.pid for process in below}
        assert node.stop() == 0, node.log()
        assert not complaints(node.log())
        assert not root.is_running()
