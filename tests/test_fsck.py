"""`ingest fsck`: what it finds, what it mends, and what it leaves alone."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from stores import Small, everything_of, slot_offset, starts, template
from test_cli import run

from faults.damaged_store import LONG_PACK, SMALL_SEGMENT, Builder, read_all, started
from ingest import mac, sharding, ticket
from ingest._hmac import sign
from ingest.errors import ConfigError, DiskError, KeyFileError, StoreFormatError, StoreLockedError
from ingest.frame import delete_data
from ingest.limits import FRAME_SIZE, PACK_HEADER_SIZE
from ingest.mac import build_frame
from ingest.status import Status
from ingest.store.check.examination import Examination
from ingest.store.check.findings import Report, no_progress
from ingest.store.check.fsck import Fsck, fsck
from ingest.store.check.identity import identify
from ingest.store.check.log_survey import LogSurvey
from ingest.store.check.walk import walk
from ingest.store.layouts import tree_file
from ingest.store.layouts.pack_file import PackHeader, bit, set_bits
from ingest.store.store import NO_SEGMENT, Store
from ingest.store.store_json import store_check, write_store_json

PACK = "4/obj"
LONG = sharding.slot_ticket(LONG_PACK, 2)  # a ticket of seven characters that is stored in "begun"


@pytest.fixture(scope="session")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("templates")


@pytest.fixture
def small(templates: Path, tmp_path: Path) -> Callable[..., Small]:
    def copy(end: str = "clean") -> Small:
        made = template(templates, end)
        made.copy(tmp_path / f"store-{end}")
        return Small(tmp_path / f"store-{end}", made)

    return copy


def check_layout(layout: str, directory: Path) -> None:
    if layout == "tree":
        try:
            tree_file.check_file_system(directory)
        except ConfigError as error:
            pytest.skip(str(error))


def copy_of(templates: Path, tmp_path: Path, end: str, layout: str) -> Small:
    check_layout(layout, tmp_path)
    made = template(templates, end, layout)
    made.copy(tmp_path / "store")
    return Small(tmp_path / "store", made)


def header_of(store: Small, path: str = PACK) -> PackHeader:
    return PackHeader.parse((store.path / path).read_bytes())


def write_header(store: Small, header: PackHeader, path: str = PACK) -> None:
    store.patch(path, 0, header.serialize())


class TestClean:
    @pytest.mark.parametrize("end", ["clean", "killed", "cut", "begun"])
    def test_what_a_crash_leaves_is_no_problem(self, small, end):
        store = small(end)
        with everything_of(store.path):
            report = store.fsck()
        assert report.problems == []
        assert (report.log_batches_pending > 0) == (end != "clean")
        assert any("the next start brings them in" in note for note in report.notes) == (end != "clean")
        if end == "clean":
            assert report.chunks == sum(data is not None for data in store.truth.values())
            assert report.deleted == sum(data is None for data in store.truth.values())
            assert report.files == len(list(store.path.rglob("obj")))

    def test_a_log_without_segments_is_told_of(self, small):
        store = small()
        assert not any(NO_SEGMENT in note for note in store.fsck().notes)
        for path in (store.path / ".ingest/wal").glob("*.log"):
            path.unlink()
        report = store.fsck()
        assert report.clean and [NO_SEGMENT in note for note in report.notes] == [True]

    @pytest.mark.parametrize("end", ["clean", "killed", "cut"])
    def test_a_repair_of_nothing_changes_nothing(self, small, end):
        store = small(end)
        with everything_of(store.path):
            assert store.fsck(repair=True).clean

    def test_a_torn_batch_is_a_crash(self, small):
        store = small("killed")
        last = store.template.batches[-1]
        store.patch(last.segment, last.offset + last.length - 1, b"\x55")
        report = store.fsck()
        assert report.clean
        assert any("never acknowledged" in note for note in report.notes)

    def test_a_pack_that_was_only_begun(self, small):
        store = small()
        path = store.path / "AB" / "obj"
        path.parent.mkdir(mode=0o700)
        path.touch(0o600)
        assert store.fsck().clean

    def test_bytes_in_a_free_slot(self, small):
        store = small()
        free = next(s for s in range(1290, 1296) if not bit(header_of(store).present, s))
        store.patch(PACK, sharding.slot_offset(free), b"left by a bulk job")
        assert store.fsck().clean


class TestSlots:
    def test_one_that_the_log_has_is_written_again(self, small):
        store = small()
        logged = {i for b in store.template.batches for some in b.frames.values() for i in some}
        index = next(i for i in store.slots() if i in logged)
        store.patch(PACK, slot_offset(index) + 700, b"decay")
        problem = store.only()
        assert (problem.kind, problem.path, problem.slot) == ("slot", PACK, sharding.ticket_slot(index))
        assert problem.ticket == ticket.format(index)
        assert "from the log" in problem.repair and not problem.lost
        assert store.only(repair=True).repaired
        assert store.fsck().clean
        assert store.shows_all()

    def test_one_without_a_copy_is_marked_and_does_not_become_free(self, small):
        store = small()
        logged = {i for b in store.template.batches for some in b.frames.values() for i in some}
        index = next(i for i in store.slots() if i not in logged)
        before = (store.path / PACK).read_bytes()[slot_offset(index) :][:FRAME_SIZE]
        store.patch(PACK, slot_offset(index) + 20, b"decay")
        broken = before[:20] + b"decay" + before[25:]
        problem = store.only(repair=True)
        assert problem.lost and problem.repaired
        assert store.fsck().clean
        assert store.shows_all(lost={index})
        copy = store.path / str(problem.copy)
        assert copy.read_bytes() == broken
        (piece,) = json.loads(copy.with_suffix(".json").read_text())["pieces"]
        assert (piece["offset"], piece["size"], piece["at"]) == (slot_offset(index), FRAME_SIZE, 0)
        assert (piece["slot"], piece["ticket"]) == (sharding.ticket_slot(index), ticket.format(index))

    def test_two_that_changed_places_come_back(self, small):
        store = small()
        logged = {i for b in store.template.batches for some in b.frames.values() for i in some}
        one, other = [i for i in store.slots() if i not in logged][:2]
        raw = (store.path / PACK).read_bytes()
        for to, source in ((one, other), (other, one)):
            store.patch(PACK, slot_offset(to), raw[slot_offset(source) :][:FRAME_SIZE])
        assert store.kinds() == ["slot", "slot"]
        store.fsck(repair=True)
        assert store.fsck().clean
        assert store.shows_all()

    def test_a_deleted_one_with_bytes(self, small):
        store = small()
        index = store.slots(alive=False)[0]
        store.patch(PACK, slot_offset(index), b"not zero")
        assert store.kinds() == ["deleted_bytes"]
        store.fsck(repair=True)
        assert store.fsck().clean and store.shows_all()

    def test_present_and_deleted(self, small):
        store = small()
        index = store.slots()[0]
        header = header_of(store)
        set_bits(header.deleted, sharding.ticket_slot(index))
        write_header(store, header)
        assert "both_bits" in store.kinds()
        store.fsck(repair=True)
        assert store.fsck().clean and store.shows_all(lost={index})

    def test_other_bytes_than_the_log_s_are_a_contradiction(self, small):
        store = small()
        index = next(
            i
            for b in store.template.batches
            if b.number <= store.template.settled
            for some in b.frames.values()
            for i in some
            if store.truth[i] is not None and sharding.ticket_pack(i) == 5
        )
        forged = build_frame(store.keys.put, ticket.index_to_wire(index), b"authentic, and another one")
        store.patch(PACK, slot_offset(index), forged)
        assert store.kinds() == ["contradiction"]
        store.fsck(repair=True)
        assert store.fsck().clean and store.shows_all()


class TestHeaders:
    def test_a_lost_one_is_built_again_from_the_slots(self, small):
        store = small()
        store.patch(PACK, 30, b"decay")
        assert store.only().kind == "header"
        old = (store.path / PACK).read_bytes()[:PACK_HEADER_SIZE]
        problem = store.only(repair=True)
        assert (store.path / str(problem.copy)).read_bytes() == old
        assert store.fsck().clean and store.shows_all()
        free = next(s for s in range(1290, 1296))
        assert bit(header_of(store).deleted, free), "what may have been used is not given away again"

    def test_zeros_behind_it(self, small):
        store = small()
        store.patch(PACK, 3000, b"x")
        assert store.only(repair=True).kind == "header_tail"
        assert store.fsck().clean and store.shows_all()

    def test_a_file_that_is_too_long(self, small):
        store = small()
        size = sharding.slot_offset(1296)
        store.patch(PACK, size + 9, b"x")
        assert store.only(repair=True).kind == "length"
        assert store.fsck().clean and store.shows_all()

    def test_one_of_another_store(self, small):
        store = small()
        header = header_of(store)
        header.store_id = bytes(16)
        write_header(store, header)
        assert "another store" in store.only(repair=True).detail
        assert store.fsck().clean and store.shows_all()

    def test_two_packs_that_changed_places_are_named(self, small):
        store = small()
        a, b = (store.path / path for path in (PACK, "NZ/obj"))
        os.rename(a, store.path / "x")
        os.rename(b, a)
        os.rename(store.path / "x", b)
        with everything_of(store.path):
            problems = store.fsck(repair=True).problems
        assert {(problem.kind, problem.path, problem.repaired) for problem in problems} == {
            ("misplaced", PACK, False),
            ("misplaced", "NZ/obj", False),
        }
        assert any("this is the pack NZ/obj" in problem.detail for problem in problems)

    def test_a_newer_format_is_not_touched(self, small):
        store = small()
        raw = bytearray((store.path / PACK).read_bytes()[:512])
        raw[8:12] = (2).to_bytes(4, "big")
        raw[504:] = mac.blake3(bytes(raw[:504])).digest(8)
        store.patch(PACK, 0, bytes(raw))
        with everything_of(store.path / "4"), pytest.raises(StoreFormatError, match="format version 2"):
            store.fsck(repair=True)

    def test_a_header_of_zeros_over_frames_that_only_the_pack_has_was_lost(self, small):
        store = small("killed")
        store.patch(PACK, 0, bytes(512))
        assert "header" in store.kinds()
        deleted = store.slots(alive=False)
        assert deleted
        read = store.read()  # recovery builds it again by itself, and by the same rule
        assert all(read[index] == store.expected()[index] for index in deleted)


class TestAgainstTheLog:
    def test_an_older_pack_is_found_and_brought_up_to_the_log(self, small):
        store = small()
        (store.path / PACK).write_bytes(store.template.stale[PACK])
        assert set(store.kinds()) == {"stale"}
        store.fsck(repair=True)
        assert store.fsck().clean and store.shows_all()

    def test_a_missing_pack(self, small):
        store = small()
        logged = {i for b in store.template.batches for some in b.frames.values() for i in some}
        os.unlink(store.path / PACK)
        assert store.only(repair=True).kind == "missing"
        assert store.fsck().clean
        read = store.read()
        assert all(read[i] == store.expected()[i] for i in store.slots() if i in logged)


class TestTree:
    @pytest.fixture(params=["clean", "killed", "cut", "begun"])
    def store(self, request, templates, tmp_path) -> Small:
        return copy_of(templates, tmp_path, request.param, "tree")

    def path(self, store: Small, index: int) -> Path:
        return store.path / ticket.tree_path(ticket.format(index))

    def test_what_a_crash_leaves_is_no_problem(self, store):
        with everything_of(store.path):
            assert store.fsck().problems == []

    @pytest.mark.parametrize("how", ["bytes", "cut", "longer", "attribute", "no attribute"])
    def test_a_chunk_that_decayed(self, store, how):
        logged = {i for b in store.template.batches for some in b.frames.values() for i in some}
        with_copy = next(i for i in store.slots() if i in logged)
        without = next(i for i in store.slots() if i not in logged)
        for index in (with_copy, without):
            path = self.path(store, index)
            if how == "bytes":
                store.patch(path.relative_to(store.path), 50, b"decay")
            elif how in ("cut", "longer"):
                os.truncate(path, 1457 if how == "cut" else 1459)
            elif how == "attribute":
                os.setxattr(path, tree_file.CHECKSUM, b"decayed!")
            else:
                os.removexattr(path, tree_file.CHECKSUM)
        read = store.read()
        assert all(read[index][0] is not Status.SAVED for index in (with_copy, without))
        found = {problem.path: problem.lost for problem in store.fsck().problems}
        names = [ticket.tree_path(ticket.format(index)) for index in (with_copy, without)]
        assert found == {names[0]: False, names[1]: True}
        assert all(problem.repaired and problem.copy for problem in store.fsck(repair=True).problems)
        assert store.fsck().clean
        assert store.shows_all(lost={without})

    def test_a_deleted_one_with_bytes(self, store):
        index = store.slots(alive=False)[0]
        self.path(store, index).write_bytes(b"not empty")
        assert store.kinds() == ["deleted_bytes"]
        store.fsck(repair=True)
        assert store.fsck().clean and store.shows_all()

    def test_a_missing_file_that_the_log_knows(self, store):
        settled = [b for b in store.template.batches if b.number <= store.template.settled]
        logged = {i for b in settled for some in b.frames.values() for i in some}
        index = next(i for i in store.slots() if i in logged)
        self.path(store, index).unlink()
        assert store.only(repair=True).kind == "stale"
        assert store.fsck().clean and store.shows_all()

    def test_a_bad_batch(self, store):
        if store.template.name.endswith("clean"):
            pytest.skip("its log holds nothing that the files lack")
        batch = store.template.batches[TestLog().middle(store)]
        (place, (lost,)), *_ = batch.frames.items()
        store.patch(batch.segment, place + 100, b"decay")
        store.fsck(repair=True)
        assert store.fsck().clean
        killed = store.template.name.endswith("killed")
        assert store.shows_all(lost=set() if killed else {lost})


@pytest.mark.parametrize("at", range(3))
def test_each_key_that_lacks_is_missed(small, at):
    """A frame that fails its checksum may be signed by any of them: then a repair must not take it for decay."""
    store = small()
    record = json.loads((store.path / ".ingest/store.json").read_text())
    others = [mac.derive(bytes([i]) * 32).id for i in (1, 2)]
    record["keys"] = [*others[:at], *record["keys"], *others[at:]]
    del record["check"]
    write_store_json(store.path / ".ingest/store.json", record)
    assert identify(store.path).missing == others
    store.patch(PACK, slot_offset(store.slots()[0]) + 50, b"decay")
    with everything_of(store.path / "4"):
        store.fsck(repair=True)


class TestLogOfPacksWithoutAFile:
    PUT, FIRST = (sharding.slot_ticket(sharding.pack_id(prefix), 7) for prefix in ("AABBC", "AABBD"))

    @pytest.fixture(params=["pack", "tree"])
    def store(self, request, tmp_path) -> tuple[Path, Builder]:
        """Batches 3 and 4 are bad, and name packs that no other batch does."""
        check_layout(request.param, tmp_path)
        data = tmp_path / "store"
        builder = Builder(data, request.param, random.Random(1), SMALL_SEGMENT)
        builder.put([sharding.slot_ticket(5, slot) for slot in (1, 2)])
        builder.settle()
        builder.put([sharding.slot_ticket(5, 3)])
        builder.put([self.PUT], apply=False)
        builder.delete(self.FIRST, 2, apply=False)
        builder.put([sharding.slot_ticket(5, 4)], apply=False)
        builder.close()
        bad = builder.batches[2:4]
        assert [batch.number for batch in bad] == [3, 4]
        with (data / bad[0].segment).open("r+b") as file:
            for batch, inside in zip(bad, (100, 1400), strict=True):
                (place,) = batch.frames
                file.seek(place + inside)
                file.write(b"decay")
        return data, builder

    def test_what_was_used_there_does_not_become_free(self, store):
        data, builder = store
        report = fsck(data, repair=True, segment_size=SMALL_SEGMENT)
        bad = {problem.ticket for problem in report.problems if problem.kind == "log_frame"}
        assert bad == {ticket.format(self.PUT), ticket.format(self.FIRST)}
        assert fsck(data, segment_size=SMALL_SEGMENT).clean
        with started(data, SMALL_SEGMENT) as reader:
            read = read_all(reader, builder.keys)
        assert read[self.PUT][0] is Status.DELETED
        assert read[self.FIRST][0] is Status.DELETED
        assert all(read[sharding.slot_ticket(5, slot)][0] is Status.SAVED for slot in (1, 2, 3, 4))

    @pytest.mark.parametrize("says", ["put", "note", "note that is pending", "delete", "put and delete"])
    def test_a_pack_that_is_gone_is_made_again_of_whatever_the_log_says(self, tmp_path, says):
        """Also when it held tombstones only: without its file those tickets are free."""
        data, first = tmp_path / "store", sharding.slot_ticket(5, 7)
        builder = Builder(data, "pack", random.Random(1), SMALL_SEGMENT)
        if "note" in says:
            builder.note(first, 3)
        if "put" in says:
            builder.put([first, first + 1, first + 2])
        if "delete" in says:
            builder.delete(first + 1, 4)
        if "pending" not in says:
            builder.settle()
        builder.append(b"", [])
        builder.close()
        os.unlink(data / PACK)
        (problem,) = fsck(data, repair=True, segment_size=SMALL_SEGMENT).problems
        assert (problem.kind, problem.path, problem.repaired) == ("missing", PACK, True)
        assert fsck(data, segment_size=SMALL_SEGMENT).clean
        with started(data, SMALL_SEGMENT) as reader:
            read = read_all(reader, builder.keys)
        for index, held in builder.truth.items():
            lost = held is None or "note" in says  # the log has no copy of those
            assert read[index] == ((Status.DELETED, b"") if lost else (Status.SAVED, held))

    def test_a_delete_beside_a_bad_frame(self, templates, tmp_path, layout):
        store = copy_of(templates, tmp_path, "begun", layout)
        batch = next(b for b in store.template.batches if [*map(len, b.frames.values())] == [1, 2])
        (place, (put,)), _ = sorted(batch.frames.items())
        store.patch(batch.segment, place + 100, b"decay")
        store.fsck(repair=True)
        assert store.fsck().clean
        assert store.shows_all(lost={put})

    def test_a_bad_frame_is_named_by_its_ticket_s_own_file(self, templates, tmp_path):
        store = copy_of(templates, tmp_path, "begun", "tree")
        batch = next(
            b for b in store.template.batches if LONG in {i for some in b.frames.values() for i in some}
        )
        place = next(place for place, indices in batch.frames.items() if LONG in indices)
        name = ticket.format(LONG)
        assert len(name) == 7 and (store.path / ticket.tree_path(name)).exists()
        store.patch(batch.segment, place + 100, b"decay")
        named = {problem.ticket: problem.path for problem in store.fsck(repair=True).problems}
        assert named[name] == ticket.tree_path(name)
        assert store.fsck().clean
        assert store.shows_all(), "its file holds it"


class TestWhatALostBatchBrought:
    """A bad frame makes its batch one that no recovery replays: a repair brings in what else is in it, whatever it changes.

    Each kind of it is alone in a pack which has a file already, and of which nothing else is wrong or pending."""

    STORED, DELETED = (3, 10, 1294), (20,)  # slots of each pack
    BROUGHT: ClassVar = {
        "a delete of the first slot": [("delete", 0, 1)],
        "a delete of a free slot": [("delete", 5, 1)],
        "a delete of free slots": [("delete", 21, 40)],
        "a delete of the last slot": [("delete", 1295, 1)],
        "a delete of a stored one": [("delete", 3, 1)],
        "a delete of stored and free ones": [("delete", 2, 9)],
        "a delete of all": [("delete", 0, 1296)],
        "a delete of a deleted one": [("delete", 20, 1)],
        "a put in the first slot": [("put", 0, 1)],
        "a put in a free slot": [("put", 5, 1)],
        "a put in the last slot": [("put", 1295, 1)],
        "puts": [("put", 4, 1), ("put", 9, 1)],
        "a put and a delete": [("put", 4, 1), ("delete", 5, 1)],
        "a put that is lost": [("lost", 5, 1)],
        "a put that is lost and a delete": [("lost", 5, 1), ("delete", 3, 1)],
    }

    def test_is_in_the_packs_after_a_repair(self, tmp_path, layout):
        check_layout(layout, tmp_path)
        data = tmp_path / "store"
        builder = Builder(data, layout, random.Random(1), SMALL_SEGMENT)
        packs = {
            name: sharding.pack_id("AAC" + ticket.ALPHABET[i] + "0") for i, name in enumerate(self.BROUGHT)
        }
        for pack in packs.values():
            builder.put([sharding.slot_ticket(pack, slot) for slot in (*self.STORED, *self.DELETED)])
            builder.delete(sharding.slot_ticket(pack, self.DELETED[0]), 1)
        builder.settle()
        builder.put([sharding.slot_ticket(5, 1)])
        spoilt = []
        for number, (name, brought) in enumerate(self.BROUGHT.items()):
            raw, about, deletes = bytearray(), [], 0
            if not any(what == "lost" for what, _, _ in brought):
                brought = [("lost elsewhere", 100 + number, 1), *brought]
            for what, slot, count in sorted(brought, key=lambda one: one[0] == "delete"):  # puts come first
                first = sharding.slot_ticket(5 if what == "lost elsewhere" else packs[name], slot)
                count = min(count, 64) if layout == "tree" else count  # each one makes a file there
                indices = [*range(first, first + count)]
                if what == "delete":
                    frame = bytearray(ticket.index_to_wire(first) + bytes(8) + delete_data(count))
                    sign(builder.keys.delete, frame)
                    raw += frame
                    deletes += 1
                else:
                    raw += builder.frames(indices)
                if what != "put":
                    builder.truth.update(dict.fromkeys(indices))
                if what.startswith("lost"):
                    spoilt.append((len(builder.batches), len(about)))
                about.append(indices)
            builder.append(bytes(raw), about, deletes=deletes)
        builder.put([sharding.slot_ticket(5, 2)])
        builder.close()
        for number, place in spoilt:
            batch = builder.batches[number]
            with (data / batch.segment).open("r+b") as file:
                file.seek([*batch.frames][place] + 700)
                file.write(b"decay")
        report = fsck(data, repair=True, segment_size=SMALL_SEGMENT)
        assert [problem.kind for problem in report.problems].count("log_frame") == len(self.BROUGHT)
        assert fsck(data, segment_size=SMALL_SEGMENT).clean
        found = {}
        with started(data, SMALL_SEGMENT) as reader:
            for pack in (5, *packs.values()):
                for first, status, count, frames in reader.read_range(sharding.slot_ticket(pack, 0), 1296):
                    for i in range(count if status is not Status.MISSING else 0):
                        frame = frames[i * FRAME_SIZE : (i + 1) * FRAME_SIZE]
                        found[first + i] = frame[16:] if status is Status.SAVED else None
        assert found == builder.truth


class TestLog:
    def middle(self, store: Small) -> int:
        """A batch with puts that the packs may lack, and whole ones behind it."""
        return next(
            i
            for i, batch in enumerate(store.template.batches)
            if batch.number > store.template.settled and len(batch.frames) > 2
        )

    def test_a_bad_batch_before_a_whole_one(self, small):
        store = small("cut")
        batch = store.template.batches[self.middle(store)]
        (place, (index,)), *_ = batch.frames.items()
        store.patch(batch.segment, place + 100, b"decay")
        assert not starts(store.path)
        report = store.fsck()
        log = next(p for p in report.problems if p.kind == "log")
        assert f"batch {batch.number} lost, which the packs may lack" in log.detail
        assert [p.ticket for p in report.problems if p.kind == "log_frame"] == [ticket.format(index)]
        report = store.fsck(repair=True)
        assert all(problem.repaired for problem in report.problems)
        assert store.fsck().clean
        assert store.shows_all(lost={index}), "every other frame of the batch is authentic by itself"

    @pytest.mark.parametrize("places", [(PACK, "NZ/obj"), ("obj", PACK), ("obj", "NZ/obj")])
    def test_the_log_stays_as_long_as_packs_lie_where_they_do_not_belong(self, small, places):
        """What it has for them can be written only when they are where they belong again."""
        store = small("cut")
        batch = store.template.batches[self.middle(store)]
        (place, (index,)), *_ = batch.frames.items()
        store.patch(batch.segment, place + 100, b"decay")
        a, b, aside = store.path / places[0], store.path / places[1], store.path / "x"
        for _ in range(2):  # there and back
            before = {path: path.read_bytes() for path in (store.path / ".ingest/wal").glob("*.log")}
            if not aside.exists():
                for old, new in ((a, aside), (b, a), (aside, b)):
                    os.rename(old, new)
            report = store.fsck(repair=True)
            if any(problem.kind == "misplaced" for problem in report.problems):
                assert not any(problem.repaired for problem in report.problems if problem.kind == "log")
                assert {path: path.read_bytes() for path in before} == before
        assert all(problem.repaired for problem in report.problems)
        assert store.fsck().clean and store.shows_all(lost={index})

    @pytest.mark.parametrize("end", ["killed", "cut"])
    @pytest.mark.parametrize("size", [8, 512])
    def test_a_lost_segment_header(self, small, end, size):
        store = small(end)
        batch = store.template.batches[-1]
        store.patch(batch.segment, 0, bytes(size))
        assert "log" in store.kinds()
        store.fsck(repair=True)
        assert store.fsck().clean
        assert store.shows_all()

    def test_the_segments_are_kept(self, small):
        store = small("cut")
        batch = store.template.batches[self.middle(store)]
        store.patch(batch.segment, batch.offset + 70, b"decay")
        old = {path.name: path.read_bytes() for path in (store.path / ".ingest/wal").glob("*.log")}
        store.fsck(repair=True)
        assert not list((store.path / ".ingest/wal").glob("*.log"))
        kept = {}
        for about in (store.path / ".ingest/quarantine").rglob("*.json"):
            record = json.loads(about.read_text())
            if record.get("moved"):
                kept[Path(record["path"]).name] = about.with_suffix(".copy").read_bytes()
        assert kept == old

    def test_it_stays_until_the_packs_are_synced(self, small):
        store = small("killed")
        batch = store.template.batches[self.middle(store)]
        store.patch(batch.segment, batch.offset + 70, b"decay")
        wal = store.path / ".ingest/wal"
        identity = identify(store.path)
        size = store.template.segment_size
        survey = LogSurvey(identity.wal_dir, identity.log_id, identity.keys, size)
        found = walk(store.path, identity.layout)
        no_descriptor = -1  # which no syncfs takes
        try:
            with everything_of(wal), pytest.raises(DiskError, match="the damaged log stays where it is"):
                report = Report(str(store.path), identity.layout, repaired=True)
                Fsck(Examination(identity, survey, found, True, no_progress, no_descriptor, report)).run()
        finally:
            survey.close()
        assert all(problem.repaired for problem in store.fsck(repair=True).problems)
        assert not list(wal.glob("*.log"))
        assert store.fsck().clean and store.shows_all()

    def test_a_short_segment(self, small):
        store = small("killed")
        path = store.path / store.template.batches[-1].segment
        os.truncate(path, path.stat().st_size - 4096)
        assert "log" in store.kinds()
        store.fsck(repair=True)
        assert store.fsck().clean and store.shows_all()


class TestIdentity:
    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 1}'])
    def test_a_lost_store_json_is_written_again(self, small, content):
        store = small()
        path = store.path / ".ingest/store.json"
        old = json.loads(path.read_text())
        path.write_bytes(content)
        assert store.only(repair=True).kind == "store_json"
        assert json.loads(path.read_text()) == old
        assert store.fsck().clean and store.shows_all()

    @pytest.mark.parametrize("field", ["store_id", "log_id"])
    def test_a_wrong_id(self, small, field):
        store = small()
        path = store.path / ".ingest/store.json"
        old = json.loads(path.read_text())
        path.write_text(json.dumps(old | {field: "0" * 32}))
        assert store.kinds() == ["store_json"]
        store.fsck(repair=True)
        assert json.loads(path.read_text()) == old

    @pytest.mark.parametrize("kind", ["pack", "tree"])
    @pytest.mark.parametrize("member", ["format", "layout", "store_id", "log_id", "keys", "check", "name"])
    def test_a_character_that_decays_in_store_json(self, templates, tmp_path, kind, member):
        """Of a member's value, the store id's too, which in layout tree nothing else names; or of the check's name."""
        store = copy_of(templates, tmp_path, "clean", kind)
        path = store.path / ".ingest/store.json"
        text = path.read_text()
        found = re.search(r'"c()heck' if member == "name" else rf'"{member}": [\["\s]*()', text)
        assert found is not None
        at = found.start(1)
        decayed = "0" if text[at] != "0" else "1"
        path.write_text(text[:at] + decayed + text[at + 1 :])
        with pytest.raises(StoreFormatError, match="fsck --repair"):
            Store.open(store.path, layout=kind)
        assert store.only().kind == "store_json"
        assert store.only(repair=True).copy
        after = json.loads(path.read_text())
        if (kind, member) == ("tree", "store_id"):
            assert after["store_id"][0] == decayed and after["check"] == store_check(after)
        else:
            assert after == json.loads(text)
        assert store.fsck().clean and store.shows_all()

    def test_a_check_that_fits_is_of_the_members_not_of_the_text(self, small):
        store = small()
        path = store.path / ".ingest/store.json"
        record = json.loads(path.read_text())
        path.write_text(json.dumps(dict(reversed(record.items()))))
        with everything_of(store.path):
            assert store.fsck(repair=True).clean

    def test_a_store_json_of_before_there_was_a_check(self, small):
        store = small()
        path = store.path / ".ingest/store.json"
        record = json.loads(path.read_text())
        del record["check"]
        path.write_text(json.dumps(record))
        report = store.fsck()
        assert report.clean and any("the next start adds one" in note for note in report.notes)
        assert store.shows_all()
        assert "check" in json.loads(path.read_text())
        assert not store.fsck().notes

    def test_an_unknown_version_is_refused(self, small):
        store = small()
        path = store.path / ".ingest/store.json"
        write_store_json(path, json.loads(path.read_text()) | {"format": 7})
        with everything_of(store.path), pytest.raises(StoreFormatError, match="7"):
            store.fsck(repair=True)

    def test_a_wrong_log_json(self, small):
        store = small()
        path = store.path / ".ingest/wal/log.json"
        path.write_text("{}")
        assert store.only(repair=True).kind == "log_json"
        assert store.fsck().clean and store.shows_all()

    def test_the_log_is_elsewhere(self, small, tmp_path):
        store = small()
        os.rename(store.path / ".ingest/wal", tmp_path / "wal")
        with pytest.raises(ConfigError, match="--wal-dir"):
            store.fsck()
        assert store.fsck(wal_dir=tmp_path / "wal").clean

    def test_a_damaged_key_file_condemns_nothing(self, small):
        store = small()
        path = store.path / ".ingest/key"
        old = path.read_text()
        path.write_text(("1" if old[0] != "1" else "2") + old[1:])
        with everything_of(store.path):
            problem = store.only(repair=True)
        assert (problem.kind, problem.repaired) == ("key", False)
        assert "put it back" in problem.detail
        path.write_text(old)
        assert store.fsck().clean

    def test_a_key_that_signed_nothing_here_is_dropped_from_store_json(self, small):
        store = small()
        path = store.path / ".ingest/store.json"
        old = json.loads(path.read_text())
        path.write_text(json.dumps(old | {"keys": ["0" * 16]}))
        assert store.only(repair=True).kind == "store_json"
        assert json.loads(path.read_text()) == old

    def test_a_named_key_file_must_be_there(self, small, tmp_path):
        with pytest.raises(KeyFileError):
            small().fsck(key_file=tmp_path / "none")

    def test_no_store(self, tmp_path):
        with everything_of(tmp_path), pytest.raises(ConfigError, match="not a store"):
            Small(tmp_path, None).path  # noqa: B018
            fsck(tmp_path)

    def test_a_running_server_s_store(self, small):
        store = small()
        held = Store.open(store.path)
        try:
            with pytest.raises(StoreLockedError, match="stop it first"):
                store.fsck()
        finally:
            held.close()


class TestNames:
    def test_modes(self, small):
        store = small()
        os.chmod(store.path / PACK, 0o644)
        os.chmod(store.path / "NZ", 0o755)
        assert store.kinds() == ["mode", "mode"]
        store.fsck(repair=True)
        assert store.fsck().clean

    def test_each_bit_of_a_mode_of_each_name_counts(self, small):
        store = small()
        (store.path / ".ingest/quarantine").mkdir(mode=0o700)
        names = [path for path in sorted(store.path.rglob("*")) if not path.is_symlink()]
        assert {"key", "lock", "store.json", "wal", "log.json", "0000.log", "obj"} < {
            path.name for path in names
        }
        for path in names:
            mode = 0o700 if path.is_dir() else 0o600
            assert stat.S_IMODE(path.stat().st_mode) == mode
            for n in range(9):
                os.chmod(path, mode ^ 1 << n)
                found = [(problem.kind, problem.path) for problem in walk(store.path, "pack").problems]
                assert found == [("mode", str(path.relative_to(store.path)))], oct(mode ^ 1 << n)
            os.chmod(path, mode)
        assert walk(store.path, "pack").problems == []

    @pytest.mark.parametrize(
        "name", ["store.json", "lock", "key", "wal", "quarantine", "wal/0000.log", "wal/log.json"]
    )
    def test_a_link_in_the_place_of_what_is_ours(self, small, tmp_path, name):
        store = small()
        path = store.path / ".ingest" / name
        if name == "quarantine":
            path.mkdir(mode=0o700)
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
        (problem,) = walk(store.path, "pack").problems
        assert (problem.kind, problem.path) == ("unexpected", f".ingest/{name}")
        assert f"a symbolic link to {tmp_path / 'elsewhere'}" in problem.detail

    def test_what_no_ticket_leads_to_is_moved_away_and_no_link_followed(self, small, tmp_path):
        store = small()
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "obj").write_bytes(b"mine")
        (store.path / "QQ").symlink_to(outside)
        (store.path / "4" / "55").mkdir()
        (store.path / "4" / "readme").write_text("hello")
        (store.path / "lost+found").mkdir()
        assert store.kinds() == ["unexpected", "unexpected", "unexpected"]
        report = store.fsck(repair=True)
        assert (outside / "obj").read_bytes() == b"mine"
        assert any(
            (store.path / str(p.copy)).read_bytes() == b"hello" for p in report.problems if "readme" in p.path
        )
        assert store.fsck().clean and store.shows_all()


class Cut(Exception):
    pass


CALLS = ("rename", "fsync", "unlink", "chmod")


@pytest.fixture
def cut_off(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """After ``cut_off(k)`` the k-th call that changes a disk does not return: as kill -9 does it, nothing is cleaned up."""
    left = [0]

    def guard(name: str) -> None:
        real = getattr(os, name)

        def call(*arguments: object, **named: object) -> object:
            left[0] -= 1
            if left[0] == 0:
                raise Cut
            return real(*arguments, **named)

        monkeypatch.setattr(os, name, call)

    for name in CALLS:
        guard(name)
    yield lambda k: left.__setitem__(0, k)
    left[0] = 0


def test_a_repair_that_is_cut_off_anywhere_is_finished_by_the_next(small, cut_off, tmp_path):
    """A store with everything wrong at once; `k` goes over every call that makes something durable."""
    store = small("cut")
    batch = store.template.batches[TestLog().middle(store)]
    (place, (lost,)), *_ = batch.frames.items()
    store.patch(batch.segment, place + 100, b"decay")
    one = next(i for i in store.slots() if i != lost)
    store.patch(PACK, slot_offset(one) + 60, b"decay")
    store.patch("NZ/obj", 40, b"decay")
    (store.path / ".ingest/store.json").write_bytes(b"{")
    os.chmod(store.path / "obj", 0o640)
    (store.path / "4" / "readme").write_text("hello")
    damaged = tmp_path / "damaged"
    shutil.copytree(store.path, damaged)
    cuts = 0
    for k in range(1, 1000, 3):
        shutil.rmtree(store.path)
        shutil.copytree(damaged, store.path)
        cut_off(k)
        try:
            store.fsck(repair=True)
        except Cut:
            cuts += 1
        else:
            break
        finally:
            cut_off(0)
        store.fsck(repair=True)
        assert store.fsck().clean, f"cut off at call {k}"
        read = store.read()
        wrong = [i for i in store.truth if i not in (one, lost) and read[i] != store.expected()[i]]
        assert not wrong, f"cut off at call {k}"
    assert cuts > 5
    assert store.fsck().clean


def test_a_full_disk_is_said_and_leaves_the_store_as_it_was(small, monkeypatch):
    store = small()
    store.patch(PACK, slot_offset(store.slots()[0]) + 60, b"decay")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    pack = (store.path / PACK).read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        store.fsck(repair=True)
    assert (store.path / PACK).read_bytes() == pack


def test_the_document_names_every_kind():
    root = Path(__file__).parent.parent
    text = (root / "docs/operations.md").read_text().split("## Checking and repairing a store")[1]
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    named = {word for row in rows for word in re.findall(r"`(\w+)`", row)}
    code = "".join(path.read_text() for path in (root / "ingest/store").rglob("*.py"))
    used = set(re.findall(r"(?:Problem|Fault)\(\s*\"(\w+)\"", code))
    used |= set(re.findall(r"_fault\(\s*state,\s*\"(\w+)\"", code))
    assert named == used


class TestCommand:
    """From outside, on a store whose segments have the real size: without any."""

    @pytest.fixture
    def store(self, small) -> Small:
        store = small()
        for path in (store.path / ".ingest/wal").glob("*.log"):
            path.unlink()
        return store

    def test_clean(self, store):
        result = run("fsck", str(store.path))
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout.endswith("clean\n")
        assert f"{store.fsck().chunks:,} chunks" in result.stdout

    def test_problems(self, store):
        index = store.slots()[0]
        store.patch(PACK, slot_offset(index) + 60, b"decay")
        result = run("fsck", str(store.path))
        assert result.returncode == 1
        first, *_, last = result.stdout.splitlines()
        assert f"{PACK}, slot {sharding.ticket_slot(index)}, ticket {ticket.format(index)}" in first
        assert "--repair" in first and "--repair" in last
        found = json.loads(run("fsck", str(store.path), "--repair", "--json").stdout)
        assert found["problems"][0].items() >= {
            "kind": "slot", "path": PACK, "slot": sharding.ticket_slot(index), "ticket": ticket.format(index),
            "repaired": True, "lost": True,
        }.items()  # fmt: skip
        assert (store.path / found["problems"][0]["copy"]).exists()
        assert run("fsck", str(store.path)).returncode == 0

    def test_no_store(self, tmp_path):
        result = run("fsck", str(tmp_path / "none"))
        assert (result.returncode, result.stdout) == (78, "")
        assert "is not a store" in result.stderr
        assert run("fsck").returncode == 2
