"""Tickets against the golden values and against a count that is done one by one."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest import ticket
from ingest.errors import TicketError
from ingest.ticket import TicketRange

indices = st.one_of(st.integers(0, ticket.LAST), st.integers(0, 100_000))
NOT_TICKETS = ["", "a", "A ", " A", "-1", "+1", "1_0", "AA/B", "../..", "A\0", "A\n", "Ä", "\u0663", "\uff11",
               "AABBCCDDE", "0" * 100]  # fmt: skip


def test_golden_values(contract):
    for golden in contract["tickets"]:
        text, index = golden["ticket"], golden["index"]
        assert ticket.parse(text) == index
        assert ticket.format(index) == text
        assert ticket.tree_path(text) == golden["tree"]
        assert ticket.from_tree_path(golden["tree"]) == text


def test_the_count_is_shortest_first_then_alphabetical():
    counted = itertools.chain.from_iterable(
        itertools.product(ticket.ALPHABET, repeat=length) for length in (1, 2, 3)
    )
    for index, characters in enumerate(counted):
        assert ticket.format(index) == "".join(characters)
    assert index == 36 + 36**2 + 36**3 - 1


def test_number_of_tickets():
    assert ticket.COUNT == 36 * (36**8 - 1) // 35
    assert ticket.format(ticket.LAST) == "ZZZZZZZZ"


@given(indices)
def test_every_form_leads_back(index):
    text = ticket.format(index)
    assert ticket.parse(text) == index
    assert ticket.from_wire(ticket.to_wire(text)) == text
    assert ticket.index_from_wire(ticket.index_to_wire(index)) == index
    assert ticket.from_tree_path(ticket.tree_path(text)) == text


@pytest.mark.parametrize("text", [*NOT_TICKETS, None, 7, b"A", ["A"]])
def test_what_is_not_a_ticket(text):
    for refuse in (ticket.parse, ticket.to_wire, ticket.tree_path, ticket.successor):
        with pytest.raises(TicketError):
            refuse(text)
    with pytest.raises(TicketError):
        ticket.compare("A", text)
    with pytest.raises(TicketError):
        TicketRange(text, 1)


@pytest.mark.parametrize("index", [-1, ticket.LAST + 1, 2**63, -(2**63)])
def test_index_out_of_bounds(index):
    for refuse in (ticket.format, ticket.index_to_wire, ticket.check_index, ticket.run_max):
        with pytest.raises(TicketError, match="index"):
            refuse(index)


def test_malformed_on_the_wire(contract):
    for malformed in contract["malformed_tickets_hex"]:
        with pytest.raises(TicketError, match="malformed"):
            ticket.from_wire(bytes.fromhex(malformed))


@pytest.mark.parametrize("raw", [b"", b"A", b"A\0", b"A" + b"\0" * 6, b"A" + b"\0" * 8, b"AABBCCDDE"])
def test_wire_form_has_eight_bytes(raw):
    with pytest.raises(TicketError):
        ticket.from_wire(raw)


@given(st.binary(min_size=8, max_size=8))
def test_any_eight_bytes_are_a_ticket_or_refused(raw):
    try:
        text = ticket.from_wire(memoryview(raw))
    except TicketError:
        length = len(raw.rstrip(b"\0"))
        assert length == 0 or any(byte not in ticket.ALPHABET.encode() for byte in raw[:length])
    else:
        assert ticket.to_wire(text) == raw


@given(indices, indices)
def test_order_is_the_order_of_the_count(a, b):
    assert ticket.compare(ticket.format(a), ticket.format(b)) == (a > b) - (a < b)


@pytest.mark.parametrize(
    ("text", "after"), [("0", "1"), ("9", "A"), ("Z", "00"), ("0Z", "10"), ("ZZZ", "0000")]
)
def test_successor(text, after):
    assert ticket.successor(text) == after


def test_nothing_comes_after_the_last_ticket():
    with pytest.raises(TicketError, match="last ticket"):
        ticket.successor("ZZZZZZZZ")


@pytest.mark.parametrize(
    "path",
    ["", "obj", "/obj", "A", "A/B/obj", "ABC/obj", "A/BC/obj", "AA/BB/CC/DD/E/obj", "AA/../obj", "aa/obj", "AA/obj/",
     "/AA/obj", "AA//obj", "AA/OBJ", "AA/obj\n", None],
)  # fmt: skip
def test_what_is_not_the_path_of_a_ticket(path):
    with pytest.raises(TicketError):
        ticket.from_tree_path(path)


# --- ranges --------------------------------------------------------------------------------------


def test_range_counts():
    tickets = TicketRange("Y", 4)
    assert list(tickets) == ["Y", "Z", "00", "01"]
    assert len(tickets) == 4
    assert tickets.last == "01"
    assert tickets.indices == range(34, 38)


@given(indices, st.integers(1, 5000), indices)
def test_range_contains_what_it_counts(start, count, other):
    count = min(count, ticket.COUNT - start)
    tickets = TicketRange.of_indices(start, count)
    assert ticket.format(start) in tickets
    assert tickets.last in tickets
    assert (ticket.format(other) in tickets) == (start <= other < start + count)


@pytest.mark.parametrize("stranger", ["", "a", None, 0, b"0", "ZZZZZZZZZ"])
def test_range_does_not_contain_what_is_no_ticket(stranger):
    assert stranger not in TicketRange("0", 100)


@pytest.mark.parametrize(("first", "count"), [("0", 0), ("0", -1), ("ZZZZZZZZ", 2), ("0", ticket.COUNT + 1)])
def test_range_out_of_bounds(first, count):
    with pytest.raises(TicketError):
        TicketRange(first, count)


def test_range_of_everything():
    assert TicketRange("0", ticket.COUNT).last == "ZZZZZZZZ"
    assert TicketRange("ZZZZZZZZ", 1).last == "ZZZZZZZZ"


def test_range_is_split_where_slots_are_not_consecutive():
    pieces = [(piece.first, piece.count) for piece in TicketRange("Y", 2 + 1296 + 5).split()]
    assert pieces == [("Y", 2), ("00", 1296), ("000", 5)]


@given(indices, st.integers(1, 10_000), st.one_of(st.none(), st.integers(200, 3000)))
def test_split_covers_the_range_in_order(start, count, count_max):
    count = min(count, ticket.COUNT - start)
    position = start
    for piece in TicketRange.of_indices(start, count).split(count_max):
        assert piece.indices.start == position
        assert piece.count <= min(ticket.run_max(position), count_max or count)
        position += piece.count
    assert position == start + count


def test_split_into_nothing():
    with pytest.raises(TicketError):
        next(TicketRange("0", 5).split(0))
