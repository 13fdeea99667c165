"""What workers hand over to one another: to whom, what is counted where, and whose descriptors it is then."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Iterator
from contextlib import nullcontext

import pytest
from test_workers import OneWorker, close_node, fill, make_node, no_descriptors

from ingest.engine import _queue
from ingest.engine.node import Node
from ingest.engine.ports.frame_port import Port
from ingest.engine.ports.sibling_handover import Siblings

PUT, GET = (Port(kind, [], None) for kind in (b"P", b"G"))  # type: ignore[arg-type]


@pytest.fixture
def node() -> Iterator[Node]:
    made = make_node(3)
    yield made
    close_node(made)


def counted(node: Node) -> list[tuple[int, int]]:
    return [node.queue.connections(slot) for slot in range(node.queue.workers)]


def set_counts(node: Node, port: Port, counts: tuple[int, ...]) -> None:
    for slot, count in enumerate(counts):
        now = node.queue.connections(slot)[0 if port.is_put else 1]
        node.queue.count_connection(slot, port.is_put, count - now)


@pytest.mark.parametrize("gone", [None, 0, 1, 2])
@pytest.mark.parametrize("port", [PUT, GET], ids=["put", "get"])
def test_whoever_lives_and_has_two_fewer_of_the_kind_has_room(
    node: Node, port: Port, gone: int | None
) -> None:
    """Wherever it stands, and whatever there is of the other kind."""
    if gone is not None:
        node.queue.retire(gone)
    siblings = [Siblings(node, slot) for slot in range(3)]
    set_counts(node, GET if port is PUT else PUT, (9, 0, 9))
    for counts in itertools.product(range(4), repeat=3):
        set_counts(node, port, counts)
        for slot in range(3):
            others = [other for other in range(3) if other not in (slot, gone)]
            fewest = min(counts[other] for other in others)
            found = siblings[slot].with_room(port)
            if fewest > counts[slot] - 2:
                assert found is None
            else:
                assert found in others and counts[found] == fewest
    node.queue.set_flag(_queue.DRAINING)
    set_counts(node, port, (3, 0, 0))
    assert siblings[0].with_room(port) is None


@pytest.mark.parametrize("sibling", ["takes it", "has a full inbox", "has no inbox"])
@pytest.mark.parametrize("port", [PUT, GET], ids=["put", "get"])
def test_a_connection_is_counted_where_it_is_and_open_there_alone(
    node: Node, port: Port, sibling: str
) -> None:
    """The end of the last descriptor is the end for its client: a copy that is left behind would hold that up."""
    if sibling == "has a full inbox":
        fill(node.passing[2][1])
    elif sibling == "has no inbox":
        node.passing[2][0].close()
    passed = sibling == "takes it"
    for other in (PUT, GET):
        set_counts(node, other, (5, 6, 3))
    ours, client = socket.socketpair()
    with client:
        before = len(os.listdir("/proc/self/fd"))
        assert Siblings(node, 0).pass_on(port, ours, 2) is passed
        held = ((4, 5) if port is PUT else (5, 4), (4, 3) if port is PUT else (3, 4))
        assert counted(node) == ([held[0], (6, 6), held[1]] if passed else [(5, 5), (6, 6), (3, 3)])
        assert (ours.fileno() < 0) is passed
        assert len(os.listdir("/proc/self/fd")) == before - passed
        ours.close()
        if passed:
            [(message, [fd])] = iter(Siblings(node, 2).receive, None)
            assert message == port.kind
            assert not os.get_inheritable(fd), "a program that is started would have it too"
            client.setblocking(False)
            with pytest.raises(BlockingIOError):
                client.recv(1)
            os.close(fd)
        assert client.recv(1) == b""


@pytest.mark.parametrize(
    "address",
    ["1.2.3.4", "::", "f" * 4 + ":ffff" * 7, f"fe80{':ffff' * 7}%{'interface-of-15'}", "255.255.255.255"],
)
def test_an_address_comes_whole(node: Node, address: str) -> None:
    """What is cut off is another address: one that nobody refuses."""
    Siblings(node, 0).tell_of_bad_peer(address)
    for slot in (1, 2):
        assert list(iter(Siblings(node, slot).receive, None)) == [(b"B" + address.encode(), [])]


@pytest.mark.parametrize("full", [False, True], ids=["it was sent without", "there is no place for it"])
@pytest.mark.parametrize("port", [PUT, GET], ids=["put", "get"])
def test_a_connection_that_was_lost_on_its_way_is_told_of_its_port(port: Port, full: bool) -> None:
    """And is on nobody's count: each worker would think that this one has more than it has."""
    with OneWorker() as one:
        for other in (PUT, GET):
            one.node.queue.count_connection(0, other.is_put, 1)
        ours, client = socket.socketpair()
        one.pass_to_it(port.kind, *([ours.fileno()] if full else []))
        ours.close()
        with no_descriptors() if full else nullcontext():
            one.take_messages()
        assert one.node.queue.connections(0) == ((0, 1) if port is PUT else (1, 0))
        for other in (PUT, GET):
            assert one.counter(f"{other.name.upper()}_REFUSED_RESOURCES") == (other is port)
        if full:
            assert client.recv(1) == b""
        client.close()
