"""Each state of a slot under each thing that the log may say of it: the verdict, and what a repair makes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import pytest
from put_rig import KEYS, OTHER_KEYS

from ingest import sharding, ticket
from ingest.errors import StoreFormatError
from ingest.limits import FRAME_SIZE, PACK_HEADER_SIZE
from ingest.mac import blake3, build_frame
from ingest.store.check.log_survey import LoggedPack
from ingest.store.check.pack_check import Extra, Fault, PackState, check_pack, mend_pack
from ingest.store.layouts.pack_file import PackHeader, bit, set_bits

STORE_ID = bytes(range(16))
HOLDS = ("zeros", "own", "own, by another key", "other data", "decayed", "another's", "no frame")
SAYS = ("nothing", "put", "pending put", "note", "pending note", "delete", "pending delete")
FRAMES = ("own", "own, by another key", "other data")


@dataclass(frozen=True)
class Case:
    """One slot: its bits, what lies in it, and what the log says. ``own``: what the log has, if it has a put."""

    slot: int
    present: bool
    deleted: bool
    holds: str
    says: str

    @property
    def valid(self) -> bool:
        return self.holds in FRAMES

    @property
    def pending(self) -> bool:
        return self.says in ("pending put", "pending delete")

    @property
    def gone(self) -> bool:
        return self.deleted or "delete" in self.says

    def faults(self) -> list[tuple[str, bool]]:
        """(kind, whether its chunk is lost): the table in `pack_check`."""
        found = []
        if self.present and self.deleted:
            found.append(("both_bits", False))
        if self.present and not self.deleted and not self.valid and not self.pending:
            found.append(("slot", self.says != "put"))
        if self.deleted and not self.present and self.holds != "zeros" and not self.pending:
            found.append(("deleted_bytes", False))
        free = not self.present and not self.deleted
        if (self.says == "delete" and not self.deleted) or (self.says == "put" and free):
            found.append(("stale", False))
        elif "note" in self.says and free and not self.valid:
            found.append(("stale", True))
        elif self.says == "note" and free:
            found.append(("stale", False))
        differs = self.holds == "other data" and self.present and not self.deleted
        if differs and self.says == "put":
            found.append(("contradiction", False))
        return found

    def mended(self, used: bool) -> str:
        """What it is then: free, deleted, or which frame it holds."""
        if self.gone:
            return "deleted"
        if "put" in self.says:
            return "own"
        if used or "note" in self.says:
            return self.holds if self.valid else "deleted"
        return "free"


class Pack:
    """All cases, one a slot, up to the last slot."""

    def __init__(self, prefix: str) -> None:
        self.id = sharding.pack_id(prefix)
        self.slots = sharding.pack_slots(self.id)
        kinds = list(product((False, True), (False, True), HOLDS, SAYS))
        first = self.slots - len(kinds)
        self.cases = [Case(first + i, *kind) for i, kind in enumerate(kinds)]
        self.logged = LoggedPack()
        header = PackHeader.of_pack(self.id, STORE_ID)
        header.generation = 7
        slots = bytearray(self.slots * FRAME_SIZE)
        for case in self.cases:
            slots[case.slot * FRAME_SIZE : (case.slot + 1) * FRAME_SIZE] = self.bytes_of(
                case.slot, case.holds
            )
            for bitmap, value in ((header.present, case.present), (header.deleted, case.deleted)):
                set_bits(bitmap, case.slot, value=value)
            self.say(case)
        self.content = header.serialize() + slots

    def say(self, case: Case) -> None:
        what, mask = case.says.rpartition(" ")[2], 1 << case.slot
        if what == "nothing":
            return
        name = {"put": "puts", "note": "noted", "delete": "deleted"}[what]
        if what == "put":
            self.logged.puts[case.slot] = (0, case.slot)
        else:
            setattr(self.logged, name, getattr(self.logged, name) | mask)
        if "pending" in case.says:
            setattr(self.logged, f"pending_{name}", getattr(self.logged, f"pending_{name}") | mask)

    def bytes_of(self, slot: int, what: str) -> bytes:
        if what in ("zeros", "deleted", "free"):
            return bytes(FRAME_SIZE)
        if what == "no frame":
            return b"\xff" * FRAME_SIZE
        index = sharding.slot_ticket(self.id, slot if what != "another's" else 1)
        key = OTHER_KEYS.put if "another key" in what else KEYS.put
        data = b"other data" if what == "other data" else b"data of %d" % slot
        frame = bytearray(build_frame(key, ticket.index_to_wire(index), data))
        if what == "decayed":
            frame[-1] ^= 1
        return bytes(frame)

    def frame_at(self, place: tuple[int, int]) -> bytes:
        return self.bytes_of(place[1], "own")

    def state(self, content: bytes | None = None) -> PackState:
        content = self.content if content is None else content
        return PackState(self.id, content, STORE_ID, [KEYS.put, OTHER_KEYS.put])

    def check(self, content: bytes | None = None) -> list[Fault]:
        return check_pack(self.state(content), self.logged, self.frame_at)

    def mend(self, content: bytes | None = None, extra: Extra | None = None) -> bytes:
        return mend_pack(self.state(content), self.logged, self.frame_at, extra)


@pytest.fixture(scope="module", params=["", "4", "AABBC"], ids=lambda prefix: f"pack {prefix!r}")
def pack(request: pytest.FixtureRequest) -> Pack:
    return Pack(request.param)


def with_lost_header(pack: Pack) -> bytes:
    return b"\xff" * 512 + pack.content[512:]


def assert_holds(pack: Pack, mended: bytes, expected: Callable[[Case], str], generation: int) -> None:
    header = PackHeader.parse(mended)
    assert (header.pack, header.store_id, header.generation) == (pack.id, STORE_ID, generation)
    assert len(mended) <= len(pack.content)
    slots = mended[PACK_HEADER_SIZE:].ljust(pack.slots * FRAME_SIZE, b"\0")
    for case in pack.cases:
        holds = expected(case)
        bits = bit(header.present, case.slot), bit(header.deleted, case.slot)
        assert bits == {"free": (False, False), "deleted": (False, True)}.get(holds, (True, False)), case
        if holds != "free":
            content = slots[case.slot * FRAME_SIZE : (case.slot + 1) * FRAME_SIZE]
            assert content == pack.bytes_of(case.slot, holds), case


def test_each_state_has_its_verdict(pack: Pack) -> None:
    found: dict[int, list[tuple[str, bool]]] = {case.slot: [] for case in pack.cases}
    for fault in pack.check():
        assert (fault.offset, fault.size) == (sharding.slot_offset(fault.slot), FRAME_SIZE)
        found[fault.slot].append((fault.kind, fault.lost))
    for case in pack.cases:
        assert sorted(found[case.slot]) == sorted(case.faults()), case


def test_each_state_is_mended(pack: Pack) -> None:
    assert_holds(pack, pack.mend(), lambda case: case.mended(case.present), 8)


def test_what_was_mended_is_right_and_stays_as_it_is(pack: Pack) -> None:
    """Else a repair that was cut off could not be done again."""
    for content in (pack.content, with_lost_header(pack)):
        mended = pack.mend(content)
        assert pack.check(mended) == []
        again = pack.mend(mended)
        was, now = PackHeader.parse(mended), PackHeader.parse(again)
        assert now.generation == was.generation + 1
        assert (now.present, now.deleted) == (was.present, was.deleted)
        assert again[PACK_HEADER_SIZE:] == mended[PACK_HEADER_SIZE:]


def test_under_a_lost_header_what_holds_no_frame_was_used(pack: Pack) -> None:
    """Tickets that were deleted do not become free, nor does one whose chunk is lost."""
    content = with_lost_header(pack)
    header, *faults = pack.check(content)
    assert (header.kind, header.offset, header.size) == ("header", 0, PACK_HEADER_SIZE)
    lost = {
        case.slot
        for case in pack.cases
        if not case.valid and "put" not in case.says and (case.holds != "zeros" or "note" in case.says)
    }
    assert {(fault.kind, fault.slot, fault.lost) for fault in faults} == {
        ("slot", slot, True) for slot in lost
    }
    blind = [Case(case.slot, False, False, case.holds, case.says) for case in pack.cases]
    by_slot = {case.slot: case for case in blind}
    assert_holds(pack, pack.mend(content), lambda case: by_slot[case.slot].mended(True), 1)
    found = PackHeader.parse(pack.mend(content))
    rest = range(pack.slots - len(pack.cases))
    assert all(bit(found.deleted, slot) for slot in rest), "free before, for all that anybody knows"


@pytest.mark.parametrize("at", [0, 7, 8, 15, 16, 17, FRAME_SIZE // 2, FRAME_SIZE - 2, FRAME_SIZE - 1])
def test_of_a_deleted_chunk_no_byte_may_stand(at: int) -> None:
    """Whichever one is left: it was to be erased."""
    pack = sharding.pack_id("4")
    header = PackHeader.of_pack(pack, STORE_ID)
    slots = bytearray(sharding.pack_slots(pack) * FRAME_SIZE)
    dead = (0, 9, sharding.pack_slots(pack) - 1)
    for slot in dead:
        set_bits(header.deleted, slot, value=True)
        slots[slot * FRAME_SIZE + at] = 1
    state = PackState(pack, header.serialize() + slots, STORE_ID, [KEYS.put])
    faults = check_pack(state, LoggedPack(), lambda _: b"")
    assert [(fault.kind, fault.slot) for fault in faults] == [("deleted_bytes", slot) for slot in dead]
    mended = mend_pack(state, LoggedPack(), lambda _: b"")
    assert not any(mended[PACK_HEADER_SIZE:])


@pytest.mark.parametrize("finds", ["own", "own, by another key", "decayed"])
def test_what_a_bad_batch_brought_fills_what_is_not_whole(pack: Pack, finds: str) -> None:
    """Of a frame that was found by itself nobody knows when it was acknowledged: what is whole in the pack counts more."""
    extra = Extra({case.slot: pack.bytes_of(case.slot, finds) for case in pack.cases})
    whole = finds in FRAMES

    def expected(case: Case) -> str:
        if case.gone or "put" in case.says:
            return case.mended(True)
        if (case.present and case.valid) or not whole:
            return case.holds if case.valid else "deleted"
        return finds

    assert_holds(pack, pack.mend(extra=extra), expected, 8)


@pytest.mark.parametrize("what", ["deleted", "doomed", "adopt"])
def test_what_else_a_bad_batch_tells(pack: Pack, what: str) -> None:
    mask = sum(1 << case.slot for case in pack.cases)
    extra = Extra({}, adopt=True) if what == "adopt" else Extra({}, **{what: mask})

    def expected(case: Case) -> str:
        if what == "deleted":
            return "deleted"
        return case.mended(case.present or what == "doomed" or case.valid)

    assert_holds(pack, pack.mend(extra=extra), expected, 8)


@pytest.mark.parametrize("own", ["own", "own, by another key"])
def test_a_frame_that_lies_in_another_slot_is_found(pack: Pack, own: str) -> None:
    """Authentic, under any key, and of this ticket: not one that decayed on the way, nor the slot's own bytes."""
    content = bytearray(pack.content[:PACK_HEADER_SIZE]) + bytes(pack.slots * FRAME_SIZE)
    header = PackHeader.of_pack(pack.id, STORE_ID)
    set_bits(header.present, 10, 3)
    content[:PACK_HEADER_SIZE] = header.serialize()
    frame = {slot: pack.bytes_of(slot, own) for slot in (10, 11)}
    decayed = pack.bytes_of(12, "decayed")
    for place, raw in ((10, frame[11]), (11, frame[10]), (12, decayed), (500, decayed)):
        content[sharding.slot_offset(place) : sharding.slot_offset(place) + FRAME_SIZE] = raw
    state = pack.state(bytes(content))
    found = {fault.slot: fault.lost for fault in check_pack(state, LoggedPack(), pack.frame_at)}
    assert found == {10: False, 11: False, 12: True}
    mended = mend_pack(state, LoggedPack(), pack.frame_at)
    after = PackHeader.parse(mended)
    assert [bit(after.present, slot) for slot in (10, 11, 12)] == [True, True, False]
    assert bit(after.deleted, 12)
    for slot, raw in frame.items():
        assert mended[sharding.slot_offset(slot) :][:FRAME_SIZE] == raw


@pytest.mark.parametrize("version", [0, 2, 1 << 8, 1 << 16, 1 << 24, (1 << 24) + 1, 0xFFFFFFFF])
def test_a_header_of_another_version_is_decay_only_if_its_checksum_fails(pack: Pack, version: int) -> None:
    """A later program's pack must not be made one of this version."""
    raw = bytearray(pack.content[:512])
    raw[8:12] = version.to_bytes(4, "big")
    assert pack.check(bytes(raw) + pack.content[512:])[0].kind == "header"
    raw[504:] = blake3(bytes(raw[:504])).digest(8)
    with pytest.raises(StoreFormatError, match=f"version {version}"):
        pack.state(bytes(raw) + pack.content[512:])


@pytest.mark.parametrize(
    ("zeros", "pending", "held", "unwritten"),
    [
        (512, (1, 2), (1, 2), True),
        (512, (1, 2), (1,), True),
        (512, (1, 2), (), True),
        (512, (1, 2), (1, 2, 3), False),
        (512, (1, 2), (3,), False),
        (512, (), (1,), False),
        (512, (), (), False),  # what it said of deleted slots is lost
        (511, (1, 2), (1, 2), False),
    ],
)
def test_a_header_of_zeros_was_never_written_if_the_log_has_all_that_is_there(
    pack: Pack, zeros: int, pending: tuple[int, ...], held: tuple[int, ...], unwritten: bool
) -> None:
    """Then nothing is lost, and what is free stays so."""
    content = bytearray(512 if zeros == 512 else b"\0" * 511 + b"\1").ljust(len(pack.content), b"\0")
    for slot in held:
        content[sharding.slot_offset(slot) : sharding.slot_offset(slot) + FRAME_SIZE] = pack.bytes_of(
            slot, "own"
        )
    logged = LoggedPack(
        {slot: (0, slot) for slot in pending}, pending_puts=sum(1 << slot for slot in pending)
    )
    state = pack.state(bytes(content))
    assert (check_pack(state, logged, pack.frame_at) == []) == unwritten
    after = PackHeader.parse(mend_pack(state, logged, pack.frame_at))
    assert all(bit(after.present, slot) for slot in {*pending, *held})
    assert bit(after.deleted, 700) != unwritten


def empty(pack: Pack) -> bytes:
    return PackHeader.of_pack(pack.id, STORE_ID).serialize()


def test_each_byte_behind_the_header_s_sector_is_zero_and_what_is_not_is_zeroed(pack: Pack) -> None:
    for at in (
        *range(512, 528),
        *range(528, PACK_HEADER_SIZE - 16, 199),
        *range(PACK_HEADER_SIZE - 16, 4096),
    ):
        content = bytearray(empty(pack))
        content[at] = 1 << at % 8
        (fault,) = check_pack(pack.state(bytes(content)), LoggedPack(), pack.frame_at)
        assert (fault.kind, fault.offset, fault.size) == ("header_tail", 0, PACK_HEADER_SIZE), at
        mended = mend_pack(pack.state(bytes(content)), LoggedPack(), pack.frame_at)
        assert not any(mended[512:]) and PackHeader.parse(mended).generation == 1


@pytest.mark.parametrize("more", [-FRAME_SIZE, -1, 0, 1, 2, 7, 8, 511, FRAME_SIZE, 4096])
def test_a_file_ends_with_its_last_slot_at_the_latest(pack: Pack, more: int) -> None:
    """Whatever lies behind it is named, and kept aside, byte by byte."""
    most = sharding.slot_offset(pack.slots)
    state = pack.state(empty(pack).ljust(most + more, b"\0"))
    found = [(one.kind, one.offset, one.size) for one in check_pack(state, LoggedPack(), pack.frame_at)]
    assert found == ([("length", most, more)] if more > 0 else [])
    assert len(mend_pack(state, LoggedPack(), pack.frame_at)) <= most


@pytest.mark.parametrize("whose", ["own", "another store's"])
@pytest.mark.parametrize("place", ["its own", "another"])
def test_only_a_pack_of_this_store_is_left_for_the_place_where_it_belongs(
    pack: Pack, whose: str, place: str
) -> None:
    """One of another store belongs nowhere here: it is judged by what its slots hold."""
    here = pack.id if place == "its own" else sharding.pack_id("7")
    store_id = STORE_ID if whose == "own" else bytes(15) + b"\1"
    content = PackHeader.of_pack(here, store_id).serialize() + pack.content[PACK_HEADER_SIZE:]
    kinds = [fault.kind for fault in pack.check(content) if fault.slot < 0]
    expected = ["header"] if whose != "own" else ["misplaced"] if place == "another" else []
    assert kinds == expected


def test_under_a_lost_header_whatever_holds_any_byte_is_named(pack: Pack) -> None:
    """A frame that has lost its first bytes too, with the same block of the disk, was one."""
    content = bytearray(512 * b"\xff").ljust(len(pack.content), b"\0")
    places = [0, 1, 7, 8, 15, 16, 17, 700, FRAME_SIZE - 1]
    for slot, at in enumerate(places):
        content[sharding.slot_offset(slot) + at] = 1
    header, *faults = check_pack(pack.state(bytes(content)), LoggedPack(), pack.frame_at)
    assert header.kind == "header"
    assert [(fault.slot, fault.lost) for fault in faults] == [(slot, True) for slot in range(len(places))]
