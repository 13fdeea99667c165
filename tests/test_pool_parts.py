"""What each process of a server keeps of its sockets, and what the parent does at each step, without any process."""

from __future__ import annotations

import itertools
import socket
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import cast

import pytest

from ingest import limits
from ingest.engine import _queue, metrics
from ingest.engine._queue import Queue
from ingest.engine.node import Node
from ingest.engine.pool import Pool, Roles
from ingest.engine.server_config import ServerConfig
from ingest.mac import KeyRing
from ingest.runtime import heartbeat, supervised
from ingest.runtime.supervised import Child, State
from ingest.store.store import Store

WORKERS, ADDRESSES = 3, 2
NAMES = ("admin", "committer", *(f"worker-{slot}" for slot in range(WORKERS)))


def bound(count: int) -> list[socket.socket]:
    sockets = [socket.socket() for _ in range(count)]
    for sock in sockets:
        sock.bind(("127.0.0.1", 0))
    return sockets


@pytest.fixture
def node() -> Iterator[Node]:
    """Of a host with two addresses."""
    made = Node(
        ServerConfig(),
        cast(Store, SimpleNamespace()),
        cast(KeyRing, SimpleNamespace()),
        Queue(WORKERS, 4),
        bound(ADDRESSES),
        bound(WORKERS * ADDRESSES),
        bound(WORKERS * ADDRESSES),
    )
    yield made
    for sock in (*made.admin_sockets, *made.put_sockets, *made.get_sockets):
        sock.close()
    made.queue.close()


@pytest.fixture
def pool(node: Node) -> Pool:
    return Pool(node, Roles(lambda _: 0, lambda _: 0, lambda *_: 0))


def child_of(pool: Pool, name: str) -> Child:
    return next(child for child in pool._children if child.name == name)


def are_open(sockets: list[socket.socket]) -> list[bool]:
    return [sock.fileno() >= 0 for sock in sockets]


@pytest.mark.parametrize("name", NAMES)
def test_a_process_keeps_the_sockets_of_its_own_ports_alone(node: Node, pool: Pool, name: str) -> None:
    """On each address: a port refuses when its last holder has closed it, so nobody holds one by chance."""
    pool._close_what_is_not_of(child_of(pool, name))
    assert are_open(node.admin_sockets) == [name == "admin"] * ADDRESSES
    own = [name == f"worker-{slot}" for _ in range(ADDRESSES) for slot in range(WORKERS)]
    assert are_open(node.put_sockets) == own
    assert are_open(node.get_sockets) == own


@pytest.mark.parametrize("slot", range(WORKERS))
def test_a_worker_has_a_socket_of_each_port_on_each_address(node: Node, slot: int) -> None:
    puts, gets = node.sockets_of(slot)
    assert puts == [node.put_sockets[slot], node.put_sockets[WORKERS + slot]]
    assert gets == [node.get_sockets[slot], node.get_sockets[WORKERS + slot]]


def test_from_a_drain_on_the_parent_holds_no_frame_port(node: Node, pool: Pool) -> None:
    pool._drain()
    assert not any(are_open([*node.put_sockets, *node.get_sockets]))
    assert all(are_open(node.admin_sockets)), "who watches the drain asks there"


@pytest.mark.parametrize("draining", [False, True])
def test_all_listen_once_the_store_has_recovered_but_not_in_a_drain(
    monkeypatch: pytest.MonkeyPatch, node: Node, pool: Pool, draining: bool
) -> None:
    """However often a committer becomes ready."""
    started: list[str] = []
    monkeypatch.setattr(pool, "_start", lambda child: started.append(child.name))
    node.queue.set_flag(_queue.STARTING)
    if draining:
        pool._drain()
    for _ in range(2):
        pool._committer_is_ready(time.monotonic())
        assert started == ([] if draining else [f"worker-{slot}" for slot in range(WORKERS)])
        assert bool(node.queue.flags & _queue.STARTING) is draining
    if not draining:
        for sock in (*node.put_sockets, *node.get_sockets):
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1


@pytest.mark.parametrize("slot", range(WORKERS))
@pytest.mark.parametrize("state", State)
def test_a_worker_rests_with_an_empty_ring_once_its_arena_is_let_go_of(
    node: Node, pool: Pool, slot: int, state: State
) -> None:
    """By the committer; by the parent where no committer runs. What the dead one had submitted is nobody's."""
    for other in range(WORKERS):
        node.queue.submit(other, 0, 0, 1, 0, 7)
    worker, pool._committer.state = pool._workers[slot], state
    node.queue.retire(slot)
    worker.state, worker.due = State.RETIRING, time.monotonic() + 1000
    pool._committer.due = worker.due
    pool._step(time.monotonic())
    runs = state is State.RUNNING
    assert worker.state is (State.RETIRING if runs else State.RESTING)
    if runs:
        node.queue.release(slot)
        pool._step(time.monotonic())
    assert worker.state is State.RESTING and node.queue.is_live(slot)
    assert [node.queue.pending(other) for other in range(WORKERS)] == [
        other != slot for other in range(WORKERS)
    ]


@pytest.mark.parametrize("name", NAMES)
def test_what_each_process_has_used_is_added_to_its_own_row(
    monkeypatch: pytest.MonkeyPatch, node: Node, pool: Pool, name: str
) -> None:
    """In user mode and in the kernel, and to what the one before it had used."""
    monkeypatch.setattr(supervised.Child, "reap", lambda _: SimpleNamespace(ru_utime=1.25, ru_stime=0.5))
    rows = (_queue.ROW_ADMIN, _queue.ROW_COMMITTER, *range(_queue.ROW_WORKER, _queue.ROW_WORKER + WORKERS))
    for times in (1, 2):
        pool._reap(child_of(pool, name))
        found = [node.queue.counter_row(row)[metrics.INDEX["PAST_CPU_MICROSECONDS"]] for row in rows]
        assert found == [1_750_000 * times if other == name else 0 for other in NAMES]


@pytest.mark.parametrize(
    "states", list(itertools.permutations([state for state in State if state is not State.RUNNING], 2))
)
def test_after_the_end_of_all_none_is_started_again(pool: Pool, states: tuple[State, ...]) -> None:
    pool._children[0].state, pool._children[-1].state = states
    pool._kill_all()
    assert {child.state for child in pool._children} == {State.DONE}


@pytest.mark.parametrize("expected", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_reload_waits_for_nobody_who_has_ended(
    monkeypatch: pytest.MonkeyPatch, node: Node, pool: Pool, name: str, expected: bool
) -> None:
    """Whoever it is, and however it ended: its line may be closed before anybody looks at it."""
    answered: list[str] = []
    monkeypatch.setattr(pool._reloads, "answered", answered.append)
    child = child_of(pool, name)
    child.exit_code = 0
    pool._settle(child, expected)
    assert answered == [name]


def test_a_parent_wakes_for_the_end_of_its_patience(monkeypatch: pytest.MonkeyPatch, pool: Pool) -> None:
    monkeypatch.setattr(pool, "_drain_timeout", 0.25)
    pool._drain()
    assert min(pool._moments(time.monotonic())) == pool._deadline


def test_a_start_that_fails_is_a_short_life_however_long_the_one_before_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its parent waits twice as long each time, and not at all in a circle."""

    def fork() -> int:
        raise BlockingIOError(11, "no process for now")

    monkeypatch.setattr("ingest.runtime.supervised.os.fork", fork)
    child, delays = Child("child", lambda: 0), []
    for _ in range(4):
        before = time.monotonic()
        child.started = before - 2 * limits.RESTART_FORGET_S
        child.start(lambda: None)
        assert child.state is State.RESTING and child.due == child.started + child.delay
        assert child.started >= before
        delays.append(child.delay)
    assert delays == [limits.RESTART_DELAY_MIN_S * 2**n for n in range(4)]


def test_each_process_has_a_heart_to_listen_to_and_the_committer_alone_is_left_though_silent(
    node: Node, pool: Pool
) -> None:
    """Another committer would have to recover first: one that stands still keeps what it has."""
    assert node.hearts == {child.name: child.heart for child in pool._children} | {"parent": heartbeat.own()}
    assert {child.name for child in pool._children} == set(NAMES)
    assert [name for name in NAMES if not child_of(pool, name).replaced_when_silent] == ["committer"]
    assert [child.name for child in pool._children][WORKERS:] == ["committer", "admin"], "as in the drain"
