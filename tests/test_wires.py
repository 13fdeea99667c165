"""Places for connections where a process may open few files."""

from __future__ import annotations

import os
import resource
import shutil
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from gateway_rig import TIMEOUT_S, node_gateway

from ingest.limits import HTTP_CONNECTIONS_MAX, HTTP_DESCRIPTORS_KEPT, HTTP_REFUSED_MAX, HTTP_SHARE_MAX
from ingest.runtime.wires import Wires

LIMIT = 192  # of the gateway in these tests


@contextmanager
def files_left(count: int) -> Iterator[None]:
    """This process may open so many more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("left", [1, HTTP_DESCRIPTORS_KEPT, 100, 500, 1000])
def test_there_are_no_more_places_than_descriptors(left: int, caplog: pytest.LogCaptureFixture) -> None:
    with files_left(left):
        wires = Wires()
        told = 0
        while told <= HTTP_REFUSED_MAX and wires.may_refuse(told):
            told += 1
    assert 1 <= wires.guests.places <= max(2, left - HTTP_DESCRIPTORS_KEPT - told)
    assert 1 <= wires.guests.share <= wires.guests.places
    assert left < 100 or wires.guests.share < wires.guests.places
    assert f"{wires.guests.places} connections have a place" in caplog.text


def test_with_many_files_there_are_all_places(caplog: pytest.LogCaptureFixture) -> None:
    needed = HTTP_CONNECTIONS_MAX + HTTP_REFUSED_MAX + HTTP_DESCRIPTORS_KEPT + 8
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < needed + len(os.listdir("/proc/self/fd")):
        pytest.skip("this process may not open so many files")
    with files_left(needed):
        wires = Wires()
    assert (wires.guests.places, wires.guests.share) == (HTTP_CONNECTIONS_MAX, HTTP_SHARE_MAX)
    assert not caplog.text


def test_silent_connections_keep_nobody_out(tmp_path: Path) -> None:
    if shutil.which("prlimit") is None:
        pytest.skip("there is no prlimit")
    wrapper = ["prlimit", f"--nofile={LIMIT}:{LIMIT}"]
    with node_gateway(tmp_path / "data", "--http-workers=1", wrapper=wrapper) as node, ExitStack() as stack:
        for _ in range(LIMIT + 16):
            silent = socket.create_connection(node.gateway.address, TIMEOUT_S)
            stack.enter_context(silent)
        with (
            socket.socket() as other
        ):  # of another address: those of one are refused while all it has are fresh
            other.bind(("127.0.0.2", 0))
            other.settimeout(TIMEOUT_S)
            other.connect(node.gateway.address)
            other.sendall(b"GET /alive HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert other.recv(12) == b"HTTP/1.1 200"
        assert node.says("connections have a place")
