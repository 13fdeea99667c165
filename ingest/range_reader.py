"""What is stored under a range of tickets: the reply to a get as it comes, verified and stripped to its data at once."""

from __future__ import annotations

from dataclasses import dataclass

from ingest._seal import unseal
from ingest.limits import DATA_SIZE
from ingest.status import Status


@dataclass(frozen=True, slots=True)
class StoredRun:
    """``count`` tickets from index ``first`` on share a status."""

    first: int
    count: int
    status: Status


class RangeReader:
    """Takes the reply to one get (`get_channel.Reader`).

    ``data``: 1458 bytes for each ticket from index ``first`` on, written where a good frame came; the caller's.
    ``runs``: all runs of the reply. ``bad``: indices of frames, within runs SAVED, that were not signed with one of
    ``keys`` (put keys) or carry another ticket.
    """

    with_frames = True

    def __init__(self, keys: tuple[bytes, ...], first: int, data: memoryview) -> None:
        self._keys = keys
        self._first = first
        self._data = data
        self.runs: list[StoredRun] = []
        self.bad: list[int] = []

    def restart(self) -> None:
        self.runs.clear()
        self.bad.clear()

    def take_run(self, first: int, count: int, status: Status) -> None:
        self.runs.append(StoredRun(first, count, status))

    def take_frames(self, first: int, frames: memoryview) -> None:
        at = (first - self._first) * DATA_SIZE
        for position in unseal(self._keys, first, frames, self._data[at:]):
            self.bad.append(first + position)


class RunReader:
    """Takes the reply to an inventory: ``runs``, all of them."""

    with_frames = False

    def __init__(self) -> None:
        self.runs: list[StoredRun] = []

    def restart(self) -> None:
        self.runs.clear()

    def take_run(self, first: int, count: int, status: Status) -> None:
        self.runs.append(StoredRun(first, count, status))

    def take_frames(self, first: int, frames: memoryview) -> None:
        raise AssertionError("an inventory has no frames")
