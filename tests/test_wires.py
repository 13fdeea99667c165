"""Places for connections where a process may open few files."""

from __future__ import annotations

import os
import resource
import shutil
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from gateway_rig import TIMEOUT_S, node_gateway
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ingest.limits import (
    HTTP_CONNECTIONS_MAX,
    HTTP_DESCRIPTORS_KEPT,
    HTTP_RECEIVE_SIZE,
    HTTP_RECEIVE_SIZE_MIN,
    HTTP_RECEIVED_MAX,
    HTTP_REFUSED_MAX,
    HTTP_SHARE_MAX,
)
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


def test_the_more_connections_there_are_the_less_each_may_have_waiting() -> None:
    """All of them together no more than there is for that; and when they are gone it is as before."""
    wires, many = Wires(), HTTP_RECEIVED_MAX // HTTP_RECEIVE_SIZE_MIN + 10
    sizes: dict[int, int] = {}
    numbers = [*range(1, many, 37), many, *reversed(range(0, many, 37))]
    for number in numbers:
        wires.open.clear()
        wires.open.update(_Nobody() for _ in range(number))
        wires.count()
        size = len(wires.scratch)
        assert HTTP_RECEIVE_SIZE_MIN <= size <= HTTP_RECEIVE_SIZE
        assert size * number <= HTTP_RECEIVED_MAX or size == HTTP_RECEIVE_SIZE_MIN
        assert size in (HTTP_RECEIVE_SIZE, HTTP_RECEIVE_SIZE_MIN) or (size + 1) * number > HTTP_RECEIVED_MAX
        assert sizes.setdefault(number, size) == size
    assert len(wires.scratch) == HTTP_RECEIVE_SIZE


class _Nobody:
    def check(self, now: float) -> None: ...


class Head:
    """A connection of ``network``, whose head has come in part."""

    def __init__(self, wires: Wires, network: int, size: int) -> None:
        self.wires, self.evicted = wires, 0
        assert wires.guests.admit(self, (f"192.0.2.{network}", 1))
        if size:
            wires.heads += size
            wires.unfinished[self] = size

    def evict(self) -> None:
        """As `Wire` gives back what it had."""
        self.evicted += 1
        self.wires.heads -= self.wires.unfinished.pop(self)


@settings(deadline=None, max_examples=60)
@given(
    heads=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 9)), max_size=8),
    network=st.integers(1, 3),
    more=st.integers(1, 9),
    size=st.integers(1, 60),
)
@example(heads=[(1, 5), (1, 3), (2, 1)], network=3, more=2, size=10)
@example(heads=[(1, 5), (2, 3)], network=2, more=2, size=8)
@example(heads=[(1, 5)], network=2, more=5, size=5)
def test_heads_give_way_to_those_of_addresses_that_have_less(
    heads: list[tuple[int, int]], network: int, more: int, size: int
) -> None:
    """The largest one of the address that has most, until there is room; and none of one's own."""
    wires = Wires()
    there = [Head(wires, of, of_size) for of, of_size in heads]
    me = Head(wires, network, 0)
    left = list(zip(heads, there, strict=True))
    gone: list[Head] = []
    while (fits := sum(of_size for (_, of_size), _ in left) + more <= size) is False:
        sums = Counter[int]()
        for (of, of_size), _ in left:
            sums[of] += of_size
        most = max(sums.values(), default=0)
        if most <= sums[network] + more:
            break
        first = next(of for (of, _), _ in left if sums[of] == most)
        largest = max((one for one in left if one[0][0] == first), key=lambda one: one[0][1])
        left.remove(largest)
        gone.append(largest[1])
    assert wires.has_room(me, more, size) == fits
    assert [one.evicted for one in there] == [int(one in gone) for one in there]
    assert wires.heads == sum(of_size for (_, of_size), _ in left)
    assert all((one in wires.guests) == (one not in gone) for one in there) and me in wires.guests


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
