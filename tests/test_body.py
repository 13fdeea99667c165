"""The body of an upload: its bytes come as they were sent, whatever their pieces are and whoever loses patience."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator

import pytest

from ingest.objects.body import IteratedBody, as_body

DATA = bytes(range(1, 24))
NO_TIME = 0.0  # seconds: what is not there by now does not come in time


def pieces_of(sizes: tuple[int, ...]) -> list[bytes]:
    """Of these sizes, the last of which has the rest."""
    starts = [0, *itertools.accumulate(sizes), len(DATA)]
    return [DATA[start:stop] for start, stop in itertools.pairwise(starts)]


class Source:
    """Gives its pieces, each when it was let; ``at_once``: without that."""

    def __init__(self, pieces: list[bytes], error: Exception | None = None, at_once: bool = False) -> None:
        self.pieces, self.error = pieces, error
        self.let = asyncio.Semaphore(len(pieces) + 1 if at_once else 0)
        self.ended = False

    async def give(self) -> AsyncIterator[bytes]:
        try:
            for piece in self.pieces:
                await self.let.acquire()
                yield piece
            await self.let.acquire()
            if self.error is not None:
                raise self.error
        finally:
            self.ended = True


@pytest.mark.parametrize("sizes", [(), (0,), (1,), (1, 0, 0, 2), (7, 7, 7), (23, 0), (1,) * 23])
@pytest.mark.parametrize("patience", [None, 60.0, NO_TIME])
def test_it_is_whole_however_it_is_taken(sizes: tuple[int, ...], patience: float | None) -> None:
    """A buffer is filled but at the end, and when nothing more is there in time; nothing is lost or told twice."""

    async def main(take: int) -> None:
        source = Source(pieces_of(sizes), at_once=patience != NO_TIME)
        body = as_body(source.give())
        found = bytearray()
        for _ in range(1000):
            buffer = bytearray(b"\xff" * take)
            size = await body.fill(memoryview(buffer), patience)
            assert buffer[size:] == b"\xff" * (take - size), "nothing is written behind it"
            found += buffer[:size]
            assert found == DATA[: len(found)]
            if body.ended:
                break
            if patience == NO_TIME:
                source.let.release()
                await asyncio.sleep(0)
            else:
                assert size == take
        assert body.ended and found == DATA
        assert await body.fill(memoryview(bytearray(5)), patience) == 0
        await body.close()

    for take in (1, 2, 5, len(DATA), len(DATA) + 1):
        asyncio.run(main(take))


def test_what_came_too_late_comes_first_the_next_time() -> None:
    async def main() -> None:
        source = Source([b"ab", b"cd"])
        body = IteratedBody(source.give())
        buffer = bytearray(4)
        source.let.release()
        assert await body.fill(memoryview(buffer)[:3], 0.02) == 2
        assert not body.ended
        assert await body.fill(memoryview(buffer), NO_TIME) == 0, "it is asked for once only"
        source.let.release()
        source.let.release()
        assert await body.fill(memoryview(buffer)[:1]) == 1
        assert await body.fill(memoryview(buffer)[1:]) == 1
        assert buffer[:2] == b"cd" and body.ended
        await body.close()

    asyncio.run(main())


@pytest.mark.parametrize("patience", [None, 60.0, NO_TIME])
@pytest.mark.parametrize("before", range(3))
def test_what_it_raises_fails_the_upload_and_is_no_end(patience: float | None, before: int) -> None:
    """Also when it comes while nobody waits."""

    class Broken(Exception):
        pass

    async def main() -> None:
        source = Source([b"x"] * before, Broken())
        body = IteratedBody(source.give())
        buffer, filled = bytearray(9), 0
        for _ in range(before + 1):
            source.let.release()
        with pytest.raises(Broken):
            while True:
                filled += await body.fill(memoryview(buffer)[:1], patience)
                await asyncio.sleep(0)
        assert filled == before and not body.ended
        await body.close()

    asyncio.run(main())


@pytest.mark.parametrize("coming", ["nothing", "a piece", "an error", "the end"])
def test_when_it_is_closed_nothing_is_waited_for(coming: str) -> None:
    """And nothing complains of what came to nobody."""

    async def main() -> None:
        complaints: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        source = Source([b"x"] if coming == "a piece" else [], OSError() if coming == "an error" else None)
        body = IteratedBody(source.give())
        assert await body.fill(memoryview(bytearray(5)), NO_TIME) == 0
        if coming != "nothing":
            source.let.release()
            await asyncio.sleep(0)
        done, _ = await asyncio.wait([asyncio.create_task(body.close())], timeout=5)
        assert done, "it waits for the piece"
        assert source.ended or coming == "a piece"
        assert len(asyncio.all_tasks()) == 1
        await body.close()
        del body, source
        await asyncio.sleep(0)
        assert complaints == []

    asyncio.run(main())
