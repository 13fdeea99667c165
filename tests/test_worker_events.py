"""What one worker counts, says and closes at each event, on each of its ports."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator

import pytest
from test_workers import OneWorker, fill

from ingest.engine import metrics
from ingest.engine.ports.frame_port import Port


@pytest.fixture
def one() -> Iterator[OneWorker]:
    with OneWorker() as made:
        made.node.get_sockets[1].close()  # as those of its put port
        yield made


def port_of(one: OneWorker, name: str) -> Port:
    return {port.name: port for port in one.worker._ports.values()}[name]


def meet(one: OneWorker, port: Port) -> socket.socket:
    """A connection to this port that is accepted."""
    client = socket.create_connection(port.listeners[0].getsockname())
    one.loop.readable(port.listeners[0].fileno())
    return client


def counters(one: OneWorker) -> dict[str, int]:
    found = {name: one.counter(name) for name in metrics.INDEX}
    return {name: value for name, value in found.items() if value}


def is_kept(one: OneWorker, port: Port) -> set[str]:
    fill(one.node.passing[1][1])
    meet(one, port).close()
    return set()


def is_passed(one: OneWorker, port: Port) -> set[str]:
    one.node.queue.count_connection(0, port.is_put, 2)
    meet(one, port).close()
    return {"PUT_PASSED"} if port.is_put else set()


def is_refused(one: OneWorker, port: Port) -> set[str]:
    one.worker._bad_peers._delay = 60.0
    one.worker._bad_peers.offended("127.0.0.1", 1e12)
    meet(one, port).close()
    return {f"{port.name.upper()}_REFUSED_BAD_PEER"}


def fails(one: OneWorker, port: Port) -> set[str]:
    ours, client = socket.socketpair()  # which takes no option of TCP
    one.node.queue.count_connection(0, port.is_put, 1)
    one.worker._adopt(port, ours, ("127.0.0.1", 1))
    client.close()
    return {f"{port.name.upper()}_REFUSED_RESOURCES"}


@pytest.mark.parametrize("happens", [is_kept, is_passed, is_refused, fails])
@pytest.mark.parametrize("name", ["put", "get"])
def test_each_event_has_the_counter_of_its_port_and_no_other(
    one: OneWorker, name: str, happens: Callable[[OneWorker, Port], set[str]]
) -> None:
    before = counters(one)
    expected = happens(one, port_of(one, name))
    after = counters(one)
    changed = {what for what in after if after[what] != before.get(what, 0)}
    assert {what for what in changed if "REFUSED" in what or "PASSED" in what} == expected
    assert all(after[what] == 1 for what in expected)


@pytest.mark.parametrize("draining", [False, True])
@pytest.mark.parametrize("name", ["put", "get"])
def test_whom_a_full_server_turns_away_is_told_of_unless_it_ends(
    one: OneWorker, caplog: pytest.LogCaptureFixture, name: str, draining: bool
) -> None:
    """In a drain everybody is turned away: that is no sign of a limit."""
    port = port_of(one, name)

    def adopt(fd: int, peer: str) -> bool:
        os.close(fd)
        return False

    port.server = type("Full", (), {"adopt": staticmethod(adopt), "connections": 7, "make_room": list})()
    one.worker._draining = draining
    with caplog.at_level("INFO"), socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        ours, address = listener.accept()
        one.worker._adopt(port, ours, address)
        client.close()
    assert [f"has 7 {name} connections" in line for line in caplog.messages] == [True] * (not draining)
    one.worker._ports.pop(port.kind)


@pytest.mark.parametrize("name", ["put", "get"])
def test_from_a_drain_on_each_port_refuses(one: OneWorker, name: str) -> None:
    """As long as the drain may take: who is let in would wait for nothing."""
    address = port_of(one, name).listeners[0].getsockname()
    socket.create_connection(address).close()
    one.worker.drain()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


def test_what_was_passed_here_is_found_without_a_word_of_the_loop(one: OneWorker) -> None:
    one.pass_to_it(b"B192.0.2.7")
    heard: list[str] = []
    one.worker._bad_peers.offended = lambda address, _: len(heard.append(address) or heard)  # type: ignore
    one.tick()
    assert heard == ["192.0.2.7"]


def test_an_inbox_that_nobody_sends_to_any_more_is_not_watched(one: OneWorker) -> None:
    """It is readable from then on: the loop would turn for nothing."""
    inbox = one.node.passing[0][0].fileno()
    one.pass_to_it(b"B192.0.2.7")
    one.node.passing[0][1].close()
    one.take_messages()
    assert inbox not in one.loop.readers
