"""Clients that have to do with no process that stands still: they are answered meanwhile."""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection
from typing import Any, TypeVar

import node_rig
from gateway_rig import Connection

from faults.history import FIRST, PATIENCE_S, RANGE, WRITERS, Load
from faults.object_load import ENDED, ObjectClient, WrongAnswer
from faults.served_node import HTTP, WORKERS, ServedNode, has
from ingest import ticket
from ingest.status import Status

ASK_S = 4.0  # for one answer: less than until a silent process is replaced
CONNECTIONS_MAX = 200  # tries of a connection to one of two processes, each of which gets about half of them
C = TypeVar("C")
TICKETS = 1296  # of the bystanders of one case
# What a request needs besides the process that has its connection.
WRITE_FRAMES = ("committer",)
READ_OBJECTS = WORKERS  # whichever a gateway's process is connected to
WRITE_OBJECTS = (*WORKERS, "committer", "catalog")


class Bystanders:
    """Of one case, ``number`` of its service. ``away``: processes that will stand still, or be killed.

    Made before that, since the kernel gives connections to a process that stands still too.
    """

    def __init__(self, service: ServedNode, away: Collection[str], number: int) -> None:
        self._service = service
        self._away = away
        self._next = FIRST + WRITERS * RANGE + number * TICKETS  # tickets of nobody else
        self._saved: list[int] = []
        pids = service.processes()
        http, workers = (
            {name: pids[name] for name in names if name not in away} for names in (HTTP, WORKERS)
        )
        self.http = {name: self._one_of(pid, self._connect_http) for name, pid in http.items()}
        self.puts = {name: self._one_of(pid, self._connect_put) for name, pid in workers.items()}
        self.gets = {name: self._one_of(pid, self._connect_get) for name, pid in workers.items()}
        # To ask whether the gateway is well, from another thread.
        self.witness = self._one_of(next(iter(http.values())), self._connect_http) if http else None

    def _one_of(self, pid: int, connect: Callable[[], C]) -> C:
        """A connection that this process has. Those that others have are kept until then: who has many gets no more."""
        others: list[C] = []
        try:
            while len(others) < CONNECTIONS_MAX:
                connection = connect()
                if has(pid, socket_of(connection)):
                    return connection
                others.append(connection)
        finally:
            for connection in others:
                close(connection)
        raise AssertionError(f"of {CONNECTIONS_MAX} connections process {pid} took none")

    def _connect_http(self) -> Connection:
        connection = Connection(self._service.http_address)
        connection.request("GET", "/alive")  # then it is accepted
        return connection

    def _connect_put(self) -> node_rig.Connection:
        connection = node_rig.Connection(self._service.put_address, self._service.keys, PATIENCE_S)
        self._put(connection)
        return connection

    def _connect_get(self) -> socket.socket:
        sock = socket.create_connection(self._service.get_address, PATIENCE_S)
        self._get(sock)
        return sock

    # --- what they ask

    def _put(self, connection: node_rig.Connection) -> None:
        index, self._next = self._next, self._next + 1
        (status,) = connection.put([index]).values()
        if status is not Status.SAVED:
            raise WrongAnswer(f"a put of {ticket.format(index)}: {status.name}")
        self._saved.append(index)

    def _get(self, sock: socket.socket) -> None:
        if not self._saved:
            with node_rig.Connection(self._service.put_address, self._service.keys) as connection:
                self._put(connection)
        ((status, data),) = node_rig.get_range(sock, self._service.keys, self._saved[0], 1)
        if (status, data) != (Status.SAVED, node_rig.data_of(self._saved[0])):
            raise WrongAnswer(f"a get of {ticket.format(self._saved[0])}: {status.name}, other bytes")

    def prepare(self, client: ObjectClient) -> None:
        """Stores the object that is read while something stands still."""
        for connection in self.http.values():
            if client.put(connection, client.new_name()):
                return
        # Else no HTTP process is left to ask.

    def ask(self, client: ObjectClient) -> tuple[list[str], int]:
        """Everything that needs nobody who is away. A line for each that was not answered as it should be, and how many
        were."""
        for connection in (*self.http.values(), *self.puts.values(), *self.gets.values()):
            socket_of(connection).settimeout(ASK_S)
        losses: list[str] = []
        asked = 0

        def expect(what: str, needs: Collection[str], call: object, *arguments: object) -> None:
            nonlocal asked
            if any(name in self._away for name in needs):
                return
            asked += 1
            try:
                if call(*arguments) is False:  # type: ignore[operator]
                    losses.append(f"{what}: 503")
            except (*ENDED, WrongAnswer) as error:
                losses.append(f"{what}: {type(error).__name__}: {error}")

        for name, sock in self.gets.items():
            expect(f"a get at {name}", (), self._get, sock)
        for name, connection in self.puts.items():
            expect(f"a put at {name}", WRITE_FRAMES, self._put, connection)
        for name, http in self.http.items():
            expect(f"GET /alive at {name}", (), http.request, "GET", "/alive")
            if client.live:
                expect(f"GET of an object at {name}", READ_OBJECTS, client.get, http, client.live[-1])
            expect(f"PUT of an object at {name}", WRITE_OBJECTS, client.put, http, client.new_name())
        still = ", ".join(sorted(self._away)) or "none"
        return [f"away: {still}; not answered within {ASK_S:.0f} s: {loss}" for loss in losses], asked

    def close(self, load: Load) -> None:
        """What they were told goes into the history."""
        load.history.append("saved", self._saved)
        if self.witness is not None:
            self.witness.close()
        for connection in (*self.http.values(), *self.gets.values(), *self.puts.values()):
            close(connection)


def socket_of(connection: Any) -> socket.socket:
    sock: socket.socket = getattr(connection, "sock", connection)
    return sock


def close(connection: Any) -> None:
    if isinstance(connection, Connection):
        connection.close()
    else:
        socket_of(connection).close()
