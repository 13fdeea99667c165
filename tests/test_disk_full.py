"""A real server on file systems that are full: by bytes, by inodes, where the packs are and where the log is."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from node_rig import NodeRig, data_of, running_node
from put_rig import PATIENCE_S
from small_disk import fill, small_disk

from ingest import limits
from ingest.limits import PACK_SLOTS
from ingest.runtime.durable_files import syncfs
from ingest.status import Status

S, N, D, C = Status.SAVED, Status.NO_SPACE, Status.DELETED, Status.CONFLICT
FIRST = 36 + 5 * PACK_SLOTS
RESERVE = "8MiB"
SMALL_LOG = "--wal-size=96MiB"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path, "disk", 192) as mount:
        yield mount


def eventually(condition: Callable[[], bool], log: Callable[[], str]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, log()
        time.sleep(0.01)


def ready(node: NodeRig) -> tuple[int, list[str]]:
    """Status and reasons of /readyz."""
    url = "http://{}:{}/readyz".format(*node.admin_address)
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return answer.status, json.load(answer)["reasons"]
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)["reasons"]


def until_ready(node: NodeRig) -> None:
    eventually(lambda: ready(node) == (200, []), node.log)


def until_full(node: NodeRig) -> None:
    """An idle node notices by itself."""
    eventually(lambda: "no space" in ready(node)[1], node.log)


def flush(disk: Path) -> None:
    """Blocks are taken, and given back, when they are written."""
    fd = os.open(disk, os.O_RDONLY | os.O_DIRECTORY)
    syncfs(fd)
    os.close(fd)


def start_fails(data: Path, *flags: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ingest", "server", f"--data-dir={data}", *flags]
    ports = [f"--{name}=127.0.0.1:0" for name in ("listen", "read-listen", "admin-listen")]
    return subprocess.run(
        [*command, *ports],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,  # type: ignore[call-overload]
    )


class TestFullByBytes:
    def test_refused_read_deleted_and_ready_again(self, disk):
        with running_node(disk / "data", f"--reserve={RESERVE}", SMALL_LOG) as node:
            until_ready(node)
            with node.connect() as connection:
                assert set(connection.put(range(FIRST, FIRST + 40)).values()) == {S}
                ballast = fill(disk)
                until_full(node)
                # By the room that is left, or first by a segment of the log that it was about to make.
                assert re.search(
                    f"the file system of {disk}/data: [0-9]+ MiB are free, the reserve"
                    rf"|{disk}/data/\.ingest/wal: No space left on device \([0-9]+ KiB",
                    node.log(),
                )
                assert connection.put([FIRST + 40, FIRST + PACK_SLOTS]) == {
                    FIRST + 40: N,
                    FIRST + PACK_SLOTS: N,
                }
                assert connection.put([FIRST + 3]) == {FIRST + 3: S}, "it is stored already"
                assert connection.put([FIRST + 3], 1) == {FIRST + 3: C}
                assert connection.delete(FIRST, 2) is D
                assert [status for status, _ in node.get(FIRST, 41)] == [D] * 2 + [S] * 38 + [Status.MISSING]
                ballast.unlink()
                until_ready(node)
                assert connection.put([FIRST + 40]) == {FIRST + 40: S}
            assert node.says("there is room again")
            assert node.stop() == 0

    def test_a_full_disk_takes_a_start_a_crash_and_a_stop(self, disk):
        node = NodeRig(disk / "data", f"--reserve={RESERVE}", SMALL_LOG)
        try:
            node.start()
            with node.connect() as connection:
                assert set(connection.put(range(FIRST, FIRST + 40)).values()) == {S}
                fill(disk)
                until_full(node)
                assert connection.delete(FIRST, 1) is D
            node.kill_all()
            node.start()
            until_full(node)
            assert [status for status, _ in node.get(FIRST, 40)] == [D] + [S] * 39
            assert node.stop() == 0
            node.start()
            until_full(node)
            with node.connect() as connection:
                assert connection.delete(FIRST + 1, 1) is D
            assert node.get(FIRST + 39, 1) == [(S, data_of(FIRST + 39))]
            (disk / "ballast").unlink()
            until_ready(node)
            with node.connect() as connection:
                assert connection.put([FIRST + 40]) == {FIRST + 40: S}
            assert node.stop() == 0
        finally:
            node.close()

    def test_deletes_make_the_room_that_puts_need(self, disk):
        """Nobody has to free anything by hand: what was stored fills the disk, and its delete empties it."""
        with running_node(disk / "data", "--reserve=32MiB", SMALL_LOG) as node, node.connect() as connection:
            until_ready(node)
            assert set(connection.put(range(FIRST, FIRST + 4 * PACK_SLOTS)).values()) == {S}
            flush(disk)
            # As if others took the rest: 4 MiB below the reserve and what the log may grow by.
            grown = sum(path.stat().st_size for path in disk.glob("data/.ingest/wal/*.log"))
            fill(disk, leave=(32 << 20) + (96 << 20) - grown - (4 << 20))
            until_full(node)
            assert connection.put([FIRST - 1]) == {FIRST - 1: N}
            assert connection.delete(FIRST, 4 * PACK_SLOTS) is D
            until_ready(node)
            assert connection.put([FIRST - 1]) == {FIRST - 1: S}

    def test_a_first_start_on_a_full_disk_says_so(self, disk):
        fill(disk)
        done = start_fails(disk / "data")
        assert done.returncode == 1
        assert "No space left on device" in done.stderr and "inodes are free" in done.stderr
        assert len(done.stderr.splitlines()) < 3, done.stderr
        (disk / "ballast").unlink()
        with (
            running_node(disk / "data", f"--reserve={RESERVE}", SMALL_LOG) as node,
            node.connect() as connection,
        ):
            assert connection.put([FIRST]) == {FIRST: S}, "what the first try left is no hindrance"


def test_a_recovery_without_room_refuses_and_keeps_nobody_waiting(tmp_path):
    """Without a reserve, which is as if somebody had taken it between two looks: the log has a frame that its pack has no
    block for."""
    with (
        small_disk(tmp_path, "disk", 192, block=4096) as disk,
        running_node(disk / "data", "--reserve=0", SMALL_LOG, f"--wal-dir={tmp_path}/wal") as node,
        node.connect() as connection,
    ):
        assert connection.put([FIRST]) == {FIRST: S}
        flush(disk)
        ballast = fill(disk)
        assert connection.put([FIRST + 900]) == {FIRST + 900: Status.ERROR}
        # A frame that came while there was no committer is one of those that may be in the log.
        assert connection.put([FIRST + 901])[FIRST + 901] in (N, Status.ERROR)
        refused = [connection.put([FIRST + 901 + i])[FIRST + 901 + i] for i in range(20)]
        assert N in refused and set(refused) <= {N, Status.ERROR}
        assert connection.delete(FIRST, 1) in (N, Status.ERROR)
        assert node.get(FIRST, 1) == [(S, data_of(FIRST))]
        ballast.unlink()
        until_ready(node)
        assert connection.put([FIRST + 900, FIRST + 901]) == {FIRST + 900: S, FIRST + 901: S}
        assert connection.delete(FIRST, 1) is D
        assert node.stop() == 0


def test_a_server_that_ends_without_room_for_its_recovery_says_so(tmp_path):
    """Its log has what its packs lack: the end is not clean, and nothing that was saved is lost."""
    with (
        small_disk(tmp_path, "disk", 192, block=4096) as disk,
        running_node(disk / "data", "--reserve=0", SMALL_LOG, f"--wal-dir={tmp_path}/wal") as node,
    ):
        with node.connect() as connection:
            assert connection.put([FIRST]) == {FIRST: S}
            flush(disk)
            ballast = fill(disk)
            assert connection.put([FIRST + 900]) == {FIRST + 900: Status.ERROR}
            refused = FIRST + 901
            while connection.put([refused])[refused] is not N:
                refused += 1
        assert node.stop() == 1
        ballast.unlink()
        node.start()
        with node.connect() as connection:
            assert connection.put([FIRST + 900]) == {FIRST + 900: S}
        assert node.get(FIRST, 1) == [(S, data_of(FIRST))]
        assert node.stop() == 0


class TestFullByInodes:
    def test_a_flood_of_packs_ends_at_the_reserve(self, tmp_path):
        with (
            small_disk(tmp_path, "disk", 192, inodes=limits.RESERVE_INODES + 400) as disk,
            running_node(disk / "data", f"--reserve={RESERVE}", SMALL_LOG) as node,
            node.connect() as connection,
        ):
            until_ready(node)
            saved: list[int] = []
            refused = 0
            for batch in range(100):
                first = FIRST + PACK_SLOTS * 20 * batch
                answers = connection.put(range(first, first + PACK_SLOTS * 20, PACK_SLOTS))
                assert set(answers.values()) <= {S, N}
                saved += [index for index, status in answers.items() if status is S]
                refused += list(answers.values()).count(N)
                if refused:
                    break
            assert refused
            until_full(node)
            assert node.says("inodes are free, the reserve is 8192")
            assert os.statvfs(disk).f_favail > limits.RESERVE_INODES // 2
            assert connection.put([saved[0]]) == {saved[0]: S}
            assert connection.delete(saved[0], 1) is D
            for index in saved[1:]:
                assert node.get(index, 1) == [(S, data_of(index))]
            assert node.stop() == 0

    def test_a_first_start_without_an_inode_says_so(self, tmp_path):
        with small_disk(tmp_path, "disk", 16, inodes=16) as disk:
            for i in range(100):
                try:
                    (disk / str(i)).touch()
                except OSError:
                    break
            done = start_fails(disk / "data")
            assert done.returncode == 1
            assert "No space left on device" in done.stderr and " 0 inodes are free" in done.stderr


class TestFullLogDisk:
    def test_without_room_for_a_log_nothing_new_is_stored_until_there_is_some(self, disk, tmp_path):
        wal = disk / "wal"
        with running_node(tmp_path / "data", "--reserve=64MiB", SMALL_LOG, f"--wal-dir={wal}") as node:
            ballast = fill(disk)
            until_full(node)
            assert re.search(f"the file system of {wal}: [0-9]+ MiB are free", node.log())
            with node.connect() as connection:
                assert connection.put([FIRST]) == {FIRST: N}
                assert [status for status, _ in node.get(FIRST, 1)] == [Status.MISSING]
                ballast.unlink()
                until_ready(node)
                assert connection.put([FIRST]) == {FIRST: S}
            assert node.stop() == 0

    def test_without_a_reserve_too(self, disk, tmp_path):
        """The first put finds out."""
        wal = disk / "wal"
        with running_node(tmp_path / "data", "--reserve=0", SMALL_LOG, f"--wal-dir={wal}") as node:
            ballast = fill(disk)
            with node.connect() as connection:
                assert connection.put([FIRST]) == {FIRST: N}
                assert connection.delete(FIRST, 1) is N
                until_full(node)
                assert node.says("the log gets no segment")
                ballast.unlink()
                until_ready(node)
                assert connection.put([FIRST]) == {FIRST: S}
            assert node.stop() == 0

    def test_a_log_that_has_its_segments_needs_no_more(self, disk, tmp_path):
        """Its disk may be as full as it likes: its room was taken in advance."""
        wal = disk / "wal"
        with running_node(tmp_path / "data", "--reserve=64MiB", SMALL_LOG, f"--wal-dir={wal}") as node:
            with node.connect() as connection:
                first = FIRST
                while [path.stat().st_size for path in wal.glob("*.log")] != 3 * [limits.LOG_SEGMENT_SIZE]:
                    # In each pack every second ticket: no run is long enough to go past the log.
                    answers = connection.put(range(first, first + 2 * 4 * PACK_SLOTS, 2))
                    assert set(answers.values()) == {S}
                    first += 2 * 4 * PACK_SLOTS
                fill(disk)
                until_ready(node)  # it may have been about to take its third segment into use
                assert connection.put([FIRST + 1]) == {FIRST + 1: S}
            assert node.stop() == 0


def test_a_server_that_may_not_write_a_segment_does_not_start(tmp_path):
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (16 << 20, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    done = start_fails(tmp_path / "data", preexec_fn=limit)
    assert done.returncode == 78
    assert "ulimit -f" in done.stderr
