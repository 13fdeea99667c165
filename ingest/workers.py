"""A worker process: accepts connections on both frame ports, and lets `PutServer` and `GetServer` do the rest.

The event loop (uvloop) owns what is rare: accepting, passing connections on, signals, the clock. The connections
themselves live in an epoll of each server; the loop watches that one descriptor and calls `turn`. `sibling_handover` has
what goes between workers, `peer_log` what is logged of peers.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import signal
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import uvloop

from ingest import limits
from ingest.engine import _queue, metrics, reload
from ingest.engine.ports._put_server import PutServer
from ingest.engine.ports.bad_peers import BadPeers
from ingest.engine.ports.frame_port import FrameServer, Port, configure, peer_name
from ingest.engine.ports.peer_log import PeerLog
from ingest.engine.ports.sibling_handover import Siblings
from ingest.runtime import heartbeat, listeners, signals

if TYPE_CHECKING:
    from ingest.engine.node import Node

log = logging.getLogger(__name__)

# accept(2): what is wrong with one connection, which the kernel has dropped; the next one may be well.
_ACCEPT_NEXT = frozenset(
    (
        errno.ECONNABORTED,
        errno.EINTR,
        errno.EPERM,
        errno.EPROTO,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENOPROTOOPT,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENONET,
        errno.EOPNOTSUPP,
    )
)
_ACCEPT_LATER = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))


class Worker:
    """The work of one worker on an event loop. ``on_drained`` is called once, when all is answered and closed."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        node: Node,
        slot: int,
        put_server: FrameServer,
        get_server: FrameServer,
        on_drained: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._node = node
        self._queue = node.queue
        self._slot = slot
        puts, gets = node.sockets_of(slot)
        self._put = Port(b"P", puts, put_server)
        self._get = Port(b"G", gets, get_server)
        self._ports = {port.kind: port for port in (self._put, self._get)}
        self._siblings = Siblings(node, slot)
        self._inbox = self._siblings.inbox
        self._bad_peers = BadPeers(node.config.bad_peer_delay)
        self._peer_log = PeerLog(lambda: self._count("LINES_SUPPRESSED"), self._offended)
        self._counters = node.queue.counter_row(_queue.ROW_WORKER + slot)
        self._on_drained = on_drained
        self._draining = False

    def start(self) -> None:
        self._inbox.setblocking(False)
        self._loop.add_reader(self._inbox.fileno(), self._take_messages)
        if self._node.control is not None:
            self._loop.add_reader(self._node.control.fileno(), self._take_settings)
        for port in self._ports.values():
            self._loop.add_reader(port.server.fileno(), self._turn, port)
            for listener in port.listeners:
                listener.setblocking(False)
                self._loop.add_reader(listener.fileno(), self._accept, port, listener)
        self._tick()

    def drain(self) -> None:
        """Accepts no more, and ends each connection when what it sent is answered. What siblings have passed here and
        was not taken yet is left to the worker that replaces this one."""
        if self._draining:
            return
        self._draining = True
        self._loop.remove_reader(self._inbox.fileno())
        for port in self._ports.values():
            for listener in port.listeners:
                self._loop.remove_reader(listener.fileno())
                listener.close()
            self._peer_log.report(port, port.server.begin_drain())
        log.info(
            "draining %d put and %d get connections",
            self._put.server.connections,
            self._get.server.connections,
        )
        self._look_whether_drained()

    def close(self) -> None:
        for port in self._ports.values():
            port.server.close()

    # --- what the loop calls

    def _turn(self, port: Port) -> None:
        events = port.server.turn()
        if events:
            self._peer_log.report(port, events)
        if self._draining:
            self._look_whether_drained()

    def _tick(self) -> None:
        heartbeat.own().beat()
        now = time.monotonic()
        for port in self._ports.values():
            self._peer_log.report(port, port.server.tick(now))
        self._peer_log.tick(now)
        if self._draining:
            self._look_whether_drained()
        else:
            self._take_messages()
            for port in self._ports.values():
                self._correct_count(port)
        self._loop.call_later(limits.TICK_INTERVAL_S, self._tick)

    def _correct_count(self, port: Port) -> None:
        """Siblings go by this worker's count, which is wrong after one died with messages on their way to it.

        A connection on its way here is counted and not yet served, for a moment: only a difference that
        stays from one look to the next is an error, and is taken off as such, so that nothing counted meanwhile is lost.
        """
        counted = self._queue.connections(self._slot)[0 if port.is_put else 1]
        drift = port.server.connections - counted
        if drift != 0 and drift == port.drift:
            self._queue.count_connection(self._slot, port.is_put, drift)
            drift = 0
        port.drift = drift

    def _take_settings(self) -> None:
        """What the parent has reloaded. Connections that are open keep their certificate, not their keys."""
        assert self._node.control is not None
        settings = reload.receive(self._node)
        if settings is None:
            return
        for port in self._ports.values():
            configure(port.server, settings.keys, settings.key_names, settings.certificates)
        reload.use_log_level(settings.log_level)
        reload.confirm(self._node)

    def _look_whether_drained(self) -> None:
        if all(port.server.drained for port in self._ports.values()):
            self._on_drained()

    # --- accepting

    def _accept(self, port: Port, listener: socket.socket) -> None:
        for _ in range(limits.ACCEPTS_PER_TURN):
            try:
                connection, address = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _ACCEPT_LATER:
                    self._pause_accepting(port, listener, error)
                    return
                if error.errno not in _ACCEPT_NEXT:
                    raise
                continue
            port.out_of_descriptors = False
            self._place(port, connection, address)

    def _pause_accepting(self, port: Port, listener: socket.socket, error: OSError) -> None:
        # This process has as many as it may: silent ones keep nobody out. EMFILE comes when nobody waits, too.
        if error.errno == errno.EMFILE and listeners.has_waiting(listener):
            fullest = max(self._ports.values(), key=lambda port: port.server.connections)
            self._peer_log.report(fullest, fullest.server.close_idle(limits.ACCEPTS_PER_TURN))
        if not port.out_of_descriptors:
            log.error("accepting nothing for the moment: %s", error.strerror)
        port.out_of_descriptors = True
        self._loop.remove_reader(listener.fileno())
        self._loop.call_later(limits.ACCEPT_PAUSE_S, self._accept_again, port, listener)

    def _accept_again(self, port: Port, listener: socket.socket) -> None:
        if not self._draining:
            self._loop.add_reader(listener.fileno(), self._accept, port, listener)

    def _place(self, port: Port, connection: socket.socket, address: Any) -> None:
        """Refuses an accepted connection, passes it on, or keeps it."""
        if self._bad_peers.refused(address[0], time.monotonic()):
            self._peer_log.line(
                "refused for bad frames",
                logging.INFO,
                "%s: refused, bad frames came from there",
                peer_name(address),
            )
            self._refuse(port, connection, "BAD_PEER")
            return
        self._queue.count_connection(self._slot, port.is_put, 1)
        self._keep_or_pass_on(port, connection, address)

    def _keep_or_pass_on(self, port: Port, connection: socket.socket, address: Any) -> None:
        """What becomes of a connection that is counted as this worker's. One that was passed here may be passed on too:
        two workers that decide in the same moment do not see what the other one does."""
        sibling = self._siblings.with_room(port)
        if sibling is None or not self._siblings.pass_on(port, connection, sibling):
            self._adopt(port, connection, address)
        elif port.is_put:
            self._count("PUT_PASSED")

    def _refuse(self, port: Port, connection: socket.socket, reason: str) -> None:
        connection.close()
        self._count(f"{port.name.upper()}_REFUSED_{reason}")

    def _adopt(self, port: Port, connection: socket.socket, address: Any) -> None:
        """Gives a connection, which is counted already, to its server."""
        try:
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._peer_log.report(port, port.server.make_room())
            if not port.server.adopt(connection.detach(), peer_name(address)) and not self._draining:
                self._peer_log.line(
                    "refused over the limit",
                    logging.WARNING,
                    "%s: refused, this worker has %d %s connections, the limit is %d",
                    *(peer_name(address), port.server.connections, port.name, limits.CONNECTIONS_MAX),
                )
        except OSError as error:
            # It ended before it began, or the kernel has no memory to watch it: nobody else is concerned.
            self._peer_log.line(
                "not served", logging.INFO, "%s: not served: %s", peer_name(address), error.strerror
            )
            if connection.fileno() >= 0:
                self._uncount(port)
                self._refuse(port, connection, "RESOURCES")

    def _uncount(self, port: Port) -> None:
        self._queue.count_connection(self._slot, port.is_put, -1)

    # --- siblings

    def _take_messages(self) -> None:
        for _ in range(limits.ACCEPTS_PER_TURN):
            found = self._siblings.receive()
            if found is None:
                return
            message, descriptors = found
            if message[:1] == b"B":
                self._bad_peers.offended(message[1:].decode(), time.monotonic())
            elif message:
                self._take_passed(self._ports[message[:1]], descriptors)
            else:  # the server is ending
                self._loop.remove_reader(self._inbox.fileno())
                return

    def _take_passed(self, port: Port, descriptors: list[int]) -> None:
        if not descriptors:  # this process is out of descriptors: the kernel closed the connection
            log.error("a connection passed here was lost: too many open files")
            self._uncount(port)
            self._count(f"{port.name.upper()}_REFUSED_RESOURCES")
            return
        connection = socket.socket(fileno=descriptors[0])
        try:
            address = connection.getpeername()
        except OSError:  # reset on its way
            self._uncount(port)
            connection.close()
            return
        self._keep_or_pass_on(port, connection, address)

    def _offended(self, address: str) -> float:
        """A connection from there was closed for bad frames: for how many seconds the address is refused now."""
        delay = self._bad_peers.offended(address, time.monotonic())
        if delay != 0:
            self._siblings.tell_of_bad_peer(address)
        return delay

    def _count(self, counter: str) -> None:
        self._counters[metrics.INDEX[counter]] += 1


def make_put_server(node: Node, slot: int) -> FrameServer:
    server = PutServer(node.queue, slot, node.keys.accepted, bad_frame_limit=node.config.bad_frame_limit)
    configure(server, node.keys, node.key_names, node.certificates)
    return server


def make_get_server(node: Node, slot: int) -> FrameServer:
    # Here and not above: a worker for puts alone, as in the tests, runs without the reading half.
    from ingest.engine.ports._get_server import GetServer
    from ingest.store.layouts.layout import make_reader

    reader = make_reader(node.store, node.keys.all)
    server = GetServer(node.queue, slot, reader, node.keys.accepted)
    configure(server, node.keys, node.key_names, node.certificates)
    return server


def worker_main(
    node: Node, slot: int, get_server: Callable[[Node, int], FrameServer] = make_get_server
) -> int:
    """Runs worker ``slot`` in this process until it has drained when it was told to end; returns the exit code.

    SIGINT is ignored: the parent decides what it means. An exception that nobody expected ends the process, so that the
    parent replaces it: its connections break, and clients send again what was not acked.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # uvloop loses a signal that comes after add_signal_handler and before the loop runs: the one to end waits until it does.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signals.end()})
    loop = uvloop.new_event_loop()
    failures: list[BaseException] = []

    def fail(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        failures.append(context.get("exception") or RuntimeError(context["message"]))
        loop.stop()

    loop.set_exception_handler(fail)
    worker = Worker(loop, node, slot, make_put_server(node, slot), get_server(node, slot), loop.stop)
    try:
        loop.add_signal_handler(signals.end(), worker.drain)
        worker.start()
        loop.call_soon(signal.pthread_sigmask, signal.SIG_UNBLOCK, {signals.end()})
        loop.run_forever()
    finally:
        worker.close()
        loop.close()
    if failures:
        raise failures[0]
    log.info("drained")
    return 0
