"""What is stored under ranges of tickets: replies are verified and stripped to their data as they come, and what was
bad or refused for a while is asked for again."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from ingest import limits, ticket
from ingest.client._seal import seal_request, unseal
from ingest.client.get_channel import GetChannel
from ingest.errors import CorruptFrameError, RefusedError
from ingest.mac import KeyRing
from ingest.status import RETRIED, Status


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
        at = (first - self._first) * limits.DATA_SIZE
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


class RangeSource:
    """Asks the server of a channel for ranges of tickets, which are given by their indices, at most 65,536 at a time.

    ``retry_for``: seconds for which ERROR and BUSY are asked for again.
    """

    def __init__(self, channel: GetChannel, keys: KeyRing, retry_for: float) -> None:
        self._channel = channel
        self._signing = keys.signing
        self._put_keys = tuple(one.put for one in keys.all)  # any of them may have signed what is stored
        self._retry_for = retry_for

    async def runs(self, tickets: range) -> list[StoredRun]:
        """What is stored under them, in order."""
        reader = RunReader()
        message = seal_request(self._signing.inventory, tickets.start, len(tickets))
        await self._channel.fetch(message, tickets, reader)
        return reader.runs

    async def read_saved(self, tickets: range, data: memoryview) -> None:
        """`read` of tickets that are all SAVED. RefusedError with the first one that is not."""
        others = await self.read(tickets, data)
        if others:
            raise RefusedError(ticket.format(others[0].first), others[0].status)

    async def read(self, tickets: range, data: memoryview) -> list[StoredRun]:
        """Fills ``data`` (1458 bytes for each) with what is stored under them; returns the runs that are not SAVED, in
        order.

        Bad frames are asked for once more, ERROR and BUSY for a while. CorruptFrameError for a frame that was bad twice.
        """
        readers = [await self._get(tickets, tickets.start, data)]
        if not readers[0].bad and all(run.status is Status.SAVED for run in readers[0].runs):
            return []
        others: list[StoredRun] = []
        doubted: set[int] = set()
        now = asyncio.get_running_loop().time
        deadline = now() + self._retry_for
        delay = limits.RETRY_DELAY_MIN_S
        while True:
            bad = {index for reader in readers for index in reader.bad}
            if bad & doubted:
                raise CorruptFrameError(
                    f"ticket {ticket.format(min(bad & doubted))}: the frame that the server sent fails its "
                    "checksum, also the second time"
                )
            doubted |= bad
            asked = [range(index, index + 1) for index in sorted(bad)]
            late = now() + delay > deadline
            refused_now: list[StoredRun] = []
            for run in (run for reader in readers for run in reader.runs):
                if run.status in RETRIED and not late:
                    refused_now.append(run)
                elif run.status is not Status.SAVED:
                    others.append(run)
            if refused_now:
                await asyncio.sleep(delay)
                delay = min(2 * delay, limits.RETRY_DELAY_MAX_S)
                asked += [range(run.first, run.first + run.count) for run in refused_now]
            if not asked:
                return sorted(others, key=lambda run: run.first)
            readers = await asyncio.gather(*(self._get(part, tickets.start, data) for part in asked))

    async def _get(self, tickets: range, start: int, data: memoryview) -> RangeReader:
        """One request. What is stored under index ``start`` lies at the beginning of ``data``."""
        at = (tickets.start - start) * limits.DATA_SIZE
        reader = RangeReader(self._put_keys, tickets.start, data[at : at + len(tickets) * limits.DATA_SIZE])
        message = seal_request(self._signing.get, tickets.start, len(tickets))
        await self._channel.fetch(message, tickets, reader)
        return reader
