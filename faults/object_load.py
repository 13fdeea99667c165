"""Load of objects over HTTP with a memory: writers, readers who take their time, and the judgement of what is there.

A name has one writer, so what it may have is known (`object_history`). A request without an answer, or with one that says
"try again", may be done at any later time. So that name is left alone from then on: it has what it had, or what was tried.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from gateway_rig import Answer, Broken, Connection

from faults.history import PATIENCE_S
from faults.object_history import Content, ObjectHistory, Promises, content_of, read
from faults.served_node import ServedNode

WRITERS, READERS = 3, 2
LIVE_MAX = 12  # names that a writer comes back to
SMALL = (0, 10, 1458, 3000)  # bytes of objects: three of four
LARGE = (20_000, 150_000, 1_500_000, 5_000_000)  # … and the others
LARGE_IN_FILES = (20_000, 150_000)  # where each chunk is a file
STEPS_OF_A_CONNECTION = 12  # then it is another process's turn
PAUSE_S = 0.02
RECEIVE_SIZE, RECEIVE_PAUSE_S = 256 << 10, 0.03  # of a slow reader: 5 MB take it half a second
TRY_AGAIN = 503
ENDED = (OSError, Broken, ValueError, IndexError)  # of a connection, anywhere in an answer


class WrongAnswer(AssertionError):
    """One that breaks a guarantee."""


class ObjectClient:
    """One client's requests, each noted in its history before it is sent and when it is answered."""

    def __init__(self, path: Path, prefix: str, seed: int, large: tuple[int, ...] = LARGE) -> None:
        self.history = ObjectHistory(path)
        self.prefix = prefix
        self.large = large
        self.random = random.Random(seed)
        self.live: list[str] = []
        self.tried: dict[str, list[Content]] = {}  # whatever became of it
        self.touched: set[str] = set()  # since the last check
        self.puts = self.deletes = self.gets = 0  # that were answered
        self._names = 0
        self._contents = seed << 24

    def new_name(self) -> str:
        self._names += 1
        return f"{self.prefix}-{self._names}"

    def new_content(self) -> Content:
        self._contents += 1
        size = self.random.choice(self.large if self.large and self.random.random() < 0.25 else SMALL)
        return Content(self._contents, size)

    def put(self, connection: Connection, name: str, slowly: bool = False) -> bool:
        """Whether it was answered that it is stored."""
        content = self.new_content()
        body = content_of(content)
        answer = self._change(connection, name, content, self._pieces(body) if slowly else body)
        self.puts += answer
        return answer

    def delete(self, connection: Connection, name: str) -> bool:
        answer = self._change(connection, name, None, None)
        self.deletes += answer
        return answer

    def get(self, connection: Connection, name: str) -> bool:
        """Whether it was answered with what it should have."""
        answer: Answer = connection.request("GET", f"/objects/{name}")
        found = compare(name, answer, self.history.promises)
        if found:
            raise WrongAnswer(found)
        answered = bool(answer.status != TRY_AGAIN)
        self.gets += answered
        return answered

    def _change(
        self, connection: Connection, name: str, content: Content | None, body: bytes | Iterator[bytes] | None
    ) -> bool:
        method = "PUT" if content else "DELETE"
        if name in self.live:
            self.live.remove(name)  # until there is an answer
        self.touched.add(name)
        if content:
            self.tried.setdefault(name, []).append(content)
        self.history.append("try", name, content)
        answer = connection.request(method, f"/objects/{name}", body)
        if answer.status == TRY_AGAIN:
            return False
        if answer.status != 200:
            raise WrongAnswer(f"{method} {name}: {answer.status} {answer.body[:200]!r}")
        self.history.append("done", name, content)
        self.live.append(name)
        return True

    def _pieces(self, body: bytes) -> Iterator[bytes]:
        """What is sent in a fifth of a second: it is under way when something happens."""
        size = max(1, -(-len(body) // 4))
        for at in range(0, len(body), size):
            yield body[at : at + size]
            time.sleep(0.05)

    def close(self) -> None:
        self.history.close()


class ObjectWriter(threading.Thread):
    """A client that goes on until it is ended. `wrong` collects answers that break a guarantee."""

    def __init__(
        self, service: ServedNode, path: Path, number: int, seed: int, large: tuple[int, ...]
    ) -> None:
        super().__init__(name=f"object-writer-{number}", daemon=True)
        self.service = service
        self.client = ObjectClient(path, f"w{number}", seed, large)
        self.random = random.Random(seed)
        self.turn = threading.Lock()  # held while a request is under way
        self.ended = threading.Event()
        self.done = 0  # requests that were answered as they should be
        self.breaks = 0
        self.wrong: list[str] = []

    def run(self) -> None:
        while not self.ended.is_set():
            try:
                with Connection(self.service.http_address) as connection:
                    for _ in range(STEPS_OF_A_CONNECTION):
                        if self.ended.is_set():
                            return
                        with self.turn:
                            self.done += self.step(connection)
                        self.ended.wait(PAUSE_S)
            except WrongAnswer as error:
                self.wrong.append(str(error))
                return
            except ENDED:
                self.breaks += 1
                self.ended.wait(0.02)

    def step(self, connection: Connection) -> bool:
        client, kind = self.client, self.random.random()
        if kind < 0.3 and client.live:
            return client.get(connection, self.random.choice(client.live))
        if kind < 0.45 and client.live:
            name = self.random.choice(client.live)
            if client.history.promises.possible(name) != [None]:
                return client.delete(connection, name)
        name = client.new_name() if len(client.live) < LIVE_MAX else self.random.choice(client.live)
        return client.put(connection, name, slowly=self.random.random() < 0.15)


class ObjectReader(threading.Thread):
    """Reads what others write, slowly: what is replaced and deleted meanwhile comes whole, or its connection breaks."""

    def __init__(self, service: ServedNode, clients: list[ObjectClient], number: int, seed: int) -> None:
        super().__init__(name=f"object-reader-{number}", daemon=True)
        self.service = service
        self.clients = clients
        self.random = random.Random(seed)
        self.ended = threading.Event()
        self.done = 0  # that came whole
        self.breaks = 0
        self.wrong: list[str] = []

    def run(self) -> None:
        while not self.ended.is_set():
            client = self.random.choice(self.clients)
            names = list(client.tried)[-LIVE_MAX:]
            try:
                if names:
                    self._read(client, self.random.choice(names))
            except ENDED:
                self.breaks += 1
            self.ended.wait(PAUSE_S)

    def _read(self, client: ObjectClient, name: str) -> None:
        with Connection(self.service.http_address) as connection:
            connection.send(connection.head("GET", f"/objects/{name}"))
            status, headers = connection.answer_head()
            body = bytearray()
            size = int(headers["content-length"])
            while len(body) < size and not self.ended.is_set():
                body += connection.exactly(min(RECEIVE_SIZE, size - len(body)))
                if size > RECEIVE_SIZE:
                    time.sleep(RECEIVE_PAUSE_S)
        if status == 200 and len(body) == size:
            same_size = [one for one in list(client.tried[name]) if one.size == size]
            if not any(content_of(one) == body for one in same_size):
                self.wrong.append(f"object {name}: a reader got {size} bytes that nobody ever put there")
        elif status not in (200, 404, TRY_AGAIN):
            self.wrong.append(f"object {name}: a reader was answered {status} {bytes(body[:200])!r}")
        self.done += 1


class ObjectLoad:
    """Writers and readers on one service, and the judgement of what they were told."""

    def __init__(
        self, service: ServedNode, directory: Path, seed: int, large: tuple[int, ...] = LARGE
    ) -> None:
        self.service = service
        self.writers = [
            ObjectWriter(service, directory / f"objects-{number}.txt", number, seed * 10 + number, large)
            for number in range(WRITERS)
        ]
        self.aside = ObjectClient(directory / "objects-aside.txt", "aside", seed * 10 + WRITERS, ())
        self.readers = [
            ObjectReader(service, [writer.client for writer in self.writers], number, seed * 10 + number)
            for number in range(READERS)
        ]
        for client in self.all:
            client.start()

    @property
    def all(self) -> list[ObjectWriter | ObjectReader]:
        return [*self.writers, *self.readers]

    @property
    def clients(self) -> list[ObjectClient]:
        return [*(writer.client for writer in self.writers), self.aside]

    @property
    def wrong(self) -> list[str]:
        return [line for one in self.all for line in one.wrong]

    def check_new(self) -> list[str]:
        """Reads back every name that was changed since the last check, while its writer rests."""
        losses: list[str] = []
        for writer in self.writers:
            with writer.turn:
                losses += self._check(writer.client.history.promises, writer.client.touched)
                writer.client.touched = set()
        losses += self._check(self.aside.history.promises, self.aside.touched)
        self.aside.touched = set()
        return self.wrong + losses

    def check_all(self) -> tuple[list[str], int]:
        """Reads back every name that the files have; and how many that were. The writers must have ended."""
        losses, count = [], 0
        for client in self.clients:
            promises = read(client.history.path)
            losses += self._check(promises, promises.names())
            count += len(promises.names())
        return self.wrong + losses, count

    def _check(self, promises: Promises, names: list[str] | set[str]) -> list[str]:
        losses = [read_back(self.service.http_address, name, promises) for name in sorted(names)]
        return [loss for loss in losses if loss]

    def end(self) -> None:
        for one in self.all:
            one.ended.set()
        for one in self.all:
            one.join(2 * PATIENCE_S)
        for client in self.clients:
            client.close()


def read_back(address: tuple[str, int], name: str, promises: Promises) -> str:
    """What is wrong with an object, in words; empty when it is as it should be. "Try again" is heeded for a minute."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            with Connection(address) as connection:
                answer = connection.request("GET", f"/objects/{name}")
            if answer.status != TRY_AGAIN:
                return compare(name, answer, promises)
            said = f"{answer.status} {answer.body[:200]!r}"
        except ENDED as error:
            said = f"{type(error).__name__}: {error}"
        if time.monotonic() > deadline:
            return f"object {name}: cannot be read for {PATIENCE_S:.0f} s: {said}"
        time.sleep(0.05)


def compare(name: str, answer: Answer, promises: Promises) -> str:
    """What is wrong with the answer to a GET."""
    possible = promises.possible(name)
    expected = " or ".join(str(one) if one else "nothing" for one in possible)
    if answer.status == TRY_AGAIN:
        return ""
    if answer.status == 404:
        return "" if None in possible else f"object {name}: expected {expected}, found nothing"
    if answer.status != 200:
        return f"object {name}: expected {expected}, found {answer.status} {answer.body[:200]!r}"
    if any(one and one.size == len(answer.body) and content_of(one) == answer.body for one in possible):
        return ""
    return f"object {name}: expected {expected}, found {len(answer.body)} other bytes"
