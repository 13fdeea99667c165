"""Clients of a gateway who know what they were told: they put, get, delete and list their objects, and judge each answer."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from gateway_rig import Answer, Broken, Connection

from faults.object_history import Content, ObjectHistory, Promises, content_of

PATIENCE_S = 60.0  # for one answer: what a gateway does within a second on a quiet machine
DONE = (200, 201, 204)
REFUSED = (503, 507)  # nothing was changed
FAILED = 502  # for chunks whose place in their pack was taken by somebody else behind the log: nothing was changed either
NAMES = 16  # of one client
PAUSE_S = 0.01  # before another try to connect
REFUSED_PAUSE_S = 0.1  # after an upload that was refused: its tickets become garbage, whose deletes take room in layout tree
SMALL = (0, 1, 1457, 1458, 1459, 5000, 60_000, 200_000)  # bytes; a chunk has 1458


class Loss(Exception):
    """An answer that breaks a guarantee, or none."""


class Gone(Exception):
    """The connection ended because the node was ended meanwhile: what the request did is open."""


@dataclass
class Address:
    """Where the gateway is now. `ends` grows before it is made to end: what broke after that may be broken by it."""

    at: tuple[str, int] = ("", 0)
    ends: int = 0
    down: bool = False


@dataclass(frozen=True)
class Sizes:
    """Bytes of the objects of one client: of its largest one, and of all together."""

    largest: int
    together: int


@dataclass
class Teller:
    """Asks one thing at a time, and appends what it was told to its history. Not for two threads at once."""

    address: Address
    history: ObjectHistory
    patience: float = PATIENCE_S
    counts: Counter[str] = field(default_factory=Counter)
    _connection: Connection | None = None
    _ends: int = -1

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        """Loss for no answer, or half of one, of a node that was not made to end; Gone of one that was."""
        fields = {name.replace("_", "-"): text for name, text in headers.items()}
        if self._ends != self.address.ends:
            self.close()
        ends = self._ends = self.address.ends
        try:
            if self._connection is None:
                self._connection = Connection(self.address.at)
                self._connection.sock.settimeout(self.patience)
            answer = self._connection.request(method, path, body, fields)
        except (OSError, Broken, ValueError, IndexError, KeyError) as error:
            self.close()
            if self.address.down or ends != self.address.ends:
                raise Gone from None
            what = f"no answer within {self.patience:g} s" if isinstance(error, TimeoutError) else repr(error)
            raise Loss(f"{method} {path}: {what}") from None
        if answer.headers.get("connection") == "close":
            self.close()
        if answer.status in REFUSED and (self.address.down or ends != self.address.ends) and method == "GET":
            raise Gone  # it is about to end
        return answer

    def close(self) -> None:
        if self._connection is not None:
            with suppress(OSError):
                self._connection.close()
            self._connection = None

    def put(self, name: str, content: Content) -> bool:
        """Whether it was stored."""
        self.history.append("try", name, content)
        answer = self.ask("PUT", f"/objects/{name}", content_of(content))
        if answer.status in DONE:
            self.history.append("done", name, content)
            self.counts["puts"] += 1
            return True
        if answer.status not in (*REFUSED, FAILED):
            raise Loss(f"PUT {name}: {_shown(answer)}")
        self.history.append("refused", name, content)
        self.counts["failed_puts" if answer.status == FAILED else "refused_puts"] += 1
        return False

    def delete(self, name: str) -> None:
        """It is there."""
        ends = self.address.ends
        self.history.append("try", name, None)
        answer = self.ask("DELETE", f"/objects/{name}")
        if answer.status in DONE:
            self.history.append("done", name, None)
            self.counts["deletes"] += 1
            return
        if answer.status in REFUSED and (self.address.down or ends != self.address.ends):
            self.history.append("refused", name, None)
            raise Gone
        raise Loss(f"DELETE {name}, which is there: {_shown(answer)}")

    def get(self, name: str) -> None:
        """All of it, or that it is not there."""
        answer = self.ask("GET", f"/objects/{name}")
        self.history.append("seen", name, seen(self.history.promises, name, answer))
        self.counts["gets"] += 1

    def get_range(self, name: str, first: int, last: int) -> None:
        """`last` is inclusive. It is there, and known."""
        (content,) = self.history.promises.possible(name)
        assert content is not None and last < content.size
        answer = self.ask("GET", f"/objects/{name}", Range=f"bytes={first}-{last}")
        if (
            answer.status != 206
            or answer.headers.get("content-range") != f"bytes {first}-{last}/{content.size}"
        ):
            raise Loss(f"GET {name}, bytes {first}-{last} of {content}: {_shown(answer)}")
        if answer.body != content_of(content)[first : last + 1]:
            raise Loss(f"GET {name}, bytes {first}-{last} of {content}: other bytes")
        self.counts["ranges"] += 1

    def list(self, prefix: str, limit: int) -> None:
        """Page by page. All names with the prefix are ours, and known."""
        found: dict[str, int] = {}
        after: str | None = ""
        while after is not None:
            answer = self.ask("GET", f"/objects/?prefix={prefix}&after={after}&limit={limit}")
            if answer.status != 200:
                raise Loss(f"the list of {prefix}: {_shown(answer)}")
            page = json.loads(answer.body)
            found |= {one["name"]: one["size"] for one in page["objects"]}
            after = page["next"]
        promises = self.history.promises
        wanted = {name: content.size for name in promises.names() if (content := promises.possible(name)[0])}
        if found != wanted:
            raise Loss(
                f"the list of {prefix}: {sorted(set(wanted.items()) ^ set(found.items()))} are one-sided"
            )
        self.counts["lists"] += 1


def seen(promises: Promises, name: str, answer: Answer) -> Content | None:
    """What the answer to a GET shows; Loss unless it is one of what the name may have."""
    possible = promises.possible(name)
    told = " or ".join(str(content or "no object") for content in possible)
    if answer.status == 404 and None in possible:
        return None
    if answer.status != 200:
        raise Loss(f"GET {name}: expected {told}, found {_shown(answer)}")
    for content in possible:
        if content is not None and answer.body == content_of(content):
            return content
    raise Loss(f"GET {name}: expected {told}, found {len(answer.body)} other bytes")


def read_back(address: Address, promises: Promises, patience: float = PATIENCE_S) -> list[str]:
    """Reads all that a history names; a line for each name that is not as it was acknowledged."""
    losses: list[str] = []
    for name in promises.names():
        connection = None
        try:
            connection = Connection(address.at)
            connection.sock.settimeout(patience)
            seen(promises, name, connection.request("GET", f"/objects/{name}"))
        except TimeoutError:
            return [*losses, f"GET {name}: no answer within {patience:g} s"]
        except (OSError, Broken, ValueError, IndexError, KeyError) as error:
            losses.append(f"GET {name}: {error!r}")
        except Loss as loss:
            losses.append(str(loss))
        finally:
            if connection is not None:
                connection.close()
    return losses


def _shown(answer: Answer) -> str:
    return f"{answer.status} {answer.body[:300]!r}" if answer.status >= 300 else f"{answer.status}"


class ObjectClient(threading.Thread):
    """Does this and that with its own names, below `prefix`, until it is ended. `wrong`: why it ended itself."""

    def __init__(self, address: Address, path: Path, number: int, seed: int, sizes: Sizes) -> None:
        super().__init__(name=f"client-{number}", daemon=True)
        self.prefix = f"client-{number}/"
        self.teller = Teller(address, ObjectHistory(path))
        self.sizes = sizes
        self.wrong: list[str] = []
        self.steps = 0  # that were answered
        self.ended = threading.Event()
        self._chance = random.Random(f"{seed} {number}")
        self._next = number << 32  # seed of the next content

    def run(self) -> None:
        while not self.ended.is_set():
            try:
                self._step()
                self.steps += 1
            except Gone:
                self.ended.wait(PAUSE_S)
            except Loss as loss:
                self.wrong.append(str(loss))
                return
            except Exception as error:  # of the judge itself: it must not look like a client that rests
                self.wrong.append(f"the client failed: {error!r}")
                return
        self.teller.close()

    def content(self, size: int) -> Content:
        self._next += 1
        return Content(self._next, size)

    def _step(self) -> None:
        promises, chance = self.teller.history.promises, self._chance
        for name in promises.names():
            if len(promises.possible(name)) > 1:
                return self.teller.get(name)
        there = {name: one for name in promises.names() if (one := promises.possible(name)[0])}
        kind = chance.random()
        if kind < 0.4 or not there:
            return self._put(there)
        name = chance.choice(sorted(there))
        if kind < 0.5:
            return self.teller.delete(name)
        if kind < 0.6:
            return self.teller.list(self.prefix, chance.choice((3, 10, 1000)))
        if kind < 0.75 and (size := there[name].size):
            first = chance.randrange(size)
            return self.teller.get_range(name, first, chance.randrange(first, size))
        return self.teller.get(chance.choice(promises.names()))

    def _put(self, there: dict[str, Content]) -> None:
        """A new name, one that was deleted, or one that is replaced."""
        chance = self._chance
        name = f"{self.prefix}{chance.randrange(NAMES)}"
        others = sum(content.size for other, content in there.items() if other != name)
        large = chance.random() < 0.3
        size = chance.randrange(SMALL[-1], self.sizes.largest) if large else chance.choice(SMALL)
        if others + size <= self.sizes.together:
            if not self.teller.put(name, self.content(size)):
                self.ended.wait(REFUSED_PAUSE_S)
        elif name in there:
            self.teller.delete(name)
        else:
            self.teller.get(name)

    def end(self) -> None:
        """Loss when it does not come to an end."""
        self.ended.set()
        self.join(2 * PATIENCE_S)
        if self.is_alive():
            raise Loss(f"{self.name} waits for an answer since {2 * PATIENCE_S:g} s")
        self.teller.history.close()


def until(condition: Callable[[], bool], clients: list[ObjectClient], seconds: float, what: str) -> None:
    """Waits while the clients work; Loss: a client found one, or the condition did not come in time."""
    deadline = time.monotonic() + seconds
    while True:
        for client in clients:
            if client.wrong:
                raise Loss(client.wrong[0])
        if condition():
            return
        if time.monotonic() > deadline:
            raise Loss(f"{what} after {seconds:g} s")
        time.sleep(0.002)
