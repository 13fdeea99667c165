"""Layout tree, file by file: what a file means, and what becomes of those that a crash or somebody else left."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from committer_rig import CommitterRig
from packs import KEYS as PACK_KEYS
from packs import flat
from packs import frame as signed
from put_rig import frame

from ingest import limits, sharding, ticket
from ingest.errors import ConfigError, CorruptionError, TicketError, UsageError
from ingest.limits import DATA_SIZE, PACK_SLOTS
from ingest.status import Status
from ingest.store.layouts import tree_file
from ingest.store.layouts._tree_reader import TreeReader
from ingest.store.layouts._tree_table import TreeTable
from ingest.store.layouts.tree_file import TreeFile, check_file_system

S, E, D, MISSING = Status.SAVED, Status.ERROR, Status.DELETED, Status.MISSING
FIRST = ticket.parse("TREE000")
PACK, SLOT = sharding.ticket_pack(FIRST), sharding.ticket_slot(FIRST)
CHECKSUM = bytes(range(8))
DATA = bytes(i % 251 for i in range(DATA_SIZE))


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[CommitterRig]:
    with CommitterRig(tmp_path, layout="tree") as rig:
        yield rig
        rig.core.check()


class Files:
    """Tickets' files below `root`, made by plain file operations."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)

    def path(self, index: int) -> Path:
        return self.root / ticket.tree_path(ticket.format(index))

    def write(self, index: int, file: TreeFile) -> None:
        path = self.path(index)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as target:
            file.write(target.fileno())

    def put(self, index: int) -> None:
        raw = signed(index)
        self.write(index, TreeFile(raw[16:], raw[8:16], False))

    def delete(self, index: int) -> None:
        self.write(index, TreeFile(b"", None, True))

    def reader(self) -> TreeReader:
        return TreeReader(self.fd, [PACK_KEYS])


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Files]:
    files = Files(tmp_path)
    yield files
    os.close(files.fd)


class TestFormat:
    @pytest.mark.parametrize(
        ("file", "status"),
        [
            (TreeFile(DATA, CHECKSUM, False), S),
            (TreeFile(b"", None, True), D),
            (TreeFile(DATA, CHECKSUM, True), D),  # a delete was cut off: what is deleted stays so
            (TreeFile(DATA, None, False), MISSING),  # a put was cut off
            (TreeFile(b"", None, False), MISSING),
        ],
    )
    def test_what_a_file_means(self, file, status):
        assert file.status is status

    @pytest.mark.parametrize(
        ("file", "message"),
        [
            (TreeFile(DATA, b"", False), "has 0 bytes, expected 8"),
            (TreeFile(DATA, bytes(9), False), "has 9 bytes, expected 8"),
            (TreeFile(DATA[:-1], CHECKSUM, False), "only 1457 bytes"),
            (TreeFile(DATA + b"x", CHECKSUM, False), "more than 1458 bytes"),
            (TreeFile(b"", CHECKSUM, False), "only 0 bytes"),
        ],
    )
    def test_what_no_server_leaves(self, file, message):
        with pytest.raises(CorruptionError, match=message):
            _ = file.status

    def test_a_file_is_read_as_it_was_written(self, files):
        for file in (
            TreeFile(DATA, CHECKSUM, False),
            TreeFile(b"", None, True),
            TreeFile(b"half", None, False),
        ):
            files.write(FIRST, file)
            with files.path(FIRST).open("rb") as source:
                assert TreeFile.read(source.fileno()) == file
            files.path(FIRST).unlink()

    def test_a_frame_is_put_together_again(self):
        assert TreeFile(DATA, CHECKSUM, False).frame("ABC") == b"ABC\0\0\0\0\0" + CHECKSUM + DATA

    def test_what_the_server_writes(self, rig):
        rig.put(FIRST, b"chunk")
        rig.delete(FIRST + 1, 1)
        rig.commit()
        path = rig.path(FIRST)
        assert path == rig.data / "TR" / "EE" / "00" / "0" / "obj"
        assert path.read_bytes() == b"chunk".ljust(DATA_SIZE, b"\0")
        assert {name: os.getxattr(path, name) for name in os.listxattr(path)} == {
            "user.ingest.checksum": frame(FIRST, b"chunk")[8:16]
        }
        gone = rig.path(FIRST + 1)
        assert gone.read_bytes() == b""
        assert {name: os.getxattr(gone, name) for name in os.listxattr(gone)} == {"user.ingest.deleted": b"1"}

    def test_a_deleted_chunk_leaves_nothing_but_its_tombstone(self, rig):
        rig.put(FIRST)
        rig.commit()
        rig.delete(FIRST, 1)
        rig.commit()
        assert (rig.path(FIRST).read_bytes(), os.listxattr(rig.path(FIRST))) == (b"", ["user.ingest.deleted"])


class TestLeftovers:
    """What the committer finds where it is to write."""

    def leave(self, rig: CommitterRig, file: TreeFile, index: int = FIRST) -> None:
        rig.path(index).parent.mkdir(parents=True, exist_ok=True)
        with rig.path(index).open("wb") as target:
            file.write(target.fileno())

    @pytest.mark.parametrize("left", [b"", b"half a chunk", bytes(5000)])
    def test_a_file_without_attributes_holds_nothing(self, rig, left):
        self.leave(rig, TreeFile(left, None, False))
        assert rig.put(FIRST) and rig.commit() is None
        assert rig.stored(FIRST) == frame(FIRST, b"data")

    @pytest.mark.parametrize(
        "file",
        [
            TreeFile(DATA, CHECKSUM, False),
            TreeFile(DATA, b"short", False),
            TreeFile(DATA, bytes(64), False),
            TreeFile(DATA[:-1], CHECKSUM, False),
            TreeFile(b"", CHECKSUM, False),
        ],
        ids=["wrong checksum", "short checksum", "long checksum", "short data", "no data"],
    )
    def test_a_corrupt_one_is_an_error_and_stays_as_it_is(self, rig, file):
        self.leave(rig, file)
        cookie, beside = rig.put(FIRST), rig.put(FIRST + 1)
        rig.commit()
        assert (rig.answers[cookie], rig.answers[beside]) == ([E], [S])
        assert len(rig.core.corrupt) == 1
        with rig.path(FIRST).open("rb") as source:
            assert TreeFile.read(source.fileno()) == file

    @pytest.mark.parametrize(
        "there",
        ["nothing", "no_directory", "file", "directory", "link", "linked_directory", "socket", "fifo"],
    )
    def test_whatever_stands_in_the_place_of_a_chunk_is_damage(self, rig, there, tmp_path, monkeypatch):
        """Of that ticket alone, and of nothing else: it is no error of the disk, which its neighbours could have too."""
        rig.put_run(FIRST, 3)
        rig.commit()
        path = rig.path(FIRST + 1)
        shutil.move(path.parent, tmp_path / "moved")
        if there == "file":
            path.parent.write_bytes(b"")
        elif there == "linked_directory":
            path.parent.symlink_to(tmp_path / "moved")
        elif there != "no_directory":
            path.parent.mkdir()
        if there == "directory":
            path.mkdir()
        elif there == "link":
            path.symlink_to(tmp_path / "moved" / "obj")
        elif there == "socket":
            monkeypatch.chdir(path.parent)  # the names of sockets are short
            with socket.socket(socket.AF_UNIX) as holder:
                holder.bind(path.name)
        elif there == "fifo":
            os.mkfifo(path)
        again = rig.put_run(FIRST, 3)
        rig.commit()
        assert rig.answers[again] == [S, E, S]
        assert (rig.core.corrupt, rig.core.disk_errors) == ([(PACK, SLOT + 1)], [])

    def test_a_delete_that_was_cut_off_counts(self, rig):
        self.leave(rig, TreeFile(DATA, CHECKSUM, True))
        cookie = rig.put(FIRST)
        rig.commit()
        assert rig.answers[cookie] == [D]

    def test_a_file_of_another_ticket_is_corruption(self, rig):
        rig.put(FIRST)
        rig.commit()
        rig.packs.close()
        rig.path(FIRST + 1).parent.mkdir()
        rig.path(FIRST).rename(rig.path(FIRST + 1))
        cookie = rig.put(FIRST + 1)
        rig.commit()
        assert rig.answers[cookie] == [E]

    @pytest.mark.parametrize("depth", [1, 2, 3, 4])
    def test_no_symbolic_link_is_followed(self, rig, tmp_path, depth):
        outside = tmp_path / "outside"
        outside.mkdir()
        parts = ("TR", "EE", "00", "0", "obj")
        where = rig.data.joinpath(*parts[:depth])
        where.parent.mkdir(parents=True, exist_ok=True)
        where.symlink_to(outside / "obj" if depth == 5 else outside)
        cookie, gone = rig.put(FIRST), rig.delete(FIRST + 1, 1)
        rig.commit()
        assert rig.answers[cookie] == [E]
        if depth < 4:
            assert rig.answers[gone] == [E]
        assert os.listdir(outside) == []

    def test_a_link_in_place_of_the_file_is_not_followed(self, rig, tmp_path):
        victim = tmp_path / "victim"
        victim.write_bytes(b"not ours")
        rig.path(FIRST).parent.mkdir(parents=True)
        rig.path(FIRST).symlink_to(victim)
        cookie = rig.put(FIRST)
        rig.commit()
        assert rig.answers[cookie] == [E]
        assert victim.read_bytes() == b"not ours"

    def test_a_file_that_the_log_covers_is_completed(self, rig):
        for i, spoil in enumerate(
            (
                lambda path: os.truncate(path, 3),
                lambda path: os.removexattr(path, tree_file.CHECKSUM),
                lambda path: path.write_bytes(bytes(3000)),
                lambda path: path.unlink(),
            )
        ):
            rig.put(FIRST + i)
            rig.commit()
            spoil(rig.path(FIRST + i))
        rig.crash()
        for i in range(4):
            assert rig.stored(FIRST + i) == frame(FIRST + i, b"data")

    @pytest.mark.parametrize("name", ["100", "TREE000", "TREE100", "ABC0100"])
    @pytest.mark.parametrize("before", [1, 2, 36])
    def test_what_lies_behind_a_directory_that_is_missing_is_seen(self, rig, name, before):
        """What is learnt of that directory says nothing of the next one: a ticket is written once."""
        index = ticket.parse(name) + 36
        stored = signed(index)
        path = rig.path(index)
        path.parent.mkdir(parents=True)
        with path.open("wb") as file:
            TreeFile(stored[16:], stored[8:16], False).write(file.fileno())
        other = rig.put(index - before, b"other")
        rig.commit()
        cookie = rig.put(index, b"not what is there")
        rig.commit()
        assert (rig.answer(other), rig.answer(cookie)) == (S, Status.CONFLICT)
        assert path.read_bytes() == stored[16:]

    def test_a_note_of_layout_pack_is_refused(self, tmp_path):
        fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
        with pytest.raises(CorruptionError, match="the layout of this store is tree"):
            TreeTable(fd, bytes(16), 64).replay_note(5, 0, 1)
        os.close(fd)


class TestLargeDeletes:
    """A delete of so many tickets that it takes more than one step."""

    COUNT = 3 * limits.BATCH_ERASED_FILES_MAX // 2

    def begin(self, rig: CommitterRig) -> int:
        rig.put(FIRST)
        rig.put(FIRST + self.COUNT - 1)
        rig.commit()
        gone = rig.delete(FIRST, self.COUNT)
        rig.plan()
        rig.write()
        assert rig.core.erasing
        return gone

    def test_others_have_their_turn_and_its_tickets_wait(self, rig):
        gone = self.begin(rig)
        assert (rig.stored(FIRST), rig.stored(FIRST + self.COUNT - 1)) == (
            D,
            frame(FIRST + self.COUNT - 1, b"data"),
        )
        other, inside, late = rig.put(FIRST - 1), rig.put(FIRST + self.COUNT - 1), rig.delete(FIRST - 2, 1)
        rig.plan()
        rig.write()
        assert rig.answers[other] == [S]
        assert [rig.answers[cookie] for cookie in (gone, inside, late)] == [[None]] * 3
        rig.erase()
        assert rig.answers[gone] == [D]
        rig.settle()
        assert [rig.answers[cookie] for cookie in (inside, late)] == [[D], [D]]

    def test_a_flush_in_the_middle_keeps_its_log(self, rig):
        self.begin(rig)
        rig.put(FIRST - 1)
        rig.plan()
        rig.write()
        rig.flush()
        rig.put(FIRST - 2)
        rig.plan()
        rig.write()
        rig.crash()
        assert (rig.recovered.deletes, rig.recovered.frames) == (1, 2)
        assert {rig.stored(FIRST + i) for i in range(self.COUNT)} == {D}
        assert rig.stored(FIRST - 1) == frame(FIRST - 1, b"data")

    def test_a_flush_behind_it_frees_the_log(self, rig):
        self.begin(rig)
        rig.erase()
        rig.flush()
        rig.put(FIRST - 1)
        rig.commit()
        rig.crash()
        assert (rig.recovered.deletes, rig.recovered.frames) == (0, 1)

    def test_small_ones_share_a_batch_with_it_as_far_as_its_bound_goes(self, rig):
        cookies = [rig.delete(FIRST + 1000 * i, 1000) for i in range(70)]
        rig.plan()
        assert 1 < rig.core.round.delete_frames <= 64
        assert rig.packs.claimed == 1000 * rig.core.round.delete_frames <= limits.RANGE_COUNT_MAX
        rig.core.round.answer(failed=True)
        rig.collect()
        assert rig.packs.claimed > 0 and rig.answers[cookies[0]] == [E]

    @pytest.fixture
    def rig(self, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[CommitterRig]:
        with CommitterRig(tmp_path, layout="tree") as rig:
            yield rig


class TestBounds:
    def test_too_many_dirty_files_wait_for_a_flush(self, rig, monkeypatch):
        most = rig.packs.dirty_max
        rig.delete(FIRST, 1)
        rig.commit()
        assert rig.packs.dirty_count == 1
        rounds = 0
        while not rig.packs.wants_flush:
            rig.packs.replay_delete(0, 0, 1)  # counts as one file each time
            rounds += 1
        assert rounds == most // 2 - 1
        while rig.packs.dirty_count < most:
            rig.packs.replay_delete(0, 0, 1)
        cookie = rig.put(FIRST + 5)
        rig.commit()
        assert rig.core.round.stalled and rig.answers[cookie] == [None]
        rig.flush()
        rig.commit()
        assert rig.answers[cookie] == [S]

    def test_descriptors_do_not_grow_with_packs(self, rig):
        for i in range(100):
            rig.put(FIRST + PACK_SLOTS * i)
        rig.commit()
        before = len(os.listdir("/proc/self/fd"))
        for i in range(100, 200):
            rig.put(FIRST + PACK_SLOTS * i)
        rig.settle()
        assert len(os.listdir("/proc/self/fd")) == before


class TestReader:
    def test_a_range_over_all_that_there_is(self, files):
        for i in (0, 1, 2, 70, 71, 100):
            files.put(FIRST + i)
        files.delete(FIRST + 3)
        files.delete(FIRST + 69)
        files.write(FIRST + 80, TreeFile(DATA, b"short", False))
        files.write(FIRST + 81, TreeFile(DATA, None, False))
        expected = [(MISSING, b"")] * 200
        for i in (0, 1, 2, 70, 71, 100):
            expected[50 + i] = (S, signed(FIRST + i))
        for i in (3, 69):
            expected[50 + i] = (D, b"")
        expected[50 + 80] = (E, b"")
        reader = files.reader()
        assert flat(reader.read_range(FIRST - 50, 200), FIRST - 50) == expected

    @pytest.mark.parametrize("count", [35, 36, 37, 63, 64, 65, 130])
    def test_long_runs(self, files, count):
        for i in range(count):
            files.put(FIRST + i)
        found = flat(files.reader().read_range(FIRST, count + 1), FIRST)
        assert found == [(S, signed(FIRST + i)) for i in range(count)] + [(MISSING, b"")]

    @pytest.mark.parametrize("name", ["0", "Z", "00", "ZZ", "000", "AB1", "ABC1", "ABCDE1", "ZZZZZZZZ"])
    def test_every_length_of_ticket(self, files, name):
        index = ticket.parse(name)
        files.put(index)
        assert files.reader().read_chunk(index) == (S, signed(index))

    def test_from_one_length_to_the_next(self, files):
        last = ticket.parse("ZZ")
        for index in range(last - 5, last + 6):
            files.put(index)
        found = flat(files.reader().read_range(last - 5, 11), last - 5)
        assert found == [(S, signed(index)) for index in range(last - 5, last + 6)]

    def test_what_is_missing_takes_few_looks(self, files):
        """65,536 tickets in the order of a client's request: a run for each directory that is not there."""
        runs = files.reader().read_range(FIRST, limits.RANGE_COUNT_MAX)
        assert {status for _, status, _, _ in runs} == {MISSING}
        assert len(runs) <= limits.RANGE_COUNT_MAX // 36 + 2

    @pytest.mark.parametrize("size", [0, 1457, 1459])
    def test_a_file_of_the_wrong_length_is_an_error(self, files, size):
        files.write(FIRST, TreeFile(bytes(size), CHECKSUM, False))
        assert files.reader().read_chunk(FIRST) == (E, b"")

    def test_other_data_are_an_error_of_a_single_chunk(self, files):
        raw = signed(FIRST)
        files.write(FIRST, TreeFile(raw[16:-1] + b"?", raw[8:16], False))
        assert files.reader().read_chunk(FIRST) == (E, b"")

    def test_what_is_written_later_is_seen(self, files):
        reader = files.reader()
        assert reader.read_chunk(FIRST) == (MISSING, b"")
        files.put(FIRST)
        assert reader.read_chunk(FIRST) == (S, signed(FIRST))
        files.delete(FIRST)
        assert reader.read_chunk(FIRST) == (D, b"")

    def test_links_are_not_followed(self, files, tmp_path):
        files.put(FIRST)
        files.path(FIRST + 1).parent.symlink_to(files.path(FIRST).parent)
        assert files.reader().read_chunk(FIRST + 1) == (E, b"")

    def test_it_closes_what_it_opens(self, files):
        for i in range(100):
            files.put(FIRST + i)
        before = len(os.listdir("/proc/self/fd"))
        reader = files.reader()
        reader.read_range(FIRST, 101)
        assert len(os.listdir("/proc/self/fd")) - before == len(reader) <= 64
        reader.close()
        assert len(os.listdir("/proc/self/fd")) == before

    def test_bad_arguments(self, files):
        with pytest.raises(TicketError):
            files.reader().read_chunk(ticket.LAST + 1)
        with pytest.raises(UsageError, match="16 bytes"):
            TreeReader(files.fd, [], b"short")


@pytest.mark.parametrize("command", ["server", "check-config"])
def test_a_file_system_without_attributes_is_refused(tmp_path: Path, command: str) -> None:
    """In a mount namespace of its own, on a ramfs, which keeps none."""
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("unshare is not installed")
    mount = f"mount -t ramfs none {tmp_path} && "
    in_namespace = [unshare, "--user", "--map-root-user", "--mount", "sh", "-c"]
    probe = subprocess.run([*in_namespace, f"{mount} true"], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"no mount namespace here: {probe.stderr.strip()}")
    ports = " ".join(f"--{name}=127.0.0.1:0" for name in ("listen", "read-listen", "admin-listen"))
    server = f"{sys.executable} -m ingest {command} --data-dir {tmp_path}/data --layout tree {ports}"
    done = subprocess.run(
        [*in_namespace, mount + server], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 78, done.stderr
    assert "extended attributes" in done.stdout + done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("lacks", [tree_file.CHECKSUM, tree_file.DELETED])
@pytest.mark.parametrize(
    ("code", "is_the_file_system"),
    [
        (errno.EOPNOTSUPP, True),
        (errno.ENOSPC, True),
        (errno.EPERM, True),
        (errno.EIO, False),
        (errno.EDQUOT, False),
    ],
)
def test_a_file_system_must_keep_both_attributes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacks: str, code: int, is_the_file_system: bool
) -> None:
    """Asked before a store is made there. What a disk fails to do is no fault of who set it up."""

    def setxattr(_: int, name: str, __: bytes) -> None:
        if name == lacks:
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "setxattr", setxattr)
    expected = ConfigError if is_the_file_system else OSError
    with pytest.raises(expected, match=os.strerror(code)):
        check_file_system(tmp_path)
    assert list(tmp_path.iterdir()) == []
