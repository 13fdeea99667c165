"""One commit after the other, on real files: who gets which answer, and what the packs hold then."""

from __future__ import annotations

import errno
import os
import resource
import select
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from committer_rig import CommitterRig
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from put_rig import DELETE, KEYS, OTHER_KEYS, PUT, delete_frame, frame

from ingest import limits, sharding, ticket
from ingest.engine import metrics
from ingest.engine._queue import Queue
from ingest.engine.commit._committer import Committer
from ingest.limits import FRAME_SIZE, PACK_SLOTS
from ingest.status import Status
from ingest.store.layouts._pack_table import PackTable
from ingest.store.layouts._tree_table import TreeTable

S, E, C, N, D = Status.SAVED, Status.ERROR, Status.CONFLICT, Status.NO_SPACE, Status.DELETED
FIRST = 36 + 5 * PACK_SLOTS  # slot 0 of pack 5
LAST = ticket.parse("ZZZZZZZZ")
COUNTER = metrics.INDEX


@pytest.fixture
def rig(tmp_path: Path, layout: str) -> Iterator[CommitterRig]:
    with CommitterRig(tmp_path, layout=layout) as rig:
        yield rig
        rig.core.check()


@pytest.fixture
def failing_rig(tmp_path: Path, layout: str) -> Iterator[CommitterRig]:
    """Without the look at its claims: those of a commit that failed stay."""
    with CommitterRig(tmp_path, layout=layout) as rig:
        yield rig


def overwrite(rig: CommitterRig, index: int, data: bytes) -> None:
    path = rig.data / sharding.pack_path(sharding.ticket_pack(index))
    with path.open("r+b") as file:
        file.seek(sharding.slot_offset(sharding.ticket_slot(index)))
        file.write(data)


class TestPuts:
    def test_a_new_frame_is_saved_and_lies_in_its_slot(self, rig):
        cookie = rig.put(FIRST + 7, b"chunk")
        rig.commit()
        assert rig.answers[cookie] == [S]
        assert rig.stored(FIRST + 7) == frame(FIRST + 7, b"chunk")
        assert rig.stored(FIRST + 6) is Status.MISSING

    def test_nothing_is_answered_before_the_bits_are_set(self, rig):
        cookie = rig.put(FIRST)
        rig.plan()
        rig.log.append(rig.core.round.buffer, 1, 0, 0)
        rig.collect()
        assert rig.answers[cookie] == [None]
        assert rig.stored(FIRST) is Status.MISSING
        assert rig.core.round.apply() == 0
        rig.core.round.answer()
        rig.collect()
        assert rig.answers[cookie] == [S]
        assert rig.stored(FIRST) == frame(FIRST, b"data")

    def test_slots_that_are_written_beside_the_log_are_seen_when_it_is_synced(self, rig):
        rig.put(FIRST + 1000)
        rig.commit()  # a new pack's slots are never written before the log has them
        cookie = rig.put_run(FIRST, 20)
        rig.plan()
        rig.core.round.begin_slots()
        assert rig.stored(FIRST) is Status.MISSING
        rig.log.append(rig.core.round.buffer, 20, 0, 0)
        rig.collect()
        assert rig.answers[cookie] == [None] * 20
        assert rig.stored(FIRST) is Status.MISSING
        assert rig.core.round.apply() == 0
        rig.core.round.answer()
        rig.collect()
        assert rig.answers[cookie] == [S] * 20
        assert [rig.stored(FIRST + i) for i in range(20)] == [frame(FIRST + i, b"data") for i in range(20)]

    def test_slots_of_a_batch_that_the_log_never_got_stay_free(self, failing_rig):
        rig = failing_rig
        rig.put(FIRST + 1000)
        rig.commit()
        rig.put_run(FIRST, 20, b"lost")
        rig.plan()
        rig.core.round.begin_slots()
        rig.crash()
        assert rig.stored(FIRST + 3) is Status.MISSING
        cookie = rig.put_run(FIRST, 20, b"kept")
        rig.commit()
        assert rig.answers[cookie] == [S] * 20
        assert rig.stored(FIRST + 3) == frame(FIRST + 3, b"kept")

    def test_headers_of_more_packs_than_are_hashed_at_once(self, tmp_path):
        with CommitterRig(tmp_path) as rig:
            cookies = [rig.put(FIRST + 1296 * i) for i in range(130)]
            rig.commit()
            assert all(rig.answers[cookie] == [S] for cookie in cookies)
            assert rig.stored(FIRST + 1296 * 129) == frame(FIRST + 1296 * 129, b"data")
            assert [rig.header(sharding.ticket_pack(FIRST) + i).generation for i in (0, 64, 129)] == [2] * 3

    def test_runs_of_several_workers_and_packs_are_one_batch(self, tmp_path, layout):
        with CommitterRig(tmp_path, layout=layout, workers=3) as rig:
            cookies = [
                rig.put_run(FIRST + 1296 * worker + 1290, 6, b"%d" % worker, worker) for worker in range(3)
            ]
            rig.commit()
            assert rig.log.number == 1
            assert [set(rig.answers[cookie]) for cookie in cookies] == [{S}] * 3
            for worker in range(3):
                assert rig.stored(FIRST + 1296 * worker + 1295) == frame(
                    FIRST + 1296 * worker + 1295, b"%d" % worker
                )

    @pytest.mark.parametrize("index", [0, 35, 36, 1331, 1332, LAST])
    def test_every_corner_of_the_ticket_space(self, rig, index):
        cookie = rig.put(index)
        rig.commit()
        assert rig.answers[cookie] == [S]
        assert rig.stored(index) == frame(index, b"data")

    def test_the_same_frame_again_is_saved_once(self, rig):
        rig.put(FIRST)
        rig.commit()
        again = rig.put(FIRST)
        rig.commit()
        assert rig.answers[again] == [S]
        assert rig.log.number == 1, "nothing was written for it"

    def test_the_same_data_under_another_key_is_the_same_and_the_first_frame_stays(self, tmp_path, layout):
        with CommitterRig(tmp_path, layout=layout, put_keys=[KEYS.put, OTHER_KEYS.put]) as rig:
            rig.put(FIRST, b"data", key=OTHER_KEYS.put)
            rig.commit()
            again = rig.put(FIRST, b"data", key=KEYS.put)
            rig.commit()
            assert rig.answers[again] == [S]
            assert rig.stored(FIRST) == frame(FIRST, b"data", OTHER_KEYS.put)

    @pytest.mark.parametrize("count", [1, 2, 3, 4])
    def test_what_any_of_the_keys_has_signed_is_told_from_other_data(self, tmp_path, layout, count):
        """Each key in each place of a run, whatever the others of the run were signed with."""
        keys = [bytes([i]) * 32 for i in range(count)]
        with CommitterRig(tmp_path, put_keys=keys, layout=layout) as rig:
            for i in range(3 * count):
                rig.put(FIRST + i, b"data", key=keys[i % count])
            rig.put(FIRST + 3 * count, b"data", key=b"?" * 32)  # of a key that is none of these
            rig.commit()
            same, other = rig.put_run(FIRST, 3 * count + 1), rig.put_run(FIRST, 3 * count + 1, b"rival")
            rig.commit()
            assert rig.answers[same] == [S] * 3 * count + [E]
            assert rig.answers[other] == [C] * 3 * count + [E]

    def test_other_data_is_a_conflict_and_changes_nothing(self, rig):
        rig.put(FIRST, b"first")
        rig.commit()
        rival = rig.put(FIRST, b"second")
        rig.commit()
        assert rig.answers[rival] == [C]
        assert rig.stored(FIRST) == frame(FIRST, b"first")

    def test_a_run_over_free_and_taken_slots_is_answered_frame_by_frame(self, rig):
        rig.put(FIRST + 1, b"data")
        rig.put(FIRST + 3, b"other")
        rig.delete(FIRST + 4, 1)
        rig.commit()
        run = rig.put_run(FIRST, 6)
        rig.commit()
        assert rig.answers[run] == [S, S, S, C, D, S]

    def test_duplicates_in_one_batch_wait_for_the_first(self, rig):
        first, again = rig.put(FIRST), rig.put(FIRST)
        rig.commit()
        assert rig.answers[first] == [S]
        assert rig.answers[again] == [None], "its slot is claimed"
        rig.commit()
        assert rig.answers[again] == [S]
        assert rig.log.number == 1

    def test_rivals_in_one_batch_first_come_first_served(self, tmp_path, layout):
        with CommitterRig(tmp_path, layout=layout, workers=2) as rig:
            first, rival = rig.put(FIRST, b"one", 0), rig.put(FIRST, b"two", 1)
            rig.settle()
            assert (rig.answers[first], rig.answers[rival]) == ([S], [C])
            assert rig.stored(FIRST) == frame(FIRST, b"one")

    def test_a_batch_takes_what_it_can_hold_and_the_rest_waits(self, rig):
        size = limits.BULK_RUN_MIN - 1  # too short for the bulk path
        runs = limits.BATCH_FRAMES_MAX // size + 1
        cookies = [rig.put_run(FIRST + 1296 * i, size) for i in range(runs)]
        rig.plan()
        assert rig.core.round.puts <= limits.BATCH_FRAMES_MAX
        assert rig.core.round.puts + rig.core.pending_frames == runs * size
        assert rig.core.pending_frames > 0
        rig.write()
        rig.commit()
        assert all(set(rig.answers[cookie]) == {S} for cookie in cookies)

    def test_without_space_new_frames_are_refused_and_old_ones_answered(self, rig):
        rig.put(FIRST, b"data")
        rig.delete(FIRST + 1, 1)
        rig.commit()
        run = rig.put_run(FIRST, 3)
        rig.commit(space=False)
        assert rig.answers[run] == [S, D, N]

    def test_a_refused_frame_makes_no_file(self, rig):
        cookie = rig.put(FIRST)
        gone = rig.delete(FIRST + 5 * 1296, 1)
        rig.commit(space=False)
        assert (rig.answers[cookie], rig.answers[gone]) == ([N], [N])
        assert os.listdir(rig.data) == []
        later = rig.put(FIRST)
        rig.commit()
        assert rig.answers[later] == [S]

    def test_deletes_work_without_space_where_something_is_stored(self, rig, layout):
        rig.put(FIRST)
        rig.commit()
        gone, more = rig.delete(FIRST, 1), rig.delete(FIRST + 1, 1295)
        rig.commit(space=False)
        assert rig.answers[gone] == [D]
        assert rig.stored(FIRST) is D
        # In layout tree a tombstone of what was never stored is a file more, in layout pack a bit in one that is there.
        assert rig.answers[more] == ([D] if layout == "pack" else [N])

    def test_a_corrupt_slot_is_an_error_and_stays_as_it_is(self, rig):
        rig.put_run(FIRST, 3)
        rig.commit()
        rig.spoil(FIRST + 1, bytes(1458))
        same, rival = rig.put_run(FIRST, 3), rig.put_run(FIRST, 3, b"rival")
        rig.commit()
        assert rig.answers[same] == [S, E, S]
        assert rig.answers[rival] == [C, E, C]
        assert rig.core.corrupt == [(5, 1), (5, 1)]
        stored = rig.stored(FIRST + 1)
        assert isinstance(stored, bytes) and stored[16:] == bytes(1458)

    @pytest.mark.layout("pack")
    def test_a_pack_that_cannot_be_read_is_not_called_corrupt(self, rig):
        rig.put_run(FIRST, 3)
        rig.commit()
        path = rig.data / sharding.pack_path(5)
        unreadable = os.open(path, os.O_WRONLY)
        for fd in {int(name) for name in os.listdir("/proc/self/fd")} - {unreadable}:
            if os.path.exists(f"/proc/self/fd/{fd}") and os.path.samefile(f"/proc/self/fd/{fd}", path):
                os.dup2(unreadable, fd, inheritable=False)
        os.close(unreadable)
        again = rig.put_run(FIRST, 3)
        rig.commit()
        assert rig.answers[again] == [E, E, E]
        assert (rig.core.corrupt, rig.core.disk_errors) == ([], [(5, errno.EBADF)])

    @pytest.mark.layout("tree")
    def test_files_that_cannot_be_opened_are_not_called_corrupt(self, rig):
        rig.put_run(FIRST, 3)
        rig.commit()
        again = rig.put_run(FIRST, 3)
        with no_descriptors():
            rig.commit()
        assert rig.answers[again] == [E, E, E]
        assert (rig.core.corrupt, rig.core.disk_errors) == ([], [(5, errno.EMFILE)])

    @pytest.mark.layout("pack")
    @pytest.mark.parametrize("other", [1, 1296, 1297])
    def test_a_valid_frame_of_another_place_is_corruption_too(self, rig, other):
        """Of another slot, of this slot of another pack, or both."""
        rig.put_run(FIRST, 2)
        rig.commit()
        overwrite(rig, FIRST, frame(FIRST + other, b"data"))
        again = rig.put(FIRST)
        rig.commit()
        assert rig.answers[again] == [E]

    def test_a_lost_header_is_an_error_for_that_pack_alone(self, tmp_path):
        with CommitterRig(tmp_path) as rig:
            rig.put(FIRST)
            rig.put(FIRST + 1296)
            rig.commit()
            rig.flush()
            rig.packs.close()
            path = rig.data / sharding.pack_path(5)
            with path.open("r+b") as file:
                file.write(b"x" * 512)
            before = path.read_bytes()
            lost, other = rig.put(FIRST), rig.put(FIRST + 1297)
            rig.commit()
            assert (rig.answers[lost], rig.answers[other]) == ([E], [S])
            assert path.read_bytes() == before
            assert [pack for pack, _ in rig.core.disk_errors] == [5]

    def test_a_symbolic_link_in_the_way_is_not_followed(self, rig, tmp_path):
        outside = tmp_path / "outside"
        outside.mkdir()
        directory = rig.path(FIRST).parent
        directory.parent.mkdir(parents=True, exist_ok=True)
        directory.symlink_to(outside)
        cookie = rig.put(FIRST)
        rig.commit()
        assert rig.answers[cookie] == [E]
        assert os.listdir(outside) == []

    def test_statistics_count_duplicates(self, rig):
        rig.put_run(FIRST, 5)
        rig.commit()
        rig.put_run(FIRST, 5)
        rig.commit()
        assert rig.queue.counter_row(1)[COUNTER["DUPLICATES"]] == 5


class TestDeletes:
    def test_what_was_stored_and_what_was_not_is_deleted(self, rig):
        rig.put(FIRST)
        rig.commit()
        gone = rig.delete(FIRST, 3)
        rig.commit()
        assert rig.answers[gone] == [D]
        assert [rig.stored(FIRST + i) for i in range(4)] == [D, D, D, Status.MISSING]

    def test_a_put_of_a_deleted_ticket_is_deleted(self, rig):
        rig.delete(FIRST, 1)
        rig.commit()
        put = rig.put(FIRST)
        rig.commit()
        assert rig.answers[put] == [D]

    @pytest.mark.layout("tree")
    @pytest.mark.parametrize("room", range(11))
    def test_tombstones_of_one_batch_share_the_room_that_there_is(self, rig, room):
        """Each is a file. A delete that finds too little takes none of it from those behind it."""
        counts = (3, 4, 1, 2)
        rig.put_run(FIRST, 2)  # what has a file needs no other one
        rig.commit()
        firsts = [FIRST + 1, *(FIRST + 100 * i for i in range(1, 4))]
        cookies = [rig.delete(first, count) for first, count in zip(firsts, counts, strict=True)]
        rig.core.take()
        rig.packs.room = room
        rig.core.plan(True)
        rig.write()
        expected = []
        for files in (2, *counts[1:]):
            expected.append([D if files <= room else N])
            room -= files if files <= room else 0
        assert [rig.answers[cookie] for cookie in cookies] == expected

    def test_deleting_again_is_deleted(self, rig):
        for _ in range(2):
            gone = rig.delete(FIRST, 2)
            rig.commit()
            assert rig.answers[gone] == [D]

    @pytest.mark.parametrize(
        ("first", "count"),
        [
            (0, 36),
            (0, 1),
            (35, 2),  # from the one-character tickets into the root pack's first slot
            (30, 1400),
            (1331, 2),
            (FIRST + 1295, 2),
            (FIRST + 100, 65536),
            (LAST, 1),
            (LAST - 65535, 65536),
        ],
    )
    def test_ranges_over_the_borders_of_packs(self, rig, layout, first, count):
        if layout == "tree" and first < LAST - 65535:
            count = min(count, 3000)  # one of 65,536, which takes seconds, is enough
        inside = [first, first + count // 2, first + count - 1]
        outside = [index for index in (first - 1, first + count) if 0 <= index <= LAST]
        for index in {*inside, *outside}:
            rig.put(index)
        rig.commit()
        gone = rig.delete(first, count)
        rig.settle()
        assert rig.answers[gone] == [D]
        assert [rig.stored(index) for index in inside] == [D] * 3
        assert [rig.stored(index) for index in outside] == [frame(index, b"data") for index in outside]

    def test_a_delete_waits_for_the_put_that_is_under_way(self, rig):
        put, gone = rig.put(FIRST), rig.delete(FIRST, 2)
        rig.commit()
        assert (rig.answers[put], rig.answers[gone]) == ([S], [None])
        rig.commit()
        assert rig.answers[gone] == [D]
        assert rig.stored(FIRST) is D

    def test_a_delete_of_many_packs_that_must_wait_claims_nothing(self, rig):
        rig.put(FIRST + 2 * 1296)
        gone = rig.delete(FIRST, 3 * 1296)
        rig.plan()
        assert rig.packs.claimed == 1
        rig.write()
        rig.commit()
        assert rig.answers[gone] == [D]

    def test_overlapping_deletes_follow_each_other(self, rig):
        one, two = rig.delete(FIRST, 10), rig.delete(FIRST + 5, 10)
        rig.commit()
        assert (rig.answers[one], rig.answers[two]) == ([D], [None])
        rig.commit()
        assert rig.answers[two] == [D]

    def test_more_deletes_than_a_batch_takes(self, rig):
        cookies = [rig.delete(FIRST + i, 1) for i in range(200)]
        rig.settle()
        assert all(rig.answers[cookie] == [D] for cookie in cookies)
        assert rig.log.number == 4

    @pytest.mark.layout("pack")
    def test_the_blocks_go_back_to_the_file_system(self, rig):
        rig.put_run(FIRST, 200)
        rig.commit()
        path = rig.data / sharding.pack_path(5)
        with path.open("rb") as file:
            os.fsync(file.fileno())
        before = path.stat().st_blocks
        rig.delete(FIRST + 50, 100)
        rig.commit()
        after = path.stat().st_blocks
        assert before - after >= (100 * FRAME_SIZE // 4096 - 1) * 8
        assert rig.stored(FIRST + 49) == frame(FIRST + 49, b"data")
        assert rig.stored(FIRST + 150) == frame(FIRST + 150, b"data")
        rig.delete(FIRST, 50)
        rig.delete(FIRST + 150, 50)
        rig.commit()
        assert path.stat().st_size == 4096

    @pytest.mark.layout("pack")
    def test_dirty_packs_hold_deletes_back_too(self, rig, tmp_path):
        cookies = [rig.delete(FIRST + i * 65536, 65536) for i in range(45)]  # some 2,300 packs
        rig.commit()
        assert rig.core.round.stalled
        assert rig.packs.dirty_count < limits.DIRTY_PACKS_MAX // 2 + 53
        assert any(rig.answers[cookie] == [None] for cookie in cookies)
        rig.settle()
        assert all(rig.answers[cookie] == [D] for cookie in cookies)

    @pytest.fixture
    def rig(self, tmp_path: Path, layout: str, request: pytest.FixtureRequest) -> Iterator[CommitterRig]:
        many = "dirty" in request.node.name
        with CommitterRig(tmp_path, open_max=4096 if many else 256, layout=layout) as rig:
            yield rig
            rig.core.check()


@pytest.mark.layout("pack")
class TestBulk:
    def long_runs(
        self, rig: CommitterRig, first: int = FIRST, packs: int = 2, data: bytes = b"bulk"
    ) -> list[int]:
        return [rig.put_run(first + 1296 * i, 1296, data) for i in range(packs)]

    def test_whole_packs_go_past_the_log(self, rig):
        cookies = self.long_runs(rig)
        jobs = rig.plan()
        assert sum(job.frames for job in jobs) == 2592
        assert rig.core.round.puts == 0
        rig.finish_jobs()
        rig.collect()
        assert rig.answers[cookies[0]] == [None] * 1296, "written and synced, but not noted"
        assert rig.stored(FIRST) is Status.MISSING
        rig.core.plan(True)
        rig.write()
        assert all(set(rig.answers[cookie]) == {S} for cookie in cookies)
        for index in (FIRST, FIRST + 1295, FIRST + 1296, FIRST + 2591):
            assert rig.stored(index) == frame(index, b"bulk")
        assert rig.queue.counter_row(1)[COUNTER["BULK_FRAMES"]] == 2592

    def test_the_root_pack_with_its_longer_tail(self, rig):
        root = rig.put_run(36, 1296, b"root")
        short = rig.put_run(0, 36, b"root")
        other = rig.put_run(FIRST, 1296, b"root")
        rig.settle()
        assert {*rig.answers[root], *rig.answers[short], *rig.answers[other]} == {S}
        for index in (0, 35, 36, 1331):
            assert rig.stored(index) == frame(index, b"root")

    @pytest.mark.parametrize("slot", [1, 3, 100, 255])
    @pytest.mark.parametrize("count", [256, 257, 700, 1001])
    def test_parts_of_packs_leave_their_neighbours_alone(self, rig, slot, count):
        rig.put(FIRST + slot - 1, b"left")
        rig.put(FIRST + slot + count, b"right")
        rig.settle()
        run = rig.put_run(FIRST + slot, count, b"bulk")
        self.long_runs(rig, FIRST + 1296 * 10)
        assert rig.plan()
        rig.write()
        rig.finish_jobs()
        rig.commit()
        assert set(rig.answers[run]) == {S}
        assert rig.stored(FIRST + slot - 1) == frame(FIRST + slot - 1, b"left")
        assert rig.stored(FIRST + slot + count) == frame(FIRST + slot + count, b"right")
        for i in range(count):
            assert rig.stored(FIRST + slot + i) == frame(FIRST + slot + i, b"bulk")

    def test_neighbours_written_and_deleted_while_a_job_runs(self, rig):
        rig.put(FIRST + 9, b"left")
        rig.put(FIRST + 510, b"right")
        rig.settle()
        run = rig.put_run(FIRST + 10, 500, b"bulk")
        self.long_runs(rig, FIRST + 1296 * 10)
        (job,) = rig.plan()
        rig.write()
        late = rig.put(FIRST + 511, b"late")
        rig.delete(FIRST, 10)
        rig.delete(FIRST + 510, 1)
        rig.plan()
        rig.write()
        job.run()
        assert rig.core.bulk_done(job)
        rig.jobs.clear()
        rig.plan()
        rig.write()
        assert rig.answers[late] == [S]
        assert set(rig.answers[run]) == {S}
        assert rig.stored(FIRST + 9) is D
        assert rig.stored(FIRST + 510) is D
        for i in range(500):
            assert rig.stored(FIRST + 10 + i) == frame(FIRST + 10 + i, b"bulk")
        assert rig.stored(FIRST + 511) == frame(FIRST + 511, b"late")

    def test_a_delete_of_all_around_a_running_job_does_not_cut_the_file(self, rig):
        rig.put(FIRST)
        rig.settle()
        run = rig.put_run(FIRST + 600, 600, b"bulk")
        self.long_runs(rig, FIRST + 1296 * 10)
        (job,) = rig.plan()
        rig.write()
        job.run()
        rig.delete(FIRST, 10)
        rig.plan()
        rig.write()
        assert rig.core.bulk_done(job)
        rig.jobs.clear()
        rig.commit()
        assert set(rig.answers[run]) == {S}
        assert rig.stored(FIRST + 600) == frame(FIRST + 600, b"bulk")

    def test_duplicates_and_rivals_wait_for_the_job(self, rig):
        cookies = self.long_runs(rig)
        (job,) = rig.plan()
        same, rival, gone = (
            rig.put(FIRST + 5, b"bulk"),
            rig.put(FIRST + 6, b"rival"),
            rig.delete(FIRST + 7, 1),
        )
        rig.plan()
        rig.write()
        assert [rig.answers[cookie] for cookie in (same, rival, gone)] == [[None]] * 3
        rig.finish_jobs()
        rig.plan()
        rig.write()
        rig.commit()
        assert [rig.answers[cookie] for cookie in (same, rival, gone)] == [[S], [C], [D]]
        assert all(set(rig.answers[cookie]) == {S} for cookie in cookies)
        assert job.error == 0

    def test_runs_with_a_duplicate_among_them_go_through_the_log(self, rig):
        rig.put(FIRST + 700, b"bulk")
        rig.commit()
        cookies = self.long_runs(rig)
        (job,) = rig.plan()
        assert job.frames == 1296
        rig.write()
        rig.finish_jobs()
        rig.settle()
        assert all(set(rig.answers[cookie]) == {S} for cookie in cookies)

    def test_a_long_run_in_many_pieces_from_many_workers(self, tmp_path):
        with CommitterRig(tmp_path, workers=4) as rig:
            cookies = [rig.put_run(FIRST + 54 * i, 54, b"piece", i % 4) for i in range(48)]
            (job,) = rig.plan()
            assert job.frames == 48 * 54
            rig.finish_jobs()
            rig.settle()
            assert all(set(rig.answers[cookie]) == {S} for cookie in cookies)
            for i in range(0, 2592, 53):
                assert rig.stored(FIRST + i) == frame(FIRST + i, b"piece")

    def test_held_pieces_wait_for_one_job_and_not_for_ever(self, rig):
        self.long_runs(rig)
        (first,) = rig.plan()
        piece = rig.put_run(FIRST + 1296 * 20, 100)
        rig.plan()
        assert rig.core.round.puts == 0, "it is held: it may grow"
        rig.write()
        self.long_runs(rig, FIRST + 1296 * 30)
        (second,) = rig.plan()
        rig.write()
        first.run()
        assert rig.core.bulk_done(first)
        rig.plan()
        assert rig.core.round.puts == 100, (
            "the job that it waited for has ended, the later one does not hold it"
        )
        rig.write()
        assert set(rig.answers[piece]) == {S}
        second.run()
        assert rig.core.bulk_done(second)
        rig.jobs.clear()
        rig.commit()

    def test_a_long_run_waits_for_its_turn_and_not_for_ever(self, tmp_path):
        """The log would write the same bytes twice. Who meets only jobs that are full goes there at last."""
        packs = limits.BULK_JOB_FRAMES_MAX // 1296
        with CommitterRig(tmp_path, workers=1 + limits.BULK_HOLD_JOBS, places=packs * 1296) as rig:
            self.long_runs(rig, FIRST + 1296 * 10)
            (job,) = rig.plan()
            rig.write()
            waiting = rig.put_run(FIRST, limits.BULK_RUN_MIN)
            rig.plan()
            assert rig.core.round.puts == 0, "it is held"
            rig.write()
            for worker in range(1, 1 + limits.BULK_HOLD_JOBS):
                assert set(rig.answers[waiting]) == {None}
                # Enough to fill the next job, which goes on behind the last pack before it looks at lower ones.
                for i in range(packs):
                    rig.put_run(FIRST + 1296 * (100 * worker + i), 1296, worker=worker)
                (later,) = rig.plan()
                assert rig.core.round.puts == (0 if worker < limits.BULK_HOLD_JOBS else limits.BULK_RUN_MIN)
                rig.write()
                job.run()
                assert rig.core.bulk_done(job)
                job = later
            assert set(rig.answers[waiting]) == {S}
            job.run()
            assert rig.core.bulk_done(job)
            rig.jobs.clear()
            rig.settle()

    def test_a_long_run_that_the_bulk_path_declines_waits_for_no_job(self, rig):
        rig.put(FIRST + 3, b"bulk")
        rig.settle()
        self.long_runs(rig, FIRST + 1296 * 10)
        (job,) = rig.plan()
        rig.write()
        again = rig.put_run(FIRST, 1296, b"bulk")
        self.long_runs(rig, FIRST + 1296 * 20)
        (later,) = rig.plan()
        assert rig.core.round.puts == 1295
        rig.write()
        assert set(rig.answers[again]) == {S}
        for one in (job, later):
            one.run()
            assert rig.core.bulk_done(one)
        rig.jobs.clear()
        rig.settle()

    def test_jobs_go_round_the_packs(self, rig):
        """Who fills low packs for ever does not keep a high one waiting."""
        high = rig.put_run(FIRST + 1296 * 1000, 1296)
        rounds = 0
        low = 0
        while set(rig.answers[high]) != {S}:
            for _ in range(3):
                if sum(rig.outstanding) + 1296 <= rig.places:
                    rig.put_run(FIRST + 1296 * low, 1296)
                    low += 1
            rig.commit()
            rounds += 1
            assert rounds < 10
        rig.settle()

    @pytest.mark.parametrize("cursor", [0, 1, 2, 3, 4])
    def test_one_job_goes_all_the_way_round(self, rig, cursor):
        """Wherever the last one ended, as many packs as it may take are one job."""
        for pack in (100, 101 + 2 * cursor):
            rig.put_run(FIRST + 1296 * pack, 1296)
        rig.commit()
        cookies = [rig.put_run(FIRST + 1296 * (102 + 2 * pack), 600) for pack in range(4)]
        (job,) = rig.plan()
        assert (job.frames, rig.core.pending_frames) == (2400, 0)
        rig.finish_jobs()
        rig.settle()
        assert all(set(rig.answers[cookie]) == {S} for cookie in cookies)

    def test_without_space_there_are_no_jobs(self, rig):
        cookies = self.long_runs(rig)
        assert rig.plan(space=False) == []
        rig.core.round.answer()
        rig.collect()
        assert all(set(rig.answers[cookie]) == {N} for cookie in cookies)
        assert os.listdir(rig.data) == []

    def test_a_job_that_cannot_write_answers_error_and_leaves_its_slots_free(self, rig):
        cookies = self.long_runs(rig)
        (job,) = rig.plan()
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        with no_growth():
            job.run()
        assert resource.getrlimit(resource.RLIMIT_FSIZE) == limit
        assert rig.core.bulk_done(job), "no sync failed: saving goes on"
        rig.jobs.clear()
        rig.plan()
        rig.write()
        assert all(set(rig.answers[cookie]) == {E} for cookie in cookies)
        assert rig.packs.claimed == 0
        assert rig.stored(FIRST) is Status.MISSING
        again = self.long_runs(rig, data=b"again")
        rig.commit()
        assert all(set(rig.answers[cookie]) == {S} for cookie in again)
        assert rig.stored(FIRST) == frame(FIRST, b"again")

    def test_a_job_that_is_discarded_stored_nothing_in_any_of_its_packs(self, rig):
        """The store was lost while it ran. Its frames may be put again, with other data too."""
        cookies = [rig.put_run(FIRST + 1296 * i, 1296, b"gone") for i in range(3)]
        (job,) = rig.plan()
        job.run()
        assert rig.core.discard(job)
        rig.jobs.clear()
        rig.plan()
        rig.write()
        assert [set(rig.answers[cookie]) for cookie in cookies] == [{E}] * 3
        assert {rig.stored(FIRST + 1296 * i) for i in range(3)} == {Status.MISSING}
        again = [rig.put(FIRST + 1296 * i, b"other") for i in range(3)]
        rig.commit()
        assert [rig.answers[cookie] for cookie in again] == [[S]] * 3
        assert not rig.core.disk_errors, "the disk had no part in it"

    def test_a_frame_of_a_job_survives_the_committer(self, rig):
        self.long_runs(rig)
        rig.commit()
        rig.crash()
        assert rig.stored(FIRST + 1000) == frame(FIRST + 1000, b"bulk")

    def test_a_job_that_was_never_noted_stored_nothing(self, rig):
        self.long_runs(rig)
        (job,) = rig.plan()
        job.run()
        rig.crash()
        assert rig.stored(FIRST) is Status.MISSING
        rival = rig.put(FIRST, b"rival")
        rig.commit()
        assert rig.answers[rival] == [S]


class no_growth:
    """No file may grow past ``size`` bytes: writes that would make one are short or fail with EFBIG."""

    def __init__(self, size: int = 4096) -> None:
        self.size = size

    def __enter__(self) -> None:
        import signal

        self.handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        self.limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.limits[1]))

    def __exit__(self, *_: object) -> None:
        import signal

        resource.setrlimit(resource.RLIMIT_FSIZE, self.limits)
        signal.signal(signal.SIGXFSZ, self.handler)


@contextmanager
def no_descriptors() -> Iterator[None]:
    """No file can be opened."""
    limits_before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, limits_before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits_before)


class TestLimitsAndFailures:
    def test_too_many_dirty_packs_wait_for_a_flush(self, tmp_path):
        with CommitterRig(tmp_path, open_max=4096, places=8192) as rig:
            most = limits.DIRTY_PACKS_MAX // 2
            cookies = [rig.put(FIRST + 1296 * i) for i in range(most + 10)]
            rig.commit()
            assert rig.core.round.stalled
            assert rig.packs.dirty_count == most
            assert [rig.answers[cookie] for cookie in cookies].count([None]) == 10
            known = rig.put(FIRST + 1)
            rig.commit()
            assert rig.answers[known] == [S], "a pack that is dirty already goes on"
            rig.flush()
            rig.commit()
            assert all(rig.answers[cookie] == [S] for cookie in cookies)
            assert not rig.core.round.stalled

    def test_more_packs_than_may_be_open_go_in_several_batches(self, tmp_path, layout):
        with CommitterRig(tmp_path, layout=layout, open_max=64) as rig:
            cookies = [rig.put(FIRST + 1296 * i) for i in range(200)]
            rig.commit()
            assert [rig.answers[cookie] for cookie in cookies].count([S]) == 64
            assert len(rig.packs) == 64
            rig.settle()
            assert all(rig.answers[cookie] == [S] for cookie in cookies)

    def test_without_descriptors_frames_wait_for_those_in_the_batch(self, tmp_path, layout):
        with CommitterRig(tmp_path, layout=layout, open_max=256) as rig:
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            used = max(int(name) for name in os.listdir("/proc/self/fd")) + 1
            cookies = [rig.put(FIRST + 1296 * i) for i in range(100)]
            resource.setrlimit(resource.RLIMIT_NOFILE, (used + 32, hard))
            try:
                rig.settle()
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert all(rig.answers[cookie] == [S] for cookie in cookies)

    @pytest.mark.layout("pack")
    @pytest.mark.layout("pack")
    def test_a_new_pack_is_empty_until_the_log_has_its_frames(self, failing_rig):
        """Or a power cut could leave a size without a header, and no log record that names the pack."""
        rig = failing_rig
        rig.put_run(FIRST, 20)
        rig.plan()
        rig.core.round.begin_slots()
        assert rig.path(FIRST).stat().st_size == 0
        rig.crash()
        assert rig.stored(FIRST) is Status.MISSING
        again = rig.put(FIRST, b"other")
        rig.commit()
        assert rig.answers[again] == [S]

    @pytest.mark.layout("pack")
    def test_a_pack_that_cannot_be_made_is_not_left_half_made(self, failing_rig):
        rig = failing_rig
        cookie = rig.put(FIRST)
        rig.plan()
        rig.log.append(rig.core.round.buffer, 1, 0, 0)
        with no_growth(100):  # less than a header
            assert rig.core.round.apply() != 0
        rig.core.round.answer(failed=True)
        rig.collect()
        assert rig.answers[cookie] == [E]
        assert rig.path(FIRST).stat().st_size == 0
        rig.crash()
        assert rig.stored(FIRST) == frame(FIRST, b"data")

    def test_a_log_that_fails_answers_error_to_its_whole_batch(self, failing_rig):
        rig = failing_rig
        cookies = [rig.put(FIRST), rig.delete(FIRST + 5, 2)]
        rig.plan()
        rig.log.append(rig.core.round.buffer, 0, 0, 0)
        with no_growth(), pytest.raises(OSError):
            rig.log.append(rig.core.round.buffer, 1, 1, 0)
        rig.core.round.answer(failed=True)
        rig.collect()
        assert [rig.answers[cookie] for cookie in cookies] == [[E], [E]]

    @pytest.mark.parametrize("count", [1, 20], ids=["in_apply", "beside_the_log"])
    def test_packs_that_cannot_be_written_keep_the_log_that_has_them(self, failing_rig, count):
        rig = failing_rig
        rig.put(FIRST + 1000)
        rig.commit()
        cookie = rig.put_run(FIRST + 100, count)
        rig.plan()
        rig.log.append(rig.core.round.buffer, count, 0, 0)
        with no_growth(1000):  # less than a chunk
            rig.core.round.begin_slots()
            assert rig.core.round.apply() != 0
        assert rig.stored(FIRST + 100) is Status.MISSING
        rig.core.round.answer(failed=True)
        rig.collect()
        assert rig.answers[cookie] == [E] * count
        rig.crash()
        assert rig.stored(FIRST + 100) == frame(FIRST + 100, b"data"), "recovery does what the log says"

    def test_a_log_that_fails_waits_for_the_slots_that_are_being_written(self, failing_rig):
        rig = failing_rig
        rig.put(FIRST + 1000)
        rig.commit()
        cookie = rig.put_run(FIRST + 100, 20)
        rig.plan()
        rig.log.append(rig.core.round.buffer, 0, 0, 0)
        rig.core.round.begin_slots()
        with no_growth(), pytest.raises(OSError):
            rig.log.append(rig.core.round.buffer, 20, 0, 0)
        rig.core.round.answer(failed=True)
        rig.collect()
        assert rig.answers[cookie] == [E] * 20
        assert rig.stored(FIRST + 100) is Status.MISSING


class TestWorkers:
    """What a worker that dies leaves behind, wherever its frames are."""

    @pytest.fixture
    def rig(self, tmp_path: Path, layout: str) -> Iterator[CommitterRig]:
        with CommitterRig(tmp_path, workers=2, layout=layout) as rig:
            yield rig
            rig.core.check()

    def test_frames_in_its_ring_are_dropped(self, rig):
        rig.put(FIRST, worker=1)
        rig.queue.retire(1)
        rig.plan()
        assert rig.core.round.puts == 0
        assert rig.queue.is_retired(1)

    def test_pending_frames_are_dropped(self, rig):
        """All runs of that worker, and none of another, however they lie among each other."""
        mine, theirs = [], []
        for i in range(3):
            mine.append(rig.put(FIRST + i, worker=0))
            theirs.append(rig.put(FIRST + i, b"rival", worker=1))
        rig.plan()
        mine.append(rig.put(FIRST + 9, worker=0))
        theirs.append(rig.delete(FIRST, 9, worker=1))
        rig.core.take()
        assert rig.core.pending_frames == 5
        rig.queue.retire(1)
        assert rig.core.take() == rig.core.pending_frames == 1
        rig.write()
        rig.plan()
        rig.write()
        assert [rig.answers[cookie] for cookie in mine] == [[S]] * 4
        assert [rig.answers[cookie] for cookie in theirs] == [[None]] * 4
        rig.core.take()
        assert rig.queue.is_retired(1)

    def test_a_batch_is_finished_before_the_arena_is_given_back(self, rig):
        rig.put(FIRST, worker=1)
        rig.delete(FIRST + 10, 1, worker=1)
        rig.plan()
        rig.queue.retire(1)
        rig.core.take()
        assert not rig.queue.is_retired(1)
        rig.write()
        assert rig.stored(FIRST) == frame(FIRST, b"data")
        assert rig.queue.take_outcomes(1) == [], "nobody is there to read it"
        rig.core.take()
        assert rig.queue.is_retired(1)

    @pytest.mark.layout("pack")
    def test_a_bulk_job_is_finished_before_the_arena_is_given_back(self, rig):
        for i in range(2):
            rig.put_run(FIRST + 1296 * i, 1296, worker=1)
        rig.plan()
        rig.queue.retire(1)
        rig.core.take()
        assert not rig.queue.is_retired(1)
        rig.finish_jobs()
        assert not rig.core.work_waiting()
        rig.plan()
        rig.write()
        assert rig.core.work_waiting()
        rig.core.take()
        assert rig.queue.is_retired(1)

    def test_its_replacement_starts_with_an_empty_ring(self, rig):
        rig.put(FIRST, worker=1)
        rig.queue.retire(1)
        rig.core.take()
        rig.queue.reset_ring(1)
        rig.plan()
        assert rig.core.round.empty
        rig.outstanding[1] = 0
        rig.queue.empty_rings(1)
        rig.queue.attend(1)
        cookie = rig.put(FIRST, b"new", worker=1)
        rig.commit()
        assert rig.answers[cookie] == [S]

    def test_a_worker_that_has_not_seen_this_committer_is_not_served(self, rig):
        cookie = rig.put(FIRST)
        rig.queue.committer_gone()
        core = Committer(rig.queue, rig.packs, [KEYS.put])
        assert core.take() == 0, "it submitted that to another one"
        rig.queue.committer_ready()
        assert core.take() == 0
        rig.queue.empty_rings(0)
        rig.queue.attend(0)
        rig.queue.submit(0, FIRST, 0, 1, PUT, cookie)
        assert core.take() == 1

    @pytest.mark.parametrize("status", [Status.BUSY, Status.NO_SPACE])
    @pytest.mark.parametrize("late", [0, 2])
    def test_what_was_under_way_is_refused_with_error_and_all_else_with_the_reason(
        self, tmp_path, status, late
    ):
        """The committer before may have put any run into the log, not only the first one of a worker. Who takes it for
        not stored stores it elsewhere, or under another ticket."""

        def refused(*workers: int) -> list[set[Status | None]]:
            """What each of these is told of some runs, once it lets this committer take them."""
            cookies = []
            for worker in workers:
                first = FIRST + 100 * len(rig.answers)
                runs = rig.put(first, worker=worker), rig.put_run(first + 5, 3, worker=worker)
                cookies.append((*runs, rig.delete(first, 9, worker), rig.put(first + 50, worker=worker)))
                rig.queue.attend(worker)
            rig.core.take()
            rig.core.refuse(status)
            rig.collect()
            return [{answer for cookie in some for answer in rig.answers[cookie]} for some in cookies]

        with CommitterRig(tmp_path, workers=4) as rig:
            rig.queue.committer_gone()
            rig.core = Committer(rig.queue, rig.packs, [KEYS.put])
            rig.queue.committer_ready()
            early = [worker for worker in range(3) if worker != late]
            rig.queue.attend(3)  # had nothing under way
            assert refused(*early) == [{E}, {E}]
            assert refused(*early, 3) == [{status}] * 3
            assert refused(late) == [{E}], "the others had their turn before"
            assert refused(*early, late) == [{status}] * 3

    @pytest.mark.parametrize(
        ("first", "place", "count", "kind"),
        [
            (-1, 0, 1, PUT),
            (LAST + 1, 0, 1, PUT),
            (FIRST, 0, 0, PUT),
            (FIRST, 8192, 1, PUT),
            (FIRST, 8191, 2, PUT),
            (FIRST, 2**32 - 1, 1, PUT),  # place + count wraps
            (FIRST, 2**32 - 1, 8192, PUT),
            (FIRST, 0, 2**32 - 1, PUT),
            (FIRST + 1295, 0, 2, PUT),  # over the border of a pack
            (35, 0, 2, PUT),
            (FIRST, 0, 1, 2),
            (FIRST, 0, 2, DELETE),
        ],
    )
    def test_garbage_in_a_ring_is_never_taken(self, rig, first, place, count, kind):
        rig.queue.submit(0, first, place, count, kind, 1)
        with pytest.raises(AssertionError, match="worker 0 handed over an impossible run"):
            rig.core.take()

    def test_more_runs_than_places_are_never_taken(self, tmp_path):
        with CommitterRig(tmp_path, places=4) as rig:
            for _ in range(4):
                rig.queue.submit(0, FIRST, 0, 1, PUT, 1)
            assert rig.core.take() == 4
            with pytest.raises(AssertionError, match="more runs than it has places"):
                for _ in range(2):
                    rig.queue.submit(0, FIRST, 0, 1, PUT, 1)
                    rig.core.take()

    @pytest.mark.parametrize(("first", "count"), [(FIRST, 0), (FIRST, 65537), (FIRST, 2**63), (LAST, 2)])
    def test_an_impossible_delete_is_never_done(self, rig, first, count):
        rig.submit(
            first,
            delete_frame(first, count) if count < 2**63 else frame(first, count.to_bytes(8, "big")),
            0,
            DELETE,
        )
        rig.core.take()
        with pytest.raises(AssertionError, match="handed over a delete of"):
            rig.core.plan(True)

    @pytest.mark.parametrize("asleep", [(), (0,), (1,), (0, 2), (1, 2), (0, 1, 2)])
    def test_sleepers_are_woken_and_others_not(self, tmp_path, asleep):
        """Each of them that has an answer: it would look for it only at its next frame."""
        with CommitterRig(tmp_path, workers=4) as rig:
            for worker in (*asleep, 3):  # the last one has nothing to hear
                rig.queue.set_worker_sleeping(worker, True)
            for worker in range(3):
                rig.put(FIRST + worker, worker=worker)
            for doorbell in rig.queue.worker_doorbells:
                os.eventfd_read(doorbell)  # committer_ready rang them
            rig.commit()
            assert rung(rig) == set(asleep)
            for worker in range(3):
                rig.put(FIRST + 10 + worker, worker=worker)
            rig.core.take()
            rig.core.refuse(Status.BUSY)
            assert rung(rig) == set(asleep)


def rung(rig: CommitterRig) -> set[int]:
    """Workers whose doorbell has been rung since."""
    rang = select.select(rig.queue.worker_doorbells, [], [], 0)[0]
    for doorbell in rang:
        os.eventfd_read(doorbell)
    return {rig.queue.worker_doorbells.index(doorbell) for doorbell in rang}


class TestCrash:
    def test_all_that_was_saved_is_there_and_deletes_hold(self, rig):
        rig.put_run(FIRST, 100)
        rig.commit()
        rig.delete(FIRST + 10, 5)
        rig.commit()
        rig.crash()
        assert rig.recovered.frames == 100
        assert rig.recovered.deletes == 1
        assert [rig.stored(FIRST + i) for i in (9, 10, 14, 15)] == [
            frame(FIRST + 9, b"data"),
            D,
            D,
            frame(FIRST + 15, b"data"),
        ]
        again = rig.put(FIRST + 10)
        rig.commit()
        assert rig.answers[again] == [D]

    def test_a_put_that_was_told_of_a_delete_still_erasing(self, tmp_path):
        with CommitterRig(tmp_path, layout="tree") as rig:
            saved = rig.put(FIRST + 5)
            rig.commit()
            assert rig.answer(saved) is S
            delete = rig.delete(FIRST, 1000)
            rig.plan()
            rig.write()
            assert rig.core.erasing
            early, late = rig.put(FIRST), rig.put(FIRST + 999)
            rig.plan()
            rig.write()
            assert rig.answers[early] == [D]
            assert rig.answers[late] == [None], "its file is not erased yet"
            assert rig.answers[delete] == [None], "it is answered when its files are gone"
            rig.crash()
            assert rig.recovered.deletes == 1
            assert [rig.stored(FIRST + i) for i in (0, 5, 999)] == [D, D, D]

    def test_a_claim_that_was_never_logged_is_gone(self, rig):
        rig.put(FIRST, b"lost")
        rig.plan()
        rig.crash()
        other = rig.put(FIRST, b"other")
        rig.commit()
        assert rig.answers[other] == [S]

    def test_what_was_logged_and_not_applied_is_stored(self, rig):
        rig.put(FIRST, b"logged")
        rig.delete(FIRST + 1, 1)
        rig.plan()
        rig.log.append(rig.core.round.buffer, 1, 1, 0)
        rig.crash()
        assert rig.stored(FIRST) == frame(FIRST, b"logged")
        assert rig.stored(FIRST + 1) is D

    def test_files_are_ours_alone(self, rig):
        rig.put(FIRST)
        rig.commit()
        for path in rig.data.rglob("*"):
            assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)


class Model(RuleBasedStateMachine):
    """Random traffic and crashes against a dict: {index: data or DELETED}."""

    root: Path
    layout = ""
    count = 0

    def __init__(self) -> None:
        super().__init__()
        Model.count += 1
        home = Model.root / str(Model.count)
        home.mkdir()
        self.rig = CommitterRig(home, workers=2, open_max=64, layout=Model.layout)
        self.model: dict[int, bytes | Status] = {}
        self.waiting: list[
            tuple[int, int, bytes | None, int]
        ] = []  # cookie, first, data (None: delete), count

    @initialize()
    def start(self) -> None:
        assert self.rig.recovered.batches == 0

    # A few packs, around their borders, so that runs meet.
    INDEX = st.builds(
        lambda pack, at: max(0, min(LAST, 36 + pack * 1296 + at)),
        st.sampled_from([0, 1, 2, 40]),
        st.integers(-40, 60),
    )
    DATA = st.sampled_from([b"a", b"b", b""])

    @rule(index=INDEX, data=DATA, count=st.integers(1, 20), worker=st.integers(0, 1))
    def put(self, index: int, data: bytes, count: int, worker: int) -> None:
        count = min(count, ticket.run_max(index))
        if self.rig.next_place[worker] + count > self.rig.places:
            return
        self.waiting.append((self.rig.put_run(index, count, data, worker), index, data, count))

    @rule(
        pack=st.sampled_from([2, 3, 40, 41]),
        data=DATA,
        slot=st.sampled_from([0, 1, 300]),
        worker=st.integers(0, 1),
    )
    def put_long(self, pack: int, data: bytes, slot: int, worker: int) -> None:
        if self.rig.next_place[worker] + 1296 > self.rig.places:
            return
        index = 36 + pack * 1296 + slot
        self.waiting.append((self.rig.put_run(index, 1296 - slot, data, worker), index, data, 1296 - slot))

    @rule(index=INDEX, count=st.sampled_from([1, 2, 30, 1296, 3000]), worker=st.integers(0, 1))
    def delete(self, index: int, count: int, worker: int) -> None:
        if self.rig.next_place[worker] + 1 > self.rig.places:
            return
        count = min(count, LAST + 1 - index)
        self.waiting.append((self.rig.delete(index, count, worker), index, None, count))

    @rule()
    def plan_and_write(self) -> None:
        self.rig.plan()
        self.rig.write()
        self.take_answers()

    @rule()
    def finish_jobs(self) -> None:
        self.rig.finish_jobs()

    @rule()
    def settle(self) -> None:
        self.rig.finish_jobs()
        self.rig.settle()
        self.take_answers()
        assert not self.waiting
        assert self.rig.packs.claimed == 0

    @rule()
    def flush(self) -> None:
        self.rig.flush()

    @rule(begun=st.booleans(), applied=st.booleans(), logged=st.booleans(), ran=st.booleans())
    def crash(self, begun: bool, applied: bool, logged: bool, ran: bool) -> None:
        """Ends the committer in the middle of a commit. What was not answered may be there or not: ask the disk."""
        rig = self.rig
        rig.plan()
        rig.core.round.write_notes()
        if begun:
            rig.core.round.begin_slots()
        if logged and not rig.core.round.empty:
            rig.log.append(
                rig.core.round.buffer, rig.core.round.puts, rig.core.round.delete_frames, rig.core.round.notes
            )
            if applied:
                assert rig.core.round.apply() == 0
        if ran:
            for job in rig.jobs:
                job.run()
        rig.crash()
        for _, first, data, count in self.waiting:
            for index in range(first, first + count):
                found = rig.stored(index)
                known = self.model.get(index)
                if found is Status.MISSING:
                    assert known is None
                elif found is D:
                    assert known is D or self.in_waiting_delete(index)
                    self.model[index] = D
                elif known is None:
                    assert any(
                        data is not None and first <= index < first + count and found == frame(index, data)
                        for _, first, data, count in self.waiting
                    )
                    self.model[index] = bytes(found[16:])
        self.waiting.clear()

    def in_waiting_delete(self, index: int) -> bool:
        return any(data is None and first <= index < first + count for _, first, data, count in self.waiting)

    def take_answers(self) -> None:
        """Holds what was answered in this commit against the model. Deletes of a commit come after its puts.

        A delete counts from the sync of its batch on: puts of what it has erased are answered DELETED, also while it
        erases further tickets and has no answer of its own. From then on a crash may not bring them back.
        """
        done = [entry for entry in self.waiting if None not in self.rig.answers[entry[0]]]
        part = [entry for entry in self.waiting if None in self.rig.answers[entry[0]]]
        for cookie, first, data, _ in [*done, *part]:
            if data is None:
                continue
            padded = data.ljust(1458, b"\0")
            for i, status in enumerate(self.rig.answers[cookie]):
                known = self.model.get(first + i)
                if status is S:
                    assert known in (None, padded)
                    self.model[first + i] = padded
        for cookie, first, data, count in done:
            if data is None:
                assert self.rig.answers[cookie] == [D]
                for index in range(first, first + count):
                    self.model[index] = D
        for cookie, first, data, _ in done:
            if data is None:
                continue
            for i, status in enumerate(self.rig.answers[cookie]):
                if status is D and self.in_waiting_delete(first + i):
                    self.model[first + i] = D
                known = self.model[first + i]
                if status is D:
                    assert known is D
                elif status is C:
                    assert known is D or known != data.ljust(1458, b"\0")
                else:
                    assert status is S
        self.waiting = part

    @precondition(lambda self: self.model)
    @invariant()
    def what_was_answered_is_there(self) -> None:
        self.rig.core.check()
        keys = sorted(self.model)
        for index in {*keys[:3], *keys[-3:], *keys[:: max(1, len(keys) // 40)]}:
            known = self.model[index]
            found = self.rig.stored(index)
            if known is D:
                assert found is D or self.in_waiting_delete(index)
            elif found is D:
                assert self.in_waiting_delete(index)
            else:
                assert isinstance(found, bytes)
                assert found == frame(index, bytes(known).rstrip(b"\0"))

    def teardown(self) -> None:
        self.rig.close()


def test_random_traffic_and_crashes(tmp_path, layout):
    Model.root, Model.layout, Model.count = tmp_path, layout, 0
    run_state_machine_as_test(
        Model,
        settings=settings(
            max_examples=15 if layout == "pack" else 8,  # it makes thousands of files in each
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )


@pytest.mark.parametrize("table", [PackTable, TreeTable])
def test_the_tables_of_a_closed_committer_hold_nothing(tmp_path, table):
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    packs = table(fd, bytes(16), 64)
    Committer(Queue(1, 16), packs, [KEYS.put]).check()
    assert (len(packs), packs.claims()) == (0, {})
    os.close(fd)
