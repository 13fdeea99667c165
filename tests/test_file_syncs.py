"""A flush that really syncs and hears of errors, where a syncfs does not: each file by itself, and its directories."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from attached_strace import STRACE, attach_strace
from committer_rig import CommitterRig
from node_rig import NodeRig, data_of, running_node
from put_rig import frame

from faults import call_order
from faults.fault_server import sum_of
from faults.stacked import STACKS, stacked, what_lacks
from ingest import sharding, ticket
from ingest.errors import ConfigError
from ingest.limits import PACK_SLOTS
from ingest.runtime.file_system import (
    doubt_of,
    file_system,
    kernel_version,
    refuse_unsuitable,
    sync_everything,
)
from ingest.status import Status
from ingest.store.layouts._pack_table import PackTable
from ingest.store.layouts._tree_table import TreeTable

FIRST = ticket.parse("FSYNC00")
STORE_ID = bytes(range(16))


@contextmanager
def mount_of(stack: str, tmp_path: Path) -> Iterator[Path]:
    """A file system that a syncfs does not do for."""
    if reason := what_lacks(stack, tmp_path):
        pytest.skip(reason)
    below, point = tmp_path / "below", tmp_path / "mounted"
    below.mkdir()
    point.mkdir()
    with stacked(stack, below, point):
        yield point


@pytest.fixture(params=STACKS)
def mounted(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    with mount_of(request.param, tmp_path) as point:
        yield point


def answer_of(path: Path) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return str(file_system(fd))
    finally:
        os.close(fd)


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "ingest", *arguments]
    return subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)


class TestWhatIsDoubted:
    @pytest.mark.parametrize(
        ("name", "release", "doubted"),
        [
            ("ext4", "6.1.0-13-amd64", False),
            ("xfs", "5.8.0", False),
            ("xfs", "5.8-rc1", False),
            ("btrfs", "10.0", False),
            ("ext4", "5.7.19", True),
            ("ext4", "4.19.0", True),
            ("overlayfs", "6.1.0", True),
            ("FUSE", "6.18.4", True),
            ("NFS", "6.18.4", True),
            ("a file system of type 0x1", "6.18.4", True),
            ("ext4", "no number", True),
        ],
    )
    def test_a_syncfs_is_enough_where_it_reports_errors(self, name: str, release: str, doubted: bool) -> None:
        assert bool(doubt_of(name, release)) is doubted

    def test_versions(self) -> None:
        assert kernel_version("5.10.0-rc1+") == (5, 10)
        assert kernel_version("") == (0, 0)

    def test_a_stack_is_doubted_and_says_so(self, mounted: Path) -> None:
        assert "each file is synced by itself" in answer_of(mounted)
        with running_node(mounted / "data") as rig:
            assert rig.says("each file is synced by itself")
            assert rig.stop() == 0
        checked = command("check-config", "server", f"--data-dir={mounted / 'data'}")
        assert "each file is synced by itself" in checked.stdout + checked.stderr


@pytest.mark.parametrize("word", ["volatile", "fsync=volatile", "rw", "nonvolatile"])
@pytest.mark.parametrize(
    "options", ["rw,{} - overlay overlay rw", "rw shared:7 master:3 - overlay overlay rw,{},x=y"]
)
def test_whatever_calls_an_overlay_volatile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str, word: str
) -> None:
    """Old kernels and new ones, as an option of the mount or of its file system: proc(5). Others' mounts do not matter."""
    real = Path.read_text

    def read_text(path: Path, **how: str) -> str:
        if path != Path("/proc/self/mountinfo"):
            return real(path, **how)
        info = real(Path(f"/proc/self/fdinfo/{fd}"), **how).split()
        mount = info[info.index("mnt_id:") + 1]
        other = f"1{mount} 1 0:5 / /other rw,volatile - overlay overlay rw,fsync=volatile"
        return f"{other}\n{mount} 1 0:5 / / {options.format(word)}\n{other}\n"

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr("ingest.runtime.file_system._magic", lambda _: 0x794C7630)
    fd = os.open(tmp_path, os.O_RDONLY)
    assert file_system(fd).volatile == (word in ("volatile", "fsync=volatile"))
    os.close(fd)


def test_an_overlay_that_ignores_syncs_is_refused(tmp_path: Path) -> None:
    parts = {name: tmp_path / name for name in ("lower", "upper", "work", "merged")}
    for part in parts.values():
        part.mkdir()
    options = ",".join(f"{name}dir={parts[name]}" for name in ("lower", "upper", "work")) + ",volatile"
    mount = ["mount", "-t", "overlay", "overlay", "-o", options, str(parts["merged"])]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no volatile overlay can be mounted: {done.stderr.strip()}")
    try:
        with pytest.raises(ConfigError, match="mounted volatile"):
            refuse_unsuitable(parts["merged"], durable=True)
        refuse_unsuitable(parts["merged"], durable=False)
        merged, good = parts["merged"], tmp_path / "good"
        for where in (
            [f"--data-dir={merged / 'data'}"],
            [f"--data-dir={good}", f"--wal-dir={merged / 'wal'}"],
        ):
            for words in (["server"], ["check-config", "server"]):
                done = command(*words, *where)
                assert done.returncode == 78 and "mounted volatile" in done.stdout + done.stderr
        with running_node(parts["merged"] / "data", "--sync=os") as rig:
            assert rig.stop() == 0
    finally:
        subprocess.run(["umount", str(parts["merged"])], check=True)


@pytest.mark.parametrize("sync", ["disk", "os"])
def test_a_disk_of_large_blocks_is_refused(sync: str, tmp_path: Path) -> None:
    """Direct writes are of 4096 bytes, whether they are to be durable or not."""
    image, point = tmp_path / "image", tmp_path / "point"
    with image.open("wb") as file:
        file.truncate(512 << 20)
    point.mkdir()
    attach = ["losetup", "-b", "16384", "--show", "-f", str(image)]
    made = subprocess.run(attach, capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no loop device with large blocks: {made.stderr.strip()}")
    device = made.stdout.strip()
    make = ["mkfs.xfs", "-q", "-b", "size=16384", "-s", "size=16384", device]
    try:
        for line in (make, ["mount", device, str(point)]):
            done = subprocess.run(line, capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"no file system with large blocks: {done.stderr.strip()}")
        for words in (["server"], ["check-config", "server"]):
            done = command(*words, f"--data-dir={point / 'data'}", f"--sync={sync}")
            assert done.returncode == 78 and "logical blocks of 16384 bytes" in done.stdout + done.stderr
    finally:
        subprocess.run(["umount", str(point)], capture_output=True, check=False)
        subprocess.run(["losetup", "-d", device], check=True)


@pytest.mark.timeout(300)
def test_the_log_counts_on_no_file_that_was_not_synced(mounted: Path) -> None:
    """Layout tree makes a directory for each ticket: its long run is `make faults PART=4`."""
    outcome = call_order.run(1, 500, mounted, layouts=["pack"])
    if outcome.not_run:
        pytest.skip(outcome.not_run)
    assert outcome.passed, "\n".join(outcome.losses)
    assert min(outcome.counts["files"], outcome.counts["recycled"]) > 0


@pytest.mark.skipif(STRACE is None, reason="strace is not installed")
def test_a_file_that_can_not_be_synced_keeps_the_log_that_covers_it(mounted: Path, layout: str) -> None:
    path = mounted / "data" / (ticket.tree_path("FSYNC00") if layout == "tree" else "FS/YN/C/obj")
    with running_node(mounted / "data", f"--layout={layout}") as rig, rig.connect() as connection:
        assert connection.put([FIRST]) == {FIRST: Status.SAVED}
        wait_for_flush(rig)
        (committer,) = rig.children("ingest-committer")
        tracer = attach_strace(committer, "-P", str(path), "-e", "inject=fsync,fdatasync:error=EIO")
        try:
            indices = range(FIRST, FIRST + 50)
            if layout == "tree":  # a file is written to once more, when it is deleted
                assert connection.delete(FIRST, 1) is Status.DELETED
            assert set(connection.put(indices[1:]).values()) == {Status.SAVED}
            rig.wait_for_another("ingest-committer", committer)
        finally:
            tracer.terminate()
            tracer.wait()
        assert rig.says("the log keeps them")
        rig.kill_all()
        rig.start()
        shown = [data for _, data in rig.get(FIRST, 50)]
        assert shown[1:] == [data_of(index) for index in indices[1:]]
        assert rig.stop() == 0


def wait_for_flush(rig: NodeRig) -> None:
    deadline = time.monotonic() + 30
    while sum_of(rig, "ingest_flushes") < 1:
        assert time.monotonic() < deadline, rig.log()
        time.sleep(0.01)


def test_a_long_run_syncs_a_descriptor_of_its_own(tmp_path: Path) -> None:
    """A write that failed is reported once to each descriptor: that of the table is synced by the flush meanwhile."""

    def open_on(path: Path) -> list[int]:
        found = []
        for name in os.listdir("/proc/self/fd"):
            with suppress(OSError):
                if os.readlink(f"/proc/self/fd/{name}") == str(path):
                    found.append(int(name))
        return found

    with CommitterRig(tmp_path) as rig:
        rig.put(FIRST)
        rig.commit()
        path = (rig.data / sharding.pack_path(sharding.ticket_pack(FIRST))).resolve()
        (of_the_table,) = open_on(path)
        first = FIRST - sharding.ticket_slot(FIRST) + 1
        for at in (first, first + PACK_SLOTS):
            rig.put_run(at, 1200)
        (job,) = rig.plan()
        assert len(open_on(path)) == 2
        kept, null = os.dup(of_the_table), os.open("/dev/null", os.O_RDWR)
        try:
            os.dup2(null, of_the_table)  # which takes writes, and no sync
            job.run()
        finally:
            os.dup2(kept, of_the_table)
            os.close(null)
            os.close(kept)
        assert job.error == 0
        assert open_on(path) == [of_the_table]
        rig.core.bulk_done(job)
        rig.jobs.clear()


class TestTables:
    """What stays open until it is synced, however much that is."""

    @pytest.fixture
    def data_fd(self, tmp_path: Path) -> Iterator[int]:
        fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
        yield fd
        os.close(fd)

    def test_an_unsynced_pack_is_not_closed(self, data_fd: int) -> None:
        table = PackTable(data_fd, STORE_ID, 64)
        table.sync_each_file()
        table.replay_puts(b"".join(frame(FIRST + PACK_SLOTS * i) for i in range(10)))
        table.write_headers()
        table.give_back(100)
        assert len(table) == 10
        table.flush_begins()
        table.give_back(100)
        assert len(table) == 10  # the flush has their descriptors
        table.sync()
        table.flush_done()
        table.give_back(100)
        assert len(table) == 0
        table.close()

    def test_what_is_written_during_a_flush_belongs_to_the_next(self, data_fd: int) -> None:
        table = PackTable(data_fd, STORE_ID, 64)
        table.sync_each_file()
        table.replay_puts(frame(FIRST))
        table.write_headers()
        table.flush_begins()
        table.replay_puts(frame(FIRST + 1))
        table.write_headers()
        table.sync()
        table.flush_done()
        table.give_back(1)
        assert len(table) == 1
        table.flush_begins()
        table.sync()
        table.flush_done()
        table.give_back(1)
        assert len(table) == 0
        table.close()

    def test_recovery_of_more_packs_than_may_be_open(self, data_fd: int, tmp_path: Path) -> None:
        table = PackTable(data_fd, STORE_ID, 64)
        table.sync_each_file()
        table.replay_puts(b"".join(frame(FIRST + PACK_SLOTS * i) for i in range(300)))
        table.write_headers()
        assert len(table) <= 64
        assert len(list(tmp_path.rglob("obj"))) == 300
        table.close()

    def test_a_tree_keeps_no_more_files_open_than_it_may(self, data_fd: int, tmp_path: Path) -> None:
        table = TreeTable(data_fd, STORE_ID, 64)
        table.sync_each_file()
        before = len(os.listdir("/proc/self/fd"))
        table.replay_puts(b"".join(frame(FIRST + i) for i in range(100)))
        assert len(os.listdir("/proc/self/fd")) - before == 32  # the others were synced at once
        table.flush_begins()
        table.replay_puts(frame(FIRST + 100))
        table.sync()
        table.flush_done()
        assert len(os.listdir("/proc/self/fd")) - before == 1
        table.close()
        assert len(os.listdir("/proc/self/fd")) == before
        assert len(list(tmp_path.rglob("obj"))) == 101

    @pytest.mark.skipif(STRACE is None, reason="strace is not installed")
    def test_a_flush_of_a_tree_syncs_each_file_and_each_directory_above_it(self, tmp_path: Path) -> None:
        log = tmp_path / "calls"
        script = (
            "import os, sys\n"
            "from put_rig import frame\n"
            "from ingest import ticket\n"
            "from ingest.store.layouts._tree_table import TreeTable\n"
            "table = TreeTable(os.open(sys.argv[1], os.O_RDONLY), bytes(16), 64)\n"
            "table.sync_each_file()\n"
            "for name in sys.argv[2:]: table.replay_puts(frame(ticket.parse(name)))\n"
            "table.flush_begins()\n"
            "table.sync()\n"
        )
        names = ("FSYNC00", "FSYNC01", "FSZZ", "0", *(f"GS{i:02}" for i in range(40)))
        traced = [str(STRACE), "-y", "-e", "trace=fsync", "-o", str(log), sys.executable, "-c", script]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
        subprocess.run([*traced, str(tmp_path), *names], check=True, env=environment)
        text = log.read_text()
        for name in names:
            path = tmp_path.resolve() / ticket.tree_path(name)
            for needed in (
                path,
                *(above for above in path.parents if above.is_relative_to(tmp_path.resolve())),
            ):
                assert f"<{needed}>)" in text, needed

    @pytest.mark.parametrize("kind", [PackTable, TreeTable])
    def test_a_flush_needs_no_descriptor_that_others_may_have(
        self, kind: type[PackTable] | type[TreeTable], data_fd: int
    ) -> None:
        table = kind(data_fd, STORE_ID, 64)
        table.sync_each_file()
        table.replay_puts(b"".join(frame(FIRST + PACK_SLOTS * i) for i in range(10)))
        table.write_headers()
        table.flush_begins()
        with no_descriptor_left(data_fd):
            table.sync()
        table.flush_done()
        table.close()

    @pytest.mark.parametrize("kind", [PackTable, TreeTable])
    @pytest.mark.parametrize("times", [0, 1, 3])
    def test_who_had_no_descriptor_for_a_moment_goes_on(
        self, kind: type[PackTable] | type[TreeTable], times: int, data_fd: int
    ) -> None:
        """However often it was tried meanwhile. In a thread: a lock that is kept would hold this one up for ever."""
        table = kind(data_fd, STORE_ID, 64)

        def steps() -> None:
            with no_descriptor_left(data_fd):
                table.sync_each_file()
                for i in range(times):
                    with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
                        table.replay_puts(frame(FIRST + PACK_SLOTS * i))
            for i in range(3):
                table.replay_puts(frame(FIRST + PACK_SLOTS * i))
            table.write_headers()
            table.flush_begins()
            table.sync()
            table.flush_done()
            table.close()
            done.append(True)

        done: list[bool] = []
        thread = threading.Thread(target=steps, daemon=True)
        thread.start()
        thread.join(60)
        assert done

    @pytest.mark.skipif(STRACE is None, reason="strace is not installed")
    @pytest.mark.parametrize("kind", ["_pack_table.PackTable", "_tree_table.TreeTable"])
    def test_nor_where_the_kernel_has_no_openat2(self, kind: str, tmp_path: Path) -> None:
        module, name = kind.split(".")
        script = (
            "import os, resource, sys\n"
            "from put_rig import frame\n"
            "from ingest import ticket\n"
            f"from ingest.store.layouts.{module} import {name} as Kind\n"
            "root = os.open(sys.argv[1], os.O_RDONLY)\n"
            "table = Kind(root, bytes(16), 64)\n"
            "table.sync_each_file()\n"
            "table.replay_puts(frame(ticket.parse('FSYNC00')))\n"
            "table.write_headers()\n"
            "table.flush_begins()\n"
            "used = max(map(int, os.listdir('/proc/self/fd'))) + 1\n"
            "resource.setrlimit(resource.RLIMIT_NOFILE, (used, used))\n"
            "try:\n"
            "    while True: os.dup(root)\n"
            "except OSError: table.sync()\n"
            "print('synced')\n"
        )
        options = ["-o", str(tmp_path / "calls"), "-e", "inject=openat2:error=ENOSYS"]
        data = tmp_path / "data"
        data.mkdir()
        traced = [str(STRACE), "-f", *options, sys.executable, "-c", script, str(data)]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
        done = subprocess.run(
            traced, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.stdout == "synced\n", done.stderr

    def test_a_sync_that_fails_is_an_error(self, tmp_path: Path) -> None:
        fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
        table = PackTable(fd, STORE_ID, 64)
        os.close(fd)
        table.flush_begins()
        with pytest.raises(OSError) as caught:
            table.sync()
        assert caught.value.errno == errno.EBADF


@contextmanager
def no_descriptor_left(fd: int) -> Iterator[None]:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(int(name) for name in os.listdir("/proc/self/fd")) + 1
    taken = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (used, limit[1]))
    try:
        with suppress(OSError):
            while True:
                taken.append(os.dup(fd))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        for duplicate in taken:
            os.close(duplicate)


class TestOthersDuringAFlush:
    """What a flush opens a directory with is nobody else's to keep: neither a put's, for its pack, nor the log's."""

    FLUSHES = 4  # a flush gives up its descriptors for moments only: others must meet one

    @pytest.fixture
    def rig(self, tmp_path: Path) -> Iterator[CommitterRig]:
        with CommitterRig(tmp_path, open_max=128) as rig:
            rig.packs.sync_each_file()
            for index in self.packs(0, 3):
                rig.put(index)
            rig.settle()
            self.flush(rig)
            yield rig

    def packs(self, first: int, count: int) -> list[int]:
        """A ticket of each, in directories of their own."""
        return [FIRST + PACK_SLOTS * 36 * i for i in range(first, first + count)]

    def flush(self, rig: CommitterRig) -> None:
        rig.packs.flush_begins()
        rig.packs.sync()
        rig.packs.flush_done()
        rig.packs.give_back(99)

    def flush_while(self, rig: CommitterRig, work: Callable[[], object]) -> None:
        """A flush of dirty packs in a thread, with no descriptor left, and `work` again and again until it ends."""
        thread = threading.Thread(target=rig.packs.sync, daemon=True)
        rig.packs.flush_begins()
        with no_descriptor_left(rig.data_fd):
            thread.start()
            deadline = time.monotonic() + 10
            while thread.is_alive() and time.monotonic() < deadline:
                work()
            ended = not thread.is_alive()
        thread.join()
        assert ended, "the flush got no descriptor"

    def test_a_put_waits_for_the_flush(self, rig: CommitterRig) -> None:
        for flush in range(self.FLUSHES):
            for index in self.packs(10 + 20 * flush, 20):
                rig.put(index)
            rig.settle()
            waiting = [rig.put(index + 1 + flush) for index in self.packs(0, 3)]
            self.flush_while(rig, rig.commit)
            assert [rig.answer(cookie) for cookie in waiting] == [None] * 3
            rig.packs.flush_done()
            rig.packs.give_back(99)
            rig.settle()
            assert [rig.answer(cookie) for cookie in waiting] == [Status.SAVED] * 3
            self.flush(rig)

    def test_a_log_segment_waits_for_the_flush(self, rig: CommitterRig) -> None:
        refused = []

        def grow() -> None:
            try:
                rig.log.make_spare()
            except OSError as error:
                refused.append(error.errno)

        segments = rig.log.segments
        for flush in range(self.FLUSHES):
            for index in self.packs(10 + 20 * flush, 20):
                rig.put(index)
            rig.settle()
            self.flush_while(rig, grow)
            rig.packs.flush_done()
            rig.packs.give_back(99)
        assert set(refused) == {errno.EMFILE}
        assert rig.log.segments == segments
        rig.log.make_spare()
        assert rig.log.segments == segments + 1

    def test_what_was_lost_to_somebody_comes_back(self, rig: CommitterRig) -> None:
        for index in self.packs(10, 20):
            rig.put(index)
        rig.settle()
        taken: list[int] = []

        def take() -> None:
            """As whoever opens something for a moment, and knows nothing of the flush."""
            while taken:
                os.close(taken.pop())
            with suppress(OSError):
                taken.append(os.dup(rig.data_fd))

        self.flush_while(rig, take)
        rig.packs.flush_done()
        while taken:
            os.close(taken.pop())


@pytest.mark.skipif(STRACE is None, reason="strace is not installed")
def test_all_of_a_directory_is_synced_file_by_file(mounted: Path, tmp_path: Path) -> None:
    """What an export and a repair of the log rest on."""
    (mounted / "A/B").mkdir(parents=True)
    for name in ("A/one", "A/B/two"):
        (mounted / name).write_bytes(b"x")
    log = tmp_path / "calls"
    script = ("import os, sys; from pathlib import Path; from ingest.runtime.file_system import sync_everything; "
              "sync_everything(Path(sys.argv[1]), os.open(sys.argv[1], os.O_RDONLY))")  # fmt: skip
    traced = [
        str(STRACE),
        "-y",
        "-e",
        "trace=fsync,syncfs",
        "-o",
        str(log),
        sys.executable,
        "-c",
        script,
        str(mounted),
    ]
    subprocess.run(traced, check=True)
    text = log.read_text()
    for name in ("A/one", "A/B/two", "A/B", "A", ""):
        assert f"<{(mounted / name).resolve()}>" in text, name
    assert text.count("syncfs(") == 1
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    sync_everything(tmp_path, fd)
    os.close(fd)
