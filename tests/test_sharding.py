"""Packs and slots against the golden values and against the definition by characters."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest import sharding, ticket
from ingest.errors import TicketError

indices = st.one_of(st.integers(0, ticket.LAST), st.integers(0, 100_000))
packs = st.one_of(st.integers(0, sharding.PACK_LAST), st.integers(0, 2000))


def test_golden_values(contract):
    for golden in contract["tickets"]:
        index = golden["index"]
        pack, slot = sharding.ticket_pack(index), sharding.ticket_slot(index)
        assert sharding.pack_path(pack) == golden["pack"]
        assert sharding.pack_of_path(golden["pack"]) == pack
        assert slot == golden["slot"]
        assert sharding.slot_offset(slot) == golden["offset"]
        assert sharding.slot_ticket(pack, slot) == index


@given(indices)
def test_a_slot_is_the_last_two_characters(index):
    text = ticket.format(index)
    pack, slot = sharding.ticket_pack(index), sharding.ticket_slot(index)
    if len(text) == 1:
        assert (pack, slot) == (sharding.ROOT, 1296 + ticket.ALPHABET.index(text))
    else:
        assert sharding.pack_prefix(pack) == text[:-2]
        assert slot == 36 * ticket.ALPHABET.index(text[-2]) + ticket.ALPHABET.index(text[-1])
    assert sharding.slot_ticket(pack, slot) == index


@given(packs, st.data())
def test_every_slot_has_one_ticket(pack, data):
    slot = data.draw(st.integers(0, sharding.pack_slots(pack) - 1))
    index = sharding.slot_ticket(pack, slot)
    assert (sharding.ticket_pack(index), sharding.ticket_slot(index)) == (pack, slot)


@given(packs)
def test_prefix_and_path_lead_back(pack):
    assert sharding.pack_id(sharding.pack_prefix(pack)) == pack
    assert sharding.pack_of_path(sharding.pack_path(pack)) == pack


@given(indices)
def test_run_max_ends_at_the_last_consecutive_slot(index):
    last = index + ticket.run_max(index) - 1
    assert sharding.ticket_pack(last) == sharding.ticket_pack(index)
    assert sharding.ticket_slot(last) - sharding.ticket_slot(index) == last - index
    assert sharding.ticket_slot(last) in (1295, 1331)


def test_slots_of_a_pack():
    assert sharding.pack_slots(sharding.ROOT) == 1332
    assert sharding.pack_slots(1) == sharding.pack_slots(sharding.PACK_LAST) == 1296


def test_first_and_last_pack():
    assert sharding.pack_path(sharding.ROOT) == "obj"
    assert sharding.pack_path(1) == "0/obj"
    assert sharding.pack_path(sharding.PACK_LAST) == "ZZ/ZZ/ZZ/obj"


@pytest.mark.parametrize("pack", [-1, sharding.PACK_LAST + 1])
def test_no_such_pack(pack):
    for refuse in (sharding.pack_slots, sharding.pack_prefix, sharding.pack_path):
        with pytest.raises(TicketError, match="no pack"):
            refuse(pack)


@pytest.mark.parametrize(
    ("pack", "slot"), [(0, -1), (0, 1332), (1, 1296), (1, -1), (sharding.PACK_LAST, 1296)]
)
def test_no_such_slot(pack, slot):
    with pytest.raises(TicketError, match="slots"):
        sharding.slot_ticket(pack, slot)


@pytest.mark.parametrize("index", [-1, ticket.LAST + 1])
def test_no_such_ticket(index):
    for refuse in (sharding.ticket_pack, sharding.ticket_slot):
        with pytest.raises(TicketError):
            refuse(index)


@pytest.mark.parametrize("prefix", ["a", "AABBCCD", "../..", "A/B", None])
def test_no_such_prefix(prefix):
    with pytest.raises(TicketError):
        sharding.pack_id(prefix)


@pytest.mark.parametrize(
    "path",
    ["", "/obj", "A", "A/B/obj", "ABC/obj", "AA/BB/CC/DD/obj", "aa/obj", "../obj", "AA/obj/", "obj\n", None],
)
def test_what_is_not_the_path_of_a_pack(path):
    with pytest.raises(TicketError):
        sharding.pack_of_path(path)
