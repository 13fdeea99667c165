"""Supervision, with real processes that do little: they say that they live, and end as the test asks."""

import contextlib
import errno
import itertools
import json
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from ingest import limits
from ingest.engine import _queue, metrics
from ingest.engine._queue import Queue
from ingest.engine.node import Node
from ingest.engine.pool import Pool, Roles
from ingest.engine.server_config import ServerConfig
from ingest.errors import IngestError
from ingest.runtime import listeners, signals
from ingest.runtime.child import EX_CORRUPT
from ingest.runtime.supervised import Child, State

fork = os.fork  # a test makes the one of the pool fail
PATIENCE_S = 20.0  # how long a test waits for something that must happen; never how long it should take


class Stage:
    """A server that runs in a child of the test, and the lines that its processes report."""

    def __init__(self, workers: int = 2, **config: Any) -> None:
        self.queue = Queue(workers, 4)
        admin_sockets = listeners.bind_alone(("127.0.0.1", 0))
        self.node = Node(
            config=replace(ServerConfig(drain_timeout=PATIENCE_S), **config),
            store=SimpleNamespace(),  # type: ignore[arg-type]
            keys=SimpleNamespace(),  # type: ignore[arg-type]
            queue=self.queue,
            admin_sockets=admin_sockets,
            put_sockets=listeners.bind_shared(("127.0.0.1", 0), workers),
            get_sockets=listeners.bind_shared(("127.0.0.1", 0), workers),
        )
        self.read, self.write = os.pipe2(os.O_CLOEXEC)
        self.pid = 0
        self.seen: list[dict[str, Any]] = []
        self._rest = b""

    def report(self, what: str, **more: Any) -> None:
        line = json.dumps({"what": what, "pid": os.getpid(), **more}).encode() + b"\n"
        os.write(self.write, line)

    def start(self, roles: Roles) -> None:
        self.pid = fork()
        if self.pid == 0:
            code = 99
            try:
                code = Pool(self.node, roles).run()
            except IngestError as error:
                self.report("error", text=str(error))
                code = error.exit_code
            finally:
                os._exit(code)
        os.close(self.write)
        self.address = self.node.put_sockets[0].getsockname()
        listeners.close_all((*self.node.admin_sockets, *self.node.put_sockets, *self.node.get_sockets))

    def wait_for(self, what: str, count: int = 1, **more: Any) -> list[dict[str, Any]]:
        """The first ``count`` reports of ``what`` with these values, in all of this test."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            found = [r for r in self.seen if r["what"] == what and more.items() <= r.items()]
            if len(found) >= count:
                return found[:count]
            left = deadline - time.monotonic()
            assert left > 0 and select.select([self.read], [], [], left)[0], f"no {what}, only {self.seen}"
            piece = os.read(self.read, 65536)
            assert piece, f"no {what} before all processes ended, only {self.seen}"
            *lines, self._rest = (self._rest + piece).split(b"\n")
            self.seen += map(json.loads, lines)

    def read_to_end(self) -> list[dict[str, Any]]:
        """All reports: returns when no process of the server is left."""
        deadline = time.monotonic() + PATIENCE_S
        while select.select([self.read], [], [], max(0.0, deadline - time.monotonic()))[0]:
            piece = os.read(self.read, 65536)
            if not piece:
                return self.seen
            *lines, self._rest = (self._rest + piece).split(b"\n")
            self.seen += map(json.loads, lines)
        raise AssertionError(f"processes are left: {self.seen}")

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def exit_code(self) -> int:
        pidfd = os.pidfd_open(self.pid)
        assert select.select([pidfd], [], [], PATIENCE_S)[0], "the parent does not end"
        os.close(pidfd)
        pid, self.pid = self.pid, 0
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def counter(self, name: str) -> int:
        return self.queue.counter_row(_queue.ROW_PARENT)[metrics.INDEX[name]]

    def close(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.read)
        self.queue.close()


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage()
    yield stage
    stage.close()


def until_told() -> None:
    """Blocks until it is told to end, also when that came before, if it was blocked then."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signals.END])
    signal.sigwait([signals.END])


@dataclass
class Actors:
    """Processes that behave as the real ones do towards the parent. Replace one to have it misbehave."""

    stage: Stage

    def admin(self, node: Node) -> int:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signals.END])
        self.stage.report("admin")
        until_told()
        self.stage.report("admin ends")
        return 0

    def committer(self, node: Node) -> int:
        """Lets go of arenas when it is rung, as the real one."""
        signal.pthread_sigmask(signal.SIG_BLOCK, [signals.END])
        self.stage.report("committer")
        node.queue.committer_ready()
        told = signal_fd()
        while told not in select.select([told, node.queue.committer_doorbell], [], [])[0]:
            os.eventfd_read(node.queue.committer_doorbell)
            self.release(node.queue)
        self.stage.report("committer ends")
        return 0

    @staticmethod
    def release(queue: Queue) -> None:
        for slot in range(queue.workers):
            if queue.is_retiring(slot):
                queue.release(slot)

    def worker(self, node: Node, slot: int) -> int:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signals.END])
        self.stage.report("worker", slot=slot)
        until_told()
        self.stage.report("worker ends", slot=slot)
        return 0

    def roles(self, **others: Callable[..., int]) -> Roles:
        return Roles(**{"admin": self.admin, "committer": self.committer, "worker": self.worker, **others})


def signal_fd() -> int:
    """A descriptor that becomes readable when the process is told to end."""
    read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(write)
    signal.signal(signals.END, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signals.END])
    return read


def serve(stage: Stage, **others: Callable[..., int]) -> None:
    stage.start(Actors(stage).roles(**others))
    stage.wait_for("worker", stage.queue.workers)


def pid_of(stage: Stage, what: str, **more: Any) -> int:
    return stage.wait_for(what, **more)[0]["pid"]


def test_starts_in_order_and_drains_in_order(stage: Stage) -> None:
    serve(stage)
    assert stage.queue.flags == 0
    stage.signal(signal.SIGTERM)
    assert stage.exit_code() == 0
    order = [report["what"] for report in stage.read_to_end()]
    assert order.index("committer") < order.index("worker")
    assert order[-4:] == ["worker ends", "worker ends", "committer ends", "admin ends"]
    assert stage.queue.flags & _queue.DRAINING


def test_int_drains_too_and_hup_does_not_end(stage: Stage) -> None:
    serve(stage)
    stage.signal(signal.SIGHUP)
    os.kill(pid_of(stage, "worker", slot=0), signal.SIGHUP)
    os.kill(pid_of(stage, "worker", slot=0), signal.SIGINT)
    os.kill(pid_of(stage, "worker", slot=1), signal.SIGKILL)
    stage.wait_for("worker", 2, slot=1)  # the parent went on after the HUP
    stage.signal(signal.SIGINT)
    assert stage.exit_code() == 0
    assert len([r for r in stage.read_to_end() if r["what"] == "worker" and r["slot"] == 0]) == 1


def test_a_killed_worker_is_replaced_and_the_others_are_not(stage: Stage) -> None:
    serve(stage)
    victim = pid_of(stage, "worker", slot=1)
    os.kill(victim, signal.SIGKILL)
    first, second = stage.wait_for("worker", 2, slot=1)
    assert first["pid"] == victim != second["pid"]
    assert stage.counter("WORKER_RESTARTS") == 1
    stage.signal(signal.SIGTERM)
    assert stage.exit_code() == 0
    assert len([r for r in stage.read_to_end() if r["what"] == "worker" and r["slot"] == 0]) == 1


def test_a_worker_that_returns_or_raises_is_replaced(stage: Stage) -> None:
    actors = Actors(stage)
    lives = stage.queue.counter_row(_queue.ROW_ADMIN)  # any shared memory will do

    def worker(node: Node, slot: int) -> int:
        lives[slot] += 1
        if lives[slot] == 1 and slot == 0:
            return 0
        if lives[slot] == 1:
            raise RuntimeError("this traceback is wanted")
        return actors.worker(node, slot)

    stage.start(actors.roles(worker=worker))
    stage.wait_for("worker", slot=0)
    stage.wait_for("worker", slot=1)
    assert stage.counter("WORKER_RESTARTS") == 2
    stage.signal(signal.SIGTERM)
    assert stage.exit_code() == 0


def test_a_worker_is_not_replaced_before_the_committer_let_go_of_its_arena(stage: Stage) -> None:
    actors = Actors(stage)

    def committer(node: Node) -> int:
        stage.report("committer")
        node.queue.committer_ready()
        os.eventfd_read(blocking(node.queue.committer_doorbell))
        stage.report("asked", live=len(psutil.Process(os.getppid()).children()))
        os.eventfd_read(permission)
        actors.release(node.queue)
        stage.report("released")
        until_told()
        return 0

    permission = os.eventfd(0)
    serve(stage, committer=committer)
    os.kill(pid_of(stage, "worker", slot=0), signal.SIGKILL)
    assert stage.wait_for("asked")[0]["live"] == 3
    os.eventfd_write(permission, 1)
    stage.wait_for("worker", 2, slot=0)
    order = [(report["what"], report.get("slot")) for report in stage.seen]
    assert order.index(("released", None)) < len(order) - 1 - order[::-1].index(("worker", 0))
    os.close(permission)


@pytest.mark.parametrize("committer_is", ["serving", "recovering"])
def test_the_parent_does_not_let_go_of_an_arena_that_a_committer_may_read(
    stage: Stage, committer_is: str
) -> None:
    """However often it looks meanwhile: it has replaced another process since."""
    actors = Actors(stage)
    lives = stage.queue.counter_row(_queue.ROW_WORKER)  # any shared memory will do
    permission = os.eventfd(0)

    def committer(node: Node) -> int:
        lives[0] += 1
        if lives[0] == 1 and committer_is == "recovering":
            return actors.committer(node)
        stage.report("recovers")
        if committer_is == "serving":
            node.queue.committer_ready()
        while not node.queue.is_retiring(0):
            os.eventfd_read(blocking(node.queue.committer_doorbell))
        stage.report("asked")
        os.eventfd_read(permission)
        assert node.queue.is_retiring(0)
        actors.release(node.queue)
        stage.report("released")
        return actors.committer(node)

    serve(stage, committer=committer)
    if committer_is == "recovering":
        os.kill(pid_of(stage, "committer"), signal.SIGKILL)
    stage.wait_for("recovers")
    os.kill(pid_of(stage, "worker", slot=0), signal.SIGKILL)
    stage.wait_for("asked")
    for number in range(1, 3):
        os.kill(stage.wait_for("admin", number)[-1]["pid"], signal.SIGKILL)
        stage.wait_for("admin", number + 1)
    assert stage.queue.is_retiring(0)
    os.eventfd_write(permission, 1)
    stage.wait_for("released")
    stage.wait_for("worker", 2, slot=0)
    os.close(permission)


def blocking(doorbell: int) -> int:
    os.set_blocking(doorbell, True)
    return doorbell


def test_a_worker_that_dies_while_there_is_no_committer_waits_for_the_next_one(stage: Stage) -> None:
    actors = Actors(stage)
    lives = stage.queue.counter_row(_queue.ROW_ADMIN)

    def committer(node: Node) -> int:
        lives[0] += 1
        if lives[0] == 1:
            return actors.committer(node)
        stage.report("recovers")
        while not node.queue.is_retiring(0):  # the parent rings when it has noticed that the worker died
            os.eventfd_read(blocking(node.queue.committer_doorbell))
        actors.release(node.queue)
        return actors.committer(node)

    serve(stage, committer=committer)
    os.kill(pid_of(stage, "committer"), signal.SIGKILL)
    stage.wait_for("recovers")
    assert stage.queue.epoch % 2 == 1 and stage.queue.flags & _queue.FAILING
    os.kill(pid_of(stage, "worker", slot=0), signal.SIGKILL)
    stage.wait_for("worker", 2, slot=0)
    stage.signal(signal.SIGTERM)
    assert stage.exit_code() == 0


def test_a_worker_is_replaced_while_the_committer_ends_at_once_again_and_again(stage: Stage) -> None:
    actors = Actors(stage)
    lives = stage.queue.counter_row(_queue.ROW_ADMIN)

    def committer(node: Node) -> int:
        lives[0] += 1
        if lives[0] == 1:
            return actors.committer(node)
        stage.report("fails")
        return 70

    serve(stage, committer=committer)
    os.kill(pid_of(stage, "committer"), signal.SIGKILL)
    stage.wait_for("fails")
    os.kill(pid_of(stage, "worker", slot=0), signal.SIGKILL)
    stage.wait_for("worker", 2, slot=0)
    assert stage.queue.epoch % 2 == 1


def test_a_killed_committer_is_replaced_while_the_workers_live(stage: Stage) -> None:
    serve(stage)
    epoch = stage.queue.epoch
    os.kill(pid_of(stage, "committer"), signal.SIGKILL)
    stage.wait_for("committer", 2)
    # A worker's replacement shows that the parent has taken note of the new committer.
    os.kill(pid_of(stage, "worker", slot=0), signal.SIGKILL)
    stage.wait_for("worker", 2, slot=0)
    assert stage.queue.epoch == epoch + 2
    assert stage.queue.flags == 0
    assert stage.counter("COMMITTER_RESTARTS") == 1
    stage.signal(signal.SIGTERM)
    assert stage.exit_code() == 0
    assert len([r for r in stage.read_to_end() if r["what"] == "worker" and r["slot"] == 1]) == 1


def test_a_killed_admin_is_replaced(stage: Stage) -> None:
    serve(stage)
    os.kill(pid_of(stage, "admin"), signal.SIGKILL)
    stage.wait_for("admin", 2)
    stage.signal(signal.SIGTERM)
    assert stage.exit_code() == 0


@pytest.mark.parametrize(("code", "exit_code"), [(EX_CORRUPT, 1), (78, 78)])
def test_a_committer_that_cannot_be_helped_stops_the_server(stage: Stage, code: int, exit_code: int) -> None:
    stage.start(Actors(stage).roles(committer=lambda node: code))
    assert stage.exit_code() == exit_code
    assert [r["what"] for r in stage.read_to_end() if r["what"] != "admin"] == ["error"]


def test_workers_start_only_after_recovery_and_the_ports_refuse_before(stage: Stage) -> None:
    actors = Actors(stage)
    permission = os.eventfd(0)

    def committer(node: Node) -> int:
        stage.report("recovers")
        os.eventfd_read(permission)
        return actors.committer(node)

    stage.start(actors.roles(committer=committer))
    stage.wait_for("recovers")
    stage.wait_for("admin")
    with socket.socket() as client, pytest.raises(ConnectionRefusedError):
        client.connect(stage.address)
    assert stage.queue.flags == _queue.STARTING
    os.eventfd_write(permission, 1)
    stage.wait_for("worker", 2)
    with socket.create_connection(stage.address):
        pass
    stage.signal(signal.SIGTERM)
    assert stage.exit_code() == 0
    with socket.socket() as client, pytest.raises(ConnectionRefusedError):
        client.connect(stage.address)
    os.close(permission)


def test_term_during_recovery_is_a_clean_end(stage: Stage) -> None:
    def committer(node: Node) -> int:
        stage.report("recovers")
        signal.pause()
        return 1

    stage.start(Actors(stage).roles(committer=committer))
    stage.wait_for("recovers")
    stage.signal(signal.SIGTERM)
    assert stage.exit_code() == 0


def test_a_second_signal_ends_at_once(stage: Stage) -> None:
    def worker(node: Node, slot: int) -> int:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signals.END])
        stage.report("worker")
        until_told()
        stage.report("told")
        signal.pause()  # a client that never reads its acks
        return 0

    serve(stage, worker=worker)
    stage.signal(signal.SIGTERM)
    stage.wait_for("told", 2)
    stage.signal(signal.SIGTERM)
    assert stage.exit_code() == 1
    stage.read_to_end()


def test_a_drain_that_takes_too_long_is_cut_off() -> None:
    stage = Stage(drain_timeout=0.2)

    def worker(node: Node, slot: int) -> int:
        signal.signal(signals.END, signal.SIG_IGN)
        stage.report("worker")
        while True:
            signal.pause()

    serve(stage, worker=worker)
    stage.signal(signal.SIGTERM)
    assert stage.exit_code() == 1
    assert "committer ends" not in [report["what"] for report in stage.read_to_end()]
    stage.close()


def test_a_worker_that_fails_in_the_drain_makes_it_unclean(stage: Stage) -> None:
    def worker(node: Node, slot: int) -> int:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signals.END])
        stage.report("worker")
        until_told()
        return 3 * slot

    serve(stage, worker=worker)
    stage.signal(signal.SIGTERM)
    assert stage.exit_code() == 1
    assert "committer ends" in [report["what"] for report in stage.read_to_end()]


@contextlib.contextmanager
def parent_of(workers: int) -> Iterator[Pool]:
    """In the test itself, without any process: what ended is told to it."""
    node = Node(
        ServerConfig(),
        SimpleNamespace(),
        SimpleNamespace(),
        Queue(workers, 4),
        [],  # type: ignore[arg-type]
    )
    nobody = Roles(lambda _: 0, lambda _: 0, lambda *_: 0)
    with contextlib.closing(node.queue):
        yield Pool(node, nobody)


def ends(pool: Pool, child: Child, code: int) -> None:
    child.exit_code, child.state = code, State.RESTING
    pool._settle(child, child.told_to_end and code in (0, -signals.END))


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("code", [0, 1, 3, -signals.END, -signal.SIGKILL, -signal.SIGSEGV])
@pytest.mark.parametrize("bad", range(3))
def test_a_drain_is_clean_when_each_worker_ended_well(order: tuple[int, ...], code: int, bad: int) -> None:
    """Whichever ends after it: what it had received may not be answered."""
    with parent_of(3) as pool:
        pool._drain()
        for slot in order:
            worker = pool._workers[slot]
            worker.told_to_end = True
            ends(pool, worker, code if slot == bad else 0)
        ends(pool, pool._admin, 0)
        assert pool._clean == (code in (0, -signals.END))


@pytest.mark.parametrize("recovered", [True, False])
@pytest.mark.parametrize("code", [0, 1, -signals.END, -signal.SIGKILL, 70])
def test_a_committer_that_was_told_to_end_has_flushed_or_had_nothing_to(code: int, recovered: bool) -> None:
    """One that is killed by being told so had not taken it for its own business yet: it was still at its recovery."""
    with parent_of(1) as pool:
        if recovered:
            pool._queue.committer_ready()
        pool._drain()
        pool._committer.told_to_end = True
        ends(pool, pool._committer, code)
        assert pool._clean == (code == 0 or (code == -signals.END and not recovered))
        assert pool._committer.state is State.DONE and pool._queue.epoch % 2 == 1


@pytest.mark.parametrize("state", [State.EMPTY, State.RESTING, State.RUNNING])
@pytest.mark.parametrize("code", [0, 1, -signal.SIGKILL])
def test_a_drain_whose_turn_finds_no_committer_is_clean_only_when_none_has_failed(
    monkeypatch: pytest.MonkeyPatch, state: State, code: int
) -> None:
    """The log has what it should have flushed; the packs may not."""
    told: list[object] = []
    monkeypatch.setattr(signal, "pidfd_send_signal", lambda *what: told.append(what))
    with parent_of(1) as pool:
        pool._drain()
        pool._committer.state, pool._committer.exit_code = state, code
        for _ in range(2):  # it is called until the whole rank has ended
            pool._tell_to_end(pool._committer)
        assert pool._clean == (state is State.RUNNING or code == 0)
        assert (pool._committer.state is State.DONE) == (state is not State.RUNNING)
        assert len(told) == (state is State.RUNNING)


def test_whoever_dies_by_itself_is_counted_where_it_belongs() -> None:
    """And is started again; a worker when the committer has let go of its arena. None of that makes the end unclean."""
    with parent_of(2) as pool:
        pool._queue.committer_ready()
        row = pool._queue.counter_row(_queue.ROW_PARENT)
        expected = {"WORKER_RESTARTS": 0, "ADMIN_RESTARTS": 0, "COMMITTER_RESTARTS": 0}
        for child, counter, state in (
            (pool._workers[1], "WORKER_RESTARTS", State.RETIRING),
            (pool._admin, "ADMIN_RESTARTS", State.RESTING),
            (pool._workers[0], "WORKER_RESTARTS", State.RETIRING),
            (pool._committer, "COMMITTER_RESTARTS", State.RESTING),
        ):
            ends(pool, child, 1)
            expected[counter] += 1
            assert {name: row[metrics.INDEX[name]] for name in expected} == expected
            assert child.state is state
            assert bool(pool._queue.flags & _queue.FAILING) == (child is pool._committer)
        assert [pool._queue.is_retiring(slot) for slot in range(2)] == [True, True]
        assert pool._clean and pool._queue.epoch % 2 == 1


def test_a_committer_that_dies_in_the_drain_is_replaced_for_the_workers_that_wait(stage: Stage) -> None:
    def worker(node: Node, slot: int) -> int:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signals.END])
        stage.report("worker")
        epoch = node.queue.epoch
        until_told()
        stage.report("told")
        while node.queue.epoch != epoch + 2:  # until it comes, this worker owes acks
            os.eventfd_read(blocking(node.queue.worker_doorbells[slot]))
        return 0

    serve(stage, worker=worker)
    stage.signal(signal.SIGTERM)
    stage.wait_for("told", 2)
    os.kill(pid_of(stage, "committer"), signal.SIGKILL)
    assert stage.exit_code() == 0
    assert len([r for r in stage.read_to_end() if r["what"] == "committer ends"]) == 1


@pytest.mark.parametrize("parent_first", [True, False])
def test_term_to_the_whole_group_is_a_clean_end(stage: Stage, parent_first: bool) -> None:
    """What a service manager does: the committer hears it as early as everybody else."""
    serve(stage)
    pids = [report["pid"] for report in stage.seen if report["what"] in ("worker", "committer", "admin")]
    for pid in (stage.pid, *pids) if parent_first else (*pids, stage.pid):
        with contextlib.suppress(ProcessLookupError):  # ended before its turn came
            os.kill(pid, signal.SIGTERM)
    assert stage.exit_code() == 0


def test_no_process_outlives_the_parent(stage: Stage) -> None:
    serve(stage)
    children = psutil.Process(stage.pid).children()
    assert len(children) == 4
    pidfds = [os.pidfd_open(child.pid) for child in children]
    stage.signal(signal.SIGKILL)
    assert stage.exit_code() == -signal.SIGKILL
    deadline = time.monotonic() + 1.0  # docs/architecture.md, "Processes"
    for pidfd in pidfds:  # readable from the moment that the process is a zombie
        assert select.select([pidfd], [], [], max(0.0, deadline - time.monotonic()))[0], "it lives on"
        os.close(pidfd)


def test_a_fork_that_fails_is_tried_again(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = iter(range(3))

    def failing_fork() -> int:
        if next(failures, None) is not None:
            raise BlockingIOError(errno.EAGAIN, "no more processes")
        return fork()

    monkeypatch.setattr(os, "fork", failing_fork)
    serve(stage)
    assert next(failures) == 0  # it failed in the server, whose memory is its own
    stage.signal(signal.SIGTERM)
    assert stage.exit_code() == 0


def test_back_off_doubles_up_to_a_limit_and_forgets() -> None:
    child = Child("worker-0", lambda: 0)
    delays = []
    now = 1000.0
    for _ in range(10):
        child.started = now
        child.back_off(now)
        delays.append(child.delay)
    assert delays[0] == limits.RESTART_DELAY_MIN_S
    assert all(b == min(2 * a, limits.RESTART_DELAY_MAX_S) for a, b in pairwise(delays))
    assert delays[-1] == limits.RESTART_DELAY_MAX_S
    child.back_off(now + limits.RESTART_FORGET_S)
    assert child.delay == limits.RESTART_DELAY_MIN_S


def test_processes_can_be_told_apart_by_name(stage: Stage) -> None:
    serve(stage)
    names = {child.name() for child in psutil.Process(stage.pid).children()}
    assert names == {"ingest-admin", "ingest-committe", "ingest-worker-0", "ingest-worker-1"}
