"""Failpoints: what arms them, and that each strikes in the server that ships."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from node_rig import Connection, NodeRig

from ingest import ticket
from ingest.errors import ConfigError
from ingest.limits import PACK_SLOTS
from ingest.runtime import _failpoints, failpoints
from ingest.status import Status

FIRST = ticket.parse("STEPS00")


@pytest.mark.parametrize(
    ("text", "points"),
    [
        ("log_synced=kill@3", [(_failpoints.LOG_SYNCED, _failpoints.LOG | _failpoints.BULK, 0, 3)]),
        ("acked=kill-parent", [(_failpoints.ACKED, _failpoints.LOG | _failpoints.BULK, 1, 1)]),
        ("bulk:bits_set=kill-node@2, recovery:log_written=kill",
         [(_failpoints.BITS_SET, _failpoints.BULK, 2, 2), (_failpoints.LOG_WRITTEN, _failpoints.RECOVERY, 0, 1)]),
    ],
)  # fmt: skip
def test_what_can_be_armed(text: str, points: list[tuple[int, int, int, int]]) -> None:
    assert failpoints.parse(text) == points


@pytest.mark.parametrize(
    "text",
    ["log_sync=kill", "log_synced", "log_synced=stop", "log_synced=kill@0", "log_synced=kill@x", "LOG_SYNCED=kill",
     "disk:acked=kill", "acked=kill,", ",".join(["acked=kill"] * 17)],
)  # fmt: skip
def test_what_cannot_be_armed(text: str) -> None:
    with pytest.raises(ConfigError, match="FAILPOINTS"):
        failpoints.parse(text)


def test_a_server_that_cannot_arm_them_does_not_start(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ingest", "server", f"--data-dir={tmp_path / 'data'}"]
    command += [f"--{name}=127.0.0.1:0" for name in ("listen", "read-listen", "admin-listen")]
    done = subprocess.run(
        command, env=os.environ | {"FAILPOINTS": "log_sync=kill"}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 78
    assert "unknown step 'log_sync'" in done.stderr


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[NodeRig]:
    rig = NodeRig(tmp_path / "data", "--workers=1")
    yield rig
    rig.close()


def put_until_struck(rig: NodeRig, count: int, deletes: bool) -> int:
    """Puts runs of `count` until a failpoint struck; returns how many runs were acknowledged as a whole."""
    done = 0

    def struck() -> bool:
        return "\nfailpoint " in rig.log()

    while not struck():
        try:
            with Connection(rig.put_address, rig.keys) as connection:
                while not struck():
                    first = FIRST + done * 8 * PACK_SLOTS
                    assert set(connection.put(range(first, first + count)).values()) == {Status.SAVED}
                    if deletes:
                        assert connection.delete(first, 1) is Status.DELETED
                    done += 1
        except OSError:
            pass
    return done


@pytest.mark.parametrize("step", _failpoints.NAMES)
def test_each_step_strikes_once_and_nothing_is_lost(rig: NodeRig, step: str) -> None:
    """`kill`: what dies is replaced, and the second passing does not kill again."""
    rig.environment = {"FAILPOINTS": f"{step}=kill@1"}
    rig.start()
    put_until_struck(rig, 3, deletes=True)
    with Connection(rig.put_address, rig.keys) as connection:
        assert set(connection.put(range(FIRST + 1, FIRST + 3)).values()) == {Status.SAVED}
        assert connection.delete(FIRST, 1) is Status.DELETED
    assert [status for status, _ in rig.get(FIRST, 3)] == [Status.DELETED, Status.SAVED, Status.SAVED]
    log = rig.log_path.read_text()
    assert len(re.findall(rf"^failpoint {step}: kill, process \d+, passing 1$", log, re.M)) == 1
    assert "this server will end itself, for a test" in log
    died = "worker-0" if step in ("received", "verified", "acked") else "committer"
    assert re.search(rf"{died} \(pid \d+\) was killed by signal {signal.SIGKILL:d}", log)
    assert rig.stop() == 0


@pytest.mark.parametrize("action", ["kill-parent", "kill-node"])
@pytest.mark.parametrize("way", ["", "bulk:"])
def test_the_whole_server_dies(rig: NodeRig, action: str, way: str) -> None:
    rig.environment = {"FAILPOINTS": f"{way}slots_written={action}@2"}
    rig.start()
    count = 4 * PACK_SLOTS if way else 5
    whole = put_until_struck(rig, count, deletes=False)
    assert rig.process is not None
    assert rig.process.wait(30) == -signal.SIGKILL
    rig.wait_gone()
    rig.environment = {}
    rig.start()
    for run in range(whole):
        first = FIRST + run * 8 * PACK_SLOTS
        assert {status for status, _ in rig.get(first, count)} == {Status.SAVED}
    assert rig.stop() == 0


@pytest.mark.parametrize(
    "step", ["log_written", "log_synced", "slots_written", "bits_set", "tombstone_written"]
)
def test_recovery_passes_its_steps(rig: NodeRig, step: str) -> None:
    rig.start()
    with Connection(rig.put_address, rig.keys) as connection:
        assert set(connection.put(range(FIRST, FIRST + 3)).values()) == {Status.SAVED}
        assert connection.delete(FIRST, 1) is Status.DELETED  # which writes the header of its pack itself
        assert connection.put([FIRST + PACK_SLOTS]) == {FIRST + PACK_SLOTS: Status.SAVED}
    rig.kill_all()
    rig.environment = {"FAILPOINTS": f"recovery:{step}=kill"}
    rig.start()  # the second committer gets through
    assert f"failpoint {step}: kill" in rig.log_path.read_text()
    assert [status for status, _ in rig.get(FIRST, 3)] == [Status.DELETED, Status.SAVED, Status.SAVED]
    assert rig.stop() == 0
