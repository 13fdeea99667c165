"""What a committer met of damage is told whole, once: each corrupt slot, and each error of each pack."""

from __future__ import annotations

import errno
import itertools
import logging
from pathlib import Path

import pytest
from committer_rig import CommitterRig
from put_rig import frame

from ingest import sharding
from ingest.engine.commit.damage_log import tell_of_damage
from ingest.limits import PACK_SLOTS
from ingest.status import Status

FIRST = 36 + 5 * PACK_SLOTS  # slot 0 of pack 5
RUN = 5


def told(rig: CommitterRig, caplog: pytest.LogCaptureFixture) -> list[str]:
    caplog.clear()
    tell_of_damage(rig.core, rig.data)
    assert {record.levelno for record in caplog.records} <= {logging.ERROR}
    return [record.getMessage() for record in caplog.records]


def test_each_corrupt_slot_of_a_run_is_named(
    tmp_path: Path, layout: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whichever they are, neighbours too: a repair takes care of all, and whoever reads the log counts on none besides."""
    with CommitterRig(tmp_path, layout=layout) as rig:
        runs = list(itertools.product((False, True), repeat=RUN))
        for pack, spoilt in enumerate(runs):
            first = FIRST + pack * PACK_SLOTS
            rig.put_run(first, RUN)
            rig.commit()
            for slot in itertools.compress(range(RUN), spoilt):
                rig.spoil(first + slot, bytes(1458))
            again = [rig.put_run(first, RUN) for _ in range(2)][-1]  # whoever is told ERROR tries once more
            rig.commit()
            assert rig.answers[again] == [Status.ERROR if bad else Status.SAVED for bad in spoilt]
            name = sharding.pack_path(sharding.ticket_pack(first))
            assert told(rig, caplog) == [
                f"{name}: slot {slot} is corrupt: its bit is set, its frame fails the check"
                for slot in itertools.compress(range(RUN), spoilt)
            ]
            assert told(rig, caplog) == []


def test_what_is_told_of_many_corrupt_slots_is_bounded(
    tmp_path: Path, layout: str, caplog: pytest.LogCaptureFixture
) -> None:
    with CommitterRig(tmp_path, layout=layout) as rig:
        rig.put_run(FIRST, 100)
        rig.commit()
        for slot in range(100):
            rig.spoil(FIRST + slot, bytes(1458))
        again = rig.put_run(FIRST, 100)
        rig.commit()
        assert rig.answer(again) is Status.ERROR
        assert len(told(rig, caplog)) == 64


def test_each_error_of_each_pack_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with CommitterRig(tmp_path) as rig:
        met = [(5, errno.EIO), (5, errno.EIO), (6, errno.EIO), (5, errno.ENOTDIR), (6, errno.EIO)]
        rig.core.disk_errors.extend(met)
        assert told(rig, caplog) == [
            f"{rig.data}/{sharding.pack_path(5)}: Input/output error",
            f"{rig.data}/{sharding.pack_path(6)}: Input/output error",
            f"{rig.data}/{sharding.pack_path(5)}: Not a directory",
        ]
        assert told(rig, caplog) == []


@pytest.mark.parametrize("data", [b"mine", b"other"])
@pytest.mark.parametrize(
    "index",
    [FIRST + 4, FIRST + PACK_SLOTS + 3, FIRST + 36 * PACK_SLOTS + 3, FIRST + 3 + 1296**2 * PACK_SLOTS, 3],
    ids=["slot beside", "next pack", "another directory", "a longer name", "a shorter name"],
)
def test_an_authentic_frame_of_another_ticket_is_no_copy(tmp_path: Path, index: int, data: bytes) -> None:
    """As a disk leaves it that wrote to the wrong place: nobody is answered by what is stored under another name."""
    with CommitterRig(tmp_path) as rig:
        rig.put(FIRST + 3, b"mine")
        rig.commit()
        rig.flush()
        with (rig.data / sharding.pack_path(sharding.ticket_pack(FIRST))).open("r+b") as pack:
            pack.seek(sharding.slot_offset(3))
            pack.write(frame(index, b"mine"))
        again = rig.put(FIRST + 3, data)
        rig.commit()
        assert rig.answer(again) is Status.ERROR
