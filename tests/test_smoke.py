"""Is it alive? A few frames in and out of a real server, through the log and past it, over a restart: `make smoke`."""

from __future__ import annotations

import urllib.request
from pathlib import Path

from node_rig import data_of, running_node

from ingest import ticket
from ingest.limits import PACK_SLOTS
from ingest.status import Status

FIRST = ticket.parse("SMOKE00")


def test_frames_go_in_and_come_out_again(tmp_path: Path) -> None:
    with running_node(tmp_path / "data", "--workers=2", "--reserve=0") as rig:
        with rig.connect() as connection, rig.connect() as other:
            assert connection.put([FIRST]) == {FIRST: Status.SAVED}
            assert other.put([FIRST]) == {FIRST: Status.SAVED}
            long_run = range(FIRST + 4 * PACK_SLOTS, FIRST + 8 * PACK_SLOTS)
            assert set(connection.put(long_run).values()) == {Status.SAVED}
            assert set(other.put(range(FIRST + 10, FIRST + 20)).values()) == {Status.SAVED}
            assert connection.delete(FIRST + 10, 1) is Status.DELETED
        for _ in range(2):
            assert rig.get(FIRST, 2) == [(Status.SAVED, data_of(FIRST)), (Status.MISSING, b"")]
            found = rig.get(long_run[0], len(long_run))
            assert found == [(Status.SAVED, data_of(index)) for index in long_run]
            path = ticket.tree_path(ticket.format(FIRST))
            url = f"http://{rig.admin_address[0]}:{rig.admin_address[1]}/{path}"
            with urllib.request.urlopen(url, timeout=30) as answer:
                assert answer.read() == data_of(FIRST)
            assert rig.stop() == 0
            rig.start()
