"""Clients that have to do with no process that stands still: they are answered meanwhile."""

from __future__ import annotations

import socket
from collections.abc import Collection
from contextlib import suppress

import node_rig
from gateway_rig import Connection

from faults.history import FIRST, RANGE, WRITERS, Load
from faults.object_load import ENDED, ObjectClient, WrongAnswer
from faults.served_node import HTTP, WORKERS, ServedNode
from ingest import ticket
from ingest.status import Status

ASK_S = 4.0  # for one answer: less than until a silent process is replaced
CONNECTIONS_MAX = 200  # tries of a connection to one of two processes, each of which gets about half of them
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
        self._known = self._next
        self.http: dict[str, Connection] = {}
        self.puts: dict[str, node_rig.Connection] = {}
        self.gets: dict[str, socket.socket] = {}
        self._saved: list[int] = []
        for name in HTTP:
            if name not in away:
                self.http[name] = self.connect_http(name)
        for name in WORKERS:
            if name not in away:
                self.puts[name] = self._connect_put(name)
                self.gets[name] = self._connect_get(name)

    def connect_http(self, name: str) -> Connection:
        for _ in range(CONNECTIONS_MAX):
            connection = Connection(self._service.http_address)
            connection.request("GET", "/alive")  # then it is accepted
            if self._service.owner(connection.sock) == name:
                connection.sock.settimeout(ASK_S)
                return connection
            connection.close()
        raise AssertionError(f"of {CONNECTIONS_MAX} connections {name} took none")

    def _connect_put(self, name: str) -> node_rig.Connection:
        for _ in range(CONNECTIONS_MAX):
            connection = node_rig.Connection(self._service.put_address, self._service.keys)
            self._put(connection)
            if self._service.owner(connection.sock) == name:
                connection.sock.settimeout(ASK_S)
                return connection
            connection.sock.close()
        raise AssertionError(f"of {CONNECTIONS_MAX} connections {name} took none")

    def _connect_get(self, name: str) -> socket.socket:
        for _ in range(CONNECTIONS_MAX):
            sock = socket.create_connection(self._service.get_address, ASK_S)
            self._get(sock)
            if self._service.owner(sock) == name:
                return sock
            sock.close()
        raise AssertionError(f"of {CONNECTIONS_MAX} connections {name} took none")

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
        for connection in (*self.http.values(), *self.gets.values()):
            connection.close()
        for put in self.puts.values():
            with suppress(OSError):
                put.sock.close()
