"""What clients were told, and when: from it follows what a disk that was cut off at some moment must still give back.

Moments are counts of a recorder's entries. A request that was sent at `sent` has touched nothing that was recorded before;
an answer that came at `answered` is a promise in every cut at `answered` or later.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from ingest import ticket
from ingest.limits import PACK_SLOTS
from ingest.status import Status

PUT, DELETE, GET = "put", "delete", "get"
NEVER = 1 << 62  # moment: no answer came
VERSIONS = 16  # versions of data that a ticket may be put with: 0 to 15
NO_VERSION = -1


class Event(NamedTuple):
    """One request about one ticket. `version`: which data it put, or a get was shown. `status`: None without an answer."""

    kind: str
    version: int
    sent: int
    answered: int
    status: Status | None


class Expected(NamedTuple):
    """What a ticket may be, and with which versions of data if it is SAVED."""

    statuses: frozenset[Status]
    versions: frozenset[int]

    def __str__(self) -> str:
        names = " or ".join(sorted(status.name for status in self.statuses))
        return f"{names} (version {sorted(self.versions)})" if Status.SAVED in self.statuses else names


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


class Contents(NamedTuple):
    """What a server shows of `indices`: statuses, and versions (NO_VERSION where it shows no data, or nobody's)."""

    indices: np.ndarray
    statuses: np.ndarray
    versions: np.ndarray

    def of(self, index: int) -> tuple[Status, int]:
        at = int(np.searchsorted(self.indices, index))
        return Status(int(self.statuses[at])), int(self.versions[at])


class Promise(NamedTuple):
    """What each of `indices` may be: sets of statuses and of versions, as bits."""

    indices: np.ndarray
    statuses: np.ndarray
    versions: np.ndarray

    @classmethod
    def nothing(cls, indices: np.ndarray) -> Promise:
        """That all are missing."""
        return cls(
            indices,
            np.full(len(indices), 1 << Status.MISSING, np.uint32),
            np.zeros(len(indices), np.uint32),
        )

    @classmethod
    def exactly(cls, shown: Contents) -> Promise:
        """That all are as they were shown."""
        one = np.uint32(1)
        versions = np.where(shown.versions >= 0, one << shown.versions.clip(0).astype(np.uint32), 0)
        return cls(shown.indices, one << shown.statuses.astype(np.uint32), versions.astype(np.uint32))

    def put(self, positions: np.ndarray, one: Expected) -> None:
        self.statuses[positions] = sum(1 << status for status in one.statuses)
        self.versions[positions] = sum(1 << version for version in one.versions if version >= 0)

    def losses(self, shown: Contents) -> list[str]:
        """Where what is shown is not what was promised, a line for each ticket."""
        one = np.uint32(1)
        right = (self.statuses & (one << shown.statuses.astype(np.uint32))) != 0
        known = (shown.versions >= 0) & (
            (self.versions & (one << shown.versions.clip(0).astype(np.uint32))) != 0
        )
        right &= known | (shown.statuses != Status.SAVED)
        lines = []
        for at in map(int, np.flatnonzero(~right)):
            status = Status(int(shown.statuses[at]))
            version = f" (version {shown.versions[at]})" if status is Status.SAVED else ""
            name = ticket.format(int(self.indices[at]))
            lines.append(f"{name}: expected {self._text(at)}, found {status.name}{version}")
        return lines

    def _text(self, at: int) -> str:
        statuses = frozenset(status for status in Status if int(self.statuses[at]) >> status & 1)
        versions = frozenset(version for version in range(VERSIONS) if int(self.versions[at]) >> version & 1)
        return str(Expected(statuses, versions))


class History:
    """The events of all tickets. `note` may be called by several threads at once."""

    def __init__(self) -> None:
        self.events: dict[int, list[Event]] = {}
        self._groups: dict[tuple[Event, ...], np.ndarray] = {}

    def note(self, index: int, event: Event) -> None:
        assert event.sent <= event.answered, f"the recorder counted backwards: {event}"
        self.events.setdefault(index, []).append(event)

    def moments(self) -> list[int]:
        """When answers came that promise something."""
        kept = (Status.SAVED, Status.DELETED, Status.CONFLICT)
        return sorted({e.answered for events in self.events.values() for e in events if e.status in kept})

    def packs(self, *others: int) -> np.ndarray:
        """The indices of all tickets of all packs that a ticket with events, or one of `others`, lies in, in order."""
        packs = sorted({(index - 36) // PACK_SLOTS for index in (*self.events, *others)})
        return np.concatenate(
            [np.arange(36 + pack * PACK_SLOTS, 36 + (pack + 1) * PACK_SLOTS) for pack in packs]
        )

    def promise(self, cut: int, otherwise: Promise) -> Promise:
        """What a disk that got the first `cut` entries must give back; `otherwise` for tickets without events.

        `otherwise.indices` holds every ticket with events; the history is complete.
        """
        result = Promise(otherwise.indices, otherwise.statuses.copy(), otherwise.versions.copy())
        if not self._groups:
            groups: dict[tuple[Event, ...], list[int]] = {}
            for index, events in self.events.items():
                groups.setdefault(tuple(events), []).append(index)
            self._groups = {
                events: np.searchsorted(otherwise.indices, np.array(indices))
                for events, indices in groups.items()
            }
        for group, positions in self._groups.items():
            result.put(positions, expected(group, cut))
        return result
