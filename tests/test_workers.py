"""Workers as processes of their own on loopback ports; this process is their parent and their committer."""

from __future__ import annotations

import errno
import itertools
import os
import resource
import select
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import Any, cast

import pytest
from put_rig import KEYS, OTHER_KEYS, PATIENCE_S, ack, acks, frame, frames

from ingest import limits
from ingest.engine import _queue, metrics
from ingest.engine._queue import Queue
from ingest.engine.node import Node
from ingest.engine.ports._put_server import BAD_FRAMES, PutServer
from ingest.engine.ports.bad_peers import BadPeers
from ingest.engine.ports.frame_port import Event, FrameServer, peer_name
from ingest.engine.ports.sibling_handover import Siblings
from ingest.engine.server import passing_pairs
from ingest.engine.server_config import ServerConfig
from ingest.mac import KeyRing
from ingest.status import Status
from ingest.workers import Worker, worker_main

SHARED_KEY = bytes(range(32))
BLOCK = limits.BLOCK_PLACES


class EchoServer:
    """A get server that sends back what it receives: what a worker has to do with one is the same."""

    def __init__(self, node: Node, slot: int) -> None:
        self._queue = node.queue
        self._slot = slot
        self._epoll = select.epoll()
        self._open: dict[int, socket.socket] = {}
        self._draining = False

    @property
    def connections(self) -> int:
        return len(self._open)

    @property
    def drained(self) -> bool:
        return self._draining and not self._open

    def fileno(self) -> int:
        return self._epoll.fileno()

    def adopt(self, fd: int, peer: str) -> bool:
        self._open[fd] = socket.socket(fileno=fd)
        self._epoll.register(fd, select.EPOLLIN)
        return True

    def make_room(self) -> list[Event] | None:
        return None

    def close_idle(self, count: int) -> list[Event] | None:
        return None

    def _end(self, fd: int) -> None:
        self._open.pop(fd).close()
        self._queue.count_connection(self._slot, False, -1)

    def turn(self) -> list[Event] | None:
        for fd, _ in self._epoll.poll(0):
            try:
                data = self._open[fd].recv(4096)
            except OSError:
                data = b""
            if data:
                self._open[fd].send(data)
            else:
                self._end(fd)
        return None

    def tick(self, now: float) -> list[Event] | None:
        return None

    def begin_drain(self) -> list[Event] | None:
        self._draining = True
        for fd in list(self._open):
            self._end(fd)
        return None

    def close(self) -> None:
        self._epoll.close()


def listeners(count: int) -> list[socket.socket]:
    """Sockets that listen on one port."""
    sockets: list[socket.socket] = []
    for _ in range(count):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("127.0.0.1", sockets[0].getsockname()[1] if sockets else 0))
        sock.setblocking(False)
        sockets.append(sock)
    for sock in sockets:
        sock.listen(128)
    return sockets


def make_node(workers: int, **config: Any) -> Node:
    node = Node(
        config=ServerConfig(**config),
        store=cast(Any, None),
        keys=KeyRing([SHARED_KEY]),
        queue=Queue(workers, 4 * BLOCK),
        admin_sockets=[],
        put_sockets=listeners(workers),
        get_sockets=listeners(workers),
    )
    node.passing += passing_pairs(workers)
    node.queue.committer_ready()
    return node


def close_node(node: Node) -> None:
    for sock in (*node.put_sockets, *node.get_sockets, *(end for pair in node.passing for end in pair)):
        sock.close()
    node.queue.close()


class Processes:
    """Workers of a node as children of this process, which answers what they hand over."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.pids = dict.fromkeys(range(node.queue.workers), 0)
        self.clients: list[socket.socket] = []
        self.answering = True

    def start(self, slot: int) -> None:
        """Forks it, and waits until it holds no port but its own."""
        told, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            code = 99
            try:
                # As the pool does: a port that a child holds by chance takes connections that nobody accepts.
                for sock in (*self.node.put_sockets, *self.node.get_sockets):
                    if sock not in (self.node.put_sockets[slot], self.node.get_sockets[slot]):
                        sock.close()
                os.write(tell, b"!")
                code = worker_main(self.node, slot, EchoServer)
            finally:
                os._exit(code)
        self.pids[slot] = pid
        os.close(tell)
        assert os.read(told, 1) == b"!"
        os.close(told)

    def wait(self, slot: int) -> int:
        """Its exit code, negative for a signal."""
        result: list[int] = []

        def ended() -> bool:
            pid, status = os.waitpid(self.pids[slot], os.WNOHANG)
            if pid:
                result.append(os.waitstatus_to_exitcode(status))
            return bool(pid)

        self.until(ended)
        self.pids[slot] = 0
        return result[0]

    def commit(self) -> None:
        for slot in range(self.node.queue.workers):
            for _, cookie, place, count, _ in self.node.queue.take_runs(slot) if self.answering else ():
                self.node.queue.answer(slot, cookie, place, count, Status.SAVED)

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, "it never came"
            self.commit()
            select.select([], [], [], 0.002)

    def connect(self, sockets: list[socket.socket]) -> socket.socket:
        client = socket.create_connection(sockets[0].getsockname(), timeout=PATIENCE_S)
        self.clients.append(client)
        client.setblocking(False)
        return client

    def put(self) -> socket.socket:
        return self.connect(self.node.put_sockets)

    def receive(self, client: socket.socket, size: int) -> bytes:
        """`size` bytes, fewer at the end of the stream (or when it was reset)."""
        got = bytearray()
        ended: list[bool] = []

        def complete() -> bool:
            try:
                more = client.recv(size - len(got))
            except BlockingIOError:
                return False
            except ConnectionResetError:
                more = b""
            got.extend(more)
            if not more:
                ended.append(True)
            return bool(ended) or len(got) == size

        self.until(complete)
        return bytes(got)

    def counter(self, name: str) -> int:
        rows = range(_queue.ROW_WORKER, _queue.ROW_WORKER + self.node.queue.workers)
        return sum(self.node.queue.counter_row(row)[metrics.INDEX[name]] for row in rows)

    def close(self) -> None:
        for client in self.clients:
            client.close()
        for pid in self.pids.values():
            if pid:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        close_node(self.node)


@contextmanager
def running(workers: int, **config: Any) -> Iterator[Processes]:
    processes = Processes(make_node(workers, **config))
    try:
        for slot in range(workers):
            processes.start(slot)
        yield processes
    finally:
        processes.close()


class TestProcesses:
    def test_a_frame_is_answered(self) -> None:
        with running(1) as workers:
            client = workers.put()
            client.send(frames(100, 50))
            assert workers.receive(client, 450) == acks(100, 50)

    @pytest.mark.parametrize("attempt", range(10))
    def test_four_connections_on_two_workers_end_up_two_and_two(self, attempt: int) -> None:
        with running(2) as workers:
            puts = [workers.put() for _ in range(4)]
            gets = [workers.connect(workers.node.get_sockets) for _ in range(4)]
            for i, client in enumerate(puts):
                client.send(frame(i))
                assert workers.receive(client, 9) == ack(i)
            for client in gets:
                client.send(b"hello")
                assert workers.receive(client, 5) == b"hello"
            workers.until(
                lambda: [workers.node.queue.connections(slot) for slot in (0, 1)] == [(2, 2), (2, 2)]
            )
            for client in (*puts, *gets):
                client.close()
            workers.until(
                lambda: [workers.node.queue.connections(slot) for slot in (0, 1)] == [(0, 0), (0, 0)]
            )

    def test_all_on_one_listener_are_passed_on(self) -> None:
        """Nobody but worker 0 listens on the port."""
        with running(3) as workers:
            node = workers.node
            for slot in (1, 2):
                os.kill(workers.pids[slot], signal.SIGKILL)
                workers.wait(slot)
            # Replacements which take what is passed to them, but whose own port is one that nobody knows.
            for slot, sock in zip((1, 2), listeners(2), strict=True):
                node.put_sockets[slot].close()
                node.put_sockets[slot] = sock
                workers.start(slot)
            clients = [workers.put() for _ in range(9)]
            for i, client in enumerate(clients):
                client.send(frame(i))
                assert workers.receive(client, 9) == ack(i)
            assert [node.queue.connections(slot)[0] for slot in range(3)] == [3, 3, 3]
            assert workers.counter("PUT_PASSED") == 6

    def test_a_worker_whose_arena_is_taken_back_gets_none(self) -> None:
        with running(2) as workers:
            queue = workers.node.queue
            os.kill(workers.pids[1], signal.SIGKILL)
            workers.wait(1)
            queue.retire(1)
            workers.node.put_sockets[1].close()
            clients = [workers.put() for _ in range(4)]
            for i, client in enumerate(clients):
                client.send(frame(i))
                assert workers.receive(client, 9) == ack(i)
            assert queue.connections(0)[0] == 4
            assert workers.counter("PUT_PASSED") == 0

    def test_the_replacement_of_a_worker_takes_what_was_passed_to_the_dead_one(self) -> None:
        with running(2) as workers:
            queue = workers.node.queue
            os.kill(workers.pids[1], signal.SIGKILL)
            workers.wait(1)
            workers.node.put_sockets[1].close()
            clients = [workers.put() for _ in range(2)]
            workers.until(lambda: workers.counter("PUT_PASSED") == 1)
            workers.node.put_sockets[1] = listeners(1)[0]
            queue.count_connection(1, True, -1)  # as reset_ring does
            workers.start(1)
            for i, client in enumerate(clients):
                client.send(frame(i))
                assert workers.receive(client, 9) == ack(i)
            workers.until(lambda: [queue.connections(slot)[0] for slot in (0, 1)] == [1, 1])

    def test_sigterm_answers_what_came_and_ends_with_0(self) -> None:
        with running(1) as workers:
            workers.answering = False
            busy, idle = workers.put(), workers.put()
            busy.send(frames(100, 5))
            workers.until(
                lambda: workers.node.queue.pending(0) == 1 and workers.node.queue.connections(0)[0] == 2
            )
            os.kill(workers.pids[0], signal.SIGTERM)
            assert workers.receive(idle, 1) == b""
            idle.close()
            workers.answering = True
            assert workers.receive(busy, 1000) == acks(100, 5)
            busy.close()
            assert workers.wait(0) == 0

    def test_sigterm_closes_the_ports_and_sigint_does_nothing(self) -> None:
        with running(1) as workers:
            client = workers.put()
            client.send(frame(1))
            assert workers.receive(client, 9) == ack(1)
            os.kill(workers.pids[0], signal.SIGINT)
            client.send(frame(2))
            assert workers.receive(client, 9) == ack(2)
            os.kill(workers.pids[0], signal.SIGTERM)
            assert workers.receive(client, 9) == b""
            client.close()
            assert workers.wait(0) == 0
            address = workers.node.put_sockets[0].getsockname()
            workers.node.put_sockets[0].close()
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(address, timeout=1)

    def test_a_peer_that_stays_does_not_hold_the_drain_up(self) -> None:
        with running(1) as workers:
            client = workers.put()
            client.send(frame(1))
            assert workers.receive(client, 9) == ack(1)
            os.kill(workers.pids[0], signal.SIGTERM)
            assert workers.wait(0) == 0

    def test_a_new_committer_gets_what_the_old_one_did_not_answer(self) -> None:
        with running(1) as workers:
            workers.answering = False
            queue = workers.node.queue
            client = workers.put()
            client.send(frames(100, 5))
            workers.until(lambda: queue.pending(0) == 1)
            assert len(queue.take_runs(0)) == 1
            queue.committer_gone()
            queue.committer_ready()
            workers.answering = True
            assert workers.receive(client, 45) == acks(100, 5)

    def test_a_bad_peer_is_refused_by_all_workers_for_a_while(self) -> None:
        with running(2, bad_peer_delay=3600.0, bad_frame_limit=1) as workers:
            client = workers.put()
            client.send(frame(1, b"", OTHER_KEYS.put))
            assert workers.receive(client, 100) == ack(1, Status.BAD_CHECKSUM)
            before = workers.counter("PUT_REFUSED_BAD_PEER")

            def both_refuse() -> bool:
                """The word to the sibling may still be on its way: refused several times in a row, it has arrived."""
                for _ in range(12):
                    again = workers.put()
                    try:
                        again.send(frame(2))
                    except OSError as error:
                        assert error.errno in (errno.EPIPE, errno.ECONNRESET)
                    if workers.receive(again, 9) != b"":
                        return False
                return True

            workers.until(both_refuse)
            assert workers.counter("PUT_REFUSED_BAD_PEER") >= before + 12

    def test_without_a_delay_a_bad_peer_may_come_back(self) -> None:
        with running(1, bad_frame_limit=1) as workers:
            for _ in range(3):
                client = workers.put()
                client.send(frame(1, b"", OTHER_KEYS.put))
                assert workers.receive(client, 100) == ack(1, Status.BAD_CHECKSUM)

    def test_64_connections_at_once(self) -> None:
        with running(2) as workers:
            clients = [workers.put() for _ in range(64)]
            for i, client in enumerate(clients):
                client.send(frames(1000 * (i + 1), 20))
            for i, client in enumerate(clients):
                got = workers.receive(client, 180)
                assert sorted(got[j : j + 9] for j in range(0, 180, 9)) == sorted(
                    ack(1000 * (i + 1) + j) for j in range(20)
                )


class FakeLoop:
    """The loop of one worker, whose events happen when the test says so."""

    def __init__(self) -> None:
        self.readers: dict[int, tuple[Callable[..., None], tuple[Any, ...]]] = {}
        self.timers: list[tuple[float, Callable[..., None], tuple[Any, ...]]] = []

    def add_reader(self, fd: int, call: Callable[..., None], *args: Any) -> None:
        if fd < 0:
            raise ValueError(f"invalid file descriptor {fd}")  # as a real one says of what was closed
        self.readers[fd] = (call, args)

    def remove_reader(self, fd: int) -> bool:
        return self.readers.pop(fd, None) is not None

    def call_later(self, delay: float, call: Callable[..., None], *args: Any) -> None:
        self.timers.append((delay, call, args))

    def readable(self, fd: int) -> None:
        call, args = self.readers[fd]
        call(*args)


def fill(outbox: socket.socket) -> int:
    """Until it takes no more; how many messages that were."""
    count = 0
    with suppress(BlockingIOError):
        while True:
            outbox.send(b"B127.0.0.9", socket.MSG_DONTWAIT)
            count += 1
    return count


@pytest.mark.parametrize("trouble", ["its inbox is full", "nobody has its inbox"])
@pytest.mark.parametrize("slot", range(4))
def test_bad_news_comes_to_all_siblings_but_those_that_cannot_hear(slot: int, trouble: str) -> None:
    """Wherever those stand, and however many they are."""
    others = [other for other in range(4) if other != slot]
    for deaf in itertools.chain.from_iterable(itertools.combinations(others, n) for n in range(4)):
        node = make_node(4)
        try:
            siblings = [Siblings(node, number) for number in range(4)]
            full = dict.fromkeys(deaf, 0)
            for number in deaf:
                if trouble == "its inbox is full":
                    full[number] = fill(node.passing[number][1])
                else:
                    node.passing[number][0].close()
            for address in ("192.0.2.7", "2001:db8::7"):
                siblings[slot].tell_of_bad_peer(address)
            told = [(b"B192.0.2.7", []), (b"B2001:db8::7", [])]
            for number in range(4):
                heard = number in others and number not in deaf
                if heard or number == slot or trouble == "its inbox is full":
                    expected = told if heard else [(b"B127.0.0.9", [])] * full.get(number, 0)
                    assert list(iter(siblings[number].receive, None)) == expected
        finally:
            close_node(node)


class OneWorker:
    """Worker 0 of a node of two, in this process; worker 1 is nobody."""

    def __init__(self, **config: Any) -> None:
        self.node = make_node(2, **config)
        self.node.put_sockets[1].close()  # so that all connections come to worker 0
        self.loop = FakeLoop()
        self.drained = 0
        self.put_server = PutServer(self.node.queue, 0, [KEYS])
        self.worker = Worker(
            cast(Any, self.loop),
            self.node,
            0,
            self.put_server,
            EchoServer(self.node, 0),
            self._count_drained,
        )
        self.worker.start()

    def _count_drained(self) -> None:
        self.drained += 1

    def __enter__(self) -> OneWorker:
        return self

    def __exit__(self, *_: object) -> None:
        self.worker.close()
        close_node(self.node)

    def connect(self) -> socket.socket:
        return socket.create_connection(self.node.put_sockets[0].getsockname(), timeout=PATIENCE_S)

    def accept(self) -> None:
        self.loop.readable(self.node.put_sockets[0].fileno())

    def take_messages(self) -> None:
        self.loop.readable(self.node.passing[0][0].fileno())

    def pass_to_it(self, message: bytes, *fds: int) -> None:
        socket.send_fds(self.node.passing[0][1], [message], fds)

    def tick(self) -> None:
        [(_, call, args)] = self.loop.timers
        self.loop.timers.clear()
        call(*args)

    def pass_time(self) -> None:
        """Until all timers of now have come."""
        due, self.loop.timers = self.loop.timers, []
        for _, call, args in due:
            call(*args)

    def counter(self, name: str) -> int:
        return self.node.queue.counter_row(_queue.ROW_WORKER)[metrics.INDEX[name]]


@contextmanager
def no_descriptors() -> Iterator[None]:
    """This process gets none any more."""
    limit, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open("/dev/null", os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


# What accept(2) names: errors of one connection, which is gone by that; and of the machine, for a while.
ONE_CONNECTION = [
    *(errno.ECONNABORTED, errno.EINTR, errno.EPERM, errno.EPROTO, errno.ENETDOWN, errno.ENOPROTOOPT),
    *(errno.EHOSTDOWN, errno.ENONET, errno.EHOSTUNREACH, errno.EOPNOTSUPP, errno.ENETUNREACH),
]
NONE_FOR_NOW = [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM]


class FailingOnce:
    """A listener of which one accept fails."""

    def __init__(self, listener: socket.socket, code: int) -> None:
        self._listener = listener
        self._codes = [code]

    def fileno(self) -> int:
        return self._listener.fileno()

    def accept(self) -> tuple[socket.socket, Any]:
        if self._codes:
            code = self._codes.pop()
            raise OSError(code, os.strerror(code))
        return self._listener.accept()


class TestOneWorker:
    def test_it_accepts_so_many_at_once_and_no_more(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "ACCEPTS_PER_TURN", 3)
        with OneWorker() as one:
            one.node.queue.retire(1)
            clients = [one.connect() for _ in range(5)]
            one.accept()
            assert one.put_server.connections == 3
            one.accept()
            one.accept()
            assert one.put_server.connections == 5
            for client in clients:
                client.close()

    def test_out_of_descriptors_it_pauses_and_says_so_once(self, caplog: pytest.LogCaptureFixture) -> None:
        with OneWorker() as one:
            one.node.queue.retire(1)
            client = one.connect()
            listener = one.node.put_sockets[0].fileno()
            one.loop.timers.clear()
            with no_descriptors():
                for _ in range(3):
                    one.accept()
                    assert listener not in one.loop.readers
                    [(delay, call, args)] = one.loop.timers
                    assert delay == limits.ACCEPT_PAUSE_S
                    one.loop.timers.clear()
                    call(*args)
                    assert listener in one.loop.readers
            assert len([r for r in caplog.records if "accepting nothing" in r.message]) == 1
            one.accept()
            assert one.put_server.connections == 1
            with no_descriptors():
                one.accept()
            assert len([r for r in caplog.records if "accepting nothing" in r.message]) == 2, (
                "it is another time"
            )
            client.close()

    @pytest.mark.parametrize("code", [*ONE_CONNECTION, *NONE_FOR_NOW, errno.EBADF], ids=errno.errorcode.get)
    def test_whatever_is_wrong_with_one_connection_keeps_no_other_out(self, code: int) -> None:
        """accept(2): "pending network errors on the new socket" are to be taken as EAGAIN is, and the next one accepted."""
        with OneWorker() as one:
            one.node.queue.retire(1)
            client, listener = one.connect(), one.node.put_sockets[0]
            failing = cast(socket.socket, FailingOnce(listener, code))
            port = one.worker._put
            one.loop.timers.clear()
            if code == errno.EBADF:
                with pytest.raises(OSError, match="Bad file"):
                    one.worker._accept(port, failing)
            else:
                one.worker._accept(port, failing)
            paused = code in NONE_FOR_NOW
            assert one.put_server.connections == (code in ONE_CONNECTION)
            assert (listener.fileno() in one.loop.readers, len(one.loop.timers)) == (not paused, paused)
            client.close()

    def test_a_connection_that_cannot_be_served_is_not_counted_any_more(self) -> None:
        with OneWorker() as one:
            client, refused = socket.socketpair()  # which takes no option of TCP
            one.node.queue.count_connection(0, True, 1)
            one.worker._adopt(one.worker._put, refused, ("127.0.0.1", 1))
            assert one.node.queue.connections(0) == (0, 0)
            assert one.counter("PUT_REFUSED_RESOURCES") == 1
            assert (one.put_server.connections, client.recv(1)) == (0, b"")
            client.close()

    def test_out_of_descriptors_silent_connections_give_way(self) -> None:
        with OneWorker() as one:
            one.node.queue.retire(1)
            silent = one.connect()
            one.accept()
            assert one.put_server.connections == 1
            client = one.connect()
            one.loop.timers.clear()
            with no_descriptors():
                one.accept()
                assert silent.recv(1) == b""
                [(_, call, args)] = one.loop.timers
                call(*args)
                one.accept()
                assert one.put_server.connections == 1
            client.close()
            silent.close()

    @pytest.mark.parametrize("code", NONE_FOR_NOW, ids=errno.errorcode.get)
    @pytest.mark.parametrize("listening", ["put", "get"])
    @pytest.mark.parametrize("fullest", ["put", "get"])
    def test_silent_connections_give_way_on_the_port_that_has_most(
        self, monkeypatch: pytest.MonkeyPatch, code: int, listening: str, fullest: str
    ) -> None:
        """Whichever port lacks a descriptor; but not when it is the machine that has none: that would help nobody here."""
        with OneWorker() as one:
            one.node.queue.retire(1)
            one.node.get_sockets[1].close()  # so that the connection waits here
            client = socket.create_connection(getattr(one.node, f"{listening}_sockets")[0].getsockname())
            asked: list[str] = []
            for name, port in (("put", one.worker._put), ("get", one.worker._get)):
                server = SimpleNamespace(
                    connections=2 if name == fullest else 1,
                    close_idle=lambda count, name=name: asked.append(name),
                    close=port.server.close,
                )
                monkeypatch.setattr(port, "server", server)
            port = one.worker._put if listening == "put" else one.worker._get
            failing = cast(socket.socket, FailingOnce(port.listeners[0], code))
            one.worker._accept(port, failing)
            assert asked == ([fullest] if code == errno.EMFILE else [])
            client.close()

    @pytest.mark.parametrize(
        "events",
        [order for n in range(1, 5) for order in itertools.permutations(("put", "get", "drain", "tick"), n)],
    )
    def test_a_drain_while_it_pauses(self, events: tuple[str, ...]) -> None:
        """Of either port or of both, before or after: what came whole is answered, and nothing is accepted any more."""
        with OneWorker() as one:
            one.node.queue.retire(1)
            client = one.connect()
            one.accept()
            client.sendall(frame(7))
            one.loop.readable(one.put_server.fileno())
            listening = {kind: getattr(one.node, f"{kind}_sockets")[0].fileno() for kind in ("put", "get")}
            for event in (*events, *(("drain",) if "drain" not in events else ())):
                if event == "drain":
                    one.worker.drain()
                elif event == "tick":
                    one.pass_time()
                elif listening[event] in one.loop.readers:
                    with no_descriptors():
                        one.loop.readable(listening[event])
                    assert listening[event] not in one.loop.readers
            for _ in range(3):
                one.pass_time()
                assert not one.loop.readers.keys() & {*listening.values(), one.node.passing[0][0].fileno()}
            assert one.drained == 0
            [(_, cookie, place, count, _)] = one.node.queue.take_runs(0)
            one.node.queue.answer(0, cookie, place, count, Status.SAVED)
            one.loop.readable(one.put_server.fileno())
            assert client.recv(100) == ack(7)
            client.close()
            one.loop.readable(one.put_server.fileno())
            assert one.drained

    def test_a_full_inbox_of_a_sibling_keeps_the_connection_here(self) -> None:
        with OneWorker() as one:
            fill(one.node.passing[1][1])
            clients = [one.connect() for _ in range(4)]
            one.accept()
            assert one.put_server.connections == 4
            assert one.node.queue.connections(1) == (0, 0)
            assert one.counter("PUT_PASSED") == 0
            for client in clients:
                client.close()

    def test_a_passed_connection_that_was_reset_on_its_way(self) -> None:
        with OneWorker() as one, socket.create_server(("127.0.0.1", 0)) as listener:
            client = socket.create_connection(listener.getsockname())
            passed, _ = listener.accept()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
            select.select([passed], [], [])
            one.node.queue.count_connection(0, True, 1)
            one.pass_to_it(b"P", passed.fileno())
            passed.close()
            one.take_messages()
            if one.put_server.connections:
                one.loop.readable(one.put_server.fileno())
            assert one.put_server.connections == 0
            assert one.node.queue.connections(0) == (0, 0)

    def test_a_message_without_its_descriptor(self) -> None:
        with OneWorker() as one:
            one.node.queue.count_connection(0, True, 1)
            one.pass_to_it(b"P")
            one.take_messages()
            assert one.node.queue.connections(0) == (0, 0)
            assert one.counter("PUT_REFUSED_RESOURCES") == 1

    def test_counts_that_stay_wrong_are_put_right(self) -> None:
        with OneWorker() as one:
            queue = one.node.queue
            queue.count_connection(0, True, 17)
            queue.count_connection(0, False, 5)
            one.tick()
            assert queue.connections(0) == (17, 5)  # they may be on their way
            queue.count_connection(0, False, 1)  # this one is
            one.tick()
            assert queue.connections(0) == (0, 6)
            one.tick()
            assert queue.connections(0) == (0, 0)

    def test_a_count_that_was_put_right_is_looked_at_anew(self) -> None:
        """As many connections as it was wrong by may be on their way by the next look: those are counted."""
        with OneWorker() as one:
            queue = one.node.queue
            queue.count_connection(0, True, 2)
            one.tick()
            one.tick()
            assert queue.connections(0) == (0, 0)
            queue.count_connection(0, True, 2)
            one.tick()
            assert queue.connections(0) == (2, 0)

    def test_connections_that_nobody_counted_are_counted(self) -> None:
        with OneWorker() as one, one.connect():
            one.accept()
            one.node.queue.count_connection(0, True, -1)
            one.tick()
            one.tick()
            assert one.node.queue.connections(0) == (1, 0)

    def test_what_was_passed_here_is_passed_on_to_who_has_fewer(self) -> None:
        """Both workers decided in the same moment: this one kept two, the sibling passed it a third."""
        with OneWorker() as one, socket.create_server(("127.0.0.1", 0)) as listener:
            queue = one.node.queue
            queue.count_connection(0, True, 3)
            queue.count_connection(1, True, 1)
            client = socket.create_connection(listener.getsockname())
            passed, _ = listener.accept()
            one.pass_to_it(b"P", passed.fileno())
            passed.close()
            one.take_messages()
            assert [queue.connections(slot)[0] for slot in (0, 1)] == [2, 2]
            message, [fd], _, _ = socket.recv_fds(one.node.passing[1][0], 16, 1)
            assert message == b"P"
            os.close(fd)
            client.close()

    def test_a_draining_worker_leaves_its_messages_to_its_replacement(self) -> None:
        with OneWorker() as one:
            one.worker.drain()
            one.worker.drain()
            assert one.node.passing[0][0].fileno() not in one.loop.readers
            assert one.drained == 1

    def test_while_the_node_drains_nothing_is_passed(self) -> None:
        with OneWorker() as one:
            one.node.queue.set_flag(_queue.DRAINING)
            clients = [one.connect() for _ in range(4)]
            one.accept()
            assert one.put_server.connections == 4
            for client in clients:
                client.close()

    def test_a_line_for_a_connection_closed_for_bad_frames(self, caplog: pytest.LogCaptureFixture) -> None:
        with OneWorker() as one:
            port = one.worker._put
            one.worker._peer_log.report(port, [(BAD_FRAMES, "[::1]:999", 3)])
            assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == [
                "[::1]:999: closed after 3 bad frames"
            ]


def test_the_servers_have_the_shape_that_a_worker_expects() -> None:
    def takes(server: FrameServer) -> FrameServer:
        return server

    node = make_node(1)
    server = takes(PutServer(node.queue, 0, [KEYS]))
    assert (server.connections, server.drained) == (0, False)
    server.close()
    close_node(node)


@pytest.mark.parametrize(
    ("address", "name"), [(("127.0.0.1", 5), "127.0.0.1:5"), (("::1", 5, 0, 0), "[::1]:5")]
)
def test_peer_names(address: tuple[Any, ...], name: str) -> None:
    assert peer_name(address) == name


class TestBadPeers:
    def test_without_a_delay_nobody_is_refused(self) -> None:
        peers = BadPeers(0.0)
        assert peers.offended("a", 0.0) == 0.0
        assert not peers.refused("a", 0.0)
        assert len(peers) == 0

    def test_the_delay_doubles_up_to_its_limit(self) -> None:
        peers = BadPeers(10.0)
        now = 0.0
        delays = []
        for _ in range(12):
            delays.append(peers.offended("a", now))
            assert peers.refused("a", now + delays[-1] - 0.1)
            now += delays[-1]
            assert not peers.refused("a", now)
        assert delays[:4] == [10.0, 20.0, 40.0, 80.0]
        assert delays[-1] == limits.BAD_PEER_DELAY_MAX_S

    def test_a_delay_above_the_limit_stays_as_it_was_set(self) -> None:
        peers = BadPeers(2 * limits.BAD_PEER_DELAY_MAX_S)
        assert [peers.offended("a", 0.0), peers.offended("a", 0.0)] == [2 * limits.BAD_PEER_DELAY_MAX_S] * 2

    def test_an_offence_is_forgotten(self) -> None:
        peers = BadPeers(10.0)
        peers.offended("a", 0.0)
        assert peers.offended("a", 19.9) == 20.0
        assert peers.offended("a", 19.9 + 40.0) == 10.0

    def test_others_are_not_concerned(self) -> None:
        peers = BadPeers(10.0)
        peers.offended("a", 0.0)
        assert not peers.refused("b", 1.0)

    def test_the_table_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "BAD_PEERS_MAX", 3)
        peers = BadPeers(10.0)
        for i in range(10):
            peers.offended(f"peer {i}", float(i))
            assert len(peers) <= 3
        assert peers.refused("peer 9", 10.0)
        assert not peers.refused("peer 0", 5.0)
        peers.offended("late", 1000.0)
        assert len(peers) == 1
