"""What a header is made of that was lost: by a recovery as by a repair, from the slots and the log."""

from __future__ import annotations

import errno
from collections.abc import Callable
from itertools import combinations, pairwise, product
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from put_rig import KEYS, OTHER_KEYS
from test_pack_check import Case, Pack, pack, with_lost_header

from ingest import sharding
from ingest.limits import FRAME_SIZE, PACK_HEADER_SIZE
from ingest.store.check.log_survey import LoggedPack
from ingest.store.check.pack_check import mend_pack
from ingest.store.layouts.pack_file import BITMAP_SIZE, PackHeader, bits_of
from ingest.store.log.lost_headers import LostHeader, LostHeaders, bits, runs, valid_slots

if TYPE_CHECKING:
    from ingest.store.layouts._pack_table import PackTable

assert pack  # a fixture
PUT_KEYS = [KEYS.put, OTHER_KEYS.put]


def lose(pack: Pack, content: bytes, cases: list[Case]) -> LostHeader:
    """As a recovery does it: puts go to their slots first."""
    lost = LostHeader(pack.id, content, PUT_KEYS)
    for case in cases:
        if "put" in case.says:
            lost.logged |= bits(case.slot, 1)
        elif "note" in case.says:
            lost.noted |= bits(case.slot, 1)
        elif "delete" in case.says:
            lost.erased |= bits(case.slot, 1)
    return lost


def in_header(content: bytes) -> tuple[list[int], list[int]]:
    """The slots that are present, and those that are deleted."""
    header = PackHeader.parse(content)
    return [*bits_of(header.present)], [*bits_of(header.deleted)]


def in_bitmaps(raw: bytes) -> tuple[list[int], list[int]]:
    assert len(raw) == 2 * BITMAP_SIZE
    return [*bits_of(raw[:BITMAP_SIZE])], [*bits_of(raw[BITMAP_SIZE:])]


def test_each_slot_is_what_it_holds_and_what_the_log_says(pack: Pack) -> None:
    present, deleted = in_bitmaps(lose(pack, with_lost_header(pack), pack.cases).bitmaps())
    here = {case.slot for case in pack.cases if case.valid or "put" in case.says} - {
        case.slot for case in pack.cases if "delete" in case.says
    }
    assert set(present) == here
    assert set(deleted) == set(range(pack.slots)) - here


def test_a_repair_makes_the_same_of_it(pack: Pack) -> None:
    """Whichever comes first."""
    content = with_lost_header(pack)
    assert in_bitmaps(lose(pack, content, pack.cases).bitmaps()) == in_header(pack.mend(content))


HELD = ((), (1, 2), (1, 2, 3), (1, 2, 3, 4), (9,))  # slots with a frame
NOTED = ((), (3,), (3, 4))
ERASED = ((), (1, 5), (3,), (3, 5))


def both_ways(
    pack: Pack, zeros: bool, held: tuple[int, ...], noted: int, erased: int
) -> tuple[tuple[list[int], list[int]], tuple[list[int], list[int]]]:
    """A pack of which the log has puts of the slots 1 and 2: what a recovery, and what a repair makes of it."""
    content = bytearray(b"" if zeros else b"\xff" * 512).ljust(len(pack.content), b"\0")
    for slot in held:
        at = sharding.slot_offset(slot)
        content[at : at + FRAME_SIZE] = pack.bytes_of(slot, "own")
    lost = LostHeader(pack.id, bytes(content), PUT_KEYS)
    lost.logged, lost.noted, lost.erased = bits(1, 2), noted, erased
    puts = {slot: (0, slot) for slot in (1, 2)}
    logged = LoggedPack(puts, noted, erased, lost.logged, noted, erased)
    mended = mend_pack(pack.state(bytes(content)), logged, pack.frame_at)
    return in_bitmaps(lost.bitmaps()), in_header(mended)


@pytest.mark.parametrize("zeros", [True, False])
def test_a_new_pack_is_made_the_same_by_both(zeros: bool) -> None:
    """A note is of frames that had to be there: where one is not, it is lost."""
    pack = Pack("4")
    for held, noted, erased in product(HELD, NOTED, ERASED):
        masks = (sum(1 << slot for slot in slots) for slots in (noted, erased))
        recovered, repaired = both_ways(pack, zeros, held, *masks)
        assert recovered == repaired, (held, noted, erased)
        present, deleted = recovered
        assert set(present) == {1, 2, *held} - set(erased)
        assert {*erased, *set(noted) - set(held)} <= set(deleted)
        gone = set(noted) - {1, 2, *held, *erased}  # the header was written before the note
        unwritten = zeros and not set(held) - {1, 2} and not gone
        assert (len(present) + len(deleted) == pack.slots) != unwritten


def test_frames_are_valid_in_their_own_slots_under_any_of_the_keys(pack: Pack) -> None:
    """Up to the end of the file, which may lie in the middle of a slot."""
    content = pack.content
    valid = {case.slot for case in pack.cases if case.valid}
    whole = valid_slots(pack.id, content, PUT_KEYS)
    assert {slot for slot in range(pack.slots) if whole >> slot & 1} == valid
    one = valid_slots(pack.id, content, PUT_KEYS[:1])
    by_other = {case.slot for case in pack.cases if case.holds == "own, by another key"}
    assert {slot for slot in range(pack.slots) if one >> slot & 1} == valid - by_other
    assert valid_slots(pack.id, content, []) == 0
    last = max(valid)
    end = sharding.slot_offset(last + 1)
    assert valid_slots(pack.id, content[:end], PUT_KEYS) == whole
    assert valid_slots(pack.id, content[: end - 1], PUT_KEYS) == whole & ~(1 << last)
    for size in (0, 512, PACK_HEADER_SIZE, PACK_HEADER_SIZE + FRAME_SIZE - 1):
        assert valid_slots(pack.id, content[:size], PUT_KEYS) == 0


@given(st.sets(st.integers(0, 1331)))
def test_runs_are_all_the_bits_and_no_others(slots: set[int]) -> None:
    found = list(runs(sum(1 << slot for slot in slots)))
    assert [slot for first, count in found for slot in range(first, first + count)] == sorted(slots)
    assert all(first + count < later for (first, count), (later, _) in pairwise(found))


class Steps:
    """Stands in for the packs, and notes what is done to them. ``refused``: the step that fails."""

    def __init__(self, refused: str = "") -> None:
        self.done: list[tuple[str, int]] = []
        self.refused = refused

    def read(self, pack: int) -> bytes:
        return b"x" * PACK_HEADER_SIZE

    def __getattr__(self, name: str) -> Callable[..., None]:
        def step(pack: int = 0, *rest: object) -> None:
            if name == self.refused:
                raise OSError(errno.EIO, "the disk")
            self.done.append((name, pack))

        return step


LOST = (5, 6, 7)
ERASED = [packs for count in range(4) for packs in combinations(LOST, count)]


def lost_of(steps: Steps, erased: tuple[int, ...]) -> LostHeaders:
    lost = LostHeaders(cast("PackTable", steps), [])
    for number in LOST:
        lost.add(number)
    for number in erased:
        lost.delete(number, 3, 2)
    return lost


@pytest.mark.parametrize("sync", [True, False])
@pytest.mark.parametrize("erased", ERASED, ids=str)
def test_all_headers_are_durable_before_a_slot_of_any_pack_is_erased(
    erased: tuple[int, ...], sync: bool
) -> None:
    steps = Steps()
    lost = lost_of(steps, erased)
    lost.make(sync)
    headers = [(name, number) for number in LOST for name in ("install_header", "rewrite_header")]
    flush = [(name, 0) for name in ("flush_begins", "sync", "flush_done") if sync and erased]
    erasing = [("replay_delete", number) for number in erased]
    assert steps.done == [*headers, *flush, *erasing]
    assert not any(number in lost for number in LOST)
    lost.make(sync)
    assert steps.done == [*headers, *flush, *erasing], "once is enough"


@pytest.mark.parametrize("step", ["install_header", "rewrite_header", "flush_begins", "sync"])
@pytest.mark.parametrize("erased", ERASED[1:], ids=str)
def test_nothing_is_erased_when_a_header_could_not_be_made_durable(
    erased: tuple[int, ...], step: str
) -> None:
    steps = Steps(step)
    with pytest.raises(OSError, match="the disk"):
        lost_of(steps, erased).make(True)
    assert "replay_delete" not in dict(steps.done)
