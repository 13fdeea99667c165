"""Buffers are used again and again: what lay in one from an answer before is no part of the next one, when the file that was
to be read into it has less than it had."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import get_rig
import pytest
from committer_rig import CommitterRig
from packs import flat
from put_rig import frame

from ingest import sharding
from ingest.limits import DATA_SIZE, FRAME_SIZE, PACK_SLOTS
from ingest.status import Status

FIRST = 36 + 5 * PACK_SLOTS  # slot 0 of pack 5
COUNT = 5
FRAMES = [frame(FIRST + i, (b"chunk %d, " % i * 200)[:DATA_SIZE]) for i in range(COUNT)]
Read = Callable[[], list[tuple[Status, bytes]]]


def cut(rig: CommitterRig, at: int, kept: int) -> list[int]:
    """Leaves `kept` bytes of a chunk. Whose chunks are damaged."""
    path, index = rig.path(FIRST + at), FIRST + at
    if rig.layout == "tree":
        os.truncate(path, kept)
        return [at]
    os.truncate(path, sharding.slot_offset(sharding.ticket_slot(index)) + kept)
    return list(range(at, COUNT))


@pytest.fixture(params=["pack", "tree"])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[CommitterRig]:
    with CommitterRig(tmp_path, layout=request.param) as rig:
        rig.submit(FIRST, b"".join(FRAMES))
        rig.commit()
        rig.flush()
        yield rig


@pytest.mark.parametrize("at", range(COUNT))
@pytest.mark.parametrize("kept", [0, 8, 1000])
class TestCutMeanwhile:
    def test_a_get(self, rig: CommitterRig, at: int, kept: int) -> None:
        with get_rig.Rig(rig.data, layout=rig.layout) as server:
            client = server.connect()
            assert flat(server.ask(client, FIRST, COUNT), FIRST) == [(Status.SAVED, raw) for raw in FRAMES]
            lost = cut(rig, at, kept)
            answers = flat(server.ask(client, FIRST, COUNT), FIRST)
        self.check(answers, lost, kept)

    def check(self, answers: list[tuple[Status, bytes]], lost: list[int], kept: int) -> None:
        for i, (status, raw) in enumerate(answers):
            if i not in lost:
                assert (status, raw) == (Status.SAVED, FRAMES[i])
            elif status is Status.SAVED:  # as far as the disk still has it: it fails the reader's check
                assert i == lost[0]
                assert kept >= 8
                assert raw == FRAMES[i][:kept] + bytes(FRAME_SIZE - kept)
            else:
                assert status is Status.ERROR

    def test_a_duplicate(self, rig: CommitterRig, at: int, kept: int) -> None:
        again = rig.submit(FIRST, b"".join(FRAMES))
        rig.commit()
        assert rig.answers[again] == [Status.SAVED] * COUNT
        lost = cut(rig, at, kept)
        again = rig.submit(FIRST, b"".join(FRAMES))
        rig.commit()
        assert rig.answers[again] == [Status.ERROR if i in lost else Status.SAVED for i in range(COUNT)]
