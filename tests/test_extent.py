"""Runs of tickets: each function against sets of single tickets."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest import ticket
from ingest.catalog import extent
from ingest.catalog.extent import FIRST, Extent
from ingest.errors import CatalogError


def tickets(extents) -> list[int]:
    return [index for one in extents for index in range(one.first, one.stop)]


@st.composite
def disjoint(draw) -> list[Extent]:
    """Extents that share no ticket, in any order, some of them neighbours."""
    at, found = draw(st.integers(0, 5)), []
    for count, gap in draw(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 3)), max_size=6)):
        found.append(Extent(at, count))
        at += count + gap
    return draw(st.permutations(found))


@pytest.mark.parametrize(("size", "chunks"), [(0, 1), (1, 1), (1458, 1), (1459, 2), (1 << 30, 736449)])
def test_chunks_needed(size, chunks):
    assert extent.chunks_needed(size) == chunks


def test_ranges_are_given_from_the_tickets_of_8_characters_on():
    assert ticket.format(FIRST) == "00000000"
    assert str(Extent(FIRST, 3)) == "00000000+3"


@given(disjoint())
def test_joined_keeps_the_tickets_and_leaves_no_neighbours(extents):
    joined = extent.joined([*extents, Extent(7, 0)])
    assert tickets(joined) == tickets(extents)
    assert all(a.stop != b.first for a, b in pairwise(joined))
    assert extent.total(joined) == len(tickets(extents))


@given(disjoint(), st.data())
def test_part_is_a_slice(extents, data):
    all_of_them = tickets(extents)
    start = data.draw(st.integers(0, len(all_of_them)))
    count = data.draw(st.integers(0, len(all_of_them) - start))
    assert tickets(extent.part(extents, start, count)) == all_of_them[start : start + count]


@given(disjoint(), st.integers(0, 60))
def test_without_one_ticket(extents, index):
    assert tickets(extent.without(extents, index)) == [one for one in tickets(extents) if one != index]


@given(disjoint(), disjoint())
def test_difference_is_that_of_sets(held, kept):
    rest = extent.difference(held, kept)
    assert tickets(rest) == sorted(set(tickets(held)) - set(tickets(kept)))
    assert all(one.count > 0 for one in rest)


@given(disjoint())
def test_serialized_and_parsed_again(extents):
    assert extent.parse(extent.serialize(extents)) == tuple(extents)


def test_golden_bytes():
    raw = bytes.fromhex("0000000000000005 0000000000000002 0000000000000009 0000000000000001")
    assert extent.serialize([Extent(5, 2), Extent(9, 1)]) == raw


@pytest.mark.parametrize(
    "raw",
    [bytes(15), bytes(16), extent.serialize([Extent(ticket.COUNT - 1, 2)]), b"\xff" * 16],
    ids=["cut", "no tickets", "past the last one", "nonsense"],
)
def test_what_is_no_extents_is_refused(raw):
    with pytest.raises(CatalogError):
        extent.parse(raw)
