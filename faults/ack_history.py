"""What clients were told, and when: from it follows what a disk that was cut off at some moment must still give back.

Moments are counts of a recorder's entries. A request that was sent at `sent` has touched nothing that was recorded before;
an answer that came at `answered` is a promise in every cut at `answered` or later.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ingest import ticket
from ingest.status import Status

PUT, DELETE, GET = "put", "delete", "get"
NEVER = 1 << 62  # moment: no answer came


class Event(NamedTuple):
    """One request about one ticket. `version`: which data it put, or which a get was shown. `status` is None without an answer."""

    kind: str
    version: int
    sent: int
    answered: int
    status: Status | None


class Expected(NamedTuple):
    """What a ticket may be, and with which versions of data if it is SAVED."""

    statuses: frozenset[Status]
    versions: frozenset[int]

    def allows(self, status: Status, version: int | None) -> bool:
        return status in self.statuses and (status is not Status.SAVED or version in self.versions)

    def __str__(self) -> str:
        names = " or ".join(sorted(status.name for status in self.statuses))
        return f"{names} (version {sorted(self.versions)})" if Status.SAVED in self.statuses else names


NOTHING = Expected(frozenset({Status.MISSING}), frozenset())
NOT_STORED = (Status.CONFLICT, Status.DELETED, Status.BUSY, Status.NO_SPACE, Status.BAD_CHECKSUM)


def expected(events: Iterable[Event], cut: int) -> Expected:
    """What a ticket with these events may be on a disk that got the first `cut` entries.

    | known at the cut                              | it is                              |
    |-----------------------------------------------|------------------------------------|
    | an answer that it is deleted                  | DELETED                            |
    | an answer that it is saved, or conflicts      | SAVED, or what a delete under way makes of it |
    | requests under way                            | MISSING, or as one of them wants it |
    """
    held: set[int] = set()
    possible: set[int] = set()
    holds_something = maybe_deleted = False
    for kind, version, sent, answered, status in events:
        if sent >= cut:
            continue
        known = answered <= cut
        if known and status is Status.DELETED:
            return Expected(frozenset({Status.DELETED}), frozenset())
        if kind == DELETE:
            maybe_deleted |= status is not Status.BUSY
        elif known and status is Status.SAVED:
            held.add(version)
        elif known and status is Status.CONFLICT:
            holds_something = True
        if kind == PUT and status not in NOT_STORED:
            possible.add(version)
    # A ticket holds one version: two that were both promised leave none that is right.
    versions = (held if len(held) == 1 else set()) if held else possible
    statuses = {Status.SAVED} if held or holds_something else {Status.MISSING}
    if possible:
        statuses.add(Status.SAVED)
    if maybe_deleted:
        statuses.add(Status.DELETED)
    return Expected(frozenset(statuses), frozenset(versions))


class History:
    """The events of all tickets. `note` may be called by several threads at once."""

    def __init__(self) -> None:
        self.events: dict[int, list[Event]] = {}

    def note(self, index: int, event: Event) -> None:
        self.events.setdefault(index, []).append(event)

    def promises(self) -> list[int]:
        """The moments at which answers came that promise something."""
        kept = (Status.SAVED, Status.DELETED, Status.CONFLICT)
        return sorted({e.answered for events in self.events.values() for e in events if e.status in kept})

    def expected(self, cut: int) -> dict[int, Expected]:
        """Of each ticket that was ever named. Every other one is missing."""
        return {index: expected(events, cut) for index, events in self.events.items()}


Found = Mapping[int, tuple[Status, int | None]]  # of a ticket: its status, and which version its data are


def losses(wanted: Mapping[int, Expected], found: Found) -> list[str]:
    """Where what was found is not what was promised, a line for each ticket."""
    return [
        f"{ticket.format(index)}: expected {wanted.get(index, NOTHING)}, found {status.name} (version {version})"
        for index, (status, version) in found.items()
        if not wanted.get(index, NOTHING).allows(status, version)
    ]
