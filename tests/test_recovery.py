"""Recovery from every state in which a server can be cut off: made on the disk, then started on."""

from __future__ import annotations

import errno
import itertools
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from committer_rig import LOG_ID, SEGMENT_SIZE, CommitterRig
from put_rig import KEYS, OTHER_KEYS, frame

from ingest import sharding
from ingest.errors import CorruptionError
from ingest.limits import FRAME_SIZE, PACK_SLOTS
from ingest.status import Status
from ingest.store.layouts import _slot_table
from ingest.store.layouts._pack_table import LostHeaderError
from ingest.store.layouts.pack_file import PackHeader, bits_of
from ingest.store.log import recovery
from ingest.store.log.log_format import BLOCK_SIZE
from ingest.store.log.recovery import recover

S, E, C, N, D = Status.SAVED, Status.ERROR, Status.CONFLICT, Status.NO_SPACE, Status.DELETED
MISSING = Status.MISSING
PACK = 5
FIRST = 36 + PACK * PACK_SLOTS


@pytest.fixture
def rig(tmp_path: Path, layout: str) -> Iterator[CommitterRig]:
    with CommitterRig(tmp_path, layout=layout) as rig:
        yield rig


def path_of(rig: CommitterRig, pack: int = PACK) -> Path:
    return rig.data / sharding.pack_path(pack)


def damage(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def process_io() -> tuple[int, int]:
    """Bytes that this process has read and written so far, by system calls."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"]), int(fields["wchar"])


def log_batch(rig: CommitterRig) -> None:
    """The batch is planned and its log record synced; then the power goes."""
    rig.plan()
    rig.core.round.write_notes()
    rig.log.append(
        rig.core.round.buffer, rig.core.round.puts, rig.core.round.delete_frames, rig.core.round.notes
    )


def remove_packs(rig: CommitterRig) -> None:
    """What a power cut does to files and directories that were never synced."""
    for path in sorted(rig.data.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


class TestSteps:
    @pytest.mark.layout("pack")
    @pytest.mark.parametrize("kind", ["put", "delete"])
    def test_nothing_of_the_last_batch_is_readable_before_it_is_durable(self, rig, monkeypatch, kind):
        """Its sync may have failed, or never begun: workers serve gets while recovery runs."""
        rig.put(FIRST)
        rig.commit()
        rig.put(FIRST + 1) if kind == "put" else rig.delete(FIRST, 1)
        log_batch(rig)
        before = path_of(rig).read_bytes()

        def fails(*_: object) -> None:
            raise OSError(errno.EIO, "the disk")

        monkeypatch.setattr(recovery, "_settle", fails)
        rig.recovered.writer.close()
        with pytest.raises(OSError, match="the disk"):
            recover(rig.packs, rig.wal, LOG_ID, [KEYS.put], segment_size=SEGMENT_SIZE)
        after = path_of(rig).read_bytes()
        assert before[64:400] == after[64:400]  # the bits
        assert before[sharding.slot_offset(0) :][:FRAME_SIZE] == after[sharding.slot_offset(0) :][:FRAME_SIZE]

    def test_planned_only(self, rig):
        rig.put(FIRST)
        rig.plan()
        rig.crash()
        assert (rig.recovered.batches, rig.stored(FIRST)) == (0, MISSING)

    def test_logged(self, rig):
        rig.put_run(FIRST, 3)
        log_batch(rig)
        rig.crash()
        assert (rig.recovered.batches, rig.recovered.frames) == (1, 3)
        assert [rig.stored(FIRST + i) for i in range(4)] == [
            *(frame(FIRST + i, b"data") for i in range(3)),
            MISSING,
        ]

    def test_logged_and_the_packs_never_reached_the_disk(self, rig):
        for first in (0, 36, FIRST, FIRST + 1296 * 50):
            rig.put_run(first, 30)
        rig.commit()
        remove_packs(rig)
        rig.crash()
        for first in (0, 36, FIRST, FIRST + 1296 * 50):
            assert rig.stored(first + 29) == frame(first + 29, b"data")

    @pytest.mark.layout("pack")
    def test_slots_written_and_bits_not(self, rig):
        rig.put_run(FIRST, 2)
        log_batch(rig)
        damage(path_of(rig), sharding.slot_offset(0), frame(FIRST, b"data"))
        rig.crash()
        assert [rig.stored(FIRST + i) for i in range(2)] == [frame(FIRST + i, b"data") for i in range(2)]

    @pytest.mark.layout("pack")
    def test_bits_written_and_slots_not(self, rig):
        """Header and slots are different blocks: any of them may have reached the disk alone."""
        rig.put_run(FIRST, 3)
        rig.commit()
        damage(path_of(rig), sharding.slot_offset(1), b"\0" * FRAME_SIZE)
        rig.crash()
        assert rig.stored(FIRST + 1) == frame(FIRST + 1, b"data")

    @pytest.mark.layout("pack")
    def test_bits_written_and_garbage_in_slots(self, rig):
        rig.put_run(FIRST, 3)
        rig.commit()
        damage(path_of(rig), sharding.slot_offset(0), os.urandom(3 * FRAME_SIZE))
        rig.crash()
        assert rig.stored(FIRST + 2) == frame(FIRST + 2, b"data")

    def test_the_file_was_cut_short(self, rig, layout):
        rig.put_run(FIRST, 50)
        rig.commit()
        os.truncate(rig.path(FIRST + 49), sharding.slot_offset(20) if layout == "pack" else 700)
        rig.crash()
        assert rig.stored(FIRST + 49) == frame(FIRST + 49, b"data")

    @pytest.mark.layout("pack")
    def test_an_old_header_over_new_slots(self, rig):
        rig.put(FIRST)
        rig.commit()
        old = path_of(rig).read_bytes()[:512]
        rig.put(FIRST + 1)
        rig.delete(FIRST + 9, 1)
        rig.commit()
        damage(path_of(rig), 0, old)
        rig.crash()
        assert [rig.stored(FIRST + i) for i in (0, 1, 9)] == [
            frame(FIRST, b"data"),
            frame(FIRST + 1, b"data"),
            D,
        ]

    def test_answered_and_flushed_is_not_done_again(self, rig):
        rig.put_run(FIRST, 10)
        rig.commit()
        rig.flush()
        rig.put(FIRST + 10)
        rig.commit()
        rig.crash()
        assert (rig.recovered.batches, rig.recovered.frames) == (1, 1)

    def test_recovery_cut_off_and_done_again(self, rig):
        rig.put_run(FIRST, 10)
        rig.delete(FIRST + 20, 5)
        rig.commit()
        rig.delete(FIRST, 5)
        rig.commit()
        before = None
        for _ in range(3):
            rig.crash()
            assert (rig.recovered.frames, rig.recovered.deletes) == (10, 2)
            now = [rig.stored(FIRST + i) for i in range(30)]
            assert before in (None, now)
            before = now
        assert (
            before
            == [D] * 5
            + [frame(FIRST + i, b"data") for i in range(5, 10)]
            + [MISSING] * 10
            + [D] * 5
            + [MISSING] * 5
        )

    def test_a_torn_batch_was_never_answered(self, rig):
        rig.put(FIRST)
        rig.commit()
        rig.put(FIRST + 1)
        log_batch(rig)
        (segment,) = (path for path in rig.wal.glob("*.log") if path.stat().st_size)
        damage(segment, 2 * BLOCK_SIZE + 512, b"\xff" * 512)
        rig.crash()
        assert rig.recovered.batches == 1
        assert "batch 2 fails its digest" in rig.recovered.torn
        assert [rig.stored(FIRST + i) for i in range(2)] == [frame(FIRST, b"data"), MISSING]
        rig.put(FIRST + 1, b"other")
        rig.commit()
        assert rig.log.number == 2
        rig.crash()
        assert rig.stored(FIRST + 1) == frame(FIRST + 1, b"other")

    def test_the_server_goes_on_after_many_crashes_in_the_same_segments(self, rig):
        for round_ in range(12):
            rig.put(FIRST + round_, b"%d" % round_)
            rig.commit()
            rig.flush()
            rig.crash()
        assert rig.log.segments <= 4
        assert [rig.stored(FIRST + i) for i in range(12)] == [frame(FIRST + i, b"%d" % i) for i in range(12)]


class TestOrder:
    def test_a_delete_after_a_put(self, rig):
        rig.put(FIRST)
        rig.commit()
        rig.delete(FIRST, 1)
        log_batch(rig)
        rig.crash()
        assert rig.stored(FIRST) is D

    @pytest.mark.layout("pack")
    def test_a_put_done_again_does_not_bring_back_what_was_deleted_later(self, rig):
        """The delete reached the disk, the log is read from before the put: in between a reader must not see it again."""
        rig.put_run(FIRST, 2)
        rig.commit()
        rig.delete(FIRST, 1)
        rig.commit()
        before = path_of(rig).read_bytes()[512:]
        seen = []

        class Watching(type(rig.packs)):  # type: ignore[misc]
            def replay_puts(self, frames: memoryview) -> None:
                super().replay_puts(frames)
                self.write_headers()
                seen.append(path_of(rig).read_bytes())

        rig.packs.close()
        packs = Watching(rig.data_fd, bytes(range(16)), 64)
        writer = recover(packs, rig.wal, LOG_ID, rig.put_keys, segment_size=SEGMENT_SIZE).writer
        assert len(seen) == 2
        for content in seen:
            assert content[512:] == before
            assert list(bits_of(PackHeader.parse(content).deleted)) == [0]
        writer.close()
        packs.close()

    @pytest.mark.layout("pack")
    def test_notes_of_bulk_jobs(self, rig):
        for i in range(2):
            rig.put_run(FIRST + 1296 * i, 1296, b"bulk")
        rig.plan()
        rig.finish_jobs()
        log_batch(rig)
        assert rig.stored(FIRST) is MISSING
        rig.crash()
        assert [rig.stored(FIRST + i) for i in (0, 1295, 1296, 2591)] == [
            frame(FIRST + i, b"bulk") for i in (0, 1295, 1296, 2591)
        ]

    @pytest.mark.layout("pack")
    def test_a_delete_of_what_a_note_brought(self, rig):
        for i in range(2):
            rig.put_run(FIRST + 1296 * i, 1296, b"bulk")
        rig.commit()
        rig.delete(FIRST + 5, 1)
        rig.commit()
        rig.crash()
        assert [rig.stored(FIRST + 4 + i) for i in range(3)] == [
            frame(FIRST + 4, b"bulk"),
            D,
            frame(FIRST + 6, b"bulk"),
        ]

    def test_a_delete_over_packs_that_are_not_there(self, rig):
        rig.delete(FIRST + 1000, 3000)
        log_batch(rig)
        remove_packs(rig)
        rig.crash()
        assert [rig.stored(FIRST + i) for i in (999, 1000, 3999, 4000)] == [MISSING, D, D, MISSING]


class Dying(recovery.PackTable):  # type: ignore[misc]
    """Dies before the call number ``steps_left`` of those that change a pack whose header is lost."""

    steps_left = 0

    def step(self) -> None:
        self.steps_left -= 1
        if self.steps_left == 0:
            raise KeyboardInterrupt

    def write_slots(self, pack: int, slot: int, frames: memoryview) -> None:
        self.step()
        super().write_slots(pack, slot, frames)

    def install_header(self, pack: int, bits: bytes) -> None:
        self.step()
        super().install_header(pack, bits)

    def replay_delete(self, pack: int, slot: int, count: int) -> None:
        self.step()
        super().replay_delete(pack, slot, count)


@pytest.mark.layout("pack")
class TestLostHeaders:
    def lose(self, rig: CommitterRig, content: bytes = b"x" * 512) -> None:
        rig.packs.close()
        damage(path_of(rig), 0, content)

    def test_it_is_rebuilt_from_the_slots_and_the_rest_counts_as_deleted(self, rig):
        rig.put_run(FIRST, 5)
        rig.commit()
        rig.delete(FIRST + 2, 1)
        rig.commit()
        rig.flush()
        rig.put(FIRST + 9)
        rig.commit()
        self.lose(rig)
        rig.crash()
        assert [rig.stored(FIRST + i) for i in range(5)] == [
            frame(FIRST, b"data"), frame(FIRST + 1, b"data"), D, frame(FIRST + 3, b"data"), frame(FIRST + 4, b"data")
        ]  # fmt: skip
        assert rig.stored(FIRST + 5) is D, "it may have been used"
        assert rig.stored(FIRST + 9) == frame(FIRST + 9, b"data")

    def test_a_frame_that_only_the_log_has_is_not_lost_with_the_header(self, rig):
        """Its slot does not check, but that is no sign of a delete: the log still says put."""
        rig.put(FIRST)
        rig.commit()
        rig.put(FIRST + 1, b"in the log")
        log_batch(rig)
        self.lose(rig)
        rig.crash()
        assert rig.stored(FIRST + 1) == frame(FIRST + 1, b"in the log")
        rig.crash()
        assert rig.stored(FIRST + 1) == frame(FIRST + 1, b"in the log")

    def test_what_the_log_deletes_after_that_stays_deleted(self, rig):
        rig.put_run(FIRST, 2)
        rig.commit()
        rig.delete(FIRST + 1, 1)
        rig.commit()
        self.lose(rig)
        rig.crash()
        assert [rig.stored(FIRST + i) for i in range(2)] == [frame(FIRST, b"data"), D]

    def test_a_header_that_never_reached_the_disk_is_no_loss(self, rig):
        rig.put_run(FIRST, 3)
        rig.commit()
        self.lose(rig, bytes(4096))
        rig.crash()
        assert [rig.stored(FIRST + i) for i in range(4)] == [
            *(frame(FIRST + i, b"data") for i in range(3)),
            MISSING,
        ]
        put = rig.put(FIRST + 3)
        rig.commit()
        assert rig.answers[put] == [S]

    def test_frames_of_other_slots_packs_or_keys_do_not_count(self, rig):
        rig.put(FIRST)
        rig.commit()
        rig.flush()
        for slot, content in enumerate(
            [
                frame(FIRST + 7),
                frame(FIRST + 1296 + 1),
                frame(FIRST + 2, b"", OTHER_KEYS.put),
                b"lower".ljust(FRAME_SIZE, b"\0"),
            ]
        ):
            damage(path_of(rig), sharding.slot_offset(slot), content)
        rig.put(FIRST + 9)
        log_batch(rig)
        self.lose(rig)
        rig.crash()
        assert list(bits_of(rig.header(PACK).present)) == [9]

    def test_a_foreign_header_is_not_rebuilt(self, rig):
        rig.put(FIRST)
        rig.commit()
        foreign = PackHeader.of_pack(PACK, bytes(16)).serialize()
        self.lose(rig, foreign)
        rig.close()
        with pytest.raises(CorruptionError, match="another store's pack"):
            rig.open()
        assert path_of(rig).read_bytes()[:4096] == foreign
        damage(path_of(rig), 0, PackHeader.of_pack(PACK, bytes(range(16))).serialize())
        rig.open()

    def test_a_disk_that_does_not_keep_the_new_header_is_no_endless_loop(self, rig, monkeypatch):
        rig.put(FIRST)
        rig.commit()
        self.lose(rig)
        rig.close()
        tries = []

        class Forgetful(recovery.PackTable):  # type: ignore[misc]
            def install_header(self, pack: int, bits: bytes) -> None:
                tries.append(pack)

        packs = Forgetful(os.open(rig.data, os.O_RDONLY), bytes(range(16)), 64)
        with pytest.raises(LostHeaderError):
            recover(packs, rig.wal, LOG_ID, rig.put_keys, segment_size=SEGMENT_SIZE)
        assert tries == [PACK]
        os.close(packs.data_fd)
        packs.close()
        rig.open()

    def test_many_cost_one_reading_of_each_and_none_of_the_log(self, tmp_path):
        """Whatever is lost, the log is read once, and no batch is begun again. Counted in bytes by the kernel."""

        def read_and_written(lost: int) -> tuple[int, int]:
            root = tmp_path / str(lost)
            root.mkdir()
            with CommitterRig(root) as rig:
                for i in range(100):
                    rig.put(FIRST + 1296 * i)
                rig.commit()
                rig.close()
                for i in range(lost):
                    damage(path_of(rig, PACK + i), 0, bytes(4096))
                before = process_io()
                rig.open()
                after = process_io()
                assert all(
                    rig.stored(FIRST + 1296 * i) == frame(FIRST + 1296 * i, b"data") for i in range(100)
                )
            return after[0] - before[0], after[1] - before[1]

        clean, some, many = (read_and_written(lost) for lost in (0, 10, 90))
        pack = 4096 + FRAME_SIZE
        for lost, (read, written) in ((10, some), (90, many)):
            assert read - clean[0] <= lost * (pack + 4 * 512)
            assert written - clean[1] <= lost * (4096 + 2 * 512)

    def test_a_recovery_that_dies_anywhere_is_done_again(self, tmp_path):
        """What a slot without a valid frame means, only the slots and the log say: neither may be gone too early."""

        def stored(rig: CommitterRig) -> list[object]:
            return [rig.stored(FIRST + 1296 * i + slot) for i in range(3) for slot in range(8)]

        seen = []
        step = done = 0
        while not done:
            step += 1
            root = tmp_path / str(step)
            root.mkdir()
            with CommitterRig(root, open_max=16) as rig:
                for i in range(3):
                    rig.put_run(FIRST + 1296 * i, 3)
                rig.commit()
                rig.flush()
                rig.put(FIRST + 4, b"logged")
                rig.put(FIRST + 1296 + 4, b"logged")
                rig.put(FIRST + 2592 + 4, b"logged")
                rig.commit()
                rig.delete(FIRST + 1, 2)
                rig.delete(FIRST + 1296, 3)
                log_batch(rig)
                rig.close()
                for i in range(3):
                    damage(path_of(rig, PACK + i), 0, bytes(4096) if i else b"x" * 512)
                packs = Dying(os.open(rig.data, os.O_RDONLY), bytes(range(16)), 16)
                packs.steps_left = step
                try:
                    recover(packs, rig.wal, LOG_ID, rig.put_keys, segment_size=SEGMENT_SIZE).writer.close()
                    done = step
                except KeyboardInterrupt:
                    pass
                os.close(packs.data_fd)
                packs.close()
                rig.open()
                seen.append(stored(rig))
                rig.crash()
                assert stored(rig) == seen[-1]
        assert done > 8
        assert all(states == seen[-1] for states in seen)
        first, second = frame(FIRST, b"data"), frame(FIRST + 1296 + 4, b"logged")
        assert seen[-1][:8] == [first, D, D, D, frame(FIRST + 4, b"logged"), D, D, D]
        assert seen[-1][8:16] == [D, D, D, D, second, D, D, D], "it held what the log has no put of"

    def test_nothing_is_erased_before_the_new_header_is_durable(self, rig, monkeypatch):
        """Until then the frames are all that says that the old header was not one that was never written."""
        rig.put_run(FIRST, 3)
        rig.commit()
        rig.flush()
        rig.delete(FIRST, 3)
        log_batch(rig)
        self.lose(rig, bytes(4096))
        slots = path_of(rig).read_bytes()[4096:]
        rig.close()

        def fails(fd: int) -> None:
            raise OSError(errno.EIO, "the disk")

        with monkeypatch.context() as patch:
            patch.setattr(_slot_table, "syncfs", fails)
            with pytest.raises(OSError, match="the disk"):
                rig.open()
        assert path_of(rig).read_bytes()[4096:] == slots
        damage(path_of(rig), 0, bytes(4096))  # the header that was not durable
        rig.open()
        assert [rig.stored(FIRST + i) for i in range(4)] == [D, D, D, D]

    def test_a_note_of_frames_that_are_gone_is_no_frame(self, rig):
        for i in range(2):
            rig.put_run(FIRST + 1296 * i, 1296, b"bulk")
        rig.plan()
        rig.finish_jobs()
        log_batch(rig)
        damage(path_of(rig), sharding.slot_offset(7), bytes(FRAME_SIZE))
        self.lose(rig)
        rig.crash()
        assert [rig.stored(FIRST + i) for i in (6, 7, 8)] == [
            frame(FIRST + 6, b"bulk"), D, frame(FIRST + 8, b"bulk")
        ]  # fmt: skip


@pytest.mark.layout("pack")
class TestFewDescriptors:
    """Recovery makes do with what there is, and closes packs for it: whatever the log asks of how many packs."""

    @pytest.fixture
    def few(self) -> Iterator[Callable[[int], None]]:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

        def leave(count: int) -> None:
            used = sorted(int(name) for name in os.listdir("/proc/self/fd"))
            free = (number for number in itertools.count() if number not in used)
            last = next(itertools.islice(free, count - 1, None))
            resource.setrlimit(resource.RLIMIT_NOFILE, (last + 1, hard))

        yield leave
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    @pytest.mark.parametrize("lost", [False, True])
    @pytest.mark.parametrize("descriptors", [12, 24, 400])
    def test_more_packs_than_there_are_descriptors(self, tmp_path, few, descriptors, lost):
        with CommitterRig(tmp_path, open_max=300) as rig:
            packs = [FIRST + 1296 * i for i in range(120)]
            for first in packs:
                rig.put_run(first, 2)
            rig.commit()
            for first in packs:
                rig.delete(first, 1)  # its header is written with it, so it may be closed long before the end
            rig.commit()
            for first in packs[::2]:
                rig.put(first + 2)
            rig.commit()
            if not lost:
                remove_packs(rig)
            rig.close()
            for i in range(0, 120, 3) if lost else ():
                damage(path_of(rig, PACK + i), 0, b"x" * 512)
            few(descriptors)
            rig.open_max = 16 if descriptors == 400 else 300
            rig.open()
            for i, first in enumerate(packs):
                assert rig.stored(first) is D
                assert rig.stored(first + 1) == frame(first + 1, b"data")
                never_used = D if lost and i % 3 == 0 else MISSING
                assert rig.stored(first + 2) == (never_used if i % 2 else frame(first + 2, b"data"))


class TestLog:
    def test_corruption_stops_it(self, rig):
        for i in range(3):
            rig.put(FIRST + i)
            rig.commit()
        (segment,) = (path for path in rig.wal.glob("*.log") if path.stat().st_size)
        good = segment.read_bytes()
        damage(segment, 2 * BLOCK_SIZE, b"\0" * 64)
        rig.close()
        with pytest.raises(CorruptionError, match="batch 3 at 12288 is whole"):
            rig.open()
        segment.write_bytes(good)
        rig.open()

    def test_a_segment_that_was_being_made_is_dropped_and_a_whole_one_kept(self, rig):
        """By its size, to the byte: one of another size is refused by the start after it was used."""
        rig.put(FIRST)
        rig.commit()
        sizes = (0, 1, BLOCK_SIZE - 1, BLOCK_SIZE, SEGMENT_SIZE // 2, SEGMENT_SIZE - 1, SEGMENT_SIZE + 1)
        for number, size in enumerate((*sizes, SEGMENT_SIZE, 2 * SEGMENT_SIZE), 1):
            (rig.wal / f"{number:04d}.log").write_bytes(bytes(size))
        whole = f"{len(sizes) + 1:04d}.log"
        rig.crash()
        assert sorted(path.name for path in rig.wal.iterdir()) == ["0000.log", whole]
        assert {path.name for path in rig.log.opened()} == {"0000.log", whole}
        opened = [os.readlink(f"/proc/self/fd/{fd}") for fd in map(int, os.listdir("/proc/self/fd"))
                  if os.path.lexists(f"/proc/self/fd/{fd}")]  # fmt: skip
        assert not [path for path in opened if path.startswith(str(rig.wal)) and "deleted" in path]

    def test_the_names_of_segments_are_durable_before_they_are_used(self, rig, monkeypatch):
        """A segment may be whole while its name never reached the disk: its maker died between the two syncs."""
        (rig.wal / "0001.log").write_bytes(bytes(SEGMENT_SIZE))
        rig.close()
        synced = []
        fsync = os.fsync

        def sync(fd: int) -> None:
            fsync(fd)
            synced.append(os.readlink(f"/proc/self/fd/{fd}"))

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", sync)
            rig.open()
        assert str(rig.wal) in synced

    def test_the_last_batch_is_settled(self, rig, monkeypatch):
        """Its sync may have failed: what is read of it may be the drive's cache."""
        for i in range(2):
            rig.put(FIRST + i)
            rig.commit()
        rig.close()
        done = []
        write_all, fdatasync = recovery.write_all, os.fdatasync

        def write(fd: int, buffer: memoryview, offset: int) -> None:
            write_all(fd, buffer, offset)
            done.append(("written", fd, offset, len(buffer)))

        def sync(fd: int) -> None:
            fdatasync(fd)
            done.append(("synced", fd))

        with monkeypatch.context() as patch:
            patch.setattr(recovery, "write_all", write)
            patch.setattr(os, "fdatasync", sync)
            rig.open()
        (fd,) = {entry[1] for entry in done}
        assert done == [("written", fd, 2 * BLOCK_SIZE, BLOCK_SIZE), ("synced", fd)]

    def test_a_settling_that_fails_is_not_recovered(self, rig, monkeypatch):
        rig.put(FIRST)
        rig.commit()
        rig.close()

        def fdatasync(fd: int) -> None:
            raise OSError(errno.EIO, "no")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", fdatasync)
            with pytest.raises(OSError, match="no"):
                rig.open()
        rig.open()
        assert rig.stored(FIRST) == frame(FIRST, b"data")

    def test_batches_with_many_packs(self, tmp_path, layout):
        with CommitterRig(tmp_path, open_max=1024, layout=layout) as rig:
            for i in range(1000):
                rig.put(FIRST + 1296 * i)
            rig.commit()
            rig.flush()
            for i in range(1000):
                rig.put(FIRST + 1296 * i + 1)
            rig.commit()
            rig.open_max = 64
            remove_packs(rig)
            rig.crash()
            assert all(
                rig.stored(FIRST + 1296 * i + 1) == frame(FIRST + 1296 * i + 1, b"data")
                for i in range(0, 1000, 37)
            )

    def test_keys_do_not_matter_for_what_the_log_holds(self, tmp_path, layout):
        with CommitterRig(tmp_path, put_keys=[KEYS.put, OTHER_KEYS.put], layout=layout) as rig:
            rig.put(FIRST, key=OTHER_KEYS.put)
            rig.commit()
            remove_packs(rig)
            rig.crash()
            assert rig.stored(FIRST) == frame(FIRST, b"data", OTHER_KEYS.put)
