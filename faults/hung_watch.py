"""What `/readyz` and `/healthz` say while some processes of a service stand still, held against the truth."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Collection
from dataclasses import dataclass, field

from gateway_rig import Connection

from faults.object_load import ENDED
from faults.served_node import ServedNode

HEALTH_S = 4.0  # for an answer of `/healthz`
LOOK_INTERVAL_S = 0.1  # between questions whether it is well
LOOK_S = 1.0  # for one answer to that


@dataclass
class Said:
    """What `/readyz` or `/healthz` answered, each time it was asked."""

    statuses: set[int] = field(default_factory=set)
    reasons: set[str] = field(default_factory=set)

    def names(self, process: str) -> bool:
        """Whether it was said of this process that it stands still, or waits for the disk where it was stopped."""
        name = "parent" if process == "server" else process
        said = (f"{name} has not answered for", f"{name} waits for the disk:")
        return any(one in reason for reason in self.reasons for one in said)


def judge(said: Said, what: str, still: Collection[str], unwell: Collection[str]) -> list[str]:
    """Holds what was said while ``still`` stood still against the truth. ``unwell``: who makes that answer no, if silent."""
    named = [name for name in still if name in unwell]
    found = f"it said {sorted(said.statuses)}, {sorted(said.reasons)}"
    if not said.statuses:
        return [f"{what} did not answer while {', '.join(still)} stood still"]
    if not named:
        return (
            []
            if 200 in said.statuses
            else [f"{what} never said 200 while {', '.join(still)} stood still: {found}"]
        )
    losses = [
        f"{what} did not name {name}, which stood still: {found}" for name in named if not said.names(name)
    ]
    if 503 not in said.statuses:
        losses.append(f"{what} did not say 503 while {', '.join(named)} stood still: {found}")
    return losses


class Watch(threading.Thread):
    """Asks `/readyz` and `/healthz` again and again. ``http``: to the HTTP process that is asked; None: none is."""

    def __init__(self, service: ServedNode, http: Connection | None) -> None:
        super().__init__(name="watch", daemon=True)
        self.readyz = Said()
        self.healthz = Said()
        self._service = service
        self._http = http
        self._ended = threading.Event()

    def run(self) -> None:
        if self._http is not None:
            self._http.sock.settimeout(HEALTH_S)
        while not self._ended.is_set():
            ask_ready(self._service, self.readyz)
            if self._http is not None:
                try:
                    answer = self._http.request("GET", "/healthz")
                    self.healthz.statuses.add(answer.status)
                    if answer.status != 200:
                        self.healthz.reasons.add(answer.json["message"])
                except ENDED:
                    self._http = None
            self._ended.wait(LOOK_INTERVAL_S)

    def end(self) -> None:
        self._ended.set()
        self.join(2 * HEALTH_S)


def ask_ready(service: ServedNode, said: Said) -> bool:
    """Whether `/readyz` says 200 now."""
    try:
        with socket.create_connection(service.admin_address, LOOK_S) as sock:
            sock.sendall(b"GET /readyz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            answer = b"".join(iter(lambda: sock.recv(1 << 16), b""))
        head, _, body = answer.partition(b"\r\n\r\n")
        status = int(head.split()[1])
        said.statuses.add(status)
        said.reasons.update(json.loads(body)["reasons"])
        return status == 200
    except (OSError, ValueError, IndexError, KeyError):
        return False
