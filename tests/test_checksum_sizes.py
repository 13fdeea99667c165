"""Layout tree: a checksum that has not exactly its eight bytes is none, and what it belongs to is damaged: neither free nor
whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from committer_rig import CommitterRig
from put_rig import KEYS, frame

from ingest.limits import CHECKSUM_SIZE, PACK_SLOTS
from ingest.status import Status
from ingest.store.layouts._tree_reader import TreeReader

INDEX = 36 + 5 * PACK_SLOTS  # slot 0 of pack 5
CHECKSUM = "user.ingest.checksum"


@pytest.mark.parametrize("size", range(2 * CHECKSUM_SIZE + 1))
def test_it_has_eight_bytes(tmp_path: Path, size: int) -> None:
    with CommitterRig(tmp_path, layout="tree") as rig:
        rig.put(INDEX)
        rig.commit()
        path = rig.path(INDEX)
        checksum = os.getxattr(path, CHECKSUM)
        os.setxattr(path, CHECKSUM, (checksum + checksum)[:size])
        right = size == CHECKSUM_SIZE
        reader = TreeReader(rig.data_fd, [KEYS])
        ((_, status, _, _),) = reader.read_range(INDEX, 1)
        reader.close()
        wanted = Status.SAVED if right else Status.ERROR
        assert status == wanted
        for known in (True, False):  # to the committer, from when it wrote it
            if not known:
                rig.flush()
                rig.packs.close()
            same, rival = rig.put(INDEX), rig.put(INDEX, b"rival")
            rig.commit()
            assert rig.answers[same] == [wanted]
            assert rig.answers[rival] == [Status.CONFLICT if right else Status.ERROR]
        assert path.read_bytes() == frame(INDEX, b"data")[16:]
